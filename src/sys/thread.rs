//! Starts threads where that can fail: limits of processes (`ulimit -u`) and of containers count threads too.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

/// Runs `work` with `what` on a new thread.
///
/// # Errors
/// `what`, and why the thread could not be started: mostly EAGAIN.
pub fn spawn_with<T: Send + 'static>(
    name: &str,
    what: T,
    work: impl FnOnce(T) + Send + 'static,
) -> Result<(), (T, io::Error)> {
    let slot = Arc::new(Mutex::new(Some(what)));
    let theirs = Arc::clone(&slot);
    let spawned = std::thread::Builder::new().name(name.into()).spawn(move || {
        let what = theirs.lock().take();
        if let Some(what) = what {
            work(what);
        }
    });
    match spawned {
        Ok(_) => Ok(()),
        // The closure was dropped, so `what` is still in the slot.
        Err(error) => match slot.lock().take() {
            Some(what) => Err((what, error)),
            None => Ok(()),
        },
    }
}

/// The error when a thread panicked. The panic hook has reported why.
#[derive(Debug, thiserror::Error)]
#[error("internal error: a thread panicked")]
pub struct Panicked;

/// Calls `work` with each item, on up to `jobs` threads including this one. The items are taken in order. Each thread
/// makes its own state with `state`. After an error, no thread takes another item.
///
/// # Errors
/// The first error of `work`, or [`Panicked`].
pub fn for_each<T: Sync, S, E: Send + From<Panicked>>(
    items: &[T],
    jobs: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let take_items = || {
        let mut state = state();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(&mut state, item)?;
        }
        Ok(())
    };
    let run = || {
        // After a panic, the caller drops what the threads share.
        let done = catch_unwind(AssertUnwindSafe(take_items));
        if let Err(error) = done.unwrap_or_else(|_| Err(Panicked.into())) {
            next.store(items.len(), Ordering::Relaxed);
            failed.lock().get_or_insert(error);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.min(items.len()) {
            if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, run) {
                tracing::debug!(%error, jobs, "cannot start as many threads as wanted");
                break;
            }
        }
        run();
    });
    failed.into_inner().map_or(Ok(()), Err)
}

/// Calls `other` on a new thread and `this` on the caller's, at the same time. If no thread can be had, `other` comes last.
pub fn beside<T, U: Send>(
    name: &str,
    other: impl Fn() -> U + Sync,
    this: impl FnOnce() -> T,
) -> (T, Result<U, Panicked>) {
    std::thread::scope(|scope| {
        match std::thread::Builder::new().name(name.into()).spawn_scoped(scope, &other) {
            Ok(thread) => (this(), thread.join().map_err(|_| Panicked)),
            Err(error) => {
                tracing::debug!(%error, name, "no thread can be started");
                (this(), Ok(other()))
            }
        }
    })
}

/// How many more threads can be started, up to `wanted`. Starts them to find out.
#[must_use]
pub fn obtainable(wanted: usize) -> usize {
    let gate = RwLock::new(());
    std::thread::scope(|scope| {
        // The threads wait for the lock until all are started. As readers they all go on at once.
        let _shut = gate.write();
        for had in 0..wanted {
            let thread = std::thread::Builder::new().name("probe".into());
            if let Err(error) = thread.spawn_scoped(scope, || drop(gate.read())) {
                tracing::debug!(%error, had, wanted, "cannot start as many threads as wanted");
                return had;
            }
        }
        wanted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    impl From<Panicked> for io::Error {
        fn from(panicked: Panicked) -> Self {
            Self::other(panicked)
        }
    }

    #[test]
    fn work_is_done_on_another_thread() {
        let (send, receive) = std::sync::mpsc::channel();
        spawn_with("test", 7, move |n| send.send((n, std::thread::current().id())).unwrap()).unwrap();
        let (n, thread) = receive.recv().unwrap();
        assert_eq!(n, 7);
        assert_ne!(thread, std::thread::current().id());
    }

    #[test]
    fn each_item_is_taken_once_by_one_of_the_threads() {
        let items: Vec<usize> = (0..1000).collect();
        for jobs in [0, 1, 4] {
            let (sum, states) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let state = || states.fetch_add(1, Ordering::Relaxed);
            let work = |_: &mut usize, item: &usize| {
                sum.fetch_add(*item, Ordering::Relaxed);
                Ok::<(), Panicked>(())
            };
            for_each(&items, jobs, state, work).unwrap();
            assert_eq!((sum.into_inner(), states.into_inner()), (499_500, jobs.max(1)));
        }
    }

    #[test]
    fn no_item_is_taken_after_an_error() {
        let taken = AtomicUsize::new(0);
        let work = |(): &mut (), item: &usize| {
            taken.fetch_add(1, Ordering::Relaxed);
            if *item == 3 { Err(io::Error::other("three")) } else { Ok(()) }
        };
        let items: Vec<usize> = (0..1000).collect();
        assert_eq!(for_each(&items, 1, || (), work).unwrap_err().to_string(), "three");
        assert_eq!(taken.into_inner(), 4);
    }

    #[test]
    fn a_panic_is_an_error_and_ends_the_work() {
        let items: Vec<usize> = (0..1000).collect();
        for jobs in [1, 4] {
            let taken = AtomicUsize::new(0);
            let work = |(): &mut (), item: &usize| {
                taken.fetch_add(1, Ordering::Relaxed);
                assert_ne!(*item, 3, "a test");
                Ok(())
            };
            let Panicked = for_each(&items, jobs, || (), work).unwrap_err();
            assert!(jobs > 1 || taken.into_inner() == 4);
        }
    }

    #[test]
    fn threads_are_counted() {
        assert_eq!(obtainable(3), 3);
    }
}
