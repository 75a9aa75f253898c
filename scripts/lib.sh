# Functions that the scripts share. Sourced, not run.
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

# need_package PROGRAM PACKAGE: has install_missing install the Debian package if the program is missing.
missing_packages=()
need_package() {
    command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing_packages+=("$2")
}
# need_python: Python that can make virtual environments and download packages.
need_python() {
    need_package python3 python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing_packages+=(python3-venv)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing_packages+=(ca-certificates)
}
install_missing() {
    [ ${#missing_packages[@]} = 0 ] && return 0
    say "installing ${missing_packages[*]}"
    command -v apt-get >/dev/null || die "missing: ${missing_packages[*]}; this is not Debian or Ubuntu, install them by hand"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "${missing_packages[@]}"
    missing_packages=()
}

# need_rust: installs Rust if it is missing, and checks for the version in Cargo.toml.
need_rust() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -1)
    [ -x "$HOME/.cargo/bin/cargo" ] && PATH="$HOME/.cargo/bin:$PATH"
    if ! command -v cargo >/dev/null; then
        say "installing Rust with rustup (there is no cargo, and the distribution's package is too old)"
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
        die "cargo is version $have and holofs needs $wanted: run 'rustup update', or remove the distribution's cargo and try again"
    export PATH
}

# build_static: builds the programs as they are installed and packaged, linked statically with glibc, and sets $built to their
# directory. They run on any distribution, and start half a millisecond sooner. musl would do too, but its standard library
# is not on every mirror of Rust.
build_static() {
    local triple program target
    need_rust
    triple=$(rustc -vV | sed -n 's/^host: //p')
    target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
    # With --target, the flags are not those of build scripts and procedural macros, which cannot be static.
    local flags="-C target-feature=+crt-static"
    RUSTFLAGS=$flags cargo build --release --quiet --target "$triple" --package holofs-mount-helper
    # At a fixed address. The client of object stores has many tables of addresses, and adjusting them at each start would
    # take half a millisecond of a mount, and half a megabyte of each daemon.
    RUSTFLAGS=$flags cargo rustc --release --quiet --target "$triple" --package holofs --bin holofs --features remote \
        -- -C relocation-model=static
    built=$target/$triple/release
    # A static program has no interpreter.
    for program in holofs holofs-mount-helper; do
        ! readelf -l "$built/$program" | grep -q INTERP || die "$program is not static"
    done
}

# Stores for tests and measurements. They are programs that the scripts run; nothing of them is linked or distributed.
# need_tool CRATE VERSION FEATURES: builds the program of a crate if it is missing, in HOLOFS_TOOLS, and sets $tool to it.
need_tool() {
    local to=${HOLOFS_TOOLS:-$HOME/.cache/holofs-tools}/$1-$2
    tool=$to/bin/$1
    [ ! -x "$tool" ] || return 0
    need_rust
    say "building $1 $2, once" >&2
    # Its build directory can be some gigabytes.
    CARGO_TARGET_DIR=$to/build cargo install --quiet --locked --no-default-features --features "$3" --root "$to" --version "=$2" "$1"
    rm -rf "$to/build"
}
# The light one, for the tests: two minutes on two processors.
need_s3s() {
    [ -z "${HOLOFS_TEST_STORE:-}" ] || return 0
    need_tool s3s-fs 0.12.0 binary
    export HOLOFS_TEST_STORE=$tool
}
# Garage (AGPL-3.0), which keeps objects on several nodes.
need_garage() {
    need_package make make
    install_missing
    need_tool garage 2.5.0 bundled-libs,sqlite
}

need_fuse() {
    need_package fusermount3 fuse3
    install_missing
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || die "/dev/fuse is missing: load the module 'fuse'; in a container use --device /dev/fuse --cap-add SYS_ADMIN"
    # As the distribution's udev rule does. A container has no udev.
    if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
        as_root chmod 666 /dev/fuse
    fi
}

# install_mount_helper PROGRAM DIRECTORY: installs it with its capability, executable by everybody or by $GROUP.
install_mount_helper() {
    local to=$2/holofs-mount-helper
    need_package setcap libcap2-bin
    install_missing
    as_root install -D -m "$([ -n "${GROUP:-}" ] && echo 0750 || echo 0755)" -o root -g "${GROUP:-root}" "$1" "$to"
    # After install: a change of the owner removes capabilities.
    as_root env PATH="$PATH:/usr/sbin:/sbin" setcap cap_sys_admin+ep "$to" ||
        die "no file capabilities below $2: choose a directory on a disk of this machine"
}

# median: prints the median of the numbers on standard input.
median() { sort -n | awk '{ v[NR] = $1 } END { if (NR) print v[int((NR + 1) / 2)] }'; }

# A run of tests has its own directory, which holds all its mounts, images and temporary files. The script finds leftovers
# by that path, and removes nothing else.

# begin_run: makes the directory ($run_dir) for the tests, and has end_run called when the script ends.
begin_run() {
    run_dir=$(mktemp -d /var/tmp/holofs-run.XXXXXX)
    # The ordinary user of the tests writes there too.
    chmod 1777 "$run_dir"
    export HOLOFS_TEST_DIR=$run_dir TMPDIR=$run_dir
    run_child=
    trap 'end_run $?' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# in_run SECONDS COMMAND...: runs the command with a timeout. A signal to the script ends it at once.
in_run() {
    local seconds=$1 status=0
    shift
    timeout --kill-after=30 "$seconds" "$@" &
    run_child=$!
    wait "$run_child" || status=$?
    run_child=
    [ "$status" != 124 ] || printf '%s: not finished after %s seconds: %s\n' "$(basename "$0")" "$seconds" "$*" >&2
    return "$status"
}

# in_tests SECONDS COMMAND...: as in_run, for a command that runs Rust tests. When the script ends and has failed, end_run shows
# again what the failed tests said.
in_tests() {
    local status=0 tee
    exec 3> >(exec tee -a "$run_dir/output")
    tee=$!
    # The tests do not inherit this descriptor.
    in_run "$@" >&3 3>&- || status=$?
    exec 3>&-
    # A process that a test has left behind may keep the pipe open.
    for _ in {1..50}; do
        kill -0 "$tee" 2>/dev/null || break
        sleep 0.1
    done
    kill "$tee" 2>/dev/null || true
    return "$status"
}

# failed_tests: prints what each failed test said, as libtest shows it below `failures:`, without the middle of a long message;
# then the names.
failed_tests() {
    [ -e "$run_dir/output" ] || return 0
    awk '
        function tell(   i) {
            if (!inside) return
            inside = 0
            while (n && line[n] == "") n--
            for (i = 1; i <= n; i++) {
                if (n <= 60 || i <= 40 || i > n - 20) print line[i]
                if (n > 60 && i == 40) printf "... %d lines are left out ...\n", n - 60
            }
            print ""
        }
        /^---- .* stdout ----$/ {
            tell()
            inside = 1
            n = 0
            failed[substr($0, 6, length($0) - 17)] = "failed: "
        }
        inside && (/^failures:$/ || /^test result: /) { tell() }
        inside { line[++n] = $0 }
        # Its message follows, unless the program of the tests is killed.
        !inside && /^test .* \.\.\. FAILED$/ { failed[substr($0, 6, length($0) - 16)] = "failed without a message: " }
        END {
            tell()
            for (name in failed) print failed[name] name
        }
    ' "$run_dir/output"
}

# end_run STATUS: removes the run's processes, mounts, loop devices and files, and exits with the status. Leftovers of a run
# that succeeded make it fail. The last output of a run of tests that failed is what they said.
end_run() {
    local status=$1 left='' found round said=''
    trap - EXIT
    trap '' INT TERM HUP
    if [ -n "$run_child" ]; then
        kill "$run_child" 2>/dev/null || true
        wait "$run_child" 2>/dev/null || true
    fi
    # The end of a process can leave a mount, and the end of a mount a loop device.
    for round in 1 2 3; do
        found=$(run_processes; run_mounts; run_loops)
        [ -n "$found" ] || break
        left+=$found$'\n'
        run_processes | while read -r _ pid _; do kill -KILL "$pid" 2>/dev/null || true; done
        sleep 0.2
        run_mounts | tac | while read -r _ point; do
            umount -l "$point" 2>/dev/null || fusermount3 -uqz "$point" 2>/dev/null || true
        done
        run_loops | while read -r _ device _; do losetup -d "$device" 2>/dev/null || true; done
    done
    [ "$status" = 0 ] || said=$(failed_tests)
    chmod -R u+rwX "$run_dir" 2>/dev/null || true
    rm -rf --one-file-system "$run_dir" 2>/dev/null || as_root rm -rf --one-file-system "$run_dir" || true
    if [ -n "$left" ] && [ "$round" = 3 ]; then
        printf '%s: could not remove:\n%s\n' "$(basename "$0")" "$(run_processes; run_mounts; run_loops)" >&2
        [ "$status" != 0 ] || status=1
    fi
    if [ -n "$left" ] && [ "$status" = 0 ]; then
        printf '%s: left behind by the tests, and removed:\n%s' "$(basename "$0")" "$left" >&2
        status=1
    fi
    if [ -n "$said" ]; then
        say "failed tests" >&2
        printf '%s\n' "$said" >&2
    fi
    exit "$status"
}

# Each prints a line for each leftover. A process belongs to the run if its program, directory, arguments or environment
# name the run's directory.
run_processes() {
    local dir pid
    for dir in /proc/[0-9]*; do
        pid=${dir#/proc/}
        [ "$pid" != $$ ] && [ "$pid" != "$BASHPID" ] || continue
        # A child of this script that has not yet called exec has its environment.
        [ "$(readlink "$dir/exe" 2>/dev/null)" != "$BASH" ] || grep -qzF "$run_dir" "$dir/cmdline" 2>/dev/null || continue
        if [[ $(readlink "$dir/exe" "$dir/cwd" 2>/dev/null) == *"$run_dir"* ]] ||
            grep -qsF "$run_dir" "$dir/cmdline" "$dir/environ" 2>/dev/null; then
            # A zombie is no leftover.
            grep -qs '^State:.[^ZX]' "$dir/status" || continue
            printf 'process %s %s\n' "$pid" "$(tr '\0' ' ' <"$dir/cmdline" 2>/dev/null)"
        fi
    done
}
run_mounts() {
    awk -v dir="$run_dir/" 'index($5, dir) == 1 { gsub(/\\040/, " ", $5); print "mount", $5 }' /proc/self/mountinfo
}
run_loops() {
    local file
    for file in /sys/block/loop*/loop/backing_file; do
        [[ $(cat "$file" 2>/dev/null) == "$run_dir"/* ]] || continue
        printf 'loop /dev/%s %s\n' "$(basename "${file%/loop/backing_file}")" "$(cat "$file")"
    done
}
