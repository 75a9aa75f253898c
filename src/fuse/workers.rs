//! Decides which thread runs a request: the loop that received it, or a thread of a pool.
//!
//! A loop that waits for a disk answers no other request. So all loops but one may run requests that can block. While
//! they all do, further such requests go to the pool, and the last loop continues with requests that need no disk. A
//! request that is known to take long goes to the pool at once. When no thread can be started, the loop does the work.
//!
//! Invariants: the last loop never blocks, as long as threads can be started; and a panic does not end a thread. A
//! request that panics drops its reply, and fuser then answers EIO.

use std::collections::VecDeque;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use fuser::RequestId;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::passthrough::Passthrough;
use crate::fs::Fs;
use crate::metrics::Metrics;
use crate::namespace::types::{Error, Ino, Result};
use crate::sys::thread;

/// After this time without work, a thread of the pool ends.
const IDLE: Duration = Duration::from_secs(5);

/// How long the kernel may cache names and attributes. In effect without limit, because every change goes through the
/// kernel.
pub(super) static TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// What all threads of a mount share: the operations, and how its files are open.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) fs: Arc<Fs>,
    /// None in cached mode.
    pub(super) passthrough: Option<Passthrough>,
}

impl Deref for Mount {
    type Target = Fs;

    fn deref(&self) -> &Fs {
        &self.fs
    }
}

impl Mount {
    /// Notes that the calling thread works on a request, for the worker that comes after this one.
    ///
    /// # Errors
    /// `Poisoned` if earlier workers died of it.
    pub(super) fn begin(&self, request: RequestId) -> Result<()> {
        let RequestId(unique) = request;
        if self.namespace().handoff().requests().begin(unique) { Ok(()) } else { Err(Error::Poisoned) }
    }

    /// How long the kernel may keep an inode's attributes.
    pub(super) fn attr_ttl(&self, ino: Ino) -> &'static Duration {
        match &self.passthrough {
            Some(modes) if !modes.keeps_attributes(ino.0) => &Duration::ZERO,
            _ => &TTL,
        }
    }
}

/// Runs the requests of one mount.
#[derive(Debug)]
pub(super) struct Workers {
    mount: Arc<Mount>,
    permits: Permits,
    pool: Arc<Pool>,
}

/// What a request may wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// For the disk, unless the entry is only in the library: the request only reads names or attributes.
    Names(Ino),
    /// For the disk.
    Disk,
    /// For long, so it never runs on a loop: it may copy a large file, or syncs one.
    Long,
}

impl Wait {
    pub(super) fn long_if(slow: bool) -> Self {
        if slow { Self::Long } else { Self::Disk }
    }
}

/// The number of further loops that may run a request that can block.
#[derive(Debug)]
struct Permits(AtomicIsize);

/// The right of a loop to run such a request, until it is dropped.
struct Permit<'p>(&'p AtomicIsize);

impl Permits {
    fn new(loops: usize) -> Self {
        Self(AtomicIsize::new(isize::try_from(loops.saturating_sub(1)).unwrap_or(isize::MAX)))
    }

    fn take(&self) -> Option<Permit<'_>> {
        if self.0.fetch_sub(1, Ordering::Relaxed) > 0 {
            return Some(Permit(&self.0));
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Workers {
    pub(super) fn new(mount: Mount, loops: usize) -> Self {
        Self { mount: Arc::new(mount), permits: Permits::new(loops), pool: Arc::default() }
    }

    /// The operations, for work that does not block.
    pub(super) fn mount(&self) -> &Mount {
        &self.mount
    }

    /// Runs a request. `with` (a name, or the bytes of a write) is copied only if the request goes to the pool.
    pub(super) fn run(&self, wait: Wait, with: &[u8], work: impl FnOnce(&Mount, &[u8]) + Send + 'static) {
        let permit = if wait == Wait::Long { None } else { self.permits.take() };
        let never_blocks = || matches!(wait, Wait::Names(ino) if self.mount.namespace().is_pure_lower(ino));
        if permit.is_some() || never_blocks() {
            guarded(self.mount.metrics(), || work(&self.mount, with));
        } else {
            let with = with.to_owned();
            self.hand_over(move |mount| work(mount, &with));
        }
    }

    /// Runs a request whose first step finds out whether it takes long. If so, the first step returns the second, which
    /// the pool runs.
    pub(super) fn run_in_steps<R>(&self, first: impl FnOnce(&Arc<Mount>) -> Option<R> + Send + 'static)
    where
        R: FnOnce(&Arc<Mount>) + Send + 'static,
    {
        let Some(permit) = self.permits.take() else {
            return self.hand_over(move |mount| first(mount).into_iter().for_each(|rest| rest(mount)));
        };
        let rest = guarded(self.mount.metrics(), || first(&self.mount)).flatten();
        drop(permit);
        if let Some(rest) = rest {
            self.hand_over(rest);
        }
    }

    /// Runs work that no request waits for on a thread of the pool.
    pub(super) fn in_background(&self, work: impl FnOnce(&Arc<Mount>) + Send + 'static) {
        self.hand_over(work);
    }

    /// Runs a request on a thread of the pool.
    fn hand_over(&self, work: impl FnOnce(&Arc<Mount>) + Send + 'static) {
        let mount = Arc::clone(&self.mount);
        self.pool.run(Box::new(move || {
            guarded(mount.metrics(), || work(&mount));
            mount.namespace().handoff().requests().rest();
        }));
    }
}

/// Runs a request, so that a panic does not end the loop and with it the mount. None when the request panicked.
pub(super) fn guarded<T>(metrics: &Metrics, work: impl FnOnce() -> T) -> Option<T> {
    // Unwinding releases the request's locks (parking_lot does not poison them) and drops its reply.
    let done = catch_unwind(AssertUnwindSafe(work)).ok();
    if done.is_none() {
        tracing::error!("a request panicked; answered with EIO");
        metrics.request_failed(Errno::IO);
    }
    done
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads that run jobs. A thread without work waits for [`IDLE`], and then ends.
#[derive(Default)]
struct Pool {
    /// A leaf lock.
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Number of waiting threads. There are never more jobs: each job in the queue has a thread.
    idle: usize,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// Runs a job on a waiting thread or a new one, or here if no thread can be started.
    fn run(self: &Arc<Self>, job: Job) {
        let mut queue = self.queue.lock();
        if queue.idle > queue.jobs.len() {
            queue.jobs.push_back(job);
            drop(queue);
            self.work.notify_one();
            return;
        }
        drop(queue);
        let pool = Arc::clone(self);
        let spawned = thread::spawn_with("worker", job, move |job| {
            job();
            pool.serve();
        });
        if let Err((job, error)) = spawned {
            tracing::warn!(%error, "cannot start a thread; a loop does the work");
            job();
        }
    }

    fn serve(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.queue.lock();
                continue;
            }
            queue.idle += 1;
            let timed_out = self.work.wait_for(&mut queue, IDLE).timed_out();
            queue.idle -= 1;
            if timed_out && queue.jobs.is_empty() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn jobs_that_wait_for_each_other_all_run() {
        let pool = Arc::new(Pool::default());
        for _ in 0..3 {
            // Each job waits for the next one, so each needs its own thread.
            let (first, second) = (channel::<()>(), channel::<()>());
            let (send, done) = channel();
            pool.run(Box::new(move || {
                first.1.recv().unwrap();
                second.0.send(()).unwrap();
            }));
            pool.run(Box::new(move || {
                second.1.recv().unwrap();
                send.send(()).unwrap();
            }));
            pool.run(Box::new(move || first.0.send(()).unwrap()));
            done.recv_timeout(Duration::from_secs(10)).unwrap();
        }
    }

    #[test]
    fn permits_are_as_many_as_loops_less_one() {
        let permits = Permits::new(2);
        let first = permits.take();
        assert!(first.is_some());
        assert!(permits.take().is_none());
        drop(first);
        assert!(permits.take().is_some());
        assert!(Permits::new(1).take().is_none() && Permits::new(0).take().is_none());
    }

    #[test]
    fn a_panic_ends_here() {
        let metrics = Metrics::default();
        assert_eq!(guarded(&metrics, || panic!("a test")), None::<()>);
        assert_eq!(metrics.snapshot()["errors.EIO"], 1);
    }
}
