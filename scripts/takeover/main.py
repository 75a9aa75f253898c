"""Kills or upgrades the worker of a mount while programs work in the space. See scripts/takeover.sh."""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import work


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--io", default="cached")
    parser.add_argument("--user")
    parser.add_argument("--only", default="")
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--upgrade", type=Path, metavar="PROGRAM", help="alternate with this program instead of killing")
    parser.add_argument("--keepers", action="store_true", help="kill the keeper instead of the worker")
    parser.add_argument("--pause", type=float, default=0.4, help="longest time between kills in seconds")
    return parser.parse_args()


def become(name):
    """Runs the rest as another user."""
    user = pwd.getpwnam(name)
    os.initgroups(name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ.update(HOME=user.pw_dir, USER=name, LOGNAME=name)


def fill_stage(stage):
    """The library: one large file, 400 files with their length and digest in the name, 300 modules."""
    rng = random.Random(7)
    for name in ("lib", "files", "python"):
        (stage / name).mkdir()
    (stage / "lib" / "lower.dat").write_bytes(rng.randbytes(300_000))
    for _ in range(400):
        content = rng.randbytes(rng.choice([10, 3000, 20_000, 200_000]))
        name = f"f-{len(content)}-{hashlib.sha256(content).hexdigest()[:16]}"
        (stage / "files" / name).write_bytes(content)
    for number in range(300):
        lines = "\n".join(f"def f{line}(): return {line}" for line in range(rng.randrange(200)))
        (stage / "python" / f"m{number}.py").write_text(lines + "\n")


class Holofs:
    def __init__(self, program, home):
        self.program, self.home = program, home

    def __call__(self, *words):
        env = {**os.environ, "ROBOCORP_HOME": str(self.home)}
        done = subprocess.run([self.program, *words], env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"holofs {' '.join(map(str, words))}: {done.returncode}: {done.stderr}")
        return done.stdout.strip()


def children(pid):
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except FileNotFoundError:
        # It ends, or its threads do because it runs another program.
        return []
    return found


def name_of(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe").rsplit("/", 1)[-1]
    except OSError:
        return ""


def worker_of(keeper):
    """The worker: the only child of the keeper that runs holofs itself. None while there is none."""
    found = [pid for pid in children(keeper) if name_of(pid) == "holofs"]
    return found[0] if len(found) == 1 else None


def worker_process(function, place, stop, results):
    place.mkdir(exist_ok=True)
    try:
        results.put((function.__name__, True, function(place, stop)))
    except BaseException:  # noqa: BLE001 - whatever it is, it is the result
        results.put((function.__name__, False, traceback.format_exc()))


def probe(space, stop, results):
    """Measures the longest time of a request: a look-up that the kernel cannot answer, and a change."""
    os.mkdir(space / "probe")
    slow, count, number = [], 0, 0
    while not stop.is_set():
        number += 1
        begin = time.monotonic()
        if os.path.exists(space / "probe" / f"n{number}"):
            raise RuntimeError("a file that nobody made")
        middle = time.monotonic()
        path = space / "probe" / "file"
        with open(path, "w") as file:
            file.write("x")
        os.unlink(path)
        end = time.monotonic()
        count += 2
        for since, until in ((begin, middle), (middle, end)):
            if until - since > 0.001:
                slow.append((since, until - since))
        time.sleep(0.0005)
    results.put(("probe", True, (count, slow)))


def share(values, part):
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def main():
    args = arguments()
    if args.user:
        become(args.user)
    base = args.dir / "takeover"
    base.mkdir()
    home, stage_blueprint = base / "home", base / "blueprint.yaml"
    home.mkdir()
    stage_blueprint.write_text("packages: takeover\n")
    holofs = Holofs(args.dir / "holofs", home)
    holofs("record", "-q", home, "--blueprint", stage_blueprint, "--", sys.executable, __file__, "--fill")
    space = Path(holofs("mount", "--io", args.io, home, "takeover"))
    keeper = json.loads(holofs("status", "--json", space))["pid"]
    first = worker_of(keeper)
    if first is None and args.kills > 0:
        sys.exit(f"process {keeper} has no worker")
    chosen = [f for f in work.ALL if not args.only or f.__name__ in args.only.split(",")]
    chosen = [] if args.idle else chosen
    if work.fsx in chosen and not shutil.which("fsx"):
        print("fsx is not installed: left out (cargo install fsx)")
        chosen.remove(work.fsx)
    if work.pip in chosen:
        wheels = space.parent / "wheels"
        work.call(sys.executable, "-m", "venv", base / "pip")
        work.call(base / "pip/bin/pip", "download", "-q", "-d", wheels, *work.PACKAGES)
    stop, results = multiprocessing.Event(), multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=worker_process, args=(f, space / f"work-{f.__name__}", stop, results))
        for f in chosen
    ]
    processes.append(multiprocessing.Process(target=probe, args=(space, stop, results)))
    for process in processes:
        process.start()
    time.sleep(1)
    if args.upgrade:
        # Under the name by which a worker is found.
        other = base / "other" / "holofs"
        other.parent.mkdir()
        shutil.copy(args.upgrade, other)
        programs = itertools.cycle([other, args.dir / "holofs"])
    kills, descriptors = [], len(os.listdir(f"/proc/{keeper}/fd"))
    waits = []
    begin = time.monotonic()
    early = None
    while len(kills) < args.kills:
        time.sleep(random.uniform(args.pause / 8, args.pause))
        worker = worker_of(keeper)
        if worker is None:
            if not Path(f"/proc/{keeper}").exists():
                early = "the keeper has ended"
                break
            continue
        kills.append(time.monotonic())
        if args.upgrade:
            said = json.loads(holofs("upgrade", "--json", space, "--program", next(programs)))
            waits.append(said[0]["ms"])
            if worker_of(keeper) == worker:
                early = "the worker is the same after an upgrade"
                break
        elif args.keepers:
            os.kill(keeper, signal.SIGKILL)
            # The worker takes its place, and starts another one.
            keeper, deadline = worker, time.monotonic() + 20
            while worker_of(keeper) is None and time.monotonic() < deadline and Path(f"/proc/{keeper}").exists():
                time.sleep(0.002)
            # One that does not answer yet would be lost with its keeper.
            while json.loads(holofs("status", "--json", space))["pid"] != keeper and time.monotonic() < deadline:
                time.sleep(0.002)
        else:
            os.kill(worker, signal.SIGKILL)
        if any(not process.is_alive() for process in processes):
            early = "a program has ended"
            break
    took = time.monotonic() - begin
    time.sleep(0.5)
    stop.set()
    failed = early is not None
    event = "upgrades" if args.upgrade else "kills"
    if early:
        print(f"after {len(kills)} {event}: {early}")
    stalls = []
    for _ in processes:
        name, good, what = results.get(timeout=900)
        if name == "probe" and good:
            count, slow = what
            for index, at in enumerate(kills):
                until = kills[index + 1] if index + 1 < len(kills) else at + 1
                within = [took for since, took in slow if since <= until and since + took >= at]
                stalls.append(max(within, default=0.0))
            what = f"{count} requests, longest {max((took for _, took in slow), default=0) * 1000:.1f} ms"
        failed |= not good
        print(f"{'ok' if good else 'FAILED':6} {name:8} {what}")
    for process in processes:
        process.join()
    stalls.sort()
    parts = ", ".join(f"p{part} {share(stalls, part / 100) * 1000:.1f}" for part in (50, 90, 99))
    if waits:
        waits.sort()
        print(f"an upgrade takes {share(waits, 0.5)} ms (median), at most {waits[-1]} ms")
    print(f"stalls of {len(kills)} {event} in {took:.0f} s, in ms: {parts}, longest {max(stalls, default=0) * 1000:.1f}")
    now = len(os.listdir(f"/proc/{keeper}/fd"))
    zombies = [pid for pid in children(keeper) if not name_of(pid)]
    print(f"descriptors {descriptors} -> {now}, children without a program: {len(zombies)}")
    print(holofs("status", space))
    holofs("unmount", space)
    print("FAILED" if failed else "passed", f"({args.io}, {args.user or 'root'})")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--fill"]:
        fill_stage(Path(os.environ["HOLOFS_STAGE"]))
        sys.exit(0)
    sys.exit(main())
