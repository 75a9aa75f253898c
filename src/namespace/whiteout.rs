//! Whiteouts: how the upper says that a lower name is gone.
//!
//! Where the filesystem has them, a whiteout is a character device 0/0, and the kernel leaves one behind in the rename
//! that moves an entry away (`RENAME_WHITEOUT`). overlayfs, on which a home in a container image lies, has neither:
//! there a whiteout is an empty file with the mark `gone`. Which of the two are made is tried at each mount; both
//! are understood always. Invariant: an entry goes and its whiteout comes in one step, or a crash between the
//! two steps is made good by the next mount, from a note ([`Whiteouts::moved`]).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::backing;
use super::error::{Result, upper as call};
use crate::materialize::staging::{Staged, Staging};
use crate::space::upper::mark::Mark;
use crate::space::upper::walk::find_dir;

/// Which kind of whiteouts is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whiteouts {
    /// Character devices 0/0.
    Devices,
    /// Empty files with the mark `gone`.
    Marked,
}

/// A rename of one entry in the upper.
#[derive(Clone, Copy)]
pub(super) struct Move<'a> {
    pub(super) at: BorrowedFd<'a>,
    pub(super) name: &'a CString,
    pub(super) new_at: BorrowedFd<'a>,
    pub(super) new_name: &'a CString,
}

impl Move<'_> {
    pub(super) fn rename(&self, flags: RenameFlags) -> Result<()> {
        rustix::fs::renameat_with(self.at, self.name, self.new_at, self.new_name, flags)
            .map_err(call("rename"))
    }
}

impl Whiteouts {
    /// Tries what the filesystem of the space has.
    pub(super) fn probe(staging: &Staging) -> Self {
        match try_devices(staging) {
            Ok(()) => Self::Devices,
            Err(errno @ (Errno::PERM | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::ACCESS)) => {
                tracing::info!(%errno, "no device whiteouts on the filesystem of the space: they are marked files");
                Self::Marked
            }
            // A full disk, say: it tells nothing of what the filesystem has, and nearly all have devices.
            Err(errno) => {
                tracing::warn!(%errno, "cannot try which whiteouts the filesystem of the space has");
                Self::Devices
            }
        }
    }

    /// A whiteout in the staging directory.
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

    /// Puts a whiteout where the upper has nothing.
    pub(super) fn put(self, staging: &Staging, at: BorrowedFd<'_>, name: &CString) -> Result<()> {
        match self {
            Self::Devices => make_device(at, name).map_err(call("mknod")),
            Self::Marked => {
                self.stage(staging)?.publish_with(at, name, RenameFlags::NOREPLACE).map_err(call("rename"))
            }
        }
    }

    /// Puts a whiteout in the place of what is no directory.
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

    /// Renames an entry, over what rename(2) replaces, and leaves a whiteout in its place. `ino` is the entry's number on
    /// disk.
    pub(super) fn moved(self, staging: &Staging, step: &Move<'_>, ino: u64) -> Result<()> {
        if self == Self::Devices {
            return step.rename(RenameFlags::WHITEOUT);
        }
        let whiteout = self.stage(staging)?;
        let note = Note::write(staging, step, ino)?;
        step.rename(RenameFlags::empty()).inspect_err(|_| note.remove(staging))?;
        match whiteout.publish(step.at, step.name) {
            Ok(()) => note.remove(staging),
            // The entry has moved, so this is done. The note stays, and the next mount puts the whiteout.
            Err(errno) => {
                tracing::error!(name = ?step.name, %errno, "a whiteout comes at the next mount only")
            }
        }
        Ok(())
    }

    /// Makes good what a crash in [`Whiteouts::moved`] has left: puts the whiteouts that are still missing.
    pub(super) fn finish_moves(self, staging: &Staging, root: BorrowedFd<'_>) {
        for name in staging.take_notes() {
            let note = Note { name };
            match self.finish_move(staging, root, &note) {
                Ok(()) => note.remove(staging),
                Err(error) => tracing::error!(note = ?note.name, %error, "a rename stays half done"),
            }
        }
    }

    fn finish_move(self, staging: &Staging, root: BorrowedFd<'_>, note: &Note) -> Result<()> {
        let text = rustix::fs::readlinkat(staging.dir(), &note.name, Vec::new()).map_err(call("readlink"))?;
        let Some(moved) = Moved::parse(&text) else { return Ok(()) };
        let (Some(at), Some(new_at)) = (find_dir(root, moved.at)?, find_dir(root, moved.new_at)?) else {
            return Ok(());
        };
        let there =
            |dir: BorrowedFd<'_>, name: &CStr| match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            {
                Ok(stat) => Ok(Some(stat.st_ino)),
                Err(Errno::NOENT) => Ok(None),
                Err(errno) => Err(call("stat")(errno)),
            };
        if there(new_at.as_fd(), &moved.new_name)? == Some(moved.ino)
            && there(at.as_fd(), &moved.name)?.is_none()
        {
            self.put(staging, at.as_fd(), &moved.name)?;
        }
        Ok(())
    }
}

/// A rename that may be half done, noted in the staging directory. The note is a symbolic link, which is made whole in
/// one step; its text says what moves.
struct Note {
    name: CString,
}

impl Note {
    fn write(staging: &Staging, step: &Move<'_>, ino: u64) -> Result<Self> {
        let number =
            |dir: BorrowedFd<'_>| rustix::fs::fstat(dir).map(|stat| stat.st_ino).map_err(call("stat"));
        let moved = Moved {
            ino,
            at: number(step.at)?,
            name: step.name.clone(),
            new_at: number(step.new_at)?,
            new_name: step.new_name.clone(),
        };
        let name = staging.fresh_note();
        rustix::fs::symlinkat(std::ffi::OsStr::from_bytes(&moved.text()), staging.dir(), &name)
            .map_err(call("symlink"))?;
        Ok(Self { name })
    }

    fn remove(&self, staging: &Staging) {
        // A note that stays does no harm: it is followed only where a whiteout is missing.
        if let Err(errno) = rustix::fs::unlinkat(staging.dir(), &self.name, AtFlags::empty()) {
            tracing::warn!(note = ?self.name, %errno, "a note of a rename stays");
        }
    }
}

/// What a [`Note`] says. Directories are named by their numbers on disk, since they can move too.
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

/// Makes a whiteout, and has a rename leave another one.
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
