//! Prefetch: what earlier mounts of an environment read is unpacked before this one asks for it.
//!
//! Every mount notes which files were read, and adds them to the environment's profile when it ends; a mount that was
//! asked to goes through the profile in the background. Invariant: it does nothing that reading would not do, stops
//! when the mount ends, and whatever goes wrong with it is told in the log and nowhere else.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::plan::MountPlan;
use crate::fs::Fs;
use crate::library::profile::{self, ProfileError, Touched};
use crate::settings::Prefetch;
use crate::sys::process;

/// The profile of one mount, and the thread that goes through it.
#[derive(Debug)]
pub(super) struct Prefetcher {
    fs: Arc<Fs>,
    own: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Prefetcher {
    /// Starts what the plan asks for.
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
                    tracing::warn!(%error, "nothing is prefetched");
                    None
                }
            }
        });
        Self { fs: Arc::clone(fs), own, stop, thread: Mutex::new(thread) }
    }

    /// Stops, and adds what was read to the environment's profile.
    pub(super) fn finish(&self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.lock().take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the prefetching thread panicked");
        }
        self.save();
    }

    /// Adds what was read so far to the environment's profile. Two that do so at once may lose one's additions: it is
    /// advice.
    pub(super) fn save(&self) {
        let index = self.fs.namespace().index();
        let known = known(&self.own, index.catalog_sha256(), index.len());
        let new = self.fs.materializer().touched();
        if !known.would_grow_by(&new) {
            return;
        }
        if let Err(error) = profile::write(&self.own, &index.catalog_sha256(), known, &new) {
            tracing::warn!(path = %self.own.display(), %error, "the profile stays as it was");
        }
    }
}

/// What a profile holds; nothing where it cannot be used.
fn known(path: &std::path::Path, catalog: [u8; 32], nodes: u32) -> Touched {
    match profile::read(path, &catalog, nodes) {
        Ok(known) => known,
        Err(ProfileError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Touched::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a profile is left alone");
            Touched::default()
        }
    }
}

fn warm(fs: &Fs, path: &std::path::Path, stop: &AtomicBool) {
    if let Err(errno) = process::be_idle() {
        tracing::debug!(%errno, "prefetching at the usual priority");
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
            // Whoever reads it will be told.
            Err(error) => tracing::debug!(%error, "not prefetched"),
        }
    }
    tracing::info!(done, of = files.order().len(), "prefetched");
}
