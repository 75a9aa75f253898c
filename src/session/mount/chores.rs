//! The daemon's background work: once after the mount, and then daily; and prefetching.
//!
//! Each mount records which files were read, and adds them to the environment's profile when it ends. With `--prefetch`, a
//! thread unpacks the files in a profile. Invariants: prefetching has no other effect than reading the same files, it stops
//! when the mount ends, and its errors go to the log only.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;

use super::claim::Claim;
use crate::fs::Fs;
use crate::library::index::NodeId;
use crate::library::profile::{self, Touched};
use crate::session::compose;
use crate::session::request::MountPlan;
use crate::session::statistics;
use crate::settings::Prefetch;
use crate::sys::process;
use crate::sys::thread::{self, Panicked};

/// How often a mount renews the environment's usage mark, so that rcc does not take the environment for unused.
const USAGE_PERIOD: Duration = Duration::from_secs(24 * 3600);

/// How often the statistics are saved. kill -9 loses what was counted since.
const SAVE_PERIOD: Duration = Duration::from_secs(600);

/// How long after a mount the blob cache is first brought within its limit.
const FIRST_EVICTION: Duration = Duration::from_secs(60);

/// Finishes the mount: syncs the space's record, writes the files for rcc, starts to prefetch.
pub(in crate::session) fn settle(plan: &MountPlan, claim: &mut Claim<'_>, fs: &Arc<Fs>) -> Prefetcher {
    // A store takes much longer to answer than a program takes to ask for the first files.
    let is_far = !fs.materializer().source().is_near();
    let early = is_far.then(|| Prefetcher::start(plan, fs));
    // `mount` does not wait for the disk. The first fsync and the first change in the space do.
    let handoff = fs.namespace().handoff();
    let settled = if handoff.is_recorded() { Ok(()) } else { claim.state.settle() };
    if settled.is_ok() {
        handoff.note_recorded();
    }
    if let Err(error) = &settled {
        tracing::error!(%error, "the space's record cannot be synced: fsync fails in this mount");
    }
    fs.settled(settled.map_err(|_| Errno::IO));
    // The time for the list of files grows with the catalog, so the list is written while requests are answered.
    if let Err(error) = claim.publish() {
        tracing::warn!(%error, "rcc does not know the files of this space");
    }
    // The list was made from the whole catalog in memory. Without this, each daemon keeps a megabyte of free heap.
    process::trim_heap();
    early.unwrap_or_else(|| Prefetcher::start(plan, fs))
}

/// Runs until `stopped` is closed. Saves the statistics every ten minutes. A minute after the mount, and then daily, it
/// brings the cache within its limit and saves the profile, which would be lost if the daemon were killed. Daily it also
/// renews the usage mark.
pub(in crate::session) fn keep_house(plan: &MountPlan, prefetcher: &Prefetcher, stopped: &Receiver<()>) {
    let (mut wait, mut left, mut saved) = (FIRST_EVICTION, FIRST_EVICTION, None);
    let mut is_first = true;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
        statistics::save(&prefetcher.fs, &plan.state_dir(), &mut saved);
        left = left.saturating_sub(wait);
        if left.is_zero() {
            evict(plan);
            prefetcher.save();
            if !std::mem::take(&mut is_first)
                && let Err(error) = plan.touch_usage()
            {
                tracing::warn!(%error, "the usage mark is not renewed");
            }
            left = USAGE_PERIOD;
        }
        wait = SAVE_PERIOD.min(left);
    }
}

fn evict(plan: &MountPlan) {
    let evicted = compose::blob_cache(&plan.env.cache_dir())
        .map_err(std::io::Error::other)
        .and_then(|cache| cache.evict(plan.settings.cache_size.value));
    match evicted {
        Ok(0) => {}
        Ok(bytes) => tracing::info!(bytes, "removed the least recently used blobs from the cache"),
        Err(error) => tracing::warn!(%error, "the blob cache may exceed its limit"),
    }
}

/// Maintains the profile of a mount, and runs the thread that reads through it.
#[derive(Debug)]
pub(in crate::session) struct Prefetcher {
    fs: Arc<Fs>,
    /// The profile to which files are added. None if it is left as it is.
    own: Option<PathBuf>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetcher {
    /// Starts the thread, if the plan asks for it.
    pub(in crate::session) fn start(plan: &MountPlan, fs: &Arc<Fs>) -> Self {
        let index = fs.namespace().index();
        let own = profile::place(&plan.env.cache_dir(), &index.catalog_sha256());
        let stop = Arc::new(AtomicBool::new(false));
        let is_far = !fs.materializer().source().is_near();
        let from = match &plan.request.prefetch {
            Some(Prefetch::Own) => Some(own.clone()),
            Some(Prefetch::From(path)) => Some(path.clone()),
            // What this machine has read before is in its cache, most likely.
            None if is_far && !plan.settings.remote.offline.value => plan
                .location
                .library
                .profile(&plan.catalog)
                .or_else(|| Some(own.clone()).filter(|own| own.exists())),
            None => None,
        };
        let thread = from.and_then(|path| {
            let (fs, stop) = (Arc::clone(fs), Arc::clone(&stop));
            let warm = move || warm(&fs, &path, &stop);
            match std::thread::Builder::new().name("prefetch".into()).spawn(warm) {
                Ok(thread) => Some(thread),
                Err(error) => {
                    tracing::warn!(%error, "cannot start the prefetching thread");
                    None
                }
            }
        });
        let own = Some(own).filter(|_| !plan.request.no_profile);
        Self { fs: Arc::clone(fs), own, stop, thread }
    }

    /// Stops the thread, and adds the files that were read to the profile.
    pub(in crate::session) fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread may wait for a store that does not answer.
        self.fs.materializer().source().pause();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the prefetching thread panicked");
        }
        self.save();
    }

    /// Adds the files that were read so far to the profile. Two mounts that do so at once may lose the files of one. That is
    /// acceptable, since a profile is only a hint.
    pub(in crate::session) fn save(&self) {
        let Some(own) = &self.own else { return };
        let index = self.fs.namespace().index();
        let known = known(own, index.catalog_sha256(), index.len());
        let mut new = self.fs.materializer().touched();
        // A profile is of the catalog's own files.
        new.retain(|node| node.0 < index.len());
        if !known.would_grow_by(&new) {
            return;
        }
        if let Err(error) = profile::write(own, &index.catalog_sha256(), known, &new) {
            tracing::warn!(path = %own.display(), %error, "the profile is not updated");
        }
    }
}

/// The content of a profile. Empty if the profile cannot be used.
fn known(path: &Path, catalog: [u8; 32], nodes: u32) -> Touched {
    match profile::read(path, &catalog, nodes) {
        Ok(known) => known,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Touched::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the profile");
            Touched::default()
        }
    }
}

fn warm(fs: &Fs, path: &Path, stop: &AtomicBool) {
    let source = fs.materializer().source();
    if !source.is_near() {
        return fetch(fs, path, stop);
    }
    if let Err(errno) = process::be_idle() {
        tracing::debug!(%errno, "cannot lower the priority of prefetching");
    }
    let index = fs.namespace().index();
    let files = known(path, index.catalog_sha256(), index.len());
    let mut done = 0;
    for node in files.order() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match source.warm(*node, stop) {
            Ok(()) => done += 1,
            // A process that reads the file gets the error.
            Err(error) => tracing::debug!(%error, "not prefetched"),
        }
    }
    tracing::info!(done, of = files.order().len(), "prefetched");
}

/// Fetches the files of a profile from a store, group by group. Programs wait for them, so this has no low priority.
fn fetch(fs: &Fs, path: &Path, stop: &AtomicBool) {
    /// Groups that are under way.
    const JOBS: usize = 4;
    let (index, source) = (fs.namespace().index(), fs.materializer().source());
    let files = known(path, index.catalog_sha256(), index.len());
    let first = match source.one_of_each_group(files.order()) {
        Ok(first) => first,
        Err(error) => {
            tracing::debug!(%error, "not prefetched");
            return;
        }
    };
    let one = |(): &mut (), node: &NodeId| {
        if !stop.load(Ordering::Relaxed)
            && let Err(error) = source.warm(*node, stop)
        {
            // A process that reads the file gets the error.
            tracing::debug!(%error, "not prefetched");
        }
        Ok::<(), Panicked>(())
    };
    if let Err(error) = thread::for_each(&first, JOBS, || (), one) {
        tracing::error!(%error, "prefetching ended early");
    }
    tracing::info!(groups = first.len(), files = files.order().len(), "prefetched");
}
