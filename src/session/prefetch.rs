//! Unpacks, in the background, the files that earlier mounts of the environment have read.
//!
//! Each mount records which files were read, and adds them to the environment's profile when it ends. With `--prefetch`, a
//! thread reads through the profile. Invariants: prefetching has no other effect than reading the same files, it stops
//! when the mount ends, and its errors go to the log only.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::plan::MountPlan;
use crate::fs::Fs;
use crate::library::profile::{self, ProfileError, Touched};
use crate::settings::Prefetch;
use crate::sys::process;

/// Maintains the profile of a mount, and runs the thread that reads through it.
#[derive(Debug)]
pub(super) struct Prefetcher {
    fs: Arc<Fs>,
    own: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetcher {
    /// Starts the thread, if the plan asks for it.
    pub(super) fn start(plan: &MountPlan, fs: &Arc<Fs>) -> Self {
        let index = fs.namespace().index();
        let own = profile::place(&plan.cache_dir(), &index.catalog_sha256());
        let stop = Arc::new(AtomicBool::new(false));
        let from = match &plan.serve.prefetch {
            Prefetch::No => None,
            Prefetch::Own => Some(own.clone()),
            Prefetch::From(path) => Some(path.clone()),
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
        Self { fs: Arc::clone(fs), own, stop, thread }
    }

    /// Stops the thread, and adds the files that were read to the profile.
    pub(super) fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the prefetching thread panicked");
        }
        self.save();
    }

    /// Adds the files that were read so far to the profile. Two mounts that do so at once may lose the files of one. That is
    /// acceptable, since a profile is only a hint.
    pub(super) fn save(&self) {
        let index = self.fs.namespace().index();
        let known = known(&self.own, index.catalog_sha256(), index.len());
        let new = self.fs.materializer().touched();
        if !known.would_grow_by(&new) {
            return;
        }
        if let Err(error) = profile::write(&self.own, &index.catalog_sha256(), known, &new) {
            tracing::warn!(path = %self.own.display(), %error, "the profile is not updated");
        }
    }
}

/// The content of a profile. Empty if the profile cannot be used.
fn known(path: &std::path::Path, catalog: [u8; 32], nodes: u32) -> Touched {
    match profile::read(path, &catalog, nodes) {
        Ok(known) => known,
        Err(ProfileError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Touched::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the profile");
            Touched::default()
        }
    }
}

fn warm(fs: &Fs, path: &std::path::Path, stop: &AtomicBool) {
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
        match fs.materializer().source().warm(*node, stop) {
            Ok(()) => done += 1,
            // A process that reads the file gets the error.
            Err(error) => tracing::debug!(%error, "not prefetched"),
        }
    }
    tracing::info!(done, of = files.order().len(), "prefetched");
}
