//! Holds all changes of a space back, so that it can be copied as of one instant, or be reset.
//!
//! Each request that changes something shares one lock while it runs. Who freezes the space takes that lock alone: then no
//! change is half done, and none begins. Requests that only read go on.
//!
//! Limits: stores to a shared map are not requests. In cached mode they become changes when the kernel writes them back,
//! which waits. In passthrough mode the kernel writes to the backing file of an open file without a request, so the bytes
//! of such a file can change.

use std::time::{Duration, Instant};

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::Namespace;

/// How long a freeze looks for an instant without changes, before it makes new changes wait.
const POLITE: Duration = Duration::from_millis(200);

/// A change is in progress until this is dropped.
#[derive(Debug)]
pub struct Changing<'n>(#[allow(dead_code)] RwLockReadGuard<'n, ()>);

/// No change is in progress, and none begins, until this is dropped.
#[derive(Debug)]
pub struct Frozen<'n>(#[allow(dead_code)] RwLockWriteGuard<'n, ()>);

impl Namespace {
    /// Waits while the space is frozen. A request that changes something holds the result while it runs.
    #[must_use]
    pub fn changing(&self) -> Changing<'_> {
        Changing(self.changes.read())
    }

    /// Waits until no change is in progress. None when that takes longer than `limit`: a change can wait for a disk.
    #[must_use]
    pub fn freeze(&self, limit: Duration) -> Option<Frozen<'_>> {
        let begun = Instant::now();
        while begun.elapsed() < POLITE.min(limit) {
            if let Some(guard) = self.changes.try_write() {
                return Some(Frozen(guard));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // New changes wait from here on.
        self.changes.try_write_for(limit.saturating_sub(begun.elapsed())).map(Frozen)
    }
}
