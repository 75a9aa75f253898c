//! The threads and connections of a store, and how a caller waits for them.
//!
//! A caller waits by read(2) of an eventfd, and not for a lock: the keeper takes a thread that waits for another thread for
//! hung, and one that waits for the network must not be.
//!
//! Invariant: when [`Threads::end`] returns, no thread of these is left, so that the process may fork; but for one that the
//! system does not let go.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use tokio::runtime::{Builder, Handle, Runtime};

/// Requests are few and large, so few threads do.
const WORKERS: usize = 2;
/// Names are looked up, and files of a `file://` store read, on threads of their own.
const BLOCKING: usize = 8;
/// How long the threads may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// The name of all threads.
pub(super) const NAME: &str = "remote";

/// The threads, if there are any now.
#[derive(Debug, Default)]
pub(super) struct Threads {
    /// Held only while threads are started or ended.
    runtime: Mutex<Option<Runtime>>,
}

impl Threads {
    /// The runtime, started if it is not.
    fn handle(&self) -> io::Result<Handle> {
        let mut runtime = self.runtime.lock();
        if let Some(runtime) = &*runtime {
            return Ok(runtime.handle().clone());
        }
        let started = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING)
            .thread_name(NAME)
            .enable_io()
            .enable_time()
            .build()?;
        let handle = started.handle().clone();
        *runtime = Some(started);
        Ok(handle)
    }

    /// Ends all threads. What they were doing fails. A thread that the system does not let go, as when a server of names does
    /// not answer, is left after a while.
    pub(super) fn end(&self) {
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_timeout(ENDING);
        }
    }

    /// Lets the threads do something. The caller can wait for it.
    pub(super) fn start<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<Started<T>> {
        let handle = self.handle()?;
        let done = Arc::new(Done { event: eventfd(0, EventfdFlags::CLOEXEC)?, result: Mutex::new(None) });
        let announced = Announced(Arc::clone(&done));
        handle.spawn(async move {
            let result = work.await;
            *announced.0.result.lock() = Some(result);
            drop(announced);
        });
        Ok(Started(done))
    }

    /// Lets the threads do something, and waits for it.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        self.start(work)?.wait()
    }
}

#[derive(Debug)]
struct Done<T> {
    event: OwnedFd,
    result: Mutex<Option<T>>,
}

/// Wakes the caller when it is dropped: also if the threads end, or panic.
struct Announced<T>(Arc<Done<T>>);

impl<T> Drop for Announced<T> {
    fn drop(&mut self) {
        if let Err(errno) = rustix::io::write(&self.0.event, &1u64.to_ne_bytes()) {
            tracing::error!(%errno, "cannot wake a thread that waits for an object store");
        }
    }
}

/// Something that the threads do.
#[derive(Debug)]
pub(super) struct Started<T>(Arc<Done<T>>);

impl<T> Started<T> {
    /// Waits for the result.
    ///
    /// # Errors
    /// When the threads were ended before there was one.
    pub(super) fn wait(self) -> io::Result<T> {
        let mut count = [0; 8];
        rustix::io::retry_on_intr(|| rustix::io::read(&self.0.event, &mut count))?;
        self.0.result.lock().take().ok_or_else(|| io::Error::other("the connections were closed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of threads of this process.
    fn threads() -> usize {
        std::fs::read_dir("/proc/self/task").unwrap().count()
    }

    /// Alone in a process, because other tests have threads.
    #[test]
    fn no_thread_is_left_after_the_end() {
        const ALONE: &str = "HOLOFS_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let this = "library::remote::store::wait::tests::no_thread_is_left_after_the_end";
            let program = std::env::current_exe().unwrap();
            let done = std::process::Command::new(program)
                .args(["--exact", this, "--test-threads=1", "--nocapture"])
                .env(ALONE, "1")
                .output()
                .unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            assert!(String::from_utf8_lossy(&done.stdout).contains("1 passed"));
            return;
        }
        let before = threads();
        let all = Threads::default();
        for _ in 0..3 {
            let work = async {
                tokio::task::spawn_blocking(|| ()).await.unwrap();
                7
            };
            assert_eq!(all.wait(work).unwrap(), 7);
            assert!(threads() > before);
            // One that would never end.
            let never = all.start(std::future::pending::<()>()).unwrap();
            all.end();
            // A thread that was just joined can still be in the list.
            for _ in 0..1000 {
                if threads() == before {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            assert_eq!(threads(), before);
            assert!(never.wait().is_err());
        }
    }

    #[test]
    fn a_panic_wakes_the_caller() {
        let all = Threads::default();
        assert!(all.wait(async { panic!("a test") }).is_err());
        all.end();
    }

    /// The keeper takes a thread that waits for a lock for hung.
    #[test]
    fn a_caller_waits_in_read() {
        let all = Arc::new(Threads::default());
        let (send, receive) = std::sync::mpsc::channel();
        let theirs = Arc::clone(&all);
        let waits = std::thread::spawn(move || {
            send.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            drop(theirs.wait(std::future::pending::<()>()));
        });
        let id = receive.recv().unwrap().unsigned_abs();
        let call = || {
            let all = crate::sys::threads::of(std::process::id()).unwrap();
            all.into_iter().find(|thread| thread.id == id).unwrap().call
        };
        let is_read = |call| matches!(call, crate::sys::threads::Call::Read(_));
        let mut seen = call();
        for _ in 0..2000 {
            if is_read(seen) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
            seen = call();
        }
        all.end();
        waits.join().unwrap();
        assert!(is_read(seen), "{seen:?}");
    }
}
