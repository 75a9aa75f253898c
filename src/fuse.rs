//! The adapter between the kernel's requests (fuser) and `fs`.
//!
//! It translates types, decides what the kernel may cache, decides which thread runs a request, and answers. `reply` is
//! the only place that answers with an error: it logs and counts each.
//!
//! Invariant: nothing but this daemon changes the tree. So the kernel may cache names (also absent ones), attributes,
//! link texts and listings without a time limit. It opens directories, and in cached mode files, without a request.

mod convert;
mod opening;
mod passthrough;
mod reply;
mod requests;
mod workers;

use std::sync::{Arc, OnceLock};

use fuser::{InitFlags, KernelConfig, Notifier};

use crate::fs::Fs;
use crate::sys::backing::Backings;
use crate::sys::request_buffer::LARGEST_WRITE;

use passthrough::Passthrough;
use workers::{Mount, Workers};

/// Answers the kernel from a mounted space.
#[derive(Debug)]
pub struct Adapter {
    workers: Workers,
    /// As [`Offer::stack_depth`].
    stack_depth: u32,
    /// Dropped when the last loop has ended.
    _serving: Serving,
}

/// Dropped when no loop serves the mount any more.
pub type Serving = Box<dyn std::fmt::Debug + Send + Sync>;

/// What passthrough mode needs.
#[derive(Debug)]
pub struct Offer {
    /// Registers backing files.
    pub backings: Arc<dyn Backings>,
    /// 1, or 2 when backing files lie on a stacked filesystem (overlayfs). With 2, no filesystem can be stacked on this
    /// mount.
    pub stack_depth: u32,
    /// Set once the session exists.
    pub notifier: Arc<OnceLock<Notifier>>,
}

impl Adapter {
    /// An adapter over the operations, called from `loops` threads; in passthrough mode when that is offered.
    #[must_use]
    pub fn new(fs: Arc<Fs>, loops: usize, offer: Option<Offer>, serving: Serving) -> Self {
        let stack_depth = offer.as_ref().map_or(0, |offer| offer.stack_depth);
        let passthrough = offer.map(|offer| {
            Passthrough::new(offer.backings, offer.notifier, Arc::clone(fs.namespace().handoff()))
        });
        let workers = Workers::new(Mount { fs, passthrough }, loops);
        Self { workers, stack_depth, _serving: serving }
    }

    /// Takes over the open files from a worker that died. Called before the first request.
    pub fn take_over(&self) {
        let mount = self.workers.mount();
        let Some(modes) = &mount.passthrough else { return };
        mount.materializer().keep_relocated();
        let unused = modes.take_over();
        self.workers.in_background(move |mount| {
            if let Some(modes) = &mount.passthrough {
                modes.give_back_all(unused);
            }
        });
    }

    /// Asks the kernel for its capabilities. The mount works without each of them.
    fn negotiate(&self, config: &mut KernelConfig) {
        let by_mode: &[InitFlags] = match self.workers.mount().passthrough {
            // Without FUSE_ATOMIC_O_TRUNC, a file that is about to be emptied would be copied up first.
            Some(_) => &[InitFlags::FUSE_PASSTHROUGH, InitFlags::FUSE_ATOMIC_O_TRUNC],
            None => &[InitFlags::FUSE_NO_OPEN_SUPPORT],
        };
        if let Err(nearest) = config.set_max_stack_depth(self.stack_depth) {
            tracing::debug!(nearest, "the kernel allows fewer stacked filesystems");
        }
        for flag in by_mode.iter().copied().chain([
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            // A file handle stays valid when the kernel has forgotten the inode: the kernel then looks up `.`.
            InitFlags::FUSE_EXPORT_SUPPORT,
            // Files change only through the kernel, so a changed time is no reason to drop their pages.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // Without it, the kernel asks before every write whether the file has capabilities.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ]) {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "the kernel lacks a FUSE capability");
            }
        }
        if let Err(nearest) = config.set_max_write(LARGEST_WRITE) {
            tracing::debug!(nearest, "the kernel allows only smaller writes");
        }
    }
}
