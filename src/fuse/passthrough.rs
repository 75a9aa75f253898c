//! How the files of each inode are open, when the kernel reads and writes backing files by itself.
//!
//! It decides and counts; it opens no file and moves no bytes. Which library files may be handed to the kernel is
//! decided by [`crate::fs::Fs::backing`].
//!
//! Invariants. The first two are the kernel's, which answers EIO to an open that breaks them:
//!
//! 1. All open files of an inode are cached, or all are passthrough with one backing number.
//! 2. A backing number is not given back while a file that was opened with it is open.
//! 3. While a library file is open by passthrough, nothing changes the inode's bytes: an open for writing and a
//!    truncation wait for the readers, and then fail with ETXTBSY. The kernel could not move the readers to the private
//!    copy, and a map made through an open for writing would lead to the library's file.
//!
//! A library file that is *not* handed to the kernel is cached, and its open files see every change at once.

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
use crate::namespace::error::{Error, Result};
use crate::sys::backing::{self, Backings};

/// Idle inodes whose way of opening is remembered. A backing number among them holds one open file of the kernel's,
/// about 300 bytes, and spares the next open of that file a system call or a message to the mount helper; a heavy
/// import opens two thousand files.
const IDLE_LIMIT: NonZeroUsize = match NonZeroUsize::new(4096) {
    Some(limit) => limit,
    None => NonZeroUsize::MIN,
};

/// How long a change waits for those who have the library's file open. Most only read it once.
const PATIENCE: Duration = Duration::from_secs(1);

/// How an open is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The kernel reads and writes the backing file with this number.
    Passthrough(u32),
    /// Reads and writes come as requests.
    Cached {
        /// Whether what the kernel has cached is right: nobody has written to the file by passthrough.
        keep: bool,
    },
}

/// How the inodes of one mount are open.
#[derive(Debug)]
pub(super) struct Passthrough {
    backings: Arc<dyn Backings>,
    /// Whether the log knows that a file could not be registered.
    told: AtomicBool,
    /// Makes the kernel ask for attributes again. Not there before the mount is served.
    notifier: Arc<OnceLock<Notifier>>,
    /// A leaf lock, held for map operations only.
    inodes: Mutex<Inodes>,
    /// Signalled when an inode becomes idle.
    idle: Condvar,
}

#[derive(Debug)]
struct Inodes {
    /// Inodes that somebody has open; all others are idle.
    open: HashMap<u64, Open>,
    /// How idle inodes were open last.
    idle: LruCache<u64, Way>,
    /// Inodes whose bytes are being changed, and by how many.
    changing: HashMap<u64, u64>,
    /// Inodes that may be mapped for writing: see [`Passthrough::may_be_mapped`].
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
    /// The backing number; None for cached.
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

    /// Counts one more open file of an inode, if how to answer is known already. `side` is where its bytes are.
    pub(super) fn join(&self, ino: u64, side: Side) -> Option<Answer> {
        self.inodes.lock().join(ino, side)
    }

    /// Counts one more open file of an inode, and says how to answer. `file` has the inode's bytes; None when they may
    /// not be handed to the kernel.
    pub(super) fn open(&self, ino: u64, side: Side, file: Option<BorrowedFd<'_>>) -> Answer {
        if let Some(answer) = self.join(ino, side) {
            return answer;
        }
        // Not under the lock: it may be a message to the mount helper.
        let id = file.and_then(|file| self.register(side, file));
        let (answer, unused) = {
            let mut inodes = self.inodes.lock();
            // A change has begun: it must find no backing file of the library's.
            let changing = side == Side::Lower && inodes.changing.contains_key(&ino);
            match inodes.join(ino, side) {
                // Somebody else was as fast.
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

    /// An open file of an inode is gone.
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
            // A changed file that is cached is so for a reason that may have gone.
            if way.id.is_some() || way.side == Side::Lower {
                inodes.idle.push(ino, way).and_then(|(_, least_used)| least_used.id)
            } else {
                None
            }
        };
        self.idle.notify_all();
        unused.into_iter().for_each(|id| self.give_back(id));
    }

    /// The kernel has dropped an inode: its backing file need not be kept, and may be a deleted one.
    pub(super) fn forget(&self, ino: u64) {
        let unused = {
            let mut inodes = self.inodes.lock();
            inodes.mapped.remove(&ino);
            inodes.idle.pop(&ino).and_then(|way| way.id)
        };
        unused.into_iter().for_each(|id| self.give_back(id));
    }

    /// Whether a change of an inode's bytes would have to wait.
    pub(super) fn must_wait(&self, ino: u64) -> bool {
        self.inodes.lock().is_held(ino)
    }

    /// Begins a change of an inode's bytes, once nobody has the library's file open. None when somebody keeps it open.
    pub(super) fn change(&self, ino: u64) -> Result<Change<'_>> {
        let deadline = Instant::now() + PATIENCE;
        let mut inodes = self.inodes.lock();
        while inodes.is_held(ino) {
            if self.idle.wait_until(&mut inodes, deadline).timed_out() && inodes.is_held(ino) {
                return Err(Error::InUse);
            }
        }
        *inodes.changing.entry(ino).or_default() += 1;
        Ok(Change { modes: self, ino })
    }

    /// Notes that an inode was opened for reading and writing, so that it may be mapped, longer than it is open. A store
    /// to a map moves the backing file's times and tells nobody: from now on the kernel may not keep the attributes.
    pub(super) fn may_be_mapped(&self, ino: u64) {
        if !self.inodes.lock().mapped.insert(ino) {
            return;
        }
        // A negative offset: the attributes only. An inode that was just created is not known yet.
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino), -1, 0)
        {
            tracing::debug!(ino, %error, "the kernel had no attributes to drop");
        }
    }

    /// Whether the kernel may keep an inode's attributes.
    pub(super) fn keeps_attributes(&self, ino: u64) -> bool {
        !self.inodes.lock().mapped.contains(&ino)
    }

    fn register(&self, side: Side, file: BorrowedFd<'_>) -> Option<u32> {
        let id = match side {
            // What is registered by a read-only descriptor cannot be written to.
            Side::Lower => backing::read_only(file).and_then(|file| self.backings.open(file.as_fd())),
            Side::Upper => self.backings.open(file),
        };
        match id {
            Ok(id) => Some(id),
            // A library of somebody else's has thousands of files that an ordinary user may not register.
            Err(error) if self.told.swap(true, Ordering::Relaxed) => {
                tracing::debug!(%error, "a file is served without passthrough");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a file is served without passthrough, and others may be");
                None
            }
        }
    }

    fn give_back(&self, id: u32) {
        if let Err(error) = self.backings.close(id) {
            tracing::warn!(id, %error, "a backing file stays registered");
        }
    }
}

/// A change of an inode's bytes that is under way. Until it is dropped no library file is handed to the kernel for it.
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
    /// Adds an open file to an inode that is open, or that was open before in a way that is still right.
    fn join(&mut self, ino: u64, side: Side) -> Option<Answer> {
        if let Some(open) = self.open.get_mut(&ino) {
            // Invariant 3: if the library's file is open the bytes are still the same, wherever they are now.
            open.files += 1;
            return Some(open.way.answer(side));
        }
        let changing = side == Side::Lower && self.changing.contains_key(&ino);
        let way = self.idle.peek(&ino).copied().filter(|way| way.side == side && !changing)?;
        self.idle.pop(&ino);
        self.open.insert(ino, Open { way, files: 1 });
        Some(way.answer(side))
    }

    /// Whether the library's file is open by passthrough.
    fn is_held(&self, ino: u64) -> bool {
        let open = self.open.get(&ino);
        open.is_some_and(|open| open.way.side == Side::Lower && open.way.id.is_some())
    }
}

impl Way {
    /// `now` is where the bytes are.
    fn answer(self, now: Side) -> Answer {
        match self.id {
            Some(id) => Answer::Passthrough(id),
            None => Answer::Cached { keep: now == Side::Lower },
        }
    }
}

#[cfg(test)]
mod tests;
