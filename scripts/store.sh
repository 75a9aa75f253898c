#!/usr/bin/env bash
# Builds s3s-fs, the S3 store of the tests, if it is missing, and prints its path.
#   scripts/store.sh install
# HOLOFS_TOOLS names the directory (default: ~/.cache/holofs-tools).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

[ "${1:-}" = install ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && [[ ${1:-} = -h || ${1:-} = --help ]]; exit; }
need_s3s >&2
printf '%s\n' "$HOLOFS_TEST_STORE"
