"""The benchmark: prepares the inputs, runs the rows in rounds, and writes the results."""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import report
from peers import Holofs, PLAIN, Site, disk_of, pss_of, unmount
from places import EXTRA, Places, drop_caches, note, sh
from polling import polling

IMPORT = "import numpy, pandas, sklearn, matplotlib"
SECTIONS = ["Create", "Import", "Read", "Write", "Memory and disk"]
PEERS = ["ext4", "xfs", "btrfs", "hard links", "restore", "overlayfs", "fuse-overlayfs", "holofs cached",
         "holofs passthrough"]


class Bench:
    def __init__(self, options):
        self.options = options
        self.places = Places(options.work, options.target, options.holofs, options.quick)
        self.rows = {}
        self.polling = None
        self.wanted = options.peers.split(",") if options.peers else PEERS
        self.only = options.rows.split(",") if options.rows else None
        self.rounds = options.rounds or (3 if options.quick else 5)

    def add(self, section, name, base, peer, value, unit="ns"):
        row = self.rows.setdefault(name, {"section": section, "name": name, "base": base, "unit": unit, "peers": {}})
        row["peers"].setdefault(peer, []).append(value)

    def wants(self, group):
        return self.only is None or group in self.only

    def ops(self, *words):
        """Runs the compiled program and returns what it measured, in nanoseconds."""
        return json.loads(sh(self.places.example("bench-ops"), *words))

    def in_turns(self, peers, rounds=None):
        """Every peer in every round. Each round begins with another peer."""
        peers = [peer for peer in peers if peer in self.wanted]
        for turn in range(rounds or self.rounds):
            at = turn % max(len(peers), 1)
            yield from peers[at:] + peers[:at]

    # Create

    def create(self, ext4, xfs, btrfs):
        for files in self.places.sizes:
            home = ext4 / f"syn-{files}"
            self.places.synthetic(home, files)
            self.create_one(f"create, {files:,} files", home, ext4, None, None, files <= 100_000)
        self.create_one("create, the environment", ext4 / "env", ext4, xfs, btrfs, True)

    def create_one(self, row, home, ext4, xfs, btrfs, whole):
        """Times the creation of a space. With `whole`, also by the peers that create every file."""
        add = lambda peer, value: self.add("Create", row, "restore" if whole else "holofs cached", peer, value)
        plains = {"ext4": ext4 / "plain" / (PLAIN if home.name == "env" else home.name.ljust(24, "_"))}
        if whole:
            self.places.restored(home, plains["ext4"])
            site = Site(self.places, "ext4", ext4, home, []) if home.name == "env" else None
        slow = ["hard links", "restore"] if whole else []
        fast = ["overlayfs", "fuse-overlayfs"] if whole else []
        for peer in self.in_turns(slow, 1 if self.options.quick else 2):
            target = ext4 / "made" / ("x" * 24)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            os.sync()
            begin = time.perf_counter_ns()
            if peer == "restore":
                self.places.restore(home, target)
            else:
                sh("cp", "-al", plains["ext4"], target)
            add(peer, time.perf_counter_ns() - begin)
            sh("rm", "-rf", target)
        for kind, base in (("xfs", xfs), ("btrfs", btrfs)):
            if base is None or kind not in self.wanted:
                continue
            plain = self.places.restored(home, base / "plain" / PLAIN)
            target = base / "made"
            sh("rm", "-rf", target)
            os.sync()
            begin = time.perf_counter_ns()
            sh("cp", "-a", "--reflink=always", plain, target)
            add(kind, time.perf_counter_ns() - begin)
            sh("rm", "-rf", target)
        holofs = {io: Holofs(self.places, home, io) for io in ("cached", "passthrough")}
        for io in holofs.values():
            io.run("mount", home, "first", "--io", io.io)
            io.run("unmount", "first")
        # The peers below must not pay for what the copies and removals above left in the page cache.
        os.sync()
        for peer in self.in_turns([*fast, "holofs cached", "holofs passthrough"], 3 * self.rounds):
            if peer.startswith("holofs"):
                one = holofs[peer[7:]]
                name = one.new_name()
                words = [self.places.holofs, "--controller", "bench", "mount", home, name, "--io", one.io]
                begin = time.perf_counter_ns()
                subprocess.run(list(map(str, words)), env=one.environment, check=True, stdout=subprocess.DEVNULL)
                add(peer, time.perf_counter_ns() - begin)
                # After the mount the daemon writes rcc's record of the space, which is as long as the catalog.
                time.sleep(0.3)
                one.unmount(name)
                continue
            if peer == "fuse-overlayfs" and not shutil.which("fuse-overlayfs"):
                continue
            top = ext4 / "overlays" / "create"
            shutil.rmtree(top, ignore_errors=True)
            for part in ("upper", "work", "merged"):
                (top / part).mkdir(parents=True)
            text = f"lowerdir={plains['ext4']},upperdir={top}/upper,workdir={top}/work"
            words = ["mount", "-t", "overlay", "overlay"] if peer == "overlayfs" else ["fuse-overlayfs"]
            begin = time.perf_counter_ns()
            subprocess.run([*words, "-o", text, str(top / "merged")], check=True)
            add(peer, time.perf_counter_ns() - begin)
            sh("umount", top / "merged")

    # Import

    def python(self, root, code, compiled=True):
        """Times a Python program. Compiled files go to a directory outside of the environment, as with rcc, or nowhere."""
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "OPENBLAS_NUM_THREADS": "1",
                       "MPLCONFIGDIR": str(self.places.work / "mpl")}
        flags = ["-X", f"pycache_prefix={self.places.work / 'compiled'}"] if compiled else ["-B"]
        begin = time.perf_counter_ns()
        subprocess.run([str(root / "bin/python3"), "-I", *flags, "-c", code], env=environment, check=True)
        return time.perf_counter_ns() - begin

    def imports(self, site):
        # Two imports that are not counted fill the caches.
        for root in site.roots.values():
            self.python(root, IMPORT)
            self.python(root, IMPORT)
        for peer in self.in_turns(site.roots, 3 * self.rounds):
            self.add("Import", "import, warm", "ext4", peer, self.python(site.roots[peer], IMPORT))
        trace = self.trace(site)
        lists = {peer: self.list_file(f"trace-{peer}", [line.replace(str(site.plain), str(root), 1) for line in trace])
                 for peer, root in site.roots.items()}
        for peer in self.in_turns(site.roots, 2 * self.rounds):
            value = self.ops("replay", lists[peer])["replay"]
            self.add("Import", "file operations of the import", "ext4", peer, value * len(trace))
        for cold in (False, True):
            row = "create and first import" + (", cold" if cold else "")
            peers = [peer for peer in ("restore", "hard links", *site.roots) if peer not in ("ext4", "fuse-overlayfs")]
            if not cold:
                # Compiled files are found by path, so each peer has its own. This makes them.
                for peer in peers:
                    self.first_import(site, peer, None, False)
            for peer in self.in_turns(peers, 2 if cold else 3):
                self.first_import(site, peer, row, cold)
        if "holofs cached" in self.wanted:
            self.first_ever(site)

    def first_import(self, site, peer, row, cold):
        target = site.base / "made" / peer.replace(" ", "-").ljust(24, "_")
        sh("rm", "-rf", target)
        target.parent.mkdir(exist_ok=True)
        os.sync()
        if cold:
            drop_caches()
        begin = time.perf_counter_ns()
        if peer == "restore":
            self.places.restore(site.home, target)
        elif peer == "hard links":
            sh("cp", "-al", site.plain, target)
        elif peer == "overlayfs":
            target = site.overlay("first")
        else:
            one = site.holofs[peer[7:]]
            name = f"first-{peer[7:]}"
            target = Path(one.mount(name, "--fresh")["path"])
        self.python(target, IMPORT)
        if row:
            self.add("Import", row, "restore", peer, time.perf_counter_ns() - begin)
        if peer.startswith("holofs"):
            one.unmount(name)
        elif peer == "overlayfs":
            unmount(self.places, target)
        else:
            sh("rm", "-rf", target)

    def first_ever(self, site):
        """The first import from a library of which no blob has been unpacked."""
        # By path: a space of another home's library is mounted only where the user says so.
        space = site.home / "holotree" / "first-ever".ljust(24, "_")
        for turn in range(3):
            # A new home over the same library has an empty cache.
            home = site.base / "first-ever"
            sh("rm", "-rf", home)
            home.mkdir()
            (home / "hololib").symlink_to(site.home / "hololib")
            one = Holofs(self.places, home, "cached")
            begin = time.perf_counter_ns()
            root = Path(one.mount(space)["path"])
            self.python(root, IMPORT)
            if turn > 0:
                self.add("Import", "create and first import, nothing unpacked yet", "restore", "holofs cached",
                         time.perf_counter_ns() - begin)
            one.unmount(space)

    def trace(self, site):
        """The system calls of an import, as lines for the program that replays them."""
        out = self.places.work / "trace.txt"
        calls = "trace=openat,newfstatat,stat,lstat,access,readlink"
        # Without compiled files the source of every module is opened and read.
        subprocess.run(["strace", "-f", "-qq", "-e", calls, "-o", str(out), str(site.plain / "bin/python3"), "-I", "-B",
                        "-c", IMPORT], check=True, env={"PATH": os.environ["PATH"]})
        lines = []
        for line in out.read_text(errors="replace").splitlines():
            found = re.search(r'(openat|newfstatat|stat|lstat|access|readlink)\((?:[^"]*)"([^"]+)"', line)
            if not found or not found[2].startswith(str(site.plain)):
                continue
            call, path = found.groups()
            if call != "openat":
                lines.append(f"s {path}")
            elif "O_DIRECTORY" in line:
                lines.append(f"d {path}")
            else:
                # Shared objects are mapped, not read.
                lines.append(f"{'o' if '.so' in path else 'r'} {path}")
        return lines

    def list_file(self, name, lines):
        path = self.places.work / f"{name.replace(' ', '-')}.list"
        path.write_text("\n".join(map(str, lines)) + "\n")
        return path

    # Read

    def reads(self, site):
        files = [path for path in site.plain.rglob("*") if path.is_file() and not path.is_symlink()]
        some = files[:: max(1, len(files) // 5000)]
        python = [path for path in files if path.suffix == ".py"]
        largest = max((path for path in files), key=lambda path: path.stat().st_size)
        note(f"{len(files):,} files, {len(python):,} of Python; the largest is {largest.name}, "
             f"{largest.stat().st_size >> 20} MB")
        swapped = lambda paths, root: [str(path).replace(str(site.plain), str(root), 1) for path in paths]
        lists = {(peer, kind): self.list_file(f"{kind}-{peer}", swapped(paths, root))
                 for peer, root in site.roots.items() for kind, paths in (("some", some), ("python", python))}
        for operation, kind, row in (("lstat", "some", "lstat"), ("open-close", "some", "open+close"),
                                     ("open-read-close", "python", "open, read, close of every .py")):
            for peer in self.in_turns(site.roots):
                self.add("Read", row, "ext4", peer, self.ops(operation, lists[peer, kind])[operation])
        for peer in self.in_turns(site.roots):
            self.add("Read", "walk+lstat, warm", "ext4", peer, self.ops("walk", site.roots[peer])["walk"])
        for operation, row in (("read-seq", "sequential read, warm"), ("read-mmap", "mmap read, warm"),
                               ("read-random", "random 4k read, warm")):
            for peer in self.in_turns(site.roots, 2 * self.rounds):
                path = swapped([largest], site.roots[peer])[0]
                self.add("Read", row, "ext4", peer, self.ops(operation, path)[operation])
        for threads in (2, 8):
            for peer in self.in_turns(site.roots, 3):
                value = self.ops("parallel", lists[peer, "python"], threads)["parallel"]
                self.add("Read", f"{threads} readers of every .py", "ext4", peer, value)
        # Last, because it drops the caches that the warm rows need.
        for peer in self.in_turns(site.roots, 3):
            if peer.startswith("holofs"):
                site.holofs[peer[7:]].unmount(site.spaces[peer[7:]])
            drop_caches()
            if peer.startswith("holofs"):
                site.holofs[peer[7:]].mount(site.spaces[peer[7:]])
            self.add("Read", "walk+lstat, cold", "ext4", peer, self.ops("walk-cold", site.roots[peer])["walk"])

    # Write

    def writes(self, site):
        for peer in self.in_turns(site.roots):
            measured = self.ops("churn", site.roots[peer], 2000)
            for name, value in measured.items():
                self.add("Write", name, "xfs", peer, value)
            self.add("Write", "create+unlink", "xfs", peer, measured["create"] + measured["unlink"])
        for peer in self.in_turns(site.roots):
            value = self.ops("write-seq", site.roots[peer], 256)["write-seq"]
            self.add("Write", "sequential write", "xfs", peer, value)
        self.copy_ups(site)
        self.programs(site)

    def copy_ups(self, site):
        """The first change of lower files. Each file can be used once, so each round takes other files."""
        libs = [path for path in site.plain.rglob("*.so*") if path.is_file() and not path.is_symlink()]
        # About 30 MB each, one for each round.
        large = sorted(libs, key=lambda path: abs(path.stat().st_size - (30 << 20)))[: self.rounds]
        small = sorted((path for path in site.plain.rglob("*.py") if 500 < path.stat().st_size < 2000))[:500]
        for turn in range(self.rounds):
            share = small[turn * 100:(turn + 1) * 100]
            for peer, root in site.roots.items():
                if peer == "xfs":
                    continue
                at = lambda path: str(path).replace(str(site.plain), str(root), 1)
                half = len(share) // 2
                self.add("Write", "chmod of a lower file", "overlayfs", peer,
                         self.ops("chmod", self.list_file("chmod", map(at, share[:half])))["chmod"])
                values = [self.ops("copy-up", at(path))["copy-up"] for path in share[half:half + 10]]
                self.add("Write", "copy-up of 1 KB", "overlayfs", peer, sorted(values)[len(values) // 2])
                if turn < len(large):
                    # Read and synced first: extents of a copy that was unpacked a moment ago cannot be shared before they
                    # are on disk.
                    Path(at(large[turn])).read_bytes()
                    os.sync()
                    name = f"copy-up of {large[0].stat().st_size >> 20} MB"
                    self.add("Write", name, "overlayfs", peer, self.ops("copy-up", at(large[turn]))["copy-up"])

    def programs(self, site):
        """Programs that write, in every root. Their files are removed afterwards."""
        wheels = self.places.wheels()
        packages = [package.split("==")[0] for package in EXTRA]
        tar = self.places.work / "tree.tar"
        source = site.plain / "lib" / sorted(p.name for p in (site.plain / "lib").glob("python3*"))[0] / "site-packages"
        if not tar.exists():
            sh("tar", "cf", tar, "-C", source, "sklearn", "matplotlib", "pandas")
        def timed(row, peer, *words, **options):
            begin = time.perf_counter_ns()
            sh(*words, **options)
            self.add("Write", row, "xfs", peer, time.perf_counter_ns() - begin)
        for peer in self.in_turns(site.roots):
            root = site.roots[peer]
            pip = [root / "bin/python3", "-m", "pip", "--disable-pip-version-check", "-q"]
            timed("pip install", peer, *pip, "install", "--no-index", "--no-deps", "--find-links", wheels, *packages)
            sh(*pip, "uninstall", "-y", *packages)
        for peer in self.in_turns(site.roots):
            target = site.roots[peer] / "bench-tar"
            target.mkdir()
            timed("tar x", peer, "tar", "xf", tar, "-C", target)
            timed("rm -rf", peer, "rm", "-rf", target)
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        git = lambda root: ["git", "-C", root / "bench-git", "-c", "user.name=b", "-c", "user.email=b@b", "-c", "gc.auto=0"]
        for root in (site.roots[peer] for peer in site.roots if peer in self.wanted):
            (root / "bench-git").mkdir()
            sh("tar", "xf", tar, "-C", root / "bench-git")
            sh(*git(root), "init", "-q", env=environment)
            sh(*git(root), "add", ".", env=environment)
            sh(*git(root), "commit", "-qm", "x", env=environment)
            time.sleep(1.1)
            sh(*git(root), "status", "--porcelain", env=environment)
        for peer in self.in_turns(site.roots, 2 * self.rounds):
            timed("git status", peer, *git(site.roots[peer]), "status", "--porcelain", env=environment)
        for root in site.roots.values():
            shutil.rmtree(root / "bench-git", ignore_errors=True)

    # Memory and disk

    def memory(self, site):
        for io in site.holofs:
            peer, one = f"holofs {io}", site.holofs[io]
            if peer not in self.wanted:
                continue
            pids, names = [], []
            for count in (1, 10, 100):
                while len(pids) < count:
                    names.append(one.new_name())
                    pids.append(one.mount(names[-1])["pid"])
                total = [pss_of(pid) for pid in pids]
                plural = "space" if count == 1 else "spaces"
                self.add("Memory and disk", f"daemons of {count} {plural}, resident", peer, peer,
                         sum(rss for rss, _ in total), "bytes")
                self.add("Memory and disk", f"daemons of {count} {plural}, their share", peer, peer,
                         sum(pss for _, pss in total), "bytes")
            self.add("Memory and disk", "disk of a new space", "ext4", peer,
                     disk_of(one.state({"path": one.run("path", names[0]).strip()})), "bytes")
            for name in names:
                one.unmount(name)
        self.add("Memory and disk", "disk of a new space", "ext4", "ext4", disk_of(site.plain), "bytes")
        for peer in (peer for peer in ("overlayfs", "holofs cached", "holofs passthrough") if peer in self.wanted):
            self.page_cache(site, peer)

    def page_cache(self, site, peer):
        roots, names = [], []
        for n in range(10):
            if peer == "overlayfs":
                roots.append(site.overlay(f"cache{n}"))
            else:
                names.append(site.holofs[peer[7:]].new_name())
                roots.append(Path(site.holofs[peer[7:]].mount(names[-1])["path"]))
        drop_caches()
        before = cached_bytes()
        for n, root in enumerate(roots):
            self.python(root, IMPORT, compiled=False)
            if n == 0:
                self.add("Memory and disk", "page cache, 1 space", "overlayfs", peer, cached_bytes() - before, "bytes")
        self.add("Memory and disk", "page cache, 10 spaces", "overlayfs", peer, cached_bytes() - before, "bytes")
        for name in names:
            site.holofs[peer[7:]].unmount(name)
        if peer == "overlayfs":
            for root in roots:
                unmount(self.places, root)

    def run(self):
        ext4, xfs = self.places.fs("ext4", 60), self.places.fs("xfs", 30)
        btrfs = self.places.fs("btrfs", 20) if "btrfs" in self.wanted and self.wants("create") else None
        self.places.environment(ext4 / "env", False)
        if any(map(self.wants, ("import", "read", "memory"))):
            site = Site(self.places, "ext4", ext4, ext4 / "env", self.wanted)
            for group, rows in (("read", self.reads), ("import", self.imports), ("memory", self.memory)):
                if self.wants(group):
                    note(f"{group} rows")
                    rows(site)
            site.close()
        if self.wants("create"):
            note("create rows")
            self.create(ext4, xfs, btrfs)
        if self.wants("write"):
            note("write rows")
            if not (xfs / "env").exists():
                sh("cp", "-a", ext4 / "env", xfs / "env.part")
                sh("rm", "-rf", *(xfs / "env.part").glob("holofs*"), xfs / "env.part/holotree")
                (xfs / "env.part").rename(xfs / "env")
            self.writes(Site(self.places, "xfs", xfs, xfs / "env", self.wanted, ext4 / "env"))

    def python_of_environment(self):
        plains = (self.places.work / "fs" / kind / "plain" / PLAIN / "bin/python3" for kind in ("ext4", "xfs"))
        return next((plain for plain in plains if plain.exists()), sys.executable)

    def results(self):
        cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                    if line.startswith("model name")), platform.machine())
        memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        absent = {"composefs": "mkcomposefs is not packaged for this system"} if not shutil.which("mkcomposefs") else {
            "composefs": "its reader is the kernel's overlayfs over erofs: see the overlayfs column"}
        if not shutil.which("fuse-overlayfs"):
            absent["fuse-overlayfs"] = "not installed"
        return {
            "machine": {"date": datetime.date.today().isoformat(), "commit": commit, "cpu": cpu, "cpus": os.cpu_count(),
                        "memory": f"{memory / 1024:.0f} GB", "kernel": platform.release(), "polling": self.polling},
            "sections": SECTIONS, "peers": PEERS, "absent": absent, "rows": list(self.rows.values()),
        }


def cached_bytes():
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["Cached"].split()[0]) * 1024


def write(results, out, python):
    """Writes the results. The environment's own Python draws the plots, because it has matplotlib."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "results.md").write_text(report.markdown(results))
    done = subprocess.run([str(python), report.__file__, str(out / "results.json"), str(out)], capture_output=True,
                          text=True)
    if done.returncode != 0:
        note(f"no plots: {done.stderr.strip().splitlines()[-1:]}")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small environment, small trees, few rounds")
    parser.add_argument("--rows", help="groups of rows: create,import,read,write,memory")
    parser.add_argument("--peers", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--work", default="/var/tmp/holofs-bench", help="directory of the inputs, which are kept (default: %(default)s)")
    parser.add_argument("--out", help="directory of the results (default: WORK/results)")
    parser.add_argument("--holofs", help="another holofs program to measure")
    parser.add_argument("--report", metavar="RESULTS", help="write the table of these results into docs/PERFORMANCE.md")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = Path(__file__).resolve().parents[2]
    if options.report:
        results = report.load(options.report)
        report.into_document(results, root / "docs/PERFORMANCE.md")
        out = root / "docs/performance"
        out.mkdir(exist_ok=True)
        for file in [Path(options.report), *Path(options.report).parent.glob("*.svg")]:
            shutil.copy(file, out)
        return
    options.work = Path(options.work) / ("quick" if options.quick else "full")
    bench = Bench(options)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        with polling() as bench.polling:
            bench.run()
    finally:
        try:
            if bench.rows:
                results = bench.results()
                print(report.markdown(results))
                write(results, Path(options.out or options.work / "results"), bench.python_of_environment())
        finally:
            bench.places.close()


if __name__ == "__main__":
    main()
