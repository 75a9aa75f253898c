//! Waits for an environment that is being recorded into its library.
//!
//! rcc writes a catalog first and its blobs seconds later, and holds `global.lck` until both are written. So a mount of a
//! new or changed catalog checks whether each of its blobs exists. If blobs are missing and a process holds the lock, the
//! mount waits. The index then records that all blobs were seen, and later mounts of the same catalog skip the check.
//!
//! Invariants: the lock is never held here, so rcc never waits for a mount. A mount does not start while blobs are still
//! being written. If blobs are missing and nobody writes them, the mount starts and reports how many.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::library::digest::Digest;
use crate::library::index::Index;
use crate::library::index::cache::{note_blobs_seen, open_or_compile};
use crate::library::locate::Location;
use crate::library::{Library, LibraryError};
use crate::session::error::Error;
use crate::session::placed;
use crate::session::request::MountPlan;
use crate::space::lock::{busy, holder};

/// How often to check whether rcc has finished.
const RETRY: Duration = Duration::from_millis(50);

/// Opens the plan's index, for the plan's path. Waits up to the plan's lock timeout if the environment is being recorded. Also returns the
/// number of blobs that are missing although nobody records the environment.
///
/// # Errors
/// [`Error::BeingRecorded`] after the timeout, and the errors of the catalog.
pub(in crate::session) fn whole_index(plan: &MountPlan) -> Result<(Arc<Index>, u32), Error> {
    let (library, lock) = (&*plan.location.library, plan.location.lock());
    let mut known = plan.index.clone();
    let cache_dir = plan.env.cache_dir().join("index");
    let started = Instant::now();
    let mut is_last_look = false;
    loop {
        let opened = match known.take() {
            Some(index) => Ok(index),
            None => open_or_compile(library, &plan.catalog, &cache_dir).map(Arc::new),
        };
        let missing = match &opened {
            Ok(index) if index.blobs_seen => 0,
            Ok(index) => missing_blobs(index, library),
            // The catalog may be half written. Other errors are permanent.
            Err(LibraryError::Catalog { .. } | LibraryError::Io { .. }) => 1,
            Err(_) => 0,
        };
        if missing == 0 || is_last_look {
            let index = opened?;
            if missing == 0 && !index.blobs_seen {
                note_blobs_seen(library, &plan.catalog, &cache_dir, &index);
            }
            return Ok((placed::of_plan(plan, index)?, missing));
        }
        // The lock is free, so the writer has finished since the check. The next check is final.
        let at_work = lock.as_ref().and_then(|lock| Some((lock, busy(lock)?)));
        let Some((lock, at_work)) = at_work else {
            is_last_look = true;
            continue;
        };
        if started.elapsed() >= plan.lock_timeout {
            let catalog = library.catalog_place(&plan.catalog).into();
            return Err(Error::BeingRecorded {
                catalog,
                missing,
                pid: holder(&at_work),
                waited: plan.lock_timeout,
            });
        }
        tracing::info!(missing, path = %lock.display(), "waiting until the environment is recorded");
        wait_while_held(lock, started + plan.lock_timeout);
    }
}

/// Waits up to `timeout` while a process records into a library. Returns whether one did: a catalog that could not be read
/// before may be complete now.
#[must_use]
pub(in crate::session) fn wait_for_recording(library: &Location, timeout: Duration) -> bool {
    let Some(lock) = library.lock() else { return false };
    let was_held = busy(&lock).is_some();
    wait_while_held(&lock, Instant::now() + timeout);
    was_held
}

fn wait_while_held(lock: &Path, deadline: Instant) {
    while busy(lock).is_some() && Instant::now() < deadline {
        std::thread::sleep(RETRY);
    }
}

/// The number of the environment's blobs that the library does not have.
pub(in crate::session) fn missing_blobs(index: &Index, library: &dyn Library) -> u32 {
    // Other errors are reported when the blob is read.
    let is_missing = |digest: &Digest| matches!(library.has_blob(digest), Ok(false));
    let missing = index.digests().into_iter().flatten().flatten().filter(is_missing).count();
    u32::try_from(missing).unwrap_or(u32::MAX)
}
