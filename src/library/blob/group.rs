//! Blobs of a library in an object store: they are fetched in groups, and all of them go through the cache.
//!
//! Whoever needs a blob takes the turn of its group, looks into the cache again, fetches the group and gets its blob. The
//! others go into the cache after that, on a thread that holds the turn meanwhile. So whoever waits for the turn finds
//! them.
//!
//! Invariants: a blob gets its name in the cache only after its digest was right. One that is bad is left out, and an error
//! only of the files that have it: each of their reads asks the store for the group again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::direct::Room;
use super::read::{not_opened, read_through};
use super::{Audience, BlobError, Blobs};
use crate::library::cache::BlobCache;
use crate::library::digest::Digest;
use crate::library::turn::{Fetched, Waiting};
use crate::library::{Latency, Library};
use crate::metrics::{Counter, Metrics};
use crate::sys::{fd, thread};

/// A group that would take more than this part of the cache's limit drives out what is needed. Only the wanted blob is kept.
const PART: u64 = 4;

/// How soon after a read that failed the kernel's second request for it comes.
const TWICE: Duration = Duration::from_millis(250);

/// How often to look whether the store answers somebody, after the time limit.
const LOOK: Duration = Duration::from_millis(100);

/// For larger blobs the disk has to have room before they are fetched.
pub(super) const RESERVED: u64 = 128 * 1024;

impl Blobs {
    /// Whether the library is on another machine.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.library.latency() == Latency::Network
    }

    /// Ends what waits for the library, with an error. The next read begins anew.
    pub fn pause(&self) {
        self.library.pause();
    }

    /// The number of the group that a blob is fetched with. None if it is fetched alone.
    #[must_use]
    pub fn group_of(&self, digest: &Digest) -> Option<u64> {
        self.library.group_of(digest)
    }

    /// The content of a blob, by way of the cache.
    pub(super) fn read_cached(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, BlobError> {
        read_all(&self.open_raw(digest, size)?, size).map_err(|source| self.cache_error(digest, source))
    }

    /// The content of a small blob that is in the cache. None if it has to be fetched.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn read_at_once(&self, digest: &Digest, size: u64) -> Result<Option<Vec<u8>>, BlobError> {
        if self.library.is_here(digest) {
            return self.read_all(digest, size).map(Some);
        }
        let Some(file) = self.cached(digest, size)? else { return Ok(None) };
        read_all(&file, size).map(Some).map_err(|source| self.cache_error(digest, source))
    }

    /// Takes a lock that others hold while they fetch. Whoever waits for it longer than for the store gets an error, if the
    /// store does not answer.
    pub(super) fn pass<'g>(
        &self,
        gate: &'g Mutex<()>,
        digest: &Digest,
        since: Instant,
    ) -> Result<MutexGuard<'g, ()>, BlobError> {
        loop {
            let Some(left) = self.library.patience(since) else { return Ok(gate.lock()) };
            if let Some(passed) = gate.try_lock_for(left.max(LOOK)) {
                return Ok(passed);
            }
            if left.is_zero() && self.is_silent() {
                self.unanswered.add(digest);
                let why = "the store does not answer another read, which came before";
                return Err(self.library_error(digest, io::Error::new(io::ErrorKind::HostUnreachable, why)));
            }
        }
    }

    /// An error for the kernel's second request, if a read of the blob has just waited in vain.
    pub(super) fn has_waited(&self, digest: &Digest, since: Instant) -> Result<(), BlobError> {
        if self.unanswered.has(digest, since) && self.is_silent() {
            let why = "the store did not answer this read just now";
            return Err(self.library_error(digest, io::Error::new(io::ErrorKind::HostUnreachable, why)));
        }
        Ok(())
    }

    fn is_silent(&self) -> bool {
        self.library.contact().is_some_and(|contact| contact.silent_since.is_some())
    }

    /// Fetches a blob and its group, when nobody else does.
    pub(super) fn fetch_in_turn(
        &self,
        digest: &Digest,
        size: u64,
        audience: Audience<'_>,
    ) -> Result<File, BlobError> {
        let fetched = self.fetch_now(digest, size, audience);
        if let Err(BlobError::Io { source, .. }) = &fetched
            && source.kind() == io::ErrorKind::HostUnreachable
            && audience.stop.is_none()
        {
            self.unanswered.add(digest);
        }
        fetched
    }

    fn fetch_now(&self, digest: &Digest, size: u64, audience: Audience<'_>) -> Result<File, BlobError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => {
                self.metrics.add(Counter::BlobsRefused, 1);
                BlobError::Missing { digest: *digest, place: self.library.blob_place(digest) }
            }
            _ => self.fault(digest, not_opened(source)),
        };
        let waiting = Waiting { since: audience.since, stop: audience.stop };
        let turn = self.library.turn(digest, waiting).map_err(failed)?;
        let Some(turn) = turn else { return self.fetch_from(None, digest, size, audience) };
        if let Some(file) = self.confirmed(digest, size)? {
            self.hit(size);
            return Ok(file);
        }
        if waiting.is_stopped() {
            return Err(self.library_error(digest, io::Error::other("stopped")));
        }
        let group = turn.fetch().map_err(failed)?;
        let file = self.fetch_from(Some(&group), digest, size, audience);
        if group.members().len() > 1 {
            let rest = Rest {
                group,
                wanted: *digest,
                library: Arc::clone(&self.library),
                cache: Arc::clone(&self.cache),
                metrics: Arc::clone(&self.metrics),
            };
            match audience.stop {
                Some(stop) => rest.keep(&|| stop.load(Ordering::Relaxed)),
                None => rest.keep_later(),
            }
        }
        file
    }
}

/// Blobs for which a reader waited in vain, and when that ended.
///
/// The kernel asks twice: it reads ahead, and when that fails, it reads what is needed. Without this, each read would wait
/// twice.
#[derive(Debug, Default)]
pub(super) struct Unanswered(
    /// A leaf lock.
    Mutex<HashMap<Digest, Instant>>,
);

impl Unanswered {
    fn add(&self, digest: &Digest) {
        let mut all = self.0.lock();
        all.retain(|_, ended| ended.elapsed() < TWICE);
        all.insert(*digest, Instant::now());
    }

    /// Whether a wait that began at `since` came just after one in vain.
    fn has(&self, digest: &Digest, since: Instant) -> bool {
        let ended = self.0.lock().get(digest).copied();
        ended.and_then(|ended| since.checked_duration_since(ended)).is_some_and(|after| after < TWICE)
    }
}

/// The blobs of a group that nobody has asked for yet.
struct Rest {
    group: Fetched,
    wanted: Digest,
    library: Arc<dyn Library>,
    cache: Arc<BlobCache>,
    metrics: Arc<Metrics>,
}

impl Rest {
    fn keep_later(self) {
        if let Err((rest, error)) = thread::spawn_with("group", self, |rest| rest.keep(&|| false)) {
            tracing::debug!(%error, "no thread for the rest of a group: its reader keeps it");
            rest.keep(&|| false);
        }
    }

    fn keep(&self, stop: &dyn Fn() -> bool) {
        let members = self.group.members();
        let bytes = members.iter().fold(0u64, |sum, member| sum.saturating_add(member.size));
        if !self.cache.keeps(bytes.saturating_mul(PART)) {
            return;
        }
        let mut room = Room::default();
        for member in members.iter().filter(|member| member.digest != self.wanted) {
            if stop() {
                return;
            }
            match self.keep_one(&member.digest, member.size, &mut room) {
                Ok(false) => {}
                Ok(true) => {
                    self.metrics.add(Counter::BlobsFetched, 1);
                    self.metrics.add(Counter::FetchedBytes, member.size);
                }
                Err(error) => {
                    // Whoever needs the blobs gets them without the cache.
                    tracing::debug!(%error, "the rest of a group is not kept");
                    return;
                }
            }
        }
    }

    /// Returns whether the blob was kept now.
    fn keep_one(&self, digest: &Digest, size: u64, room: &mut Room) -> io::Result<bool> {
        if self.cache.get(digest, size)?.is_some() {
            return Ok(false);
        }
        let Some(mut stored) = self.group.stored(digest) else { return Ok(false) };
        let mut pending = self.cache.begin()?;
        let read = match room.content(&mut stored, digest, size)? {
            Some(content) => pending.file.write_all(content).map_err(super::Fault::Taken),
            None => self.group.stored(digest).map_or(Ok(()), |mut stored| {
                let take = &mut |bytes: &[u8]| pending.file.write_all(bytes);
                read_through(&mut stored, digest, Some(size), take).map(drop)
            }),
        };
        match read {
            Ok(()) => {
                self.cache.commit(pending, digest, size)?;
                Ok(true)
            }
            Err(super::Fault::Taken(error)) => Err(error),
            // Its readers are told.
            Err(fault) => {
                tracing::debug!(%digest, ?fault, "a blob of a group is bad");
                self.library.forget(digest);
                Ok(false)
            }
        }
    }
}

fn read_all(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    let n = fd::read_full(file, 0, &mut bytes)?;
    if n as u64 == size { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
