//! What the keeper sees of the requests of a worker: whether it begins new ones.
//!
//! It takes nothing from the threads: they write the words for other reasons.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::{Requests, SLOTS, slot, store, word};

/// The requests of a worker at one instant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Number of slots that were ever used.
    cursor: u64,
    /// The threads that serve, each with the request that it works on or has worked on last.
    pub threads: Vec<Serving>,
}

/// A thread that serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Serving {
    /// Its number.
    pub thread: u32,
    /// The number of the request; 0 if the thread is known to have none.
    pub request: u64,
}

impl Requests<'_> {
    /// Notes that the calling thread has answered its request, and waits for another one elsewhere than at the device.
    pub fn rest(self) {
        if self.is_current()
            && let Some(slot) = self.slot()
        {
            store(slot, slot::WORKING, 0);
        }
    }

    /// The requests that the worker before this one worked on, or had worked on last, when it died.
    #[must_use]
    pub fn left(self) -> Vec<u64> {
        let Some(worker) = self.worker.checked_sub(1) else { return Vec::new() };
        let threads = Self { worker, ..self }.progress().threads.into_iter();
        threads.map(|serving| serving.request).filter(|request| *request != 0).collect()
    }

    /// What the last worker that was started is doing. Two equal answers say that it has begun no request between them.
    #[must_use]
    pub fn progress(self) -> Progress {
        let cursor = self.words.get(word::CURSOR).map_or(0, |cursor| cursor.load(Acquire));
        let mut threads = Vec::new();
        for back in 1..=cursor.min(SLOTS as u64) {
            let at = usize::try_from((cursor - back) % SLOTS as u64).unwrap_or_default();
            // Slots are used in turn.
            if !self.has(at) {
                break;
            }
            let Some(words) = self.words_of(at) else { break };
            let read = |at: usize| words.get(at).map_or(0, |word| word.load(Relaxed));
            let thread = u32::try_from(read(slot::THREAD)).unwrap_or_default();
            threads.push(Serving { thread, request: read(slot::WORKING) });
        }
        Progress { cursor, threads }
    }
}

#[cfg(test)]
mod tests {
    use crate::handoff::Handoff;

    #[test]
    fn progress_is_a_request_that_begins() {
        let handoff = Handoff::private().unwrap();
        handoff.begin();
        let requests = handoff.requests();
        let none = requests.progress();
        assert!(none.threads.is_empty());
        assert!(requests.begin(2));
        let one = requests.progress();
        assert!(one != none && one == requests.progress());
        let this = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        assert_eq!((one.threads[0].thread, one.threads[0].request), (this, 2));
        assert!(requests.begin(4));
        assert_ne!(requests.progress(), one);
        std::thread::scope(|scope| drop(scope.spawn(|| requests.begin(6))));
        assert_eq!(requests.progress().threads.len(), 2);
        requests.rest();
        assert!(requests.progress().threads.iter().any(|thread| thread.request == 0));
        assert!(requests.begin(8) && requests.left().is_empty());
        handoff.begin();
        assert!(handoff.requests().progress().threads.is_empty(), "of the next worker");
        assert_eq!(handoff.requests().left(), [6, 8]);
    }
}
