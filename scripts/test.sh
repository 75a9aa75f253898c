#!/usr/bin/env bash
# Installs what is missing on a fresh Debian or Ubuntu and runs all tests, as root and as an ordinary user.
#   scripts/test.sh [ARGUMENTS FOR CARGO TEST]
# Ends after HOLOFS_TEST_PATIENCE seconds (3600). However it ends, it leaves no process, mount, loop device or file.
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
need_package python3 python3
python3 -c 'import ensurepip, venv' 2>/dev/null || missing_packages+=(python3-venv)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing_packages+=(ca-certificates)
install_missing
need_fuse
need_rust

# Under root the tests run a second time as this user.
if [ "$(id -u)" = 0 ] && ! id holofs-test >/dev/null 2>&1; then
    say "making the user holofs-test"
    useradd --system --no-create-home --shell /usr/sbin/nologin holofs-test
fi

# Under root the tests give a copy its capability themselves. An ordinary user's find one here, and nobody else does.
if [ "$(id -u)" != 0 ]; then
    say "installing the mount helper for the tests alone"
    cargo build --quiet --package holofs-mount-helper
    built=$(realpath "${CARGO_TARGET_DIR:-target}")
    install_mount_helper "$built/debug/holofs-mount-helper" "$built/test-tools"
    export HOLOFS_TEST_MOUNT_HELPER=$built/test-tools/holofs-mount-helper
fi

# A hung mount must not hang the run: after this long something is wrong. A busy machine needs a third of it.
patience=${HOLOFS_TEST_PATIENCE:-3600}

say "building"
cargo test --workspace --no-run
say "testing"
begin_run
# The last line is cargo's own.
if [ $# -gt 0 ]; then
    in_run "$patience" cargo test --workspace "$@"
else
    in_run "$patience" cargo test --workspace --no-fail-fast
fi
