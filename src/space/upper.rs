//! The upper: the directory that holds a space's changes.
//!
//! A space shows its catalog's tree (the *lower*) with its own changes over it. The changes lie in a directory of
//! real files with the names and paths that the space shows, so that plain tools can read them while the space is not
//! mounted. What a plain file cannot say is in *marks*: extended attributes that begin with `user.holofs.`, and
//! whiteouts.
//!
//! * This module has inode numbers, kinds and times.
//! * [`mark`] has the format of the marks. No other module knows it.
//! * [`entry`] tells what one entry of the upper is in the space.
//! * [`walk`] visits all entries of an upper, and [`changes`] tells what each of them changes.
//!
//! Other programs can change the files while the space is not mounted. So marks are read with a bounded length, and a
//! mark that makes no sense is an error of its own entry only. `docs/ON-DISK.md` describes the format for users.

pub mod changes;
pub mod entry;
pub mod mark;
pub mod walk;

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::library::index::{IndexError, Node as LowerNode, NodeId, NodeKind};

/// The inode number that an entry has in the space. It stays the same over changes, renames and mounts.
///
/// * Below 2^31: lower node n has number n + 1, so the root has number 1. The number survives copy-up and rename.
/// * From 2^31 on: an entry that was created in the space has 2^31 + the inode number of its file in the upper.
///   Programs of 32 bits can stat such a file. The file is kept while the kernel may hold the number, so two entries
///   never share one.
/// * From 2^48 on: the same, for files whose own inode number is 2^31 or more: 2^48 + that number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ino(pub u64);

/// The first number of entries that were created in the space.
const CREATED: u64 = 1 << 31;
/// The first number of those whose file in the upper has a large inode number.
const CREATED_LARGE: u64 = 1 << 48;

/// A catalog with this many nodes cannot be mounted: inode numbers and places in a listing would run out.
pub const TOO_MANY_NODES: u32 = 1 << 30;

impl Ino {
    /// The root directory.
    pub const ROOT: Self = Self(1);

    /// The number of a lower node.
    #[must_use]
    pub fn of_lower(node: NodeId) -> Self {
        Self(u64::from(node.0) + 1)
    }

    /// The number of an entry without a lower node, from the inode number of its file in the upper.
    #[must_use]
    pub fn of_created(backing_ino: u64) -> Self {
        Self(if backing_ino < CREATED {
            CREATED + backing_ino
        } else {
            CREATED_LARGE.wrapping_add(backing_ino)
        })
    }

    /// The lower node with this number; None for an entry that was created in the space.
    #[must_use]
    pub fn lower(self) -> Option<NodeId> {
        if self.0 >= CREATED { None } else { u32::try_from(self.0.checked_sub(1)?).ok().map(NodeId) }
    }
}

/// The type of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// A directory.
    #[default]
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device other than 0/0, which is a whiteout in the upper.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl Kind {
    /// The kind of a file on disk; None for a type that Linux does not have.
    #[must_use]
    pub fn of_file(file_type: FileType) -> Option<Self> {
        match file_type {
            FileType::RegularFile => Some(Self::File),
            FileType::Directory => Some(Self::Dir),
            FileType::Symlink => Some(Self::Symlink),
            FileType::Fifo => Some(Self::Fifo),
            FileType::Socket => Some(Self::Socket),
            FileType::CharacterDevice => Some(Self::CharDevice),
            FileType::BlockDevice => Some(Self::BlockDevice),
            FileType::Unknown => None,
        }
    }

    /// The kind of a lower node.
    #[must_use]
    pub fn of_lower(node: &LowerNode<'_>) -> Self {
        match node.kind {
            NodeKind::Dir { .. } => Self::Dir,
            NodeKind::File { .. } => Self::File,
            NodeKind::Symlink { .. } => Self::Symlink,
        }
    }
}

/// A point in time since the epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Time {
    /// Seconds; may be negative.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

impl Time {
    /// From a time of the kernel, whose nanoseconds have different integer types but always fit.
    #[must_use]
    pub fn new(sec: i64, nsec: impl TryInto<u32>) -> Self {
        Self { sec, nsec: nsec.try_into().unwrap_or(0) }
    }
}

/// An error of reading an upper.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// An entry has a mark that makes no sense. The other entries are not affected.
    #[error("the upper entry {path:?} is damaged: {why}")]
    Damaged {
        /// The entry, below the directory that was read.
        path: PathBuf,
        /// What is wrong with its mark.
        why: &'static str,
    },
    /// A system call failed.
    #[error("{call} {path:?}: {source}")]
    Os {
        /// The entry, below the directory that was read.
        path: PathBuf,
        /// The system call.
        call: &'static str,
        /// Why it failed.
        source: Errno,
    },
    /// The compiled index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl From<UpperError> for io::Error {
    fn from(error: UpperError) -> Self {
        match error {
            UpperError::Os { source, .. } => source.into(),
            UpperError::Damaged { .. } | UpperError::Index(_) => {
                io::Error::new(io::ErrorKind::InvalidData, error)
            }
        }
    }
}

/// Opens the root directory of an upper; None when there is no such directory.
///
/// # Errors
/// [`UpperError::Os`] when it cannot be opened.
pub fn open(path: &Path) -> Result<Option<OwnedFd>, UpperError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(root) => Ok(Some(root)),
        Err(Errno::NOENT) => Ok(None),
        Err(source) => Err(UpperError::Os { path: path.to_owned(), call: "open", source }),
    }
}

impl UpperError {
    fn damaged(name: &CStr, why: &'static str) -> Self {
        Self::Damaged { path: path_of(name), why }
    }

    fn os(name: &CStr, call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| Self::Os { path: path_of(name), call, source }
    }

    /// Replaces the name by a path. In a tree, the name alone does not tell which entry it is.
    fn at(self, path: &Path) -> Self {
        let path = path.to_owned();
        match self {
            Self::Damaged { why, .. } => Self::Damaged { path, why },
            Self::Os { call, source, .. } => Self::Os { path, call, source },
            Self::Index(error) => Self::Index(error),
        }
    }
}

fn path_of(name: &CStr) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_lower_and_created_entries_never_meet() {
        assert_eq!(Ino::of_lower(NodeId(0)), Ino::ROOT);
        let last = Ino::of_lower(NodeId(TOO_MANY_NODES - 1));
        assert_eq!(last.lower(), Some(NodeId(TOO_MANY_NODES - 1)));
        let mut numbers = vec![Ino(0), last];
        for backing in [0, 1, (1 << 31) - 1, 1 << 31, 1 << 40] {
            let ino = Ino::of_created(backing);
            assert_eq!(ino.lower(), None);
            assert!(!numbers.contains(&ino));
            numbers.push(ino);
        }
        assert!(Ino::of_created((1 << 31) - 1).0 < 1 << 32);
        assert_eq!(Ino::of_created(1 << 31), Ino((1 << 48) + (1 << 31)));
        assert_eq!(Ino(0).lower(), None);
        assert_eq!(Ino(1 << 40).lower(), None);
    }
}
