"""Prints the memory of many mounts. See scripts/memory.sh."""

import argparse
import os
import pwd
import subprocess
import sys
from pathlib import Path


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--spaces", type=int, default=100)
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument("--io", default="cached")
    parser.add_argument("--user")
    parser.add_argument("programs", nargs="*", type=Path)
    return parser.parse_args()


def become(name):
    """Runs the rest as another user."""
    user = pwd.getpwnam(name)
    os.initgroups(name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ.update(HOME=user.pw_dir, USER=name, LOGNAME=name)


def processes_of(program):
    """The processes that run a program, by number: its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "exe") == str(program):
                found[entry.name] = (entry / "cmdline").read_bytes()
        except OSError:
            continue
    return found


def fields_of(pid):
    """The sizes in smaps_rollup, in bytes."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value = line.split(":")
        fields[key] = int(value.split()[0]) * 1024
    return fields


def total(program):
    """The memory of all processes of a program: their share, in MB, and how many there are."""
    pids = processes_of(program)
    fields = [fields_of(pid) for pid in pids]
    return sum(each["Pss"] for each in fields) / 1e6, len(pids)


def measure(program, options):
    home = options.dir / f"home{program.parent.name}"
    home.mkdir(exist_ok=True)
    if not (home / "hololib").exists():
        subprocess.run([options.target / "examples" / "synthetic-library", home, str(options.files)], check=True)
    env = {**os.environ, "ROBOCORP_HOME": str(home)}

    def holofs(*words):
        done = subprocess.run([program, *words], env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"holofs {' '.join(map(str, words))}: {done.returncode}: {done.stderr}")
        return done.stdout.strip()

    places, figures = [], []
    try:
        for number in range(options.spaces):
            places.append(Path(holofs("mount", home, f"space{number}", "--io", options.io)))
        figures.append(total(program))
        module = "lib/python3/site-packages/package0/module0"
        for place in places:
            for number in range(10):
                (place / module / f"file{number}.py").read_bytes()
            (place / module / "file1.py").write_text("changed\n")
            (place / "new").mkdir()
        figures.append(total(program))
        for place in places:
            (place / "new" / "large").write_bytes(bytes(4 << 20))
        figures.append(total(program))
    finally:
        for place in places:
            holofs("unmount", place)
    return figures


def main():
    options = arguments()
    if options.user:
        become(options.user)
    os.umask(0o077)
    programs = options.programs or [options.target / "holofs"]
    print(f"{options.spaces} mounts, {options.files} files, {options.io}; MB of all processes together")
    for number, program in enumerate(programs):
        place = options.dir / f"program{number}"
        place.mkdir(exist_ok=True)
        copy = place / "holofs"
        copy.write_bytes(program.read_bytes())
        copy.chmod(0o755)
        version = subprocess.run([copy, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        mounted, used, written = measure(copy, options)
        print(f"{program} ({version}): {mounted[1]} processes; mounted {mounted[0]:.1f}, used {used[0]:.1f}, "
              f"after a large write {written[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
