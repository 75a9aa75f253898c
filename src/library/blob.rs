//! Blobs: from a digest to verified bytes.
//!
//! The store says where the stored bytes are; everything else (unpacking, verifying, caching, doing it once) is
//! here. Invariant: a bad blob is an error of the one file that needs it, and nobody gets all of its bytes. A file
//! or bytes in memory are handed out when the whole blob matched its digest and the catalog's size; only a blob that
//! is streamed ([`Blobs::stream`]) is read before that, all but its end.

mod read;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::cache::{BlobCache, Copy, Pending, reopened};
use super::digest::Digest;
use super::stamp::Stamp;
use super::stored::StoredBlob;
use super::stream::{Failed, Filling, Outcome, abandoned};
use super::unkept::{Unkept, is_full, memory_limit};
use super::{Latency, Library};
use crate::metrics::{Counter, Metrics};
use crate::sys::{fd, thread};
use read::is_content;
pub(super) use read::{Fault, not_opened, read_through};

/// Why a blob's bytes cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The library does not have it.
    #[error("blob {digest} is missing ({place})")]
    Missing {
        /// Which.
        digest: Digest,
        /// Where it should be.
        place: String,
    },
    /// It is there and holds something else.
    #[error("blob {digest} is corrupt: {why} ({place})")]
    Corrupt {
        /// Which.
        digest: Digest,
        /// Where it is.
        place: String,
        /// In which way.
        why: String,
    },
    /// It could not be read, or its cached copy not be written.
    #[error("{place}: {source}")]
    Io {
        /// What could not be read or written.
        place: String,
        /// Why.
        source: io::Error,
    },
}

/// The blobs of one library, with the cache of raw copies that all of a user's spaces share.
#[derive(Debug)]
pub struct Blobs {
    library: Arc<dyn Library>,
    cache: BlobCache,
    /// One lock for each blob that is being fetched; the map itself is a leaf lock.
    in_progress: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
    /// Blobs that are being streamed. A leaf lock.
    streams: Mutex<HashMap<Digest, Arc<Filling>>>,
    /// Blobs of which a stream had to be taken back: they are handed out as a whole or not at all. A leaf lock.
    distrusted: Mutex<HashSet<Digest>>,
    /// Copies that the cache does not hold. A leaf lock.
    unkept: Mutex<Unkept<Digest>>,
    metrics: Arc<Metrics>,
    /// Held while a copy is made in memory: one at a time, so that the bound on memory is one.
    in_memory: Mutex<()>,
}

/// The work of the thread that unpacks a blob. Dropping it ends the stream, also when the thread panics, because readers
/// wait for the end.
struct Unpacking {
    blobs: Arc<Blobs>,
    digest: Digest,
    to: Arc<Filling>,
    outcome: Option<Outcome>,
}

impl Unpacking {
    /// Unpacks the blob, and announces its bytes on the way when `early` is set.
    fn run(mut self, size: u64, early: bool) {
        let readers = early.then_some(&*self.to);
        let fetched = self.blobs.once(&self.digest, size, |blobs| blobs.fetch(&self.digest, size, readers));
        let fetched = fetched.or_else(|error| {
            tracing::debug!(%error, "a blob was not unpacked");
            self.to.take_back();
            match error {
                BlobError::Corrupt { .. } => {
                    self.blobs.distrusted.lock().insert(self.digest);
                    Err(error)
                }
                BlobError::Missing { .. } => Err(error),
                // On a full disk the blob may still fit into memory, which cannot be streamed.
                BlobError::Io { .. } => self.blobs.open_raw(&self.digest, size),
            }
        });
        self.outcome = Some(fetched.map(Arc::new).map_err(Arc::new));
    }
}

impl Drop for Unpacking {
    fn drop(&mut self) {
        self.blobs.streams.lock().remove(&self.digest);
        self.to.end(self.outcome.take().unwrap_or_else(|| Err(Arc::new(abandoned()))));
    }
}

/// What came of [`Blobs::prepare`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prepared {
    /// It was there already.
    Ready,
    /// It is there now.
    Fetched,
    /// It was told to stop.
    Stopped,
}

/// How a large blob can be read.
#[derive(Debug)]
pub enum Streamed {
    /// All of it is here, verified.
    Whole(File),
    /// It is being unpacked.
    Filling(Arc<Filling>),
}

impl Blobs {
    /// The blobs of `library`, with raw copies in `cache`.
    #[must_use]
    pub fn new(library: Arc<dyn Library>, cache: BlobCache) -> Self {
        Self {
            library,
            cache,
            in_progress: Mutex::default(),
            streams: Mutex::default(),
            distrusted: Mutex::default(),
            unkept: Mutex::default(),
            metrics: Arc::default(),
            in_memory: Mutex::default(),
        }
    }

    /// How long a read of a stored blob may block.
    #[must_use]
    pub fn latency(&self) -> Latency {
        self.library.latency()
    }

    /// Counts in the counters of a mount.
    #[must_use]
    pub fn counted_by(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// As [`Blobs::open_raw`], without waiting for a blob that has to be unpacked first: a thread does that, once for
    /// all who ask, and `failed` is called when it turns out that what was read meanwhile is not to be believed.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn stream(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        failed: impl FnOnce() + Send + 'static,
    ) -> Result<Streamed, BlobError> {
        if self.distrusted.lock().contains(digest) {
            return self.open_raw(digest, size).map(Streamed::Whole);
        }
        if let Some(file) = self.ready(digest, size)? {
            return Ok(Streamed::Whole(file));
        }
        let failed: Failed = Box::new(failed);
        let mut streams = self.streams.lock();
        if let Some(filling) = streams.get(digest) {
            filling.on_failure(failed);
            return Ok(Streamed::Filling(Arc::clone(filling)));
        }
        let filling = Arc::new(Filling::new(size));
        filling.on_failure(failed);
        streams.insert(*digest, Arc::clone(&filling));
        // The end of a stream takes this lock, and without a thread it comes below.
        drop(streams);
        let unpacking =
            Unpacking { blobs: Arc::clone(self), digest: *digest, to: Arc::clone(&filling), outcome: None };
        let spawned = thread::spawn_with("unpack", unpacking, move |work| work.run(size, true));
        if let Err((unpacking, error)) = spawned {
            tracing::debug!(%error, "no thread to unpack a blob: its first reader unpacks it");
            // Nothing is handed out early: the caller could not drop the kernel's pages while its own read is open.
            unpacking.run(size, false);
        }
        Ok(Streamed::Filling(filling))
    }

    /// A verified file with the raw bytes, which is never the library's own: the cache's copy, or one that nobody else
    /// has where the cache has no room. Those who ask for one blob at once wait for one fetch. `size` is the catalog's.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn open_raw(&self, digest: &Digest, size: u64) -> Result<File, BlobError> {
        if let Some(file) = self.ready(digest, size)? {
            return Ok(file);
        }
        self.once(digest, size, |blobs| blobs.fetch(digest, size, None))
    }

    /// Fetches a blob unless somebody else does or did so meanwhile.
    fn once(
        &self,
        digest: &Digest,
        size: u64,
        fetch: impl FnOnce(&Self) -> Result<File, BlobError>,
    ) -> Result<File, BlobError> {
        let gate = Arc::clone(self.in_progress.lock().entry(*digest).or_default());
        let fetched = {
            let _one_at_a_time = gate.lock();
            match self.ready(digest, size) {
                Ok(None) => fetch(self),
                Ok(Some(file)) => Ok(file),
                Err(error) => Err(error),
            }
        };
        let mut in_progress = self.in_progress.lock();
        // The last one out: the map's and our own. While others wait they must keep meeting at this gate.
        if Arc::strong_count(&gate) <= 2 {
            in_progress.remove(digest);
        }
        fetched
    }

    /// Makes sure that [`Blobs::open_raw`] finds a blob verified, until `stop` is set. For work that nobody waits
    /// for: whoever needs the blob meanwhile fetches it himself, rather than wait for somebody who may be slow.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn prepare(&self, digest: &Digest, size: u64, stop: &AtomicBool) -> Result<Prepared, BlobError> {
        // One that is not kept is not there for whoever comes later.
        if !self.cache.keeps(size) || self.ready(digest, size)?.is_some() {
            return Ok(Prepared::Ready);
        }
        match self.fetch_while(digest, size, None, &|| !stop.load(Ordering::Relaxed)) {
            Ok(_) => Ok(Prepared::Fetched),
            Err(_) if stop.load(Ordering::Relaxed) => Ok(Prepared::Stopped),
            Err(error) => Err(error),
        }
    }

    /// Has the kernel read a stored blob that somebody will unpack soon.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn read_ahead(&self, digest: &Digest) -> Result<(), BlobError> {
        self.stored(digest)?.read_ahead().map_err(|source| self.library_error(digest, source))
    }

    /// All of a blob's bytes, verified, in memory; nothing is cached.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn read_all(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, BlobError> {
        // What the catalog says is not believed before as many bytes were there.
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(1 << 20));
        self.pour(digest, size, &mut self.stored(digest)?, &mut bytes)?;
        Ok(bytes)
    }

    /// The copy that is there, when it is one to be believed.
    fn ready(&self, digest: &Digest, size: u64) -> Result<Option<File>, BlobError> {
        let cache_error = |source| self.cache_error(digest, source);
        if let Some(file) = self.unkept.lock().get(digest) {
            return reopened(&file).map(Some).map_err(cache_error);
        }
        match self.cache.get(digest, size).map_err(cache_error)? {
            Some(Copy::Believed(file)) => Ok(Some(file)),
            Some(Copy::Unverified(_)) | None => Ok(None),
        }
    }

    /// The copy that is there from an earlier boot, if it still is what it was. It is read from the disk
    /// for that, so it is safe from then on.
    fn confirmed(&self, digest: &Digest, size: u64) -> Result<Option<File>, BlobError> {
        let cache_error = |source| self.cache_error(digest, source);
        let file = match self.cache.get(digest, size).map_err(cache_error)? {
            Some(Copy::Believed(file)) => return Ok(Some(file)),
            Some(Copy::Unverified(file)) => file,
            None => return Ok(None),
        };
        if is_content(&file, digest).map_err(cache_error)? {
            if let Err(error) = Stamp::Safe.set(&file) {
                // Only costs verifying again.
                tracing::debug!(%digest, %error, "cannot note that a copy is safe");
            }
            return Ok(Some(file));
        }
        tracing::warn!(%digest, "a cached blob was lost with the power; fetching it again");
        self.cache.remove(digest).map_err(cache_error)?;
        Ok(None)
    }

    fn fetch(&self, digest: &Digest, size: u64, readers: Option<&Filling>) -> Result<File, BlobError> {
        self.fetch_while(digest, size, readers, &|| true)
    }

    /// Fetches a blob; when `goes_on` says no, with some error.
    fn fetch_while(
        &self,
        digest: &Digest,
        size: u64,
        readers: Option<&Filling>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<File, BlobError> {
        if let Some(file) = self.confirmed(digest, size)? {
            return Ok(file);
        }
        let begun = self.cache.begin().map_err(|source| self.cache_error(digest, source));
        match begun.and_then(|pending| self.fetch_into(pending, digest, size, readers, goes_on)) {
            // Those who read meanwhile have seen the file on the disk: they come again.
            Err(BlobError::Io { source, .. })
                if is_full(&source) && readers.is_none() && size <= memory_limit() =>
            {
                tracing::debug!(%digest, "the disk is full: a blob is unpacked into memory");
                let _one_at_a_time = self.in_memory.lock();
                drop(self.unkept.lock().make_room(size));
                let pending = Pending::in_memory().map_err(|source| self.cache_error(digest, source))?;
                self.fetch_into(pending, digest, size, None, goes_on)
            }
            fetched => fetched,
        }
    }

    fn fetch_into(
        &self,
        mut pending: Pending,
        digest: &Digest,
        size: u64,
        readers: Option<&Filling>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<File, BlobError> {
        let cache_error = |source| self.cache_error(digest, source);
        let mut stored = self.stored(digest)?;
        if let Some(readers) = readers {
            readers.begin(pending.file().try_clone().map_err(cache_error)?);
        }
        // What is verified is the copy itself, or what is written into it: the library's file may change meanwhile.
        let cloned = match stored.file() {
            Some(file) if digest.is_raw() => pending.clone_of(file).map_err(cache_error)?,
            _ => false,
        };
        if cloned {
            let mut copy = StoredBlob::of_file(pending.file().try_clone().map_err(cache_error)?);
            self.pour(digest, size, &mut copy, &mut Announced { file: None, readers, goes_on })?;
        } else {
            let mut out = Announced { file: Some(pending.file()), readers, goes_on };
            self.pour(digest, size, &mut stored, &mut out)?;
            stored.drop_pages();
        }
        let in_memory = if pending.is_in_memory() { size } else { 0 };
        let file = self.cache.commit(pending, digest, size).map_err(cache_error)?;
        if fd::has_name(&file).map_err(|errno| cache_error(errno.into()))? {
            // Whoever clones the copy must not wait until it is written out.
            fd::start_writeback(&file);
        } else {
            let kept = Arc::new(reopened(&file).map_err(cache_error)?);
            drop(self.unkept.lock().put(*digest, kept, in_memory));
        }
        Ok(file)
    }

    /// Reads a blob through, verifying, into `out`, which is of the cache or in memory.
    fn pour(
        &self,
        digest: &Digest,
        size: u64,
        stored: &mut StoredBlob,
        out: &mut dyn Write,
    ) -> Result<(), BlobError> {
        read_through(stored, digest, Some(size), &mut |bytes| out.write_all(bytes))
            .map_err(|fault| self.fault(digest, fault))?;
        self.metrics.add(Counter::BlobsFetched, 1);
        self.metrics.add(Counter::FetchedBytes, size);
        Ok(())
    }

    fn fault(&self, digest: &Digest, fault: Fault) -> BlobError {
        match fault {
            Fault::Corrupt(why) => {
                self.metrics.add(Counter::BlobsRefused, 1);
                BlobError::Corrupt { digest: *digest, place: self.library.blob_place(digest), why }
            }
            Fault::Read(source) => self.library_error(digest, source),
            Fault::Taken(source) => self.cache_error(digest, source),
        }
    }

    fn stored(&self, digest: &Digest) -> Result<StoredBlob, BlobError> {
        self.library.blob(digest).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                self.metrics.add(Counter::BlobsRefused, 1);
                BlobError::Missing { digest: *digest, place: self.library.blob_place(digest) }
            }
            _ => self.fault(digest, not_opened(source)),
        })
    }

    fn library_error(&self, digest: &Digest, source: io::Error) -> BlobError {
        BlobError::Io { place: self.library.blob_place(digest), source }
    }

    fn cache_error(&self, digest: &Digest, source: io::Error) -> BlobError {
        BlobError::Io { place: self.cache.place(digest).display().to_string(), source }
    }
}

/// A cache file that is being written (or nothing, where its bytes are there already), those who read from it meanwhile,
/// and whether to go on.
struct Announced<'a> {
    file: Option<&'a mut File>,
    readers: Option<&'a Filling>,
    goes_on: &'a dyn Fn() -> bool,
}

impl Write for Announced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !(self.goes_on)() {
            return Err(io::Error::other("told to stop"));
        }
        let n = match &mut self.file {
            Some(file) => file.write(bytes)?,
            None => bytes.len(),
        };
        if let Some(readers) = self.readers {
            readers.add(n as u64);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
