//! The inode table: the entries that are not simply lower ones, and how often the kernel has looked each up.
//!
//! A pure lower entry is not in the table: its number is its position in the index, and all it costs is a
//! counter of four bytes in an array whose untouched pages take no memory. Invariant: an entry that the kernel
//! may still name is never dropped. Counting a lookup and finding the entry is one step under the table's lock,
//! and dropping one checks the count under it.

use std::collections::HashMap;
use std::ffi::CString;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};

use super::dir::DirState;
use super::error::{Error, Result};
use super::types::{Ino, Kind};
use crate::library::index::NodeId;
use crate::space::upper::mark::KeptCtime;
use crate::sys::fd;

/// Descriptors of upper entries kept open: so many, and no more than a third of what the process may have.
const OPEN_LIMIT: NonZeroUsize = match NonZeroUsize::new(512) {
    Some(limit) => limit,
    None => NonZeroUsize::MIN,
};

/// How much of an entry is in the upper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum InUpper {
    /// Nothing: the lower has it all. A lower file that was unlinked while it was open is like that as well.
    Nothing,
    /// The attributes. The bytes, or the text of a symbolic link, are still the lower's.
    Metadata,
    /// Everything.
    All,
}

/// A name of an entry: the directory's number, and the name in it.
pub(super) type Place = (Ino, CString);

/// An entry that the upper knows, or is about to.
#[derive(Debug)]
pub(super) struct Node {
    /// Its number.
    pub(super) ino: Ino,
    /// The lower node it came from.
    pub(super) lower: Option<NodeId>,
    /// Its kind.
    pub(super) kind: Kind,
    /// Held while the entry is copied up or its attributes change: the one lock under which bytes are copied.
    /// First in the lock order (see `namespace`).
    pub(super) change: Mutex<()>,
    /// A directory's own state, None until it was read. Third in the lock order; two are locked by rising number.
    pub(super) dir: RwLock<Option<DirState>>,
    /// Fourth in the lock order; never held across I/O on another entry.
    pub(super) state: Mutex<NodeState>,
    /// Lookups by the kernel, for entries born in the upper.
    lookups: AtomicU64,
    /// As [`Attr::generation`](super::types::Attr::generation), once it was asked for.
    pub(super) generation: OnceLock<u32>,
}

/// The part of a node that changes.
#[derive(Debug)]
pub(super) struct NodeState {
    /// The names known so far; empty when unlinked (or the root).
    pub(super) places: Vec<Place>,
    pub(super) in_upper: InUpper,
    /// The backing inode, to notice that a path leads elsewhere meanwhile. 0 while there is none.
    pub(super) backing_ino: u64,
    /// The mode attribute: unknown, absent, or the bits it holds.
    pub(super) mode: Option<Option<u32>>,
    /// A directory's kept ctime: unknown, absent, or what it is.
    pub(super) ctime: Option<Option<KeptCtime>>,
    /// Keeps the backing entry of an unlinked node alive.
    pub(super) pinned: Option<Arc<OwnedFd>>,
    /// No name is left.
    pub(super) gone: bool,
}

impl Node {
    /// A node that is not yet in the table.
    pub(super) fn new(
        ino: Ino,
        lower: Option<NodeId>,
        kind: Kind,
        places: Vec<Place>,
        in_upper: InUpper,
        backing_ino: u64,
    ) -> Self {
        Self {
            ino,
            lower,
            kind,
            change: Mutex::new(()),
            dir: RwLock::new(None),
            state: Mutex::new(NodeState {
                places,
                in_upper,
                backing_ino,
                mode: None,
                ctime: None,
                pinned: None,
                gone: false,
            }),
            lookups: AtomicU64::new(0),
            generation: OnceLock::new(),
        }
    }

    /// How much of it is in the upper now.
    pub(super) fn in_upper(&self) -> InUpper {
        self.state.lock().in_upper
    }

    /// Whether no name is left.
    pub(super) fn is_gone(&self) -> bool {
        self.state.lock().gone
    }

    /// Ends a [`Namespace::pin`](super::Namespace::pin): the file has a name again by which it is found.
    pub(super) fn unpin(&self) {
        let pinned = self.state.lock().pinned.take();
        if let Some(fd) = pinned {
            let_go(fd);
        }
    }
}

/// The write locks of up to three directories, taken by rising number.
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

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    /// Fifth in the lock order; held for a map operation only.
    nodes: RwLock<HashMap<Ino, Arc<Node>>>,
    /// Lookups of entries with a lower number, by node id.
    lower_lookups: LowerLookups,
    /// Open descriptors of upper entries. A leaf lock.
    open: Mutex<LruCache<Ino, Arc<OwnedFd>>>,
}

impl Table {
    /// A table for an index of `lower_nodes` nodes.
    pub(super) fn new(lower_nodes: u32) -> Self {
        Self {
            nodes: RwLock::new(HashMap::new()),
            lower_lookups: LowerLookups::new(lower_nodes),
            open: Mutex::new(LruCache::new(fd::share(OPEN_LIMIT, 3))),
        }
    }

    /// The node of a number.
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Node>> {
        self.nodes.read().get(&ino).cloned()
    }

    /// The node of a number, with one lookup added in the same step.
    pub(super) fn hold(&self, ino: Ino) -> Option<Arc<Node>> {
        let nodes = self.nodes.read();
        let node = nodes.get(&ino)?;
        self.add_lookups(node, 1);
        Some(Arc::clone(node))
    }

    /// The node of a number, made if it is not there; `count` lookups are added in the same step.
    pub(super) fn acquire(&self, ino: Ino, count: u32, make: impl FnOnce() -> Node) -> Arc<Node> {
        if let Some(node) = self.nodes.read().get(&ino) {
            self.add_lookups(node, count);
            return Arc::clone(node);
        }
        let mut nodes = self.nodes.write();
        let node = nodes.entry(ino).or_insert_with(|| Arc::new(make()));
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

    /// CopyUp often the kernel holds a number.
    pub(super) fn lookups(&self, ino: Ino) -> u64 {
        match ino.lower() {
            Some(lower) => u64::from(self.lower_lookups.read(lower)),
            None => self.nodes.read().get(&ino).map_or(0, |node| node.lookups.load(Ordering::Relaxed)),
        }
    }

    /// The kernel gives back `count` lookups of a number.
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

    /// Drops a node that the kernel does not hold, unless it is a directory with a name: those are few, and their
    /// state would only have to be read again.
    pub(super) fn drop_unused(&self, ino: Ino) {
        let mut nodes = self.nodes.write();
        let Some(node) = nodes.get(&ino) else { return };
        let held = match ino.lower() {
            Some(lower) => self.lower_lookups.read(lower) > 0,
            None => node.lookups.load(Ordering::Relaxed) > 0,
        };
        if held || (node.kind == Kind::Dir && !node.is_gone()) {
            return;
        }
        let node = nodes.remove(&ino);
        drop(nodes);
        // The node may hold the last descriptor of an unlinked file. Closing that frees its blocks, which takes half a
        // second for tens of gigabytes: no lock is held, and `let_go` waits elsewhere for a large one.
        if let Some(fd) = self.take_open(ino) {
            let_go(fd);
        }
        // An operation that still has the node closes the descriptor by dropping the node.
        if let Some(fd) = node.and_then(Arc::into_inner).and_then(|node| node.state.into_inner().pinned) {
            let_go(fd);
        }
    }

    /// The kept descriptor of a number.
    pub(super) fn opened(&self, ino: Ino) -> Option<Arc<OwnedFd>> {
        self.open.lock().get(&ino).cloned()
    }

    /// Keeps a descriptor.
    pub(super) fn keep_open(&self, ino: Ino, fd: &Arc<OwnedFd>) {
        let least_used = self.open.lock().push(ino, Arc::clone(fd));
        if let Some((_, fd)) = least_used {
            let_go(fd);
        }
    }

    /// Drops the kept descriptor of a number.
    pub(super) fn close(&self, ino: Ino) {
        if let Some(fd) = self.take_open(ino) {
            let_go(fd);
        }
    }

    fn take_open(&self, ino: Ino) -> Option<Arc<OwnedFd>> {
        self.open.lock().pop(&ino)
    }

    /// Drops all kept descriptors.
    pub(super) fn close_all(&self) {
        let mut open = self.open.lock();
        let limit = open.cap();
        let closed_later = std::mem::replace(&mut *open, LruCache::new(limit));
        drop(open);
        drop(closed_later);
    }

    /// CopyUp many nodes the table holds.
    pub(super) fn len(&self) -> usize {
        self.nodes.read().len()
    }
}

/// Drops a descriptor. The last descriptor of a large unlinked file is closed by a thread of its own, because the
/// filesystem frees the blocks before close returns. The caller holds no lock.
pub(super) fn let_go(fd: Arc<OwnedFd>) {
    /// From this many blocks of 512 bytes on (256 MB), freeing them is worth a thread.
    const LARGE: i64 = 1 << 19;
    let Some(fd) = Arc::into_inner(fd) else { return };
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

/// One counter of four bytes per lower node, in chunks that are made when first touched: a mount of a million
/// files that opens a hundred pays for the hundred.
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

    /// A count that would overflow sticks at the top: the entry is then never dropped.
    fn add(&self, node: NodeId, count: u32) {
        if let Some(counter) = self.touched(node) {
            update(counter, |n| n.saturating_add(count));
        }
    }

    /// Takes `count` away; returns what is left.
    fn take(&self, node: NodeId, count: u64) -> u32 {
        let left = |n: u32| match n {
            u32::MAX => n,
            _ => u32::try_from(u64::from(n).saturating_sub(count)).unwrap_or(0),
        };
        self.touched(node).map_or(0, |counter| left(update(counter, left)))
    }
}

/// Applies a change to a counter; returns what it was before.
fn update(counter: &AtomicU32, change: impl Fn(u32) -> u32) -> u32 {
    match counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(change(n))) {
        Ok(before) | Err(before) => before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn born(ino: u64) -> Node {
        Node::new(Ino::of_created(ino), None, Kind::File, Vec::new(), InUpper::All, ino)
    }

    #[test]
    fn an_entry_goes_with_its_last_lookup() {
        let table = Table::new(10);
        let ino = Ino::of_created(5);
        table.acquire(ino, 2, || born(5));
        table.forget(ino, 1);
        assert!(table.get(ino).is_some());
        table.forget(ino, 1);
        assert!(table.get(ino).is_none());
    }

    #[test]
    fn lookups_from_before_the_copy_up_count() {
        let table = Table::new(10);
        let (node, ino) = (NodeId(3), Ino::of_lower(NodeId(3)));
        table.count_lower(node, 2);
        table.acquire(ino, 1, || Node::new(ino, Some(node), Kind::File, Vec::new(), InUpper::All, 9));
        assert_eq!(table.lookups(ino), 3);
        table.forget(ino, 2);
        assert!(table.get(ino).is_some());
        table.forget(ino, 1);
        assert!(table.get(ino).is_none());
    }

    #[test]
    fn forgetting_too_much_or_the_unknown_is_harmless() {
        let table = Table::new(1);
        table.forget(Ino::of_lower(NodeId(77)), 3);
        table.forget(Ino::of_created(1), 3);
        table.count_lower(NodeId(0), 1);
        table.forget(Ino::ROOT, 100);
        assert_eq!(table.lookups(Ino::ROOT), 0);
    }
}
