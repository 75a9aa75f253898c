#!/usr/bin/env bash
# Searches for lost data in both I/O modes: kills the daemon at random under load, lets its system calls fail or kills it at
# them, simulates power cuts, and compares random operations with those on a plain directory.
#   scripts/soak.sh                                   1,000 kills, 1,000 failures, 100 power cuts, 40 sequences
#   scripts/soak.sh SECONDS                           rounds with a tenth of those counts, each with a new seed
#   scripts/soak.sh [--kills N] [--faults N] [--cuts N] [--sequences N] [--seed S]
# The same seed and counts find a failure again. The exit status is 0 if nothing was lost. Removes everything that it makes.
# Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }
number() { [[ ${2:-} =~ ^[0-9]+$ ]] || die "$1 needs a number, not '${2:-}'"; }

seconds='' kills=1000 faults=1000 cuts=100 sequences=40 seed=$(($(date +%s) % 1000000))
[ $# = 0 ] || [[ $1 =~ ^[0-9]+$ ]] || kills=0 faults=0 cuts=0 sequences=0
while [ $# -gt 0 ]; do
    case $1 in
        --kills | --faults | --cuts | --sequences | --seed)
            number "$@"
            declare "${1#--}=$2"
            shift 2
            ;;
        -h | --help) usage; exit 0 ;;
        *)
            number "the time in seconds" "$1"
            seconds=$1 kills=100 faults=100 cuts=12 sequences=4
            shift
            ;;
    esac
done
[ "$(id -u)" = 0 ] || die "must be root: it makes filesystems on loop devices and traces the daemon"
((kills + faults + cuts + sequences > 0)) || sequences=40 kills=1000 faults=1000 cuts=100

need_package mkfs.xfs xfsprogs
need_package mkfs.ext4 e2fsprogs
need_package losetup mount
need_package setcap libcap2-bin
need_package strace strace
install_missing
need_fuse
need_rust

say "building"
cargo build --workspace --quiet
program=$(cargo test --test e2e --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\/e2e-[0-9a-f]*\)".*/\1/p' | tail -1)
[ -x "$program" ] || die "cannot build the tests"
CARGO=$(command -v cargo)
export CARGO RUST_BACKTRACE=0
begin_run
# Copies, so that a build during the run has no effect.
cp "$program" "$run_dir/e2e"
program=$run_dir/e2e
if [ -z "${HOLOFS_TEST_BINARY:-}" ]; then
    cp "${CARGO_TARGET_DIR:-target}/debug/holofs" "$run_dir/holofs"
    export HOLOFS_TEST_BINARY=$run_dir/holofs
fi
chmod 755 "$run_dir"/*
failed=0
total_kills=0 total_faults=0 total_points=0 total_cuts=0 total_sequences=0 total_operations=0

# sum LOG PATTERN: prints the sum of the numbers that the pattern captures.
sum() { sed -n "s/.*$2.*/\1/p" "$1" | awk '{ n += $1 } END { print n + 0 }'; }

# part NAME TEST... -- VARIABLE=VALUE...: runs the tests, two at a time, and adds up what they report.
part() {
    local name=$1 log=$run_dir/soak.log tests=() begin=$SECONDS counted
    counted=$((total_kills + total_faults + total_points + total_cuts + total_sequences))
    shift
    while [ "$1" != -- ]; do tests+=("$1"); shift; done
    shift
    if ! in_run 7200 env "$@" "$program" "${tests[@]}" --nocapture --test-threads=2 >"$log" 2>&1; then
        failed=$((failed + 1))
        printf 'FAILED: %s (%s)\n' "$name" "$*"
        grep -aE -A40 '^thread .* panicked|wrong$' "$log" | head -200
    fi
    ((total_kills += $(sum "$log" 'random kills: [^:]*: \([0-9]*\) kills'))) || true
    ((total_operations += $(sum "$log" ' \([0-9]*\) acknowledged operations'))) || true
    ((total_faults += $(sum "$log" 'failures: [^:]*: \([0-9]*\) injected'))) || true
    ((total_points += $(sum "$log" 'kills: [^:]*: \([0-9]*\) injected'))) || true
    ((total_cuts += $(sum "$log" 'power: [a-z0-9]*: \([0-9]*\) cuts'))) || true
    ((total_sequences += $(sum "$log" 'differential: [^:]*: \([0-9]*\) sequences'))) || true
    if ((counted == total_kills + total_faults + total_points + total_cuts + total_sequences)); then
        failed=$((failed + 1))
        printf 'FAILED: %s: no test did anything\n' "$name"
    fi
    printf '%-34s %4d s\n' "$name" $((SECONDS - begin))
}

# both TEST: prints the names of the test in both I/O modes.
both() { printf '%s::here %s::by_passthrough' "$1" "$1"; }
half() { echo $((($1 + 1) / 2)); }

round() {
    # shellcheck disable=SC2046
    ((kills == 0)) || part "kills under load" $(both crash::killed_at_random_under_load) -- \
        HOLOFS_SOAK_KILLS="$(half "$kills")" HOLOFS_SOAK_SEED="$seed"
    # shellcheck disable=SC2046
    ((faults == 0)) || part "failures at system calls" $(both inject::failed_call_leaves_before_or_after) -- \
        HOLOFS_INJECT_POINTS="$(half "$faults")" HOLOFS_INJECT_SEED="$seed"
    # shellcheck disable=SC2046
    ((faults == 0)) || part "kills at system calls" $(both inject::daemon_killed_at_a_call_leaves_before_or_after) -- \
        HOLOFS_INJECT_POINTS="$(half "$faults")" HOLOFS_INJECT_SEED="$seed"
    # Five tests make as many cuts as the variable says, and seven tests make one cut each.
    ((cuts == 0)) || part "power cuts" power:: -- HOLOFS_TEST_CUTS=$((cuts > 12 ? (cuts - 3) / 5 : 1))
    # shellcheck disable=SC2046
    ((sequences == 0)) || part "operations beside a directory" \
        $(both differential::random_operations_agree_with_a_plain_directory) -- \
        HOLOFS_DIFF_FIRST="$seed" HOLOFS_DIFF_SEEDS="$(half "$sequences")"
}

say "soaking, seed $seed"
first_seed=$seed
if [ -n "$seconds" ]; then
    while round; ((SECONDS < seconds)); do seed=$((seed + 1)); done
else
    round
fi
printf 'soak: seed %d to %d: %d kills (%d acknowledged operations), %d failures and %d kills at system calls, %d power cuts, %d sequences, %d s: %s\n' \
    "$first_seed" "$seed" "$total_kills" "$total_operations" "$total_faults" "$total_points" "$total_cuts" "$total_sequences" "$SECONDS" \
    "$([ "$failed" = 0 ] && echo 'nothing lost' || echo "$failed FAILED")"
[ "$failed" = 0 ]
