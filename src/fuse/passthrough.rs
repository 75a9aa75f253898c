//! Passthrough mode: how the files of each inode are open.
//!
//! In passthrough mode the kernel reads and writes a *backing file* without the daemon. The daemon registers the backing
//! file and gets a number for it, and answers an open with that number. An open can also be answered as *cached*: then
//! reads and writes come to the daemon through the page cache. This module decides between the two and counts open
//! files. It opens no file and copies no bytes. [`crate::fs::Fs::backing`] decides which library files the kernel may
//! read.
//!
//! Invariants. The kernel enforces the first two, with EIO for an open that breaks them.
//!
//! 1. All open files of an inode are cached, or all are passthrough with the same backing number.
//! 2. A backing number stays registered while a file that was opened with it is open.
//! 3. While a library file is open by passthrough, the inode's bytes do not change. An open for writing and a truncation
//!    wait for the readers, and fail with ETXTBSY if the readers do not close the file. The kernel could not switch the
//!    readers to the private copy, and a shared mapping by the writer would write to the library's file.
//!
//! Open files of a library file that is cached see every change at once.
//!
//! The next worker of the mount has to keep these invariants too, so everything that they need is in the shared memory
//! ([`crate::handoff::opens`]); what is here can be built from it ([`Passthrough::take_over`]).

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use crate::fs::Side;
use crate::handoff::Handoff;
use crate::handoff::opens::{
    Free, Handle, MOST_BACKINGS, MOST_MAPPED, MOST_OPENS, MOST_REGISTERING, Mode, Opens,
};
use crate::namespace::types::{Error, Result, upper as call};
use crate::sys::backing::{self, Backings};

/// Number of idle inodes whose backing number is kept. A kept number costs an open file in the kernel, about 300 bytes.
/// It saves the next open a system call, or a message to the mount helper. A large Python import opens 2,000 files.
const IDLE_LIMIT: NonZeroUsize = match NonZeroUsize::new(4096) {
    Some(limit) => limit,
    None => NonZeroUsize::MIN,
};

/// How long a change waits for readers of the library's file. Most read it once and close it.
const READERS_TIMEOUT: Duration = Duration::from_secs(1);

/// The answer to an open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The kernel reads and writes the backing file with this number.
    Passthrough(u32),
    /// Reads and writes come as requests.
    Cached {
        /// Whether the page cache is valid, because no passthrough write has changed the file.
        keep: bool,
    },
}

/// A file that was opened and counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Opened {
    pub(super) answer: Answer,
    /// The kernel returns it when the file is closed.
    pub(super) handle: Handle,
}

impl Opened {
    /// The answer in cached mode, in which open files are not counted.
    pub(super) const CACHED: Self = Self { answer: Answer::Cached { keep: true }, handle: Handle::NONE };
}

/// The open files of one mount.
#[derive(Debug)]
pub(super) struct Passthrough {
    backings: Arc<dyn Backings>,
    handoff: Arc<Handoff>,
    /// Whether a failure to register a file was logged as a warning.
    told: AtomicBool,
    /// Makes the kernel ask for attributes again. Set once the mount is served.
    notifier: Arc<OnceLock<Notifier>>,
    /// A leaf lock, held for map operations only.
    inodes: Mutex<Inodes>,
    /// Signalled when an inode becomes idle.
    idle: Condvar,
}

#[derive(Debug)]
struct Inodes {
    /// Inodes with open files. All others are idle.
    open: HashMap<u64, Open>,
    /// How the open files of idle inodes were last answered.
    idle: LruCache<u64, Way>,
    /// Inodes whose bytes are being changed, with the number of changes in progress.
    changing: HashMap<u64, u64>,
    /// See [`Passthrough::may_be_mapped`]. With the place of the record, unless all were in use.
    mapped: HashMap<u64, Option<usize>>,
    /// Inodes without a record may be mapped, too.
    more_mapped: bool,
    free: Records,
}

/// The free records in the shared memory.
#[derive(Debug)]
struct Records {
    opens: Free,
    backings: Free,
    mapped: Free,
    registering: Free,
}

/// The open files of an inode.
#[derive(Clone, Copy, Debug)]
struct Open {
    way: Way,
    files: u64,
}

/// How an inode's files are open.
#[derive(Clone, Copy, Debug)]
struct Way {
    side: Side,
    /// The backing file. None for cached.
    backing: Option<Backing>,
}

/// A registered file: its number, and the place of its record.
#[derive(Clone, Copy, Debug)]
struct Backing {
    id: u32,
    slot: usize,
}

impl Passthrough {
    pub(super) fn new(
        backings: Arc<dyn Backings>,
        notifier: Arc<OnceLock<Notifier>>,
        handoff: Arc<Handoff>,
    ) -> Self {
        Self {
            backings,
            handoff,
            told: AtomicBool::new(false),
            notifier,
            inodes: Mutex::new(Inodes {
                open: HashMap::new(),
                idle: LruCache::new(IDLE_LIMIT),
                changing: HashMap::new(),
                mapped: HashMap::new(),
                more_mapped: false,
                free: Records {
                    opens: Free::without([], MOST_OPENS),
                    backings: Free::without([], MOST_BACKINGS),
                    mapped: Free::without([], MOST_MAPPED),
                    registering: Free::without([], MOST_REGISTERING),
                },
            }),
            idle: Condvar::new(),
        }
    }

    /// Counts one more open file of an inode, if the answer is known already. `unique` is the number of the request, `side`
    /// the layer of the inode's bytes.
    ///
    /// # Errors
    /// ENFILE when more files are open than can be counted.
    pub(super) fn join(&self, unique: u64, ino: u64, side: Side) -> Result<Option<Opened>> {
        self.inodes.lock().join(self.records(), unique, ino, side)
    }

    /// Counts one more open file of an inode, and returns the answer. `file` is the backing file, or None if the kernel
    /// may not have it. The caller writes the answer, and then calls [`Passthrough::answered`].
    ///
    /// # Errors
    /// As [`Passthrough::join`].
    pub(super) fn open(
        &self,
        unique: u64,
        ino: u64,
        side: Side,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Opened> {
        if let Some(opened) = self.join(unique, ino, side)? {
            return Ok(opened);
        }
        // Without the lock, because this may be a message to the mount helper.
        let new = file.and_then(|file| self.register(ino, side, file));
        let (opened, unused) = {
            let mut inodes = self.inodes.lock();
            // During a change, no library file may be open by passthrough.
            let changing = side == Side::Lower && inodes.changing.contains_key(&ino);
            match inodes.join(self.records(), unique, ino, side) {
                Ok(None) => {
                    let way = Way { side, backing: new.filter(|_| !changing) };
                    let handle = inodes.note_open(self.records(), unique, ino, way);
                    let old = inodes.idle.pop(&ino).and_then(|old| old.backing);
                    match handle {
                        Ok(handle) => {
                            inodes.open.insert(ino, Open { way, files: 1 });
                            let opened = Opened { answer: way.answer(side), handle };
                            (Ok(opened), [old, new.filter(|_| changing)])
                        }
                        Err(error) => (Err(error), [old, new]),
                    }
                }
                // Another thread registered the file meanwhile.
                Ok(Some(opened)) => (Ok(opened), [new, None]),
                Err(error) => (Err(error), [new, None]),
            }
        };
        unused.into_iter().flatten().for_each(|backing| self.give_back(backing));
        opened
    }

    /// Notes that the answer to an open was written.
    pub(super) fn answered(&self, handle: Handle) {
        self.records().answered(handle);
    }

    /// Counts one open file less. No effect when that was done already: a release comes again when the worker that ran it
    /// died.
    pub(super) fn release(&self, handle: Handle) {
        let unused = {
            let mut inodes = self.inodes.lock();
            let Some((slot, ino)) = self.records().close(handle) else { return };
            inodes.free.opens.give(slot);
            let Some(open) = inodes.open.get_mut(&ino) else { return };
            open.files -= 1;
            if open.files > 0 {
                return;
            }
            let way = open.way;
            inodes.open.remove(&ino);
            // The reason for which a file of the upper was cached may be gone at the next open.
            if way.backing.is_some() || way.side == Side::Lower {
                inodes.idle.push(ino, way).and_then(|(_, least_used)| least_used.backing)
            } else {
                None
            }
        };
        self.idle.notify_all();
        unused.into_iter().for_each(|backing| self.give_back(backing));
    }

    /// Releases the backing file of an inode that the kernel has forgotten: it may be a deleted file.
    pub(super) fn forget(&self, ino: u64) {
        let unused = {
            let mut inodes = self.inodes.lock();
            if let Some(Some(slot)) = inodes.mapped.remove(&ino) {
                self.records().unmapped(slot);
                inodes.free.mapped.give(slot);
            }
            inodes.idle.pop(&ino).and_then(|way| way.backing)
        };
        unused.into_iter().for_each(|backing| self.give_back(backing));
    }

    /// Whether a change of an inode's bytes has to wait for readers.
    pub(super) fn must_wait(&self, ino: u64) -> bool {
        self.inodes.lock().is_held(ino)
    }

    /// Begins a change of an inode's bytes, after all readers of the library's file have closed it.
    ///
    /// # Errors
    /// `InUse` when a reader keeps the file open.
    pub(super) fn change(&self, ino: u64) -> Result<Change<'_>> {
        let deadline = Instant::now() + READERS_TIMEOUT;
        let mut inodes = self.inodes.lock();
        while inodes.is_held(ino) {
            if self.idle.wait_until(&mut inodes, deadline).timed_out() && inodes.is_held(ino) {
                return Err(Error::InUse);
            }
        }
        *inodes.changing.entry(ino).or_default() += 1;
        Ok(Change { modes: self, ino })
    }

    /// Notes that an inode was opened for reading and writing, so that it may have a shared mapping, which can outlive the
    /// open file. A store to the mapping changes the backing file's times without a request. So from now on the kernel
    /// may not cache the attributes.
    pub(super) fn may_be_mapped(&self, ino: u64) {
        {
            let mut inodes = self.inodes.lock();
            if inodes.mapped.contains_key(&ino) {
                return;
            }
            let slot = inodes.free.mapped.take();
            inodes.mapped.insert(ino, slot);
            self.records().mapped(slot, ino);
        }
        // A negative offset drops only the attributes. The kernel does not know an inode that is being created.
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino), -1, 0)
        {
            tracing::debug!(ino, %error, "the kernel has no attributes to drop");
        }
    }

    /// Whether the kernel may cache an inode's attributes.
    pub(super) fn keeps_attributes(&self, ino: u64) -> bool {
        let inodes = self.inodes.lock();
        !inodes.more_mapped && !inodes.mapped.contains_key(&ino)
    }

    fn register(&self, ino: u64, side: Side, file: BorrowedFd<'_>) -> Option<Backing> {
        let (ticket, slot) = self.inodes.lock().free.for_registering()?;
        let records = self.records();
        records.registering(ticket);
        let id = match side {
            // The kernel cannot write to a file that is registered by a read-only descriptor.
            Side::Lower => backing::read_only(file).and_then(|file| self.backings.open(file.as_fd())),
            Side::Upper => self.backings.open(file),
        };
        let backing = match id {
            Ok(id) => {
                records.registered(ticket, slot, ino, side == Side::Lower, id);
                Some(Backing { id, slot })
            }
            Err(error) => {
                records.not_registered(ticket);
                // Only the first failure is a warning: an ordinary user can register no file of another user's library.
                if self.told.swap(true, Ordering::Relaxed) {
                    tracing::debug!(%error, "a file is served without passthrough");
                } else {
                    tracing::warn!(%error, "a file is served without passthrough, and others may follow");
                }
                None
            }
        };
        let mut inodes = self.inodes.lock();
        inodes.free.registering.give(ticket);
        if backing.is_none() {
            inodes.free.backings.give(slot);
        }
        backing
    }

    fn give_back(&self, Backing { id, slot }: Backing) {
        self.records().closing(slot);
        if let Err(error) = self.backings.close(id) {
            tracing::warn!(id, %error, "cannot unregister a backing file");
        }
        self.records().closed(slot);
        self.inodes.lock().free.backings.give(slot);
    }

    fn records(&self) -> Opens<'_> {
        self.handoff.opens()
    }
}

/// A change of an inode's bytes that is in progress. Until it is dropped, the kernel gets no library file for the inode.
#[derive(Debug)]
pub(super) struct Change<'p> {
    modes: &'p Passthrough,
    ino: u64,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut inodes = self.modes.inodes.lock();
        match inodes.changing.get_mut(&self.ino) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(inodes.changing.remove(&self.ino)),
        }
    }
}

impl Inodes {
    /// Counts one more open file of an inode, if it is open or the last answer is still valid.
    fn join(&mut self, records: Opens<'_>, unique: u64, ino: u64, side: Side) -> Result<Option<Opened>> {
        if let Some(way) = self.open.get(&ino).map(|open| open.way) {
            // By invariant 3, the bytes are unchanged while the library's file is open.
            let handle = self.note_open(records, unique, ino, way)?;
            self.open.entry(ino).and_modify(|open| open.files += 1);
            return Ok(Some(Opened { answer: way.answer(side), handle }));
        }
        let changing = side == Side::Lower && self.changing.contains_key(&ino);
        let Some(way) = self.idle.peek(&ino).copied().filter(|way| way.side == side && !changing) else {
            return Ok(None);
        };
        let handle = self.note_open(records, unique, ino, way)?;
        self.idle.pop(&ino);
        self.open.insert(ino, Open { way, files: 1 });
        Ok(Some(Opened { answer: way.answer(side), handle }))
    }

    fn note_open(&mut self, records: Opens<'_>, unique: u64, ino: u64, way: Way) -> Result<Handle> {
        let slot = self.free.opens.take().ok_or_else(|| call("open")(Errno::NFILE))?;
        Ok(records.open(slot, unique, ino, way.mode()))
    }

    /// Whether a library file is open by passthrough.
    fn is_held(&self, ino: u64) -> bool {
        let open = self.open.get(&ino);
        open.is_some_and(|open| open.way.side == Side::Lower && open.way.backing.is_some())
    }
}

impl Way {
    /// The answer to an open. `now` is the layer of the bytes.
    fn answer(self, now: Side) -> Answer {
        match self.backing {
            Some(backing) => Answer::Passthrough(backing.id),
            None => Answer::Cached { keep: now == Side::Lower },
        }
    }

    fn mode(self) -> Mode {
        Mode { lower: self.side == Side::Lower, id: self.backing.map(|backing| backing.id) }
    }
}

impl Records {
    /// A place to note that a file is being registered, and one for the file itself.
    fn for_registering(&mut self) -> Option<(usize, usize)> {
        let ticket = self.registering.take()?;
        let slot = self.backings.take();
        if slot.is_none() {
            self.registering.give(ticket);
        }
        Some((ticket, slot?))
    }
}

mod take_over;

#[cfg(test)]
mod tests;
