#!/usr/bin/env bash
# Builds holofs, records a Python venv with packages from PyPI, mounts it, runs Python from it in both I/O modes, shows that
# a change stays private, and unmounts. Leaves only the build behind.
#   scripts/demo.sh [DIRECTORY]     the demo's files (default: a temporary directory, removed at the end)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

PACKAGES="numpy requests pyyaml robotframework"

need_python
install_missing
need_fuse
need_rust

say "building holofs"
cargo build --release --workspace --quiet
holofs=${CARGO_TARGET_DIR:-target}/release/holofs
holofs=$(realpath "$holofs")

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    dir=$(realpath "$1")
else
    dir=$(mktemp -d /var/tmp/holofs-demo.XXXXXX)
fi
export ROBOCORP_HOME=$dir/home
finish() {
    status=$?
    "$holofs" unmount --all --silent >/dev/null 2>&1 || true
    if [ $# -eq 0 ]; then rm -rf "$dir"; fi
    exit "$status"
}
trap 'finish "$@"' EXIT

# Without root, passthrough needs the mount helper. It is installed into the demo's own directory.
if [ "$(id -u)" != 0 ]; then
    install_mount_helper "$(dirname "$holofs")/holofs-mount-helper" "$dir/libexec"
    export HOLOFS_MOUNT_HELPER=$dir/libexec/holofs-mount-helper
fi

# show COMMAND...: prints the command, runs it, and prints how long it took.
show() {
    local begin end
    local words=${*//$dir/\~}
    printf '\033[32m$\033[0m %s\n' "${words//$holofs/holofs}"
    begin=${EPOCHREALTIME//[!0-9]/}
    "$@"
    end=${EPOCHREALTIME//[!0-9]/}
    printf '\033[2m# %d ms\033[0m\n' $(((end - begin) / 1000))
}

say "recording a venv with $PACKAGES (once)"
if [ ! -d "$ROBOCORP_HOME/hololib/catalog" ]; then
    mkdir -p "$dir"
    printf 'packages: %s\n' "$PACKAGES" >"$dir/blueprint.yaml"
    show "$holofs" record "$ROBOCORP_HOME" --blueprint "$dir/blueprint.yaml" -- sh -c "
        python3 -m venv --copies \"\$HOLOFS_STAGE\" &&
        \"\$HOLOFS_STAGE/bin/pip\" install --quiet --disable-pip-version-check $PACKAGES"
fi
show "$holofs" catalogs "$ROBOCORP_HOME"
touch "$dir/mark"
sleep 0.05

say "mounting the whole environment"
show "$holofs" mount "$ROBOCORP_HOME" demo
space=$("$holofs" path demo)
imports='import numpy, yaml, requests, robot, sys; print("imported from", sys.prefix)'
show "$space/bin/python" -c "$imports"
show "$space/bin/python" -c "$imports"
show "$space/bin/pip" --version
show du -sh --apparent-size "$space"

say "a change is private to its space"
show "$space/bin/pip" install --quiet --disable-pip-version-check tomlkit
show "$space/bin/python" -c 'import tomlkit; print("tomlkit", tomlkit.__version__)'
show "$holofs" mount "$ROBOCORP_HOME" other
other=$("$holofs" path other)
show "$other/bin/python" -c 'import importlib.util as u; print("tomlkit in the other space:", u.find_spec("tomlkit"))'
show "$holofs" list

if [ "$(printf '6.9\n%s\n' "$(uname -r)" | sort -V | head -1)" = 6.9 ]; then
    say "passthrough mode: the kernel reads and writes without the daemon"
    show "$holofs" mount --io passthrough "$ROBOCORP_HOME" direct
    direct=$("$holofs" path direct)
    show "$direct/bin/python" -c "$imports"
    show "$holofs" unmount direct
else
    say "passthrough mode skipped: it needs Linux 6.9, and this is $(uname -r)"
fi

say "the library has not changed"
changed=$(find "$ROBOCORP_HOME/hololib" -type f -newer "$dir/mark" -not -path '*/used/*' | wc -l)
printf 'files of the library changed since it was recorded: %d\n' "$changed"
[ "$changed" = 0 ] || die "the library was changed"

say "unmounting; the change is still there at the next mount"
show "$holofs" unmount demo other
show "$holofs" mount "$ROBOCORP_HOME" demo
show "$space/bin/python" -c 'import tomlkit; print("tomlkit", tomlkit.__version__)'
show fusermount3 -u "$space"
say "done"
