#!/usr/bin/env bash
# Builds a Debian package and a tarball below target/package, and prints their paths. Installs nothing but what the build needs.
#   scripts/package.sh [--built DIRECTORY]     package the programs of a finished build, for tests
# The programs are linked statically, for the architecture of this machine, so both run on any distribution.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

need_package dpkg-deb dpkg
need_package strip binutils
install_missing
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=$target/package
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}

compress=xz
if [ "${1:-}" = --built ]; then
    built=$(realpath "$2")
    compress=gzip
    out=$target/package-test
else
    say "building"
    build_static
fi

say "collecting"
rm -rf "$out"
root=$out/root
install -D -m 0755 --strip "$built/holofs" "$root/usr/bin/holofs"
install -D -m 0755 --strip "$built/holofs-mount-helper" "$root/usr/libexec/holofs/holofs-mount-helper"
holofs=$root/usr/bin/holofs
share=$root/usr/share
"$holofs" man --output "$share/man/man1"
gzip -9n "$share"/man/man1/*
mkdir -p "$share/bash-completion/completions" "$share/zsh/vendor-completions" "$share/fish/vendor_completions.d"
"$holofs" completions bash >"$share/bash-completion/completions/holofs"
"$holofs" completions zsh >"$share/zsh/vendor-completions/_holofs"
"$holofs" completions fish >"$share/fish/vendor_completions.d/holofs.fish"
install -D -m 0644 packaging/holofs@.service "$root/usr/lib/systemd/user/holofs@.service"
install -D -m 0644 packaging/copyright "$share/doc/holofs/copyright"
install -m 0644 README.md docs/*.md LICENSE-APACHE LICENSE-MIT "$share/doc/holofs/"
gzip -9nc CHANGELOG.md >"$share/doc/holofs/changelog.gz"

say "the tarball"
name=holofs-$version-$(uname -m)-linux
tree=$out/$name
mkdir -p "$tree"
cp -a "$root/usr/." "$tree/"
install -m 0644 packaging/README.md LICENSE-APACHE LICENSE-MIT "$tree/"
tar --directory "$out" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
    --create "$name" | gzip -9n >"$out/$name.tar.gz"

say "the Debian package"
mkdir -p "$root/usr/sbin" "$root/DEBIAN"
ln -s ../bin/holofs "$root/usr/sbin/mount.fuse.holofs"
install -m 0755 packaging/postinst "$root/DEBIAN/postinst"
arch=$(dpkg --print-architecture)
depends=fuse3
if readelf -l "$holofs" | grep -q INTERP; then
    depends="libc6 (>= $(grep -aoh 'GLIBC_2\.[0-9]*' "$holofs" | sed 's/GLIBC_//' | sort -uV | tail -1)), $depends"
fi
cat >"$root/DEBIAN/control" <<CONTROL
Package: holofs
Version: $version
Architecture: $arch
Maintainer: The holofs authors <holofs@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: $depends
Recommends: libcap2-bin
Section: utils
Priority: optional
Description: mount rcc environments instead of restoring them
 holofs presents an environment of an rcc library as a directory after a few
 milliseconds, without writing its files. Changes stay private to each space.
CONTROL
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
deb=$out/holofs_${version}_$arch.deb
dpkg-deb --root-owner-group "-Z$compress" --build "$root" "$deb" >/dev/null
rm -rf "$root" "$tree"
printf '%s\n' "$deb" "$out/$name.tar.gz"
