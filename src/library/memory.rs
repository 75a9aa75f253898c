//! What is kept in memory, within a limit in bytes: small contents, and copies without a name. Those are copies that are
//! larger than the cache, and those in memory while the disk is full.
//!
//! Without these tables each read would make such a copy again. Invariant: the copies in memory together take at most
//! [`memory_limit`] bytes. A larger copy is not made.

use std::fs::File;
use std::hash::Hash;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use rustix::io::Errno;

/// The number of files that [`Unkept`] keeps open.
const LIMIT: NonZeroUsize = match NonZeroUsize::new(8) {
    Some(limit) => limit,
    None => NonZeroUsize::MIN,
};

/// Open files without a name, each under the key of its original.
pub(crate) type Unkept<K> = LruBySize<K, Arc<File>>;

/// Values with their sizes in memory. The least recently used go when there are too many, or they take too much. What goes
/// is returned, so that the caller can drop it without holding a lock.
#[derive(Debug)]
pub(crate) struct LruBySize<K: Hash + Eq, V> {
    entries: LruCache<K, (V, u64)>,
    /// The sum of the sizes in bytes.
    bytes: u64,
    limit: u64,
}

impl<K: Hash + Eq> Default for Unkept<K> {
    fn default() -> Self {
        Self { entries: LruCache::new(LIMIT), bytes: 0, limit: memory_limit() }
    }
}

impl<K: Hash + Eq, V: Clone> LruBySize<K, V> {
    /// A table of any number of values, which together take at most `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0, limit }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        self.entries.get(key).map(|(value, _)| value.clone())
    }

    /// Adds a value that takes `bytes` bytes.
    #[must_use]
    pub(crate) fn put(&mut self, key: K, value: V, bytes: u64) -> Vec<V> {
        let mut out = self.make_room(bytes);
        self.bytes += bytes;
        out.extend(self.entries.push(key, (value, bytes)).map(|(_, old)| self.out(old)));
        out
    }

    #[must_use]
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.pop(key).map(|old| self.out(old))
    }

    /// Removes values until `bytes` more fit.
    #[must_use]
    pub(crate) fn make_room(&mut self, bytes: u64) -> Vec<V> {
        let mut out = Vec::new();
        while self.bytes.saturating_add(bytes) > self.limit {
            let Some((_, old)) = self.entries.pop_lru() else { break };
            out.push(self.out(old));
        }
        out
    }

    fn out(&mut self, (value, bytes): (V, u64)) -> V {
        self.bytes -= bytes;
        value
    }
}

/// The largest size in bytes of all copies in memory: a quarter of the machine's memory, at most 1 GiB.
#[must_use]
pub(crate) fn memory_limit() -> u64 {
    let found = rustix::system::sysinfo();
    let total = found.totalram.saturating_mul(u64::from(found.mem_unit));
    (total / 4).min(1 << 30)
}

/// Whether an error means that the disk or the quota is full.
#[must_use]
pub(crate) fn is_full(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_they_take_too_much() {
        let file = || Arc::new(tempfile::tempfile().unwrap());
        let mut unkept = Unkept::default();
        for key in 0..LIMIT.get() + 2 {
            drop(unkept.put(key, file(), 0));
        }
        assert!(unkept.get(&1).is_none() && unkept.get(&2).is_some());
        let half = memory_limit() / 2 + 1;
        drop(unkept.put(100, file(), half));
        assert_eq!(unkept.bytes, half);
        drop(unkept.put(101, file(), half));
        assert_eq!(unkept.bytes, half);
        assert!(unkept.get(&100).is_none() && unkept.get(&101).is_some());
        drop(unkept.put(101, file(), 5));
        assert_eq!(unkept.bytes, 5);
    }
}
