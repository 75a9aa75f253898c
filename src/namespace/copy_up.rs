//! Copy-up, which gives a lower entry its backing file in the upper, and changes of attributes.
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
use super::read::must_be_dir;
use super::table::{InUpper, Node, Pin};
use super::types::{Attr, Error, Ino, Kind, Result, SetAttr, SetTime, Time, upper as call};
use super::{Namespace, View, backing};
use crate::materialize::staging::Staged;
use crate::space::upper::mark::{CTIME_XATTR, KeptCtime, Mark};
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
        let node = match self.file(ino)? {
            View::Lower(_) => self.copy_up(ino, CopyUp::Data(u64::MAX), &SetAttr::default())?,
            View::Node(node) => node,
        };
        if node.in_upper() != InUpper::All {
            return Err(Error::Stale(node.ino));
        }
        self.backing_fd(&node)
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

    /// Copies up an entry of any kind, so that it has a backing file. Its bytes are not copied.
    pub(super) fn bring_up(&self, ino: Ino) -> Result<Arc<Node>> {
        match self.node(ino)?.kind {
            Kind::Dir => self.upper_dir(ino),
            _ => self.copy_up(ino, CopyUp::Metadata, &SetAttr::default()),
        }
    }

    /// The backing file of an entry, which is copied up first if it has none.
    pub(crate) fn changed_fd(&self, ino: Ino) -> Result<Arc<OwnedFd>> {
        let node = self.bring_up(ino)?;
        self.backing_fd(&node)
    }

    /// Notes that an extended attribute of an entry has changed.
    pub(crate) fn attribute_changed(&self, ino: Ino) {
        if let Ok(View::Node(node)) = self.view(ino) {
            self.release_ctime(&node);
        }
    }

    fn copy_up_locked(
        &self,
        node: &Arc<Node>,
        in_upper: InUpper,
        how: CopyUp,
        change: &SetAttr,
    ) -> Result<()> {
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
        if in_upper == InUpper::Metadata {
            backing::copy_xattrs(self.backing_fd(node)?.as_fd(), file.as_fd())?;
        }
        if let Some(size) = change.size {
            rustix::fs::ftruncate(&file, size).map_err(call("truncate"))?;
        }
        let (held, stat) = self.prepare(&file, mark, &base, change)?;
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

    /// Gives a staged file its mark, and the attributes that the entry has after `change`. Returns the permission bits
    /// in the mode attribute, and the stat(2) of the file.
    fn prepare(
        &self,
        fd: &impl AsFd,
        mark: Mark,
        base: &Attr,
        change: &SetAttr,
    ) -> Result<(Option<u32>, Stat)> {
        backing::write_mark(fd.as_fd(), mark)?;
        self.own(fd, change.uid.unwrap_or(base.uid), change.gid.unwrap_or(base.gid))?;
        let held = backing::write_mode(fd.as_fd(), base.kind, change.mode.unwrap_or(base.mode), None)?;
        let atime = change.atime.unwrap_or(SetTime::At(base.atime));
        let mtime = change.mtime.or(change.size.map(|_| SetTime::Now)).unwrap_or(SetTime::At(base.mtime));
        backing::write_times(fd.as_fd(), Some(atime), Some(mtime))?;
        Ok((held, rustix::fs::fstat(fd).map_err(call("stat"))?))
    }

    /// Renames a staged backing file to the place of its node. This is the step that makes the copy-up visible.
    fn publish(&self, node: &Node, fd: OwnedFd, staged: Staged, stat: &Stat, mark: Mark) -> Result<()> {
        let in_upper = if matches!(mark, Mark::Meta(_)) { InUpper::Metadata } else { InUpper::All };
        loop {
            let Some((parent, name)) = node.state.lock().places.first().cloned() else {
                // The entry was unlinked while it was open. Its bytes live as long as the descriptor.
                drop(staged);
                let mut pin = Pin::new(Arc::new(fd));
                pin.hold(node.ino, &self.handoff);
                let mut state = node.state.lock();
                let before = state.pinned.replace(pin);
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
            // Until the node has the new file, other threads use the old one.
            self.pin(node)?;
            let noted = self.note_times(&dir, &at, &before);
            self.note_named(node, stat.st_ino);
            if let Err(errno) = staged.publish(at.as_fd(), &name) {
                self.times_are_back(noted);
                node.unpin();
                return Err(call("rename")(errno));
            }
            {
                let mut state = node.state.lock();
                (state.in_upper, state.backing_ino) = (in_upper, stat.st_ino);
            }
            self.set_entry(&dir, state, name.as_bytes(), Entry::Present(node.present()))?;
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
            self.times_are_back(noted);
            return Ok(());
        }
    }

    /// Makes sure that a directory is in the upper, and with it all directories above it.
    pub(super) fn upper_dir(&self, ino: Ino) -> Result<Arc<Node>> {
        // Every change of the upper calls this first. It must not come before the record in `state.json`.
        self.recorded.wait();
        let node = self.node(ino)?;
        must_be_dir(node.kind)?;
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
        let (held, stat) = self.prepare(&fd, Mark::Dir(lower), &base, &SetAttr::default())?;
        backing::write_ctime(&fd, base.kept_ctime())?;
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

/// Changes of mode, owner, times and size. A lower entry is copied up with the change already applied. For any other
/// entry, the backing file is changed.
///
/// Invariant: an error means that nothing changed. When one part of a change fails, the parts that were applied before
/// it are undone.
impl Namespace {
    /// Changes attributes, and returns the new ones. A change that changes nothing leaves the upper as it is.
    ///
    /// # Errors
    /// Those of a copy-up and of the system calls on the upper. The attributes are then as they were before.
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
        // As on any filesystem, chown clears setuid and setgid, even if the owner stays the same. FUSE leaves that to
        // us.
        let drops = change.drop_setid || change.uid.is_some() || change.gid.is_some();
        if drops && change.mode.is_none() && attr.setid_to_drop() != 0 {
            change.mode = Some(attr.mode & !attr.setid_to_drop());
        }
        let change = &change;
        // A change of the size always changes something, because it also sets the times.
        let asked = as_asked(attr, change);
        if change.size.is_none() && (Attr { ctime: attr.ctime, ..asked }) == attr {
            self.changed_before(ino, attr.kind);
            return Ok(attr);
        }
        let node = if attr.kind == Kind::Dir {
            let node = self.upper_dir(ino)?;
            let _change = node.change.lock();
            self.apply(&node, change)?;
            self.release_ctime(&node);
            Arc::clone(&node)
        } else {
            self.copy_up(ino, change.size.map_or(CopyUp::Metadata, CopyUp::Data), change)?
        };
        // The change is made, so a failure to read the new attributes is not an error of the operation.
        Ok(self.node_attr(&node).unwrap_or_else(|error| {
            tracing::warn!(?ino, %error, "cannot read the attributes after a change; answering those that were asked for");
            asked
        }))
    }

    /// Applies a change to an entry that has a backing file. The caller holds the `change` lock of the node.
    pub(super) fn apply(&self, node: &Arc<Node>, change: &SetAttr) -> Result<()> {
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
    fn apply_parts(&self, node: &Arc<Node>, fd: &Arc<OwnedFd>, change: &SetAttr) -> Result<()> {
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

    fn change_mode(&self, node: &Arc<Node>, fd: &Arc<OwnedFd>, mode: u32) -> Result<()> {
        let old = self.held_mode(node, fd)?;
        let held = backing::write_mode(fd.as_fd(), node.kind, mode, old)?;
        node.state.lock().mode = Some(held);
        Ok(())
    }

    /// Undoes the parts of a change that failed. The operation answers an error already, so a failure here is logged.
    fn undo(&self, node: &Arc<Node>, fd: &Arc<OwnedFd>, change: &SetAttr, (before, mode): (&Stat, u32)) {
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

/// Keeps the ctime of a directory when a file in it is copied up.
///
/// A copy-up changes the directory on disk, but not the directory that the space shows: no entry was created or
/// removed. Programs such as `tar` take a new ctime for a change. The times of access and modification can be set
/// back, but a ctime cannot. So the ctime to show is kept in the attribute `user.holofs.ctime`, together with the
/// mtime of the directory.
///
/// Invariant: the kept ctime counts only while the directory still has that mtime. Creating, removing and renaming
/// entries changes the mtime, so they end it without a further system call. A change of the directory's own
/// attributes removes the attribute.
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

/// The attributes that an entry has after a change.
fn as_asked(attr: Attr, change: &SetAttr) -> Attr {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let now = Time::new(now.tv_sec, now.tv_nsec);
    let time = |wanted: Option<SetTime>, old: Time| match wanted {
        None => old,
        Some(SetTime::At(time)) => time,
        Some(SetTime::Now) => now,
    };
    let size = change.size.unwrap_or(attr.size);
    Attr {
        mode: change.mode.map_or(attr.mode, |mode| mode & 0o7777),
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
