//! What a worker leaves to the one that takes its place.
//!
//! A *worker* is the process that serves a mount. The *keeper* starts it, and starts the next one when it dies
//! (`session::mount::keeper`). All workers of a mount share this memory and one table of descriptors: a descriptor that a worker
//! opened stays open under its number when the worker dies.
//!
//! A worker can be killed at any instant. So a record here has a state word, which is written last (`Release`) and read
//! first (`Acquire`); the other words of the record count only if it says so.
//!
//! The layout is fixed and has a version, because a program of another version may read it. It holds numbers only: no
//! addresses.
//!
//! | words | what |
//! |---|---|
//! | 0.. | the header: magic, version, size; counters; the kernel's INIT request; the descriptors that stay |
//! | requests | what each thread is doing, and how workers died ([`requests`]) |
//! | held | entries that cannot be found in the upper ([`held`]) |
//! | opens | what the kernel has open by passthrough ([`opens`]) |

pub mod held;
pub mod opens;
pub mod requests;

use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use rustix::io::Errno;

use crate::sys::shared_memory::SharedMemory;
use held::Held;
use opens::Opens;
use requests::Requests;

/// The first word: `holofs` in ASCII.
const MAGIC: u64 = u64::from_le_bytes(*b"holofs\0\0");

/// The layout. A program that finds a number that it does not know must not use the memory.
const VERSION: u64 = 1;

/// The regions, in words.
const HEADER: Range<usize> = 0..2048;
const REQUESTS: Range<usize> = HEADER.end..HEADER.end + (1 << 17);
const HELD: Range<usize> = REQUESTS.end..REQUESTS.end + held::WORDS;
const OPENS: Range<usize> = HELD.end..HELD.end + (1 << 20);
const WORDS: usize = OPENS.end;

/// The words of the header.
mod word {
    use std::ops::Range;

    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 1;
    pub(super) const WORDS: usize = 2;
    /// The descriptor of the program that is to go on with the mount, plus 1.
    pub(super) const UPGRADE: usize = 6;
    /// How often a program went on with the mount of an earlier one.
    pub(super) const RESUMED: usize = 7;
    /// Number of workers that were started.
    pub(super) const WORKERS: usize = 8;
    /// How far the mount is: a [`super::Phase`].
    pub(super) const PHASE: usize = 9;
    /// The wait status of the last worker that died, plus 1, and when, in seconds since the epoch.
    pub(super) const DEATH: usize = 10;
    pub(super) const DEATH_AT: usize = 11;
    /// When the space was mounted, in seconds since the epoch.
    pub(super) const MOUNTED_AT: usize = 12;
    /// 1 when the record of the space is on the disk.
    pub(super) const RECORDED: usize = 13;
    /// The number of the last worker that began to answer, plus 1.
    pub(super) const ANSWERED: usize = 14;
    /// How many commands hold all changes back.
    pub(super) const HOLDS: usize = 15;
    /// The bytes of the INIT request; 0 until it is there.
    pub(super) const INIT_LEN: usize = 16;
    pub(super) const INIT: Range<usize> = 17..145;
    /// Descriptors that stay open when a worker dies, each plus 1; 0 is free.
    pub(super) const KEPT: Range<usize> = 256..512;
    /// Descriptors that were open before the first worker: number plus 1, device and inode.
    pub(super) const FIRST: Range<usize> = 1024..2047;
}

/// How far the mount is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// It has not answered yet. A worker that dies now ends it.
    Starting,
    /// It answers. A worker that dies now is replaced.
    Serving,
    /// It has ended, and its state is being written out. A worker that dies now is not replaced by one that serves.
    Ending,
}

/// Changes wait for a command until this is dropped.
#[derive(Debug)]
pub struct ChangesHeld<'h>(&'h AtomicU64);

impl Drop for ChangesHeld<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The memory that the workers of one mount share.
#[derive(Debug)]
pub struct Handoff {
    memory: SharedMemory,
    requests: Arc<requests::Local>,
}

impl Handoff {
    /// The memory of a new mount, for this process and those that it will fork.
    ///
    /// # Errors
    /// Those of [`SharedMemory::create`].
    pub fn create() -> Result<Self, Errno> {
        Ok(Self::over(SharedMemory::create("holofs-handoff", WORDS)?).stamped())
    }

    /// Memory that nobody takes over: of a space that is not mounted.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn private() -> Result<Self, Errno> {
        Ok(Self::over(SharedMemory::private(WORDS)?).stamped())
    }

    /// The memory of an existing mount.
    ///
    /// # Errors
    /// EINVAL when its layout is not this version's.
    pub fn of(memory: OwnedFd) -> Result<Self, Errno> {
        let memory = SharedMemory::of(memory)?;
        let is =
            |at: usize, value: u64| memory.words().get(at).is_some_and(|word| word.load(Acquire) == value);
        let fits = is(word::MAGIC, MAGIC) && is(word::VERSION, VERSION) && is(word::WORDS, WORDS as u64);
        if fits && memory.words().len() == WORDS { Ok(Self::over(memory)) } else { Err(Errno::INVAL) }
    }

    fn over(memory: SharedMemory) -> Self {
        Self { memory, requests: Arc::default() }
    }

    fn stamped(self) -> Self {
        self.word(word::VERSION).store(VERSION, Relaxed);
        self.word(word::WORDS).store(WORDS as u64, Relaxed);
        self.word(word::MAGIC).store(MAGIC, Release);
        self
    }

    /// The descriptor of the memory. None for memory that nobody takes over.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.fd()
    }

    /// Counts a worker that starts. Returns how many were started before.
    pub fn begin(&self) -> u64 {
        self.word(word::HOLDS).store(0, Relaxed);
        self.word(word::WORKERS).fetch_add(1, Relaxed)
    }

    /// Whether an earlier worker served this mount. What it knew about the kernel (lookup counts, open files) is lost
    /// except for what is here.
    #[must_use]
    pub fn is_takeover(&self) -> bool {
        self.restarts() > 0
    }

    /// The number of workers that took the place of an earlier one.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.word(word::WORKERS).load(Relaxed).saturating_sub(1)
    }

    /// The number of workers that took the place of one that died, and not of one that made room for another program.
    #[must_use]
    pub fn replaced(&self) -> u64 {
        self.restarts().saturating_sub(self.word(word::RESUMED).load(Relaxed))
    }

    /// How far the mount is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.word(word::PHASE).load(Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Ending,
        }
    }

    /// Notes how far the mount is.
    pub fn reach(&self, phase: Phase) {
        let value = match phase {
            Phase::Starting => 0,
            Phase::Serving => 1,
            Phase::Ending => 2,
        };
        self.word(word::PHASE).store(value, Release);
    }

    /// Notes how a worker died: its wait status, and the seconds since the epoch.
    pub fn note_death(&self, status: u32, at: u64) {
        self.word(word::DEATH_AT).store(at, Relaxed);
        self.word(word::DEATH).store(u64::from(status) + 1, Release);
    }

    /// How and when the last worker died. None if none has.
    #[must_use]
    pub fn last_death(&self) -> Option<(u32, u64)> {
        let status = self.word(word::DEATH).load(Acquire).checked_sub(1)?;
        Some((u32::try_from(status).ok()?, self.word(word::DEATH_AT).load(Relaxed)))
    }

    /// Notes that changes wait for a command, until the result is dropped.
    #[must_use]
    pub fn hold_changes(&self) -> ChangesHeld<'_> {
        let holds = self.word(word::HOLDS);
        holds.fetch_add(1, Relaxed);
        ChangesHeld(holds)
    }

    /// Whether changes wait for a command.
    #[must_use]
    pub fn holds_changes(&self) -> bool {
        self.word(word::HOLDS).load(Relaxed) != 0
    }

    /// When the space was mounted, in seconds since the epoch. The first worker's answer stays.
    pub fn mounted_at(&self, now: Option<u64>) -> Option<u64> {
        let word = self.word(word::MOUNTED_AT);
        // Without a first answer, `now` is it.
        let first = word.compare_exchange(0, now.unwrap_or_default(), Relaxed, Relaxed);
        first.err().or(now)
    }

    /// Whether the record of the space is on the disk.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.word(word::RECORDED).load(Relaxed) == 1
    }

    /// Notes that the record of the space is on the disk.
    pub fn note_recorded(&self) {
        self.word(word::RECORDED).store(1, Relaxed);
    }

    /// Notes that this worker answers the kernel.
    pub fn note_answering(&self) {
        self.word(word::ANSWERED).store(self.word(word::WORKERS).load(Relaxed), Release);
    }

    /// Whether the last worker that was started got so far as to answer the kernel.
    #[must_use]
    pub fn is_answering(&self) -> bool {
        self.word(word::ANSWERED).load(Acquire) == self.word(word::WORKERS).load(Relaxed)
    }

    /// Notes the program with which the keeper is to go on, by an open descriptor.
    pub fn ask_for_upgrade(&self, program: RawFd) {
        self.word(word::UPGRADE).store(u64::try_from(i64::from(program) + 1).unwrap_or_default(), Release);
    }

    /// The descriptor of [`Handoff::ask_for_upgrade`], once.
    #[must_use]
    pub fn take_upgrade(&self) -> Option<RawFd> {
        RawFd::try_from(self.word(word::UPGRADE).swap(0, Acquire).checked_sub(1)?).ok()
    }

    /// Notes that another program goes on: what was open before its first worker is not known yet.
    pub fn resumed(&self) {
        self.range(word::FIRST).iter().for_each(|word| word.store(0, Release));
        self.word(word::RESUMED).fetch_add(1, Relaxed);
    }

    /// Whether the kernel can send unanswered requests again (`FUSE_HAS_RESEND` in its INIT request).
    #[must_use]
    pub fn can_resend(&self) -> bool {
        /// Where `flags2` is: after the header, two versions, the readahead and `flags`. The flag has number 39.
        const FLAGS2: usize = 40 + 16;
        let init = self.init().unwrap_or_default();
        let flags = init.get(FLAGS2..).and_then(<[u8]>::first_chunk);
        flags.is_some_and(|flags| u32::from_ne_bytes(*flags) & (1 << 7) != 0)
    }

    /// Notes a descriptor that was open before the first worker: its number, device and inode. False when there is no room.
    #[must_use]
    pub fn note_first(&self, fd: RawFd, dev: u64, ino: u64) -> bool {
        let Ok(value) = u64::try_from(i64::from(fd) + 1) else { return false };
        let slot = self.range(word::FIRST).chunks_exact(3).find_map(|slot| match slot {
            [number, of_dev, of_ino] if number.load(Relaxed) == 0 => Some((number, of_dev, of_ino)),
            _ => None,
        });
        let Some((number, of_dev, of_ino)) = slot else { return false };
        of_dev.store(dev, Relaxed);
        of_ino.store(ino, Relaxed);
        number.store(value, Release);
        true
    }

    /// The descriptors that were open before the first worker: number, device and inode of each.
    pub fn first(&self) -> impl Iterator<Item = (RawFd, u64, u64)> {
        self.range(word::FIRST).chunks_exact(3).filter_map(|slot| {
            let [number, dev, ino] = slot else { return None };
            let fd = RawFd::try_from(number.load(Acquire).checked_sub(1)?).ok()?;
            Some((fd, dev.load(Relaxed), ino.load(Relaxed)))
        })
    }

    /// The descriptors of [`Handoff::keep_fd`].
    pub fn kept_fds(&self) -> impl Iterator<Item = RawFd> {
        let fd = |slot: &AtomicU64| RawFd::try_from(slot.load(Acquire).checked_sub(1)?).ok();
        self.range(word::KEPT).iter().filter_map(fd)
    }

    /// Notes the kernel's INIT request, with which each worker starts its session.
    ///
    /// # Errors
    /// EMSGSIZE if it is too long.
    pub fn set_init(&self, request: &[u8]) -> Result<(), Errno> {
        let room = self.range(word::INIT);
        if request.len() > size_of_val(room) {
            return Err(Errno::MSGSIZE);
        }
        for (to, from) in room.iter().zip(request.chunks(8)) {
            let mut bytes = [0; 8];
            bytes.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            to.store(u64::from_ne_bytes(bytes), Relaxed);
        }
        self.word(word::INIT_LEN).store(request.len() as u64, Release);
        Ok(())
    }

    /// The kernel's INIT request. None before it came.
    #[must_use]
    pub fn init(&self) -> Option<Vec<u8>> {
        let len = usize::try_from(self.word(word::INIT_LEN).load(Acquire)).ok().filter(|len| *len > 0)?;
        let bytes = self.range(word::INIT).iter().flat_map(|word| word.load(Relaxed).to_ne_bytes());
        Some(bytes.take(len).collect())
    }

    /// Keeps a descriptor open for the next worker. Every other one is closed when a worker has died, except those in
    /// [`Handoff::held`]. False when there is no room.
    #[must_use]
    pub fn keep_fd(&self, fd: RawFd) -> bool {
        let Ok(value) = u64::try_from(i64::from(fd) + 1) else { return false };
        self.range(word::KEPT).iter().any(|slot| slot.compare_exchange(0, value, Release, Relaxed).is_ok())
    }

    /// Takes back [`Handoff::keep_fd`]. Called before the descriptor is closed.
    pub fn let_go_of_fd(&self, fd: RawFd) {
        for slot in self.range(word::KEPT) {
            if RawFd::try_from(slot.load(Acquire)).is_ok_and(|value| value == fd.saturating_add(1)) {
                slot.store(0, Release);
            }
        }
    }

    /// Whether the next worker finds this descriptor as it is.
    #[must_use]
    pub fn keeps_fd(&self, fd: RawFd) -> bool {
        let value = fd.saturating_add(1);
        let kept = |slot: &AtomicU64| RawFd::try_from(slot.load(Acquire)).is_ok_and(|kept| kept == value);
        value > 0 && self.range(word::KEPT).iter().any(kept)
    }

    /// What each thread is doing, and which requests an earlier worker may have done.
    #[must_use]
    pub fn requests(&self) -> Requests<'_> {
        Requests::new(self.range(REQUESTS), &self.requests, self.restarts())
    }

    /// Entries that cannot be found in the upper.
    #[must_use]
    pub fn held(&self) -> Held<'_> {
        Held::new(self.range(HELD))
    }

    /// What the kernel has open by passthrough.
    #[must_use]
    pub fn opens(&self) -> Opens<'_> {
        Opens::new(self.range(OPENS))
    }

    fn range(&self, range: Range<usize>) -> &[AtomicU64] {
        self.memory.words().get(range).unwrap_or_default()
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        static NONE: AtomicU64 = AtomicU64::new(0);
        // Cannot be missing: the memory has `WORDS` words.
        self.memory.words().get(at).unwrap_or(&NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_comes_back_whole() {
        let handoff = Handoff::private().unwrap();
        assert_eq!(handoff.init(), None);
        for len in [1, 7, 8, 104, 1024] {
            let request: Vec<u8> = (0..len).map(|n| n as u8).collect();
            handoff.set_init(&request).unwrap();
            assert_eq!(handoff.init().unwrap(), request);
        }
        assert_eq!(handoff.set_init(&[0; 1025]), Err(Errno::MSGSIZE));
    }

    #[test]
    fn a_kernel_that_can_resend_says_so_in_its_first_request() {
        let handoff = Handoff::private().unwrap();
        assert!(!handoff.can_resend());
        // A header of 40 bytes; major, minor, readahead, flags; flags2.
        for (flags2, can) in [(0_u32, false), (1 << 7, true), (!(1 << 7), false), (!0, true)] {
            let mut request = [0; 104];
            request[56..60].copy_from_slice(&flags2.to_ne_bytes());
            handoff.set_init(&request).unwrap();
            assert_eq!(handoff.can_resend(), can);
        }
    }

    #[test]
    fn another_program_is_no_replacement_of_a_dead_worker() {
        let handoff = Handoff::private().unwrap();
        handoff.begin();
        assert!(handoff.note_first(5, 1, 2));
        handoff.ask_for_upgrade(7);
        assert_eq!((handoff.take_upgrade(), handoff.take_upgrade()), (Some(7), None));
        handoff.resumed();
        handoff.begin();
        assert_eq!((handoff.first().count(), handoff.restarts(), handoff.replaced()), (0, 1, 0));
        handoff.begin();
        assert_eq!((handoff.restarts(), handoff.replaced()), (2, 1));
    }

    #[test]
    fn another_layout_is_refused() {
        let handoff = Handoff::create().unwrap();
        let fd = || handoff.fd().unwrap().try_clone_to_owned().unwrap();
        handoff.begin();
        handoff.begin();
        assert_eq!(Handoff::of(fd()).unwrap().restarts(), 1);
        handoff.word(word::VERSION).store(VERSION + 1, Relaxed);
        assert_eq!(Handoff::of(fd()).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn descriptors_are_kept_until_they_are_let_go() {
        let handoff = Handoff::private().unwrap();
        for fd in 0..256 {
            assert!(handoff.keep_fd(fd));
        }
        assert!(!handoff.keep_fd(256) && !handoff.keeps_fd(256) && !handoff.keeps_fd(-1));
        handoff.let_go_of_fd(0);
        assert!(!handoff.keeps_fd(0) && handoff.keeps_fd(1) && handoff.keep_fd(256));
    }

    #[test]
    fn phases_are_in_order() {
        let handoff = Handoff::private().unwrap();
        for phase in [Phase::Starting, Phase::Serving, Phase::Ending] {
            handoff.reach(phase);
            assert_eq!(handoff.phase(), phase);
        }
    }
}
