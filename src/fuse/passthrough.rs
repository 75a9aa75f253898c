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

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use crate::fs::Side;
use crate::namespace::types::{Error, Result};
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

/// The open files of one mount.
#[derive(Debug)]
pub(super) struct Passthrough {
    backings: Arc<dyn Backings>,
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
    /// See [`Passthrough::may_be_mapped`].
    mapped: HashSet<u64>,
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
    /// The backing number. None for cached.
    id: Option<u32>,
}

impl Passthrough {
    pub(super) fn new(backings: Arc<dyn Backings>, notifier: Arc<OnceLock<Notifier>>) -> Self {
        Self {
            backings,
            told: AtomicBool::new(false),
            notifier,
            inodes: Mutex::new(Inodes {
                open: HashMap::new(),
                idle: LruCache::new(IDLE_LIMIT),
                changing: HashMap::new(),
                mapped: HashSet::new(),
            }),
            idle: Condvar::new(),
        }
    }

    /// Counts one more open file of an inode, if the answer is known already. `side` is the layer of its bytes.
    pub(super) fn join(&self, ino: u64, side: Side) -> Option<Answer> {
        self.inodes.lock().join(ino, side)
    }

    /// Counts one more open file of an inode, and returns the answer. `file` is the backing file, or None if the kernel
    /// may not have it.
    pub(super) fn open(&self, ino: u64, side: Side, file: Option<BorrowedFd<'_>>) -> Answer {
        if let Some(answer) = self.join(ino, side) {
            return answer;
        }
        // Without the lock, because this may be a message to the mount helper.
        let id = file.and_then(|file| self.register(side, file));
        let (answer, unused) = {
            let mut inodes = self.inodes.lock();
            // During a change, no library file may be open by passthrough.
            let changing = side == Side::Lower && inodes.changing.contains_key(&ino);
            match inodes.join(ino, side) {
                // Another thread registered the file meanwhile.
                Some(answer) => (answer, [id, None]),
                None => {
                    let way = Way { side, id: id.filter(|_| !changing) };
                    inodes.open.insert(ino, Open { way, files: 1 });
                    let old = inodes.idle.pop(&ino).and_then(|old| old.id);
                    (way.answer(side), [old, id.filter(|_| changing)])
                }
            }
        };
        unused.into_iter().flatten().for_each(|id| self.give_back(id));
        answer
    }

    /// Counts one open file of an inode less.
    pub(super) fn release(&self, ino: u64) {
        let unused = {
            let mut inodes = self.inodes.lock();
            let Some(open) = inodes.open.get_mut(&ino) else { return };
            open.files -= 1;
            if open.files > 0 {
                return;
            }
            let way = open.way;
            inodes.open.remove(&ino);
            // The reason for which a file of the upper was cached may be gone at the next open.
            if way.id.is_some() || way.side == Side::Lower {
                inodes.idle.push(ino, way).and_then(|(_, least_used)| least_used.id)
            } else {
                None
            }
        };
        self.idle.notify_all();
        unused.into_iter().for_each(|id| self.give_back(id));
    }

    /// Releases the backing file of an inode that the kernel has forgotten: it may be a deleted file.
    pub(super) fn forget(&self, ino: u64) {
        let unused = {
            let mut inodes = self.inodes.lock();
            inodes.mapped.remove(&ino);
            inodes.idle.pop(&ino).and_then(|way| way.id)
        };
        unused.into_iter().for_each(|id| self.give_back(id));
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
        if !self.inodes.lock().mapped.insert(ino) {
            return;
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
        !self.inodes.lock().mapped.contains(&ino)
    }

    fn register(&self, side: Side, file: BorrowedFd<'_>) -> Option<u32> {
        let id = match side {
            // The kernel cannot write to a file that is registered by a read-only descriptor.
            Side::Lower => backing::read_only(file).and_then(|file| self.backings.open(file.as_fd())),
            Side::Upper => self.backings.open(file),
        };
        id.inspect_err(|error| {
            // Only the first failure is a warning: an ordinary user can register no file of another user's library.
            if self.told.swap(true, Ordering::Relaxed) {
                tracing::debug!(%error, "a file is served without passthrough");
            } else {
                tracing::warn!(%error, "a file is served without passthrough, and others may follow");
            }
        })
        .ok()
    }

    fn give_back(&self, id: u32) {
        if let Err(error) = self.backings.close(id) {
            tracing::warn!(id, %error, "cannot unregister a backing file");
        }
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
    fn join(&mut self, ino: u64, side: Side) -> Option<Answer> {
        if let Some(open) = self.open.get_mut(&ino) {
            // By invariant 3, the bytes are unchanged while the library's file is open.
            open.files += 1;
            return Some(open.way.answer(side));
        }
        let changing = side == Side::Lower && self.changing.contains_key(&ino);
        let way = self.idle.peek(&ino).copied().filter(|way| way.side == side && !changing)?;
        self.idle.pop(&ino);
        self.open.insert(ino, Open { way, files: 1 });
        Some(way.answer(side))
    }

    /// Whether a library file is open by passthrough.
    fn is_held(&self, ino: u64) -> bool {
        let open = self.open.get(&ino);
        open.is_some_and(|open| open.way.side == Side::Lower && open.way.id.is_some())
    }
}

impl Way {
    /// The answer to an open. `now` is the layer of the bytes.
    fn answer(self, now: Side) -> Answer {
        match self.id {
            Some(id) => Answer::Passthrough(id),
            None => Answer::Cached { keep: now == Side::Lower },
        }
    }
}

#[cfg(test)]
mod tests;
