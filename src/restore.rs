//! Writes an environment as a tree of plain files, as rcc does, for machines without FUSE.
//!
//! A place without a tree gets a new one: it is made beside its place under another name, and one rename puts it there. The
//! files in it are created under their own names, because nobody sees the tree before. In an existing tree (`sweep`) only
//! what differs is made anew, as rcc decides that: each such file is written under a temporary name, and renamed.
//!
//! Both work in parallel on batches of the files of one directory, relative to its descriptor. A file is complete when it
//! gets its name in the tree: bytes verified and relocated, mode, times.
//!
//! Invariants: whenever a restore is interrupted, no file has its name without its content, and the next restore completes
//! the tree. The library is only read. No file is shared with another space except by reflinks, or by hard links to
//! read-only copies ([`links`]); a relocated file never is.
//!
//! Files are not synced, because that would take longer than the restore. After a loss of power, a file whose bytes were not
//! on the disk is shorter than the catalog says (ext4, XFS and btrfs set the size when they write the bytes), so the next
//! restore makes it anew. Only a clone gets its size before its relocations, so that is synced.
//!
//! This layer knows no locks, no `.meta` and no names of spaces: see `session::restore`.

pub mod earlier;
mod error;
mod fill;
pub mod known;
mod layout;
pub mod links;
mod place;
pub mod report;
mod sweep;

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Timespec;
use rustix::io::Errno;

use crate::library::MOTHER_TIME;
use crate::library::index::Index;
use crate::materialize::source::Source;
use earlier::Earlier;

pub use error::RestoreError;
use links::LinkPool;
pub use place::{ENDING, left_in, remove_left, settle};

/// The access and modification time of everything that is restored.
pub(crate) const TIMES: rustix::fs::Timestamps = rustix::fs::Timestamps {
    last_access: Timespec { tv_sec: MOTHER_TIME, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: MOTHER_TIME, tv_nsec: 0 },
};

/// How files get their bytes.
#[derive(Debug)]
pub enum Sharing {
    /// All are unpacked from the library.
    Copies,
    /// Large files are cloned from the blob cache if that waits for nothing. All others are unpacked.
    Clones,
    /// The same for all files that are larger than a block.
    AllClones,
    /// Hard links to read-only copies. Files that must not be shared are unpacked.
    Links(LinkPool),
}

/// What to restore, and how.
pub struct Restore<'a> {
    /// The tree.
    pub index: &'a Index,
    /// The content of its files.
    pub source: &'a Source,
    /// How files get their bytes.
    pub sharing: &'a Sharing,
    /// Another tree of the same environment, whose extents the blob cache can share.
    pub earlier: Option<&'a Earlier>,
    /// The mode of new directories. The umask of the process must be 0.
    pub dir_mode: u32,
    /// The number of threads.
    pub jobs: Jobs,
    /// Ends the restore when it is set.
    pub cancel: &'a AtomicBool,
    /// Told once how many bytes are to be made, and then of the bytes that were made.
    pub progress: &'a (dyn Progress + Sync),
}

/// How many threads work.
#[derive(Clone, Copy, Debug)]
pub struct Jobs {
    /// While the library comes from a disk, for which most of them wait.
    pub waiting: usize,
    /// While it is in memory. More threads would only wait for each other in the filesystem.
    pub busy: usize,
}

/// Is told how a restore goes.
pub trait Progress {
    /// The number of files, and their bytes, that are to be made.
    fn total(&self, files: u64, bytes: u64);
    /// So many bytes more were made.
    fn made(&self, bytes: u64);
}

impl std::fmt::Debug for Restore<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sharing, dir_mode, jobs, .. } = self;
        f.debug_struct("Restore")
            .field("sharing", sharing)
            .field("dir_mode", dir_mode)
            .field("jobs", jobs)
            .finish_non_exhaustive()
    }
}

impl Restore<'_> {
    fn go_on(&self) -> Result<(), RestoreError> {
        if self.cancel.load(Ordering::Relaxed) { Err(RestoreError::Interrupted) } else { Ok(()) }
    }
}

/// Makes an error about an entry of the tree.
fn os(path: impl Into<String>, call: &'static str) -> impl FnOnce(Errno) -> RestoreError {
    let path = path.into();
    move |source| RestoreError::Os { path, call, source }
}
