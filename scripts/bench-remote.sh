#!/usr/bin/env bash
# Measures remote libraries: mounts, imports and pulls from a store of three nodes behind a network with latency.
#   scripts/bench-remote.sh [--quick] [--rows A,B] [--rounds N] [--delay MS] [--rate GBIT] [--work DIR] [--out DIR]
#     [--holofs PROGRAM]
# Prints a table and writes results.json. Needs root, for network namespaces and mounts. All processes run in a namespace
# that ends with this script, so nothing is left, also when it is killed. The environment (about 1 GB, recorded from PyPI)
# stays in DIR for the next run. Programs that are missing are built once (see scripts/store.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

case " $* " in *' -h '* | *' --help '*) exec python3 scripts/remote/main.py --holofs - --help ;; esac
[ "$(id -u)" = 0 ] || die "must be root: it makes network namespaces and drops caches"
need_python
need_package ip iproute2
need_package strace strace
need_package unshare util-linux
install_missing
need_fuse
[ -e /dev/net/tun ] || die "/dev/net/tun is missing: load the module 'tun'"
need_garage

holofs=
for argument in "$@"; do [[ $argument != --holofs* ]] || holofs=given; done
if [ -z "$holofs" ]; then
    need_rust
    say "building"
    cargo build --release --quiet --features remote
    set -- --holofs "$(realpath "${CARGO_TARGET_DIR:-target}")/release/holofs" "$@"
fi
python3 scripts/remote/main.py --prepare "$@"
# The end of the first process of the namespace ends all others, and their mounts. It is a shell, which reaps daemons.
exec unshare --net --mount --pid --fork --kill-child --mount-proc \
    bash -c 'python3 "$@"; exit $?' bash scripts/remote/main.py --garage "$tool" "$@"
