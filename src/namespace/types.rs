//! The types that operations on the namespace take and return. Nothing here depends on FUSE or holds a descriptor.

use crate::space::upper::mark::KeptCtime;
pub use crate::space::upper::types::{Ino, Kind, Time};

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
