//! Why a blob cannot be read.

use std::io;

use crate::library::digest::Digest;
use crate::sys::thread::Panicked;

/// See the module. `place` is a path, or a path inside an archive.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The library lacks the blob.
    #[error("blob {digest} is missing ({place})")]
    Missing { digest: Digest, place: String },
    /// The library has something else in the place of the blob.
    #[error("blob {digest} is corrupt: {why} ({place})")]
    Corrupt { digest: Digest, place: String, why: String },
    /// The stored blob cannot be read, or its copy in the cache cannot be written.
    #[error("{place}: {source}")]
    Io { place: String, source: io::Error },
    /// The thread that unpacks the blob panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}
