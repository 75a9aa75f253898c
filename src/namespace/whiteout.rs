//! Creates whiteouts, which hide lower names that the space has removed.
//!
//! A whiteout is a character device 0/0 where the filesystem allows it. A rename with `RENAME_WHITEOUT` then moves an
//! entry and leaves a whiteout in one system call. overlayfs, on which the files of a container image lie,
//! allows neither. There a whiteout is an empty file with the mark `gone`. Each mount tests which kind the
//! filesystem allows. Both kinds are understood everywhere.
//!
//! With marked files a rename takes two steps: the move, and then the whiteout. Invariant: if the daemon dies between
//! them, the next mount does the second step. A note in the staging directory tells it to ([`Whiteouts::moved`]).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::backing;
use super::types::{Result, upper as call};
use crate::materialize::staging::{Staged, Staging};
use crate::space::upper::entry::{stat_at, unless_vanished};
use crate::space::upper::mark::Mark;
use crate::space::upper::walk::find_dir;

/// The kind of whiteouts that are created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whiteouts {
    /// Character devices 0/0.
    Devices,
    /// Empty files with the mark `gone`.
    Marked,
}

/// A rename of one file in the upper.
#[derive(Clone, Copy)]
pub(super) struct Move<'a> {
    pub(super) at: BorrowedFd<'a>,
    pub(super) name: &'a CString,
    pub(super) new_at: BorrowedFd<'a>,
    pub(super) new_name: &'a CString,
    /// The inode number of the file.
    pub(super) ino: u64,
    /// The lower has the old name, so a whiteout must be left behind.
    pub(super) in_lower: bool,
}

impl Move<'_> {
    pub(super) fn rename(&self, flags: RenameFlags) -> Result<()> {
        rustix::fs::renameat_with(self.at, self.name, self.new_at, self.new_name, flags)
            .map_err(call("rename"))
    }
}

impl Whiteouts {
    /// Tests which kind the filesystem of the space allows.
    pub(super) fn probe(staging: &Staging) -> Self {
        match try_devices(staging) {
            Ok(()) => Self::Devices,
            Err(errno @ (Errno::PERM | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::ACCESS)) => {
                tracing::info!(%errno, "the filesystem of the space has no whiteout devices; using marked files");
                Self::Marked
            }
            // A full disk, for example. That says nothing about the filesystem, and nearly all allow devices.
            Err(errno) => {
                tracing::warn!(%errno, "cannot test for whiteout devices on the filesystem of the space; assuming that it has them");
                Self::Devices
            }
        }
    }

    /// Creates a whiteout in the staging directory.
    pub(super) fn stage(self, staging: &Staging) -> Result<Staged> {
        match self {
            Self::Devices => {
                let name = staging.fresh_name();
                make_device(staging.dir(), &name).map_err(call("mknod"))?;
                Ok(staging.adopt(name, false))
            }
            Self::Marked => {
                let (file, staged) = staging.file().map_err(call("create"))?;
                backing::write_mark(file.as_fd(), Mark::Gone)?;
                Ok(staged)
            }
        }
    }

    /// Creates a whiteout under a name that the upper does not have.
    pub(super) fn put(self, staging: &Staging, at: BorrowedFd<'_>, name: &CString) -> Result<()> {
        match self {
            Self::Devices => make_device(at, name).map_err(call("mknod")),
            Self::Marked => {
                self.stage(staging)?.publish_with(at, name, RenameFlags::NOREPLACE).map_err(call("rename"))
            }
        }
    }

    /// Replaces an entry that is not a directory by a whiteout.
    pub(super) fn replace(self, staging: &Staging, at: BorrowedFd<'_>, name: &CString) -> Result<()> {
        match self {
            Self::Devices => {
                let junk = staging.fresh_name();
                rustix::fs::renameat_with(at, name, staging.dir(), &junk, RenameFlags::WHITEOUT)
                    .map_err(call("rename"))?;
                drop(staging.adopt(junk, false));
                Ok(())
            }
            Self::Marked => self.stage(staging)?.publish(at, name).map_err(call("rename")),
        }
    }

    /// Renames a file, over an entry that rename(2) can replace, and leaves a whiteout under the old name.
    pub(super) fn moved(self, staging: &Staging, step: &Move<'_>) -> Result<()> {
        if self == Self::Devices {
            return step.rename(RenameFlags::WHITEOUT);
        }
        let whiteout = self.stage(staging)?;
        let note = write_note(staging, step)?;
        step.rename(RenameFlags::empty()).inspect_err(|_| remove_note(staging, &note))?;
        match whiteout.publish(step.at, step.name) {
            Ok(()) => remove_note(staging, &note),
            // The file has moved, so the operation succeeds. The note stays, and the next mount creates the whiteout.
            Err(errno) => {
                tracing::error!(name = ?step.name, %errno, "cannot create a whiteout after a rename; the next mount will")
            }
        }
        Ok(())
    }

    /// Finishes the renames that a crash in [`Whiteouts::moved`] has cut short: creates the missing whiteouts.
    pub(super) fn finish_moves(self, staging: &Staging, root: BorrowedFd<'_>) {
        for note in staging.take_notes() {
            match self.finish_move(staging, root, &note) {
                Ok(()) => remove_note(staging, &note),
                Err(error) => {
                    tracing::error!(?note, %error, "cannot finish a rename that a crash cut short")
                }
            }
        }
    }

    fn finish_move(self, staging: &Staging, root: BorrowedFd<'_>, note: &CStr) -> Result<()> {
        let text = rustix::fs::readlinkat(staging.dir(), note, Vec::new()).map_err(call("readlink"))?;
        let Some(moved) = Moved::parse(&text) else { return Ok(()) };
        let (Some(at), Some(new_at)) = (find_dir(root, moved.at)?, find_dir(root, moved.new_at)?) else {
            return Ok(());
        };
        let there = unless_vanished(stat_at(new_at.as_fd(), &moved.new_name))?;
        let left = unless_vanished(stat_at(at.as_fd(), &moved.name))?;
        if there.is_some_and(|stat| stat.st_ino == moved.ino) && left.is_none() {
            self.put(staging, at.as_fd(), &moved.name)?;
        }
        Ok(())
    }
}

/// Writes a note in the staging directory about a rename that may be half done, and returns the note's name. It is a
/// symbolic link, because that is created with its content in one step.
fn write_note(staging: &Staging, step: &Move<'_>) -> Result<CString> {
    let number = |dir: BorrowedFd<'_>| rustix::fs::fstat(dir).map(|stat| stat.st_ino).map_err(call("stat"));
    let moved = Moved {
        ino: step.ino,
        at: number(step.at)?,
        name: step.name.clone(),
        new_at: number(step.new_at)?,
        new_name: step.new_name.clone(),
    };
    let note = staging.fresh_note();
    rustix::fs::symlinkat(std::ffi::OsStr::from_bytes(&moved.text()), staging.dir(), &note)
        .map_err(call("symlink"))?;
    Ok(note)
}

fn remove_note(staging: &Staging, note: &CStr) {
    // A note that stays does no harm: the next mount creates a whiteout only if it is missing.
    if let Err(errno) = rustix::fs::unlinkat(staging.dir(), note, AtFlags::empty()) {
        tracing::warn!(?note, %errno, "cannot remove the note of a finished rename; it does no harm");
    }
}

/// The content of a note. Directories are named by their inode numbers, because they can be renamed as well.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Moved {
    ino: u64,
    at: u64,
    name: CString,
    new_at: u64,
    new_name: CString,
}

impl Moved {
    fn text(&self) -> Vec<u8> {
        let mut text = format!("{}/{}/", self.ino, self.at).into_bytes();
        text.extend_from_slice(self.name.as_bytes());
        text.extend_from_slice(format!("/{}/", self.new_at).as_bytes());
        text.extend_from_slice(self.new_name.as_bytes());
        text
    }

    fn parse(text: &CStr) -> Option<Self> {
        let mut parts = text.to_bytes().split(|byte| *byte == b'/');
        let number = |part: Option<&[u8]>| std::str::from_utf8(part?).ok()?.parse().ok();
        let name = |part: Option<&[u8]>| CString::new(part.filter(|name| !name.is_empty())?).ok();
        let moved = Self {
            ino: number(parts.next())?,
            at: number(parts.next())?,
            name: name(parts.next())?,
            new_at: number(parts.next())?,
            new_name: name(parts.next())?,
        };
        parts.next().is_none().then_some(moved)
    }
}

fn make_device(dir: impl AsFd, name: &CStr) -> std::result::Result<(), Errno> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Creates a whiteout, and renames it in a way that leaves another one.
fn try_devices(staging: &Staging) -> std::result::Result<(), Errno> {
    let (one, two) = (staging.fresh_name(), staging.fresh_name());
    make_device(staging.dir(), &one)?;
    let first = staging.adopt(one.clone(), false);
    rustix::fs::renameat_with(staging.dir(), &one, staging.dir(), &two, RenameFlags::WHITEOUT)?;
    drop((first, staging.adopt(two, false)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_as_it_was_written() {
        let name = |bytes: &[u8]| CString::new(bytes).unwrap();
        let moved = Moved { ino: 7, at: 1, name: name(b"\xff 1"), new_at: 2, new_name: name(&[b'x'; 255]) };
        assert_eq!(Moved::parse(&CString::new(moved.text()).unwrap()), Some(moved));
        for bad in [c"", c"1/2/a/3", c"1/2//3/b", c"1/2/a/3/b/c", c"x/2/a/3/b"] {
            assert_eq!(Moved::parse(bad), None, "{bad:?}");
        }
    }
}
