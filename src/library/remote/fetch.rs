//! Fetches a group of blobs from a store.
//!
//! Limit: groups that are under way take a limited number of bytes together. Whoever finds no room waits for it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::layout::Group;
use super::{Objects, StoreError};
use crate::library::memory::LruBySize;

/// Bytes of groups that are under way at the same time.
const UNDER_WAY: u64 = 64 << 20;

/// The pack of a group, and its offset in the pack.
pub(super) type GroupKey = ([u8; 32], u64);

/// What fetches one group.
pub(super) struct Fetcher {
    pub(super) store: Option<Arc<dyn Objects>>,
    pub(super) kept: Option<Arc<Vec<u8>>>,
    pub(super) name: String,
    pub(super) group: Group,
    pub(super) groups: Arc<Mutex<LruBySize<GroupKey, Arc<Vec<u8>>>>>,
    pub(super) under_way: Arc<Mutex<u64>>,
    pub(super) until: Instant,
}

impl Fetcher {
    pub(super) fn fetch(self) -> io::Result<Arc<Vec<u8>>> {
        let Self { store, kept, name, group, groups, under_way, until } = self;
        let (Some(store), None) = (store, &kept) else { return Ok(kept.unwrap_or_default()) };
        let _room = Room::take(under_way, group.len, until)
            .ok_or_else(|| StoreError::Unreachable {
                object: name.clone(),
                why: "too many reads wait for it".into(),
            })
            .map_err(|error| of_store(&error))?;
        let range = group.offset..group.offset.saturating_add(group.len);
        let patience = until.saturating_duration_since(Instant::now());
        let bytes =
            store.get_within(&name, Some(range), group.len, patience).map_err(|error| of_store(&error))?;
        if bytes.len() as u64 != group.len {
            let why = format!("{name} is truncated");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let bytes = Arc::new(bytes);
        let dropped_later = groups.lock().put((group.pack, group.offset), Arc::clone(&bytes), group.len);
        drop(dropped_later);
        Ok(bytes)
    }
}

/// The right to hold bytes of groups that are under way.
struct Room(Arc<Mutex<u64>>, u64);

impl Room {
    /// Waits for room. Not by a lock: the keeper must see that this waits for something else than the worker.
    fn take(taken: Arc<Mutex<u64>>, bytes: u64, until: Instant) -> Option<Self> {
        loop {
            {
                let mut now = taken.lock();
                if *now == 0 || now.saturating_add(bytes) <= UNDER_WAY {
                    *now += bytes;
                    break;
                }
            }
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(Self(taken, bytes))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *self.0.lock() -= self.1;
    }
}

/// An error of a store, as one of reading a blob.
pub(super) fn of_store(error: &StoreError) -> io::Error {
    match error {
        StoreError::NotFound { .. } => io::Error::new(io::ErrorKind::NotFound, error.to_string()),
        StoreError::Refused { .. } => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        StoreError::Content { source, .. } => source
            .raw_os_error()
            .map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error),
        StoreError::Denied { .. }
        | StoreError::Unreachable { .. }
        | StoreError::Untrusted { .. }
        | StoreError::Offline { .. } => io::Error::new(io::ErrorKind::HostUnreachable, error.to_string()),
    }
}

/// As [`of_store`], in the middle of a blob. An error without a number would say that the blob is bad.
pub(super) fn in_the_middle(error: &StoreError) -> io::Error {
    match error {
        StoreError::NotFound { .. } | StoreError::Refused { .. } => of_store(error),
        _ => {
            tracing::debug!(%error, "a read of a large file failed");
            io::Error::from_raw_os_error(libc::EHOSTUNREACH)
        }
    }
}
