//! Why the bytes of a lower file cannot be provided.

use std::sync::Arc;

use rustix::io::Errno;

use super::clone::CloneError;
use super::relocate::RelocateError;
use crate::library::blob::BlobError;
use crate::library::index::{IndexError, NodeId};
use crate::library::memory::is_full;

/// Why the bytes of a lower file cannot be provided. Each `path` is the file's path in the environment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The blob is missing, corrupt or unreadable.
    #[error("{path}: {source}")]
    Blob {
        /// Path in the environment.
        path: String,
        /// What is wrong with the blob.
        source: Arc<BlobError>,
    },
    /// The compiled index is inconsistent.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The node is not a file.
    #[error("node {0:?} is not a regular file")]
    NotAFile(NodeId),
    /// The catalog and the blob disagree about a relocation.
    #[error("{path}: {source}")]
    Relocate {
        /// Path in the environment.
        path: String,
        /// What is wrong with the relocation.
        source: RelocateError,
    },
    /// Copying the bytes into the private file failed.
    #[error("{path}: cannot make a private copy: {source}")]
    Clone {
        /// Path in the environment.
        path: String,
        /// The step that failed.
        source: CloneError,
    },
    /// A system call on one of the space's own files failed.
    #[error("{path}: {call}: {source}")]
    Os {
        /// Path in the environment.
        path: String,
        /// The step that failed.
        call: &'static str,
        /// Its errno.
        source: Errno,
    },
}

impl Error {
    /// Whether the cause is a full disk or an exceeded quota.
    pub(super) fn is_disk_full(&self) -> bool {
        match self {
            Self::Clone { source: CloneError::Os { source, .. }, .. } | Self::Os { source, .. } => {
                matches!(*source, Errno::NOSPC | Errno::DQUOT)
            }
            Self::Relocate { source: RelocateError::Io { source, .. }, .. } => is_full(source),
            _ => false,
        }
    }
}
