//! The daemon's background work: once after the mount, and then daily.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rustix::io::Errno;

use super::claim::Claim;
use super::compose;
use super::plan::MountPlan;
use super::prefetch::Prefetcher;
use crate::fs::Fs;

/// How often a mount renews the environment's usage mark, so that rcc does not take the environment for unused.
const USAGE_PERIOD: Duration = Duration::from_secs(24 * 3600);

/// How long after a mount the blob cache is first brought within its limit.
const FIRST_EVICTION: Duration = Duration::from_secs(60);

/// Finishes the mount: syncs the space's record, writes the files for rcc, starts to prefetch.
pub(super) fn settle(plan: &MountPlan, claim: &mut Claim<'_>, fs: &Arc<Fs>) -> Prefetcher {
    // `mount` does not wait for the disk. The first fsync and the first change in the space do.
    let settled = claim.state().settle();
    if let Err(error) = &settled {
        tracing::error!(%error, "the space's record cannot be synced: fsync fails in this mount");
    }
    fs.settled(settled.map_err(|_| Errno::IO));
    // The time for the list of files grows with the catalog, so the list is written while requests are answered.
    if let Err(error) = claim.publish() {
        tracing::warn!(%error, "rcc does not know the files of this space");
    }
    Prefetcher::start(plan, fs)
}

/// Runs until `stopped` is closed. A minute after the mount, and then daily, it brings the cache within its limit and
/// saves the profile, which would be lost if the daemon were killed. Daily it also renews the usage mark.
pub(super) fn keep_house(plan: &MountPlan, prefetcher: &Prefetcher, stopped: &Receiver<()>) {
    let mut wait = FIRST_EVICTION;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
        evict(plan);
        prefetcher.save();
        if wait == USAGE_PERIOD
            && let Err(error) = plan.touch_usage()
        {
            tracing::warn!(%error, "the usage mark is not renewed");
        }
        wait = USAGE_PERIOD;
    }
}

fn evict(plan: &MountPlan) {
    let evicted = compose::blob_cache(&plan.cache_dir())
        .map_err(std::io::Error::other)
        .and_then(|cache| cache.evict(plan.serve.cache_size));
    match evicted {
        Ok(0) => {}
        Ok(bytes) => tracing::info!(bytes, "removed the least recently used blobs from the cache"),
        Err(error) => tracing::warn!(%error, "the blob cache may exceed its limit"),
    }
}
