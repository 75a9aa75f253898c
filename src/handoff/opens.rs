//! What the kernel has open by passthrough, and how a successor finds out.
//!
//! The kernel binds an inode to one I/O mode and one backing file while it is open, and refuses (EIO) an open that is
//! answered otherwise. So the next worker must answer exactly as its predecessor did, and must know when the last open
//! file is closed. A count could not be kept right: a worker can die between counting an open and answering it, and a
//! release that was counted but not answered is sent again. So each open file has a record of its own, and the handle
//! that the kernel returns at the release names the record. Adding and removing a record is the store of one word, and a
//! second release finds that the record has gone.
//!
//! Three tables:
//! * *opens*: the request that opened the file, the inode, and the answer. A record is `asked` until the answer was
//!   written. The next worker asks the kernel whether such a request still waits for its answer (`sys::fuse_message`). If
//!   so, it will come again, and the record goes. If not, the file is open.
//! * *backings*: the numbers of registered files, also of files that are not open at present.
//! * *mapped*: inodes whose attributes may change without a request.
//!
//! A number that the kernel has assigned and that is not in the table yet would leak. So a thread notes before it
//! registers a file which number was the newest one. The kernel assigns numbers in order, so the next worker finds the
//! lost ones between that one and its own.
//!
//! Invariant: the state of a record is written after its other words, and cleared before they change.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// The first words of the region.
mod word {
    /// Number of records of each table that were ever used.
    pub(super) const USED_OPENS: usize = 0;
    pub(super) const USED_BACKINGS: usize = 1;
    pub(super) const USED_MAPPED: usize = 2;
    /// The newest backing number that was noted. There can be newer ones.
    pub(super) const NEWEST: usize = 3;
    /// No number that was lost in an earlier worker is larger.
    pub(super) const LARGEST: usize = 4;
    /// Not 0 when an inode found no room in the table of mapped ones.
    pub(super) const MORE_MAPPED: usize = 5;
}

/// The newest number before a file is registered, plus 1; 0 is free.
const REGISTERING: Range<usize> = 512..1024;
const OPENS: Range<usize> = REGISTERING.end..REGISTERING.end + OPEN_WORDS * MOST_OPENS;
const BACKINGS: Range<usize> = OPENS.end..OPENS.end + BACKING_WORDS * MOST_BACKINGS;
const MAPPED: Range<usize> = BACKINGS.end..BACKINGS.end + MOST_MAPPED;

/// Words of a record: the request, the inode, the state.
const OPEN_WORDS: usize = 3;
/// Words of a record: the inode, the state.
const BACKING_WORDS: usize = 2;

/// How many open files a mount can have.
pub const MOST_OPENS: usize = 1 << 18;
/// How many files can be registered at a time.
pub const MOST_BACKINGS: usize = 1 << 15;
/// How many inodes are remembered as mapped. With more, all of them are.
pub const MOST_MAPPED: usize = 1 << 17;
/// How many files can be in the course of being registered.
pub const MOST_REGISTERING: usize = REGISTERING.end - REGISTERING.start;

// The state word of an open: 2 bits of phase, 1 bit of layer, 29 bits of generation, 32 bits of backing number.
const PHASE: u64 = 0b11;
const LOWER: u64 = 0b100;
const GENERATION_SHIFT: u32 = 3;
const GENERATION: u64 = ((1 << 29) - 1) << GENERATION_SHIFT;
const ID_SHIFT: u32 = 32;

/// Phases of an open, and of a backing. 0 is free.
const ASKED: u64 = 1;
const ANSWERED: u64 = 2;
const REGISTERED: u64 = 1;
const CLOSING: u64 = 2;

/// How an inode's files are open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// Its bytes are the library's.
    pub lower: bool,
    /// The backing number. None for cached.
    pub id: Option<u32>,
}

impl Mode {
    fn bits(self) -> u64 {
        let lower = if self.lower { LOWER } else { 0 };
        (u64::from(self.id.unwrap_or(0)) << ID_SHIFT) | lower
    }

    fn of(state: u64) -> Self {
        let id = u32::try_from(state >> ID_SHIFT).unwrap_or(0);
        Self { lower: state & LOWER != 0, id: (id != 0).then_some(id) }
    }
}

/// The handle of an open file: it names the record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle(u64);

impl Handle {
    /// The handle of a file that is not counted.
    pub const NONE: Self = Self(0);

    /// A handle that the kernel sent.
    #[must_use]
    pub fn of(number: u64) -> Self {
        Self(number)
    }

    /// The number for the kernel.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    fn new(slot: usize, state: u64) -> Self {
        Self(((state & GENERATION) << (ID_SHIFT - GENERATION_SHIFT)) | (slot as u64 + 1))
    }

    /// The place of the record.
    #[must_use]
    pub fn slot(self) -> Option<usize> {
        usize::try_from(self.0 & u64::from(u32::MAX)).ok()?.checked_sub(1)
    }

    /// The bits of the state word that have to agree.
    fn generation(self) -> u64 {
        (self.0 >> (ID_SHIFT - GENERATION_SHIFT)) & GENERATION
    }
}

/// A record of an open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Names the record.
    pub handle: Handle,
    /// The number of the request that opened the file.
    pub unique: u64,
    /// The inode.
    pub ino: u64,
    /// The answer.
    pub mode: Mode,
    /// Whether the answer is known to be written.
    pub is_answered: bool,
}

/// A record of a registered file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backing {
    /// The place of the record.
    pub slot: usize,
    /// The inode that it was registered for.
    pub ino: u64,
    /// Its bytes are the library's.
    pub lower: bool,
    /// The backing number.
    pub id: u32,
    /// It is being closed, or was.
    pub is_closing: bool,
}

/// The region of the shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Opens<'h> {
    words: &'h [AtomicU64],
}

impl<'h> Opens<'h> {
    pub(super) fn new(words: &'h [AtomicU64]) -> Self {
        Self { words }
    }

    /// Notes an open file whose answer is about to be written. The caller chooses a free record below [`MOST_OPENS`].
    #[must_use]
    pub fn open(&self, slot: usize, unique: u64, ino: u64, mode: Mode) -> Handle {
        self.use_up_to(word::USED_OPENS, slot);
        let [request, inode, state] = self.record::<OPEN_WORDS>(OPENS, slot);
        request.store(unique, Release);
        inode.store(ino, Release);
        let before = state.load(Acquire) & GENERATION;
        let generation = before.wrapping_add(1 << GENERATION_SHIFT) & GENERATION;
        state.store(mode.bits() | generation | ASKED, Release);
        Handle::new(slot, generation)
    }

    /// Notes that the kernel has the answer. No effect if the file was closed since.
    pub fn answered(&self, handle: Handle) {
        let Some((_, [_, _, state])) = self.find(handle) else { return };
        let now = state.load(Acquire);
        if now & PHASE == ASKED && now & GENERATION == handle.generation() {
            // Another thread may have removed the record just now; then it stays removed.
            state.compare_exchange(now, (now & !PHASE) | ANSWERED, AcqRel, Relaxed).ok();
        }
    }

    /// Removes the record of a file that was closed. Returns its place and its inode, or None if it has gone already.
    pub fn close(&self, handle: Handle) -> Option<(usize, u64)> {
        let (slot, [_, inode, state]) = self.find(handle)?;
        let ino = inode.load(Acquire);
        let closed = state.fetch_update(AcqRel, Acquire, |now| {
            (now & PHASE != 0 && now & GENERATION == handle.generation()).then_some(now & GENERATION)
        });
        closed.ok().map(|_| (slot, ino))
    }

    /// Decides about the files whose answer may not have been written: those that still wait for it are not open, and will
    /// be opened again. Called before the kernel sends the requests again.
    pub fn settle(self, is_waiting: impl Fn(&Opened) -> bool) {
        for open in self.opens().filter(|open| !open.is_answered) {
            if is_waiting(&open) {
                self.close(open.handle);
            } else {
                self.answered(open.handle);
            }
        }
    }

    /// All open files.
    pub fn opens(self) -> impl Iterator<Item = Opened> + 'h {
        self.used(word::USED_OPENS, MOST_OPENS).filter_map(move |slot| {
            let [request, inode, state] = self.record::<OPEN_WORDS>(OPENS, slot);
            let state = state.load(Acquire);
            (state & PHASE != 0).then(|| Opened {
                handle: Handle::new(slot, state),
                unique: request.load(Acquire),
                ino: inode.load(Acquire),
                mode: Mode::of(state),
                is_answered: state & PHASE == ANSWERED,
            })
        })
    }

    /// Notes that a file is about to be registered. The caller chooses a free record below [`MOST_REGISTERING`].
    pub fn registering(&self, slot: usize) {
        let newest = self.word(word::NEWEST).load(Acquire);
        self.word(REGISTERING.start + slot).store(newest + 1, Release);
    }

    /// Notes a file that was registered, in a free record below [`MOST_BACKINGS`], and ends [`Opens::registering`].
    pub fn registered(&self, registering: usize, slot: usize, ino: u64, lower: bool, id: u32) {
        self.use_up_to(word::USED_BACKINGS, slot);
        let [inode, state] = self.record::<BACKING_WORDS>(BACKINGS, slot);
        inode.store(ino, Release);
        state.store(Mode { lower, id: Some(id) }.bits() | REGISTERED, Release);
        self.word(word::NEWEST).fetch_max(u64::from(id), AcqRel);
        self.not_registered(registering);
    }

    /// Ends [`Opens::registering`] when the file was not registered.
    pub fn not_registered(&self, registering: usize) {
        self.word(REGISTERING.start + registering).store(0, Release);
    }

    /// Notes that a backing number is about to be closed.
    pub fn closing(&self, slot: usize) {
        let [_, state] = self.record::<BACKING_WORDS>(BACKINGS, slot);
        state.store((state.load(Acquire) & !PHASE) | CLOSING, Release);
    }

    /// Removes the record of a backing number that was closed.
    pub fn closed(&self, slot: usize) {
        let [_, state] = self.record::<BACKING_WORDS>(BACKINGS, slot);
        state.store(0, Release);
    }

    /// All backing numbers.
    pub fn backings(self) -> impl Iterator<Item = Backing> + 'h {
        self.used(word::USED_BACKINGS, MOST_BACKINGS).filter_map(move |slot| {
            let [inode, state] = self.record::<BACKING_WORDS>(BACKINGS, slot);
            let state = state.load(Acquire);
            let mode = Mode::of(state);
            let id = mode.id.filter(|_| state & PHASE != 0)?;
            let (ino, is_closing) = (inode.load(Acquire), state & PHASE == CLOSING);
            Some(Backing { slot, ino, lower: mode.lower, id, is_closing })
        })
    }

    /// The numbers that may belong to files whose registration was cut short: those since the first of them began, and as
    /// many new ones as there are of them.
    #[must_use]
    pub fn cut_short(&self) -> Range<u32> {
        let before = REGISTERING.filter_map(|at| self.word(at).load(Acquire).checked_sub(1));
        let (first, count) = before.fold((u64::MAX, 0), |(first, count), at| (first.min(at), count + 1));
        let newest = self.word(word::NEWEST).load(Acquire).max(self.word(word::LARGEST).load(Acquire));
        let number = |at: u64| u32::try_from(at.saturating_add(1)).unwrap_or(u32::MAX);
        if count == 0 { 0..0 } else { number(first)..number(newest.saturating_add(count)) }
    }

    /// Ends all registrations that were cut short, after the numbers of [`Opens::cut_short`] were closed.
    pub fn end_registering(&self) {
        let largest = self.cut_short().end.saturating_sub(1);
        self.word(word::LARGEST).fetch_max(largest.into(), AcqRel);
        REGISTERING.for_each(|at| self.word(at).store(0, Release));
    }

    /// Notes an inode whose attributes may change without a request. Without a record, all inodes count as such later.
    pub fn mapped(&self, slot: Option<usize>, ino: u64) {
        match slot {
            Some(slot) => {
                self.use_up_to(word::USED_MAPPED, slot);
                self.word(MAPPED.start + slot).store(ino, Release);
            }
            None => self.word(word::MORE_MAPPED).store(1, Release),
        }
    }

    /// Removes the record of a mapped inode.
    pub fn unmapped(&self, slot: usize) {
        self.word(MAPPED.start + slot).store(0, Release);
    }

    /// The records of mapped inodes: place and inode.
    pub fn all_mapped(self) -> impl Iterator<Item = (usize, u64)> + 'h {
        let records = self.used(word::USED_MAPPED, MOST_MAPPED);
        records
            .map(move |slot| (slot, self.word(MAPPED.start + slot).load(Acquire)))
            .filter(|(_, ino)| *ino != 0)
    }

    /// Whether there are more mapped inodes than records.
    #[must_use]
    pub fn has_more_mapped(&self) -> bool {
        self.word(word::MORE_MAPPED).load(Acquire) != 0
    }

    /// The record of a handle, which may be of any age.
    fn find(&self, handle: Handle) -> Option<(usize, [&'h AtomicU64; OPEN_WORDS])> {
        let slot = handle.slot().filter(|slot| *slot < MOST_OPENS)?;
        Some((slot, self.record::<OPEN_WORDS>(OPENS, slot)))
    }

    fn record<const N: usize>(&self, table: Range<usize>, slot: usize) -> [&'h AtomicU64; N] {
        std::array::from_fn(|n| self.word(table.start + slot * N + n))
    }

    fn used(&self, count: usize, most: usize) -> Range<usize> {
        0..usize::try_from(self.word(count).load(Acquire)).unwrap_or(most).min(most)
    }

    /// Widens the range of records that are looked at.
    fn use_up_to(&self, count: usize, slot: usize) {
        let wanted = slot as u64 + 1;
        if self.word(count).load(Relaxed) < wanted {
            self.word(count).fetch_max(wanted, AcqRel);
        }
    }

    fn word(&self, at: usize) -> &'h AtomicU64 {
        static NONE: AtomicU64 = AtomicU64::new(0);
        // Cannot be missing: the region has room for all tables, and callers choose records below their limits.
        self.words.get(at).unwrap_or(&NONE)
    }
}

/// The free records of a table. Each worker has its own, because only one uses the tables at a time.
#[derive(Debug)]
pub struct Free {
    /// Records that were used and are free again.
    again: Vec<usize>,
    /// The first record that was never used.
    next: usize,
    most: usize,
}

impl Free {
    /// All records below `most`, except those in `taken`.
    #[must_use]
    pub fn without(taken: impl IntoIterator<Item = usize>, most: usize) -> Self {
        let mut taken: Vec<usize> = taken.into_iter().collect();
        taken.sort_unstable();
        let next = taken.last().map_or(0, |last| last + 1);
        let mut again = Vec::new();
        let mut from = 0;
        for slot in taken {
            again.extend(from..slot);
            from = slot + 1;
        }
        again.reverse();
        Self { again, next, most }
    }

    /// Takes a free record. None when all are in use.
    pub fn take(&mut self) -> Option<usize> {
        self.again.pop().or_else(|| {
            let slot = (self.next < self.most).then_some(self.next)?;
            self.next += 1;
            Some(slot)
        })
    }

    /// Gives a record back.
    pub fn give(&mut self, slot: usize) {
        self.again.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::Handoff;

    const MODE: Mode = Mode { lower: true, id: Some(i32::MAX as u32) };

    #[test]
    fn the_tables_fit() {
        let handoff = Handoff::private().unwrap();
        assert!(handoff.opens().words.len() >= MAPPED.end);
        let opens = handoff.opens();
        let handle = opens.open(MOST_OPENS - 1, 2, 3, MODE);
        opens.mapped(Some(MOST_MAPPED - 1), 9);
        opens.registering(MOST_REGISTERING - 1);
        opens.registered(MOST_REGISTERING - 1, MOST_BACKINGS - 1, 5, false, 7);
        assert_eq!(opens.opens().map(|open| open.ino).collect::<Vec<_>>(), [3]);
        assert_eq!(opens.backings().map(|backing| (backing.ino, backing.id)).collect::<Vec<_>>(), [(5, 7)]);
        assert_eq!(opens.all_mapped().collect::<Vec<_>>(), [(MOST_MAPPED - 1, 9)]);
        assert_eq!(opens.close(handle), Some((MOST_OPENS - 1, 3)));
    }

    #[test]
    fn an_open_is_closed_once_whatever_comes_after() {
        let handoff = Handoff::private().unwrap();
        let opens = handoff.opens();
        let first = opens.open(0, 2, 70, MODE);
        assert_ne!(first.get(), 0);
        let [record] = opens.opens().collect::<Vec<_>>()[..] else { panic!() };
        let wanted = Opened { handle: first, unique: 2, ino: 70, mode: MODE, is_answered: false };
        assert_eq!(record, wanted);
        opens.answered(first);
        assert!(opens.opens().all(|open| open.is_answered && open.mode == MODE));
        assert_eq!(opens.close(first), Some((0, 70)));
        assert_eq!(opens.close(first), None);
        let second = opens.open(0, 4, 71, Mode { lower: false, id: None });
        assert_ne!(first, second);
        opens.answered(first);
        assert_eq!(opens.close(first), None);
        let [record] = opens.opens().collect::<Vec<_>>()[..] else { panic!() };
        assert_eq!((record.ino, record.is_answered, record.mode.id), (71, false, None));
        // Handles that were never given.
        for wrong in [0, 1 << 40, u64::MAX, MOST_OPENS as u64 + 1] {
            assert_eq!(opens.close(Handle::of(wrong)), None);
            opens.answered(Handle::of(wrong));
        }
        assert_eq!(opens.close(Handle::of(second.get())), Some((0, 71)));
    }

    #[test]
    fn generations_begin_again_after_the_last() {
        let handoff = Handoff::private().unwrap();
        let opens = handoff.opens();
        let [_, _, state] = opens.record::<OPEN_WORDS>(OPENS, 0);
        state.store(GENERATION, Release);
        let handle = opens.open(0, 2, 70, MODE);
        assert_eq!(handle.get(), 1);
        assert_eq!(opens.opens().next().unwrap().mode, MODE);
        assert_eq!(opens.close(handle), Some((0, 70)));
    }

    #[test]
    fn numbers_of_registrations_that_were_cut_short_are_in_the_range() {
        let handoff = Handoff::private().unwrap();
        let opens = handoff.opens();
        assert!(opens.cut_short().is_empty());
        opens.registering(0);
        opens.registering(1);
        opens.registered(1, 0, 70, true, 5);
        opens.registering(1);
        assert_eq!(opens.cut_short(), 1..8);
        opens.not_registered(0);
        assert_eq!(opens.cut_short(), 6..7);
        opens.registering(0);
        opens.end_registering();
        assert!(opens.cut_short().is_empty());
        // Two were lost, so the next can be the third.
        opens.registering(0);
        assert_eq!(opens.cut_short(), 6..9);
        opens.end_registering();
        opens.closing(0);
        assert!(opens.backings().all(|backing| backing.is_closing && backing.id == 5 && backing.lower));
        opens.closed(0);
        assert_eq!(opens.backings().count(), 0);
    }

    #[test]
    fn free_records_are_those_that_are_not_taken() {
        let mut free = Free::without([4, 1], 6);
        let taken: Vec<_> = std::iter::from_fn(|| free.take()).collect();
        assert_eq!(taken, [0, 2, 3, 5]);
        free.give(3);
        assert_eq!(free.take(), Some(3));
        assert_eq!(Free::without([], 1).take(), Some(0));
        assert_eq!(Free::without([0], 1).take(), None);
    }
}
