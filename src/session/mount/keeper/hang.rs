//! Finds out that a worker hangs: requests wait, it begins none, and that is its own fault.
//!
//! The keeper looks at the worker a few times in the time that a worker may take. As long as the worker begins requests,
//! or rests, a look costs a few loads from the shared memory and one poll(2). Otherwise the keeper reads what each thread of
//! the worker is doing. The worker hangs if, at all looks of that time,
//!
//! * a thread has a request, or requests wait in the device and no thread reads there;
//! * each thread with a request waits for another thread, or runs without reading or writing anything;
//! * no thread waits for a disk or for another process, and none reads or writes.
//!
//! So what legitimately takes long does not count: a disk or a network filesystem that does not answer (the next worker
//! would wait for it, too), a copy of a huge file, a blob that comes slowly, a lock of another process, a command that holds
//! all changes back. Neither does a worker that somebody has stopped, that a debugger or strace is attached to, or that gets
//! no processor time. Threads that no request waits for are not looked at.
//!
//! Limits: a worker that answers other requests is not replaced because one does not end. Where the kernel does not tell
//! what a thread waits for (`/proc/PID/task/TID/syscall`), no worker is replaced.
//!
//! Invariant: the keeper opens files only while a worker answers. A worker that starts closes the descriptors that it does
//! not know.

use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::handoff::requests::progress::{Progress, Serving};
use crate::handoff::{Handoff, Phase};
use crate::sys::fuse_message::is_device;
use crate::sys::threads::{self, Call, Thread};

/// So many looks are in the time that a worker may take.
const LOOKS: u32 = 4;

/// Threads that no request waits for.
const BACKGROUND: [&str; 3] = ["housekeeping", "control", "prefetch"];

/// Threads that fetch what requests wait for, while they wait for an object store.
const FETCHERS: [&str; 3] = ["unpack", "group", "range"];

/// The part of the time that a thread which hangs in a loop has the processor, at least.
const BUSY: u128 = 15;

/// Clock ticks in a second: the same on every Linux.
const HZ: u128 = 100;

/// The view of one worker.
#[derive(Debug)]
pub(in crate::session) struct Watch<'d> {
    device: BorrowedFd<'d>,
    every: Duration,
    last: Progress,
    /// At the last look, no thread had a request.
    rests: bool,
    threads: Option<Vec<Thread>>,
    /// The number of looks at which the worker hung.
    hung: u32,
}

/// What a look shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    /// No request waits.
    Rests,
    /// Requests wait for something else than the worker, or it works.
    Waits,
    /// Requests wait for the worker.
    Hangs,
}

impl<'d> Watch<'d> {
    /// Looks for workers that hang for `limit`. None if it is zero.
    pub(in crate::session) fn new(device: BorrowedFd<'d>, limit: Duration) -> Option<Self> {
        let every = limit / LOOKS;
        let new = Self { device, every, last: Progress::default(), rests: false, threads: None, hung: 0 };
        (!every.is_zero()).then_some(new)
    }

    /// The time between looks.
    pub(super) fn every(&self) -> Duration {
        self.every
    }

    /// Begins anew.
    pub(super) fn reset(&mut self) {
        (self.rests, self.threads, self.hung) = (false, None, 0);
    }

    /// Looks at the worker. Returns whether it hangs.
    pub(super) fn look(&mut self, handoff: &Handoff, worker: u32) -> bool {
        if handoff.phase() != Phase::Serving || !handoff.is_answering() || handoff.holds_changes() {
            self.reset();
            return false;
        }
        let now = handoff.requests().progress();
        if now != self.last {
            self.last = now;
            self.reset();
            return false;
        }
        let in_device = has_requests(self.device);
        if self.rests && !in_device {
            return false;
        }
        let Ok(threads) = threads::of(worker) else {
            self.reset();
            return false;
        };
        // Only if it matters: most looks show a worker that rests.
        let before = self.threads.as_deref();
        // The worker has the same descriptors.
        let look = match judge(&now.threads, before, &threads, in_device, self.every, &is_device) {
            Look::Hangs if threads::is_traced(worker).unwrap_or(true) => Look::Waits,
            look => look,
        };
        self.rests = look == Look::Rests;
        // There is nothing to compare the first look with.
        let is_first = self.threads.replace(threads).is_none();
        self.hung = if look == Look::Hangs { self.hung + u32::from(!is_first) } else { 0 };
        self.hung + 1 >= LOOKS
    }
}

/// Whether requests wait to be read.
fn has_requests(device: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::from_borrowed_fd(device, PollFlags::IN)];
    // An error says that the mount has ended.
    poll(&mut polled, Some(&now)).is_ok() && polled.iter().all(|polled| polled.revents() == PollFlags::IN)
}

/// Decides what the threads of a worker show that has begun no request since the look `before`.
fn judge(
    serving: &[Serving],
    before: Option<&[Thread]>,
    now: &[Thread],
    in_device: bool,
    passed: Duration,
    is_device: &dyn Fn(RawFd) -> bool,
) -> Look {
    let mut has_request = false;
    let mut reads_device = false;
    let mut runs = false;
    let mut waits = false;
    for thread in now.iter().filter(|thread| !BACKGROUND.contains(&thread.name.as_str())) {
        let serves = serving.iter().find(|serving| serving.thread == thread.id);
        if matches!(thread.call, Call::Read(fd) if thread.state == 'S' && is_device(fd)) {
            reads_device = true;
            continue;
        }
        let works_on_one = serves.is_some_and(|serves| serves.request != 0);
        has_request |= works_on_one;
        let earlier = before.and_then(|all| all.iter().find(|earlier| earlier.id == thread.id));
        let is_busy = earlier.is_some_and(|earlier| earlier.io != thread.io) || thread.io.is_none();
        waits |= match (thread.state, thread.call) {
            ('S', Call::Lock) => false,
            ('R', _) | ('S', Call::None) => {
                runs = true;
                is_busy
            }
            // A thread without a request waits for something to do.
            ('S', Call::Event | Call::Read(_)) => works_on_one || FETCHERS.contains(&thread.name.as_str()),
            // For a disk, for another process, for whoever has stopped it, or for something that is not known.
            _ => true,
        } || is_busy && works_on_one;
    }
    if !has_request && (reads_device || !in_device) {
        return Look::Rests;
    }
    let ticks = |threads: &[Thread]| threads.iter().map(|thread| thread.ticks).sum::<u64>();
    let had = before.map_or(0, |before| ticks(now).saturating_sub(ticks(before)));
    let is_starved = runs && before.is_some() && u128::from(had) * 1000 * BUSY < passed.as_millis() * HZ;
    if waits || is_starved { Look::Waits } else { Look::Hangs }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: RawFd = 5;
    const EVERY: Duration = Duration::from_secs(15);

    fn thread(id: u32, state: char, call: Call) -> Thread {
        Thread { id, name: format!("fuser-{id}"), state, ticks: 0, io: Some(0), call }
    }

    fn reads(id: u32) -> Thread {
        thread(id, 'S', Call::Read(DEVICE))
    }

    fn look(before: Option<&[Thread]>, now: &[Thread], in_device: bool) -> Look {
        let serving = [1, 2].map(|thread| Serving { thread, request: 10 + u64::from(thread) });
        judge(&serving, before, now, in_device, EVERY, &|fd| fd == DEVICE)
    }

    #[test]
    fn loops_that_read_the_device_rest() {
        assert_eq!(look(None, &[reads(1), reads(2)], false), Look::Rests);
        assert_eq!(look(None, &[reads(1), reads(2)], true), Look::Rests);
        // A thread of the pool without a job.
        let pool = Serving { thread: 1, request: 0 };
        let now = [thread(1, 'S', Call::Lock), reads(2)];
        assert_eq!(judge(&[pool], None, &now, false, EVERY, &|fd| fd == DEVICE), Look::Rests);
    }

    #[test]
    fn threads_that_wait_for_each_other_hang() {
        let locked = [thread(1, 'S', Call::Lock), thread(2, 'S', Call::Lock)];
        assert_eq!(look(Some(&locked), &locked, false), Look::Hangs);
        assert_eq!(look(None, &[reads(1), thread(2, 'S', Call::Lock)], false), Look::Hangs);
        // Beside threads that wait for signals and for commands, and one that writes statistics.
        let others = [thread(7, 'S', Call::Event), thread(8, 'S', Call::Read(9)), thread(9, 'S', Call::Lock)];
        let mut housekeeping = thread(10, 'D', Call::Other);
        housekeeping.name = "housekeeping".into();
        let all: Vec<Thread> = locked.iter().chain(&others).cloned().chain([housekeeping]).collect();
        assert_eq!(look(Some(&all), &all, true), Look::Hangs);
    }

    #[test]
    fn requests_that_nobody_reads_hang() {
        let now = [thread(7, 'S', Call::Lock)];
        assert_eq!(look(None, &now, true), Look::Hangs);
        assert_eq!(look(None, &now, false), Look::Rests);
    }

    #[test]
    fn a_loop_without_end_hangs_and_a_starved_thread_waits() {
        let before = [thread(1, 'R', Call::None), reads(2)];
        let mut now = before.clone();
        now[0].ticks = 1400;
        assert_eq!(look(Some(&before), &now, false), Look::Hangs);
        now[0].ticks = 20;
        assert_eq!(look(Some(&before), &now, false), Look::Waits);
    }

    #[test]
    fn work_that_takes_long_waits() {
        let locked = thread(2, 'S', Call::Lock);
        for other in [
            // A disk, an unknown call, a network filesystem, a lock of another process, the mount helper.
            thread(1, 'D', Call::Other),
            thread(1, 'D', Call::Unknown),
            thread(1, 'S', Call::Other),
            thread(1, 'S', Call::Event),
            thread(1, 'S', Call::Read(7)),
            // Somebody has stopped or traces it.
            thread(1, 'T', Call::Unknown),
            thread(1, 't', Call::Unknown),
            // The kernel does not tell.
            thread(1, 'S', Call::Unknown),
            // Another thread, for which the one with the request waits.
            thread(30, 'D', Call::Other),
            thread(30, 'S', Call::Other),
        ] {
            let now = [locked.clone(), other];
            assert_eq!(look(Some(&now), &now, true), Look::Waits, "{now:?}");
        }
    }

    #[test]
    fn a_wait_for_a_store_waits() {
        let locked = thread(1, 'S', Call::Lock);
        for name in FETCHERS {
            let mut fetcher = thread(30, 'S', Call::Read(9));
            fetcher.name = name.into();
            assert_eq!(look(Some(&[]), &[locked.clone(), fetcher], false), Look::Waits, "{name}");
        }
    }

    #[test]
    fn whoever_reads_or_writes_works() {
        for id in [1, 30] {
            let before = [thread(2, 'S', Call::Lock), thread(id, 'R', Call::None)];
            let mut now = before.clone();
            (now[1].io, now[1].ticks) = (Some(1 << 20), 1400);
            assert_eq!(look(Some(&before), &now, true), Look::Waits, "{id}");
            now[1].io = None;
            assert_eq!(look(Some(&before), &now, true), Look::Waits, "{id}");
        }
    }
}
