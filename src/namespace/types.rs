//! The types that operations on the namespace take and return, with their errors. `fs::error` gives each error its errno.
//! Nothing here depends on FUSE or holds a descriptor.

use rustix::io::Errno;

use crate::library::index::IndexError;
use crate::materialize;
use crate::space::upper::UpperError;
use crate::space::upper::mark::KeptCtime;
pub use crate::space::upper::{Ino, Kind, Time};

/// The attributes of an entry, as `stat` shows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// File type.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Size on disk in blocks of 512 bytes.
    pub blocks: u64,
    /// Distinguishes the entry from an earlier one with the same inode number. 0 if the filesystem of the upper
    /// cannot.
    pub generation: u32,
    /// The device number of a device node; 0 for any other entry.
    pub device: u64,
    /// Time of the last access.
    pub atime: Time,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Time of the last change of the content or the attributes.
    pub ctime: Time,
}

impl Attr {
    /// The attribute with which a directory goes on to show its present ctime (see `copy_up`).
    pub(super) fn kept_ctime(&self) -> KeptCtime {
        KeptCtime { ctime: self.ctime, mtime: self.mtime }
    }

    /// The setuid and setgid bits that a file loses when its owner or group changes, or when somebody writes to it
    /// who may not keep them. Setgid without the group's execute bit means mandatory locking, and stays.
    #[must_use]
    pub fn setid_to_drop(&self) -> u32 {
        let setgid = if self.mode & 0o010 == 0 { 0 } else { 0o2000 };
        if self.kind == Kind::File { self.mode & (0o4000 | setgid) } else { 0 }
    }
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// This time.
    At(Time),
}

/// A change of attributes. An attribute that is None stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes: the file is truncated or extended.
    pub size: Option<u64>,
    /// Time of the last access.
    pub atime: Option<SetTime>,
    /// Time of the last change of the content.
    pub mtime: Option<SetTime>,
    /// Clear setuid and setgid, because the caller may not keep them (see [`Attr::setid_to_drop`]).
    pub drop_setid: bool,
}

/// The process that creates an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The owner of the new entry.
    pub uid: u32,
    /// The group of the new entry, unless the directory is setgid.
    pub gid: u32,
}

/// The reason why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no entry of that name.
    #[error("no such entry")]
    NotFound,
    /// The new name is in use.
    #[error("the name exists")]
    Exists,
    /// The operation needs a directory.
    #[error("not a directory")]
    NotADirectory,
    /// The operation does not work on directories.
    #[error("is a directory")]
    IsADirectory,
    /// The directory to be removed or replaced has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// The kernel used an inode number that no entry has any more.
    #[error("no entry has inode number {0:?} any more")]
    Stale(Ino),
    /// A library file cannot change while other processes have it open by passthrough.
    #[error("the program or library is in use")]
    InUse,
    /// The name is longer than 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// The arguments are invalid.
    #[error("{0}")]
    Invalid(&'static str),
    /// A rule of the filesystem forbids the operation.
    #[error("{0}")]
    NotPermitted(&'static str),
    /// holofs does not support this kind of entry or request.
    #[error("{0}")]
    NotSupported(&'static str),
    /// The entry has no such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// A search for data or a hole started at the end of the file, or found none.
    #[error("offset beyond the end")]
    BeyondEnd,
    /// The process that serves the mount died of this request, again and again.
    #[error("earlier daemons died of this request")]
    Poisoned,
    /// An entry of the upper has a mark that makes no sense.
    #[error("the upper entry {name:?} is damaged: {why}")]
    Damaged {
        /// The name of the entry.
        name: String,
        /// What is wrong with the mark.
        why: &'static str,
    },
    /// The compiled index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The bytes of a lower file could not be read or copied.
    #[error(transparent)]
    Materialize(#[from] materialize::Error),
    /// A system call on the upper failed. The operation fails with the same errno.
    #[error("{call}: {source}")]
    Upper {
        /// The system call, or what it was for.
        call: &'static str,
        /// The errno of the system call.
        source: Errno,
    },
}

impl From<UpperError> for Error {
    fn from(error: UpperError) -> Self {
        match error {
            UpperError::Damaged { path, why } => {
                Self::Damaged { name: path.to_string_lossy().into_owned(), why }
            }
            UpperError::Os { call, source, .. } => Self::Upper { call, source },
            UpperError::Index(error) => Self::Index(error),
        }
    }
}

/// Makes the error of a system call on the upper: `.map_err(upper("mkdirat"))`.
pub(crate) fn upper(call: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Upper { call, source }
}

/// The result of an operation on the namespace.
pub type Result<T, E = Error> = std::result::Result<T, E>;
