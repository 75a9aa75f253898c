"""Measures remote libraries over a network with latency. See scripts/bench-remote.sh.

Runs in network, mount and process namespaces of its own, which end with it. Each row has a machine of its own: a home with
an empty cache. The page cache is dropped before each.
"""

import argparse
import datetime
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from link import Link
from store import BUCKET, Cluster

# About 1 GB and 30,000 files. Pinned, so that runs can be compared.
PACKAGES = [
    "numpy==2.2.6", "pandas==2.3.3", "scikit-learn==1.7.2", "matplotlib==3.10.7", "scipy==1.15.3", "pyarrow==21.0.0",
    "jupyterlab==4.4.9", "sympy==1.14.0", "statsmodels==0.14.5", "bokeh==3.8.0", "dask==2025.9.1", "networkx==3.5",
    "nltk==3.9.2", "sqlalchemy==2.0.44", "babel==2.17.0", "polars==1.34.0", "opencv-python-headless==4.12.0.88",
    "boto3==1.40.50", "django==5.2.7",
]
QUICK = 4
IMPORT = "import numpy, pandas, sklearn, matplotlib"
NEAR, FAR, NAME = "10.77.0.1", ["10.77.0.2", "10.77.0.3", "10.77.0.4"], "store"


def note(text):
    print(f"\033[2m{text}\033[0m", file=sys.stderr, flush=True)


def sh(*words, **options):
    """Runs a command that must succeed, and returns its output."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"bench-remote: {' '.join(map(str, words))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def prepare(options):
    """The environment, recorded into the library of a home. Needs the network."""
    work, packages = options.work, PACKAGES[:QUICK] if options.quick else PACKAGES
    wheels, home = work / "wheels", work / ("quick" if options.quick else "full")
    if not (wheels / "complete").exists():
        note("downloading packages from PyPI")
        sh(sys.executable, "-m", "venv", work / "pip")
        sh(work / "pip/bin/pip", "download", "-q", "--disable-pip-version-check", "-d", wheels, *PACKAGES)
        (wheels / "complete").touch()
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        note(f"recording the environment into {home}")
        blueprint = work / "blueprint"
        blueprint.write_text("packages:\n" + "".join(f"  - {package}\n" for package in packages))
        script = (f'set -e; {sys.executable} -m venv --copies "$HOLOFS_STAGE"; '
                  f'"$HOLOFS_STAGE/bin/python3" -m pip install -q --disable-pip-version-check --no-compile --no-index '
                  f'--find-links {wheels} {" ".join(packages)}')
        sh(options.holofs, "record", home, "--portable", "--blueprint", blueprint, "--", "sh", "-c", script,
           env={**os.environ, "ROBOCORP_HOME": str(home)})
        (home / "complete").touch()


class Machine:
    """A worker: a home with its own state and cache. `environment` leads it to the store."""

    def __init__(self, bench, name, environment, home=None):
        self.bench, self.home = bench, home or bench.place / name
        self.home.mkdir(parents=True, exist_ok=True)
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(bench.place), "ROBOCORP_HOME": str(self.home),
                            **environment}
        self.mounted = []

    def start(self, *words):
        return subprocess.Popen([str(self.bench.options.holofs), *map(str, words)], env=self.environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *words):
        return sh(self.bench.options.holofs, *words, env=self.environment)

    def mount(self, library, space, *words):
        root = Path(json.loads(self.run("mount", library, space, "--json", *words))["path"])
        self.mounted.append(space)
        return root

    def unmount(self):
        for space in self.mounted:
            self.run("unmount", space)
        self.mounted = []

    def stats(self, space):
        return json.loads(self.run("stats", space, "--json"))

    def python(self, root, code=IMPORT, wait=True):
        # Compiled files go nowhere, so that each import compiles the sources, unless the mount shows bytecode.
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "OPENBLAS_NUM_THREADS": "1",
                       "MPLCONFIGDIR": str(self.bench.place / "mpl")}
        process = subprocess.Popen([str(root / "bin/python3"), "-I", "-B", "-c", code], env=environment,
                                   stderr=subprocess.PIPE, text=True)
        if not wait:
            return process
        _, errors = process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"bench-remote: the import failed: {errors.strip().splitlines()[-1:]}")
        return process


class Bench:
    def __init__(self, options):
        self.options, self.rows = options, []
        self.work = options.work
        # Not on a path that is longer than the recorded one.
        self.place = self.work / "run"
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        self.library = self.work / ("quick" if options.quick else "full")
        self.catalog = next((self.library / "hololib" / "catalog").glob("*.linux_*[0-9]"))
        self.only = options.rows.split(",") if options.rows else None
        self.machines = 0
        self.link = self.cluster = None

    # The network and the store

    def begin(self):
        sh("ip", "link", "set", "lo", "up")
        hosts = self.place / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {NAME}\n" for address in FAR))
        sh("mount", "--bind", hosts, "/etc/hosts")
        self.link = Link(NEAR, FAR, self.options.delay / 1000, self.options.rate * 1e9)
        note("starting three nodes of the store")
        self.cluster = Cluster(self.options.garage, FAR, self.place / "store", (3900, 3901), self.link.command())
        self.environment = self.cluster.environment(NAME)

    def end(self):
        if self.cluster:
            self.cluster.close()
        if self.link:
            self.link.close()
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[4].startswith(f"{self.place}/"):
                subprocess.run(["umount", "-l", line.split()[4]], check=False)
        shutil.rmtree(self.place, ignore_errors=True)

    def machine(self, local=False):
        self.machines += 1
        return Machine(self, f"m{self.machines}", {} if local else self.environment)

    def url(self, name):
        return f"s3://{BUCKET}/{name}"

    def requests(self):
        found = [request for node in self.cluster.nodes for request in node.requests()]
        return {method: sum(1 for one, _ in found if one == method) for method in ("GET", "PUT", "HEAD", "POST")}

    # Measuring

    def wants(self, group):
        return self.only is None or group in self.only

    def measure(self, name, action, **more):
        """Runs and times an action, with what it moved over the network."""
        drop_caches()
        time.sleep(0.2)
        link, requests, load = self.link.count(), self.requests(), os.getloadavg()[0]
        begin = time.monotonic()
        extra = action() or {}
        seconds = time.monotonic() - begin
        # The log of a node may be a moment behind.
        time.sleep(0.3)
        now, done = self.link.count(), self.requests()
        row = {"name": name, "seconds": round(extra.pop("seconds", seconds), 3), "load": load,
               "received": now["received"] - link["received"], "sent": now["sent"] - link["sent"],
               "connections": now["connections"] - link["connections"],
               **{method: done[method] - requests[method] for method in done}, **more, **extra}
        self.rows.append(row)
        note(f"{name}: {row['seconds']} s, {row['GET']} GETs, {row['received'] / 1e6:.1f} MB"
             + (f", {extra}" if extra else ""))
        return row

    def run(self):
        self.look_at_inputs()
        if self.wants("push"):
            self.push()
        if self.wants("import"):
            self.imports()
        if self.wants("spaces"):
            self.spaces()
        if self.wants("faults"):
            self.faults()

    def look_at_inputs(self):
        """What an import opens, and a profile of it."""
        def stored(entry, into, path):
            for name, file in (entry["files"] or {}).items():
                if not file.get("symlink"):
                    into[f"{path}{name}"] = (file["digest"], file["size"])
            for name, below in (entry["subdirs"] or {}).items():
                if below.get("symlink"):
                    continue
                stored(below, into, f"{path}{name}/")
        tree = json.loads(gzip.decompress(self.catalog.read_bytes()))
        self.files = {}
        stored(tree["tree"], self.files, "")
        blob = lambda digest: self.library / "hololib/library" / digest[:2] / digest[2:4] / digest[4:6] / digest
        sizes = {digest: blob(digest).stat().st_size for digest, _ in self.files.values()}
        builder = Machine(self, "builder", {**self.environment})
        (builder.home / "hololib").symlink_to(self.library / "hololib")
        self.builder = builder
        root = builder.mount(self.library, "trace")
        out = self.place / "trace"
        sh("strace", "-f", "-qq", "-e", "trace=openat,open,execve", "-o", out, root / "bin/python3", "-I", "-B", "-c", IMPORT,
           env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "MPLCONFIGDIR": str(self.place / "mpl")})
        opened = set()
        for line in out.read_text(errors="replace").splitlines():
            found = re.search(r'"([^"]+)".*= \d+', line)
            if found and found[1].startswith(f"{root}/"):
                opened.add(os.path.relpath(os.path.realpath(found[1]), root))
        opened &= set(self.files)
        builder.unmount()
        digests = {self.files[path][0] for path in opened}
        self.inputs = {
            "files": len(self.files), "bytes": sum(size for _, size in self.files.values()),
            "stored": sum(sizes.values()), "blobs": len(sizes),
            "import_files": len(opened), "import_bytes": sum(self.files[path][1] for path in opened),
            "import_stored": sum(sizes[digest] for digest in digests),
        }
        note(str(self.inputs))

    def push(self):
        push = lambda url, *words: lambda: self.builder.run("push", self.library, self.url(url), *words) and None
        self.measure("push, no profile", push("plain", "--profile", "none"))
        self.measure("push, with the profile", push("profiled", "--profile", "auto"))
        self.measure("push again", push("profiled", "--profile", "auto"))
        note("compiling the sources")
        self.builder.run("warm", self.library, self.catalog.name[:16], "--profile", "--pycache")
        self.measure("push, with the profile and bytecode", push("compiled", "--profile", "auto"))

    def imports(self):
        local = self.machine(local=True)

        def first(machine, library, *words):
            def action():
                begin = time.monotonic()
                root = machine.mount(library, "space", *words)
                mounted = time.monotonic() - begin
                machine.python(root)
                return {"mount": round(mounted, 3)}
            return action

        self.measure("local: mount and import", first(local, self.library))
        local.unmount()
        for url, words in (("plain", ()), ("profiled", ()), ("compiled", ("--pycache",))):
            for turn in range(self.options.rounds):
                one = self.machine()
                self.measure(f"mount, {url}", lambda: one.mount(self.url(url), "space", *words) and None)
                one.unmount()
                one = self.machine()
                self.measure(f"mount and import, {url}", first(one, self.url(url), *words))
                one.unmount()
                self.measure(f"again on the same machine, {url}", first(one, self.url(url), *words))
                one.unmount()
        one = self.machine()

        def pull():
            begin = time.monotonic()
            one.run("pull", self.url("plain"), one.home)
            pulled = time.monotonic() - begin
            target = one.home / "tree"
            root = json.loads(one.run("restore", one.home, target, "--json"))["path"]
            restored = time.monotonic() - begin
            one.python(Path(root))
            return {"pulled": round(pulled, 3), "restored": round(restored, 3)}
        if subprocess.run([self.options.holofs, "pull", "--help"], capture_output=True).returncode != 0:
            return note("this holofs has no `pull`: row left out")
        self.measure("pull everything, restore, import", pull)
        shutil.rmtree(one.home)

    def spaces(self):
        one = self.machine()

        def ten():
            roots = [one.mount(self.url("profiled"), f"space-{number}") for number in range(10)]
            programs = [one.python(root, wait=False) for root in roots]
            if any(program.wait() for program in programs):
                raise SystemExit("bench-remote: an import failed")
        self.measure("ten spaces import at once", ten)
        one.unmount()
        two = self.machine()

        def beside():
            pushing = self.builder.start("push", self.library, self.url("beside"))
            time.sleep(1)
            begin = time.monotonic()
            two.python(two.mount(self.url("profiled"), "space"))
            seconds, still = time.monotonic() - begin, pushing.poll() is None
            _, errors = pushing.communicate()
            if pushing.returncode != 0:
                raise SystemExit(f"bench-remote: push: {errors}")
            return {"seconds": seconds, "pushing_at_the_end": still}
        self.measure("import while another machine pushes", beside)
        two.unmount()

    def reads(self, root, into):
        """Reads everything, and notes the digest of each file or its error."""
        for path, (_, size) in self.files.items():
            try:
                into[path] = hashlib.sha256((root / path).read_bytes()).hexdigest()
            except OSError as error:
                into[path] = error.errno

    def faults(self):
        local, expected = self.machine(local=True), {}
        # The same path, because some files name it.
        where = self.place / "space-of-faults"
        self.reads(local.mount(self.library, where), expected)
        local.unmount()

        def compare(found):
            wrong = sum(1 for path, what in found.items() if isinstance(what, str) and what != expected[path])
            return {"read": sum(isinstance(what, str) for what in found.values()), "wrong": wrong,
                    "errors": sum(not isinstance(what, str) for what in found.values())}

        def during(disturb, *words):
            machine, found = self.machine(), {}

            def action():
                root = machine.mount(self.url("plain"), where, *words)
                thread = threading.Thread(target=self.reads, args=(root, found))
                thread.start()
                time.sleep(2)
                disturb()
                thread.join()
                # After it: what failed can be read.
                again = {path: what for path, what in found.items() if not isinstance(what, str)}
                first = compare(found)
                later = {}
                for path in again:
                    later[path] = hashlib.sha256((root / path).read_bytes()).hexdigest()
                return {**first, "wrong_later": compare(later)["wrong"]}
            return machine, action

        def kill_node():
            self.cluster.nodes[1].signal(signal.SIGKILL)
        machine, action = during(kill_node)
        self.measure("read all, a node is killed", action)
        machine.unmount()
        self.cluster.nodes[1].start()
        time.sleep(3)

        def cut(seconds):
            def disturb():
                self.link.cut()
                time.sleep(seconds)
                self.link.restore()
            return disturb
        machine, action = during(cut(10))
        self.measure("read all, no network for 10 s", action)
        machine.unmount()
        machine, action = during(cut(15), "--remote-timeout", "3")
        self.measure("read all, no network for 15 s, timeout 3 s", action)
        machine.unmount()

    def results(self):
        cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                    if line.startswith("model name")), platform.machine())
        return {"date": datetime.date.today().isoformat(), "cpu": cpu, "cpus": os.cpu_count(), "kernel": platform.release(),
                "delay_ms": self.options.delay, "gbit": self.options.rate, "environment": self.inputs, "rows": self.rows}


def table(results):
    lines = ["| | s | GETs | PUTs | MB in | MB out | load | |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
    shown = {"name", "seconds", "GET", "PUT", "HEAD", "POST", "received", "sent", "connections", "load"}
    for row in results["rows"]:
        more = ", ".join(f"{key} {value}" for key, value in row.items() if key not in shown)
        lines.append(f"| {row['name']} | {row['seconds']:.2f} | {row['GET']} | {row['PUT']} | {row['received'] / 1e6:.1f} | "
                     f"{row['sent'] / 1e6:.1f} | {row['load']:.1f} | {more} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-remote.sh", description=__doc__)
    parser.add_argument("--work", type=Path, default="/var/tmp/holofs-bench-remote",
                        help="the environment, which is kept, and everything else (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="directory of results.json (default: WORK)")
    parser.add_argument("--holofs", type=Path, required=True, help="the program to measure")
    parser.add_argument("--garage", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="an environment of the first packages only")
    parser.add_argument("--rows", help="groups of rows: push,import,spaces,faults; all but push need push")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--delay", type=float, default=10, help="milliseconds each way (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1, help="Gbit/s (default: %(default)s)")
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.prepare:
        return prepare(options)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    bench = Bench(options)
    try:
        bench.begin()
        bench.run()
    finally:
        bench.end()
        if bench.rows:
            results = bench.results()
            print(table(results))
            out = options.out or options.work
            out.mkdir(parents=True, exist_ok=True)
            (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
