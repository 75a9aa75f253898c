//! Unpacks the large blobs of an environment before anybody reads them.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::blob::{BlobError, Blobs};
use super::digest::Digest;
use super::index::{Index, IndexError, NodeId, NodeKind};
use crate::sys::thread;

/// The largest number of threads.
const MAX_JOBS: usize = 256;

/// The smallest number of threads that fetch: they wait most of the time.
const FETCHING: usize = 8;

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

/// Digest, size, and a file with this content.
type Wanted = (Digest, u64, NodeId);

/// The blobs to unpack, each once.
#[derive(Debug)]
pub struct Warming<'i> {
    index: &'i Index,
    wanted: Vec<Wanted>,
}

impl<'i> Warming<'i> {
    /// Collects the blobs of those `files` that are larger than `small` bytes, or of all.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn new(
        index: &'i Index,
        files: impl IntoIterator<Item = NodeId>,
        small: Option<u64>,
    ) -> Result<Self, IndexError> {
        let mut seen = HashSet::new();
        let mut wanted = Vec::new();
        for node in files {
            if let NodeKind::File { size, digest, .. } = index.node(node)?.kind
                && small.is_none_or(|small| size > small)
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
        if blobs.is_far() {
            self.fetch(blobs, jobs, cancel, done, &warmed)?;
            return Ok(warmed.into_inner());
        }
        let unpack = |(): &mut (), (digest, size, node): &Wanted| {
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

    /// Fetches the blobs from another machine: the first of a group brings the others.
    fn fetch(
        &self,
        blobs: &Blobs,
        jobs: usize,
        cancel: &AtomicBool,
        done: &(dyn Fn(u64) + Sync),
        warmed: &Mutex<Warmed>,
    ) -> Result<(), BlobError> {
        let mut groups: BTreeMap<_, Vec<&Wanted>> = BTreeMap::new();
        for wanted in &self.wanted {
            let group = blobs.group_of(&wanted.0);
            let alone = group.is_none().then_some(wanted.0);
            groups.entry((group, alone)).or_default().push(wanted);
        }
        let groups: Vec<_> = groups.into_values().collect();
        let fetch = |(): &mut (), group: &Vec<&Wanted>| {
            let mut is_there = Vec::new();
            for (digest, size, _) in group {
                is_there.push(blobs.cached(digest, *size)?.is_some());
            }
            for ((digest, size, node), was_there) in group.iter().zip(is_there) {
                if cancel.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let prepared = if was_there { Ok(false) } else { blobs.prepare(digest, *size, cancel) };
                done(*size);
                let mut warmed = warmed.lock();
                match prepared {
                    Ok(_) if !was_there => {
                        warmed.fetched += 1;
                        warmed.bytes_fetched += size;
                    }
                    Ok(_) => {}
                    Err(error @ (BlobError::Io { .. } | BlobError::Panicked(_))) => return Err(error),
                    Err(error) => warmed.failed.push(format!("{}: {error}", self.index.path_of(*node))),
                }
            }
            Ok(())
        };
        thread::for_each(&groups, jobs.clamp(FETCHING, MAX_JOBS), || (), fetch)
    }
}
