#!/usr/bin/env bash
# Kills the worker of a mount again and again while programs work in the space, and reports errors and stalls.
#   scripts/takeover.sh [--kills N] [--io cached|passthrough] [--user NAME] [--only NAME,...] [--idle]
#     [--upgrade PROGRAM | --keepers]
# The work: files that are mapped again and again, fsx (if it is installed: `cargo install fsx`), git clone and fsck, SQLite with
# two writers, pip, tail -f, imports, reads of library files, changes of names. The exit status is 0 if no program got an
# error, and no effect was lost or doubled. --idle leaves only the program that measures stalls. --upgrade does not kill: it
# has the mount go on with PROGRAM, another build of holofs, and with this one, in turn. --keepers kills the keeper, whose
# place the worker takes. Removes everything that it makes. Needs the network for pip.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

case " $* " in *' -h '* | *' --help '*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 0 ;; esac
need_package git git
need_package sqlite3 sqlite3
need_python
install_missing
need_fuse
need_rust
say "building"
cargo build --release --workspace --quiet
begin_run
# A copy, so that a build during the run has no effect.
for program in holofs holofs-mount-helper; do
    install -m 755 "${CARGO_TARGET_DIR:-target}/release/$program" "$run_dir/$program"
done
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin" in_run 14400 python3 scripts/takeover/main.py --dir "$run_dir" "$@"
