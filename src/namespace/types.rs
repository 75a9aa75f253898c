//! The namespace's own types: inode numbers, kinds, attributes. No fuser type, no fd.

use crate::library::index::NodeId;

/// An inode number, the same one at every mount of the space.
///
/// * below 2^31: lower node n has number n + 1, so the root is 1 and the number survives copy-up and rename.
/// * from 2^31 on: an entry born in the upper has 2^31 + the inode number of its backing file, so that 32-bit programs
///   can look at it. The backing inode is kept alive as long as the kernel may hold the number, so that no two
///   entries ever share one.
/// * from 2^48 on: the same for backing inodes whose own numbers are 2^31 or more: 2^48 + that number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ino(pub u64);

/// Where the numbers of entries born in the upper begin.
const BORN: u64 = 1 << 31;
/// Where they begin for backing inodes of large numbers.
const BORN_LARGE: u64 = 1 << 48;

/// More lower nodes than have numbers of their own, here and as places in a listing.
pub(super) const TOO_MANY_NODES: u32 = 1 << 30;

impl Ino {
    /// The root directory.
    pub const ROOT: Self = Self(1);

    /// The number of a lower node.
    #[must_use]
    pub fn of_lower(node: NodeId) -> Self {
        Self(u64::from(node.0) + 1)
    }

    /// The number of an entry that has no lower node.
    #[must_use]
    pub fn of_born(backing_ino: u64) -> Self {
        Self(if backing_ino < BORN { BORN + backing_ino } else { BORN_LARGE.wrapping_add(backing_ino) })
    }

    /// The inode number of the backing file of an entry that has no lower node.
    #[must_use]
    pub(super) fn born(self) -> Option<u64> {
        self.0.checked_sub(if self.0 < BORN_LARGE { BORN } else { BORN_LARGE })
    }

    /// The lower node with this number, if it is one.
    #[must_use]
    pub fn lower(self) -> Option<NodeId> {
        if self.0 >= BORN { None } else { u32::try_from(self.0.checked_sub(1)?).ok().map(NodeId) }
    }
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device other than 0/0, which in the upper is a whiteout.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Time {
    /// Seconds; may be negative.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_lower_and_born_entries_never_meet() {
        assert_eq!(Ino::of_lower(NodeId(0)), Ino::ROOT);
        let last = NodeId(TOO_MANY_NODES - 1);
        assert_eq!(Ino::of_lower(last).lower(), Some(last));
        for number in [1, (1 << 31) - 1, 1 << 31, 1 << 40] {
            assert_eq!(Ino::of_born(number).born(), Some(number));
        }
        assert_eq!(Ino::of_lower(last).born(), None);
        assert_eq!(Ino::of_born(0).lower(), None);
        assert!(Ino::of_born((1 << 31) - 1).0 < 1 << 32);
        assert_eq!(Ino::of_born(1 << 31), Ino((1 << 48) + (1 << 31)));
        assert_eq!(Ino(0).lower(), None);
        assert_eq!(Ino(1 << 40).lower(), None);
    }
}
