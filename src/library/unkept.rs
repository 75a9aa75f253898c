//! Copies without a name: those that are larger than the cache, and those in memory while the disk is full.
//!
//! Without this table each read would make such a copy again. It keeps a few of them open. Invariant: the copies in memory
//! together take at most [`memory_limit`] bytes. A larger copy is not made.

use std::fs::File;
use std::hash::Hash;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use rustix::io::Errno;

/// The number of files that stay open.
const LIMIT: NonZeroUsize = match NonZeroUsize::new(8) {
    Some(limit) => limit,
    None => NonZeroUsize::MIN,
};

/// Open files, each under the key of its original. The least recently used are closed.
#[derive(Debug)]
pub(crate) struct Unkept<K: Hash + Eq> {
    files: LruCache<K, (Arc<File>, u64)>,
    /// The size in bytes of the files in memory.
    in_memory: u64,
}

impl<K: Hash + Eq> Default for Unkept<K> {
    fn default() -> Self {
        Self { files: LruCache::new(LIMIT), in_memory: 0 }
    }
}

impl<K: Hash + Eq> Unkept<K> {
    pub(crate) fn get(&mut self, key: &K) -> Option<Arc<File>> {
        self.files.get(key).map(|(file, _)| Arc::clone(file))
    }

    /// Adds a file, which takes `in_memory` bytes of memory. Returns the files that it replaces, so that the caller can close
    /// them without holding a lock.
    #[must_use]
    pub(crate) fn put(&mut self, key: K, file: Arc<File>, in_memory: u64) -> Vec<Arc<File>> {
        let mut out = self.make_room(in_memory);
        self.in_memory += in_memory;
        if let Some((_, (old, bytes))) = self.files.push(key, (file, in_memory)) {
            self.in_memory -= bytes;
            out.push(old);
        }
        out
    }

    /// Removes files until `bytes` more fit into memory. Returns them, as [`Unkept::put`] does.
    #[must_use]
    pub(crate) fn make_room(&mut self, bytes: u64) -> Vec<Arc<File>> {
        let mut out = Vec::new();
        while self.in_memory.saturating_add(bytes) > memory_limit() {
            let Some((_, (old, bytes))) = self.files.pop_lru() else { break };
            self.in_memory -= bytes;
            out.push(old);
        }
        out
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
        assert_eq!(unkept.in_memory, half);
        drop(unkept.put(101, file(), half));
        assert_eq!(unkept.in_memory, half);
        assert!(unkept.get(&100).is_none() && unkept.get(&101).is_some());
        drop(unkept.put(101, file(), 5));
        assert_eq!(unkept.in_memory, 5);
    }
}
