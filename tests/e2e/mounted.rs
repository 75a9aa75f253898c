//! Single operations through the kernel: a program sees on a mount what it would see on a plain directory.

mod attributes;
mod descriptors;
mod directories;
mod failures;
mod handles;
mod isolation;
mod links;
mod persistence;
mod read;
mod rename;
mod special;
mod write;
mod xattr;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

/// The inode number of a file, without following links.
fn ino(path: impl AsRef<Path>) -> u64 {
    std::fs::symlink_metadata(path).unwrap().ino()
}

/// Sets the mtime of a file, in seconds.
fn set_mtime(path: &Path, seconds: i64) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
