#!/usr/bin/env bash
# How long a mount takes: first (the catalog is compiled) and later (it is not), for 1,000 and 100,000 files.
# Prints medians, in milliseconds. It asserts nothing: numbers depend on the machine.
#   scripts/bench-mount.sh [RUNS] [FILES...]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

runs=${1:-15}
[ $# -gt 0 ] && shift
sizes=("$@")
[ ${#sizes[@]} -gt 0 ] || sizes=(1000 100000)

need_fuse
need_rust
say "building"
cargo build --release --quiet --bin holofs --example synthetic-library
target=$(realpath "${CARGO_TARGET_DIR:-target}")/release
holofs=$target/holofs

dir=$(mktemp -d /var/tmp/holofs-bench.XXXXXX)
export ROBOCORP_HOME=$dir/home
trap '"$holofs" unmount --all >/dev/null 2>&1 || true; rm -rf "$dir"' EXIT

# timed COMMAND...: runs it quietly and prints how long it took, in milliseconds.
timed() {
    local begin=${EPOCHREALTIME//[!0-9]/} end
    "$@" >/dev/null
    end=${EPOCHREALTIME//[!0-9]/}
    printf '%d.%02d\n' $(((end - begin) / 1000)) $(((end - begin) / 10 % 100))
}

printf '\n%-9s %16s %16s %18s\n' files "first mount, ms" "later mount, ms" "unmount, ms"
for files in "${sizes[@]}"; do
    rm -rf "$ROBOCORP_HOME"
    "$target/examples/synthetic-library" "$ROBOCORP_HOME" "$files"
    first=() later=() end=()
    for _ in $(seq 1 3); do
        rm -rf "$ROBOCORP_HOME/holofs"
        first+=("$(timed "$holofs" mount "$ROBOCORP_HOME" bench)")
        "$holofs" unmount bench >/dev/null
    done
    for _ in $(seq 1 "$runs"); do
        later+=("$(timed "$holofs" mount "$ROBOCORP_HOME" bench)")
        # After it answers, the daemon writes rcc's record of the space, which is as long as the catalog.
        sleep 0.2
        end+=("$(timed "$holofs" unmount bench)")
    done
    printf '%-9s %16s %16s %18s\n' "$files" "$(printf '%s\n' "${first[@]}" | median)" \
        "$(printf '%s\n' "${later[@]}" | median)" "$(printf '%s\n' "${end[@]}" | median)"
done
printf '\nA program that does nothing takes %s ms to start here.\n' \
    "$(for _ in $(seq 1 15); do timed /bin/true; done | median)"
