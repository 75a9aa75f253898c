"""Keywords that Robot Framework does not have: a home to test in, and commands with their results."""

import gzip
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"


def make_world(fixture):
    """A directory with a ROBOCORP_HOME, whose library is a fixture. The catalogs name this home's own holotree."""
    place = os.environ.get("HOLOFS_TEST_DIR", "/var/tmp")
    world = Path(tempfile.mkdtemp(prefix="holofs-robot.", dir=place))
    world.chmod(0o755)
    home = world / "home"
    shutil.copytree(FIXTURES / fixture / "home", home)
    for name in ("used", "pids"):
        (home / "hololib" / name).mkdir(exist_ok=True)
    for catalog in (home / "hololib" / "catalog").iterdir():
        if "v12." not in catalog.name:
            continue
        text = catalog.read_bytes()
        packed = not catalog.name.endswith(".info")
        content = json.loads(gzip.decompress(text) if packed else text)
        content["path"] = str(home / "holotree" / content["identity"])
        text = json.dumps(content, indent=1).encode()
        catalog.write_bytes(gzip.compress(text) if packed else text)
    (world / "bin").mkdir()
    (world / "bin" / "holofs").symlink_to(os.environ["HOLOFS"])
    (world / "mark").touch()
    return str(world)


def remove_world(world):
    """Unmounts what is mounted below a world, and removes it. What the tests left mounted is an error."""
    left = [line.split()[4] for line in open("/proc/self/mountinfo") if line.split()[4].startswith(world + "/")]
    for point in reversed(left):
        subprocess.run(["umount", "-l", point] if os.geteuid() == 0 else ["fusermount3", "-uz", point], check=False)
    shutil.rmtree(world)
    assert not left, f"left mounted: {left}"


def run_command(command, world, cwd, extra):
    """Runs a command line with a clean environment. Returns its exit code, its output and its errors."""
    path = f"{world}/bin:" + os.environ["PATH"]
    env = {"PATH": path, "HOME": f"{world}/user", "ROBOCORP_HOME": f"{world}/home", "LANG": "C.UTF-8"}
    env.update(pair.split("=", 1) for pair in extra)
    done = subprocess.run(
        ["bash", "-c", command], cwd=cwd or world, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def parse_json(text):
    """The parsed text, which must be a list or an object."""
    value = json.loads(text)
    assert isinstance(value, (list, dict)), value
    return value


def fuse_is_available():
    """Whether spaces can be mounted here."""
    return os.path.exists("/dev/fuse") and shutil.which("fusermount3") is not None


def write_robot(directory):
    """A robot with a task, whose environment is that of `conda.yaml` in it."""
    robot = Path(directory)
    robot.mkdir()
    (robot / "conda.yaml").write_text("channels:\n- conda-forge\ndependencies:\n- python=3.12\n")
    (robot / "env.json").write_text('{"GREETING": "it\'s me"}\n')
    (robot / "task.py").write_text(
        "import os, sys\n"
        "print('task in', os.path.basename(os.getcwd()))\n"
        "print('greeting', os.environ.get('GREETING'))\n"
        "print('artifacts', os.path.basename(os.environ['ROBOT_ARTIFACTS']))\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    (robot / "robot.yaml").write_text(
        "tasks:\n"
        "  Good:\n    shell: python task.py 0\n"
        "  Bad:\n    shell: python task.py 7\n"
        "condaConfigFile: conda.yaml\n"
        "artifactsDir: output\n"
        "PATH: [.]\n"
        "PYTHONPATH: [.]\n"
    )
    # What a build would install: a Python.
    build = robot.parent / "build.sh"
    build.write_text(
        'mkdir -p "$HOLOFS_STAGE/bin"\n'
        'printf \'#!/bin/sh\\nexec /usr/bin/env -u PYTHONHOME -u PYTHONEXECUTABLE %s "$@"\\n\' "$(command -v python3)"'
        ' >"$HOLOFS_STAGE/bin/python3"\n'
        'chmod 755 "$HOLOFS_STAGE/bin/python3"\n'
        'cp "$HOLOFS_STAGE/bin/python3" "$HOLOFS_STAGE/bin/python"\n'
    )
