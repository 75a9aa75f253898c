//! Blobs: from a digest to verified bytes.
//!
//! The store says where the stored bytes are; everything else (unpacking, verifying, caching, doing it once) is
//! here. Invariant: no byte of a blob is handed out before the whole blob matched its digest and the catalog's
//! size, and a bad blob is an error of the one file that needs it.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::cache::{BlobCache, Verified};
use super::digest::{Digest, Hasher};

/// Where stored bytes come from: the seam at which tests put faults, and other stores will fit.
pub trait BlobStore: Send + Sync + std::fmt::Debug {
    /// Opens the stored bytes of a blob.
    ///
    /// # Errors
    /// `NotFound` when the store lacks it, and what else opening may answer.
    fn open(&self, digest: &Digest) -> io::Result<File>;

    /// Where the blob is or would be, for messages.
    fn locate(&self, digest: &Digest) -> PathBuf;
}

/// A hololib on disk.
#[derive(Debug)]
pub struct HololibStore {
    library: PathBuf,
}

impl HololibStore {
    /// The store of a hololib.
    #[must_use]
    pub fn new(hololib: &Path) -> Self {
        Self { library: hololib.join("library") }
    }
}

impl BlobStore for HololibStore {
    fn open(&self, digest: &Digest) -> io::Result<File> {
        File::open(self.locate(digest))
    }

    fn locate(&self, digest: &Digest) -> PathBuf {
        self.library.join(digest.fan_out())
    }
}

/// Why a blob's bytes cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The library does not have it.
    #[error("blob {digest} is missing ({path})")]
    Missing {
        /// Which.
        digest: Digest,
        /// Where it should be.
        path: PathBuf,
    },
    /// It is there and holds something else.
    #[error("blob {digest} is corrupt: {why} ({path})")]
    Corrupt {
        /// Which.
        digest: Digest,
        /// Where it is.
        path: PathBuf,
        /// In which way.
        why: String,
    },
    /// It could not be read, or its cached copy not be written.
    #[error("{path}: {source}")]
    Io {
        /// What could not be read or written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The blobs of one library, with the cache of raw copies that all of a user's spaces share.
#[derive(Debug)]
pub struct Blobs {
    store: Box<dyn BlobStore>,
    cache: BlobCache,
    /// One lock for each blob that is being fetched; the map itself is a leaf lock.
    in_progress: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
}

impl Blobs {
    /// Blobs of a store, kept in a cache.
    #[must_use]
    pub fn new(store: Box<dyn BlobStore>, cache: BlobCache) -> Self {
        Self { store, cache, in_progress: Mutex::new(HashMap::new()) }
    }

    /// A verified file with the raw bytes: the library's own where it holds them raw, the cached copy where not.
    /// Those who ask for one blob at once wait for one fetch. `size` is the catalog's.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn open_raw(&self, digest: &Digest, size: u64) -> Result<File, BlobError> {
        if let Some(file) = self.ready(digest, size)? {
            return Ok(file);
        }
        let gate = Arc::clone(self.in_progress.lock().entry(*digest).or_default());
        let fetched = {
            let _one_at_a_time = gate.lock();
            match self.ready(digest, size) {
                Ok(None) => self.fetch(digest, size),
                Ok(Some(file)) => Ok(file),
                Err(error) => Err(error),
            }
        };
        self.in_progress.lock().remove(digest);
        fetched
    }

    /// All of a blob's bytes, verified, in memory; nothing is cached.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn read_all(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, BlobError> {
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(1 << 26));
        let stored = self.stored(digest)?;
        self.pour(digest, size, stored, &mut bytes, |source| BlobError::Io {
            path: self.store.locate(digest),
            source,
        })?;
        Ok(bytes)
    }

    /// The file when it was verified before and looks as it did then.
    fn ready(&self, digest: &Digest, size: u64) -> Result<Option<File>, BlobError> {
        if !digest.is_raw() {
            return self.cache.get(digest, size).map_err(|source| self.cache_error(digest, source));
        }
        let file = self.stored(digest)?;
        let known = Verified::of(&file).map_err(|source| self.store_error(digest, source))?;
        Ok(self.cache.is_verified(digest, &known).then_some(file))
    }

    fn fetch(&self, digest: &Digest, size: u64) -> Result<File, BlobError> {
        let stored = self.stored(digest)?;
        if !digest.is_raw() {
            let mut pending = self.cache.begin().map_err(|source| self.cache_error(digest, source))?;
            self.pour(digest, size, stored, pending.file(), |source| self.cache_error(digest, source))?;
            return self.cache.commit(pending, digest).map_err(|source| self.cache_error(digest, source));
        }
        let looks = Verified::of(&stored).map_err(|source| self.store_error(digest, source))?;
        let copy = stored.try_clone().map_err(|source| self.store_error(digest, source))?;
        self.pour(digest, size, copy, &mut io::sink(), |source| self.store_error(digest, source))?;
        if let Err(error) = self.cache.note_verified(digest, &looks) {
            // Only costs verifying again in the next mount.
            tracing::debug!(%digest, %error, "cannot note that a blob was verified");
        }
        Ok(stored)
    }

    /// Reads a blob through, verifying, into `out`. `failed_out` names an error of writing there.
    fn pour(
        &self,
        digest: &Digest,
        size: u64,
        stored: File,
        out: &mut dyn Write,
        failed_out: impl Fn(io::Error) -> BlobError,
    ) -> Result<(), BlobError> {
        let corrupt =
            |why: String| BlobError::Corrupt { digest: *digest, path: self.store.locate(digest), why };
        let mut reader =
            Raw::new(stored, digest.is_raw()).map_err(|source| self.store_error(digest, source))?;
        let mut hasher = Hasher::new(digest.kind());
        let mut buffer = vec![0u8; 128 * 1024];
        let mut total = 0u64;
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error().is_some() => return Err(self.store_error(digest, error)),
                Err(error) => return Err(corrupt(format!("it cannot be unpacked: {error}"))),
            };
            let bytes = buffer.get(..n).unwrap_or_default();
            total += n as u64;
            // A bomb is stopped as soon as it is larger than it may be.
            if total > size {
                return Err(corrupt(format!("it is larger than the {size} bytes of the catalog")));
            }
            hasher.update(bytes);
            out.write_all(bytes).map_err(&failed_out)?;
        }
        if total != size {
            return Err(corrupt(format!("it has {total} bytes, the catalog says {size}")));
        }
        let found = hasher.finish();
        if found != *digest {
            return Err(corrupt(format!("its content has the digest {found}")));
        }
        Ok(())
    }

    fn stored(&self, digest: &Digest) -> Result<File, BlobError> {
        self.store.open(digest).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                BlobError::Missing { digest: *digest, path: self.store.locate(digest) }
            }
            _ => self.store_error(digest, source),
        })
    }

    fn store_error(&self, digest: &Digest, source: io::Error) -> BlobError {
        BlobError::Io { path: self.store.locate(digest), source }
    }

    fn cache_error(&self, digest: &Digest, source: io::Error) -> BlobError {
        BlobError::Io { path: self.cache.place(digest), source }
    }
}

/// The raw bytes of a stored blob.
enum Raw {
    Plain(At),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<At>>>),
}

impl Raw {
    /// Under a SHA-256 digest the bytes are gzip, or plain where they do not begin like gzip, as rcc reads them.
    /// Under a SipHash digest they are always plain: a raw library may hold a `.gz` file.
    fn new(stored: File, raw: bool) -> io::Result<Self> {
        let mut magic = [0u8; 2];
        let n = stored.read_at(&mut magic, 0)?;
        let stored = At { file: stored, offset: 0 };
        if raw || n < 2 || magic != [0x1f, 0x8b] {
            return Ok(Self::Plain(stored));
        }
        let reader = BufReader::with_capacity(64 * 1024, stored);
        Ok(Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(reader))))
    }
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
        }
    }
}

/// Reads a file by offset, leaving its own position alone.
struct At {
    file: File,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

/// Reads a stored blob through and compares it with its digest; its size is not known. For checks of a library.
///
/// # Errors
/// What is wrong with it, in words.
pub fn verify(stored: File, digest: &Digest) -> io::Result<Result<u64, String>> {
    let mut reader = Raw::new(stored, digest.is_raw())?;
    let mut hasher = Hasher::new(digest.kind());
    let mut buffer = vec![0u8; 128 * 1024];
    let mut total = 0u64;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(buffer.get(..n).unwrap_or_default());
                total += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error().is_some() => return Err(error),
            Err(error) => return Ok(Err(format!("it cannot be unpacked: {error}"))),
        }
    }
    let found = hasher.finish();
    Ok(if found == *digest { Ok(total) } else { Err(format!("its content has the digest {found}")) })
}
