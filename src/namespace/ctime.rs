//! Keeps the ctime of a directory when a file in it is copied up.
//!
//! A copy-up changes the directory on disk, but not the directory that the space shows: no entry was created or
//! removed. Programs such as `tar` take a new ctime for a change. The times of access and modification can be set
//! back, but a ctime cannot. So the ctime to show is kept in the attribute `user.holofs.ctime`, together with the
//! mtime of the directory.
//!
//! Invariant: the kept ctime counts only while the directory still has that mtime. Creating, removing and renaming
//! entries changes the mtime, so they end it without a further system call. A change of the directory's own
//! attributes removes the attribute.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::Stat;

use super::error::Result;
use super::table::Node;
use super::types::{Attr, Kind};
use super::{Namespace, backing};
use crate::space::upper::mark::{CTIME_XATTR, KeptCtime};

impl Namespace {
    /// Puts the kept ctime of a directory, if it counts, into the directory's attributes.
    pub(super) fn show_ctime(&self, node: &Node, fd: &impl AsFd, attr: &mut Attr) -> Result<()> {
        if let Some(kept) = self.kept_ctime(node, fd)?
            && kept.mtime == attr.mtime
        {
            attr.ctime = kept.ctime;
        }
        Ok(())
    }

    /// The kept ctime of a directory. The attribute is read once.
    fn kept_ctime(&self, node: &Node, fd: &impl AsFd) -> Result<Option<KeptCtime>> {
        if let Some(known) = node.state.lock().ctime {
            return Ok(known);
        }
        // An attribute that makes no sense is ignored, because only a time depends on it.
        let kept = backing::short_xattr(fd.as_fd(), CTIME_XATTR, &mut [0; KeptCtime::LONGEST])?
            .and_then(KeptCtime::parse);
        node.state.lock().ctime = Some(kept);
        Ok(kept)
    }

    /// Keeps the ctime of a directory in which a file was copied up, and whose other times were set back. `before` is
    /// the stat(2) of the directory from before.
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

    /// Ends the kept ctime of a directory, after its own attributes or its place changed. The change is done, so a
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
