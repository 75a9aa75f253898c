//! What a worker knows about entries that the next worker could not find out from the upper.
//!
//! * Files and directories that have no name any more, or are about to lose it, and that the kernel may still use. One with
//!   a file in the upper is kept alive by a descriptor, which stays open in the table that all workers share. One of the
//!   catalog needs no descriptor: it is a bit.
//! * Library entries that show under another inode number after a reset (`namespace::revert`).
//! * Files that a program has emptied, and that are not written out yet (`namespace::settle`).
//! * The times that a directory gets back after a copy-up in it (`namespace::copy_up`).
//!
//! Every fact but the last is a single word, so it is there or it is not. A record of times counts once its first word is
//! set.

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// The words of the region.
pub const WORDS: usize = GONE.end;

/// One more than the largest descriptor that was held so far.
const FDS_END: usize = 0;
/// The number of aliases.
const ALIASES_END: usize = 1;
/// Records of times, of [`TIMES_WORDS`] each.
const TIMES: Range<usize> = 64..64 + 64 * TIMES_WORDS;
const TIMES_WORDS: usize = 8;
/// Inode numbers of emptied files; 0 is free.
const EMPTIED: Range<usize> = 1024..4096;
/// Three words for each alias.
const ALIASES: Range<usize> = 4096..1 << 18;
const ALIAS_WORDS: usize = 3;
/// For each descriptor the inode number of its file; 0 if it is not held.
const FDS: Range<usize> = 1 << 18..(1 << 18) + (1 << 20);
/// A bit for each lower node.
const GONE: Range<usize> = FDS.end..FDS.end + (1 << 21);

/// The first word of a record of times that is being written.
const WRITING: u64 = u64::MAX;
/// In the first word of an alias: it has no name any more.
const ALIAS_GONE: u64 = 1 << 63;

/// The region of the shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Held<'h> {
    words: &'h [AtomicU64],
}

/// A library entry that shows under another inode number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alias {
    /// The lower node.
    pub lower: u32,
    /// It was removed, and had no file in the upper.
    pub gone: bool,
    /// The inode number of its file in the upper, and of the one that is about to replace that; 0 for none.
    pub backing: [u64; 2],
}

/// The times that a directory shows, in seconds and nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DirTimes {
    /// Time of the last access.
    pub atime: (i64, u32),
    /// Time of the last change of the directory.
    pub mtime: (i64, u32),
    /// Time of the last change of the directory or its attributes.
    pub ctime: (i64, u32),
}

impl<'h> Held<'h> {
    pub(super) fn new(words: &'h [AtomicU64]) -> Self {
        Self { words }
    }

    fn range(&self, range: Range<usize>) -> &'h [AtomicU64] {
        self.words.get(range).unwrap_or_default()
    }

    /// Holds a descriptor of a file or directory, by the inode number that it has in the space. False when the descriptor
    /// is too large for this memory: the next worker will not have the file.
    #[must_use]
    pub fn hold_fd(&self, fd: RawFd, ino: u64) -> bool {
        let Ok(at) = usize::try_from(fd) else { return false };
        let (Some(word), Some(end)) = (self.range(FDS).get(at), self.words.get(FDS_END)) else {
            return false;
        };
        end.fetch_max(at as u64 + 1, Relaxed);
        word.store(ino, Release);
        true
    }

    /// Takes back [`Held::hold_fd`]. Called before the descriptor is closed.
    pub fn let_go_of_fd(&self, fd: RawFd) {
        if let Some(word) = usize::try_from(fd).ok().and_then(|at| self.range(FDS).get(at)) {
            word.store(0, Release);
        }
    }

    /// Whether a descriptor is held, so that it must stay open for the next worker.
    #[must_use]
    pub fn holds_fd(&self, fd: RawFd) -> bool {
        usize::try_from(fd)
            .ok()
            .and_then(|at| self.range(FDS).get(at))
            .is_some_and(|word| word.load(Acquire) != 0)
    }

    /// The descriptors that are held, each with the inode number of its file.
    #[must_use]
    pub fn fds(&self) -> Vec<(RawFd, u64)> {
        let end = self.words.get(FDS_END).map_or(0, |end| end.load(Relaxed));
        let held = self.range(FDS).iter().take(usize::try_from(end).unwrap_or(usize::MAX)).enumerate();
        held.filter_map(|(fd, word)| {
            let ino = word.load(Acquire);
            (ino != 0).then_some((RawFd::try_from(fd).ok()?, ino))
        })
        .collect()
    }

    /// Notes that a lower entry without a file in the upper has no name any more, or is about to lose it. Not for nodes
    /// from 2^27 on.
    pub fn set_gone(&self, lower: u32) {
        if let Some((word, bit)) = self.gone_bit(lower) {
            word.fetch_or(bit, Release);
        }
    }

    /// Takes back [`Held::set_gone`].
    pub fn clear_gone(&self, lower: u32) {
        // The page of a bit that was never set is not touched.
        if let Some((word, bit)) = self.gone_bit(lower).filter(|(word, bit)| word.load(Relaxed) & bit != 0) {
            word.fetch_and(!bit, Release);
        }
    }

    fn gone_bit(&self, lower: u32) -> Option<(&'h AtomicU64, u64)> {
        Some((self.range(GONE).get(lower as usize / 64)?, 1 << (lower % 64)))
    }

    /// The lower nodes below `nodes` for which [`Held::set_gone`] was called.
    #[must_use]
    pub fn gone(&self, nodes: u32) -> Vec<u32> {
        let words = self.range(GONE).iter().take((nodes as usize).div_ceil(64)).enumerate();
        let set = words.flat_map(|(at, word)| {
            let bits = word.load(Acquire);
            (0..64u32).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| at as u32 * 64 + bit)
        });
        set.filter(|node| *node < nodes).collect()
    }

    /// Notes that an alias, the next one in order, stands for a lower node.
    pub fn add_alias(&self, lower: u32) {
        let Some(end) = self.words.get(ALIASES_END) else { return };
        let number = end.load(Relaxed);
        if let Some([first, ..]) = self.alias(number) {
            first.store(u64::from(lower), Relaxed);
        }
        end.store(number + 1, Release);
    }

    /// Notes whether an alias has lost its name without having a file in the upper.
    pub fn set_alias_gone(&self, number: u64, gone: bool) {
        match (self.alias(number), gone) {
            (Some([first, ..]), true) => first.fetch_or(ALIAS_GONE, Release),
            (Some([first, ..]), false) => first.fetch_and(!ALIAS_GONE, Release),
            (None, _) => 0,
        };
    }

    /// Notes the inode number of the file that an alias is about to get in the upper. The old one still counts.
    pub fn alias_gets(&self, number: u64, backing: u64) {
        if let Some([_, one, other]) = self.alias(number) {
            other.store(one.load(Relaxed), Release);
            one.store(backing, Release);
        }
    }

    /// The aliases, in order.
    #[must_use]
    pub fn aliases(&self) -> Vec<Alias> {
        let end = self.words.get(ALIASES_END).map_or(0, |end| end.load(Acquire));
        let all = (0..end).map_while(|number| {
            let [first, one, other] = self.alias(number)?;
            let first = first.load(Acquire);
            Some(Alias {
                lower: u32::try_from(first & !ALIAS_GONE).ok()?,
                gone: first & ALIAS_GONE != 0,
                backing: [one.load(Acquire), other.load(Acquire)],
            })
        });
        all.collect()
    }

    fn alias(&self, number: u64) -> Option<&'h [AtomicU64; ALIAS_WORDS]> {
        let at = usize::try_from(number).ok()?.checked_mul(ALIAS_WORDS)?;
        self.range(ALIASES).get(at..)?.first_chunk()
    }

    /// Notes that a file was emptied. There is room for some thousands; a file without room is written out later by the
    /// kernel. Not for several threads at a time.
    pub fn add_emptied(&self, ino: u64) {
        let mut free = None;
        for word in self.range(EMPTIED) {
            match word.load(Relaxed) {
                0 => free = free.or(Some(word)),
                known if known == ino => return,
                _ => {}
            }
        }
        if let Some(word) = free {
            word.store(ino, Release);
        }
    }

    /// Takes back [`Held::add_emptied`].
    pub fn remove_emptied(&self, ino: u64) {
        for word in self.range(EMPTIED) {
            if word.load(Relaxed) == ino {
                word.store(0, Release);
            }
        }
    }

    /// The files that were emptied.
    #[must_use]
    pub fn emptied(&self) -> Vec<u64> {
        self.range(EMPTIED).iter().map(|word| word.load(Acquire)).filter(|ino| *ino != 0).collect()
    }

    /// Notes the times that the directory `ino` is to have after a change that nobody is to see. Returns the number of the
    /// record for [`Held::times_are_back`]; None when there is no room.
    #[must_use]
    pub fn keep_times(&self, ino: u64, times: DirTimes) -> Option<usize> {
        let DirTimes { atime, mtime, ctime } = times;
        let number = (0..TIMES.len() / TIMES_WORDS).find(|number| {
            let first = self.times(*number).map(|[first, ..]| first);
            first.is_some_and(|first| first.compare_exchange(0, WRITING, Acquire, Relaxed).is_ok())
        })?;
        let [first, rest @ ..] = self.times(number)?;
        let values = [
            atime.0.cast_unsigned(),
            u64::from(atime.1),
            mtime.0.cast_unsigned(),
            u64::from(mtime.1),
            ctime.0.cast_unsigned(),
            u64::from(ctime.1),
        ];
        rest.iter().zip(values).for_each(|(word, value)| word.store(value, Relaxed));
        first.store(ino, Release);
        Some(number)
    }

    /// Frees a record of times.
    pub fn times_are_back(&self, number: usize) {
        if let Some([first, ..]) = self.times(number) {
            first.store(0, Release);
        }
    }

    /// The records of times, each with the inode number of its directory. They are removed from the memory.
    #[must_use]
    pub fn take_times(&self) -> Vec<(u64, DirTimes)> {
        let all = (0..TIMES.len() / TIMES_WORDS).filter_map(|number| {
            let [first, rest @ ..] = self.times(number)?;
            let ino = first.load(Acquire);
            let mut values = [0; TIMES_WORDS - 1];
            values.iter_mut().zip(rest).for_each(|(value, word)| *value = word.load(Relaxed));
            first.store(0, Release);
            let time = |sec: u64, nsec: u64| (sec.cast_signed(), nsec as u32);
            let [a, a_nsec, m, m_nsec, c, c_nsec, _] = values;
            let (atime, mtime, ctime) = (time(a, a_nsec), time(m, m_nsec), time(c, c_nsec));
            (ino != 0 && ino != WRITING).then_some((ino, DirTimes { atime, mtime, ctime }))
        });
        all.collect()
    }

    fn times(&self, number: usize) -> Option<&'h [AtomicU64; TIMES_WORDS]> {
        self.range(TIMES).get(number * TIMES_WORDS..)?.first_chunk()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Handoff;
    use super::*;

    #[test]
    fn descriptors_are_held_until_they_are_let_go() {
        let handoff = Handoff::private().unwrap();
        let held = handoff.held();
        assert!(held.hold_fd(3, 77) && held.hold_fd(1000, 78) && held.hold_fd(0, 79));
        assert!(!held.hold_fd(-1, 1) && !held.hold_fd(1 << 20, 1));
        assert_eq!(held.fds(), [(0, 79), (3, 77), (1000, 78)]);
        held.let_go_of_fd(3);
        assert!(!held.holds_fd(3) && held.holds_fd(1000) && !held.holds_fd(-1));
        assert_eq!(held.fds(), [(0, 79), (1000, 78)]);
    }

    #[test]
    fn gone_nodes_are_bits() {
        let handoff = Handoff::private().unwrap();
        let held = handoff.held();
        for node in [0, 63, 64, 1000, u32::MAX] {
            held.set_gone(node);
        }
        assert_eq!(held.gone(1001), [0, 63, 64, 1000]);
        assert_eq!(held.gone(1000), [0, 63, 64]);
        held.clear_gone(63);
        held.clear_gone(65);
        assert_eq!(held.gone(u32::MAX), [0, 64, 1000]);
    }

    #[test]
    fn aliases_keep_their_order_and_know_both_of_their_files() {
        let handoff = Handoff::private().unwrap();
        let held = handoff.held();
        held.add_alias(7);
        held.add_alias(8);
        held.alias_gets(1, 100);
        held.alias_gets(1, 101);
        held.set_alias_gone(0, true);
        held.set_alias_gone(1, true);
        held.set_alias_gone(1, false);
        let (one, two) = (
            Alias { lower: 7, gone: true, backing: [0, 0] },
            Alias { lower: 8, gone: false, backing: [101, 100] },
        );
        assert_eq!(held.aliases(), [one, two]);
    }

    #[test]
    fn times_count_when_they_are_written_as_a_whole() {
        let handoff = Handoff::private().unwrap();
        let held = handoff.held();
        let times = DirTimes { atime: (-1, 2), mtime: (3, 999_999_999), ctime: (5, 6) };
        let first = held.keep_times(9, times).unwrap();
        held.times_are_back(held.keep_times(10, times).unwrap());
        held.times(first + 2).unwrap()[0].store(WRITING, Relaxed);
        assert_eq!(held.take_times(), [(9, times)]);
        assert_eq!(held.take_times(), []);
    }

    #[test]
    fn emptied_files_are_a_set() {
        let handoff = Handoff::private().unwrap();
        let held = handoff.held();
        [5, 6, 7].into_iter().for_each(|ino| held.add_emptied(ino));
        held.remove_emptied(6);
        assert_eq!(held.emptied(), [5, 7]);
        [7, 8, 8].into_iter().for_each(|ino| held.add_emptied(ino));
        assert_eq!(held.emptied(), [5, 8, 7]);
    }
}
