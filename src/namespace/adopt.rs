//! Takes over the inode numbers of a worker that has died (see `handoff`).
//!
//! The kernel goes on to name entries by the numbers that the earlier worker gave them, and each must lead to the same
//! entry. Nothing but the number is known. The lookup counts are lost, so any entry may be known (`table`).
//!
//! * The number of a lower node says where the node is in the catalog. If the directory there shows it, it is found at
//!   once. Nearly all numbers are.
//! * Any other entry was created or moved. Its number is found when all directories of the upper have been read, which
//!   gives a node to each entry in them. Some threads do that in the background ([`Namespace::adopt`]), and a request that
//!   misses a number helps them. From then on, a number without a node is that of a pure lower entry.
//! * An entry without a name is not in the upper. The earlier worker has left a descriptor of it, or a bit
//!   ([`handoff::held`](crate::handoff::held)).
//!
//! Requests go on meanwhile, also those that change something. Invariant: each entry that the upper had at the time of the
//! takeover gets a node before the search is over, or has lost its name. A request that moves or removes an entry looks it
//! up first, so it has a node by then. A directory is put into the queue when it gets its node, so it is read wherever it is
//! moved.
//!
//! Limits: a few names of one directory can have the same hash (`dir`). Their order can then be another one, so a listing
//! that is under way can show one of them twice, or not.

use std::collections::HashSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use parking_lot::{Condvar, Mutex};
use rustix::fs::{FileType, Stat};

use super::dir::{DirState, Entry};
use super::revert::{Aliases, FIRST_ALIAS};
use super::table::{InUpper, Node, Pin};
use super::types::{Error, Ino, Kind, Result, Time, upper as call};
use super::{Found, Namespace, View, backing, c_name};
use crate::handoff::Handoff;
use crate::handoff::held::DirTimes;
use crate::library::index::NodeId;
use crate::space::upper::entry::{OnDisk, Present};
use crate::space::upper::mark::{KeptCtime, MARK_XATTR, Mark};
use crate::sys::{boot, fd};

/// The most threads that read directories of the upper.
const THREADS: usize = 4;

/// The entries of one directory from which on more than one thread reads their marks.
const MANY: usize = 512;

/// Asks the kernel whether it knows an inode number.
type Knows = Box<dyn Fn(Ino) -> bool + Send + Sync>;

/// The search for the entries of the upper.
#[derive(Debug)]
pub(super) struct Adoption {
    /// The search is not over.
    pending: AtomicBool,
    /// A leaf lock.
    queue: Mutex<Queue>,
    /// A directory was read, or the search is over.
    changed: Condvar,
    /// The lower nodes that the earlier worker noted as gone, before their names were removed.
    gone: HashSet<NodeId>,
    kernel: Kernel,
}

#[derive(Debug, Default)]
struct Queue {
    /// Directories that are still to be read.
    dirs: Vec<Arc<Node>>,
    /// Threads that are reading one.
    working: usize,
}

#[derive(Default)]
struct Kernel(OnceLock<Knows>);

impl fmt::Debug for Kernel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Kernel")
    }
}

impl Adoption {
    /// For a namespace over an index of `nodes` ids.
    pub(super) fn new(handoff: &Handoff, nodes: u32) -> Self {
        let is_takeover = handoff.is_takeover();
        let gone = if is_takeover { handoff.held().gone(nodes) } else { Vec::new() };
        Self {
            pending: AtomicBool::new(is_takeover),
            queue: Mutex::default(),
            changed: Condvar::new(),
            gone: gone.into_iter().map(NodeId).collect(),
            kernel: Kernel::default(),
        }
    }

    /// Whether there may be entries that the kernel knows and that have no node yet.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Puts a directory into the queue, if it was not there yet.
    pub(super) fn add(&self, dir: &Arc<Node>) {
        if !self.is_pending() || dir.is_queued.load(Ordering::Relaxed) {
            return;
        }
        let mut queue = self.queue.lock();
        // Under the lock: who finds the directory queued can rely on its being in the queue.
        if self.is_pending() && !dir.is_queued.swap(true, Ordering::Relaxed) {
            queue.dirs.push(Arc::clone(dir));
            drop(queue);
            self.changed.notify_one();
        }
    }
}

/// What the place of a lower node in the catalog shows now.
enum OwnPlace {
    /// The lower entry itself, with nothing in the upper.
    Pure,
    /// The entry, with a file in the upper.
    Changed(Arc<Node>),
    /// Something else, or nothing.
    Hidden,
    /// The place is in a directory that is not found yet.
    Unknown,
}

impl Namespace {
    /// Finds all entries whose numbers an earlier worker may have told the kernel. Returns when that is done, so it is for
    /// a thread of its own. Requests can come before, and are answered.
    pub fn adopt(&self) {
        if !self.adoption.is_pending() {
            return;
        }
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS);
        thread::scope(|scope| {
            for _ in 1..threads {
                let help = || self.finish_adoption();
                if let Err(error) = thread::Builder::new().name("adopt".into()).spawn_scoped(scope, help) {
                    tracing::debug!(%error, "no thread to find changed entries; one does it alone");
                }
            }
            self.finish_adoption();
        });
        for ino in self.handoff.held().emptied() {
            match self.view(Ino(ino)) {
                Ok(View::Node(node)) if node.kind == Kind::File && node.in_upper() == InUpper::All => {
                    self.was_emptied(&node, None);
                }
                Ok(_) | Err(_) => self.forget_emptied(Ino(ino)),
            }
        }
        for node in self.table.all() {
            self.drop_if_unknown(node.ino);
        }
    }

    /// Sets how to ask the kernel whether it still knows an inode number. Only the first call has an effect.
    pub fn ask_kernel_by(&self, knows: impl Fn(Ino) -> bool + Send + Sync + 'static) {
        self.adoption.kernel.0.get_or_init(|| Box::new(knows));
    }

    /// Drops an entry without a name whose lookups were counted by an earlier worker, if the kernel does not know it any
    /// more.
    pub(super) fn drop_if_unknown(&self, ino: Ino) {
        let Some(node) = self.table.doubtful(ino) else { return };
        if self.adoption.kernel.0.get().is_some_and(|knows| !knows(ino)) {
            self.table.is_unknown(&node);
        }
    }

    /// Prepares the table when there was a worker before this one.
    pub(super) fn take_over(&self) -> Result<()> {
        if !self.adoption.is_pending() {
            return Ok(());
        }
        if let Some(root) = self.table.get(Ino::ROOT) {
            self.adoption.add(&root);
        }
        for (fd, ino) in self.handoff.held().fds() {
            if let Err(error) = self.adopt_held(fd, Ino(ino)) {
                tracing::error!(ino, fd, %error, "an open file without a name is lost");
            }
        }
        for (position, alias) in self.handoff.held().aliases().into_iter().enumerate() {
            let ino = Ino(FIRST_ALIAS + position as u64);
            let lower = NodeId(alias.lower);
            if alias.gone {
                self.gone_node(ino, lower)?;
            } else if alias.backing == [0, 0] {
                let found = self.index.node(lower)?;
                let kind = Kind::of_lower(&found);
                let place = (self.ino_of(found.parent), c_name(found.name)?);
                let make = || Node::new(ino, Some(lower), kind, vec![place], InUpper::Nothing, 0);
                self.table.acquire(ino, 1, make);
            }
        }
        for (ino, times) in self.handoff.held().take_times() {
            if let Err(error) = self.adopt_times(Ino(ino), times) {
                tracing::warn!(ino, %error, "a directory shows the time of a copy-up as its own");
            }
        }
        Ok(())
    }

    /// Takes over the descriptor of an entry that has no name any more. It stays held. If the entry has a name, it is found
    /// by that, and the descriptor is closed.
    fn adopt_held(&self, number: RawFd, ino: Ino) -> Result<()> {
        let fd = fd::adopt(number).inspect_err(|_| self.handoff.held().let_go_of_fd(number));
        let fd = Arc::new(fd.map_err(call("adopt"))?);
        // Each return lets go of it.
        let mut pin = Pin::new(Arc::clone(&fd));
        pin.hold(ino, &self.handoff);
        let stat = rustix::fs::fstat(&fd).map_err(call("stat"))?;
        if stat.st_nlink > 0 {
            return Ok(());
        }
        let lower = match Aliases::position(ino) {
            Some(position) => self.alias_at(position),
            None => ino.lower(),
        };
        let present = self.present_of(&fd, &stat)?.filter(|present| match lower {
            Some(lower) => present.origin == Some(lower),
            None => present.ino == ino,
        });
        let Some(present) = present else { return Err(Error::Stale(ino)) };
        let in_upper = if present.meta { InUpper::Metadata } else { InUpper::All };
        if self.table.get(ino).is_some_and(|known| known.in_upper() == InUpper::All) {
            // The worker died while the bytes were copied up, and this is the file from before.
            return Ok(());
        }
        let made = Node::new(ino, present.origin, present.kind, Vec::new(), in_upper, stat.st_ino);
        let node = self.table.acquire(ino, 0, || made);
        if node.kind == Kind::Dir {
            *node.dir.write() = Some(DirState::of_removed());
        }
        let mut state = node.state.lock();
        (state.in_upper, state.backing_ino, state.gone) = (in_upper, stat.st_ino, true);
        let before = state.pinned.replace(pin);
        drop(state);
        drop(before);
        Ok(())
    }

    /// The entry that an open file of the upper is.
    fn present_of(&self, fd: &OwnedFd, stat: &Stat) -> Result<Option<Present>> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let mark = match file_type {
            FileType::RegularFile | FileType::Directory => {
                backing::short_xattr(fd.as_fd(), MARK_XATTR, &mut [0; 64])?.and_then(Mark::parse)
            }
            _ => None,
        };
        let mark = mark.map(|mark| mark.in_boot(boot::this(), stat.st_size));
        let on_disk = OnDisk { file_type, ino: stat.st_ino, mark };
        Ok(Present::of(&self.index, c"", &on_disk)?)
    }

    /// The lower node of an alias.
    fn alias_at(&self, position: u64) -> Option<NodeId> {
        let aliases = self.handoff.held().aliases();
        aliases.get(usize::try_from(position).ok()?).map(|alias| NodeId(alias.lower))
    }

    /// Makes the node of a lower entry that was removed and had no file in the upper. A node that is there already stays.
    fn gone_node(&self, ino: Ino, lower: NodeId) -> Result<Arc<Node>> {
        let node = Node::new(ino, Some(lower), self.lower_kind(lower)?, Vec::new(), InUpper::Nothing, 0);
        node.state.lock().gone = true;
        if node.kind == Kind::Dir {
            *node.dir.write() = Some(DirState::of_removed());
        }
        Ok(self.table.acquire(ino, 0, || node))
    }

    /// Gives a directory the times from before a copy-up in it that an earlier worker was doing when it died. If the
    /// copy-up had not happened yet, the directory has these times already.
    fn adopt_times(&self, ino: Ino, times: DirTimes) -> Result<()> {
        let View::Node(node) = self.view(ino)? else { return Ok(()) };
        let fd = self.backing_fd(&node)?;
        let time = |(sec, nsec): (i64, u32)| Time { sec, nsec };
        let (atime, mtime) = (time(times.atime), time(times.mtime));
        let set = super::types::SetTime::At;
        backing::write_times(fd.as_fd(), Some(set(atime)), Some(set(mtime)))?;
        let kept = KeptCtime { ctime: time(times.ctime), mtime };
        backing::write_ctime(&fd, kept)?;
        node.state.lock().ctime = Some(Some(kept));
        Ok(())
    }

    /// Notes, for the next worker, the times that a directory gets back after a copy-up in it.
    pub(super) fn note_times(&self, dir: &Node, at: &OwnedFd, before: &Stat) -> Option<usize> {
        let mut shown = backing::attr_of(before, dir.ino, Kind::Dir);
        if let Err(error) = self.show_ctime(dir, at, &mut shown) {
            tracing::debug!(%error, "cannot read the ctime of a directory");
            return None;
        }
        let time = |time: Time| (time.sec, time.nsec);
        let times = DirTimes { atime: time(shown.atime), mtime: time(shown.mtime), ctime: time(shown.ctime) };
        self.handoff.held().keep_times(dir.ino.0, times)
    }

    /// Ends [`Namespace::note_times`].
    pub(super) fn times_are_back(&self, noted: Option<usize>) {
        if let Some(noted) = noted {
            self.handoff.held().times_are_back(noted);
        }
    }

    /// Notes, for the next worker, whether an entry without a file in the upper has lost its name.
    pub(super) fn note_gone(&self, ino: Ino, gone: bool) {
        match (ino.lower(), Aliases::position(ino)) {
            (Some(lower), _) if gone => self.handoff.held().set_gone(lower.0),
            (Some(lower), _) => self.handoff.held().clear_gone(lower.0),
            (None, Some(position)) => self.handoff.held().set_alias_gone(position, gone),
            (None, None) => {}
        }
    }

    /// Notes, for the next worker, that an entry with a name is about to get this file in the upper.
    pub(super) fn note_named(&self, node: &Node, backing_ino: u64) {
        if let Some(position) = Aliases::position(node.ino) {
            self.handoff.held().alias_gets(position, backing_ino);
        }
        // The death of an earlier worker can have left a note that it is gone.
        if self.handoff.is_takeover() {
            self.note_gone(node.ino, false);
        }
    }

    /// Finds the entry of a number without a node, while the search is not over. None for a pure lower entry. The caller
    /// holds no lock of a directory.
    pub(super) fn adopted(&self, ino: Ino) -> Result<Option<Arc<Node>>> {
        let lower = ino.lower().filter(|lower| lower.0 < self.index.ids());
        loop {
            let was_pending = self.adoption.is_pending();
            if let Some(node) = self.table.get(ino) {
                return Ok(Some(node));
            }
            if let Some(lower) = lower {
                let is_noted = self.adoption.gone.contains(&lower);
                match self.own_place(lower)? {
                    // Its name shows the lower entry under another number (`revert`).
                    OwnPlace::Pure if is_noted && self.aliases.get(lower).is_some() => {
                        return self.gone_node(ino, lower).map(Some);
                    }
                    OwnPlace::Pure => return Ok(None),
                    OwnPlace::Changed(node) => return Ok(Some(node)),
                    OwnPlace::Hidden if is_noted => return self.gone_node(ino, lower).map(Some),
                    OwnPlace::Hidden | OwnPlace::Unknown => {}
                }
            }
            if !was_pending {
                return if lower.is_some() { Err(Error::Stale(ino)) } else { Ok(None) };
            }
            self.adopt_some();
        }
    }

    /// Finds what the place of a lower node in the catalog shows. Reads the directories on the path to it.
    fn own_place(&self, lower: NodeId) -> Result<OwnPlace> {
        // Bytecode that is not shown any more has no place.
        let Ok(found) = self.index.node(lower) else { return Ok(OwnPlace::Hidden) };
        let above = self.ino_of(found.parent);
        let dir = match (self.table.get(above), above.lower()) {
            (Some(dir), _) => dir,
            (None, Some(parent)) if parent != lower => match self.own_place(parent)? {
                OwnPlace::Pure => return Ok(OwnPlace::Pure),
                OwnPlace::Changed(dir) => dir,
                OwnPlace::Hidden | OwnPlace::Unknown => return Ok(OwnPlace::Unknown),
            },
            (None, _) => return Ok(OwnPlace::Unknown),
        };
        if dir.kind != Kind::Dir || dir.is_gone() {
            return Ok(OwnPlace::Hidden);
        }
        self.with_dir(&dir, |state| {
            Ok(match self.find(&dir, state, found.name) {
                Ok(Some(Found::Lower(shown))) if shown == lower => OwnPlace::Pure,
                Ok(Some(Found::Upper(present))) if present.ino == Ino::of_lower(lower) => {
                    OwnPlace::Changed(self.entry_node(&dir, &c_name(found.name)?, present, 0))
                }
                Ok(_) | Err(Error::Damaged { .. }) => OwnPlace::Hidden,
                Err(error) => return Err(error),
            })
        })
    }

    /// Returns when the search is over, and helps.
    pub(super) fn finish_adoption(&self) {
        while self.adoption.is_pending() {
            self.adopt_some();
        }
    }

    /// Reads one directory of the queue, or waits for another thread to have done so.
    fn adopt_some(&self) {
        let mut queue = self.adoption.queue.lock();
        let Some(dir) = queue.dirs.pop() else {
            if self.adoption.is_pending() {
                self.adoption.changed.wait(&mut queue);
            }
            return;
        };
        queue.working += 1;
        drop(queue);
        let done = self.adopt_dir(&dir).or_else(|_| {
            // There may be no descriptor left.
            self.close_kept();
            self.adopt_dir(&dir)
        });
        if let Err(error) = done {
            tracing::error!(ino = ?dir.ino, %error, "cannot read a directory of the upper; open files in it are lost");
        }
        let is_last = |queue: &Queue| queue.working == 1 && queue.dirs.is_empty();
        let mut queue = self.adoption.queue.lock();
        if is_last(&queue) {
            drop(queue);
            // The others wait until this thread is done as well.
            self.adopt_gone();
            queue = self.adoption.queue.lock();
            if is_last(&queue) {
                self.adoption.pending.store(false, Ordering::Release);
            }
        }
        queue.working -= 1;
        drop(queue);
        self.adoption.changed.notify_all();
    }

    /// Gives a node to each entry of a directory of the upper.
    fn adopt_dir(&self, dir: &Arc<Node>) -> Result<()> {
        if dir.is_gone() {
            return Ok(());
        }
        self.with_dir(dir, |state| {
            for (name, entry) in state.iter() {
                if let Entry::Present(present) = entry {
                    self.entry_node(dir, &c_name(name)?, present, 0);
                }
            }
            Ok(())
        })
    }

    /// Gives a node to each removed lower entry. All directories have been read.
    fn adopt_gone(&self) {
        for lower in &self.adoption.gone {
            let ino = Ino::of_lower(*lower);
            if self.table.get(ino).is_some() {
                continue;
            }
            let done = self.own_place(*lower).and_then(|place| match place {
                OwnPlace::Pure if self.aliases.get(*lower).is_none() => {
                    // The worker died before it removed the name.
                    self.note_gone(ino, false);
                    Ok(())
                }
                OwnPlace::Changed(_) => Ok(()),
                OwnPlace::Pure | OwnPlace::Hidden | OwnPlace::Unknown => {
                    self.gone_node(ino, *lower).map(|_| ())
                }
            });
            if let Err(error) = done {
                tracing::error!(?ino, %error, "an open file of the library that was removed is lost");
            }
        }
    }
}

/// Applies a function to each item, with some threads if there are many items. The results are in the order of the items.
pub(super) fn in_parallel<T: Sync, R: Send>(items: &[T], function: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if items.len() < MANY {
        return items.iter().map(function).collect();
    }
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS);
    let mut parts = items.chunks(items.len().div_ceil(threads));
    let own = parts.next().unwrap_or_default();
    let function = &function;
    thread::scope(|scope| {
        let parts: Vec<_> = parts
            .map(|part| {
                let work = || part.iter().map(function).collect::<Vec<R>>();
                (part, thread::Builder::new().name("list".into()).spawn_scoped(scope, work))
            })
            .collect();
        let mut done: Vec<R> = own.iter().map(function).collect();
        for (part, thread) in parts {
            match thread.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(results)) => done.extend(results),
                // There is no thread to be had.
                Err(_) => done.extend(part.iter().map(function)),
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
            }
        }
        done
    })
}
