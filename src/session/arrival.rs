//! An environment that is not whole in its library yet, or no more.
//!
//! rcc writes a catalog first and its blobs seconds later, all under `global.lck`. So a catalog that is new or was touched
//! has its blobs looked for; while some are missing and somebody holds the lock, they are waited for. A catalog whose
//! blobs were all seen, and which has not been touched since, is not looked at again: that costs nothing.
//!
//! Invariant: the lock is never held here, so rcc is not kept waiting; a mount does not start on blobs that are still to
//! come, nor on missing ones without telling.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::error::Error;
use super::plan::MountPlan;
use crate::library::digest::Digest;
use crate::library::index::Index;
use crate::library::index::cache::{note_blobs_seen, open_or_compile};
use crate::library::locate::Location;
use crate::library::{Library, LibraryError};
use crate::space::lock::holder;
use crate::sys::guarded::{self, Access};

/// How often it is looked whether rcc has finished.
const RETRY: Duration = Duration::from_millis(50);

/// Opens the plan's index, and waits up to the plan's lock timeout for an environment that is being recorded. Returns
/// how many blobs are missing of one that nobody is recording.
///
/// # Errors
/// [`Error::BeingRecorded`] when it took too long, and what is wrong with the catalog.
pub(super) fn whole_index(plan: &MountPlan) -> Result<(Arc<Index>, u32), Error> {
    let (library, lock) = (&*plan.location.library, plan.location.lock());
    let mut known = plan.index.clone();
    let cache_dir = plan.cache_dir().join("index");
    let started = Instant::now();
    let mut is_last_look = false;
    loop {
        let opened = match known.take() {
            Some(index) => Ok(index),
            None => open_or_compile(library, &plan.catalog, &cache_dir).map(Arc::new),
        };
        let missing = match &opened {
            Ok(index) if index.blobs_seen() => 0,
            Ok(index) => missing_blobs(index, library),
            // It may be half written. Other errors do not go away.
            Err(LibraryError::Catalog { .. } | LibraryError::Io { .. }) => 1,
            Err(_) => 0,
        };
        if missing == 0 || is_last_look {
            let index = opened?;
            if missing == 0 && !index.blobs_seen() {
                note_blobs_seen(library, &plan.catalog, &cache_dir, &index);
            }
            return Ok((index, missing));
        }
        // A lock that is free now means that whoever wrote what was seen has finished, so the next look is the truth.
        let at_work = lock.as_ref().and_then(|lock| Some((lock, AtWork::of(lock)?)));
        let Some((lock, at_work)) = at_work else {
            is_last_look = true;
            continue;
        };
        if started.elapsed() >= plan.lock_timeout {
            let catalog = library.catalog_place(&plan.catalog).into();
            return Err(Error::BeingRecorded {
                catalog,
                missing,
                pid: at_work.pid,
                waited: plan.lock_timeout,
            });
        }
        tracing::info!(missing, path = %lock.display(), "waits for the environment to be recorded");
        wait_while_held(lock, started + plan.lock_timeout);
    }
}

/// Waits up to `timeout` while somebody records into a library. Returns whether somebody did: a catalog that could not be
/// read then may be whole now.
#[must_use]
pub(super) fn wait_for_recording(library: &Location, timeout: Duration) -> bool {
    let Some(lock) = library.lock() else { return false };
    let was_held = AtWork::of(&lock).is_some();
    wait_while_held(&lock, Instant::now() + timeout);
    was_held
}

fn wait_while_held(lock: &Path, deadline: Instant) {
    while AtWork::of(lock).is_some() && Instant::now() < deadline {
        std::thread::sleep(RETRY);
    }
}

/// Somebody who holds rcc's lock over recording and restoring.
#[derive(Debug)]
struct AtWork {
    pid: Option<u32>,
}

impl AtWork {
    /// None when nobody holds the lock, or when there is none that could be held.
    fn of(lock: &Path) -> Option<AtWork> {
        let file = guarded::open_file(lock, Access::Read).ok()?;
        // Taken for an instant, if at all: closing the file gives it back.
        let held = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
        held.then(|| AtWork { pid: holder(&file) })
    }
}

/// How many of an environment's blobs are not in the library.
fn missing_blobs(index: &Index, library: &dyn Library) -> u32 {
    // Whatever else is wrong with a blob shows when it is read.
    let is_missing = |digest: &Digest| matches!(library.has_blob(digest), Ok(false));
    let missing = index.digests().flatten().filter(is_missing).count();
    u32::try_from(missing).unwrap_or(u32::MAX)
}
