//! Copy-up: gives a lower entry its backing file in the upper.
//!
//! `materialize` makes the copy in the staging directory, before any directory is locked. The last step is a rename
//! into the upper, under the lock of the directory. For a reader, a directory does not change when a file in it is
//! copied up, so the times of the directory are set back.
//!
//! The library's bytes are written out before the copy gets its name. After a loss of power a file therefore has its
//! old bytes or its new ones. `settle` covers files that a program empties.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::Stat;

use super::dir::{DirState, Entry};
use super::error::{Error, Result, upper as call};
use super::read::{must_be_dir, must_be_file};
use super::table::{InUpper, Node};
use super::types::{Ino, Kind, SetAttr, SetTime};
use super::{Namespace, View, backing};
use crate::materialize::staging::Staged;
use crate::space::upper::entry::Present;
use crate::space::upper::mark::Mark;
use crate::sys::{boot, fd};

/// How much of a file is to be in the upper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CopyUp {
    /// The attributes.
    Metadata,
    /// The bytes as well, this many from the start.
    Data(u64),
}

impl Namespace {
    /// Opens a regular file for writing. It is copied up first if its bytes are still the lower's.
    ///
    /// # Errors
    /// `IsADirectory` or `Invalid` for any other kind of entry, and the errors of a copy-up.
    pub(crate) fn writable(&self, ino: Ino) -> Result<Arc<OwnedFd>> {
        let node = self.for_write(ino)?;
        if node.in_upper() != InUpper::All {
            return Err(Error::Stale(node.ino));
        }
        self.backing_fd(&node)
    }

    fn for_write(&self, ino: Ino) -> Result<Arc<Node>> {
        if let View::Node(node) = self.view(ino)? {
            must_be_file(node.kind)?;
            if node.in_upper() == InUpper::All {
                return Ok(node);
            }
        }
        self.copy_up(ino, CopyUp::Data(u64::MAX), &SetAttr::default())
    }

    /// Copies up as much of an entry as `how` says, with `change` applied in the same step. If that much is in the
    /// upper already, only applies `change`. Not for directories.
    pub(super) fn copy_up(&self, ino: Ino, how: CopyUp, change: &SetAttr) -> Result<Arc<Node>> {
        let node = self.node(ino)?;
        if node.kind == Kind::Dir {
            return Err(Error::IsADirectory);
        }
        let changing = node.change.lock();
        let in_upper = node.in_upper();
        if in_upper == InUpper::All || (in_upper == InUpper::Metadata && how == CopyUp::Metadata) {
            self.apply(&node, change)?;
        } else {
            self.copy_up_locked(&node, in_upper, how, change)?;
        }
        drop(changing);
        Ok(node)
    }

    /// The backing file of an entry; None if it has none.
    pub(crate) fn existing_fd(&self, ino: Ino) -> Result<Option<Arc<OwnedFd>>> {
        match self.view(ino)? {
            View::Node(node) if node.in_upper() != InUpper::Nothing => Ok(Some(self.backing_fd(&node)?)),
            View::Node(_) | View::Lower(_) => Ok(None),
        }
    }

    /// The backing file of an entry, which is copied up first if it has none.
    pub(crate) fn changed_fd(&self, ino: Ino) -> Result<Arc<OwnedFd>> {
        let node = match self.node(ino)?.kind {
            Kind::Dir => self.upper_dir(ino)?,
            _ => self.copy_up(ino, CopyUp::Metadata, &SetAttr::default())?,
        };
        self.backing_fd(&node)
    }

    /// Notes that an extended attribute of an entry has changed.
    pub(crate) fn attribute_changed(&self, ino: Ino) {
        if let Ok(View::Node(node)) = self.view(ino) {
            self.release_ctime(&node);
        }
    }

    fn copy_up_locked(&self, node: &Node, in_upper: InUpper, how: CopyUp, change: &SetAttr) -> Result<()> {
        let lower = node.lower.ok_or(Error::Stale(node.ino))?;
        let base = self.node_attr(node)?;
        let (file, staged, mark) = match how {
            CopyUp::Data(len) => {
                let copy = self.materializer.private_copy(lower, len)?;
                let emptied = len == 0 && base.size > 0;
                let mark = if emptied { Mark::Emptied(lower, boot::this()) } else { Mark::Data(lower) };
                // The device writes while the attributes are set. Not before a truncation, which would wait for the
                // device.
                if change.size.is_none() {
                    fd::start_writeback(&copy.file);
                }
                (copy.file, copy.staged, mark)
            }
            CopyUp::Metadata => {
                let (file, staged) = self.staging.file().map_err(call("create a staging file"))?;
                (file, staged, Mark::Meta(lower))
            }
        };
        backing::write_mark(file.as_fd(), mark)?;
        if in_upper == InUpper::Metadata {
            backing::copy_xattrs(self.backing_fd(node)?.as_fd(), file.as_fd())?;
        }
        if let Some(size) = change.size {
            rustix::fs::ftruncate(&file, size).map_err(call("truncate"))?;
        }
        let (uid, gid) = (change.uid.unwrap_or(base.uid), change.gid.unwrap_or(base.gid));
        self.own(&file, uid, gid)?;
        let held = backing::write_mode(file.as_fd(), node.kind, change.mode.unwrap_or(base.mode), None)?;
        let mtime = change.mtime.or(change.size.map(|_| SetTime::Now)).unwrap_or(SetTime::At(base.mtime));
        backing::write_times(
            file.as_fd(),
            Some(change.atime.unwrap_or(SetTime::At(base.atime))),
            Some(mtime),
        )?;
        let stat = rustix::fs::fstat(&file).map_err(call("stat"))?;
        if matches!(mark, Mark::Data(_)) && stat.st_size > 0 {
            self.staging.write_out(&file).map_err(call("write out"))?;
        }
        self.publish(node, file.into(), staged, &stat, mark)?;
        node.state.lock().mode = Some(held);
        if matches!(mark, Mark::Emptied(..)) {
            self.was_emptied(node, Some(lower));
        }
        Ok(())
    }

    /// Renames a staged backing file to the place of its node. This is the step that makes the copy-up visible.
    fn publish(&self, node: &Node, fd: OwnedFd, staged: Staged, stat: &Stat, mark: Mark) -> Result<()> {
        let in_upper = if matches!(mark, Mark::Meta(_)) { InUpper::Metadata } else { InUpper::All };
        let mut staged = Some(staged);
        loop {
            let Some((parent, name)) = node.state.lock().places.first().cloned() else {
                // The entry was unlinked while it was open. Its bytes live as long as the descriptor.
                drop(staged);
                let mut state = node.state.lock();
                let before = state.pinned.replace(Arc::new(fd));
                (state.in_upper, state.backing_ino) = (in_upper, stat.st_ino);
                drop(state);
                drop(before);
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
            // Until the node has the new file, other threads use the old one.
            self.pin(node)?;
            if let Err(errno) = staged.publish(at.as_fd(), &name) {
                node.unpin();
                return Err(call("rename")(errno));
            }
            let present = Present {
                ino: node.ino,
                kind: node.kind,
                origin: node.lower,
                meta: in_upper == InUpper::Metadata,
                backing_ino: stat.st_ino,
            };
            self.set_entry(&dir, state, name.as_bytes(), Entry::Present(present))?;
            {
                let mut state = node.state.lock();
                (state.in_upper, state.backing_ino) = (in_upper, stat.st_ino);
            }
            self.table.close(node.ino);
            if in_upper == InUpper::All {
                self.keep_created(node.ino, node.kind, fd);
            }
            node.unpin();
            // The copy-up is done, so a failure to set the times of the directory back is only logged.
            let hidden =
                backing::put_times_back(&at, &before).and_then(|()| self.keep_ctime(&dir, &at, &before));
            if let Err(error) = hidden {
                tracing::warn!(%error, "a directory shows the time of a copy-up as its own");
            }
            return Ok(());
        }
    }

    /// Makes sure that a directory is in the upper, and with it all directories above it.
    pub(super) fn upper_dir(&self, ino: Ino) -> Result<Arc<Node>> {
        // Every change of the upper calls this first. It must not come before the record in `state.json`.
        self.recorded.wait();
        let node = self.node(ino)?;
        must_be_dir(&node)?;
        if node.in_upper() == InUpper::All {
            return Ok(node);
        }
        let changing = node.change.lock();
        if node.in_upper() == InUpper::All {
            drop(changing);
            return Ok(node);
        }
        let lower = node.lower.ok_or(Error::Stale(ino))?;
        if node.is_gone() {
            return Err(Error::NotFound);
        }
        let base = self.node_attr(&node)?;
        let (fd, staged) = self.staging.directory().map_err(call("create a staging directory"))?;
        backing::write_mark(fd.as_fd(), Mark::Dir(lower))?;
        self.own(&fd, base.uid, base.gid)?;
        let held = backing::write_mode(fd.as_fd(), Kind::Dir, base.mode, None)?;
        let times = (SetTime::At(base.atime), SetTime::At(base.mtime));
        backing::write_times(fd.as_fd(), Some(times.0), Some(times.1))?;
        backing::write_ctime(&fd, base.kept_ctime())?;
        let stat = rustix::fs::fstat(&fd).map_err(call("stat"))?;
        *node.dir.write() = Some(DirState::default());
        self.publish(&node, fd, staged, &stat, Mark::Dir(lower))?;
        {
            let mut state = node.state.lock();
            (state.mode, state.ctime) = (Some(held), Some(Some(base.kept_ctime())));
        }
        drop(changing);
        Ok(node)
    }
}
