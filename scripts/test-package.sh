#!/usr/bin/env bash
# Installs the Debian package on this machine, uses it, and removes it again. Leaves nothing behind, also after a failure.
#   scripts/test-package.sh        packages the debug build, which must exist
# Needs root. Does nothing on a machine where holofs is installed already.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

if [ "$(id -u)" != 0 ] || ! command -v dpkg >/dev/null; then
    say "the package is not tested: that needs root and dpkg"
    exit 0
fi
if [ -e /usr/bin/holofs ] || dpkg --status holofs >/dev/null 2>&1; then
    say "the package is not tested: holofs is installed on this machine"
    exit 0
fi
need_package setcap libcap2-bin
need_package fusermount3 fuse3
need_package setpriv util-linux
need_package man man-db
need_python
install_missing
built=${CARGO_TARGET_DIR:-target}/debug

dir=$(mktemp -d "${HOLOFS_TEST_DIR:-/var/tmp}/holofs-package.XXXXXX")
chmod 755 "$dir"
finish() {
    local status=$?
    trap - EXIT
    { grep -o " $dir/[^ ]* " /proc/self/mountinfo || true; } | while read -r point; do umount -l "$point" || true; done
    dpkg --purge holofs >/dev/null 2>&1 || true
    rm -rf --one-file-system "$dir"
    [ "$status" = 0 ] || printf '%s: failed\n' "$(basename "$0")" >&2
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# is WHAT COMMAND...: the command must succeed.
is() { local what=$1; shift; "$@" || die "$what: failed: $*"; }

say "packaging the debug build"
scripts/package.sh --built "$built" >"$dir/packages"
deb=$(grep '\.deb$' "$dir/packages")
tarball=$(grep '\.tar\.gz$' "$dir/packages")

say "installing"
dpkg --install "$deb" >"$dir/dpkg.log" 2>&1 || { cat "$dir/dpkg.log"; exit 1; }
dpkg --listfiles holofs >"$dir/files"
is "the capability of the helper" test \
    "$(PATH=$PATH:/usr/sbin:/sbin getcap /usr/libexec/holofs/holofs-mount-helper)" = \
    "/usr/libexec/holofs/holofs-mount-helper cap_sys_admin=ep"
is "the helper's mode" test "$(stat -c '%a %U:%G' /usr/libexec/holofs/holofs-mount-helper)" = "755 root:root"
is "all files belong to root" test "$(xargs -d '\n' stat -c %U <"$dir/files" 2>/dev/null | sort -u)" = root
for command in $(holofs --help | sed -n 's/^.\{11\}\([a-z][a-z]*\)  .*/\1/p'); do
    is "the page of $command" grep -qx "/usr/share/man/man1/holofs-$command.1.gz" "$dir/files"
done
# The images of containers may leave out manual pages.
[ ! -e /usr/share/man/man1/holofs-mount.1.gz ] || is "man finds the page" test "$(man -w holofs-mount)" = /usr/share/man/man1/holofs-mount.1.gz
# shellcheck disable=SC2016
is "bash completes" bash -c '. /usr/share/bash-completion/completions/holofs; complete -p holofs >/dev/null'

say "using it"
# mount(8) does not pass HOME on.
HOME=$(getent passwd root | cut -d: -f6)
export HOME ROBOCORP_HOME=$dir/home
printf 'a blueprint\n' >"$dir/blueprint"
# shellcheck disable=SC2016
holofs record --silent "$ROBOCORP_HOME" --blueprint "$dir/blueprint" -- \
    sh -c 'mkdir "$HOLOFS_STAGE/bin"; echo "hello from $HOLOFS_STAGE" >"$HOLOFS_STAGE/bin/hello"' >/dev/null
point=$(holofs mount auto demo)
is "the file of the space" test "$(cat "$point/bin/hello")" = "hello from $point"
holofs unmount demo >/dev/null
mkdir "$dir/env"
printf '%s %s fuse.holofs noauto,space=demo 0 0\n' "$ROBOCORP_HOME" "$dir/env" >"$dir/fstab"
mount -T "$dir/fstab" "$dir/env"
is "the space of fstab" test "$(cat "$dir/env/bin/hello")" = "hello from $dir/env"
umount "$dir/env"

say "the service"
if command -v systemd-analyze >/dev/null; then
    is "the unit" env XDG_RUNTIME_DIR="$dir" systemd-analyze --user --man=no verify holofs@demo.service
fi
# Starts it as systemd would, which need not run here.
python3 - "$dir" <<'PYTHON'
import os, shlex, socket, subprocess, sys
unit = dict(line.split("=", 1) for line in open("/usr/lib/systemd/user/holofs@.service") if "=" in line and line[0] != "#")
assert unit["Type"].strip() == "notify", unit
words = unit["ExecStart"].replace("%I", "demo").replace("${LIBRARY}", "auto").replace("$OPTIONS", "").split()
place = sys.argv[1] + "/notify"
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(place)
manager.settimeout(20)
service = subprocess.Popen(words, env=dict(os.environ, NOTIFY_SOCKET=place), stdout=subprocess.PIPE, text=True)
assert manager.recv(4096).startswith(b"READY=1\n")
space = service.stdout.readline().strip()
assert os.path.ismount(space), space
service.terminate()
assert manager.recv(4096) == b"STOPPING=1\n"
assert service.wait(20) == 0 and not os.path.ismount(space)
PYTHON

say "as an ordinary user"
if id holofs-test >/dev/null 2>&1; then
    install -d -o holofs-test "$dir/user"
    cp -r "$ROBOCORP_HOME/hololib" "$dir/user/"
    chown -R holofs-test "$dir/user"
    as_user() {
        setpriv --reuid=holofs-test --regid="$(id -g holofs-test)" --clear-groups env HOME="$dir/user" \
            ROBOCORP_HOME="$dir/user" "$@"
    }
    modes=cached
    [ "$(printf '6.9\n%s\n' "$(uname -r)" | sort -V | head -1)" != 6.9 ] || modes="cached passthrough"
    for mode in $modes; do
        point=$(as_user holofs mount auto "$dir/user/env" --foreign --io "$mode" 2>/dev/null)
        is "the file in mode $mode" as_user grep -q "^hello from " "$point/bin/hello"
        as_user holofs unmount "$dir/user/env" >/dev/null
    done
fi

say "the tarball"
tar -xzf "$tarball" -C "$dir"
is "holofs in the tarball" "$dir"/holofs-*-linux/bin/holofs --version

say "removing it"
dpkg --purge holofs >"$dir/dpkg.log" 2>&1 || { cat "$dir/dpkg.log"; exit 1; }
while read -r file; do
    # Directories of other packages stay.
    [ -d "$file" ] && [ ! -L "$file" ] && case $file in *holofs*) ;; *) continue ;; esac
    [ ! -e "$file" ] && [ ! -L "$file" ] || die "left behind: $file"
done <"$dir/files"
say "the package was installed, used and removed"
