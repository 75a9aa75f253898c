//! Changing attributes: mode, owner, times and size of an entry.
//!
//! Not the copy-up, which brings a lower entry its counterpart with the change already applied. Invariant: the
//! answer is the truth. When one part of a change fails, the parts that were applied before it are undone, so that
//! an error means that nothing changed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::Stat;

use super::copy_up::How;
use super::error::{Error, Result, upper as call};
use super::table::Node;
use super::types::{Attr, Ino, Kind, SetAttr, SetTime, Time};
use super::{Namespace, backing};

impl Namespace {
    /// Changes attributes; the new ones are returned. What changes nothing leaves the upper alone.
    ///
    /// # Errors
    /// What copying up and the calls on the upper may answer. The attributes are then as before.
    pub fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        let attr = self.attr(ino)?;
        if change.size.is_some() && attr.kind != Kind::File {
            return Err(if attr.kind == Kind::Dir {
                Error::IsADirectory
            } else {
                Error::Invalid("only a regular file has a size to set")
            });
        }
        let mut change = *change;
        // A file that is given to somebody loses them, be it the one who has it: the kernel leaves that to us.
        let drops = change.drop_setid || change.uid.is_some() || change.gid.is_some();
        if drops && change.mode.is_none() && attr.setid_to_drop() != 0 {
            change.mode = Some(attr.mode & !attr.setid_to_drop());
        }
        let change = &change;
        if changes_nothing(&attr, change) {
            return Ok(attr);
        }
        let node = match (attr.kind, change.size) {
            (Kind::Dir, _) => {
                let node = self.upper_dir(ino)?;
                let _change = node.change.lock();
                self.apply(&node, change)?;
                self.release_ctime(&node);
                Arc::clone(&node)
            }
            (_, Some(size)) => self.copy_up(ino, How::Data(size), change)?,
            (_, None) => self.copy_up(ino, How::Meta, change)?,
        };
        // The change is made: not being able to look at it is no error.
        Ok(self.node_attr(&node).unwrap_or_else(|error| {
            tracing::warn!(?ino, %error, "attributes are told as they were asked for");
            as_asked(attr, change)
        }))
    }

    /// Applies a change to an entry whose counterpart is there. The caller holds its `change` lock.
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

    /// The size comes last, because it alone cannot be undone.
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
            tracing::warn!(ino = ?node.ino, %error, "a truncated file shows the time of its truncation");
        }
        Ok(())
    }

    fn change_mode(&self, node: &Node, fd: &Arc<OwnedFd>, mode: u32) -> Result<()> {
        let old = self.held_mode(node, fd)?;
        let held = backing::write_mode(fd.as_fd(), node.kind, mode, old)?;
        node.state.lock().mode = Some(held);
        Ok(())
    }

    /// Gives an entry back what a change that failed half-way had set. The answer is an error already, so a failure
    /// here can only be logged.
    fn undo(&self, node: &Node, fd: &Arc<OwnedFd>, change: &SetAttr, (before, mode): (&Stat, u32)) {
        let mut undone = Ok(());
        let owner = change.uid.is_some() || change.gid.is_some();
        if owner {
            undone = self.own(fd, before.st_uid, before.st_gid);
        }
        // A change of owner can take setuid and setgid away, so the mode is written in either case.
        if owner || change.mode.is_some() {
            undone = undone.and(self.change_mode(node, fd, mode));
        }
        if change.atime.is_some() || change.mtime.is_some() {
            undone = undone.and(put_times_back(fd, before));
        }
        if let Err(error) = undone {
            tracing::error!(ino = ?node.ino, %error, "a change that failed is half applied");
        }
    }

    /// Gives a backing entry its owner, unless it has it: only root may ask for another one.
    pub(super) fn own(&self, fd: &impl AsFd, uid: u32, gid: u32) -> Result<()> {
        let stat = rustix::fs::fstat(fd).map_err(call("stat"))?;
        if (stat.st_uid, stat.st_gid) != (uid, gid) {
            backing::write_owner(fd.as_fd(), Some(uid), Some(gid))?;
        }
        Ok(())
    }
}

/// Gives an entry back the times that it had before.
pub(super) fn put_times_back(fd: &impl AsFd, before: &Stat) -> Result<()> {
    let time = |sec, nsec| Some(SetTime::At(Time { sec, nsec: u32::try_from(nsec).unwrap_or(0) }));
    backing::write_times(
        fd.as_fd(),
        time(before.st_atime, before.st_atime_nsec),
        time(before.st_mtime, before.st_mtime_nsec),
    )
}

/// The attributes that a change leads to.
fn as_asked(attr: Attr, change: &SetAttr) -> Attr {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let now = Time { sec: now.tv_sec, nsec: u32::try_from(now.tv_nsec).unwrap_or(0) };
    let time = |wanted: Option<SetTime>, old: Time| match wanted {
        None => old,
        Some(SetTime::At(time)) => time,
        Some(SetTime::Now) => now,
    };
    let size = change.size.unwrap_or(attr.size);
    Attr {
        mode: change.mode.unwrap_or(attr.mode),
        uid: change.uid.unwrap_or(attr.uid),
        gid: change.gid.unwrap_or(attr.gid),
        size,
        blocks: if change.size.is_some() { size.div_ceil(512) } else { attr.blocks },
        atime: time(change.atime, attr.atime),
        mtime: time(change.mtime.or(change.size.map(|_| SetTime::Now)), attr.mtime),
        ctime: now,
        ..attr
    }
}

/// Whether a change asks for what is there already. A size never counts: truncating touches the times.
fn changes_nothing(attr: &Attr, change: &SetAttr) -> bool {
    let same_time = |wanted: Option<SetTime>, now: Time| match wanted {
        None => true,
        Some(SetTime::At(time)) => time == now,
        Some(SetTime::Now) => false,
    };
    change.size.is_none()
        && change.mode.is_none_or(|mode| mode & 0o7777 == attr.mode)
        && change.uid.is_none_or(|uid| uid == attr.uid)
        && change.gid.is_none_or(|gid| gid == attr.gid)
        && same_time(change.atime, attr.atime)
        && same_time(change.mtime, attr.mtime)
}
