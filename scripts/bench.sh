#!/usr/bin/env bash
# Compares the speed of holofs with everything that does the same job; writes JSON, a Markdown table and plots.
#   scripts/bench.sh [--quick] [--rows A,B] [--peers A,B] [--rounds N] [--work DIR] [--out DIR] [--holofs PROGRAM]
#   scripts/bench.sh --report RESULTS.json       writes the table of an earlier run into docs/PERFORMANCE.md
# It needs root, because it makes filesystems on loop devices, mounts, and drops caches. In a virtual machine it sets
# guest_halt_poll_ns to the kernel's default during the run, and restores the old value at the end. It unmounts what it
# mounted. The inputs (some gigabytes: a recorded Python environment from PyPI, and synthetic trees) stay in DIR for the
# next run.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

for argument in "$@"; do
    case $argument in
        --report | --report=* | -h | --help) exec python3 scripts/bench/main.py "$@" ;;
    esac
done
[ "$(id -u)" = 0 ] || die "must be root: it makes filesystems on loop devices and drops caches"
need_python
need_package mkfs.ext4 e2fsprogs
need_package mkfs.xfs xfsprogs
need_package mkfs.btrfs btrfs-progs
need_package git git
need_package fuse-overlayfs fuse-overlayfs
need_package strace strace
need_package readelf binutils
install_missing
need_fuse
need_rust

say "building"
cargo build --release --quiet --examples
target=$(realpath "${CARGO_TARGET_DIR:-target}")/release
build_static
exec python3 scripts/bench/main.py --target "$target" --holofs "$built/holofs" "$@"
