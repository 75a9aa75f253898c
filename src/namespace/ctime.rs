//! The ctime of a directory in which files were copied up.
//!
//! A copy-up changes the directory on the disk but not the directory that the mount shows. Its times of access and
//! modification are put back; a ctime cannot be set. So the one to be shown is kept in an attribute
//! (`user.holofs.ctime`), together with the mtime that the directory has. Invariant: what is kept counts only while
//! that is still the directory's mtime. Creating, removing and renaming entries moves the mtime, which ends it at
//! no cost; a change of the directory's own attributes removes the attribute.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::Stat;

use super::error::Result;
use super::table::Node;
use super::types::{Attr, Kind};
use super::{Namespace, backing};
use crate::space::upper::mark::{CTIME_XATTR, KeptCtime};

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
    fn kept_ctime(&self, node: &Node, fd: &impl AsFd) -> Result<Option<KeptCtime>> {
        if let Some(known) = node.state.lock().ctime {
            return Ok(known);
        }
        // One that cannot be understood is none: it is about a time only.
        let kept = backing::short_xattr(fd.as_fd(), CTIME_XATTR, &mut [0; KeptCtime::LONGEST])?
            .and_then(KeptCtime::parse);
        node.state.lock().ctime = Some(kept);
        Ok(kept)
    }

    /// After a copy-up in a directory whose times were put back: it goes on to show the ctime from before. `before`
    /// is how the backing directory looked.
    pub(super) fn keep_ctime(&self, node: &Node, fd: &OwnedFd, before: &Stat) -> Result<()> {
        let mut shown = backing::attr_of(before, node.ino, Kind::Dir);
        self.show_ctime(node, fd, &mut shown)?;
        let kept = shown.kept_ctime();
        if node.state.lock().ctime != Some(Some(kept)) {
            backing::write_ctime(fd, kept)?;
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
                backing::remove_xattr(fd.as_fd(), CTIME_XATTR)?;
                node.state.lock().ctime = Some(None);
            }
            Ok(())
        });
        if let Err(error) = released {
            tracing::warn!(ino = ?node.ino, %error, "a directory shows an old ctime");
        }
    }
}
