//! The merged view: what a space shows is its catalog's tree (the lower) with the space's own changes (the
//! upper) over it.
//!
//! It is not the place where bytes are made (`materialize`) nor where a request is understood (`fs`, `fuse`).
//!
//! # Invariants
//!
//! 1. A directory without a counterpart in the upper is pure lower, and so is everything below it: it costs no
//!    system call and no memory. The table holds an entry if and only if the upper has (or is about to have) it.
//! 2. An upper directory merges with the lower one that its mark names, wherever it stands; without a mark with
//!    none. So renaming a lower directory is one rename.
//! 3. Every change of the upper becomes visible in ONE system call, which is the last of its operation: whatever
//!    instant the daemon dies, the next mount shows the state before the operation or after it.
//! 4. A change that changes nothing leaves the upper as it is.
//!
//! # Lock order
//!
//! 1. `Namespace::renames`
//! 2. a node's `change`, a child's before its directory's
//! 3. nodes' `dir`, two or more by rising number
//! 4. a node's `state`
//! 5. the table, and then the leaf locks (open descriptors)
//!
//! No `dir`, `state` or table lock is held while bytes are copied.

mod apply;
pub(crate) mod backing;
pub(crate) mod change;
mod copy_up;
mod ctime;
mod dir;
pub mod error;
mod handle;
mod open;
pub(crate) mod read;
pub(crate) mod rename;
mod setattr;
mod settle;
mod table;
pub mod types;
mod whiteout;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::FileType;

use crate::library::index::{Index, Node as LowerNode, NodeId, NodeKind};
use crate::materialize::Materializer;
use crate::materialize::staging::Staging;
use dir::{DirState, Entry};
use error::{Error, Result, upper as call};
use settle::Unsettled;
use table::{InUpper, Node, Table, let_go};
use types::{Ino, Kind};
use whiteout::Whiteouts;

use crate::space::upper::entry::{self, Listed, OnDisk, Present};
use crate::space::upper::mark::{KeptCtime, Mark};
use crate::space::upper::types::TOO_MANY_NODES;

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// Who owns the lower entries, and with which bits their directories appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The mounting user.
    pub uid: u32,
    /// The mounting user's group.
    pub gid: u32,
    /// Permission bits of lower directories: 0750 less the user's umask, as rcc makes them.
    pub dir_mode: u32,
}

/// The merged view of one mounted space.
#[derive(Debug)]
pub struct Namespace {
    index: Arc<Index>,
    materializer: Arc<Materializer>,
    staging: Arc<Staging>,
    root: Arc<OwnedFd>,
    owner: Owner,
    table: Table,
    /// The kind that the upper's filesystem has.
    whiteouts: Whiteouts,
    /// Reading leaves times of access as they are.
    keeps_atime: bool,
    /// Held by every rename and rmdir: the first lock in the order.
    renames: Mutex<()>,
    unsettled: Unsettled,
    /// Set when the space's own record survives a loss of power: no change comes before it.
    recorded: OnceLock<()>,
}

/// What stands at a number.
enum View {
    /// A pure lower entry.
    Lower(NodeId),
    /// An entry that the table holds.
    Node(Arc<Node>),
}

/// What stands at a name.
enum Found {
    /// A pure lower entry.
    Lower(NodeId),
    /// An entry of the upper.
    Upper(Present),
}

impl Namespace {
    /// Opens the merged view over the upper directory `root`, which may be empty.
    ///
    /// # Errors
    /// When the upper cannot be read or cannot hold what it must (no user attributes on its filesystem).
    pub fn open(
        index: Arc<Index>,
        materializer: Arc<Materializer>,
        staging: Arc<Staging>,
        root: OwnedFd,
        owner: Owner,
    ) -> Result<Self> {
        if index.len() >= TOO_MANY_NODES {
            return Err(Error::NotSupported("an environment of more than a billion entries"));
        }
        let table = Table::new(index.len());
        let root = Arc::new(root);
        // A root without its mark is one that was just made: give it what rcc's root directory has.
        let parent = root.as_fd();
        if Mark::read(parent, c".", FileType::Directory)?.is_none() {
            backing::write_mode(parent, Kind::Dir, owner.dir_mode, None)?;
            backing::write_times(parent, Some(read::MOTHER), Some(read::MOTHER))?;
            let kept = KeptCtime { ctime: read::MOTHER_AS_TIME, mtime: read::MOTHER_AS_TIME };
            backing::write_ctime(&parent, kept)?;
            // The mark comes last: it says that the rest is done.
            backing::write_mark(parent, Mark::Dir(NodeId(0)))?;
        }
        let stat = rustix::fs::fstat(&root).map_err(call("stat"))?;
        table.acquire(Ino::ROOT, 1, || {
            Node::new(Ino::ROOT, Some(NodeId(0)), Kind::Dir, Vec::new(), InUpper::All, stat.st_ino)
        });
        table.keep_open(Ino::ROOT, &root);
        let whiteouts = Whiteouts::probe(&staging);
        whiteouts.finish_moves(&staging, root.as_fd());
        let renames = Mutex::new(());
        let (unsettled, recorded) = (Unsettled::default(), OnceLock::from(()));
        let keeps_atime = false;
        Ok(Self {
            index,
            materializer,
            staging,
            root,
            owner,
            table,
            whiteouts,
            keeps_atime,
            renames,
            unsettled,
            recorded,
        })
    }

    /// Has every change wait until [`Namespace::is_recorded`] is called.
    #[must_use]
    pub fn until_recorded(mut self) -> Self {
        self.recorded = OnceLock::new();
        self
    }

    /// Lets changes go on: the record of what they are changes of is safe, or never will be.
    pub fn is_recorded(&self) {
        self.recorded.get_or_init(|| ());
    }

    /// As on a filesystem that has no device whiteouts.
    #[cfg(test)]
    pub(crate) fn marking_whiteouts(self) -> Self {
        Self { whiteouts: Whiteouts::Marked, ..self }
    }

    /// From now on reading leaves times of access as they are.
    #[must_use]
    pub fn keeping_atime(self) -> Self {
        Self { keeps_atime: true, ..self }
    }

    /// Whether reading leaves times of access as they are.
    #[must_use]
    pub fn keeps_atime(&self) -> bool {
        self.keeps_atime
    }

    /// The compiled index of the lower tree.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Entries that the table holds: the changed ones that were looked at.
    #[must_use]
    pub fn table_len(&self) -> usize {
        self.table.len()
    }

    /// Whether a number is purely the library's now: nothing of it is in the upper, so looking at it waits for no disk.
    #[must_use]
    pub fn is_pure_lower(&self, ino: Ino) -> bool {
        ino.lower().is_some() && self.table.get(ino).is_none()
    }

    /// Closes the descriptors that are kept for speed only.
    pub fn close_kept(&self) {
        self.table.close_all();
    }

    /// The kernel gives back lookups.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.table.forget(ino, count);
    }

    fn view(&self, ino: Ino) -> Result<View> {
        if let Some(node) = self.table.get(ino) {
            return Ok(View::Node(node));
        }
        match ino.lower() {
            Some(lower) if lower.0 < self.index.len() => Ok(View::Lower(lower)),
            _ => Err(Error::Stale(ino)),
        }
    }

    /// The node of a number; a pure lower entry gets one, as the place where its copy-up is agreed on.
    fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        let lower = match self.view(ino)? {
            View::Node(node) => return Ok(node),
            View::Lower(lower) => lower,
        };
        let found = self.index.node(lower)?;
        let kind = Kind::of_lower(&found);
        let place = (Ino::of_lower(found.parent), c_name(found.name)?);
        Ok(self.table.acquire(ino, 0, || Node::new(ino, Some(lower), kind, vec![place], InUpper::Nothing, 0)))
    }

    /// Runs `f` with the state of an upper directory, reading it first if need be.
    fn with_dir<T>(&self, node: &Node, f: impl FnOnce(&DirState) -> Result<T>) -> Result<T> {
        if let Some(state) = &*node.dir.read() {
            return f(state);
        }
        let mut guard = node.dir.write();
        f(self.loaded(node, &mut guard)?)
    }

    /// The state behind a directory's lock, read from the backing directory when it was not yet.
    fn loaded<'a>(&self, node: &Node, guard: &'a mut Option<DirState>) -> Result<&'a mut DirState> {
        if guard.is_none() {
            let mut state = DirState::default();
            if node.in_upper() == InUpper::All && !node.is_gone() {
                let dir = self.backing_fd(node)?;
                for listed in entry::list(dir.as_fd())? {
                    let listed = listed?;
                    let entry = match self.read_entry(node, dir.as_fd(), &listed) {
                        // A whiteout without a lower entry has no effect (a crash can leave one behind), but a create
                        // must replace it and an rmdir must remove it.
                        Ok(None) => Entry::Whiteout,
                        Ok(Some(present)) => Entry::Present(present),
                        Err(error @ Error::Damaged { .. }) => {
                            tracing::error!(%error, "an entry of the upper is left out");
                            Entry::Damaged
                        }
                        Err(error) => return Err(error),
                    };
                    self.set_entry(node, &mut state, listed.name.as_bytes(), entry)?;
                }
            }
            *guard = Some(state);
        }
        guard.as_mut().ok_or(Error::NotADirectory)
    }

    /// What an entry of an upper directory is in the space; None for a whiteout.
    fn read_entry(&self, node: &Node, dir: BorrowedFd<'_>, listed: &Listed) -> Result<Option<Present>> {
        let mut on_disk = OnDisk::read(dir, listed, self.whiteouts == Whiteouts::Marked)?;
        let mut unsettled = None;
        if let Some(Mark::Emptied(origin, boot)) = on_disk.mark {
            let mark = self.emptied(dir, &listed.name, origin, boot)?;
            unsettled = (mark == Mark::Data(origin)).then_some(origin);
            on_disk.mark = Some(mark);
        }
        let present = Present::of(&self.index, &listed.name, &on_disk)?;
        if let (Some(origin), Some(present)) = (unsettled, present) {
            self.was_emptied(&self.entry_node(node, &listed.name, present, 0), Some(origin));
        }
        Ok(present)
    }

    /// Whether the lower directory that `node` merges with has the name.
    fn in_lower(&self, node: &Node, name: &[u8]) -> Result<bool> {
        Ok(self.lower_child(node, name)?.is_some())
    }

    /// The lower entry under a name of `node`, whatever the upper says of it.
    fn lower_child(&self, node: &Node, name: &[u8]) -> Result<Option<NodeId>> {
        match node.lower {
            Some(lower) => Ok(self.index.lookup(lower, name)?),
            None => Ok(None),
        }
    }

    /// Sets what the upper says of a name, keeping the count of subdirectories right.
    fn set_entry(&self, node: &Node, state: &mut DirState, name: &[u8], entry: Entry) -> Result<()> {
        let lower = self.lower_child(node, name)?;
        let before = self.shows_dir(lower, state.get(name))?;
        let after = self.shows_dir(lower, Some(entry))?;
        state.subdir_delta += i64::from(after) - i64::from(before);
        state.set(name, entry, lower.is_some());
        Ok(())
    }

    /// Takes a name out of the upper: a whiteout where the lower has it, nothing where not.
    fn clear_entry(&self, node: &Node, state: &mut DirState, name: &[u8]) -> Result<()> {
        if self.in_lower(node, name)? {
            return self.set_entry(node, state, name, Entry::Whiteout);
        }
        let before = self.shows_dir(None, state.get(name))?;
        state.subdir_delta -= i64::from(before);
        state.remove(name);
        Ok(())
    }

    fn shows_dir(&self, lower: Option<NodeId>, entry: Option<Entry>) -> Result<bool> {
        Ok(match (entry, lower) {
            (Some(Entry::Present(present)), _) => present.kind == Kind::Dir,
            (Some(Entry::Whiteout | Entry::Damaged), _) | (None, None) => false,
            (None, Some(lower)) => Kind::of_lower(&self.index.node(lower)?) == Kind::Dir,
        })
    }

    /// What a name of an upper directory leads to.
    fn find(&self, node: &Node, state: &DirState, name: &[u8]) -> Result<Option<Found>> {
        match state.get(name) {
            Some(Entry::Present(present)) => Ok(Some(Found::Upper(present))),
            Some(Entry::Whiteout) => Ok(None),
            Some(Entry::Damaged) => Err(Error::Damaged {
                name: String::from_utf8_lossy(name).into_owned(),
                why: "see the log of the mount",
            }),
            None => Ok(self.lower_child(node, name)?.map(Found::Lower)),
        }
    }

    /// The node of an entry of the upper, reached by this name; `count` lookups are added.
    fn entry_node(&self, dir: &Node, name: &CStr, present: Present, count: u32) -> Arc<Node> {
        let node = self.table.acquire(present.ino, count, || {
            let in_upper = if present.meta { InUpper::Metadata } else { InUpper::All };
            Node::new(present.ino, present.origin, present.kind, Vec::new(), in_upper, present.backing_ino)
        });
        let mut unpinned = None;
        let mut state = node.state.lock();
        if !state.gone && !state.places.iter().any(|(at, known)| *at == dir.ino && **known == *name) {
            state.places.push((dir.ino, name.to_owned()));
            // Reached by another name after the one we knew was unlinked: no descriptor needs to keep it now.
            unpinned = state.pinned.take();
        }
        drop(state);
        if let Some(fd) = unpinned {
            let_go(fd);
        }
        node
    }

    /// Whether the merged directory shows nothing.
    fn is_empty(&self, node: &Node, state: &DirState) -> Result<bool> {
        if state.iter().any(|(_, entry)| entry != Entry::Whiteout) {
            return Ok(false);
        }
        let Some(lower) = node.lower else { return Ok(true) };
        for child in lower_children(&self.index.node(lower)?) {
            if state.get(self.index.node(child)?.name).is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The children of a lower node; none for what is no directory.
fn lower_children(node: &LowerNode<'_>) -> impl Iterator<Item = NodeId> + use<> {
    let range = match &node.kind {
        NodeKind::Dir { children, .. } => children.clone(),
        NodeKind::File { .. } | NodeKind::Symlink { .. } => 0..0,
    };
    range.map(NodeId)
}

/// A name as the calls on the upper want it.
fn c_name(name: &[u8]) -> Result<CString> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name.contains(&b'/') || matches!(name, b"." | b"..") {
        return Err(Error::Invalid("not a name"));
    }
    CString::new(name).map_err(|_| Error::Invalid("a name cannot hold a NUL byte"))
}
