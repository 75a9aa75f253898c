#!/usr/bin/env bash
# Installs missing packages on Debian or Ubuntu and runs all tests. Under root many tests run a second time as an ordinary user.
#   scripts/test.sh [ARGUMENTS FOR CARGO TEST]
# Stops after HOLOFS_TEST_PATIENCE seconds (default: 3600). Removes all processes, mounts, loop devices and files of the run,
# also after an interrupt. If tests fail, the last output is what they said.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

need_package mkfs.xfs xfsprogs
need_package mkfs.btrfs btrfs-progs
need_package mkfs.ext4 e2fsprogs
need_package getfattr attr
need_package strace strace
need_package setcap libcap2-bin
need_package setpriv util-linux
need_package losetup mount
need_python
install_missing
need_fuse
need_rust
need_s3s

# The ordinary user of the tests.
if [ "$(id -u)" = 0 ] && ! id holofs-test >/dev/null 2>&1; then
    say "adding the user holofs-test"
    useradd --system --no-create-home --shell /usr/sbin/nologin holofs-test
fi

# Under root the tests install the mount helper themselves.
if [ "$(id -u)" != 0 ]; then
    say "installing the mount helper for the tests"
    cargo build --quiet --package holofs-mount-helper
    built=$(realpath "${CARGO_TARGET_DIR:-target}")
    install_mount_helper "$built/debug/holofs-mount-helper" "$built/test-tools"
    export HOLOFS_TEST_MOUNT_HELPER=$built/test-tools/holofs-mount-helper
fi

# A hung mount must not hang the run. The tests take a third of this time on a busy machine.
patience=${HOLOFS_TEST_PATIENCE:-3600}

say "building"
features=(--features holofs/remote)
cargo test --workspace "${features[@]}" --no-run
say "testing"
begin_run
if [ $# -gt 0 ]; then
    in_tests "$patience" cargo test --workspace "${features[@]}" "$@"
else
    in_tests "$patience" cargo test --workspace "${features[@]}" --no-fail-fast
    in_run 300 scripts/test-robot.sh
    in_run 300 scripts/test-package.sh
fi
