//! The format of marks, which say what a plain file in the upper cannot say about itself.
//!
//! | mark | meaning |
//! |---|---|
//! | character device 0/0 | a *whiteout*: the space has removed the catalog's entry of this name |
//! | `user.holofs.entry` = `gone` | the same, on filesystems where a user cannot create such a device |
//! | `user.holofs.entry` = `data:N` | a changed copy of lower node N (its *origin*); the bytes are in this file |
//! | `user.holofs.entry` = `data:N@BOOT` | the same, but the file was emptied in this boot, and its new bytes may not be on the disk |
//! | `user.holofs.entry` = `meta:N` | lower node N with other attributes or another name; its bytes, or its link text, are still the catalog's |
//! | `user.holofs.entry` = `dir:N` | a directory that merges with lower directory N, wherever it stands |
//! | `user.holofs.mode` | the permission bits in octal, when the daemon needs bits on the file that they lack |
//! | `user.holofs.ctime` | a directory shows the first time as its ctime while the second is its mtime |
//!
//! An entry without `user.holofs.entry` was created in the space. Such a directory is opaque: it hides what the
//! catalog has under its name. Only regular files and directories can carry these attributes, so a changed symbolic
//! link of the catalog is a regular file in the upper.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::{Time, UpperError};
use crate::library::index::NodeId;
use crate::sys::boot::Boot;
use crate::sys::xattr;

/// The attribute that holds a [`Mark`].
pub const MARK_XATTR: &CStr = c"user.holofs.entry";
/// The attribute that holds the permission bits of an entry whose file needs more bits, so that the daemon can open
/// it.
pub const MODE_XATTR: &CStr = c"user.holofs.mode";
/// The attribute that holds a [`KeptCtime`].
pub const CTIME_XATTR: &CStr = c"user.holofs.ctime";
/// The prefix of our own attributes. Programs in the mount can neither see nor set them.
pub const OWN_XATTRS: &[u8] = b"user.holofs.";

/// The longest mark: `data:4294967295@ffffffff`, and some room.
const LONGEST: usize = 32;

/// What `user.holofs.entry` says, or the device 0/0 that says the same as `gone`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// A regular file with its own bytes.
    Data(NodeId),
    /// The same, emptied in this boot; the new bytes may not be on the disk yet.
    Emptied(NodeId, Boot),
    /// A regular file or symbolic link whose bytes or text are still the lower's.
    Meta(NodeId),
    /// A directory that merges with a lower one.
    Dir(NodeId),
    /// A whiteout.
    Gone,
}

impl Mark {
    /// The lower node that the entry came from; None for a whiteout.
    #[must_use]
    pub fn origin(self) -> Option<NodeId> {
        match self {
            Self::Data(node) | Self::Emptied(node, _) | Self::Meta(node) | Self::Dir(node) => Some(node),
            Self::Gone => None,
        }
    }

    /// What the mark of a file of `size` bytes means in boot `now`. A library file that was emptied in an earlier
    /// boot and is still empty lost its new bytes with the power, so it counts as one that was never emptied.
    #[must_use]
    pub fn in_boot(self, now: Boot, size: i64) -> Self {
        match self {
            Self::Emptied(node, boot) if boot != now && size == 0 => Self::Meta(node),
            Self::Emptied(node, _) => Self::Data(node),
            mark => mark,
        }
    }

    /// The value of the attribute.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Data(node) => format!("data:{}", node.0),
            Self::Emptied(node, boot) => format!("data:{}@{:08x}", node.0, boot.0),
            Self::Meta(node) => format!("meta:{}", node.0),
            Self::Dir(node) => format!("dir:{}", node.0),
            Self::Gone => "gone".to_owned(),
        }
    }

    /// Reads the value of the attribute; None when it makes no sense.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text == b"gone" {
            return Some(Self::Gone);
        }
        let (kind, number) = std::str::from_utf8(text).ok()?.split_once(':')?;
        if let Some((number, boot)) = number.split_once('@') {
            let boot = u32::from_str_radix(boot, 16).ok()?;
            return (kind == "data").then_some(Self::Emptied(NodeId(number.parse().ok()?), Boot(boot)));
        }
        let node = NodeId(number.parse().ok()?);
        match kind {
            "data" => Some(Self::Data(node)),
            "meta" => Some(Self::Meta(node)),
            "dir" => Some(Self::Dir(node)),
            _ => None,
        }
    }

    /// Reads the mark of the entry `name` of a directory; None when the entry was created in the space.
    ///
    /// # Errors
    /// [`UpperError::Damaged`] for a mark that makes no sense, [`UpperError::Os`] when it cannot be read.
    pub fn read(dir: BorrowedFd<'_>, name: &CStr, file_type: FileType) -> Result<Option<Self>, UpperError> {
        if !matches!(file_type, FileType::RegularFile | FileType::Directory) {
            return Ok(None);
        }
        let damaged = |why| Err(UpperError::damaged(name, why));
        let mut text = [0u8; LONGEST];
        match xattr::get_at(dir, name, MARK_XATTR, &mut text) {
            Ok(len) => match text.get(..len).and_then(Mark::parse) {
                Some(mark) => Ok(Some(mark)),
                None => damaged("its user.holofs.entry attribute cannot be read"),
            },
            Err(Errno::NODATA) => Ok(None),
            Err(Errno::RANGE) => damaged("its user.holofs.entry attribute is too long"),
            Err(errno) => Err(UpperError::os(name, "getxattr")(errno)),
        }
    }
}

/// Whether an entry is a whiteout device.
#[must_use]
pub fn is_whiteout_device(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The permission bits of the entry `name` of a directory. `stored` is the mode of its file.
///
/// # Errors
/// [`UpperError::Damaged`] for an attribute that makes no sense, [`UpperError::Os`] when it cannot be read.
pub fn read_mode(dir: BorrowedFd<'_>, name: &CStr, stored: u32) -> Result<u32, UpperError> {
    let stored_bits = stored & 0o7777;
    if !matches!(FileType::from_raw_mode(stored), FileType::RegularFile | FileType::Directory) {
        return Ok(stored_bits);
    }
    let mut text = [0u8; 8];
    match xattr::get_at(dir, name, MODE_XATTR, &mut text) {
        Ok(len) => text.get(..len).and_then(parse_mode).ok_or_else(|| UpperError::damaged(name, BAD_MODE)),
        Err(Errno::NODATA) => Ok(stored_bits),
        Err(errno) => Err(UpperError::os(name, "getxattr")(errno)),
    }
}

/// What is wrong with a mode attribute that makes no sense.
pub const BAD_MODE: &str = "its user.holofs.mode attribute is no octal mode";

/// The value of the mode attribute.
#[must_use]
pub fn mode_text(mode: u32) -> String {
    format!("{mode:o}")
}

/// Reads the value of the mode attribute; None when it makes no sense.
#[must_use]
pub fn parse_mode(text: &[u8]) -> Option<u32> {
    let mode = u32::from_str_radix(std::str::from_utf8(text).ok()?, 8).ok()?;
    (mode <= 0o7777).then_some(mode)
}

/// The ctime that a directory shows while its mtime is the one noted here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeptCtime {
    /// The ctime to show.
    pub ctime: Time,
    /// The mtime for which that counts.
    pub mtime: Time,
}

impl KeptCtime {
    /// The longest value of the attribute, and some room.
    pub const LONGEST: usize = 80;

    /// The value of the attribute.
    #[must_use]
    pub fn text(self) -> String {
        let Self { ctime, mtime } = self;
        format!("{}.{:09} {}.{:09}", ctime.sec, ctime.nsec, mtime.sec, mtime.nsec)
    }

    /// Reads the value of the attribute; None when it makes no sense.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let time = |text: &str| {
            let (sec, nsec) = text.split_once('.')?;
            let nsec = nsec.parse().ok().filter(|nsec| *nsec < 1_000_000_000)?;
            Some(Time { sec: sec.parse().ok()?, nsec })
        };
        let (ctime, mtime) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        Some(Self { ctime: time(ctime)?, mtime: time(mtime)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_read_as_they_were_written() {
        for mark in [
            Mark::Data(NodeId(0)),
            Mark::Meta(NodeId(7)),
            Mark::Dir(NodeId(u32::MAX)),
            Mark::Emptied(NodeId(u32::MAX), Boot(u32::MAX)),
            Mark::Emptied(NodeId(1), Boot(0)),
            Mark::Gone,
        ] {
            assert!(mark.text().len() <= LONGEST);
            assert_eq!(Mark::parse(mark.text().as_bytes()), Some(mark));
        }
        for bad in [
            &b"data"[..],
            b"data:",
            b"data:-1",
            b"data:4294967296",
            b"x:1",
            b"\xff:1",
            b"",
            b"meta:1@1",
            b"data:1@",
        ] {
            assert_eq!(Mark::parse(bad), None);
        }
    }

    #[test]
    fn a_file_that_is_still_empty_in_a_later_boot_was_never_emptied() {
        let (node, boot) = (NodeId(3), Boot(1));
        assert_eq!(Mark::Emptied(node, boot).in_boot(Boot(2), 0), Mark::Meta(node));
        assert_eq!(Mark::Emptied(node, boot).in_boot(Boot(2), 1), Mark::Data(node));
        assert_eq!(Mark::Emptied(node, boot).in_boot(boot, 0), Mark::Data(node));
        assert_eq!(Mark::Data(node).in_boot(boot, 0), Mark::Data(node));
    }

    #[test]
    fn modes_read_as_they_were_written() {
        for mode in [0, 0o7777, 0o4044] {
            assert_eq!(parse_mode(mode_text(mode).as_bytes()), Some(mode));
        }
        for bad in [&b""[..], b"8", b"10000", b"-1", b"\xff"] {
            assert_eq!(parse_mode(bad), None);
        }
    }

    #[test]
    fn a_kept_ctime_reads_as_it_was_written() {
        let kept =
            KeptCtime { ctime: Time { sec: -5, nsec: 7 }, mtime: Time { sec: 1_610_000_000, nsec: 0 } };
        assert_eq!(KeptCtime::parse(kept.text().as_bytes()), Some(kept));
        for bad in [&b""[..], b"1.0", b"1.0 2", b"1.0 2.1000000000", b"x.0 1.0", b"\xff"] {
            assert_eq!(KeptCtime::parse(bad), None);
        }
    }
}
