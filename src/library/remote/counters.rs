//! What was asked of a store, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::Serialize;

/// How often it is logged that a store does not answer.
const LOG_EVERY: u64 = 60;

/// Counts since the store was opened. Any thread may add to them.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    retries: AtomicU64,
    failures: AtomicU64,
    /// In seconds since the epoch. Zero while the store answers.
    silent_since: AtomicU64,
    /// When it was logged last that it does not answer, in seconds since the epoch.
    logged: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Counts {
    /// Requests, with those that were sent again.
    pub requests: u64,
    /// Bytes of objects that came.
    pub received: u64,
    /// Bytes of objects that were sent.
    pub sent: u64,
    /// Requests that failed and were sent again.
    pub retries: u64,
    /// Calls that failed in the end because the store did not answer.
    pub failures: u64,
    /// Since when the store does not answer, in seconds since the epoch.
    pub silent_since: Option<u64>,
}

impl Counters {
    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the store answered.
    pub(super) fn answered(&self) {
        if self.silent_since.swap(0, Ordering::Relaxed) != 0 {
            tracing::info!("the object store answers again");
        }
        self.logged.store(0, Ordering::Relaxed);
    }

    /// Notes that the store did not answer. Logs it once in a while.
    pub(super) fn silent(&self, url: &str, why: &str) {
        let now = now();
        let since = match self.silent_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => now,
            Err(since) => since,
        };
        let last = self.logged.load(Ordering::Relaxed);
        let is_first = now >= last + LOG_EVERY
            && self.logged.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_first {
            tracing::warn!(%url, why, seconds = now - since, "the object store does not answer; trying again");
        }
    }

    /// The counts now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            requests: count(&self.requests),
            received: count(&self.received),
            sent: count(&self.sent),
            retries: count(&self.retries),
            failures: count(&self.failures),
            silent_since: Some(count(&self.silent_since)).filter(|since| *since != 0),
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_since_when_a_store_is_silent() {
        let counters = Counters::default();
        assert_eq!(counters.counts().silent_since, None);
        counters.silent("s3://b", "why");
        let since = counters.counts().silent_since.unwrap();
        counters.silent("s3://b", "why");
        assert!(since > 0 && counters.counts().silent_since == Some(since));
        counters.answered();
        assert_eq!(counters.counts().silent_since, None);
    }
}
