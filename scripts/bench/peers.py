"""The peers that are compared. Each has a root directory that holds the same tree."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from places import sh

# As long as rcc's names, because relocation writes it over the recorded name.
PLAIN = "0000000_0000000_0000bench"[:24]


class Holofs:
    """Spaces of one home in one I/O mode. Each mode has its own blob cache, because the reads of one mode decide which
    page cache folios the other mode finds."""

    def __init__(self, places, home, io, recorded_in=None):
        """`recorded_in`: the home in which the library was recorded, if `home` is a copy of that home. The environment
        works only below the home in which it was recorded."""
        self.places, self.home, self.io = places, home, io
        self.kept = home / f"holofs-{io}"
        in_force = str(recorded_in or home)
        self.environment = {**os.environ, "ROBOCORP_HOME": in_force, "HOLOFS_HOME": str(self.kept)}
        self.count = 0

    def run(self, *words):
        return sh(self.places.holofs, "--controller", "bench", *words, env=self.environment)

    def mount(self, space, *options):
        io = ["--io", self.io] if self.io else []
        said = json.loads(self.run("mount", self.home, space, *io, *options, "--json"))
        self.places.mounted.append(Path(said["path"]))
        return said

    def unmount(self, space):
        self.run("unmount", space)

    def new_name(self):
        self.count += 1
        return f"n{os.getpid()}-{self.io}-{self.count}"

    def state(self, said):
        return self.kept / "spaces" / Path(said["path"]).name


class Site:
    """A filesystem with the environment in every form, all mounted. `roots` holds the root directory of each peer."""

    def __init__(self, places, kind, base, home, wanted, recorded_in=None):
        self.places, self.kind, self.base, self.home = places, kind, base, home
        self.plain = places.restored(home, base / "plain" / PLAIN)
        self.roots = {}
        self.holofs = {}
        self.spaces = {}
        if kind in wanted:
            self.roots[kind] = self.plain
            if kind == "xfs":
                # A copy, because the rows write to it and the lower directory of an overlay must not change.
                self.roots[kind] = base / "written" / PLAIN
                sh("rm", "-rf", self.roots[kind])
                self.roots[kind].parent.mkdir(exist_ok=True)
                sh("cp", "-a", "--reflink=auto", self.plain, self.roots[kind])
        if "overlayfs" in wanted:
            self.roots["overlayfs"] = self.overlay("o")
        if "fuse-overlayfs" in wanted and shutil.which("fuse-overlayfs"):
            self.roots["fuse-overlayfs"] = self.fuse_overlay("f")
        for io in ("cached", "passthrough"):
            if f"holofs {io}" in wanted:
                self.holofs[io] = Holofs(places, home, io, recorded_in)
                self.spaces[io] = f"site-{io}"
                self.roots[f"holofs {io}"] = self.holofs_root(io)

    def holofs_root(self, io):
        said = self.holofs[io].mount(self.spaces[io], "--fresh")
        return Path(said["path"])

    def close(self):
        """Unmounts everything. An environment works in one directory only, so two sites cannot be mounted at once."""
        for io in self.holofs:
            self.holofs[io].unmount(self.spaces[io])
            self.places.mounted.remove(self.roots[f"holofs {io}"])
        for peer in ("overlayfs", "fuse-overlayfs"):
            if peer in self.roots:
                unmount(self.places, self.roots[peer])

    def overlay_directories(self, name, lower=None):
        top = self.base / "overlays" / name
        shutil.rmtree(top, ignore_errors=True)
        directories = {part: top / part for part in ("upper", "work", "merged")}
        for directory in directories.values():
            directory.mkdir(parents=True)
        options = f"lowerdir={lower or self.plain},upperdir={directories['upper']},workdir={directories['work']}"
        return directories["merged"], options

    def overlay(self, name):
        merged, options = self.overlay_directories(name)
        self.places.mount("overlay", "overlay", merged, "-o", options)
        return merged

    def fuse_overlay(self, name):
        merged, options = self.overlay_directories(name)
        sh("fuse-overlayfs", "-o", options, merged)
        self.places.mounted.append(merged)
        return merged


def unmount(places, point):
    sh("umount", point)
    places.mounted.remove(point)


def pss_of(pid):
    """Memory of a process in bytes: (resident set size, proportional set size)."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value = line.split(":")
        fields[key] = int(value.split()[0]) * 1024
    return fields["Rss"], fields["Pss"]


def disk_of(path):
    return int(subprocess.run(["du", "-s", "--block-size=1", str(path)], capture_output=True, text=True).stdout.split()[0])
