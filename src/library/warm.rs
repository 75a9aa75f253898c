//! Unpacks the large blobs of an environment before anybody reads them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::blob::{BlobError, Blobs};
use super::digest::Digest;
use super::index::{Index, IndexError, NodeId, NodeKind};
use crate::sys::thread;

/// The largest number of threads.
const MAX_JOBS: usize = 256;

/// What was unpacked. The keys of `holofs warm --json`.
#[derive(Debug, Default, Serialize)]
pub struct Warmed {
    pub blueprint: String,
    /// Entries of the index.
    pub entries: u32,
    /// The number of blobs that are kept unpacked.
    pub blobs: usize,
    /// The size of these blobs in bytes.
    pub bytes: u64,
    /// The number of blobs that were unpacked now.
    pub fetched: usize,
    /// The size of these blobs in bytes.
    pub bytes_fetched: u64,
    /// The blobs that could not be unpacked: the path of a file, and the reason.
    pub failed: Vec<String>,
}

/// The blobs to unpack, each once.
#[derive(Debug)]
pub struct Warming<'i> {
    index: &'i Index,
    /// Digest, size, and a file with this content.
    wanted: Vec<(Digest, u64, NodeId)>,
}

impl<'i> Warming<'i> {
    /// Collects the blobs of those `files` that are larger than `small` bytes.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn new(
        index: &'i Index,
        files: impl IntoIterator<Item = NodeId>,
        small: u64,
    ) -> Result<Self, IndexError> {
        let mut seen = HashSet::new();
        let mut wanted = Vec::new();
        for node in files {
            if let NodeKind::File { size, digest, .. } = index.node(node)?.kind
                && size > small
                && seen.insert(digest)
            {
                wanted.push((digest, size, node));
            }
        }
        Ok(Self { index, wanted })
    }

    /// The unpacked size of all blobs in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.wanted.iter().map(|(_, size, _)| size).sum()
    }

    /// Unpacks the blobs with up to `jobs` threads, until `cancel` is set. Calls `done` with the size of each blob.
    ///
    /// # Errors
    /// The first I/O error ends the work: a full disk concerns all blobs. A bad blob concerns only its files.
    pub fn run(
        &self,
        blobs: &Blobs,
        jobs: usize,
        cancel: &AtomicBool,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<Warmed, BlobError> {
        let warmed = Mutex::new(Warmed {
            blueprint: self.index.info().blueprint.clone(),
            entries: self.index.len(),
            blobs: self.wanted.len(),
            bytes: self.bytes(),
            ..Warmed::default()
        });
        let unpack = |(): &mut (), (digest, size, node): &(Digest, u64, NodeId)| {
            if cancel.load(Ordering::Relaxed) {
                return Ok(());
            }
            let prepared = blobs.prepare(digest, *size, cancel);
            done(*size);
            let mut warmed = warmed.lock();
            match prepared {
                Ok(false) => {}
                Ok(true) => {
                    warmed.fetched += 1;
                    warmed.bytes_fetched += size;
                }
                Err(error @ (BlobError::Io { .. } | BlobError::Panicked(_))) => return Err(error),
                Err(error) => warmed.failed.push(format!("{}: {error}", self.index.path_of(*node))),
            }
            Ok(())
        };
        thread::for_each(&self.wanted, jobs.min(MAX_JOBS), || (), unpack)?;
        Ok(warmed.into_inner())
    }
}
