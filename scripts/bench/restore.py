#!/usr/bin/env python3
"""Times rcc's restore beside holofs's, by copy, reflink and hard link, on ext4, XFS and btrfs: the tables of "Restores" in
docs/PERFORMANCE.md.

    sudo scripts/bench/restore.py --rcc /usr/local/bin/rcc [--holofs target/release/holofs] [--work DIR] [--fs ext4,xfs,btrfs]
                                  [--sizes small,middle,large] [--runs 3] [--warm-pages]

Environments of three sizes are made of PyPI packages and recorded once into DIR (about 5 GB). Each filesystem is a new image
of 64 GB (sparse) on a loop device with direct I/O. The ways take turns. Before each run the disks are synced and the kernel's
caches are dropped, for rcc as for holofs, unless --warm-pages is given. "Cold" means that holofs's own home is empty too:
no compiled index, no cached blob. "Warm" means that two restores have filled it: the second one has the cache share the blocks
of the first one, when these are on the disk. The clock stops when the command ends; what
is still to be written to the disk then is not counted, for nobody.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from places import PACKAGES, drop_caches, note, sh

SIZES = {
    "small": ["requests==2.32.5"],
    "middle": ["robotframework==7.3.2", "requests==2.32.5", "pydantic==2.11.9", "openpyxl==3.1.5", "rich==14.1.0"],
    "large": PACKAGES,
}
MAKE = {
    "ext4": ["mkfs.ext4", "-qF", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-qf", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-qf"],
}
# The way, its strategy, and whether holofs's home is filled before.
HOLOFS = {
    "copy": ("copy", True),
    "copy, cold": ("copy", False),
    "reflink": ("reflink", True),
    "reflink, cold": ("reflink", False),
    "hard link": ("hardlink", True),
    "hard link, cold": ("hardlink", False),
}


class Site:
    """A filesystem on a loop device, with a home of rcc in it."""

    def __init__(self, options, kind):
        self.options, self.kind, self.made, self.results = options, kind, 0, {}
        self.point = options.work / "fs"
        self.home = self.point / "home"
        self.image = options.work / f"restore-{kind}.img"

    def __enter__(self):
        self.point.mkdir(parents=True, exist_ok=True)
        sh("truncate", "-s", "64G", self.image)
        try:
            sh(*MAKE[self.kind], self.image)
            self.device = sh("losetup", "--find", "--show", "--direct-io=on", self.image).strip()
            try:
                sh("mount", "-o", "noatime", self.device, self.point)
            except BaseException:
                sh("losetup", "--detach", self.device)
                raise
        except BaseException:
            self.image.unlink()
            raise
        return self

    def __exit__(self, *_):
        sh("umount", self.point)
        sh("losetup", "--detach", self.device)
        self.image.unlink()

    def holofs(self, own, *words):
        env = {**os.environ, "ROBOCORP_HOME": str(self.home), "HOLOFS_HOME": str(own)}
        return [str(self.options.holofs), *map(str, words)], env

    def run(self, size, way):
        """One run. Returns seconds."""
        blueprint = self.options.work / f"{size}.yaml"
        self.made += 1
        space = f"bench-{self.made}"
        if way == "rcc":
            words = [str(self.options.rcc), "holotree", "variables", "--no-build", "--space", space, str(blueprint)]
            env = {**os.environ, "ROBOCORP_HOME": str(self.home)}
        else:
            strategy, warm = HOLOFS[way]
            own = self.point / f"holofs-{size}-{strategy}" if warm else self.point / f"holofs-{self.made}"
            restore = ["restore", self.home, space, "--conda", blueprint, "--strategy", strategy, "--json"]
            if warm and not own.exists():
                for name in ("first", "second"):
                    words, env = self.holofs(own, *restore[:2], f"{space}-{name}", *restore[3:])
                    sh(*words, env=env)
                    os.sync()
            words, env = self.holofs(own, *restore)
        if self.options.warm_pages:
            os.sync()
        else:
            drop_caches()
        began = time.perf_counter()
        sh(*words, env=env)
        return time.perf_counter() - began

    def measure(self, size):
        strategies = ["copy", "hard link"] + (["reflink"] if self.kind != "ext4" else [])
        ways = ["rcc"] + [way for way in HOLOFS if way.split(",")[0] in strategies]
        for turn in range(self.options.runs):
            at = turn % len(ways)
            for way in ways[at:] + ways[:at]:
                seconds = self.run(size, way)
                self.results.setdefault(size, {}).setdefault(way, []).append(seconds)
                note(f"{self.kind}, {size}, {way}: {seconds:.2f} s")


def record(options):
    """Records the environments into a library that is copied to each filesystem. A catalog names the place of its spaces, so
    the library is recorded at the place at which the filesystems are mounted."""
    library, home = options.work / "hololib", options.work / "fs" / "home"
    for size in options.sizes:
        packages = SIZES[size]
        blueprint = options.work / f"{size}.yaml"
        blueprint.write_text("channels:\n- conda-forge\ndependencies:\n- python=3\n- pip:\n" +
                             "".join(f"  - {package}\n" for package in packages))
        if (library / f"{size}.done").exists():
            continue
        note(f"recording the {size} environment")
        # Without compiled files, because rcc records none.
        script = (f'set -e; {sys.executable} -m venv --copies "$HOLOFS_STAGE"; "$HOLOFS_STAGE/bin/python3" -m pip install -q '
                  f'--disable-pip-version-check --no-compile {" ".join(packages)}')
        home.mkdir(parents=True, exist_ok=True)
        if library.exists():
            shutil.copytree(library, home / "hololib", dirs_exist_ok=True)
        sh(options.holofs, "record", home, "--blueprint", blueprint, "--", "sh", "-c", script,
           env={**os.environ, "ROBOCORP_HOME": str(home), "HOLOFS_HOME": str(options.work / "own")})
        shutil.copytree(home / "hololib", library, dirs_exist_ok=True)
        shutil.rmtree(home)
        (library / f"{size}.done").touch()
    return library


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rcc", type=Path, required=True)
    parser.add_argument("--holofs", type=Path, default=Path("target/release/holofs"))
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/holofs-bench-restore"))
    parser.add_argument("--fs", type=lambda text: text.split(","), default=list(MAKE))
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=list(SIZES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm-pages", action="store_true", help="do not drop the kernel's caches")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("must be root: it makes filesystems on loop devices and drops caches")
    options.holofs = options.holofs.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    library = record(options)
    results = {}
    for kind in options.fs:
        with Site(options, kind) as site:
            site.home.mkdir()
            shutil.copytree(library, site.home / "hololib")
            for size in options.sizes:
                site.measure(size)
            results[kind] = site.results
    (options.work / "restore.json").write_text(json.dumps(results, indent=1))
    print("| filesystem | environment | way | median s | runs | times faster than rcc |\n|---|---|---|---|---|---|")
    for kind, sizes in results.items():
        for size, ways in sizes.items():
            rcc = statistics.median(ways["rcc"])
            for way, runs in ways.items():
                median = statistics.median(runs)
                shown = ", ".join(f"{run:.2f}" for run in runs)
                print(f"| {kind} | {size} | {way} | {median:.2f} | {shown} | {rcc / median:.1f} |")


if __name__ == "__main__":
    main()
