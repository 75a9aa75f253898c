//! Turns: who fetches blobs from a slow library, while all others on this machine wait.
//!
//! A library in an object store gives small blobs in groups. One request fetches a group, and what it brings goes into the
//! blob cache, which all mounts of a user share. So only one of them should ask for a group at a time. It holds the
//! group's turn, and whoever gets the turn next finds the blobs in the cache.
//!
//! The lock is a flock(2) on a descriptor of its own. It works between threads and between processes, and the kernel
//! releases it when its holder is killed.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::digest::Digest;
use super::stored::StoredBlob;

/// A group in memory: gives the stored bytes of a member.
pub type Group = Box<dyn Fn(&Digest) -> Option<StoredBlob> + Send + Sync>;

/// Fetches a group.
pub type FetchGroup = Box<dyn FnOnce() -> io::Result<Group> + Send>;

/// Begins to fetch a blob that is in no group.
pub type FetchAlone = Box<dyn FnOnce() -> io::Result<StoredBlob> + Send>;

/// How long somebody waits for a blob.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    /// When that began. The time limit of a library counts from here.
    pub since: Instant,
    /// Ends the wait with an error when it is set.
    pub stop: Option<&'a AtomicBool>,
}

impl Waiting<'_> {
    /// Whether the wait is to end with an error.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}

/// The right to fetch a blob, and the others of its group.
pub struct Turn {
    lock: Option<File>,
    what: What,
    /// Shows the library that the turn is not over.
    alive: Option<Arc<()>>,
}

enum What {
    Alone(FetchAlone),
    Group(FetchGroup, Vec<Member>),
}

/// A blob of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub digest: Digest,
    /// The size of the content in bytes, as far as the library knows.
    pub size: u64,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let members = match &self.what {
            What::Alone(_) => 0,
            What::Group(_, members) => members.len(),
        };
        f.debug_struct("Turn").field("lock", &self.lock).field("members", &members).finish()
    }
}

impl Turn {
    /// The turn for a blob that is in no group. `lock` is released with it.
    #[must_use]
    pub fn alone(lock: Option<File>, fetch: FetchAlone) -> Self {
        Self { lock, what: What::Alone(fetch), alive: None }
    }

    /// The turn for a group. `alive` is held until all its blobs are dealt with.
    #[must_use]
    pub fn group(lock: Option<File>, fetch: FetchGroup, members: Vec<Member>, alive: Arc<()>) -> Self {
        Self { lock, what: What::Group(fetch, members), alive: Some(alive) }
    }

    /// Fetches the group, or begins to fetch the blob that is in none.
    ///
    /// # Errors
    /// As [`super::Library::blob`].
    pub fn fetch(self) -> io::Result<Fetched> {
        let (alone, group, members) = match self.what {
            What::Alone(fetch) => (Some(fetch()?), None, Vec::new()),
            What::Group(fetch, members) => (None, Some(fetch()?), members),
        };
        Ok(Fetched { _lock: self.lock, _alive: self.alive, alone: Mutex::new(alone), group, members })
    }
}

/// The blobs of a group in memory, or a blob that is in none, and the turn.
pub struct Fetched {
    _lock: Option<File>,
    _alive: Option<Arc<()>>,
    /// Until it is taken. A leaf lock.
    alone: Mutex<Option<StoredBlob>>,
    group: Option<Group>,
    members: Vec<Member>,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetched").field("members", &self.members.len()).finish_non_exhaustive()
    }
}

impl Fetched {
    /// The stored bytes of a blob. None if it is not in the group. A blob that is in no group can be taken once.
    #[must_use]
    pub fn stored(&self, digest: &Digest) -> Option<StoredBlob> {
        if let Some(alone) = self.alone.lock().take() {
            return Some(alone);
        }
        self.group.as_ref()?(digest)
    }

    /// All blobs of the group.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }
}
