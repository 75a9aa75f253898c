//! The inode table: a node for each entry that is not purely lower, and how often the kernel has looked up each
//! entry.
//!
//! The kernel names entries by inode number. Each answer to a LOOKUP adds one to the *lookup count* of the entry, and
//! a FORGET request subtracts from it. Until the count is 0, the kernel may use the number.
//!
//! A pure lower entry has no node. Its number is its position in the index, and its lookup count is a
//! counter of four bytes in an array whose unused parts take no memory.
//!
//! Invariant: a node that the kernel may still name is never dropped. Finding a node and counting a lookup are one
//! step under the table's lock, and a node is dropped only after its count was compared with 0 under that lock.
//!
//! A worker that takes the place of another one (`handoff`) does not know how often the kernel has looked up an entry
//! before. A count of 0 then means nothing. So a node is kept for good, unless its entry was created by this worker, or has
//! no name any more and the kernel says that it does not know it.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};

use super::dir::DirState;
use super::types::{Error, Ino, Kind, Result};
use crate::handoff::Handoff;
use crate::library::index::NodeId;
use crate::space::upper::entry::Present;
use crate::space::upper::mark::KeptCtime;
use crate::sys::fd;

/// The most descriptors of backing files that are kept open. They are also at most a third of those that the process
/// may have.
const OPEN_LIMIT: usize = 512;

/// How much of an entry is in the upper.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum InUpper {
    /// Nothing: attributes and bytes are the lower's. Also a lower file that was unlinked while it was open.
    #[default]
    Nothing,
    /// The attributes. The bytes, or the text of a symbolic link, are still the lower's.
    Metadata,
    /// Everything.
    All,
}

/// A name of an entry: the directory's number, and the name in it.
pub(super) type Place = (Ino, CString);

/// An entry that has a backing file, or is about to get one.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) ino: Ino,
    /// The origin: the lower node that the entry was copied up from. None for one that was created in the space.
    pub(super) lower: Option<NodeId>,
    pub(super) kind: Kind,
    /// Second in the lock order. Held while the entry is copied up or its attributes change. It is the only lock that
    /// is held while bytes are copied.
    pub(super) change: Mutex<()>,
    /// Third in the lock order. What the upper has in a directory; None until the directory is read.
    pub(super) dir: RwLock<Option<DirState>>,
    /// Fourth in the lock order. Not held during I/O on another entry.
    pub(super) state: Mutex<NodeState>,
    /// The lookup count of an entry that was created in the space. Other entries have theirs in [`LowerLookups`].
    lookups: AtomicU64,
    /// [`Attr::generation`](super::types::Attr::generation), once it was computed.
    pub(super) generation: OnceLock<u32>,
    /// The entry has no name, and the kernel has said that it does not know its number.
    is_unknown: AtomicBool,
    /// The directory was put into the queue of `adopt`.
    pub(super) is_queued: AtomicBool,
}

/// The mutable part of a node.
#[derive(Debug, Default)]
pub(super) struct NodeState {
    /// The names by which the entry was reached so far. Empty for the root, and for an entry whose last known name
    /// was unlinked.
    pub(super) places: Vec<Place>,
    pub(super) in_upper: InUpper,
    /// The inode number of the backing file, by which an open notices that the file was moved. 0 without a file.
    pub(super) backing_ino: u64,
    /// The permission bits in `user.holofs.mode`: None until it is read, `Some(None)` when there is no such
    /// attribute.
    pub(super) mode: Option<Option<u32>>,
    /// A directory's `user.holofs.ctime`, in the same way.
    pub(super) ctime: Option<Option<KeptCtime>>,
    /// A descriptor of the backing file: during a change of its name (see `backing`), and after the last name was
    /// unlinked.
    pub(super) pinned: Option<Pin>,
    /// The entry has no name any more.
    pub(super) gone: bool,
}

/// A descriptor of a backing file.
#[derive(Debug)]
pub(super) struct Pin {
    /// Dropped before the descriptor, which may be closed then.
    held: Option<Held>,
    pub(super) fd: Arc<OwnedFd>,
}

/// The descriptor of a [`Pin`] stays open for the next worker.
#[derive(Debug)]
struct Held {
    fd: RawFd,
    handoff: Arc<Handoff>,
}

impl Pin {
    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        Self { held: None, fd }
    }

    /// Lets the next worker find the descriptor.
    pub(super) fn hold(&mut self, ino: Ino, handoff: &Arc<Handoff>) {
        let fd = self.fd.as_raw_fd();
        if self.held.is_some() {
            return;
        }
        if handoff.held().hold_fd(fd, ino.0) {
            self.held = Some(Held { fd, handoff: Arc::clone(handoff) });
        } else {
            tracing::warn!(
                ?ino,
                fd,
                "too many open files without a name: if this process dies, this one is lost"
            );
        }
    }

    /// The descriptor, which the next worker does not find any more.
    pub(super) fn into_fd(self) -> Arc<OwnedFd> {
        self.fd
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.handoff.held().let_go_of_fd(self.fd);
    }
}

impl Node {
    /// Makes a node. The caller puts it into the table.
    pub(super) fn new(
        ino: Ino,
        lower: Option<NodeId>,
        kind: Kind,
        places: Vec<Place>,
        in_upper: InUpper,
        backing_ino: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            ino,
            lower,
            kind,
            change: Mutex::new(()),
            dir: RwLock::new(None),
            state: Mutex::new(NodeState { places, in_upper, backing_ino, ..NodeState::default() }),
            lookups: AtomicU64::new(0),
            generation: OnceLock::new(),
            is_unknown: AtomicBool::new(false),
            is_queued: AtomicBool::new(false),
        })
    }

    /// How much of the entry is in the upper now.
    pub(super) fn in_upper(&self) -> InUpper {
        self.state.lock().in_upper
    }

    /// The lower node that still has the entry's bytes, or the text of a symbolic link; None if the upper has them.
    pub(super) fn lower_content(&self) -> Option<NodeId> {
        self.lower.filter(|_| self.in_upper() != InUpper::All)
    }

    /// What the upper has under each name of the entry.
    pub(super) fn present(&self) -> Present {
        let state = self.state.lock();
        let meta = state.in_upper == InUpper::Metadata;
        Present { ino: self.ino, kind: self.kind, origin: self.lower, meta, backing_ino: state.backing_ino }
    }

    /// Whether the entry has no name any more.
    pub(super) fn is_gone(&self) -> bool {
        self.state.lock().gone
    }

    /// Ends a [`Namespace::pin`](super::Namespace::pin): the backing file can be found by its name again.
    pub(super) fn unpin(&self) {
        let pinned = self.state.lock().pinned.take();
        let_go(pinned.map(Pin::into_fd));
    }
}

/// The write locks of several directories, taken in the order of their inode numbers.
pub(super) struct Locked<'a> {
    guards: Vec<(Ino, RwLockWriteGuard<'a, Option<DirState>>)>,
}

impl<'a> Locked<'a> {
    pub(super) fn new(nodes: &[&'a Arc<Node>]) -> Self {
        let mut nodes = nodes.to_vec();
        nodes.sort_by_key(|node| node.ino);
        nodes.dedup_by_key(|node| node.ino);
        Self { guards: nodes.into_iter().map(|node| (node.ino, node.dir.write())).collect() }
    }

    pub(super) fn of(&mut self, node: &Node) -> Result<&mut Option<DirState>> {
        let found = self.guards.iter_mut().find(|(ino, _)| *ino == node.ino);
        found.map(|(_, guard)| &mut **guard).ok_or(Error::Stale(node.ino))
    }
}

/// The inode table.
#[derive(Debug)]
pub(super) struct Table {
    /// Fifth in the lock order; held for a map operation only.
    nodes: RwLock<HashMap<Ino, Arc<Node>>>,
    lower_lookups: LowerLookups,
    /// Descriptors of backing files, kept for speed. A leaf lock.
    open: Mutex<LruCache<Ino, Arc<OwnedFd>>>,
    handoff: Arc<Handoff>,
    /// There was a worker before this one.
    is_takeover: bool,
}

impl Table {
    /// An empty table over an index of `lower_nodes` nodes.
    pub(super) fn new(lower_nodes: u32, handoff: Arc<Handoff>) -> Self {
        Self {
            is_takeover: handoff.is_takeover(),
            handoff,
            nodes: RwLock::new(HashMap::new()),
            lower_lookups: LowerLookups::new(lower_nodes),
            open: Mutex::new(LruCache::new(fd::share(OPEN_LIMIT, 3))),
        }
    }

    /// The node of an inode number, if it has one.
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Node>> {
        self.nodes.read().get(&ino).cloned()
    }

    /// The same, with one lookup added.
    pub(super) fn hold(&self, ino: Ino) -> Option<Arc<Node>> {
        let nodes = self.nodes.read();
        let node = nodes.get(&ino)?;
        self.add_lookups(node, 1);
        Some(Arc::clone(node))
    }

    /// The node of an inode number, with `count` lookups added. If it has none, `make` makes it.
    pub(super) fn acquire(&self, ino: Ino, count: u32, make: impl FnOnce() -> Arc<Node>) -> Arc<Node> {
        if let Some(node) = self.nodes.read().get(&ino) {
            self.add_lookups(node, count);
            return Arc::clone(node);
        }
        let mut nodes = self.nodes.write();
        let node = nodes.entry(ino).or_insert_with(make);
        self.add_lookups(node, count);
        Arc::clone(node)
    }

    fn add_lookups(&self, node: &Node, count: u32) {
        match node.ino.lower() {
            Some(lower) => self.count_lower(lower, count),
            None => {
                node.lookups.fetch_add(u64::from(count), Ordering::Relaxed);
            }
        }
    }

    /// Adds lookups of a pure lower entry.
    pub(super) fn count_lower(&self, lower: NodeId, count: u32) {
        self.lower_lookups.add(lower, count);
    }

    /// The lookup count of a node.
    pub(super) fn lookups(&self, node: &Node) -> u64 {
        match node.ino.lower() {
            Some(lower) => u64::from(self.lower_lookups.read(lower)),
            None => node.lookups.load(Ordering::Relaxed),
        }
    }

    /// Whether the kernel may know the number of a node.
    ///
    /// After a takeover the counts do not tell, not even for an entry that this worker has created: the kernel may be about
    /// to forget an earlier entry with the same number.
    pub(super) fn may_be_known(&self, node: &Node) -> bool {
        (self.is_takeover && !node.is_unknown.load(Ordering::Relaxed)) || self.lookups(node) > 0
    }

    /// The node of an entry without a name, if only the kernel can say whether it still knows the number.
    pub(super) fn doubtful(&self, ino: Ino) -> Option<Arc<Node>> {
        let node = self.get(ino).filter(|_| self.is_takeover)?;
        (node.is_gone() && !node.is_unknown.load(Ordering::Relaxed)).then_some(node)
    }

    /// Drops the node of an entry without a name, which the kernel does not know any more. There can be no later lookup of
    /// it.
    pub(super) fn is_unknown(&self, node: &Node) {
        node.is_unknown.store(true, Ordering::Relaxed);
        self.forget(node.ino, u64::MAX);
    }

    /// Takes `count` lookups of an inode number away, and drops its node if none are left.
    pub(super) fn forget(&self, ino: Ino, count: u64) {
        let left = match ino.lower() {
            Some(lower) => u64::from(self.lower_lookups.take(lower, count)),
            None => {
                let nodes = self.nodes.read();
                let Some(node) = nodes.get(&ino) else { return };
                let take = |n: u64| Some(n.saturating_sub(count));
                match node.lookups.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                    Ok(before) | Err(before) => before.saturating_sub(count),
                }
            }
        };
        if left == 0 {
            self.drop_unused(ino);
        }
    }

    /// Drops the node of an inode number that the kernel does not know. A directory that has a name keeps its node:
    /// there are few of them, and a new node would have to read the directory again.
    pub(super) fn drop_unused(&self, ino: Ino) {
        let mut nodes = self.nodes.write();
        let Some(node) = nodes.get(&ino) else { return };
        let is_gone = node.is_gone();
        if self.may_be_known(node) || (node.kind == Kind::Dir && !is_gone) {
            return;
        }
        if let Some(lower) = ino.lower().filter(|_| is_gone) {
            self.handoff.held().clear_gone(lower.0);
        }
        let node = nodes.remove(&ino);
        drop(nodes);
        // The node may hold the last descriptor of an unlinked file. Closing it frees the file's blocks, which takes
        // half a second for tens of gigabytes. So no lock is held here, and `let_go` closes a large file in another
        // thread.
        self.close(ino);
        // If another thread still uses the node, the descriptor is closed when that thread drops the node.
        let_go(
            node.and_then(Arc::into_inner).and_then(|node| node.state.into_inner().pinned).map(Pin::into_fd),
        );
    }

    /// The descriptor that is kept for an inode number.
    pub(super) fn opened(&self, ino: Ino) -> Option<Arc<OwnedFd>> {
        self.open.lock().get(&ino).cloned()
    }

    /// Keeps a descriptor. The one that was not used for longest is closed if there are too many.
    pub(super) fn keep_open(&self, ino: Ino, fd: &Arc<OwnedFd>) {
        let least_used = self.open.lock().push(ino, Arc::clone(fd));
        let_go(least_used.map(|(_, fd)| fd));
    }

    /// Closes the descriptor that is kept for an inode number.
    pub(super) fn close(&self, ino: Ino) {
        let kept = self.open.lock().pop(&ino);
        let_go(kept);
    }

    /// Closes all descriptors that are kept.
    pub(super) fn close_all(&self) {
        let mut open = self.open.lock();
        let limit = open.cap();
        let closed_later = std::mem::replace(&mut *open, LruCache::new(limit));
        drop(open);
        drop(closed_later);
    }

    /// All nodes, in no order.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.nodes.read().values().cloned().collect()
    }

    /// The number of nodes.
    pub(super) fn len(&self) -> usize {
        self.nodes.read().len()
    }
}

/// Drops a descriptor. The last descriptor of a large unlinked file is closed in a thread of its own, because
/// close(2) does not return before the filesystem has freed the blocks. The caller must hold no lock.
pub(super) fn let_go(fd: Option<Arc<OwnedFd>>) {
    /// In blocks of 512 bytes: 256 MB. Freeing less takes less time than starting a thread.
    const LARGE: i64 = 1 << 19;
    let Some(fd) = fd.and_then(Arc::into_inner) else { return };
    let is_large = rustix::fs::fstat(&fd).is_ok_and(|stat| stat.st_nlink == 0 && stat.st_blocks >= LARGE);
    if !is_large {
        return;
    }
    // Without a thread the closure is dropped here, and closes the descriptor.
    let spawned = std::thread::Builder::new().name("close".into()).spawn(move || drop(fd));
    if let Err(error) = spawned {
        tracing::debug!(%error, "no thread to close a large file");
    }
}

/// The lookup counts of all entries that have the number of a lower node: four bytes each. They are in chunks which
/// are allocated at the first lookup, so a mount of a million files that uses a hundred pays for the hundred.
#[derive(Debug)]
struct LowerLookups {
    chunks: Box<[OnceLock<Box<[AtomicU32]>>]>,
}

const CHUNK: usize = 1024;

impl LowerLookups {
    fn new(nodes: u32) -> Self {
        Self { chunks: (0..(nodes as usize).div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    fn touched(&self, node: NodeId) -> Option<&AtomicU32> {
        let chunk = self.chunks.get(node.0 as usize / CHUNK)?;
        chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU32::new(0)).collect()).get(node.0 as usize % CHUNK)
    }

    fn read(&self, node: NodeId) -> u32 {
        let chunk = self.chunks.get(node.0 as usize / CHUNK).and_then(OnceLock::get);
        chunk.and_then(|chunk| chunk.get(node.0 as usize % CHUNK)).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    /// A count that would overflow stays at the maximum for good, so the entry is never dropped.
    fn add(&self, node: NodeId, count: u32) {
        if let Some(counter) = self.touched(node) {
            update(counter, |n| n.saturating_add(count));
        }
    }

    /// Takes `count` away, and returns the count that is left.
    fn take(&self, node: NodeId, count: u64) -> u32 {
        let left = |n: u32| match n {
            u32::MAX => n,
            _ => n.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX)),
        };
        self.touched(node).map_or(0, |counter| left(update(counter, left)))
    }
}

/// Applies a change to a counter, and returns its value from before.
fn update(counter: &AtomicU32, change: impl Fn(u32) -> u32) -> u32 {
    match counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(change(n))) {
        Ok(before) | Err(before) => before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of a first worker.
    fn first(nodes: u32) -> Table {
        Table::new(nodes, Arc::new(Handoff::private().unwrap()))
    }

    fn file(ino: Ino) -> Arc<Node> {
        Node::new(ino, ino.lower(), Kind::File, Vec::new(), InUpper::All, 9)
    }

    /// Forgets the lookups of a node one by one: the node is dropped with the last.
    fn forget_one_by_one(table: &Table, ino: Ino, lookups: u64) {
        assert_eq!(table.get(ino).map(|node| table.lookups(&node)), Some(lookups));
        for _ in 0..lookups {
            assert!(table.get(ino).is_some());
            table.forget(ino, 1);
        }
        assert!(table.get(ino).is_none());
    }

    #[test]
    fn a_node_is_dropped_with_its_last_lookup() {
        let table = first(10);
        let ino = Ino::of_created(5);
        table.acquire(ino, 2, || file(ino));
        forget_one_by_one(&table, ino, 2);
    }

    #[test]
    fn lookups_from_before_the_copy_up_count() {
        let table = first(10);
        let ino = Ino::of_lower(NodeId(3));
        table.count_lower(NodeId(3), 2);
        table.acquire(ino, 1, || file(ino));
        forget_one_by_one(&table, ino, 3);
    }

    #[test]
    fn a_node_from_before_is_dropped_when_it_has_no_name_and_the_kernel_does_not_know_it() {
        let handoff = Arc::new(Handoff::private().unwrap());
        handoff.begin();
        handoff.begin();
        let table = Table::new(10, handoff);
        for ino in [Ino::of_lower(NodeId(3)), Ino::of_created(5)] {
            let node = table.acquire(ino, 1, || file(ino));
            table.forget(ino, 1);
            assert!(table.get(ino).is_some() && table.doubtful(ino).is_none());
            node.state.lock().gone = true;
            table.forget(ino, 1);
            table.is_unknown(&table.doubtful(ino).unwrap());
            assert!(table.get(ino).is_none());
            // The next entry with this number.
            table.acquire(ino, 1, || file(ino));
            table.forget(ino, 2);
            assert!(table.get(ino).is_some());
        }
    }

    #[test]
    fn forgetting_too_much_or_the_unknown_is_harmless() {
        let table = first(1);
        table.forget(Ino::of_lower(NodeId(77)), 3);
        table.forget(Ino::of_created(1), 3);
        table.count_lower(NodeId(0), 1);
        table.forget(Ino::ROOT, 100);
        assert_eq!(table.lower_lookups.read(NodeId(0)), 0);
    }
}
