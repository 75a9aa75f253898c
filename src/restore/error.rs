//! Why a tree was not restored.

use rustix::io::Errno;

use crate::library::index::IndexError;
use crate::materialize;
use crate::sys::thread::Panicked;

/// See the module. Each `path` is relative to the space's directory, which is `.`.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The content of a file cannot be provided.
    #[error(transparent)]
    Content(#[from] materialize::Error),
    /// The compiled index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A step in the tree failed.
    #[error("{path}: {call}: {source}")]
    Os {
        /// Path in the tree.
        path: String,
        /// The step.
        call: &'static str,
        /// Its errno.
        source: Errno,
    },
    /// Hard links are not possible.
    #[error("no hard links from {pool} to the space: {source}")]
    NoLinks {
        /// The directory of the copies to link to.
        pool: String,
        /// The errno of link(2).
        source: Errno,
    },
    /// The user interrupted it.
    #[error("interrupted")]
    Interrupted,
    /// A thread panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}
