"""Calculates what a store sees when many workers start: requests, bytes, and when the last worker is ready.

    python3 scripts/remote/fleet.py RESULTS.json [--workers N] [--window S] [--per-node N] [--zones N] ...

RESULTS.json is what scripts/bench-remote.sh wrote; the requests and bytes of one worker come from there. Workers start evenly
over the window. The store answers a number of requests and of bits each second, and each node has a link of its own; what
they cannot do at once waits. The steps are a tenth of a second. Time that a worker computes is not in it.
"""

import argparse
import json
from pathlib import Path

STEP = 0.1


def measured(path):
    rows = json.loads(Path(path).read_text())["rows"]
    def row(name):
        found = [row for row in rows if row["name"] == name]
        if not found:
            raise SystemExit(f"fleet: {path} has no row {name!r}")
        middle = sorted(found, key=lambda row: row["seconds"])[len(found) // 2]
        return {"requests": middle["GET"] + middle["HEAD"], "bytes": middle["received"]}
    return {"plain": row("mount and import, plain"), "profiled": row("mount and import, profiled"),
            "compiled": row("mount and import, compiled"),
            "again": row("again on the same machine, profiled")}


def simulate(starts, requests, size, seconds, store_requests, store_bits):
    """Arrivals are even. Returns the seconds after the last start at which the last one has everything, and the highest
    rates that the store sees: requests and bits each second."""
    per_step = starts * STEP / seconds
    limit = min(store_requests / requests, store_bits / 8 / size) * STEP
    waiting, served, now, busiest = 0.0, 0.0, 0.0, 0.0
    while served < starts - 1e-6:
        if now < seconds - 1e-9:
            waiting += per_step
        some = min(waiting, limit)
        waiting -= some
        served += some
        busiest = max(busiest, some / STEP)
        now += STEP
    return max(now - seconds, 0.0), busiest * requests, busiest * size * 8


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("results")
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--window", type=float, default=60, help="seconds in which all start")
    parser.add_argument("--per-node", type=int, default=20, help="workers on a node that share its cache")
    parser.add_argument("--zones", type=int, default=3)
    parser.add_argument("--store-requests", type=float, default=5500, help="requests that the store answers each second")
    parser.add_argument("--store-gbit", type=float, default=100)
    parser.add_argument("--node-gbit", type=float, default=1)
    options = parser.parse_args()
    one = measured(options.results)
    again = one.pop("again")
    nodes = -(-options.workers // options.per_node)
    print(f"{options.workers:,} workers on {nodes:,} nodes start within {options.window:g} s; the store answers "
          f"{options.store_requests:,.0f} requests/s and {options.store_gbit:g} Gbit/s, a node has {options.node_gbit:g} Gbit/s\n")
    print("| profile | cache | requests | GB from the store | requests/s | Gbit/s | the last has everything |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for kind, name in (("plain", "no"), ("profiled", "yes"), ("compiled", "yes, and bytecode")):
        each = one[kind]
        rest = (options.workers - nodes) * again["requests"], (options.workers - nodes) * again["bytes"]
        cases = [
            ("none: each worker fetches", options.workers, options.workers * each["requests"], options.workers * each["bytes"]),
            ("one for each node", nodes, nodes * each["requests"] + rest[0], nodes * each["bytes"] + rest[1]),
            # Heads are not kept by a proxy, or only for a moment; everything else is immutable.
            ("for each node, a proxy for each zone", options.zones,
             options.zones * each["requests"] + options.workers, options.zones * each["bytes"] + options.workers * 1000),
        ]
        for cache, fetchers, requests, size in cases:
            late, rate, bits = simulate(fetchers, requests / fetchers, size / fetchers, options.window, options.store_requests,
                                        options.store_gbit * 1e9)
            # The link of the node of the last worker: what came before, if it is not through, and its own.
            mine = (options.per_node if fetchers == options.workers else 1) * each["bytes"] * 8 / (options.node_gbit * 1e9)
            late += max(mine - options.window, each["bytes"] * 8 / (options.node_gbit * 1e9))
            print(f"| {name} | {cache} | {requests:,.0f} | {size / 1e9:,.1f} | {rate:,.0f} | {bits / 1e9:,.1f} | "
                  f"{late:,.1f} s after the last start |")


if __name__ == "__main__":
    main()
