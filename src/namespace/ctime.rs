//! The ctime of a directory in which files were copied up.
//!
//! A copy-up changes the directory on the disk but not the directory that the mount shows. Its times of access and
//! modification are put back; a ctime cannot be set. So the one to be shown is kept in an attribute
//! (`user.holofs.ctime`), together with the mtime that the directory has. Invariant: what is kept counts only while
//! that is still the directory's mtime. Creating, removing and renaming entries moves the mtime, which ends it at
//! no cost; a change of the directory's own attributes removes the attribute.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Stat, XattrFlags};

use super::Namespace;
use super::error::Result;
use super::table::Node;
use super::types::{Attr, Kind, Time};
use super::upper;

/// The attribute that holds a [`Kept`].
const CTIME_XATTR: &CStr = c"user.holofs.ctime";

/// The ctime that a directory shows while it has this mtime.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kept {
    pub(super) ctime: Time,
    pub(super) mtime: Time,
}

impl Kept {
    /// What a directory shows now.
    pub(super) fn of(attr: &Attr) -> Self {
        Self { ctime: attr.ctime, mtime: attr.mtime }
    }

    fn text(self) -> String {
        let Self { ctime, mtime } = self;
        format!("{}.{:09} {}.{:09}", ctime.sec, ctime.nsec, mtime.sec, mtime.nsec)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let time = |text: &str| {
            let (sec, nsec) = text.split_once('.')?;
            let nsec = nsec.parse().ok().filter(|nsec| *nsec < 1_000_000_000)?;
            Some(Time { sec: sec.parse().ok()?, nsec })
        };
        let (ctime, mtime) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        Some(Self { ctime: time(ctime)?, mtime: time(mtime)? })
    }

    /// Writes it to a directory.
    pub(super) fn write(self, dir: &impl AsFd) -> Result<()> {
        upper::set_xattr(dir.as_fd(), CTIME_XATTR, self.text().as_bytes(), XattrFlags::empty())
    }
}

impl Namespace {
    /// Gives a directory's attributes the ctime that it is to show.
    pub(super) fn show_ctime(&self, node: &Node, fd: &impl AsFd, attr: &mut Attr) -> Result<()> {
        if let Some(kept) = self.kept_ctime(node, fd)?
            && kept.mtime == attr.mtime
        {
            attr.ctime = kept.ctime;
        }
        Ok(())
    }

    /// What the attribute of a directory holds, asked once.
    fn kept_ctime(&self, node: &Node, fd: &impl AsFd) -> Result<Option<Kept>> {
        if let Some(known) = node.state.lock().ctime {
            return Ok(known);
        }
        // One that cannot be understood is none: it is about a time only.
        let kept = upper::short_xattr(fd.as_fd(), CTIME_XATTR, &mut [0; 80])?.and_then(Kept::parse);
        node.state.lock().ctime = Some(kept);
        Ok(kept)
    }

    /// After a copy-up in a directory whose times were put back: it goes on to show the ctime from before. `before`
    /// is how the backing directory looked.
    pub(super) fn keep_ctime(&self, node: &Node, fd: &OwnedFd, before: &Stat) -> Result<()> {
        let mut shown = upper::attr_of(before, node.ino, Kind::Dir);
        self.show_ctime(node, fd, &mut shown)?;
        let kept = Kept::of(&shown);
        if node.state.lock().ctime != Some(Some(kept)) {
            kept.write(fd)?;
            node.state.lock().ctime = Some(Some(kept));
        }
        Ok(())
    }

    /// After a change of a directory's own: from now on it shows the ctime that it has. The change is done, so a
    /// failure is only logged.
    pub(super) fn release_ctime(&self, node: &Node) {
        if node.kind != Kind::Dir {
            return;
        }
        let released = self.backing_fd(node).and_then(|fd| {
            if self.kept_ctime(node, &fd)?.is_some() {
                upper::remove_xattr(fd.as_fd(), CTIME_XATTR)?;
                node.state.lock().ctime = Some(None);
            }
            Ok(())
        });
        if let Err(error) = released {
            tracing::warn!(ino = ?node.ino, %error, "a directory shows an old ctime");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_reads_as_it_was_written() {
        let kept = Kept { ctime: Time { sec: -5, nsec: 7 }, mtime: Time { sec: 1_610_000_000, nsec: 0 } };
        assert_eq!(Kept::parse(kept.text().as_bytes()), Some(kept));
        for bad in [&b""[..], b"1.0", b"1.0 2", b"1.0 2.1000000000", b"x.0 1.0", b"\xff"] {
            assert_eq!(Kept::parse(bad), None);
        }
    }
}
