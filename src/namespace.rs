//! The namespace: the tree of files that a mounted space shows.
//!
//! A space shows the tree of its catalog, with its own changes over it. This module merges the two. It answers which
//! entries a directory has, which attributes an entry has and where its bytes are, and it makes every change of the
//! tree. It reads no blobs (`materialize` does), and it does not know FUSE (`fs` and `fuse` do).
//!
//! # Terms
//!
//! * The *lower* is the tree of the catalog. It never changes. It is a compiled index, which is mapped into memory,
//!   so reading it costs no system call. Each of its entries is a *lower node* with a number.
//! * The *upper* is a directory of real files that holds the changes of this space, under the paths that the space
//!   shows. `space::upper` describes its format. The file of an entry in the upper is the entry's *backing file*.
//! * An *inode number* ([`Ino`]) is what the kernel names an entry by. Lower node n has number n + 1, and keeps it
//!   when it is changed or renamed. An entry that was created in the space takes its number from its backing file.
//! * A *whiteout* in the upper hides a lower entry: the space has removed or renamed it.
//! * A *copy-up* gives a lower entry a backing file before its first change. Changing only attributes or the name
//!   copies no bytes: the backing file then holds the attributes, and the bytes stay those of the lower node.
//! * The *origin* of an entry is the lower node that it was copied up from.
//!
//! # How a name is looked up
//!
//! A directory that has nothing in the upper is *pure lower*, and so is everything below it: the index alone answers,
//! with no system call, no lock but the table's, and no memory. A directory in the upper is read once and then held
//! in memory (`dir`): the names that it mentions, each as a backing file or a whiteout. Names that it does not
//! mention are those of the lower directory that it merges with. That directory is named by the mark of the upper
//! directory and not by its path, so renaming a directory of a million files is one rename.
//!
//! Entries that have, or are about to get, a backing file are *nodes* in the inode table (`table`). Pure lower
//! entries are not in the table; it only counts how often the kernel has looked each of them up.
//!
//! # Invariants
//!
//! 1. An operation that only reads never changes the upper, except that a mark from before a loss of power may be
//!    brought up to date (`settle`). A change that changes nothing leaves the upper as it is.
//! 2. Each change becomes visible in one system call, the last one of its operation. If the daemon dies at any
//!    moment, the next mount shows the state before the operation or after it. What an operation needs is prepared in
//!    a staging directory first. (Where the filesystem has no whiteout devices, a rename takes two; see `whiteout`.)
//! 3. Inode numbers stay the same over copy-up, rename and remount.
//! 4. The table has a node for each entry in the upper that the kernel knows. A node that the kernel may still
//!    name is never dropped. (After the death of a worker, `adopt` brings that about again.)
//!
//! # Lock order
//!
//! A thread that holds one of these locks may only take locks that come later in the list:
//!
//! 0. `Namespace::changes`: shared by all requests that change something, and held alone while the space is copied or
//!    reset (`freeze`). The adapter takes it, so the operations here do not.
//! 1. `Namespace::renames`: held by each rename and rmdir, so that the shape of the tree does not change under them.
//! 2. `Node::change`: held while an entry is copied up or its attributes change. A child's comes before its
//!    directory's, because a copy-up then copies up the directories above.
//! 3. `Node::dir`: the state of a directory. Several are locked in the order of their inode numbers.
//! 4. `Node::state`: the small mutable part of a node.
//! 5. The locks of the table, of the kept descriptors and of the queue of `adopt`, which are held for one map operation
//!    only.
//!
//! Whoever holds the lock of a directory must not ask for the entry of a number (`view`), because that may wait for
//! `adopt`, which takes these locks.
//!
//! While bytes are copied, only the `change` lock of the one entry is held, so a large copy-up does not delay anybody
//! else.

mod adopt;
pub(crate) mod backing;
pub(crate) mod change;
mod copy_up;
mod dir;
pub mod freeze;
mod handle;
mod once;
pub(crate) mod read;
pub(crate) mod rename;
pub(crate) mod revert;
mod settle;
mod table;
pub mod types;
mod whiteout;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{DirEntry, FileType};

use crate::handoff::Handoff;
use crate::library::index::{Index, Node as LowerNode, NodeId, NodeKind};
use crate::materialize::Materializer;
use crate::materialize::staging::Staging;
use crate::space::upper::TOO_MANY_NODES;
use crate::space::upper::entry::{self, OnDisk, Present};
use crate::space::upper::mark::{KeptCtime, Mark};
use dir::{DirState, Entry};
use settle::Unsettled;
use table::{InUpper, Node, Pin, Table, let_go};
use types::{Error, Ino, Kind, Result, upper as call};
use whiteout::Whiteouts;

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// The owner of all lower entries, and the permission bits of their directories. A catalog records neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user who mounts.
    pub uid: u32,
    /// The group of that user.
    pub gid: u32,
    /// 0750 without the bits of the user's umask, as rcc creates directories.
    pub dir_mode: u32,
}

/// The merged view of one mounted space.
#[derive(Debug)]
pub struct Namespace {
    index: Arc<Index>,
    /// What an earlier worker left, and what the next one will find.
    handoff: Arc<Handoff>,
    materializer: Arc<Materializer>,
    staging: Arc<Staging>,
    /// The root directory of the upper.
    root: Arc<OwnedFd>,
    owner: Owner,
    table: Table,
    adoption: adopt::Adoption,
    whiteouts: Whiteouts,
    aliases: revert::Aliases,
    /// Reading a file does not change its time of access.
    keeps_atime: bool,
    /// Before all others in the lock order; see `freeze`.
    changes: RwLock<()>,
    /// First in the lock order: held by each rename and rmdir.
    renames: Mutex<()>,
    unsettled: Unsettled,
    /// Set once `state.json` of the space survives a loss of power. Changes wait for it: without the record, nobody
    /// could tell what they are changes of.
    recorded: OnceLock<()>,
}

/// The entry of an inode number.
enum View {
    /// A pure lower entry.
    Lower(NodeId),
    /// An entry with a node in the table.
    Node(Arc<Node>),
}

/// The entry of a name in an upper directory.
enum Found {
    /// The upper does not mention the name, and the lower has it.
    Lower(NodeId),
    /// The upper has the entry.
    Upper(Present),
}

impl Namespace {
    /// Opens the namespace over the upper whose root directory is `root`. A new upper is an empty directory. With
    /// `keeps_atime`, reading a file does not change its time of access.
    ///
    /// # Errors
    /// When the upper cannot be read, or its filesystem has no `user.` extended attributes.
    pub fn open(
        index: Arc<Index>,
        materializer: Arc<Materializer>,
        staging: Arc<Staging>,
        root: OwnedFd,
        owner: Owner,
        keeps_atime: bool,
        handoff: Arc<Handoff>,
    ) -> Result<Self> {
        if index.ids() >= TOO_MANY_NODES {
            return Err(Error::NotSupported("an environment of more than a billion entries"));
        }
        let table = Table::new(index.ids(), Arc::clone(&handoff));
        let root = Arc::new(root);
        // A root without a mark is new. It gets the attributes that rcc gives the root directory of a space.
        let parent = root.as_fd();
        if Mark::read(parent, c".", FileType::Directory)?.is_none() {
            backing::write_mode(parent, Kind::Dir, owner.dir_mode, None)?;
            backing::write_times(parent, Some(read::MOTHER), Some(read::MOTHER))?;
            let kept = KeptCtime { ctime: read::MOTHER_AS_TIME, mtime: read::MOTHER_AS_TIME };
            backing::write_ctime(&parent, kept)?;
            // The mark comes last, because it says that the rest is done.
            backing::write_mark(parent, Mark::Dir(NodeId(0)))?;
        }
        let stat = rustix::fs::fstat(&root).map_err(call("stat"))?;
        table.acquire(Ino::ROOT, 1, || {
            Node::new(Ino::ROOT, Some(NodeId(0)), Kind::Dir, Vec::new(), InUpper::All, stat.st_ino)
        });
        table.keep_open(Ino::ROOT, &root);
        let whiteouts = Whiteouts::probe(&staging);
        whiteouts.finish_moves(&staging, root.as_fd());
        let this = Self {
            adoption: adopt::Adoption::new(&handoff, index.ids()),
            aliases: revert::Aliases::new(&handoff),
            index,
            handoff,
            materializer,
            staging,
            root,
            owner,
            table,
            whiteouts,
            keeps_atime,
            changes: RwLock::new(()),
            renames: Mutex::new(()),
            unsettled: Unsettled::default(),
            recorded: OnceLock::from(()),
        };
        this.take_over()?;
        Ok(this)
    }

    /// Makes every change wait until [`Namespace::is_recorded`] is called.
    #[must_use]
    pub fn until_recorded(mut self) -> Self {
        self.recorded = OnceLock::new();
        self
    }

    /// Lets changes proceed: `state.json` of the space is synced, or syncing it has failed for good.
    pub fn is_recorded(&self) {
        self.recorded.get_or_init(|| ());
    }

    /// Behaves as on a filesystem without whiteout devices.
    #[cfg(test)]
    pub(crate) fn marking_whiteouts(self) -> Self {
        Self { whiteouts: Whiteouts::Marked, ..self }
    }

    /// Whether reading a file leaves its time of access as it is.
    #[must_use]
    pub fn keeps_atime(&self) -> bool {
        self.keeps_atime
    }

    /// What an earlier worker left, and what the next one will find.
    #[must_use]
    pub fn handoff(&self) -> &Arc<Handoff> {
        &self.handoff
    }

    /// The compiled index of the catalog.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The number of nodes in the inode table. Pure lower entries have none.
    #[must_use]
    pub fn table_len(&self) -> usize {
        self.table.len()
    }

    /// Whether an entry has nothing in the upper, so that reading its attributes waits for no disk.
    #[must_use]
    pub fn is_pure_lower(&self, ino: Ino) -> bool {
        // In this order: see `view`.
        ino.lower().is_some() && !self.adoption.is_pending() && self.table.get(ino).is_none()
    }

    /// Closes the descriptors of backing files that are kept for speed only.
    pub fn close_kept(&self) {
        self.table.close_all();
    }

    /// Takes back `count` lookups that the kernel had counted for an entry.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.table.forget(ino, count);
        self.drop_if_unknown(ino);
    }

    fn view(&self, ino: Ino) -> Result<View> {
        // Before the table: the search may end between both looks, and would have put the node into the table.
        let may_be_missing = self.adoption.is_pending();
        if let Some(node) = self.table.get(ino) {
            return Ok(View::Node(node));
        }
        if may_be_missing && let Some(node) = self.adopted(ino)? {
            return Ok(View::Node(node));
        }
        match ino.lower() {
            Some(lower) if lower.0 < self.index.ids() => Ok(View::Lower(lower)),
            _ => Err(Error::Stale(ino)),
        }
    }

    /// The node of a number. A pure lower entry gets one, so that threads which copy it up can exclude each other.
    fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        match self.view(ino)? {
            View::Node(node) => Ok(node),
            View::Lower(lower) => self.node_of_lower(lower),
        }
    }

    /// The node of a lower entry that a directory shows and the upper does not mention.
    fn node_of_lower(&self, lower: NodeId) -> Result<Arc<Node>> {
        let ino = self.ino_of(lower);
        if let Some(node) = self.table.get(ino) {
            return Ok(node);
        }
        let found = self.index.node(lower)?;
        let kind = Kind::of_lower(&found);
        let place = (self.ino_of(found.parent), c_name(found.name)?);
        Ok(self.table.acquire(ino, 0, || Node::new(ino, Some(lower), kind, vec![place], InUpper::Nothing, 0)))
    }

    /// The kind of a lower node.
    fn lower_kind(&self, lower: NodeId) -> Result<Kind> {
        Ok(Kind::of_lower(&self.index.node(lower)?))
    }

    /// The inode number of the directory that shows an entry. For the root, and for an entry without a name, that is
    /// the root.
    fn parent_of(&self, view: &View) -> Result<Ino> {
        match view {
            View::Lower(lower) => Ok(self.ino_of(self.index.node(*lower)?.parent)),
            View::Node(node) => Ok(node.state.lock().places.first().map_or(Ino::ROOT, |(parent, _)| *parent)),
        }
    }

    /// Calls `f` with the state of a directory. The first call for a directory reads it from the upper.
    fn with_dir<T>(&self, node: &Node, f: impl FnOnce(&DirState) -> Result<T>) -> Result<T> {
        if let Some(state) = &*node.dir.read() {
            return f(state);
        }
        let mut guard = node.dir.write();
        f(self.loaded(node, &mut guard)?)
    }

    /// The state in a directory's lock, read from the upper if it was not read yet.
    fn loaded<'a>(&self, node: &Node, guard: &'a mut Option<DirState>) -> Result<&'a mut DirState> {
        if guard.is_none() {
            let mut state = DirState::default();
            if node.in_upper() == InUpper::All && !node.is_gone() {
                let dir = self.backing_fd(node)?;
                let listed = entry::list(dir.as_fd())?.collect::<Result<Vec<_>, _>>()?;
                let entries = adopt::in_parallel(&listed, |listed| {
                    match self.read_entry(node, dir.as_fd(), listed) {
                        // Also a whiteout without a lower entry, which a crash can leave behind. It has no effect,
                        // but a create must replace it and an rmdir must remove it.
                        Ok(None) => Ok(Entry::Whiteout),
                        Ok(Some(present)) => Ok(Entry::Present(present)),
                        Err(error @ Error::Damaged { .. }) => {
                            tracing::error!(%error, "a damaged entry of the upper is not shown");
                            Ok(Entry::Damaged)
                        }
                        Err(error) => Err(error),
                    }
                });
                for (listed, entry) in listed.iter().zip(entries) {
                    self.set_entry(node, &mut state, listed.file_name().to_bytes(), entry?)?;
                }
            }
            *guard = Some(state);
        }
        guard.as_mut().ok_or(Error::NotADirectory)
    }

    /// The entry that a file of the upper is in the space; None for a whiteout.
    fn read_entry(&self, node: &Node, dir: BorrowedFd<'_>, listed: &DirEntry) -> Result<Option<Present>> {
        let mut on_disk = OnDisk::read(dir, listed, self.whiteouts == Whiteouts::Marked)?;
        let mut unsettled = None;
        if let Some(Mark::Emptied(origin, boot)) = on_disk.mark {
            let mark = self.emptied(dir, listed.file_name(), origin, boot)?;
            unsettled = (mark == Mark::Data(origin)).then_some(origin);
            on_disk.mark = Some(mark);
        }
        let present = Present::of(&self.index, listed.file_name(), &on_disk)?;
        let present = present.map(|present| self.aliases.known(present));
        if let (Some(origin), Some(present)) = (unsettled, present) {
            self.was_emptied(&self.entry_node(node, listed.file_name(), present, 0), Some(origin));
        }
        Ok(present)
    }

    /// The entry of this name in the lower directory that `node` merges with, whether or not the upper hides it.
    fn lower_child(&self, node: &Node, name: &[u8]) -> Result<Option<NodeId>> {
        match node.lower {
            Some(lower) => Ok(self.index.lookup(lower, name)?),
            None => Ok(None),
        }
    }

    /// Notes what the upper has under a name, if anything, and updates the count of subdirectories.
    fn set_entry(
        &self,
        node: &Node,
        state: &mut DirState,
        name: &[u8],
        entry: impl Into<Option<Entry>>,
    ) -> Result<()> {
        // Bytecode is neither listed nor counted, until the space has an entry of its own in its place.
        let lower = self.lower_child(node, name)?.filter(|lower| !self.index.is_bytecode(*lower));
        let entry = entry.into();
        let before = self.shows_dir(lower, state.get(name))?;
        let after = self.shows_dir(lower, entry)?;
        state.subdir_delta += i64::from(after) - i64::from(before);
        match entry {
            Some(entry) => state.set(name, entry, lower.is_some()),
            None => state.remove(name),
        }
        Ok(())
    }

    /// Whether a name shows a directory, given what the lower and the upper have under it.
    fn shows_dir(&self, lower: Option<NodeId>, entry: Option<Entry>) -> Result<bool> {
        Ok(match (entry, lower) {
            (Some(Entry::Present(present)), _) => present.kind == Kind::Dir,
            (Some(Entry::Whiteout | Entry::Damaged), _) | (None, None) => false,
            (None, Some(lower)) => self.lower_kind(lower)? == Kind::Dir,
        })
    }

    /// The entry that a directory shows under a name.
    fn find(&self, node: &Node, state: &DirState, name: &[u8]) -> Result<Option<Found>> {
        match state.get(name) {
            Some(Entry::Present(present)) => Ok(Some(Found::Upper(present))),
            Some(Entry::Whiteout) => Ok(None),
            Some(Entry::Damaged) => Err(Error::Damaged {
                name: String::from_utf8_lossy(name).into_owned(),
                why: "see the log of the mount",
            }),
            None if state.is_removed() => Ok(None),
            None => Ok(self.lower_child(node, name)?.map(Found::Lower)),
        }
    }

    /// The node of an entry in the upper that was reached by this name, with `count` lookups added.
    fn entry_node(&self, dir: &Node, name: &CStr, present: Present, count: u32) -> Arc<Node> {
        let node = self.table.acquire(present.ino, count, || {
            let in_upper = if present.meta { InUpper::Metadata } else { InUpper::All };
            // With its place from the start: the kernel may know the number from an earlier worker, and ask for it now.
            let place = (dir.ino, name.to_owned());
            Node::new(present.ino, present.origin, present.kind, vec![place], in_upper, present.backing_ino)
        });
        let mut unpinned = None;
        let mut state = node.state.lock();
        if !state.gone && !state.places.iter().any(|(at, known)| *at == dir.ino && **known == *name) {
            state.places.push((dir.ino, name.to_owned()));
            // The one name that we knew was unlinked, and this is another hard link. The backing file can be opened
            // by it.
            unpinned = state.pinned.take();
        }
        drop(state);
        let_go(unpinned.map(Pin::into_fd));
        if node.kind == Kind::Dir {
            self.adoption.add(&node);
        }
        node
    }

    /// Whether a directory shows no entries.
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

/// The children of a lower directory; of any other node, none.
fn lower_children(node: &LowerNode<'_>) -> impl Iterator<Item = NodeId> + use<> {
    let range = match &node.kind {
        NodeKind::Dir { children, .. } => children.clone(),
        NodeKind::File { .. } | NodeKind::Symlink { .. } => 0..0,
    };
    range.map(NodeId)
}

/// Checks a name, and turns it into what system calls take.
fn c_name(name: &[u8]) -> Result<CString> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name.contains(&b'/') || matches!(name, b"." | b"..") {
        return Err(Error::Invalid("not a name"));
    }
    CString::new(name).map_err(|_| Error::Invalid("a name cannot hold a NUL byte"))
}
