"""Statistics, the Markdown table, the targets, the plots. Nothing here measures."""

import json
import statistics
import sys
from pathlib import Path

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def summary(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def amount(value, unit):
    """A number with a readable unit."""
    if unit == "ns":
        for limit, divisor, name in ((1e3, 1, "ns"), (1e6, 1e3, "us"), (1e9, 1e6, "ms")):
            if value < limit:
                return f"{value / divisor:.3g} {name}"
        return f"{value / 1e9:.3g} s"
    if unit == "bytes":
        for limit, divisor, name in ((1e6, 1e3, "kB"), (1e9, 1e6, "MB")):
            if value < limit:
                return f"{value / divisor:.3g} {name}"
        return f"{value / 1e9:.3g} GB"
    return f"{value:.3g}"


def cell(row, peer):
    values = row["peers"].get(peer)
    if values is None:
        return "-"
    stats, unit = summary(values), row["unit"]
    text = f"**{amount(stats['median'], unit)}**"
    if stats["runs"] > 1:
        text += f" ({amount(stats['min'], unit)}-{amount(stats['max'], unit)})"
    ratio = against(row, peer)
    return text + (f" {ratio:.2f}x" if ratio is not None and peer != row["base"] else "")


def against(row, peer, base=None):
    """The ratio of the peer's median to the median of the base."""
    base = base or row["base"]
    ours, theirs = row["peers"].get(peer), row["peers"].get(base)
    if not ours or not theirs:
        return None
    return statistics.median(ours) / max(statistics.median(theirs), 1e-9)


def markdown(results):
    machine = results["machine"]
    lines = [
        f"Measured {machine['date']} at commit `{machine['commit']}`: {machine['cpus']} x {machine['cpu']}, "
        f"{machine['memory']} of memory, Linux {machine['kernel']}; filesystems on loop devices.",
        *([f"Idle processors: {machine['polling']}."] if machine.get("polling") else []),
        "Medians, the range in brackets, and the ratio to the first column that has a figure; less is better.",
        "",
    ]
    for section in results["sections"]:
        rows = [row for row in results["rows"] if row["section"] == section]
        if not rows:
            continue
        peers = [peer for peer in results["peers"] if any(peer in row["peers"] for row in rows)]
        lines += [f"### {section}", "", "| row | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
        lines += ["| " + row["name"] + " | " + " | ".join(cell(row, peer) for peer in peers) + " |" for row in rows]
        lines.append("")
    lines += ["### Targets", "", "| what | wanted | measured | |", "|---|---|---|---|"]
    lines += [f"| {what} | {wanted} | {measured} | {verdict} |" for what, wanted, measured, verdict in targets(results)]
    if results.get("absent"):
        lines += ["", "Not measured: " + "; ".join(f"{peer} ({why})" for peer, why in results["absent"].items()) + "."]
    return "\n".join(lines) + "\n"


def targets(results):
    """The project's targets as rows: (what, wanted, measured, verdict)."""
    rows = {row["name"]: row for row in results["rows"]}

    def median(name, peer):
        values = rows.get(name, {}).get("peers", {}).get(peer)
        return statistics.median(values) if values else None

    def ratio(name, peer, base, other=None):
        one, two = median(name, peer), median(other or name, base)
        return None if one is None or not two else one / two

    out = []

    def judge(what, measured, limit, at_most=True, unit="x"):
        if measured is None:
            out.append((what, f"{'<=' if at_most else '>='} {limit}{unit}", "-", "not measured"))
            return
        good = measured <= limit if at_most else measured >= limit
        shown = f"{measured:.3g}{unit}"
        out.append((what, f"{'<=' if at_most else '>='} {limit}{unit}", shown, "reached" if good else "**missed**"))

    cached, through = "holofs cached", "holofs passthrough"
    big = median("create, 100,000 files", cached)
    judge("create, 100,000 files", None if big is None else big / 1e6, 10, unit=" ms")
    judge("create, 1,000,000 files against 1,000", ratio("create, 1,000,000 files", cached, cached, "create, 1,000 files"), 2)
    judge("create, 100,000 files, against overlayfs", ratio("create, 100,000 files", cached, "overlayfs"), 1)
    judge("create, the environment: times faster than restore", ratio("create, the environment", "restore", cached), 1000, False)
    judge("warm import", ratio("import, warm", cached, "ext4"), 1.03)
    judge("the import's file operations", ratio("file operations of the import", cached, "ext4"), 1.10)
    judge("create and first import: times faster than restore", ratio("create and first import", "restore", cached), 8, False)
    judge("walk+lstat, warm", ratio("walk+lstat, warm", cached, "ext4"), 1.3)
    judge("walk+lstat, cold", ratio("walk+lstat, cold", cached, "ext4"), 0.5)
    for row in ("sequential read, warm", "mmap read, warm"):
        judge(f"{row}: speed, passthrough", ratio(row, "ext4", through), 0.98, False)
        judge(f"{row}: speed, cached", ratio(row, "ext4", cached), 0.6, False)
    for peer in (through, cached):
        judge(f"random 4k read: speed, {peer[7:]}", ratio("random 4k read, warm", "ext4", peer), 0.95, False)
    judge("create+unlink", ratio("create+unlink", cached, "xfs"), 3)
    judge("create+unlink: times faster than fuse-overlayfs", ratio("create+unlink", "fuse-overlayfs", cached), 4, False)
    judge("pip install", ratio("pip install", cached, "xfs"), 1.05)
    judge("git status", ratio("git status", cached, "xfs"), 1.5)
    judge("tar x", ratio("tar x", cached, "xfs"), 1.8)
    judge("rm -rf", ratio("rm -rf", cached, "xfs"), 1.8)
    judge("sequential write: speed, passthrough", ratio("sequential write", "xfs", through), 0.9, False)
    judge("page cache of 10 spaces against one, passthrough", ratio("page cache, 10 spaces", through, through, "page cache, 1 space"), 1.1)
    for row in ("open+close", "lstat", "walk+lstat, warm", "import, warm"):
        judge(f"{row}, against overlayfs", ratio(row, cached, "overlayfs"), 1)
    behind = [f"{row['name']} {against(row, cached, 'fuse-overlayfs'):.2f}x" for row in results["rows"]
              if (against(row, cached, "fuse-overlayfs") or 0) > 1 and row["unit"] == "ns"]
    known = any("fuse-overlayfs" in row["peers"] for row in results["rows"])
    out.append(("every row ahead of fuse-overlayfs", "all", ", ".join(behind) or ("all" if known else "-"),
                "**missed**" if behind else ("reached" if known else "not measured")))
    return out


def plots(results, out):
    """Draws a bar chart for each section. Needs matplotlib."""
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plot
    colors = dict(zip(results["peers"], plot.cm.tab10.colors + plot.cm.Set2.colors))
    for section in results["sections"]:
        rows = [row for row in results["rows"] if row["section"] == section]
        if not rows:
            continue
        peers = [peer for peer in results["peers"] if any(peer in row["peers"] for row in rows)]
        figure, axis = plot.subplots(figsize=(9, 0.9 + 0.22 * len(peers) * len(rows)))
        for at, row in enumerate(rows):
            for nth, peer in enumerate(peers):
                if peer in row["peers"]:
                    value = statistics.median(row["peers"][peer])
                    height = 0.8 / len(peers)
                    axis.barh(at + nth * height - 0.4, value, height, color=colors[peer],
                              label=peer if peer not in axis.get_legend_handles_labels()[1] else None)
                    axis.text(value, at + nth * height - 0.4, " " + amount(value, row["unit"]), va="center", fontsize=6)
        axis.set_xscale("log")
        axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axis.invert_yaxis()
        axis.set_xlabel(f"{rows[0]['unit']}, logarithmic; less is better")
        axis.set_title(section)
        axis.legend(fontsize=7)
        figure.tight_layout()
        name = "".join(c if c.isalnum() else "-" for c in section.lower()).strip("-")
        figure.savefig(Path(out) / f"{name}.svg")
        plot.close(figure)


def into_document(results, document):
    """Writes the table between the markers of the document."""
    text = document.read_text()
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    document.write_text(f"{head}{BEGIN}\n{markdown(results)}{END}{tail}")


def load(path):
    return json.loads(Path(path).read_text())


if __name__ == "__main__":
    plots(load(sys.argv[1]), sys.argv[2])
