//! Applies a change of attributes to the backing file of an entry.
//!
//! Invariant: an error means that nothing changed. When one part of a change fails, the parts that were applied
//! before it are undone.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::Stat;

use super::error::{Result, upper as call};
use super::table::Node;
use super::types::SetAttr;
use super::{Namespace, backing};

impl Namespace {
    /// Applies a change to an entry that has a backing file. The caller holds the `change` lock of the node.
    pub(super) fn apply(&self, node: &Node, change: &SetAttr) -> Result<()> {
        let parts = [
            change.uid.is_some() || change.gid.is_some(),
            change.mode.is_some(),
            change.atime.is_some() || change.mtime.is_some(),
            change.size.is_some(),
        ];
        let parts = parts.into_iter().filter(|asked| *asked).count();
        if parts == 0 {
            return Ok(());
        }
        let fd = self.backing_fd(node)?;
        if parts == 1 {
            return self.apply_parts(node, &fd, change);
        }
        let before = rustix::fs::fstat(&fd).map_err(call("stat"))?;
        let mode = self.held_mode(node, &fd)?.unwrap_or(before.st_mode & 0o7777);
        let done = self.apply_parts(node, &fd, change);
        if done.is_err() {
            self.undo(node, &fd, change, (&before, mode));
        }
        done
    }

    /// Applies the parts one by one. The size comes last, because truncating cannot be undone.
    fn apply_parts(&self, node: &Node, fd: &Arc<OwnedFd>, change: &SetAttr) -> Result<()> {
        if change.uid.is_some() || change.gid.is_some() {
            backing::write_owner(fd.as_fd(), change.uid, change.gid)?;
        }
        if let Some(mode) = change.mode {
            self.change_mode(node, fd, mode)?;
        }
        let times = (change.atime, change.mtime);
        if times != (None, None) {
            backing::write_times(fd.as_fd(), times.0, times.1)?;
        }
        let Some(size) = change.size else { return Ok(()) };
        rustix::fs::ftruncate(fd, size).map_err(call("truncate"))?;
        if size == 0 {
            self.was_emptied(node, None);
        }
        if change.mtime.is_some()
            && let Err(error) = backing::write_times(fd.as_fd(), times.0, times.1)
        {
            tracing::warn!(ino = ?node.ino, %error, "a truncated file shows the time of the truncation as its mtime");
        }
        Ok(())
    }

    fn change_mode(&self, node: &Node, fd: &Arc<OwnedFd>, mode: u32) -> Result<()> {
        let old = self.held_mode(node, fd)?;
        let held = backing::write_mode(fd.as_fd(), node.kind, mode, old)?;
        node.state.lock().mode = Some(held);
        Ok(())
    }

    /// Undoes the parts of a change that failed. The operation answers an error already, so a failure here is logged.
    fn undo(&self, node: &Node, fd: &Arc<OwnedFd>, change: &SetAttr, (before, mode): (&Stat, u32)) {
        let mut undone = Ok(());
        let owner = change.uid.is_some() || change.gid.is_some();
        if owner {
            undone = self.own(fd, before.st_uid, before.st_gid);
        }
        // The kernel may clear setuid and setgid when the owner changes, so the mode is written again as well.
        if owner || change.mode.is_some() {
            undone = undone.and(self.change_mode(node, fd, mode));
        }
        if change.atime.is_some() || change.mtime.is_some() {
            undone = undone.and(backing::put_times_back(fd, before));
        }
        if let Err(error) = undone {
            tracing::error!(ino = ?node.ino, %error, "a change of attributes failed and could not be undone");
        }
    }

    /// Sets owner and group of a backing file if they differ. Only root may set others, so a call that changes
    /// nothing could fail.
    pub(super) fn own(&self, fd: &impl AsFd, uid: u32, gid: u32) -> Result<()> {
        let stat = rustix::fs::fstat(fd).map_err(call("stat"))?;
        if (stat.st_uid, stat.st_gid) != (uid, gid) {
            backing::write_owner(fd.as_fd(), Some(uid), Some(gid))?;
        }
        Ok(())
    }
}
