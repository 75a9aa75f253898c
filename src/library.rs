//! Reads libraries of environments: catalogs, and the blobs that they name.
//!
//! A [`Library`] gives catalogs and stored bytes. It is a directory ([`dir`]) or a zip archive ([`zip`]). The other modules
//! work with every library: they compile catalogs into mapped indexes ([`index`]), unpack and verify blobs ([`blob`]), and
//! keep raw copies of them ([`cache`]).
//!
//! Invariants: a library is never written. Nothing in it is trusted: catalogs are parsed strictly, and the bytes of a blob
//! are compared with its digest.

pub mod blob;
pub mod bytecode;
pub mod cache;
pub mod cache_dir;
pub(crate) mod cancellable;
pub mod catalog;
pub mod catalogs;
pub mod check;
pub mod digest;
pub mod dir;
pub mod export;
pub mod index;
pub mod locate;
pub(crate) mod look;
pub(crate) mod memory;
pub mod name;
pub mod profile;
#[cfg(feature = "remote")]
pub mod remote;
pub mod stamp;
pub mod stored;
pub mod stream;
pub mod turn;
pub mod unneeded;
pub mod warm;
pub mod zip;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use catalog::CatalogError;
use catalogs::{CatalogName, CatalogStamp, Catalogs};
use digest::Digest;
use index::IndexError;
use stored::{StoredBlob, StoredBlobs};
use turn::{Turn, Waiting};

use crate::metrics::Contact;
use crate::sys::thread::Panicked;

/// The time that rcc gives every restored file: 2021-01-07T06:13:20Z, in seconds since the epoch.
pub const MOTHER_TIME: i64 = 1_610_000_000;

/// Length in bytes of a stage's and of a space's name. Relocation replaces the one by the other.
pub const NAME_LEN: usize = 24;

/// Where catalogs and blobs come from.
///
/// An implementation finds and reads the stored bytes. Unpacking, verifying and caching are the same for every library:
/// see [`index::cache`] and [`blob::Blobs`].
pub trait Library: Send + Sync + std::fmt::Debug {
    /// Identifies the library on this machine, in messages and as a part of cache keys.
    fn name(&self) -> &str;

    /// Lists the catalogs.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn catalogs(&self) -> Result<Catalogs, LibraryError>;

    /// A value that changes whenever the catalog does. Much cheaper than reading the catalog.
    ///
    /// # Errors
    /// `NotFound` when there is no such catalog.
    fn catalog_stamp(&self, name: &CatalogName) -> io::Result<CatalogStamp>;

    /// The stored bytes of a catalog, as a stream. They may change while they are read, so compare them with a digest.
    ///
    /// # Errors
    /// As [`Library::blob`].
    fn open_catalog(&self, name: &CatalogName) -> io::Result<StoredBlob>;

    /// The bytes of a catalog as they are stored, and the stamp that belongs to them.
    ///
    /// # Errors
    /// [`LibraryError::Io`] when it cannot be read, [`LibraryError::Catalog`] when it is no regular file or too large.
    fn catalog(&self, name: &CatalogName) -> Result<(CatalogStamp, Vec<u8>), LibraryError>;

    /// The stored bytes of a blob.
    ///
    /// # Errors
    /// `NotFound` when the library lacks the blob, `InvalidData` when what is in its place cannot be a blob.
    fn blob(&self, digest: &Digest) -> io::Result<StoredBlob>;

    /// Whether the library has something in the place of a blob.
    ///
    /// # Errors
    /// When the library cannot be asked.
    fn has_blob(&self, digest: &Digest) -> io::Result<bool>;

    /// Lists all blobs.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn blobs(&self) -> Result<StoredBlobs, LibraryError>;

    /// How long a read of a blob may block.
    fn latency(&self) -> Latency {
        Latency::Disk
    }

    /// Whether a read of this blob blocks as long as a disk needs, however far the library is.
    fn is_here(&self, _digest: &Digest) -> bool {
        self.latency() == Latency::Disk
    }

    /// Waits until nobody else on this machine fetches the blob, or the group that it is in. None for a library from which
    /// everybody may read at once.
    ///
    /// # Errors
    /// As [`Library::blob`].
    fn turn(&self, _digest: &Digest, _waiting: Waiting<'_>) -> io::Result<Option<Turn>> {
        Ok(None)
    }

    /// How long somebody who waits for a blob since `since` may go on to wait. None: as long as it takes.
    fn patience(&self, _since: Instant) -> Option<Duration> {
        None
    }

    /// Forgets what is kept of the stored bytes of a blob, because they turned out to be bad. The next read asks the store again.
    fn forget(&self, _digest: &Digest) {}

    /// A number by which blobs are sorted before many of them are read.
    fn position(&self, _digest: &Digest) -> u64 {
        0
    }

    /// A number for the group that a blob is fetched with. None if it is fetched alone.
    fn group_of(&self, _digest: &Digest) -> Option<u64> {
        None
    }

    /// The stored size of a blob in bytes, if that is known without reading it. For a library in an object store, of which a
    /// catalog was read that names the blob.
    fn stored_size(&self, _digest: &Digest) -> Option<u64> {
        None
    }

    /// Whether there is a catalog of this name, without listing all of them. None if that is not known.
    fn has_catalog(&self, _name: &CatalogName) -> Option<bool> {
        None
    }

    /// The profile that came with a catalog.
    fn profile(&self, _name: &CatalogName) -> Option<PathBuf> {
        None
    }

    /// Where the files of a catalog name the path in which it was built, if somebody has found that out already: the bytes for
    /// [`index::find::Finds::parse`]. The catalog is named by its SHA-256.
    fn finds(&self, _catalog: &[u8; 32]) -> Option<Vec<u8>> {
        None
    }

    /// The bytecode that came with a catalog: the bytes for [`bytecode::travel::unpack`]. Nothing is asked if `known` says
    /// that this machine has that of the catalog with this SHA-256.
    fn bytecode(&self, _name: &CatalogName, _known: &dyn Fn(&[u8; 32]) -> bool) -> Option<Vec<u8>> {
        None
    }

    /// Ends connections and threads, before this process forks. The next read makes new ones.
    fn pause(&self) {}

    /// How it goes with the store that the library is in. None for a library on this machine.
    fn contact(&self) -> Option<Contact> {
        None
    }

    /// Where a catalog is, for messages.
    fn catalog_place(&self, name: &CatalogName) -> String {
        format!("{}/catalog/{name}", self.name())
    }

    /// Where a blob is or would be, for messages.
    fn blob_place(&self, digest: &Digest) -> String {
        format!("{}/library/{}", self.name(), digest.fan_out().display())
    }
}

/// How long a read from a library may block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Latency {
    /// As long as a disk needs.
    Disk,
    /// As long as a network needs. Such a read must not occupy a thread that other requests need.
    Network,
}

/// What is wrong with a library in an object store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RemoteTrouble {
    /// The URL cannot be one, or this holofs has no support for it.
    Url,
    Missing,
    Denied,
    Silent,
    /// Its certificate is not trusted.
    Untrusted,
    Refused,
    /// `--offline`
    Offline,
}

/// An error of a library as a whole, or of one of its catalogs.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// There is no library at the given path.
    #[error("{path}: {why}")]
    NotALibrary {
        /// The path as given, made absolute.
        path: PathBuf,
        /// What is there instead.
        why: &'static str,
    },
    /// The zip archive is refused.
    #[error("archive {path}: {why}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The catalog is refused.
    #[error("catalog {place}: {source}")]
    Catalog {
        /// See [`Library::catalog_place`].
        place: String,
        /// The reason.
        source: CatalogError,
    },
    /// A library in an object store cannot be used. `why` begins with its URL.
    #[error("{why}")]
    Remote { why: String, kind: RemoteTrouble },
    /// A compiled index does not hold together.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A file or directory could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A thread that worked on the library panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl LibraryError {
    /// For `map_err` on an I/O call about a path.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
