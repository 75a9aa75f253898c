#!/usr/bin/env bash
# Times holofs beside everything that does the same job, and writes JSON, a Markdown table and plots.
#   scripts/bench.sh [--quick] [--rows A,B] [--peers A,B] [--rounds N] [--work DIR] [--out DIR] [--holofs PROGRAM]
#   scripts/bench.sh --report RESULTS.json       the table again, put into docs/PERFORMANCE.md
# It needs root: it makes filesystems on loop devices, mounts, and drops caches. In a virtual machine it sets the kernel's
# default of guest_halt_poll_ns for the time of the run, and then the old value again. It removes what it mounts; the
# inputs (some gigabytes: a Python environment from PyPI, recorded; synthetic trees) stay in DIR for the next time.
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
need_package python3 python3
python3 -c 'import ensurepip, venv' 2>/dev/null || missing_packages+=(python3-venv)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing_packages+=(ca-certificates)
need_package mkfs.ext4 e2fsprogs
need_package mkfs.xfs xfsprogs
need_package mkfs.btrfs btrfs-progs
need_package git git
need_package fuse-overlayfs fuse-overlayfs
need_package strace strace
install_missing
need_fuse
need_rust

say "building"
cargo build --release --quiet --bin holofs --examples
target=$(realpath "${CARGO_TARGET_DIR:-target}")/release
exec python3 scripts/bench/main.py --target "$target" "$@"
