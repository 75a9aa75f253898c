//! Processors that poll instead of halting while requests come thick and fast.
//!
//! A request wakes two threads, the daemon's and then the caller's, and waking a processor that has halted can take
//! several times what the request itself does: in a virtual machine it is the hypervisor that wakes it. Linux lets root
//! say how much latency is bearable (`/dev/cpu_dma_latency`, see Documentation/power/pm_qos_interface.rst); when none
//! is, an idle processor polls. Invariant: that is said only during a burst of requests and taken back within 4 ms
//! of its end, by the kernel itself when the daemon dies.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A burst begins with so many requests within [`WINDOW`]: two thousand a second. Where waking takes 25 us they spend a
/// tenth of the time on it.
const BURST: u64 = 16;
const WINDOW: Duration = Duration::from_millis(8);

/// It lasts as long as there are so many in each [`QUIET`].
const FEW: u64 = 8;
const QUIET: Duration = Duration::from_millis(4);

/// Of more processors than these most would poll for nobody.
const MOST_PROCESSORS: usize = 4;

/// Whether polling is worth its price here: a small virtual machine that halts at once. Where its kernel polls a while
/// before it halts, as it does by default, there is nothing left to gain.
#[must_use]
pub fn pays() -> bool {
    let is = |path: &str, value: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    is("/sys/devices/system/cpu/cpuidle/current_governor", "haltpoll")
        && is("/sys/module/haltpoll/parameters/guest_halt_poll_ns", "0")
        && super::process::online_processors() <= MOST_PROCESSORS
}

/// The right to say which latency is bearable, for as long as it is open.
#[derive(Debug)]
pub struct Latency(File);

impl Latency {
    /// Asks for the right; any latency is bearable at first.
    ///
    /// # Errors
    /// Those of open(2) and write(2): EACCES for an ordinary user, ENOENT in most containers.
    pub fn open() -> io::Result<Self> {
        let mut latency = Self(OpenOptions::new().write(true).open("/dev/cpu_dma_latency")?);
        latency.bear_any()?;
        Ok(latency)
    }

    fn bear_none(&mut self) -> io::Result<()> {
        self.0.write_all(&0_i32.to_ne_bytes())
    }

    fn bear_any(&mut self) -> io::Result<()> {
        /// Microseconds: `PM_QOS_CPU_LATENCY_DEFAULT_VALUE` of `linux/pm_qos.h`.
        const ANY: i32 = 2_000_000_000;
        self.0.write_all(&ANY.to_ne_bytes())
    }
}

/// Counts requests, and notices when a burst of them begins.
#[derive(Debug, Default)]
struct Requests {
    seen: AtomicU64,
    /// When the last [`BURST`] of them was complete: microseconds of some clock.
    complete: AtomicU64,
    /// The keeper's thread sleeps until a burst begins.
    quiet: AtomicBool,
    stop: AtomicBool,
}

impl Requests {
    /// Counts one; the clock is asked now and then. Returns whether a burst begins with it.
    fn add(&self, clock: impl FnOnce() -> Duration) -> bool {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        if !seen.is_multiple_of(BURST) || !self.quiet.load(Ordering::Relaxed) {
            return false;
        }
        let now = u64::try_from(clock().as_micros()).unwrap_or(u64::MAX);
        let before = self.complete.swap(now, Ordering::Relaxed);
        u128::from(now.saturating_sub(before)) <= WINDOW.as_micros()
            && self.quiet.swap(false, Ordering::Relaxed)
    }

    /// Sleeps until a burst begins. Returns whether one did, and not the end.
    fn wait(&self) -> bool {
        self.quiet.store(true, Ordering::Relaxed);
        while self.quiet.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
            std::thread::park();
        }
        !self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps until a burst is over.
    fn outlast(&self) {
        loop {
            let before = self.seen.load(Ordering::Relaxed);
            std::thread::park_timeout(QUIET);
            let more = self.seen.load(Ordering::Relaxed) - before;
            if more < FEW || self.stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

/// The thread that acts on bursts; it ends when this is dropped.
#[derive(Debug)]
pub struct Keeper {
    requests: Arc<Requests>,
    epoch: Instant,
    /// None once it was joined.
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts it.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(mut latency: Latency) -> io::Result<Self> {
        let requests = Arc::new(Requests::default());
        let seen = Arc::clone(&requests);
        let keep = move || {
            while seen.wait() {
                let held = latency.bear_none().map(|()| seen.outlast());
                if let Err(error) = held.and_then(|()| latency.bear_any()) {
                    return tracing::warn!(%error, "processors halt between requests from now on");
                }
            }
        };
        let thread = std::thread::Builder::new().name("busy-poll".into()).spawn(keep)?;
        Ok(Self { requests, epoch: Instant::now(), thread: Some(thread) })
    }

    /// Notes a request.
    pub fn note(&self) {
        if self.requests.add(|| self.epoch.elapsed()) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.requests.stop.store(true, Ordering::Relaxed);
        self.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that watches for bursts of requests panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Requests {
        Requests { quiet: AtomicBool::new(true), ..Requests::default() }
    }

    #[test]
    fn a_burst_is_many_requests_in_little_time() {
        let requests = quiet();
        let clock = || 2 * WINDOW;
        assert!(
            (0..2 * BURST - 1).all(|_| !requests.add(clock)),
            "nothing was so near before the first of them"
        );
        assert!(requests.add(clock), "these were");
        assert!((0..10 * BURST).all(|_| !requests.add(clock)), "it is told once");
    }

    #[test]
    fn requests_far_apart_are_no_burst() {
        let requests = quiet();
        for n in 1..10 {
            assert!((0..BURST).all(|_| !requests.add(|| n * 2 * WINDOW)));
        }
    }

    #[test]
    fn a_burst_is_outlasted_and_the_next_one_noticed() {
        let requests = Arc::new(Requests::default());
        let keeper = Arc::clone(&requests);
        let thread = std::thread::spawn(move || {
            let mut bursts = 0;
            while keeper.wait() {
                keeper.outlast();
                bursts += 1;
            }
            bursts
        });
        let until_quiet = || {
            while !requests.quiet.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        for _ in 0..2 {
            until_quiet();
            while !requests.add(|| WINDOW) {}
            thread.thread().unpark();
        }
        until_quiet();
        requests.stop.store(true, Ordering::Relaxed);
        thread.thread().unpark();
        assert_eq!(thread.join().unwrap(), 2);
    }
}
