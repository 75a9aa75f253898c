//! Rename and exchange: the operations that change two directories.
//!
//! First, everything that the rename needs is copied up, which no reader can see. The change itself is one
//! `renameat2` system call. It moves the entry, replaces the target, and leaves a whiteout if the lower has the old
//! name. So a reader sees the state before the rename or after it. A lower directory is renamed in this way as well,
//! so no rename fails with EXDEV.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, RenameFlags};

use super::dir::{DirState, Entry};
use super::table::{Locked, Node};
use super::types::{Attr, Error, Ino, Kind, Result, upper as call};
use super::whiteout::{Move, Whiteouts};
use super::{Found, Namespace, backing, c_name};
use crate::materialize::staging::Staged;
use crate::space::upper::entry::Present;

/// What a rename does if there is an entry under the new name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// It replaces that entry.
    Replace,
    /// It fails.
    NoReplace,
    /// The two entries change places.
    Exchange,
}

impl Namespace {
    /// Renames an entry.
    ///
    /// # Errors
    /// Those of rename(2) on a local filesystem, except EXDEV.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let (name, new_name) = (c_name(name)?, c_name(new_name)?);
        if self.renamed_before((parent, &name), (new_parent, &new_name), mode)? {
            return Ok(());
        }
        self.write_out_what_replaces((parent, &name), (new_parent, &new_name));
        if mode == RenameMode::Exchange {
            self.write_out_what_replaces((new_parent, &new_name), (parent, &name));
        }
        let _renames = self.renames.lock();
        let source = self.look(parent, &name)?;
        let target = match self.look(new_parent, &new_name) {
            Ok(target) => Some(target),
            Err(Error::NotFound) => None,
            Err(error) => return Err(error),
        };
        let (source, target) = (&source.attr, target.as_ref().map(|target| &target.attr));
        if !self.wanted(source, parent, new_parent, target, mode)? {
            return Ok(());
        }
        let source = self.bring_up(source.ino)?;
        let target = match (target, mode) {
            (Some(target), RenameMode::Exchange) => Some(self.bring_up(target.ino)?),
            (Some(target), _) => Some(self.node(target.ino)?),
            (None, _) => None,
        };
        let (dir, new_dir) = (self.upper_dir(parent)?, self.upper_dir(new_parent)?);
        match (mode, &target) {
            (RenameMode::Exchange, Some(target)) => {
                self.exchange_locked((&dir, &name, &source), (&new_dir, &new_name, target))
            }
            _ => self.move_locked((&dir, &name, &source), (&new_dir, &new_name), target.as_ref()),
        }
    }

    /// Checks what rename(2) checks, before anything is changed. Returns false when there is nothing to do.
    fn wanted(
        &self,
        source: &Attr,
        parent: Ino,
        new_parent: Ino,
        target: Option<&Attr>,
        mode: RenameMode,
    ) -> Result<bool> {
        if source.kind == Kind::Dir && self.is_below(new_parent, source.ino)? {
            return Err(Error::Invalid("a directory cannot move into itself"));
        }
        let Some(target) = target else {
            return if mode == RenameMode::Exchange { Err(Error::NotFound) } else { Ok(true) };
        };
        match mode {
            RenameMode::NoReplace => return Err(Error::Exists),
            RenameMode::Exchange => {
                if target.kind == Kind::Dir && self.is_below(parent, target.ino)? {
                    return Err(Error::Invalid("a directory cannot move into itself"));
                }
                return Ok(target.ino != source.ino);
            }
            RenameMode::Replace => {}
        }
        if target.ino == source.ino {
            return Ok(false);
        }
        match (source.kind == Kind::Dir, target.kind == Kind::Dir) {
            (true, false) => Err(Error::NotADirectory),
            (false, true) => Err(Error::IsADirectory),
            (false, false) => Ok(true),
            (true, true) => {
                let node = self.node(target.ino)?;
                let is_empty = self.with_dir(&node, |state| self.is_empty(&node, state))?;
                if is_empty { Ok(true) } else { Err(Error::NotEmpty) }
            }
        }
    }

    /// Whether `at` is the directory `above` or is below it.
    fn is_below(&self, mut at: Ino, above: Ino) -> Result<bool> {
        loop {
            if at == above {
                return Ok(true);
            }
            if at == Ino::ROOT {
                return Ok(false);
            }
            at = self.parent_of(&self.view(at)?)?;
        }
    }

    fn move_locked(
        &self,
        (dir, name, source): (&Arc<Node>, &CString, &Arc<Node>),
        (new_dir, new_name): (&Arc<Node>, &CString),
        target: Option<&Arc<Node>>,
    ) -> Result<()> {
        let target_dir = target.filter(|target| target.kind == Kind::Dir);
        let mut involved = vec![dir, new_dir];
        involved.extend(target_dir);
        let mut locked = Locked::new(&involved);
        let present = self.present_at(dir, name, source, &mut locked)?;
        let new_state = self.loaded(new_dir, locked.of(new_dir)?)?;
        if new_dir.is_gone() {
            return Err(Error::NotFound);
        }
        let covered = new_state.get(new_name.as_bytes()) == Some(Entry::Whiteout);
        let in_upper = matches!(new_state.get(new_name.as_bytes()), Some(Entry::Present(_)));
        // Unlink and create do not take the rename lock, so the target may have changed since it was looked up.
        let now = self.find(new_dir, new_state, new_name.as_bytes())?.map(|found| match found {
            Found::Lower(lower) => self.ino_of(lower),
            Found::Upper(present) => present.ino,
        });
        if now != target.map(|target| target.ino) {
            return Err(Error::Stale(source.ino));
        }
        let (at, new_at) = (self.backing_fd(dir)?, self.backing_fd(new_dir)?);
        let mut stand_in = None;
        if let Some(target) = target_dir {
            let state = self.loaded(target, locked.of(target)?)?;
            if !self.is_empty(target, state)? {
                return Err(Error::NotEmpty);
            }
            // A target that shows no entries can still hold whiteouts, but rename(2) replaces only an empty
            // directory.
            if in_upper && !state.is_silent() {
                stand_in = Some(self.stand_in(target)?);
            }
        }
        let in_lower = self.lower_child(dir, name.as_bytes())?.is_some();
        self.pin(source)?;
        let ino = present.backing_ino;
        let step = Move { at: at.as_fd(), name, new_at: new_at.as_fd(), new_name, ino, in_lower };
        // A file replaces a whiteout by a plain rename. A directory, and a file that has to leave a marked whiteout
        // behind, change places with it.
        let changes_places =
            covered && (source.kind == Kind::Dir || (in_lower && self.whiteouts == Whiteouts::Marked));
        let done = target.map_or(Ok(()), |target| self.hold(target));
        self.about_to_change(source.ino);
        let done = done.and_then(|()| match (changes_places, stand_in) {
            (true, _) => over_whiteout(&step),
            (false, Some(stand_in)) => self.move_over_stand_in(&step, stand_in),
            (false, None) => self.move_plainly(&step),
        });
        let left = done.inspect_err(|_| {
            source.unpin();
            if let Some(target) = target {
                self.unhold(target);
            }
        })?;
        let state = self.loaded(dir, locked.of(dir)?)?;
        self.set_entry(dir, state, name.as_bytes(), left)?;
        let new_state = self.loaded(new_dir, locked.of(new_dir)?)?;
        self.set_entry(new_dir, new_state, new_name.as_bytes(), Entry::Present(present))?;
        moved(source, (dir.ino, name), (new_dir.ino, new_name));
        if let Some(target) = target_dir {
            *locked.of(target)? = Some(DirState::default());
        }
        drop(locked);
        source.unpin();
        self.release_ctime(source);
        if let Some(target) = target {
            self.unlinked(target, new_dir.ino, new_name);
        }
        Ok(())
    }

    fn exchange_locked(
        &self,
        (dir, name, source): (&Arc<Node>, &CString, &Arc<Node>),
        (new_dir, new_name, target): (&Arc<Node>, &CString, &Arc<Node>),
    ) -> Result<()> {
        let mut locked = Locked::new(&[dir, new_dir]);
        let one = self.present_at(dir, name, source, &mut locked)?;
        let two = self.present_at(new_dir, new_name, target, &mut locked)?;
        let (at, new_at) = (self.backing_fd(dir)?, self.backing_fd(new_dir)?);
        self.pin(source)?;
        self.about_to_change(source.ino);
        let done = self.pin(target).and_then(|()| {
            rustix::fs::renameat_with(&at, name, &new_at, new_name, RenameFlags::EXCHANGE)
                .map_err(call("rename"))
        });
        done.inspect_err(|_| {
            source.unpin();
            target.unpin();
        })?;
        let state = self.loaded(dir, locked.of(dir)?)?;
        self.set_entry(dir, state, name.as_bytes(), Entry::Present(two))?;
        let state = self.loaded(new_dir, locked.of(new_dir)?)?;
        self.set_entry(new_dir, state, new_name.as_bytes(), Entry::Present(one))?;
        moved(source, (dir.ino, name), (new_dir.ino, new_name));
        moved(target, (new_dir.ino, new_name), (dir.ino, name));
        drop(locked);
        source.unpin();
        target.unpin();
        self.release_ctime(source);
        self.release_ctime(target);
        Ok(())
    }

    /// The entry of the upper under a name, if it is still that of `node`.
    fn present_at(
        &self,
        dir: &Node,
        name: &CString,
        node: &Node,
        locked: &mut Locked<'_>,
    ) -> Result<Present> {
        match self.loaded(dir, locked.of(dir)?)?.get(name.as_bytes()) {
            Some(Entry::Present(present)) if present.ino == node.ino => Ok(present),
            _ => Err(Error::NotFound),
        }
    }

    /// Makes an empty directory that looks like `target`, which holds only whiteouts. It takes the place of `target`
    /// for the moment before the rename replaces it.
    fn stand_in(&self, target: &Node) -> Result<Staged> {
        let old = self.backing_fd(target)?;
        let stat = rustix::fs::fstat(&old).map_err(call("stat"))?;
        let (fd, staged) = self.staging.directory().map_err(call("mkdir"))?;
        self.own(&fd, stat.st_uid, stat.st_gid)?;
        let mode = self.held_mode(target, &old)?.unwrap_or(stat.st_mode);
        backing::write_mode(fd.as_fd(), Kind::Dir, mode, None)?;
        backing::copy_xattrs(old.as_fd(), fd.as_fd())?;
        backing::put_times_back(&fd, &stat)?;
        Ok(staged)
    }

    /// Renames to a free name, or over an entry that rename(2) can replace.
    fn move_plainly(&self, step: &Move<'_>) -> Result<Left> {
        if step.in_lower {
            self.whiteouts.moved(&self.staging, step)?;
            return Ok(Some(Entry::Whiteout));
        }
        step.rename(RenameFlags::empty())?;
        Ok(None)
    }

    /// Renames a directory over one that holds whiteouts. The stand-in takes the target's place first; both look the
    /// same.
    fn move_over_stand_in(&self, step: &Move<'_>, mut stand_in: Staged) -> Result<Left> {
        let Move { new_at, new_name, .. } = *step;
        let before = rustix::fs::fstat(new_at).map_err(call("stat"))?;
        stand_in.exchange(new_at, new_name, true).map_err(call("rename"))?;
        self.move_plainly(step).inspect_err(|_| {
            // The target goes back to its place.
            if let Err(errno) = stand_in.exchange(new_at, new_name, true) {
                tracing::error!(name = ?new_name, %errno, "a rename failed, and the directory that it would have replaced could not be put back");
                stand_in.keep();
            }
            if let Err(error) = backing::put_times_back(&new_at, &before) {
                tracing::warn!(%error, "a directory shows the time of a failed rename as its own");
            }
        })
    }
}

/// What the upper has under the old name after the step of a rename that becomes visible. Such a step succeeds as a whole
/// or changes nothing.
type Left = Option<Entry>;

/// Renames over a whiteout: the two change places, which rename(2) allows for a directory as well. If the lower does not
/// have the old name, the whiteout is of no use there, and is removed.
fn over_whiteout(step: &Move<'_>) -> Result<Left> {
    step.rename(RenameFlags::EXCHANGE)?;
    if !step.in_lower {
        match rustix::fs::unlinkat(step.at, step.name, AtFlags::empty()) {
            Ok(()) => return Ok(None),
            Err(errno) => {
                tracing::warn!(name = ?step.name, %errno, "cannot remove a whiteout that hides nothing; it does no harm");
            }
        }
    }
    Ok(Some(Entry::Whiteout))
}

/// Notes the new place of an entry.
fn moved(node: &Node, (from, name): (Ino, &CString), (to, new_name): (Ino, &CString)) {
    let mut state = node.state.lock();
    state.places.retain(|(at, known)| !(*at == from && known == name));
    if !state.places.iter().any(|(at, known)| *at == to && known == new_name) {
        state.places.push((to, new_name.clone()));
    }
}
