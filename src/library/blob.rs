//! Turns a digest into verified bytes.
//!
//! A [`Library`] gives the stored bytes of a blob. [`Blobs`] unpacks them, compares the content with the digest and with
//! the size in the catalog, and keeps a raw copy in the cache. Concurrent requests for one blob share one fetch. The
//! library's own file is never handed out, because rcc overwrites blobs in place.
//!
//! Invariant: nobody reads a bad blob to its end without an error, and a bad blob is an error only of the files that
//! have it. [`Blobs::open_raw`] and [`Blobs::read_all`] return after the whole blob was verified. [`Blobs::stream`] lets
//! readers have the beginning of a large blob before that, and holds back its last byte.

pub mod direct;
pub mod error;
mod group;
mod read;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::cache::{BlobCache, CachedCopy, Pending, reopened};
use super::digest::Digest;
use super::memory::{Unkept, is_full, memory_limit};
use super::stamp::Stamp;
use super::stored::StoredBlob;
use super::stream::{Failed, Filling, Outcome};
use super::turn::Fetched;
use super::{Latency, Library};
use crate::metrics::{Counter, Metrics};
use crate::settings::Verify;
use crate::sys::fd;
use crate::sys::thread::{self, Panicked};
pub use error::BlobError;
use group::Unanswered;
pub(super) use read::{Fault, is_content, not_opened, read_through};
use read::{copy_verified, read_pieces};

/// Copies a blob of a library to `out` as rcc stores it, and compares its content with the digest and with the size in the
/// catalog. The inner error is that of `out`.
///
/// # Errors
/// See [`BlobError`]. Then the bytes in `out` may be wrong.
pub fn copy_stored(
    library: &dyn Library,
    digest: &Digest,
    size: u64,
    out: &mut dyn Write,
) -> Result<io::Result<()>, BlobError> {
    copy(library, digest, |stored| copy_verified(stored, digest, size, out))
}

/// As [`copy_stored`], but copies the content.
///
/// # Errors
/// As [`copy_stored`].
#[cfg(feature = "remote")]
pub(super) fn copy_content(
    library: &dyn Library,
    digest: &Digest,
    size: u64,
    out: &mut dyn Write,
) -> Result<io::Result<()>, BlobError> {
    copy(library, digest, |mut stored| {
        read_through(&mut stored, digest, Some(size), &mut |bytes| out.write_all(bytes)).map(drop)
    })
}

fn copy(
    library: &dyn Library,
    digest: &Digest,
    copy: impl FnOnce(StoredBlob) -> Result<(), Fault>,
) -> Result<io::Result<()>, BlobError> {
    let (digest, place) = (*digest, || library.blob_place(digest));
    match library.blob(&digest).map_err(not_opened).and_then(copy) {
        Ok(()) => Ok(Ok(())),
        Err(Fault::Taken(error)) => Ok(Err(error)),
        Err(Fault::Corrupt(why)) => {
            library.forget(&digest);
            Err(BlobError::Corrupt { digest, place: place(), why })
        }
        Err(Fault::Read(error)) if error.kind() == io::ErrorKind::NotFound => {
            Err(BlobError::Missing { digest, place: place() })
        }
        Err(Fault::Read(source)) => Err(BlobError::Io { place: place(), source }),
    }
}

/// The blobs of one library, and the cache of raw copies that all spaces of a user share.
#[derive(Debug)]
pub struct Blobs {
    library: Arc<dyn Library>,
    cache: Arc<BlobCache>,
    /// One lock for each blob that is being fetched. The lock on the map is a leaf lock.
    in_progress: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
    /// Blobs that are being streamed. A leaf lock.
    streams: Mutex<HashMap<Digest, Arc<Filling>>>,
    /// Blobs whose stream failed after readers got bytes. They are not streamed again. A leaf lock.
    distrusted: Mutex<HashSet<Digest>>,
    /// When blobs are verified.
    verify: Verify,
    /// With [`Verify::Always`], the blobs that these `Blobs` have verified. A leaf lock.
    checked: Mutex<HashSet<Digest>>,
    /// Copies without a name in the cache. A leaf lock.
    unkept: Mutex<Unkept<Digest>>,
    metrics: Arc<Metrics>,
    /// Blobs for which a reader waited in vain.
    unanswered: Unanswered,
    /// Held while a copy is made in memory. One copy at a time keeps within the limit on memory.
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
        let audience = Audience { readers: early.then_some(&*self.to), ..Audience::default() };
        let fetched = self.blobs.once(&self.digest, size, audience);
        let fetched = fetched.or_else(|error| {
            tracing::debug!(%error, "a blob was not unpacked");
            self.to.take_back();
            match error {
                BlobError::Corrupt { .. } => {
                    self.blobs.distrusted.lock().insert(self.digest);
                    Err(error)
                }
                // On a full disk the blob may still fit into memory, which cannot be streamed.
                BlobError::Io { source, .. } if is_full(&source) => self.blobs.open_raw(&self.digest, size),
                error => Err(error),
            }
        });
        self.outcome = Some(fetched.map(Arc::new).map_err(Arc::new));
    }
}

impl Drop for Unpacking {
    fn drop(&mut self) {
        self.blobs.streams.lock().remove(&self.digest);
        self.to.end(self.outcome.take().unwrap_or_else(|| Err(Arc::new(Panicked.into()))));
    }
}

/// A large blob for reading.
#[derive(Debug)]
pub enum Streamed {
    /// The whole blob, verified.
    Whole(File),
    /// A blob that another thread unpacks.
    Filling(Arc<Filling>),
}

impl Blobs {
    /// The blobs of `library`, with raw copies in `cache`.
    #[must_use]
    pub fn new(library: Arc<dyn Library>, cache: BlobCache) -> Self {
        Self {
            library,
            cache: Arc::new(cache),
            in_progress: Mutex::default(),
            streams: Mutex::default(),
            distrusted: Mutex::default(),
            verify: Verify::Once,
            checked: Mutex::default(),
            unkept: Mutex::default(),
            metrics: Arc::default(),
            unanswered: Unanswered::default(),
            in_memory: Mutex::default(),
        }
    }

    /// How long a read of a stored blob may block.
    #[must_use]
    pub fn latency(&self) -> Latency {
        self.library.latency()
    }

    /// Sets when blobs are verified.
    #[must_use]
    pub fn verified(self, verify: Verify) -> Self {
        Self { verify, ..self }
    }

    /// Counts in `metrics`.
    #[must_use]
    pub fn counted_by(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// Like [`Blobs::open_raw`], but does not wait until a blob is unpacked. One thread unpacks it for all readers. Calls
    /// `failed` when readers got bytes and the blob turns out to be bad.
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
            self.hit(size);
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

    /// A verified file with the content of a blob: the copy in the cache, or a file without a name if the cache has no
    /// room. Concurrent callers wait for one fetch. `size` is the size in the catalog.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn open_raw(&self, digest: &Digest, size: u64) -> Result<File, BlobError> {
        if let Some(file) = self.cached(digest, size)? {
            return Ok(file);
        }
        self.once(digest, size, Audience::default())
    }

    /// The verified copy of a blob in the cache. None if there is none: the library is not read.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn cached(&self, digest: &Digest, size: u64) -> Result<Option<File>, BlobError> {
        let found = self.ready(digest, size)?;
        if found.is_some() {
            self.hit(size);
        }
        Ok(found)
    }

    /// As [`Blobs::cached`]. A copy that was made before the last boot is verified now.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn kept(&self, digest: &Digest, size: u64) -> Result<Option<File>, BlobError> {
        let unkept = self.unkept.lock().get(digest);
        let found = match unkept {
            Some(file) => Some(reopened(&file).map_err(|source| self.cache_error(digest, source))?),
            None => self.confirmed(digest, size)?,
        };
        if found.is_some() {
            self.hit(size);
        }
        Ok(found)
    }

    /// Makes the cache share the extents of a file that may hold the content of a blob, and returns the copy. None if the
    /// filesystem cannot do that, or if the file holds other bytes: then the cache is as it was.
    ///
    /// # Errors
    /// When the cache cannot be written, or the copy not be read.
    pub fn adopt(&self, digest: &Digest, size: u64, from: &File) -> Result<Option<File>, BlobError> {
        let cache_error = |source| self.cache_error(digest, source);
        if !self.cache.keeps(size) {
            return Ok(None);
        }
        let mut pending = self.cache.begin().map_err(cache_error)?;
        if !pending.clone_of(from).map_err(cache_error)? {
            return Ok(None);
        }
        // Others may write to `from` at any time. So the clone is verified, which nobody else can open.
        let found = rustix::fs::fstat(&pending.file).map_err(|errno| cache_error(errno.into()))?;
        if u64::try_from(found.st_size) != Ok(size)
            || !is_content(&pending.file, digest).map_err(cache_error)?
        {
            return Ok(None);
        }
        let file = self.cache.commit(pending, digest, size).map_err(cache_error)?;
        self.note_checked(digest);
        Ok(Some(file))
    }

    /// Whether a stored blob is read without waiting for a disk, as far as its first bytes tell. False if it cannot be opened.
    #[must_use]
    pub fn is_in_memory(&self, digest: &Digest) -> bool {
        !self.is_far() && self.stored(digest).is_ok_and(|stored| stored.is_in_memory())
    }

    /// Fetches a blob, unless another thread has fetched it meanwhile.
    fn once(&self, digest: &Digest, size: u64, audience: Audience<'_>) -> Result<File, BlobError> {
        if self.is_far() {
            self.has_waited(digest, audience.since)?;
        }
        let gate = Arc::clone(self.in_progress.lock().entry(*digest).or_default());
        let fetched = self.pass(&gate, digest, audience.since).and_then(|_one_at_a_time| {
            match self.ready(digest, size)? {
                None => self.fetch(digest, size, audience),
                Some(file) => Ok(file),
            }
        });
        let mut in_progress = self.in_progress.lock();
        // Only the map and this thread have the gate, so no other thread waits at it.
        if Arc::strong_count(&gate) <= 2 {
            in_progress.remove(digest);
        }
        fetched
    }

    /// Brings a blob into the cache in the background, until `stop` is set. A reader that needs the blob meanwhile does
    /// not wait for this, because the background has a low priority: it fetches the blob itself. Returns whether the
    /// library was read: not if the cache had a copy already or keeps none of this size, nor if `stop` was set.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn prepare(&self, digest: &Digest, size: u64, stop: &AtomicBool) -> Result<bool, BlobError> {
        // A copy that is not kept is of no use to a later reader.
        if !self.cache.keeps(size) || self.ready(digest, size)?.is_some() {
            return Ok(false);
        }
        match self.fetch(digest, size, Audience { stop: Some(stop), ..Audience::default() }) {
            Ok(_) => Ok(true),
            Err(_) if stop.load(Ordering::Relaxed) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets the kernel read a stored blob in the background.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn read_ahead(&self, digest: &Digest) -> Result<(), BlobError> {
        self.stored(digest)?.read_ahead().map_err(|source| self.library_error(digest, source))
    }

    /// Reads the verified content of a blob into memory. The cache gets no copy.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn read_all(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, BlobError> {
        if !self.library.is_here(digest) {
            return self.read_cached(digest, size);
        }
        // The size in the catalog may be a lie, so it does not decide how much is allocated.
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(1 << 20));
        self.pour(digest, size, &mut self.stored(digest)?, &mut bytes)?;
        Ok(bytes)
    }

    /// Counts a blob that somebody needs and the cache has.
    fn hit(&self, size: u64) {
        self.metrics.add(Counter::CacheHits, 1);
        self.metrics.add(Counter::CacheHitBytes, size);
    }

    /// The copy of a blob, if there is one that needs no verification.
    fn ready(&self, digest: &Digest, size: u64) -> Result<Option<File>, BlobError> {
        let cache_error = |source| self.cache_error(digest, source);
        if let Some(file) = self.unkept.lock().get(digest) {
            return reopened(&file).map(Some).map_err(cache_error);
        }
        let copy = self.cache.get(digest, size).map_err(cache_error)?;
        Ok(copy.filter(|copy| self.may_use(copy, digest)).map(|copy| copy.file))
    }

    /// Whether a copy in the cache needs no verification now.
    fn may_use(&self, copy: &CachedCopy, digest: &Digest) -> bool {
        match self.verify {
            Verify::Once => copy.is_verified,
            Verify::Always => copy.is_verified && self.checked.lock().contains(digest),
            Verify::Never => true,
        }
    }

    /// Notes that a blob was verified.
    fn note_checked(&self, digest: &Digest) {
        if self.verify == Verify::Always {
            self.checked.lock().insert(*digest);
        }
    }

    /// The copy of a blob, verified if it was made before the last boot. Verifying reads it from the disk, so it is safe
    /// from then on.
    fn confirmed(&self, digest: &Digest, size: u64) -> Result<Option<File>, BlobError> {
        let cache_error = |source| self.cache_error(digest, source);
        let Some(copy) = self.cache.get(digest, size).map_err(cache_error)? else { return Ok(None) };
        if self.may_use(&copy, digest) {
            return Ok(Some(copy.file));
        }
        let file = copy.file;
        if is_content(&file, digest).map_err(cache_error)? {
            self.note_checked(digest);
            if let Err(error) = Stamp::Safe.set(&file) {
                // Without the stamp the copy is verified again after the next boot.
                tracing::debug!(%digest, %error, "cannot stamp a verified copy");
            }
            return Ok(Some(file));
        }
        tracing::warn!(%digest, "a cached blob has other content, as after a power cut; fetching it again");
        self.cache.remove(digest).map_err(cache_error)?;
        Ok(None)
    }

    /// Fetches a blob for the readers of a stream, if there are any. Fails with any error once `stop` is set.
    fn fetch(&self, digest: &Digest, size: u64, audience: Audience<'_>) -> Result<File, BlobError> {
        if let Some(file) = self.confirmed(digest, size)? {
            self.hit(size);
            return Ok(file);
        }
        match self.library.latency() {
            Latency::Disk => self.fetch_from(None, digest, size, audience),
            Latency::Network => self.fetch_in_turn(digest, size, audience),
        }
    }

    /// Fetches a blob from a group that is in memory, or else from the library.
    fn fetch_from(
        &self,
        group: Option<&Fetched>,
        digest: &Digest,
        size: u64,
        audience: Audience<'_>,
    ) -> Result<File, BlobError> {
        let begun = self.cache.begin().map_err(|source| self.cache_error(digest, source));
        match begun.and_then(|pending| self.fetch_into(pending, group, digest, size, audience)) {
            // Readers of a stream have the file on the disk already, so it cannot be replaced by one in memory. And what is
            // fetched for later readers is of no use in the memory of this process.
            Err(BlobError::Io { source, .. })
                if is_full(&source)
                    && audience.readers.is_none()
                    && audience.stop.is_none()
                    && size <= memory_limit() =>
            {
                tracing::debug!(%digest, "the disk is full; unpacking a blob into memory");
                let _one_at_a_time = self.pass(&self.in_memory, digest, audience.since)?;
                let closed_later = self.unkept.lock().make_room(size);
                drop(closed_later);
                let pending = Pending::in_memory().map_err(|source| self.cache_error(digest, source))?;
                self.fetch_into(pending, group, digest, size, audience)
            }
            fetched => fetched,
        }
    }

    fn fetch_into(
        &self,
        mut pending: Pending,
        group: Option<&Fetched>,
        digest: &Digest,
        size: u64,
        audience: Audience<'_>,
    ) -> Result<File, BlobError> {
        let cache_error = |source| self.cache_error(digest, source);
        if self.is_far() && !pending.in_memory && size > group::RESERVED {
            // A full disk is noticed before anything is fetched in vain.
            fd::reserve(&pending.file, size).map_err(|errno| cache_error(errno.into()))?;
        }
        let mut stored = match group.and_then(|group| group.stored(digest)) {
            Some(stored) => stored,
            None => self.stored(digest)?,
        };
        if let Some(readers) = audience.readers {
            readers.begin(pending.file.try_clone().map_err(cache_error)?);
        }
        // The library's file may change at any time. So the copy is verified, or the bytes that are written to it.
        let cloned = match stored.file() {
            Some(file) if digest.is_raw() => pending.clone_of(file).map_err(cache_error)?,
            _ => false,
        };
        if cloned {
            let mut copy = StoredBlob::of_file(pending.file.try_clone().map_err(cache_error)?);
            self.pour(digest, size, &mut copy, &mut Announced { file: None, audience })?;
        } else {
            let mut out = Announced { file: Some(&mut pending.file), audience };
            self.pour(digest, size, &mut stored, &mut out)?;
            stored.drop_pages();
        }
        let in_memory = if pending.in_memory { size } else { 0 };
        let stamp = if self.verify == Verify::Never { Stamp::Unverified } else { Stamp::ThisBoot };
        let file = self.cache.commit_as(stamp, pending, digest, size).map_err(cache_error)?;
        self.note_checked(digest);
        if fd::has_name(&file).map_err(|errno| cache_error(errno.into()))? {
            // Cloning a file waits until its bytes are written out. A machine that fetches has other work to do first, and
            // hardly ever clones what it has just got.
            if !self.is_far() {
                fd::start_writeback(&file);
            }
        } else {
            let kept = Arc::new(reopened(&file).map_err(cache_error)?);
            let closed_later = self.unkept.lock().put(*digest, kept, in_memory);
            drop(closed_later);
        }
        Ok(file)
    }

    /// Writes the content of a blob to `out`, a file of the cache or a buffer, and verifies it.
    fn pour(
        &self,
        digest: &Digest,
        size: u64,
        stored: &mut StoredBlob,
        out: &mut dyn Write,
    ) -> Result<(), BlobError> {
        let take = &mut |bytes: &[u8]| out.write_all(bytes);
        let read = match self.verify {
            // Who can change what is in a store is not known.
            Verify::Never if !self.is_far() => read_pieces(stored, digest, Some(size), take),
            Verify::Never | Verify::Once | Verify::Always => read_through(stored, digest, Some(size), take),
        };
        read.map_err(|fault| self.fault(digest, fault))?;
        self.metrics.add(Counter::BlobsFetched, 1);
        self.metrics.add(Counter::FetchedBytes, size);
        Ok(())
    }

    fn fault(&self, digest: &Digest, fault: Fault) -> BlobError {
        match fault {
            Fault::Corrupt(why) => {
                self.library.forget(digest);
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

/// Who waits for a fetch.
#[derive(Clone, Copy)]
struct Audience<'a> {
    /// When the wait began.
    since: Instant,
    /// The readers of a stream, to whom the bytes are announced.
    readers: Option<&'a Filling>,
    /// Ends the fetch with an error when it is set.
    stop: Option<&'a AtomicBool>,
}

impl Default for Audience<'_> {
    /// A reader that comes now.
    fn default() -> Self {
        Self { since: Instant::now(), readers: None, stop: None }
    }
}

/// A writer that announces the bytes to the readers of a stream.
struct Announced<'a> {
    /// None when the bytes are in the file already.
    file: Option<&'a mut File>,
    audience: Audience<'a>,
}

impl Write for Announced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.audience.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(io::Error::other("stopped"));
        }
        let n = match &mut self.file {
            Some(file) => file.write(bytes)?,
            None => bytes.len(),
        };
        if let Some(readers) = self.audience.readers {
            readers.add(n as u64);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
