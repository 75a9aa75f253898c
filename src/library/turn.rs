//! Turns: who fetches blobs from a slow library, while all others on this machine wait.
//!
//! A library in an object store gives small blobs in groups. One request fetches a group, and what it brings goes into the
//! blob cache, which all mounts of a user share. So only one of them should ask for a group at a time. It holds the
//! group's turn, and whoever gets the turn next finds the blobs in the cache.
//!
//! The lock is a flock(2) on a descriptor of its own. It works between threads and between processes, and the kernel
//! releases it when its holder is killed.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use super::digest::Digest;
use super::stored::StoredBlob;

/// Fetches the bytes of a group.
pub type FetchGroup = Box<dyn FnOnce() -> io::Result<Arc<Vec<u8>>> + Send>;

/// The right to fetch a blob, and the others of its group.
pub struct Turn {
    lock: Option<File>,
    /// None for a blob that is in no group.
    group: Option<(FetchGroup, Vec<Member>)>,
    /// Shows the library that the turn is not over.
    alive: Option<Arc<()>>,
}

/// A blob of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub digest: Digest,
    /// The size of the content in bytes, as far as the library knows.
    pub size: u64,
    /// The stored bytes, in the group.
    pub range: Range<usize>,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let members = self.group.as_ref().map_or(0, |(_, members)| members.len());
        f.debug_struct("Turn").field("lock", &self.lock).field("members", &members).finish()
    }
}

impl Turn {
    /// The turn for a blob that is in no group. `lock` is released with it.
    #[must_use]
    pub fn alone(lock: Option<File>) -> Self {
        Self { lock, group: None, alive: None }
    }

    /// The turn for a group. `alive` is held until all its blobs are dealt with.
    #[must_use]
    pub fn group(lock: Option<File>, fetch: FetchGroup, members: Vec<Member>, alive: Arc<()>) -> Self {
        Self { lock, group: Some((fetch, members)), alive: Some(alive) }
    }

    /// Fetches the group, if there is one.
    ///
    /// # Errors
    /// As [`super::Library::blob`].
    pub fn fetch(self) -> io::Result<Fetched> {
        let (bytes, members) = match self.group {
            Some((fetch, members)) => (fetch()?, members),
            None => (Arc::default(), Vec::new()),
        };
        Ok(Fetched { _lock: self.lock, _alive: self.alive, bytes, members })
    }
}

/// The blobs of a group in memory, and the turn of the group.
#[derive(Debug)]
pub struct Fetched {
    _lock: Option<File>,
    _alive: Option<Arc<()>>,
    bytes: Arc<Vec<u8>>,
    members: Vec<Member>,
}

impl Fetched {
    /// The stored bytes of a blob. None if it is not in the group.
    #[must_use]
    pub fn stored(&self, digest: &Digest) -> Option<StoredBlob> {
        let member = self.members.iter().find(|member| member.digest == *digest)?;
        Some(slice(&self.bytes, member.range.clone()))
    }

    /// All blobs of the group.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }
}

/// A part of bytes in memory, as a stored blob.
pub(super) fn slice(bytes: &Arc<Vec<u8>>, range: Range<usize>) -> StoredBlob {
    StoredBlob::new(Slice { bytes: Arc::clone(bytes), range }, None)
}

struct Slice {
    bytes: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut left = self.bytes.get(self.range.clone()).unwrap_or_default();
        let n = left.read(buffer)?;
        self.range.start += n;
        Ok(n)
    }
}
