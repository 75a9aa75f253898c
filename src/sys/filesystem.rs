//! The names of filesystems, for messages. A name does not say what a filesystem can do: that is tried.

use std::os::fd::AsFd;

/// The magic numbers of `linux/magic.h` and of the filesystems themselves.
const NAMES: [(i64, &str); 14] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0xca45_1a4e, "bcachefs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlayfs"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse"),
    (0x00c3_6400, "ceph"),
];

/// The name of the filesystem of an open file or directory.
#[must_use]
pub fn name(of: &impl AsFd) -> String {
    let Ok(found) = rustix::fs::fstatfs(of) else { return "a filesystem".to_owned() };
    let magic = found.f_type & 0xffff_ffff;
    let known = NAMES.iter().find(|(number, _)| *number == magic);
    known.map_or_else(|| format!("a filesystem of type {magic:#x}"), |(_, name)| (*name).to_owned())
}
