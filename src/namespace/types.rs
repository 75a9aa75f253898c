//! The types that operations on the namespace take and return. Nothing here depends on FUSE or holds a descriptor.

use crate::space::upper::mark::KeptCtime;
pub use crate::space::upper::types::{Ino, Kind, Time};

/// The attributes of an entry, as `stat` shows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Tells it from an earlier entry of the same number.
    pub generation: u32,
    /// Which device a device node stands for; 0 for everything else.
    pub device: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
}

impl Attr {
    /// What a directory keeps so that it goes on to show its present ctime.
    pub(super) fn kept_ctime(&self) -> KeptCtime {
        KeptCtime { ctime: self.ctime, mtime: self.mtime }
    }

    /// The bits that a file loses when it changes hands, or when somebody without the right to keep them writes to it:
    /// running it would lend its owner's or group's rights. Setgid without the group's execute bit means something
    /// else (mandatory locks) and stays.
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

/// Attributes to change; None leaves one alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncate or extend to.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change.
    pub mtime: Option<SetTime>,
    /// Take setuid and setgid away, because the caller may not keep them (see [`Attr::setid_to_drop`]).
    pub drop_setid: bool,
}

/// On whose behalf an entry is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Owner of what is made.
    pub uid: u32,
    /// Group of what is made, unless the directory is setgid.
    pub gid: u32,
}
