#!/usr/bin/env bash
# Builds and installs holofs and its mount helper. The helper gives ordinary users passthrough (docs/SECURITY.md).
#   scripts/install.sh [PREFIX]     default: /usr/local
# The helper gets one file capability, cap_sys_admin+ep, and is not setuid. With GROUP=name only that group can run it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

prefix=${1:-/usr/local}
need_fuse
need_package readelf binutils
install_missing
say "building"
build_static
say "installing below $prefix"
as_root install -D -m 0755 "$built/holofs" "$prefix/bin/holofs"
install_mount_helper "$built/holofs-mount-helper" "$prefix/libexec/holofs"
printf '%s\n' "$prefix/bin/holofs" "$prefix/libexec/holofs/holofs-mount-helper"
[ "$prefix" = /usr/local ] || [ "$prefix" = /usr ] ||
    printf 'holofs looks for the helper below /usr/local and /usr; for %s set HOLOFS_MOUNT_HELPER\n' "$prefix"
