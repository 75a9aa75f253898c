//! Copy-up: giving a lower entry its counterpart in the upper.
//!
//! The bytes are made (by `materialize`) before any directory is locked; only the last rename, which makes the
//! counterpart visible, happens under the lock of its directory. The directory itself does not change for a
//! reader when a file in it is copied up, so its times are put back.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::Stat;

use super::dir::{DirState, Entry, Present};
use super::error::{Error, Result, upper as call};
use super::read::{must_be_dir, must_be_file};
use super::table::{Backing, Node};
use super::types::{Attr, Ino, Kind, SetAttr, SetTime, Time};
use super::upper::{self, Mark};
use super::{Namespace, View};
use crate::materialize::staging::Staged;

/// How much of a file is to be in the upper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// Its attributes.
    Meta,
    /// Its bytes too, this many from the start.
    Data(u64),
}

impl Namespace {
    /// The open file with a regular file's bytes, copied up first if need be.
    ///
    /// # Errors
    /// `IsADirectory` or `Invalid` for what has no bytes, and what materializing may answer.
    pub(crate) fn writable(&self, ino: Ino) -> Result<Arc<OwnedFd>> {
        let node = self.for_write(ino)?;
        if node.backing() != Backing::Upper {
            return Err(Error::Stale(node.ino));
        }
        self.backing_fd(&node)
    }

    fn for_write(&self, ino: Ino) -> Result<Arc<Node>> {
        if let View::Node(node) = self.view(ino)? {
            must_be_file(node.kind)?;
            if node.backing() == Backing::Upper {
                return Ok(node);
            }
        }
        self.copy_up(ino, How::Data(u64::MAX), &SetAttr::default())
    }

    /// Changes attributes; the new ones are returned. What changes nothing leaves the upper alone.
    ///
    /// # Errors
    /// What copying up and the calls on the upper may answer.
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
        if (change.uid.is_some() || change.gid.is_some())
            && change.mode.is_none()
            && attr.setid_to_drop() != 0
        {
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
                Arc::clone(&node)
            }
            (_, Some(size)) => self.copy_up(ino, How::Data(size), change)?,
            (_, None) => self.copy_up(ino, How::Meta, change)?,
        };
        self.node_attr(&node)
    }

    /// Gives a file, link or special file its counterpart in the upper, or more of one, with `change` applied in
    /// the same step; where all is there already, only applies `change`.
    pub(super) fn copy_up(&self, ino: Ino, how: How, change: &SetAttr) -> Result<Arc<Node>> {
        let node = self.node(ino)?;
        if node.kind == Kind::Dir {
            return Err(Error::IsADirectory);
        }
        let changing = node.change.lock();
        let backing = node.backing();
        if backing == Backing::Upper || (backing == Backing::Meta && how == How::Meta) {
            self.apply(&node, change)?;
        } else {
            self.copy_up_locked(&node, backing, how, change)?;
        }
        drop(changing);
        Ok(node)
    }

    /// The backing of an entry that has one.
    pub(crate) fn existing_fd(&self, ino: Ino) -> Result<Option<Arc<OwnedFd>>> {
        match self.view(ino)? {
            View::Node(node) if node.backing() != Backing::Lower => Ok(Some(self.backing_fd(&node)?)),
            View::Node(_) | View::Lower(_) => Ok(None),
        }
    }

    /// The backing of an entry, made now if it has none.
    pub(crate) fn changed_fd(&self, ino: Ino) -> Result<Arc<OwnedFd>> {
        let node = match self.node(ino)?.kind {
            Kind::Dir => self.upper_dir(ino)?,
            _ => self.copy_up(ino, How::Meta, &SetAttr::default())?,
        };
        self.backing_fd(&node)
    }

    fn copy_up_locked(&self, node: &Node, backing: Backing, how: How, change: &SetAttr) -> Result<()> {
        let lower = node.lower.ok_or(Error::Stale(node.ino))?;
        let base = self.node_attr(node)?;
        let (file, staged, mark) = match how {
            How::Data(len) => {
                let copy = self.materializer.private_copy(lower, len)?;
                (copy.file, copy.staged, Mark::Data(lower))
            }
            How::Meta => {
                let (file, staged) = self.staging.file().map_err(call("create a staging file"))?;
                (file, staged, Mark::Meta(lower))
            }
        };
        upper::write_mark(file.as_fd(), mark)?;
        if backing == Backing::Meta {
            upper::copy_xattrs(self.backing_fd(node)?.as_fd(), file.as_fd())?;
        }
        if let Some(size) = change.size {
            rustix::fs::ftruncate(&file, size).map_err(call("truncate"))?;
        }
        let (uid, gid) = (change.uid.unwrap_or(base.uid), change.gid.unwrap_or(base.gid));
        self.own(&file, uid, gid)?;
        let held = upper::write_mode(file.as_fd(), node.kind, change.mode.unwrap_or(base.mode), None)?;
        let mtime = change.mtime.or(change.size.map(|_| SetTime::Now)).unwrap_or(SetTime::At(base.mtime));
        upper::write_times(file.as_fd(), Some(change.atime.unwrap_or(SetTime::At(base.atime))), Some(mtime))?;
        let stat = rustix::fs::fstat(&file).map_err(call("stat"))?;
        self.publish(node, file.into(), staged, &stat, mark)?;
        node.state.lock().mode = Some(held);
        Ok(())
    }

    /// Gives a backing entry its owner, unless it has it: only root may ask for another one.
    pub(super) fn own(&self, fd: &impl AsFd, uid: u32, gid: u32) -> Result<()> {
        let stat = rustix::fs::fstat(fd).map_err(call("stat"))?;
        if (stat.st_uid, stat.st_gid) != (uid, gid) {
            upper::write_owner(fd.as_fd(), Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// Makes a staged counterpart visible at the node's place: the one step that changes what a reader sees.
    fn publish(&self, node: &Node, fd: OwnedFd, staged: Staged, stat: &Stat, mark: Mark) -> Result<()> {
        let backing = if matches!(mark, Mark::Meta(_)) { Backing::Meta } else { Backing::Upper };
        let mut staged = Some(staged);
        loop {
            let Some((parent, name)) = node.state.lock().places.first().cloned() else {
                // Unlinked while open: the bytes live as long as the descriptor.
                drop(staged);
                let mut state = node.state.lock();
                state.pinned = Some(Arc::new(fd));
                (state.backing, state.backing_ino) = (backing, stat.st_ino);
                return Ok(());
            };
            let dir = self.upper_dir(parent)?;
            let mut guard = dir.dir.write();
            if node.state.lock().places.first() != Some(&(parent, name.clone())) {
                continue;
            }
            let state = self.loaded(&dir, &mut guard)?;
            let at = self.backing_fd(&dir)?;
            let before = rustix::fs::fstat(&at).map_err(call("stat"))?;
            let Some(staged) = staged.take() else { return Err(Error::Stale(node.ino)) };
            staged.publish(at.as_fd(), &name).map_err(call("rename"))?;
            let present = Present {
                ino: node.ino,
                kind: node.kind,
                origin: node.lower,
                meta: backing == Backing::Meta,
                backing_ino: stat.st_ino,
            };
            self.set_entry(&dir, state, name.as_bytes(), Entry::Present(present))?;
            {
                let mut state = node.state.lock();
                (state.backing, state.backing_ino) = (backing, stat.st_ino);
            }
            self.table.close(node.ino);
            return put_times_back(&at, &before);
        }
    }

    /// Makes sure that a directory has its counterpart in the upper, and so all the directories above it.
    pub(super) fn upper_dir(&self, ino: Ino) -> Result<Arc<Node>> {
        let node = self.node(ino)?;
        must_be_dir(&node)?;
        if node.backing() == Backing::Upper {
            return Ok(node);
        }
        let changing = node.change.lock();
        if node.backing() == Backing::Upper {
            drop(changing);
            return Ok(node);
        }
        let lower = node.lower.ok_or(Error::Stale(ino))?;
        if node.is_gone() {
            return Err(Error::NotFound);
        }
        let base = self.node_attr(&node)?;
        let (fd, staged) = self.staging.directory().map_err(call("create a staging directory"))?;
        upper::write_mark(fd.as_fd(), Mark::Dir(lower))?;
        self.own(&fd, base.uid, base.gid)?;
        let held = upper::write_mode(fd.as_fd(), Kind::Dir, base.mode, None)?;
        let times = (SetTime::At(base.atime), SetTime::At(base.mtime));
        upper::write_times(fd.as_fd(), Some(times.0), Some(times.1))?;
        let stat = rustix::fs::fstat(&fd).map_err(call("stat"))?;
        *node.dir.write() = Some(DirState::default());
        self.publish(&node, fd, staged, &stat, Mark::Dir(lower))?;
        node.state.lock().mode = Some(held);
        drop(changing);
        Ok(node)
    }

    /// Applies a change to an entry whose counterpart is there. The caller holds its `change` lock.
    fn apply(&self, node: &Node, change: &SetAttr) -> Result<()> {
        if *change == SetAttr::default() {
            return Ok(());
        }
        let fd = self.backing_fd(node)?;
        if let Some(size) = change.size {
            rustix::fs::ftruncate(&fd, size).map_err(call("truncate"))?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let held = self.held_mode(node, &fd)?;
            let before = rustix::fs::fstat(&fd).map_err(call("stat"))?;
            upper::write_owner(fd.as_fd(), change.uid, change.gid)?;
            // The kernel takes setuid and setgid from a file that changes hands; bits held in the attribute too.
            if let Some(mode) = held.filter(|mode| mode & 0o6000 != 0 && node.kind == Kind::File) {
                let after = rustix::fs::fstat(&fd).map_err(call("stat"))?;
                let taken = (before.st_mode & !after.st_mode) & 0o6000;
                let held = upper::write_mode(fd.as_fd(), node.kind, mode & !taken, held)?;
                node.state.lock().mode = Some(held);
            }
        }
        if let Some(mode) = change.mode {
            let old = self.held_mode(node, &fd)?;
            let held = upper::write_mode(fd.as_fd(), node.kind, mode, old)?;
            node.state.lock().mode = Some(held);
        }
        if change.atime.is_some() || change.mtime.is_some() {
            upper::write_times(fd.as_fd(), change.atime, change.mtime)?;
        }
        Ok(())
    }
}

/// Gives a directory back the times it had before a copy-up touched it.
fn put_times_back(dir: &OwnedFd, before: &Stat) -> Result<()> {
    let time = |sec, nsec| Some(SetTime::At(Time { sec, nsec: u32::try_from(nsec).unwrap_or(0) }));
    upper::write_times(
        dir.as_fd(),
        time(before.st_atime, before.st_atime_nsec),
        time(before.st_mtime, before.st_mtime_nsec),
    )
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
