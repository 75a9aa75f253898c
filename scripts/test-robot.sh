#!/usr/bin/env bash
# Runs the acceptance tests of tests/robot with Robot Framework, which it installs below target/.
#   scripts/test-robot.sh [ARGUMENTS FOR ROBOT]     uses the debug build, which must exist
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

need_python
install_missing
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
venv=$target/robot
if [ ! -x "$venv/bin/robot" ]; then
    say "installing Robot Framework below $venv"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'robotframework>=7,<8'
fi
say "acceptance tests"
HOLOFS=$target/debug/holofs PYTHONDONTWRITEBYTECODE=1 exec "$venv/bin/python" -m robot --outputdir "$target/robot-output" \
    --console dotted --exitonerror "$@" tests/robot
