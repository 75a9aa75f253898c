#!/usr/bin/env bash
# Installs holofs and its mount helper, which lets ordinary users have passthrough (docs/SECURITY.md).
#   scripts/install.sh [PREFIX]     default: /usr/local
# The helper gets one file capability, cap_sys_admin+ep, and is setuid nothing. GROUP=name lets only that group run it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

prefix=${1:-/usr/local}
need_fuse
need_rust
say "building"
cargo build --release --workspace --quiet
built=${CARGO_TARGET_DIR:-target}/release
say "installing below $prefix"
as_root install -D -m 0755 "$built/holofs" "$prefix/bin/holofs"
install_mount_helper "$built/holofs-mount-helper" "$prefix/libexec/holofs"
printf '%s\n' "$prefix/bin/holofs" "$prefix/libexec/holofs/holofs-mount-helper"
[ "$prefix" = /usr/local ] || [ "$prefix" = /usr ] ||
    printf 'holofs looks for the helper below /usr/local and /usr; elsewhere set HOLOFS_MOUNT_HELPER\n'
