"""Programs that work in a space while its worker is killed.

Each one is a function `name(place, stop)`: it works in the directory `place` until the event `stop` is set, and raises an
exception at the first wrong result. It returns what it has done. Each runs in a process of its own.
"""

import hashlib
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path


def call(*words, **more):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **more)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def same(what, found, wanted):
    if found != wanted:
        raise RuntimeError(f"{what}: {found!r} instead of {wanted!r}")


def fsx(place, stop):
    program, rounds = shutil.which("fsx"), 0
    lower = place.parent / "lib" / "lower.dat"
    while not stop.is_set():
        for target in (place / "new.dat", lower):
            call(program, "-N", 4000, "-S", random.randrange(1, 1 << 30), target)
        rounds += 2
    return f"{rounds} sequences of 4000 operations"


def git(place, stop):
    source, rounds = place / "source", 0
    call("git", "init", "-q", source)
    for number in range(300):
        (source / f"f{number}").write_text(f"{number}\n" * (number % 50))
    call("git", "-C", source, "add", "-A")
    call("git", "-C", source, "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "one")
    while not stop.is_set():
        copies = [place / f"copy{number}" for number in range(2)]
        clones = [subprocess.Popen(["git", "clone", "-q", "--no-local", source, copy]) for copy in copies]
        same("git clone", [clone.wait() for clone in clones], [0, 0])
        for copy in copies:
            call("git", "-C", copy, "fsck", "--full", "--strict")
            same("git status", call("git", "-C", copy, "status", "--porcelain"), "")
            same("git ls-files", len(call("git", "-C", copy, "ls-files").splitlines()), 300)
            shutil.rmtree(copy)
        rounds += 2
    return f"{rounds} clones"


SQLITE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
for number in range(int(sys.argv[3])):
    db.execute("INSERT INTO t VALUES(?, ?)", (int(sys.argv[2]), number))
"""


def sqlite(place, stop):
    rounds, rows = 0, 60
    path = place / "db"
    db = sqlite3.connect(path, timeout=120)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t(w, n)")
    db.commit()
    db.close()
    while not stop.is_set():
        writers = [
            subprocess.Popen([sys.executable, "-c", SQLITE, path, str(number), str(rows)]) for number in range(2)
        ]
        same("writers of the database", [writer.wait() for writer in writers], [0, 0])
        rounds += 1
        db = sqlite3.connect(path, timeout=120)
        same("integrity_check", db.execute("PRAGMA integrity_check").fetchall(), [("ok",)])
        same("rows", db.execute("SELECT count(*) FROM t").fetchall(), [(rounds * rows * 2,)])
        db.close()
    return f"{rounds * rows * 2} transactions"


PACKAGES = "six attrs idna toml click packaging certifi urllib3 charset-normalizer requests pyyaml".split()


def pip(place, stop):
    wheels, rounds = place.parents[1] / "wheels", 0
    while not stop.is_set():
        env = place / "env"
        call(sys.executable, "-m", "venv", env)
        install = ["install", "-q", "--disable-pip-version-check", "--no-index", "--find-links", wheels]
        call(env / "bin" / "pip", *install, *PACKAGES)
        call(env / "bin" / "pip", "check", "--disable-pip-version-check")
        call(env / "bin" / "python", "-c", "import requests, yaml, attr, click, packaging, toml, six")
        shutil.rmtree(env)
        rounds += 1
    return f"{rounds} environments"


def tail(place, stop):
    path, copy = place / "log", place.parents[1] / "tail.out"
    path.touch()
    number = 0
    with open(copy, "wb") as out, subprocess.Popen(
        ["tail", "-n", "+1", "-s", "0.05", "-f", path], stdout=out, stderr=subprocess.PIPE
    ) as reader:
        with open(path, "a", buffering=1) as log:
            while not stop.wait(0.002):
                log.write(f"line {number}\n")
                number += 1
        for _ in range(200):
            if copy.stat().st_size >= path.stat().st_size:
                break
            stop_wait(0.05)
        reader.terminate()
        same("messages of tail", reader.stderr.read(), b"")
    wanted = b"".join(b"line %d\n" % line for line in range(number))
    same("the log", path.read_bytes() == wanted, True)
    same("what tail has read", copy.read_bytes() == wanted, True)
    return f"{number} lines"


def stop_wait(seconds):
    import time

    time.sleep(seconds)


IMPORTS = """
import sys, time, importlib, pathlib
place = sys.argv[1]
sys.dont_write_bytecode = True
sys.path[:] = [place]
done = 0
for name in sys.argv[2].split(','):
    module = importlib.import_module(name)
    done += 1
    time.sleep(0.01)
print(done)
"""


def imports(place, stop):
    """A running program that imports library files one after the other."""
    library, rounds = place.parent / "python", 0
    names = sorted(path.stem for path in library.glob("m*.py"))
    while not stop.is_set():
        random.shuffle(names)
        some = names[:60]
        printed = call(sys.executable, "-I", "-S", "-c", IMPORTS, library, ",".join(some))
        same("imports", printed.strip(), str(len(some)))
        rounds += 1
    return f"{rounds} programs"


def reads(place, stop):
    """Reads library files, by descriptors that stay open too, and lists directories."""
    library = place.parent / "files"
    wanted = {path.name: int(path.name.split("-")[1]) for path in library.iterdir()}
    kept = {name: open(library / name, "rb") for name in random.sample(sorted(wanted), 40)}
    done = 0
    while not stop.is_set():
        name = random.choice(list(wanted))
        same("a library file", hashlib.sha256((library / name).read_bytes()).hexdigest()[:16], name.split("-")[2])
        name, file = random.choice(list(kept.items()))
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        same("an open file", len(file.read()), wanted[name])
        if done % 10 == 0:
            same("a listing", sorted(os.listdir(library)), sorted(wanted))
        done += 1
    return f"{done} rounds"


def names(place, stop):
    """Changes names; each call has one right answer. Also files without a name, and maps."""
    done = 0
    orphans = []
    place = place / "names"
    place.mkdir()
    while not stop.is_set():
        a, b, c = (place / f"{letter}{done}" for letter in "abc")
        a.mkdir()
        os.rmdir(a)
        fd = os.open(a, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
        os.write(fd, b"x" * 5000)
        os.link(a, b)
        same("links", os.fstat(fd).st_nlink, 2)
        os.rename(a, c)
        os.symlink("target", a)
        same("a link", os.readlink(a), "target")
        os.setxattr(c, "user.one", b"1", os.XATTR_CREATE)
        os.removexattr(c, "user.one")
        os.unlink(b)
        os.rename(a, b)
        os.unlink(b)
        os.unlink(c)
        same("a file without a name", (os.fstat(fd).st_nlink, os.pread(fd, 9000, 0)), (0, b"x" * 5000))
        os.pwrite(fd, b"y" * 100, 5000)
        orphans.append(fd)
        if len(orphans) > 20:
            old = orphans.pop(0)
            same("an older file without a name", os.pread(old, 9000, 0), b"x" * 5000 + b"y" * 100)
            os.close(old)
        if done % 20 == 0:
            path = place / "map"
            path.write_bytes(bytes(8192))
            with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8192) as pages:
                pages[4000:4200] = b"z" * 200
                pages.flush()
                same("a mapped file", path.read_bytes()[3999:4201], b"\0" + b"z" * 200 + b"\0")
        same("entries", sorted(path for path in os.listdir(place) if path != "map"), [])
        done += 1
    return f"{done} rounds of 16 changes"


def maps(place, stop):
    """Opens, maps and closes files of its own, in several processes at once. Says which call failed."""
    paths = [place / f"f{number}" for number in range(100)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%d\n" % number * 1000)
    children, done = [], 0
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            os._exit(map_again_and_again(paths, stop))
        children.append(pid)
    for pid in children:
        same("a program that maps files", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
        done += 1
    return f"{done} programs"


def map_again_and_again(paths, stop):
    call = ""
    try:
        while not stop.is_set():
            number = random.randrange(len(paths))
            call = "open"
            fd = os.open(paths[number], os.O_RDONLY)
            call = "fstat"
            same("a size", os.fstat(fd).st_size, len(b"%d\n" % number) * 1000)
            call = "mmap"
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as pages:
                os.close(fd)
                call = "compare"
                same("content", pages[: 1 << 16] == b"%d\n" % number * 1000, True)
        return 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the result
        print(f"{call}: {error!r}", file=sys.stderr)
        return 1


ALL = [maps, fsx, git, sqlite, pip, tail, imports, reads, names]
