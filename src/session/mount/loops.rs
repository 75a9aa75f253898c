//! The loops of a mount: threads that read requests and answer them.
//!
//! fuser fails if it cannot start all of them. So the number of threads that can be started is found out first, by starting
//! them. That takes as long as composing the filesystem, so both are done at once.

use std::thread;

use fuser::Config;
use rustix::fs::{Mode, OFlags};

use crate::session::error::Error;
use crate::sys::{self, FUSE_DEVICE, process, surroundings};

/// The fewest and the most loops. With a single loop each request costs three times as much as with two, see
/// `docs/PERFORMANCE.md`. More loops than processors only compete for them.
const LOOPS: std::ops::RangeInclusive<usize> = 3..=16;

/// Finds the number of loops while `work` runs: one more than there are processors, or as many as threads can be started.
/// An error: no thread can be started, or a memory limit leaves less than the loops need.
pub(in crate::session) fn beside_probe<T>(work: impl FnOnce() -> T) -> (Result<usize, Error>, T) {
    thread::scope(|scope| {
        // One more thread waits for the loops. The probe is one of the threads that it counts.
        let probe = || {
            let wanted = (process::processors() + 1).clamp(*LOOPS.start(), *LOOPS.end());
            sys::thread::obtainable(wanted)
        };
        let probe = thread::Builder::new().name("probe".into()).spawn_scoped(scope, probe);
        let done = work();
        // The panic hook has said why it panicked.
        let loops = probe.map_or(0, |probe| probe.join().unwrap_or_default());
        (check_loops(loops), done)
    })
}

/// Checks that so many loops are enough, and have the memory that they need.
fn check_loops(loops: usize) -> Result<usize, Error> {
    if loops == 0 {
        let why = "two threads cannot be started: ulimit -u, or a container's limit of processes";
        return Err(Error::Limits(why.into()));
    }
    check_memory(loops)?;
    Ok(loops)
}

/// Checks that a memory limit leaves room for so many loops. With such a limit, all threads share one arena from now on.
///
/// # Errors
/// When it does not.
pub(in crate::session) fn check_memory(loops: usize) -> Result<(), Error> {
    /// What each loop allocates: a buffer for the largest request, and a stack.
    const EACH: u64 = 18 << 20;
    /// What the rest of the daemon needs: files being unpacked, buffers of copies, threads of requests that wait.
    const BESIDE: u64 = 64 << 20;
    let Some(room) = surroundings::memory_room() else { return Ok(()) };
    surroundings::spare_addresses();
    let needed = BESIDE + EACH * loops as u64;
    if room < needed {
        let (room, needed) = (room >> 20, needed >> 20);
        let why =
            format!("{room} MB of memory are left by its limit (ulimit -v, -d), and a mount needs {needed}");
        return Err(Error::Limits(why));
    }
    Ok(())
}

/// One device descriptor for each loop where /dev/fuse can be opened. A container may not allow that.
pub(in crate::session) fn config(loops: usize) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(loops);
    let openable = rustix::fs::open(FUSE_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    config.clone_fd = openable.is_ok();
    config
}
