//! Makes names show again what the lower has under them: the steps of a reset.
//!
//! A step takes what the upper has under one name away, by one rename or unlink. So a reader sees the entry from before
//! the step or the one after it, and so does the next mount after a crash. The caller has frozen the space and tells the
//! kernel afterwards which names to look up again.
//!
//! Open files keep the entry that they opened: it has no name any more, as after a rename over it. But its inode number is
//! that of the lower node which now shows again, and one number cannot stand for both. Such a lower node shows under
//! another number, an *alias*, until the end of the mount, also if the
//! worker is replaced (`handoff`). The next mount gives it its own number again.
//!
//! Limit: programs of 32 bits cannot stat an entry with an alias.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use rustix::fs::AtFlags;

use super::dir::{DirState, Entry};
use super::read::MOTHER;
use super::table::{InUpper, Node};
use super::types::{Error, Ino, Kind, Result, SetAttr, upper as call};
use super::{Namespace, Owner, View, backing, c_name};
use crate::handoff::Handoff;
use crate::library::index::NodeId;
use crate::space::upper::entry::Present;

/// The first alias. It is above the numbers of created entries and below those with large numbers.
pub(super) const FIRST_ALIAS: u64 = 1 << 40;
const PAST_ALIASES: u64 = 1 << 48;

/// The lower nodes that show under another number.
#[derive(Debug)]
pub(super) struct Aliases {
    /// There are some. Else nobody takes the lock.
    any: AtomicBool,
    /// A leaf lock.
    of: RwLock<(HashMap<NodeId, Ino>, u64)>,
    /// The files in the upper that aliases had when an earlier worker died, with their origins.
    backing: HashMap<u64, (NodeId, Ino)>,
}

impl Aliases {
    /// The aliases that an earlier worker gave.
    pub(super) fn new(handoff: &Handoff) -> Self {
        let (mut of, mut backing, mut next) = (HashMap::new(), HashMap::new(), 0);
        for alias in handoff.held().aliases() {
            let (lower, ino) = (NodeId(alias.lower), Ino(FIRST_ALIAS + next));
            of.insert(lower, ino);
            backing
                .extend(alias.backing.into_iter().filter(|file| *file != 0).map(|file| (file, (lower, ino))));
            next += 1;
        }
        Self { any: AtomicBool::new(next > 0), of: RwLock::new((of, next)), backing }
    }

    pub(super) fn get(&self, lower: NodeId) -> Option<Ino> {
        if self.any.load(Ordering::Acquire) { self.of.read().0.get(&lower).copied() } else { None }
    }

    fn add(&self, handoff: &Handoff, lower: NodeId) -> Ino {
        let mut of = self.of.write();
        let ino = Ino(FIRST_ALIAS + of.1);
        of.1 += 1;
        of.0.insert(lower, ino);
        handoff.held().add_alias(lower.0);
        self.any.store(true, Ordering::Release);
        ino
    }

    /// The position of an alias; None for any other number.
    pub(super) fn position(ino: Ino) -> Option<u64> {
        ino.0.checked_sub(FIRST_ALIAS).filter(|position| *position < PAST_ALIASES - FIRST_ALIAS)
    }

    /// An entry of the upper, under the number that an earlier worker gave it.
    pub(super) fn known(&self, present: Present) -> Present {
        match self.backing.get(&present.backing_ino) {
            Some((lower, ino)) if present.origin == Some(*lower) => Present { ino: *ino, ..present },
            _ => present,
        }
    }
}

/// What the kernel has to ask for again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stale {
    /// A name in a directory.
    Name(Ino, CString),
    /// The attributes of an entry.
    Attributes(Ino),
}

impl Namespace {
    /// The number under which a lower node shows where the upper does not mention it.
    pub(super) fn ino_of(&self, lower: NodeId) -> Ino {
        self.aliases.get(lower).unwrap_or(Ino::of_lower(lower))
    }

    /// The node of a lower node that shows under an alias, with `count` lookups added.
    pub(super) fn aliased(&self, lower: NodeId, count: u32) -> Option<Arc<Node>> {
        let node = self.table.get(self.aliases.get(lower)?)?;
        // It is in the table for good, so this adds to the same node.
        Some(self.table.acquire(node.ino, count, || Arc::clone(&node)))
    }

    /// The root directory of the upper.
    #[must_use]
    pub fn upper_root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The attributes of lower entries.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Makes the entry at a path show what the lower has there, and returns what the kernel has to ask for again. None if
    /// the upper has nothing there. The caller has frozen the space.
    ///
    /// # Errors
    /// When the path does not lead anywhere, and those of the system calls. The entry is then as it was.
    pub fn revert(&self, path: &Path) -> Result<Option<Stale>> {
        // What is below a directory is looked for in the table.
        self.finish_adoption();
        let Some((parent, name)) = self.place_at(path)? else { return Err(Error::NotFound) };
        let _renames = self.renames.lock();
        let View::Node(dir) = self.view(parent)? else { return Ok(None) };
        let Some(found) = self.with_dir(&dir, |state| Ok(state.get(name.to_bytes())))? else {
            return Ok(None);
        };
        let node = match found {
            Entry::Present(present) => Some(self.entry_node(&dir, &name, present, 0)),
            Entry::Whiteout | Entry::Damaged => None,
        };
        let is_dir = node.as_ref().is_some_and(|node| node.kind == Kind::Dir) || found == Entry::Damaged;
        let below = node.iter().filter(|_| is_dir).flat_map(|node| self.below(node)).collect::<Vec<_>>();
        let mut guard = dir.dir.write();
        let at = self.backing_fd(&dir)?;
        let before = rustix::fs::fstat(&at).map_err(call("stat"))?;
        // Files that are open must not be opened by their names any more.
        let pinned = node.iter().chain(&below).try_for_each(|node| self.hold(node)).and_then(|()| {
            if !is_dir {
                rustix::fs::unlinkat(&at, &name, AtFlags::empty()).map_err(call("unlink"))?;
                return Ok(None);
            }
            let junk = self.staging.fresh_name();
            rustix::fs::renameat(&at, &name, self.staging.dir(), &junk).map_err(call("rename"))?;
            Ok(Some(self.staging.adopt(junk, true)))
        });
        let junk = pinned.inspect_err(|_| node.iter().chain(&below).for_each(|node| self.unhold(node)))?;
        for below in &below {
            self.gone_with_its_directory(below);
        }
        if let Some(node) = &node {
            if is_dir {
                self.gone_with_its_directory(node);
            } else {
                self.unlinked(node, parent, &name);
            }
        }
        let state = self.loaded(&dir, &mut guard)?;
        let lower = self.lower_child(&dir, name.to_bytes())?;
        if let Some(lower) = lower {
            self.make_aliases(lower)?;
        }
        self.set_entry(&dir, state, name.to_bytes(), None)?;
        if node.as_ref().is_some_and(|node| node.lower.is_some() && node.lower == lower) {
            // For a reader of the directory, no entry came or went.
            let hidden =
                backing::put_times_back(&at, &before).and_then(|()| self.keep_ctime(&dir, &at, &before));
            if let Err(error) = hidden {
                tracing::warn!(%error, "a directory shows the time of a reset as its own");
            }
        }
        drop(guard);
        // The kernel may have forgotten some of them already, so that no FORGET comes.
        node.iter().chain(&below).for_each(|node| self.drop_if_unknown(node.ino));
        // Removed without a lock, because it can be large.
        drop(junk);
        Ok(Some(Stale::Name(parent, name)))
    }

    /// Gives a directory the attributes that it has in the lower. The caller has frozen the space.
    ///
    /// # Errors
    /// As [`Namespace::setattr`].
    pub fn revert_dir(&self, path: &Path) -> Result<Stale> {
        let ino = match self.place_at(path)? {
            Some((parent, name)) => self.must_show(parent, &name)?.ino,
            None if path.as_os_str().is_empty() => Ino::ROOT,
            None => return Err(Error::NotFound),
        };
        if let Some(fd) = self.existing_fd(ino)? {
            for name in backing::list_xattrs(fd.as_fd())?.split_inclusive(|byte| *byte == 0) {
                if let Ok(name) = std::ffi::CStr::from_bytes_with_nul(name) {
                    backing::remove_xattr(fd.as_fd(), name)?;
                }
            }
        }
        let Owner { uid, gid, dir_mode } = self.owner;
        let pristine = SetAttr {
            mode: Some(dir_mode),
            uid: Some(uid),
            gid: Some(gid),
            atime: Some(MOTHER),
            mtime: Some(MOTHER),
            ..SetAttr::default()
        };
        self.setattr(ino, &pristine)?;
        Ok(Stale::Attributes(ino))
    }

    /// The nodes of all entries below a directory that the table has.
    fn below(&self, dir: &Arc<Node>) -> Vec<Arc<Node>> {
        let all = self.table.all();
        let parents: HashMap<Ino, Vec<Ino>> = all
            .iter()
            .map(|node| (node.ino, node.state.lock().places.iter().map(|(parent, _)| *parent).collect()))
            .collect();
        let is_below = |ino: Ino| {
            let mut at = ino;
            // No tree is deeper than this.
            for _ in 0..crate::space::upper::walk::MAX_DEPTH {
                let above = match parents.get(&at) {
                    Some(parents) => parents.first().copied(),
                    None => {
                        at.lower().and_then(|lower| Some(self.ino_of(self.index.node(lower).ok()?.parent)))
                    }
                };
                match above {
                    Some(above) if above == dir.ino => return true,
                    Some(above) if above != at && above != Ino::ROOT => at = above,
                    _ => return false,
                }
            }
            false
        };
        let below = |node: &Arc<Node>| {
            let parents = parents.get(&node.ino).map(Vec::as_slice).unwrap_or_default();
            parents.iter().any(|parent| *parent == dir.ino || is_below(*parent))
        };
        all.iter().filter(|node| node.ino != dir.ino && below(node)).cloned().collect()
    }

    /// Notes that an entry has lost all its names with the directory that they were in. A file with a further name
    /// elsewhere keeps that.
    fn gone_with_its_directory(&self, node: &Arc<Node>) {
        let links = {
            let state = node.state.lock();
            let names = state.places.len() as u64;
            match &state.pinned {
                Some(pin) if node.kind != Kind::Dir => rustix::fs::fstat(&pin.fd)
                    .map_or(1, |stat| u64::from(stat.st_nlink as u32).saturating_sub(names)),
                _ => 0,
            }
        };
        {
            let mut state = node.state.lock();
            state.places.clear();
            state.gone = links == 0;
        }
        if node.kind == Kind::Dir {
            *node.dir.write() = Some(DirState::of_removed());
        }
        self.table.close(node.ino);
        self.table.drop_unused(node.ino);
    }

    /// Gives an alias to each node at or below `lower` whose number stands for another entry: one without a name, which a
    /// program still has open.
    fn make_aliases(&self, lower: NodeId) -> Result<()> {
        let mut all = self.table.all();
        // A directory before what is below it.
        all.sort_by_key(|node| node.lower);
        for node in all {
            let Some(taken) = node.lower.filter(|taken| self.ino_of(*taken) == node.ino) else { continue };
            let mut at = taken;
            while at > lower {
                at = self.index.node(at)?.parent;
            }
            if at != lower {
                continue;
            }
            let found = self.index.node(taken)?;
            let place = (self.ino_of(found.parent), c_name(found.name)?);
            let alias = self.aliases.add(&self.handoff, taken);
            self.table.acquire(alias, 1, || {
                Node::new(alias, Some(taken), node.kind, vec![place], InUpper::Nothing, 0)
            });
        }
        Ok(())
    }
}
