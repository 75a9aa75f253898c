//! Libraries in object stores: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage, HTTP servers and
//! plain directories.
//!
//! A store holds catalogs and blobs in a layout for high latency ([`layout`]): small blobs lie in packs, in the order in
//! which programs read them. All objects but the [`head`] of a catalog are named by their digest and never change.
//! `docs/REMOTE.md` describes the format.
//!
//! Invariant: what a store answers is not trusted. Objects are compared with the digest in their name, heads and layouts are
//! parsed strictly, and no more bytes are taken than were asked for.

pub mod counters;
mod fetch;
pub mod head;
pub mod layout;
pub mod library;
pub mod local;
mod packing;
pub mod push;
mod ranges;
pub mod store;

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use counters::Counters;

/// The objects below a URL. Each call blocks until the store has answered, or has not answered for the time limit.
pub trait Objects: Send + Sync + std::fmt::Debug {
    /// The URL, for messages. It holds no password.
    fn url(&self) -> &str;

    /// The bytes of an object, or those of a range of it. More than `limit` bytes are refused.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn get(&self, name: &str, range: Option<Range<u64>>, limit: u64) -> Result<Vec<u8>, StoreError>;

    /// As [`Objects::get`], but the store has to begin its answer within `patience`.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn get_within(
        &self,
        name: &str,
        range: Option<Range<u64>>,
        limit: u64,
        _patience: Duration,
    ) -> Result<Vec<u8>, StoreError> {
        self.get(name, range, limit)
    }

    /// The objects in a directory, in no order. An empty list if there is no such directory.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn list(&self, dir: &str) -> Result<Vec<Listed>, StoreError>;

    /// Writes an object. Nobody sees a part of it.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError>;

    /// Writes a large object piece by piece. Nobody sees a part of it. Nothing is written if `content` fails.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn put_large(&self, name: &str, content: &mut dyn Read) -> Result<(), StoreError>;

    /// Ends all connections and threads. The next call makes new ones. For a process that is about to fork.
    fn pause(&self);

    /// What was asked of the store so far. None if nobody counts.
    fn counters(&self) -> Option<Arc<Counters>> {
        None
    }
}

/// An object in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The name below the directory that was listed.
    pub name: String,
    /// The size in bytes.
    pub bytes: u64,
    pub modified: SystemTime,
}

/// Why a store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object, or no such bucket.
    #[error("{object}: the store has no such object")]
    NotFound { object: String },
    /// The store refuses the credentials, or there are none.
    #[error("{object}: access denied: {why}")]
    Denied { object: String, why: String },
    /// The store did not answer in time, or answered with errors that may pass.
    #[error("{object}: the store does not answer: {why}")]
    Unreachable { object: String, why: String },
    /// Whoever answers at the address of the store has no certificate that is trusted.
    #[error("{object}: whoever answers there is not trusted: {why}")]
    Untrusted { object: String, why: String },
    /// The answer is not what was asked for.
    #[error("{object}: {why}")]
    Refused { object: String, why: String },
    /// `--offline`
    #[error("{object}: not in the cache, and --offline asks no store")]
    Offline { object: String },
    /// The content of a large object could not be read.
    #[error("{object}: {source}")]
    Content { object: String, source: std::io::Error },
}
