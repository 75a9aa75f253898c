"""The filesystems on loop devices that the benchmark uses, and the inputs on them.

Images, wheels and the recorded environment are kept for the next run. Mounts are unmounted at the end, also after an
error or an interrupt.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# About 1.3 GB and 40,000 files in site-packages. Pinned, so that runs can be compared.
PACKAGES = [
    "numpy==2.2.6", "pandas==2.3.3", "scikit-learn==1.7.2", "matplotlib==3.10.7", "scipy==1.15.3",
    "pyarrow==21.0.0", "polars==1.34.0", "opencv-python-headless==4.12.0.88", "jupyterlab==4.4.9",
    "sympy==1.14.0", "statsmodels==0.14.5", "bokeh==3.8.0", "dask==2025.9.1", "networkx==3.5",
    "nltk==3.9.2", "boto3==1.40.50", "sqlalchemy==2.0.44", "babel==2.17.0",
]
# For the `pip install` row: binary and pure packages that the environment does not have, some thousand files.
EXTRA = ["pymongo==4.15.3", "lxml==6.0.2", "django==5.2.7"]


def sh(*words, **options):
    """Runs a command that must succeed, and returns its output."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"bench: {' '.join(map(str, words))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def note(text):
    print(f"\033[2m{text}\033[0m", file=sys.stderr, flush=True)


class Places:
    """The directories of one run."""

    def __init__(self, work, target, holofs, quick):
        self.work = Path(work)
        self.target = Path(target)
        self.holofs = str(holofs or self.target / "holofs")
        self.quick = quick
        self.mounted = []
        self.sizes = [1_000, 10_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
        self.work.mkdir(parents=True, exist_ok=True)

    def example(self, name):
        return str(self.target / "examples" / name)

    def mount(self, kind, source, point, *options):
        """Mounts a filesystem that `close` unmounts."""
        point.mkdir(parents=True, exist_ok=True)
        sh("mount", "-t", kind, *options, source, point)
        self.mounted.append(point)

    def fs(self, kind, gigabytes):
        """Mounts a new or kept filesystem on a loop device."""
        image, point = self.work / f"{kind}.img", self.work / "fs" / kind
        make = {"ext4": ["mkfs.ext4", "-qF", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
                "xfs": ["mkfs.xfs", "-qf", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-qf"]}[kind]
        if not image.exists():
            note(f"making {image}")
            sh("truncate", "-s", f"{gigabytes}G", image)
            sh(*make, image)
        self.mount(kind, image, point, "-o", "loop,noatime")
        return point

    def close(self):
        """Unmounts what is still mounted, in reverse order."""
        for point in reversed(self.mounted):
            for _ in range(50):
                if subprocess.run(["umount", str(point)], capture_output=True).returncode == 0:
                    break
                if not os.path.ismount(point):
                    break
                subprocess.run(["sleep", "0.1"])
            else:
                subprocess.run(["umount", "-l", str(point)], capture_output=True)
        self.mounted = []

    # Inputs

    def wheels(self):
        """Wheels of all packages, downloaded once."""
        wheels = self.work / "wheels"
        if not (wheels / "complete").exists():
            note("downloading packages from PyPI")
            venv = self.work / "pip"
            sh(sys.executable, "-m", "venv", venv)
            packages = PACKAGES[:4] if self.quick else PACKAGES
            sh(venv / "bin/pip", "download", "-q", "--disable-pip-version-check", "-d", wheels, *packages, *EXTRA)
            (wheels / "complete").touch()
        return wheels

    def environment(self, home, raw):
        """Records the Python environment into the library of a home, as gzip blobs or raw ones."""
        if (home / "hololib" / "catalog").exists() and any((home / "hololib" / "catalog").iterdir()):
            return
        note(f"recording the environment into {home}")
        wheels = self.wheels()
        blueprint = self.work / "blueprint.yaml"
        packages = PACKAGES[:4] if self.quick else PACKAGES
        blueprint.write_text("packages:\n" + "".join(f"  - {package}\n" for package in packages))
        # Without compiled files, because rcc records none.
        script = (f'set -e; {sys.executable} -m venv --copies "$HOLOFS_STAGE"; '
                  f'"$HOLOFS_STAGE/bin/python3" -m pip install -q --disable-pip-version-check --no-compile --no-index '
                  f'--find-links {wheels} {" ".join(packages)}')
        home.mkdir(parents=True, exist_ok=True)
        words = [self.holofs, "record", home, "--blueprint", blueprint]
        sh(*words, *(["--no-compress"] if raw else []), "--", "sh", "-c", script,
           env={**os.environ, "ROBOCORP_HOME": str(home)})

    def synthetic(self, home, files):
        """Makes a library with an environment of that many small files."""
        if not (home / "hololib" / "catalog").exists():
            note(f"making a library of {files:,} files")
            sh(self.example("synthetic-library"), home, files)

    def restored(self, home, target):
        """The plain directory: the environment as rcc's restore would make it."""
        done = target.with_name(target.name + ".done")
        if not done.exists():
            shutil.rmtree(target, ignore_errors=True)
            note(f"restoring {target}")
            self.restore(home, target)
            done.touch()
        return target

    def restore(self, home, target):
        catalog = next((home / "hololib" / "catalog").glob("*.linux_amd64"))
        sh(self.example("restore"), catalog, target, self.work / "index")


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
