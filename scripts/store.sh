#!/usr/bin/env bash
# Runs an S3 store on this machine for measurements and for trying things: nodes of Garage on loopback, a bucket and a key.
#   scripts/store.sh run [--nodes 1|3] [--dir DIR]    prints the environment of a client; runs until it is interrupted
#   scripts/store.sh run [--nodes 1|3] COMMAND...     runs the command with that environment, then stops the store
#   scripts/store.sh install                          builds s3s-fs, the store of the tests, and prints its path
# Three nodes keep each object three times and survive the death of one. DIR/node-N/pid has the process of each node.
# Nothing is left at the end, also when this program is killed. Programs that are missing are built once, in HOLOFS_TOOLS
# (default: ~/.cache/holofs-tools).
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

case ${1:-} in
    install)
        cd "$here/.."
        need_s3s >&2
        printf '%s\n' "$HOLOFS_TEST_STORE"
        ;;
    run)
        shift
        need_python
        install_missing
        # In a subshell, because the command runs in the directory of the caller.
        garage=$(cd "$here/.." && need_garage >&2 && printf '%s\n' "$tool")
        exec python3 "$here/remote/store.py" --program "$garage" "$@"
        ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && [[ ${1:-} = -h || ${1:-} = --help ]] ;;
esac
