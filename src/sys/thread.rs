//! Starts threads where that can fail: limits of processes (`ulimit -u`) and of containers count threads too.

use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

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

/// How many more threads can be started, up to `wanted`. Starts them to find out.
#[must_use]
pub fn obtainable(wanted: usize) -> usize {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let mut threads = Vec::with_capacity(wanted);
    for _ in 0..wanted {
        let gate = Arc::clone(&gate);
        let wait = move || {
            let mut open = gate.0.lock();
            while !*open {
                gate.1.wait(&mut open);
            }
        };
        match std::thread::Builder::new().name("probe".into()).spawn(wait) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                tracing::debug!(%error, had = threads.len(), wanted, "cannot start as many threads as wanted");
                break;
            }
        }
    }
    *gate.0.lock() = true;
    gate.1.notify_all();
    let had = threads.len();
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a waiting thread panicked");
        }
    }
    had
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_on_another_thread() {
        let (send, receive) = std::sync::mpsc::channel();
        spawn_with("test", 7, move |n| send.send((n, std::thread::current().id())).unwrap()).unwrap();
        let (n, thread) = receive.recv().unwrap();
        assert_eq!(n, 7);
        assert_ne!(thread, std::thread::current().id());
    }

    #[test]
    fn threads_are_counted() {
        assert_eq!(obtainable(3), 3);
    }
}
