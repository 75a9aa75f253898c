# What the scripts share: getting what is missing, and saying what happens. Sourced, not run.
# shellcheck shell=bash

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -n "$@" || die "cannot become root for: $*"
    else
        die "must be root for: $* (and there is no sudo)"
    fi
}

# need_package PROGRAM PACKAGE: installs the Debian package when the program is not there.
missing_packages=()
need_package() {
    command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing_packages+=("$2")
}
install_missing() {
    [ ${#missing_packages[@]} = 0 ] && return 0
    say "installing ${missing_packages[*]}"
    command -v apt-get >/dev/null || die "missing: ${missing_packages[*]}; this is no Debian or Ubuntu, install them yourself"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "${missing_packages[@]}"
    missing_packages=()
}

# The oldest Rust that builds this, from Cargo.toml.
need_rust() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -1)
    [ -x "$HOME/.cargo/bin/cargo" ] && PATH="$HOME/.cargo/bin:$PATH"
    if ! command -v cargo >/dev/null; then
        say "installing Rust with rustup (cargo is not here, and a distribution's is too old)"
        need_package curl curl
        need_package cc build-essential
        install_missing
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt
        PATH="$HOME/.cargo/bin:$PATH"
    fi
    need_package cc build-essential
    install_missing
    have=$(cargo --version | sed 's/^cargo \([0-9.]*\).*/\1/')
    [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -1)" = "$wanted" ] ||
        die "cargo is $have and holofs needs $wanted: run 'rustup update', or remove the distribution's cargo and run this again"
    export PATH
}

need_fuse() {
    need_package fusermount3 fuse3
    install_missing
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || die "/dev/fuse is missing: load the module 'fuse'; in a container use --device /dev/fuse --cap-add SYS_ADMIN"
    # What the distribution's udev rule does, where there is no udev.
    if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
        as_root chmod 666 /dev/fuse
    fi
}

# install_mount_helper PROGRAM DIRECTORY: with the one capability that it needs, for everybody or for $GROUP.
install_mount_helper() {
    local to=$2/holofs-mount-helper
    need_package setcap libcap2-bin
    install_missing
    as_root install -D -m "$([ -n "${GROUP:-}" ] && echo 0750 || echo 0755)" -o root -g "${GROUP:-root}" "$1" "$to"
    # After the owner: changing that takes capabilities away.
    as_root env PATH="$PATH:/usr/sbin:/sbin" setcap cap_sys_admin+ep "$to" ||
        die "no file capabilities below $2: choose a directory on a disk of this machine"
}

# The middle one of the numbers on stdin.
median() { sort -n | awk '{ v[NR] = $1 } END { if (NR) print v[int((NR + 1) / 2)] }'; }
