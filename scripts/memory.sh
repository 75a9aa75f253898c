#!/usr/bin/env bash
# Mounts many spaces of one library, and prints the memory that all their processes take together.
#   scripts/memory.sh [--spaces N] [--files N] [--io cached|passthrough] [--user NAME] [PROGRAM...]
# Each PROGRAM is a holofs; without one, this version is built. Pages that processes share are counted once (the sum of `Pss` in
# /proc/PID/smaps_rollup). Figures: after the mounts, after each space was read and changed a little, after a large write in
# each. Removes everything that it makes.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

case " $* " in *' -h '* | *' --help '*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 0 ;; esac
need_package python3 python3
install_missing
need_fuse
need_rust
say "building"
cargo build --release --quiet --workspace
cargo build --release --quiet --example synthetic-library
target=$(realpath "${CARGO_TARGET_DIR:-target}")/release
begin_run
in_run 3600 python3 scripts/memory/main.py --dir "$run_dir" --target "$target" "$@"
