//! What each thread of a worker is doing, for the worker after it: requests take effect once, and one that kills its
//! workers is not tried for ever.
//!
//! When a worker dies, the kernel sends again every request that was not answered. The request may have been done. Most
//! operations can simply run again. The others make a *note* first, when they have found that what they are going to make
//! is not there yet, or that what they are going to remove is there. While a request is unanswered, the kernel lets nobody
//! else change the same name (it holds the locks of the directories) or attribute (that of the inode). So if a request
//! comes again, has a note, and finds its effect in place, the effect is its own: it answers as it would have the first
//! time. Without a note, or if the effect is not there, it runs again.
//!
//! Each thread has a *slot*, which holds the number of the request that it works on, and the last note that it made. It
//! writes them with plain stores. A note needs not be removed: the kernel never uses the number of a request again.
//!
//! A worker never writes to the slots of those before it: slots are used in turn, as a ring. So the slots are also the
//! history that tells how many workers died while they worked on a request. A request that came with the [`RESENT`] bit,
//! and that was under work at two crashes, is *poisoned*: it gets an error instead of a third worker. A thread that crashes
//! marks its slot, so the requests of other threads do not count ([`note_crashes`]).
//!
//! Limits: the ring holds `SLOTS` threads. A worker starts about ten, so a note lasts for hundreds of workers, and its
//! request comes back to the first of them. A thread that finds no slot makes no notes.

pub mod progress;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Handoff;
use crate::sys::crash::{self, is_crash};
use crate::sys::request_buffer;

/// The bit of a request's number by which the kernel says that it may have sent the request before
/// (`FUSE_UNIQUE_RESEND`).
pub const RESENT: u64 = 1 << 63;

/// The number of slots.
const SLOTS: usize = 4096;

/// Words of a slot: two lines of a processor's cache, so that no two threads write to one.
const SLOT: usize = 16;

/// The first word of the first slot.
const FIRST: usize = 1024;

/// So many kills do not count, because they need not be the request's fault: somebody who tests, a lack of memory.
const KILLS_FORGIVEN: usize = 18;

/// A request that this many workers died of is poisoned.
const DEATHS_ALLOWED: usize = 2;

/// The words before the slots.
mod word {
    use std::ops::Range;

    /// The number of slots that were used so far.
    pub(super) const CURSOR: usize = 0;
    /// The most bytes that a write request had so far.
    pub(super) const LARGEST: usize = 1;
    /// How workers died: number of the worker * 256 + signal + 1, in turn.
    pub(super) const DEATHS: Range<usize> = 64..128;
}

/// The words of a slot.
mod slot {
    /// Number of the worker + 1; 0 in a slot that was never used.
    pub(super) const WORKER: usize = 0;
    /// The request that the thread works on, or has worked on last.
    pub(super) const WORKING: usize = 1;
    /// The request of the note; 0 while there is none. The state word of the note.
    pub(super) const NOTE: usize = 2;
    /// What the request was about.
    pub(super) const WITNESS: usize = 3;
    /// 1 if the worker died of a crash of this thread.
    pub(super) const CRASHED: usize = 4;
    /// The number of the thread.
    pub(super) const THREAD: usize = 5;
}

/// What this process knows beside the shared memory.
#[derive(Debug, Default)]
pub(super) struct Local {
    /// Slots of threads that have ended. A leaf lock.
    free: Mutex<Vec<usize>>,
    /// What the workers before the one of this number left, by request. Read at the first request that comes again. A
    /// leaf lock.
    earlier: Mutex<Option<(u64, Arc<Everything>)>>,
}

/// What earlier workers left, by the number of the request.
#[derive(Debug, Default)]
struct Everything {
    requests: HashMap<u64, Earlier>,
    /// The workers of which a thread is known to have crashed.
    crashed: HashSet<u64>,
}

/// What earlier workers left of one request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Earlier {
    /// The last note, and the number of the worker that made it.
    note: Option<(u64, Note)>,
    /// The workers that had it under work when they died, and whether it was a crash of the thread that did.
    workers: Vec<(u64, bool)>,
}

/// A note that an earlier worker made: the precondition of the operation was true, so its effect, if it is there, is the
/// request's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Note {
    /// As given to [`Requests::note`].
    pub witness: u64,
}

/// The region of the shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Requests<'h> {
    words: &'h [AtomicU64],
    local: &'h Arc<Local>,
    worker: u64,
}

/// The slot of a thread, until the thread ends.
struct Taken {
    local: Arc<Local>,
    slot: Option<usize>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.local.free.lock().push(slot);
        }
    }
}

/// The memory of the mount that this process serves.
static SERVED: OnceLock<Arc<Handoff>> = OnceLock::new();

/// Has a crash of this process noted, so that only the request that was to blame counts.
///
/// # Errors
/// Those of sigaction(2).
pub fn note_crashes(handoff: &Arc<Handoff>) -> Result<(), Errno> {
    SERVED.get_or_init(|| Arc::clone(handoff));
    crash::before(|| {
        if let Some(handoff) = SERVED.get() {
            handoff.requests().crashed();
        }
    })
}

thread_local! {
    static TAKEN: RefCell<Option<Taken>> = const { RefCell::new(None) };
    /// The memory and the worker for which the thread has its slot, and the first word of the slot, 0 without one. Beside
    /// `TAKEN`, so that a request needs no more than this.
    static AT: Cell<((usize, u64), usize)> = const { Cell::new(((0, 0), 0)) };
    /// The request that the thread works on, as the kernel sent it. 0 without one.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

impl<'h> Requests<'h> {
    /// `worker`: the number of this worker.
    pub(super) fn new(words: &'h [AtomicU64], local: &'h Arc<Local>, worker: u64) -> Self {
        Self { words, local, worker }
    }

    /// Notes the size of a write request, for [`Requests::largest`].
    pub fn written(self, len: usize) {
        if let Some(largest) = self.words.get(word::LARGEST)
            && largest.load(Relaxed) < len as u64
        {
            let before = largest.fetch_max(len as u64, Relaxed);
            if request_buffer::is_large(len) && !request_buffer::is_large(before as usize) {
                request_buffer::prepare(len);
            }
        }
    }

    /// The most bytes that a write request had so far.
    #[must_use]
    pub fn largest(self) -> usize {
        self.words.get(word::LARGEST).map_or(0, |largest| largest.load(Relaxed) as usize)
    }

    /// Notes that the calling thread works on a request, which the kernel sent with this number. False if the request is
    /// poisoned: earlier workers died of it.
    #[must_use]
    pub fn begin(self, unique: u64) -> bool {
        CURRENT.set(unique);
        if let Some(slot) = self.slot() {
            store(slot, slot::WORKING, unique & !RESENT);
        }
        unique & RESENT == 0 || !self.is_poisoned(unique)
    }

    /// Whether the kernel may have sent the request of the calling thread to an earlier worker.
    #[must_use]
    pub fn is_resent(self) -> bool {
        self.is_current() && CURRENT.get() & RESENT != 0
    }

    /// Notes that the precondition of the calling thread's operation is true, and that it is about to be changed.
    /// `witness` is what [`Note::witness`] returns. Without a request there is nothing to note.
    pub fn note(self, witness: u64) {
        let unique = CURRENT.get() & !RESENT;
        if unique == 0 || !self.is_current() {
            return;
        }
        let Some(slot) = self.slot() else { return };
        store(slot, slot::NOTE, 0);
        // Not before the line above: a process that dies here has a note without a request.
        std::sync::atomic::fence(Release);
        store(slot, slot::WITNESS, witness);
        if let Some(note) = slot.get(slot::NOTE) {
            note.store(unique, Release);
        }
    }

    /// The note that an earlier worker made for the request of the calling thread. None for a request that is new.
    #[must_use]
    pub fn noted(self) -> Option<Note> {
        if !self.is_resent() {
            return None;
        }
        Some(self.everything().requests.get(&(CURRENT.get() & !RESENT))?.note?.1)
    }

    /// Notes that the worker is about to die of a crash of the calling thread. For a handler of signals.
    fn crashed(self) {
        let (id, first) = AT.get();
        let crashed = self.words.get(first + slot::CRASHED).filter(|_| id == self.id() && first != 0);
        if let Some(crashed) = crashed {
            crashed.store(1, Relaxed);
        }
    }

    /// Notes how a worker died. The keeper does so before it starts the next one.
    pub fn worker_died(self, worker: u64, signal: i32) {
        let deaths = self.words.get(word::DEATHS).unwrap_or_default();
        let at = usize::try_from(worker).unwrap_or(0) % deaths.len().max(1);
        if let Some(death) = deaths.get(at) {
            death.store((worker << 8) | ((u64::from(signal.unsigned_abs()) & 0x7f) + 1), Release);
        }
    }

    /// Whether too many workers died of a request.
    fn is_poisoned(self, unique: u64) -> bool {
        let all = self.everything();
        let (mut crashes, mut kills) = (0_usize, 0_usize);
        for (worker, crashed_here) in
            all.requests.get(&(unique & !RESENT)).iter().flat_map(|one| &one.workers)
        {
            match self.death_of(*worker) {
                // Another thread has crashed.
                Some(signal) if is_crash(signal) && !crashed_here && all.crashed.contains(worker) => {}
                Some(signal) if is_crash(signal) => crashes += 1,
                Some(_) => kills += 1,
                None => {}
            }
        }
        crashes + kills.saturating_sub(KILLS_FORGIVEN) >= DEATHS_ALLOWED
    }

    /// The signal of which a worker died. None when nobody has noted it, or it was too long ago.
    fn death_of(self, worker: u64) -> Option<i32> {
        let deaths = self.words.get(word::DEATHS)?.iter().map(|death| death.load(Acquire));
        let death = deaths.into_iter().find(|death| *death != 0 && death >> 8 == worker)?;
        i32::try_from((death & 0xff) - 1).ok()
    }

    /// What earlier workers left.
    fn everything(self) -> Arc<Everything> {
        let mut earlier = self.local.earlier.lock();
        if let Some((worker, all)) = &*earlier
            && *worker == self.worker
        {
            return Arc::clone(all);
        }
        let all = Arc::new(self.read_earlier());
        *earlier = Some((self.worker, Arc::clone(&all)));
        all
    }

    /// Reads the slots of all earlier workers.
    fn read_earlier(self) -> Everything {
        let mut all = Everything::default();
        let used = self.words.get(word::CURSOR).map_or(0, |used| used.load(Relaxed));
        for at in 0..usize::try_from(used).unwrap_or(SLOTS).min(SLOTS) {
            let Some(words) = self.words_of(at) else { break };
            let read = |at: usize| words.get(at).map_or(0, |word| word.load(Acquire));
            let Some(worker) = read(slot::WORKER).checked_sub(1).filter(|worker| *worker < self.worker)
            else {
                continue;
            };
            let (working, noted) = (read(slot::WORKING), read(slot::NOTE));
            let crashed = read(slot::CRASHED) == 1;
            if crashed {
                all.crashed.insert(worker);
            }
            if working != 0 {
                let workers = &mut all.requests.entry(working).or_default().workers;
                // A request can move from a thread to another.
                match workers.iter_mut().find(|(by, _)| *by == worker) {
                    Some((_, here)) => *here |= crashed,
                    None => workers.push((worker, crashed)),
                }
            }
            if noted != 0 {
                let note = Note { witness: read(slot::WITNESS) };
                let last = &mut all.requests.entry(noted).or_default().note;
                if last.is_none_or(|(by, _)| by <= worker) {
                    *last = Some((worker, note));
                }
            }
        }
        all
    }

    /// The slot of the calling thread.
    fn slot(self) -> Option<&'h [AtomicU64]> {
        let (id, first) = AT.get();
        let first = if id == self.id() { first } else { self.take_slot() };
        self.words.get(first..first + SLOT).filter(|_| first != 0)
    }

    /// Finds a slot for the calling thread. Returns its first word, 0 without one.
    #[cold]
    fn take_slot(self) -> usize {
        let free = loop {
            match self.local.free.lock().pop() {
                Some(slot) if !self.has(slot) => {}
                free => break free,
            }
        };
        let found = free.or_else(|| self.next_slot());
        let first = found.map_or(0, |slot| FIRST + slot * SLOT);
        if let Some(words) = found.and_then(|slot| self.words_of(slot)) {
            let thread = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
            store(words, slot::THREAD, thread.into());
        }
        if found.is_none() {
            tracing::warn!(
                "too many threads: a request that is sent again after a death of the daemon may fail"
            );
        }
        let taken = Taken { local: Arc::clone(self.local), slot: found };
        let before = TAKEN.with_borrow_mut(|slot| slot.replace(taken));
        drop(before);
        AT.set((self.id(), first));
        first
    }

    /// The next slot of the ring that no thread of this worker has, emptied.
    fn next_slot(self) -> Option<usize> {
        for _ in 0..SLOTS {
            let at = self.words.get(word::CURSOR)?.fetch_add(1, Relaxed);
            let at = usize::try_from(at).ok()? % SLOTS;
            if self.has(at) {
                continue;
            }
            let words = self.words_of(at)?;
            for word in [slot::NOTE, slot::WORKING, slot::WITNESS, slot::CRASHED] {
                store(words, word, 0);
            }
            words.get(slot::WORKER)?.store(self.worker + 1, Release);
            return Some(at);
        }
        None
    }

    /// Whether a slot is one of this worker.
    fn has(self, slot: usize) -> bool {
        let worker = self.words_of(slot).and_then(|words| words.get(slot::WORKER));
        worker.is_some_and(|worker| worker.load(Relaxed) == self.worker + 1)
    }

    fn words_of(self, slot: usize) -> Option<&'h [AtomicU64]> {
        let first = FIRST + slot * SLOT;
        self.words.get(first..first + SLOT)
    }

    /// Tells memories and workers apart: tests have several in one process.
    fn id(self) -> (usize, u64) {
        (self.words.as_ptr() as usize, self.worker)
    }

    /// Whether the request of the calling thread is one of this memory.
    fn is_current(self) -> bool {
        AT.get().0 == self.id()
    }
}

fn store(words: &[AtomicU64], at: usize, value: u64) {
    if let Some(word) = words.get(at) {
        word.store(value, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::shared_memory::SharedMemory;

    /// The workers of one mount. Each acts in a thread of its own.
    struct Workers {
        memory: SharedMemory,
        number: u64,
    }

    impl Workers {
        fn new() -> Self {
            Self { memory: SharedMemory::private(1 << 17).unwrap(), number: 0 }
        }

        /// Runs a worker, which then dies of the signal.
        fn run(&mut self, signal: i32, act: impl Fn(Requests<'_>) + Send + Sync) {
            let local = Arc::default();
            let requests = Requests::new(self.memory.words(), &local, self.number);
            std::thread::scope(|scope| scope.spawn(|| act(requests)).join().unwrap());
            requests.worker_died(self.number, signal);
            self.number += 1;
        }
    }

    #[test]
    fn a_note_is_found_by_the_same_request_that_comes_again() {
        let mut workers = Workers::new();
        workers.run(9, |requests| {
            assert!(requests.begin(10));
            requests.note(7);
            assert_eq!(requests.noted(), None, "the request is new");
        });
        workers.run(9, |requests| {
            assert!(requests.begin(12 | RESENT));
            assert_eq!((requests.is_resent(), requests.noted()), (true, None), "another request");
            assert!(requests.begin(10), "numbers are never used again; without the bit it is new");
            assert_eq!((requests.is_resent(), requests.noted()), (false, None));
            assert!(requests.begin(10 | RESENT));
            assert_eq!(requests.noted(), Some(Note { witness: 7 }));
        });
        workers.run(9, |requests| {
            assert!(requests.begin(10 | RESENT));
            assert_eq!(requests.noted(), Some(Note { witness: 7 }), "also by the worker after the next");
            requests.note(8);
        });
        workers.run(9, |requests| {
            assert!(requests.begin(10 | RESENT));
            assert_eq!(requests.noted(), Some(Note { witness: 8 }), "the last note counts");
        });
    }

    #[test]
    fn a_thread_has_one_note_and_makes_none_without_a_request() {
        let mut workers = Workers::new();
        workers.run(9, |requests| {
            requests.note(1);
            for unique in [2, 4] {
                assert!(requests.begin(unique));
                requests.note(unique);
            }
            assert!(requests.begin(6));
        });
        workers.run(9, |requests| {
            for (unique, noted) in [(0, None), (2, None), (4, Some(Note { witness: 4 })), (6, None)] {
                assert!(requests.begin(unique | RESENT));
                assert_eq!(requests.noted(), noted, "{unique}");
            }
        });
    }

    #[test]
    fn a_note_outlives_many_workers_and_their_threads() {
        let mut workers = Workers::new();
        workers.run(9, |requests| {
            assert!(requests.begin(2));
            requests.note(5);
        });
        for number in 0..200 {
            workers.run(9, |requests| {
                std::thread::scope(|scope| {
                    for thread in 0..8 {
                        scope.spawn(move || {
                            assert!(requests.begin(1000 + number * 100 + thread * 2));
                            requests.note(0);
                        });
                    }
                });
                // Threads that come and go use the slots of earlier ones of the same worker.
                for _ in 0..50 {
                    std::thread::scope(|scope| drop(scope.spawn(|| requests.begin(100))));
                }
            });
        }
        workers.run(9, |requests| {
            assert!(requests.begin(2 | RESENT));
            assert_eq!(requests.noted(), Some(Note { witness: 5 }));
        });
    }

    #[test]
    fn more_threads_than_slots_do_no_harm() {
        let mut workers = Workers::new();
        workers.run(9, |requests| {
            for _ in 0..SLOTS {
                assert!(requests.next_slot().is_some());
            }
            assert!(requests.begin(2));
            requests.note(1);
            assert_eq!(requests.next_slot(), None);
        });
        workers.run(9, |requests| {
            assert!(requests.begin(2 | RESENT));
            assert_eq!(requests.noted(), None);
        });
    }

    #[test]
    fn a_request_that_two_workers_crashed_at_is_poisoned() {
        for (signals, poisoned) in [
            (vec![11], false),
            (vec![11, 7], true),
            (vec![6, 9, 6], true),
            (vec![9; KILLS_FORGIVEN + 1], false),
            (vec![9; KILLS_FORGIVEN + 2], true),
            ([vec![9; KILLS_FORGIVEN + 1], vec![11]].concat(), true),
            (vec![15, 11], false),
        ] {
            let mut workers = Workers::new();
            for signal in &signals {
                workers.run(*signal, |requests| {
                    assert!(requests.begin(2));
                });
            }
            workers.run(9, |requests| {
                assert_eq!(requests.begin(2 | RESENT), !poisoned, "{signals:?}");
                assert!(requests.begin(4 | RESENT), "{signals:?}: another one");
                assert!(requests.begin(2), "{signals:?}: without the bit it is new");
            });
        }
    }

    #[test]
    fn only_the_thread_that_crashed_is_to_blame() {
        let mut workers = Workers::new();
        for _ in 0..3 {
            workers.run(11, |requests| {
                assert!(requests.begin(2));
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        assert!(requests.begin(4));
                        requests.crashed();
                    });
                });
            });
        }
        workers.run(9, |requests| {
            assert!(requests.begin(2 | RESENT) && !requests.begin(4 | RESENT));
        });
    }

    #[test]
    fn a_request_that_was_done_before_the_crash_is_not_poisoned() {
        let mut workers = Workers::new();
        for _ in 0..5 {
            workers.run(11, |requests| {
                assert!(requests.begin(2));
                assert!(requests.begin(4));
            });
        }
        workers.run(9, |requests| {
            assert!(requests.begin(2 | RESENT) && !requests.begin(4 | RESENT));
        });
    }

    #[test]
    fn one_thread_can_serve_two_memories() {
        let (one, other) = (Handoff::private().unwrap(), Handoff::private().unwrap());
        assert!(one.requests().begin(2 | RESENT));
        assert!(one.requests().is_resent() && !other.requests().is_resent());
        assert!(other.requests().begin(4));
        assert!(!one.requests().is_resent() && !other.requests().is_resent());
    }
}
