//! How the bytes of a lower file are had: to read them, or to own them.
//!
//! It knows blobs, relocations and the clone ladder; it does not know the namespace: who may see a file, under
//! which name, and whether it was changed is decided above. Invariants: the library is only read; a relocated
//! file is never shown unpatched; nothing here runs under the namespace's locks, and two readers of one
//! relocated file materialize it once.

pub mod clone;
pub mod relocate;
mod relocated;
pub mod staging;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::library::blob::{BlobError, Blobs, Streamed};
use crate::library::digest::Digest;
use crate::library::index::{Index, IndexError, NodeId, NodeKind, Relocations};
use crate::library::profile::Touched;
use crate::library::stream::Filling;
use crate::library::unkept::{Unkept, is_full};
use crate::settings::Strategy;
use crate::sys::{fd, plain};
use clone::{CloneError, Cloned, Cloner, Method};
use relocate::{Names, RelocateError};
use staging::{Staged, Staging};

pub use crate::library::MOTHER_TIME;

/// Files up to this many bytes are served from memory, and copied rather than cached and cloned: below it a
/// cache file would cost more (an inode, a rename, a verification) than decompressing again.
pub const SMALL_FILE: u64 = 128 * 1024;

/// Bytes of small files kept in memory. The kernel caches what it read, so this only has to span the few read
/// requests of one file.
const MEMORY_LIMIT: usize = 4 * 1024 * 1024;

/// Descriptors of blobs and relocated files kept open: so many, and no more than a sixth of what the process may have.
const OPEN_LIMIT: NonZeroUsize = match NonZeroUsize::new(256) {
    Some(limit) => limit,
    None => NonZeroUsize::MIN,
};

/// Why a lower file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The blob is missing, corrupt or unreadable.
    #[error("{path}: {source}")]
    Blob {
        /// The file's path in the environment.
        path: String,
        /// What is wrong with the blob.
        source: BlobError,
    },
    /// The compiled index does not hold together.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The node is not a file.
    #[error("node {0:?} is not a regular file")]
    NotAFile(NodeId),
    /// Catalog and blob disagree about a relocation.
    #[error("{path}: {source}")]
    Relocate {
        /// The file's path in the environment.
        path: String,
        /// What is wrong.
        source: RelocateError,
    },
    /// The private copy could not be made.
    #[error("{path}: cannot make a private copy: {source}")]
    Clone {
        /// The file's path in the environment.
        path: String,
        /// Why.
        source: CloneError,
    },
    /// A call on the space's own files failed.
    #[error("{path}: {call}: {source}")]
    Os {
        /// The file's path in the environment.
        path: String,
        /// What was tried.
        call: &'static str,
        /// The answer.
        source: Errno,
    },
}

impl Error {
    /// Whether it says that the disk is full.
    fn says_full(&self) -> bool {
        match self {
            Self::Clone { source: CloneError::Os { source, .. }, .. } | Self::Os { source, .. } => {
                matches!(*source, Errno::NOSPC | Errno::DQUOT)
            }
            Self::Relocate { source: RelocateError::Io { source, .. }, .. } => is_full(source),
            _ => false,
        }
    }
}

/// The bytes of a lower file, for reading.
#[derive(Clone, Debug)]
pub enum FileData {
    /// A blob, its cached copy, or a relocated file, to read from by offset.
    File(Arc<File>),
    /// The space's own file.
    Upper(Arc<OwnedFd>),
    /// All of it, in memory.
    Bytes(Arc<[u8]>),
    /// A blob that is being unpacked; the node is asked for again if that fails.
    Stream(Arc<Filling>, NodeId),
}

impl FileData {
    /// The file behind it, when there is one.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::File(file) => Some(file.as_fd()),
            Self::Upper(file) => Some(file.as_fd()),
            Self::Bytes(_) | Self::Stream(..) => None,
        }
    }
}

/// Told which file was read from a blob that turned out to be bad.
type BadBlob = Box<dyn Fn(NodeId) + Send + Sync>;

/// Where to tell it, once somebody wants to know.
#[derive(Default)]
struct OnBadBlob(OnceLock<BadBlob>);

impl std::fmt::Debug for OnBadBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OnBadBlob").field(&self.0.get().is_some()).finish()
    }
}

/// A private, not yet visible copy of a lower file.
#[derive(Debug)]
pub struct PrivateCopy {
    /// Open for reading and writing; mode 0600.
    pub file: File,
    /// Its name in the staging directory.
    pub staged: Staged,
}

/// What was materialized so far, as `holofs status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Private copies whose extents are shared with their blob.
    pub reflink: u64,
    /// Private copies that were copied.
    pub copy: u64,
    /// Relocated files given a backing file to read from.
    pub relocated: u64,
    /// Bytes of all private copies.
    pub bytes: u64,
    /// Bytes of them that are shared.
    pub bytes_shared: u64,
}

#[derive(Debug, Default)]
struct Counters {
    reflink: AtomicU64,
    copy: AtomicU64,
    relocated: AtomicU64,
    bytes: AtomicU64,
    bytes_shared: AtomicU64,
}

/// The answer to "does this space share extents with its library?".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReflinkProbe {
    /// Whether FICLONE works from the blobs to the space.
    pub supported: bool,
    /// Why not, or how it is known.
    pub reason: String,
}

/// Materializes the files of one space.
#[derive(Debug)]
pub struct Materializer {
    index: Arc<Index>,
    blobs: Arc<Blobs>,
    cloner: Cloner,
    names: Names,
    staging: Arc<Staging>,
    /// The directory of patched files that were only read, named by node id.
    relocated: OwnedFd,
    /// Leaf locks, held for a map operation only.
    open: Mutex<LruCache<NodeId, Arc<File>>>,
    memory: Mutex<Memory>,
    /// Patched files that the disk has no room for.
    unkept: Mutex<Unkept<NodeId>>,
    /// One lock per file that is being relocated, taken without any other; the map itself is a leaf lock.
    in_progress: Mutex<HashMap<NodeId, Arc<Mutex<()>>>>,
    /// Relocated files whose backing file was given away to be read, by [`Materializer::file`]: a leaf lock.
    handed: Mutex<HashSet<NodeId>>,
    counters: Counters,
    on_bad_blob: Arc<OnBadBlob>,
    /// The files that were read so far, in the order in which they were first. A leaf lock.
    touched: Mutex<Touched>,
}

#[derive(Debug)]
struct Memory {
    entries: LruCache<NodeId, Arc<[u8]>>,
    bytes: usize,
}

/// What the index says of a file.
struct LowerFile<'a> {
    size: u64,
    digest: Digest,
    relocations: Relocations<'a>,
}

impl Materializer {
    /// For one space: its index, the blobs, its staging and `relocated` directories, and the two names.
    #[must_use]
    pub fn new(
        index: Arc<Index>,
        blobs: Arc<Blobs>,
        strategy: Strategy,
        names: Names,
        staging: Arc<Staging>,
        relocated: OwnedFd,
    ) -> Self {
        Self {
            index,
            blobs,
            cloner: Cloner::new(strategy),
            names,
            staging,
            relocated,
            open: Mutex::new(LruCache::new(fd::share(OPEN_LIMIT, 6))),
            memory: Mutex::new(Memory { entries: LruCache::unbounded(), bytes: 0 }),
            unkept: Mutex::default(),
            in_progress: Mutex::new(HashMap::new()),
            handed: Mutex::default(),
            counters: Counters::default(),
            on_bad_blob: Arc::default(),
            touched: Mutex::default(),
        }
    }

    /// Sets who is told, once, when a file was read from a blob that then turned out to be bad: what the kernel keeps
    /// of it has to go.
    pub fn when_bad(&self, tell: impl Fn(NodeId) + Send + Sync + 'static) {
        // Set a second time the first stays: there is one kernel to tell.
        drop(self.on_bad_blob.0.set(Box::new(tell)));
    }

    /// The files that were read so far, in the order in which they were first.
    #[must_use]
    pub fn touched(&self) -> Vec<NodeId> {
        self.touched.lock().order().to_vec()
    }

    /// Unpacks what reading a file would have to unpack, as far as it is kept on disk, or lets the kernel read what
    /// is small, until `stop` is set. It does nothing that reading would not do.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn warm(&self, node: NodeId, stop: &AtomicBool) -> Result<(), Error> {
        let lower = self.lower_file(node)?;
        let done = if lower.size > SMALL_FILE {
            self.blobs.prepare(&lower.digest, lower.size, stop).map(drop)
        } else {
            self.blobs.read_ahead(&lower.digest)
        };
        done.map_err(|source| Error::Blob { path: self.lower_path(node), source })
    }

    /// What was materialized since the mount.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            reflink: read(&self.counters.reflink),
            copy: read(&self.counters.copy),
            relocated: read(&self.counters.relocated),
            bytes: read(&self.counters.bytes),
            bytes_shared: read(&self.counters.bytes_shared),
        }
    }

    /// The path of a node in the catalog, for messages.
    #[must_use]
    pub fn lower_path(&self, node: NodeId) -> String {
        self.index.path_of(node)
    }

    /// The bytes of a lower file as this space shows them, for reading.
    ///
    /// # Errors
    /// See [`Error`]; a bad blob or relocation concerns this file only.
    pub fn content(&self, node: NodeId) -> Result<FileData, Error> {
        if let Some(bytes) = self.memory.lock().entries.get(&node) {
            return Ok(FileData::Bytes(Arc::clone(bytes)));
        }
        if let Some(file) = self.open.lock().get(&node) {
            return Ok(FileData::File(Arc::clone(file)));
        }
        self.touched.lock().add(node);
        let lower = self.lower_file(node)?;
        if lower.size <= SMALL_FILE {
            let bytes: Arc<[u8]> = self.small_content(node, &lower)?.into();
            self.remember(node, &bytes);
            return Ok(FileData::Bytes(bytes));
        }
        if lower.relocations.is_empty() {
            let hook = Arc::clone(&self.on_bad_blob);
            let failed = move || {
                if let Some(tell) = hook.0.get() {
                    tell(node);
                }
            };
            let streamed = self.blobs.stream(&lower.digest, lower.size, failed);
            match streamed.map_err(|source| Error::Blob { path: self.lower_path(node), source })? {
                Streamed::Filling(filling) => return Ok(FileData::Stream(filling, node)),
                Streamed::Whole(file) => return Ok(FileData::File(self.keep(node, Arc::new(file)))),
            }
        }
        Ok(FileData::File(self.opened(node, &lower)?))
    }

    /// A file with the bytes of a lower file, whatever its size: what passthrough hands to the kernel.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn file(&self, node: NodeId) -> Result<Arc<File>, Error> {
        let lower = self.lower_file(node)?;
        if !lower.relocations.is_empty() {
            self.handed.lock().insert(node);
        }
        if let Some(file) = self.open.lock().get(&node) {
            return Ok(Arc::clone(file));
        }
        self.touched.lock().add(node);
        self.opened(node, &lower)
    }

    fn opened(&self, node: NodeId, lower: &LowerFile<'_>) -> Result<Arc<File>, Error> {
        let file = if lower.relocations.is_empty() {
            Arc::new(self.raw(node, lower)?)
        } else {
            let gate = Arc::clone(self.in_progress.lock().entry(node).or_default());
            let opened = {
                let _one_at_a_time = gate.lock();
                self.relocated_file(node, lower)
            };
            self.in_progress.lock().remove(&node);
            opened?
        };
        Ok(self.keep(node, file))
    }

    /// Closes the files that are kept open for the next reads.
    pub fn close_kept(&self) {
        let mut open = self.open.lock();
        let limit = open.cap();
        let closed_later = std::mem::replace(&mut *open, LruCache::new(limit));
        drop(open);
        drop(closed_later);
    }

    /// Keeps a file open for the next reads.
    fn keep(&self, node: NodeId, file: Arc<File>) -> Arc<File> {
        // Those without a name are few and large: `unkept` has them, here and for blobs.
        if fd::has_name(&*file).unwrap_or(false) {
            // Closed after the lock is released: a blob that was removed from the cache meanwhile frees its blocks then.
            let closed_later = self.open.lock().push(node, Arc::clone(&file));
            drop(closed_later);
        }
        file
    }

    /// Whether a lower file is larger than what is served from memory.
    #[must_use]
    pub fn is_large(&self, node: NodeId) -> bool {
        self.lower_file(node).is_ok_and(|lower| lower.size > SMALL_FILE)
    }

    /// Whether [`Materializer::content`] would have to fetch a large file first.
    #[must_use]
    pub fn must_fetch_much(&self, node: NodeId) -> bool {
        self.is_large(node) && !self.open.lock().contains(&node)
    }

    /// A private copy of the first `len` bytes of a lower file (of all of it when `len` is its size).
    ///
    /// # Errors
    /// See [`Error`]; nothing is left behind.
    pub fn private_copy(&self, node: NodeId, len: u64) -> Result<PrivateCopy, Error> {
        let lower = self.lower_file(node)?;
        let os = |call| move |source| Error::Os { path: self.lower_path(node), call, source };
        let len = len.min(lower.size);
        if len == 0 {
            let (file, staged) = self.staging.file().map_err(os("create a staging file"))?;
            return Ok(PrivateCopy { file, staged });
        }
        // A file that was given away may be mapped: its bytes stay the library's.
        let mine = !lower.relocations.is_empty() && !self.handed.lock().contains(&node);
        let promoted = if mine { self.promote(node, &lower)? } else { None };
        let copy = match promoted {
            Some(copy) => {
                // What reads from it now must not go on doing so once it is written to.
                self.forget_content(node);
                copy
            }
            None => self.patched_copy(node, &lower)?,
        };
        if len < lower.size {
            rustix::fs::ftruncate(&copy.file, len).map_err(os("truncate"))?;
        }
        Ok(copy)
    }

    /// Asks the filesystems, once, whether blobs can be cloned into this space: a real FICLONE of two files.
    #[must_use]
    pub fn probe_reflink(&self, cache_dir: &std::path::Path) -> ReflinkProbe {
        match self.try_reflink(cache_dir) {
            Ok(()) => {
                ReflinkProbe { supported: true, reason: "FICLONE from the blobs to the space works".into() }
            }
            Err(reason) => ReflinkProbe { supported: false, reason },
        }
    }

    fn try_reflink(&self, cache_dir: &std::path::Path) -> Result<(), String> {
        let fail = |what: &'static str| move |errno: Errno| format!("{what}: {}", plain(&errno));
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let source = rustix::fs::openat(rustix::fs::CWD, cache_dir, flags, Mode::RUSR | Mode::WUSR)
            .map_err(fail("cannot make a probe file in the blob cache"))?;
        rustix::io::write(&source, &[0u8; 8192]).map_err(fail("cannot write a probe file"))?;
        let (target, _staged) = self.staging.file().map_err(fail("cannot make a probe file in the space"))?;
        rustix::fs::ioctl_ficlone(&target, &source).map_err(fail("FICLONE"))
    }

    fn lower_file(&self, node: NodeId) -> Result<LowerFile<'_>, Error> {
        match self.index.node(node)?.kind {
            NodeKind::File { size, digest, relocations, .. } => Ok(LowerFile { size, digest, relocations }),
            NodeKind::Dir { .. } | NodeKind::Symlink { .. } => Err(Error::NotAFile(node)),
        }
    }

    fn raw(&self, node: NodeId, lower: &LowerFile<'_>) -> Result<File, Error> {
        self.blobs
            .open_raw(&lower.digest, lower.size)
            .map_err(|source| Error::Blob { path: self.lower_path(node), source })
    }

    fn small_content(&self, node: NodeId, lower: &LowerFile<'_>) -> Result<Vec<u8>, Error> {
        let mut bytes = self
            .blobs
            .read_all(&lower.digest, lower.size)
            .map_err(|source| Error::Blob { path: self.lower_path(node), source })?;
        relocate::patch_bytes(&mut bytes, lower.relocations.iter(), &self.names)
            .map_err(|source| Error::Relocate { path: self.lower_path(node), source })?;
        Ok(bytes)
    }

    fn remember(&self, node: NodeId, bytes: &Arc<[u8]>) {
        let mut memory = self.memory.lock();
        memory.bytes += bytes.len();
        if let Some(old) = memory.entries.put(node, Arc::clone(bytes)) {
            memory.bytes -= old.len();
        }
        while memory.bytes > MEMORY_LIMIT {
            let Some((_, old)) = memory.entries.pop_lru() else { break };
            memory.bytes -= old.len();
        }
    }

    fn forget_content(&self, node: NodeId) {
        let closed_later = self.open.lock().pop(&node);
        drop(closed_later);
        let mut memory = self.memory.lock();
        if let Some(old) = memory.entries.pop(&node) {
            memory.bytes -= old.len();
        }
    }

    /// A staged, patched copy of the whole file.
    fn patched_copy(&self, node: NodeId, lower: &LowerFile<'_>) -> Result<PrivateCopy, Error> {
        let os = |call| move |source| Error::Os { path: self.lower_path(node), call, source };
        let (file, staged) = self.staging.file().map_err(os("create a staging file"))?;
        let in_memory = lower.size <= SMALL_FILE && self.cloner.strategy() != Strategy::Reflink;
        let done = if in_memory {
            let bytes = self.small_content(node, lower)?;
            write_all(&file, &bytes).map_err(os("write"))?;
            Cloned { method: Method::Copy, refused: None }
        } else {
            let source = self.raw(node, lower)?;
            let done = self
                .cloner
                .clone_file(&source, &file, lower.size)
                .map_err(|source| Error::Clone { path: self.lower_path(node), source })?;
            relocate::patch_file(&file, lower.relocations.iter(), &self.names)
                .map_err(|source| Error::Relocate { path: self.lower_path(node), source })?;
            done
        };
        self.count(done, lower.size);
        Ok(PrivateCopy { file, staged })
    }

    fn count(&self, done: Cloned, size: u64) {
        let add = |counter: &AtomicU64, n| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        match done.method {
            Method::Reflink => {
                add(&self.counters.reflink, 1);
                add(&self.counters.bytes_shared, size);
            }
            Method::CopyRange | Method::Copy => add(&self.counters.copy, 1),
        }
        add(&self.counters.bytes, size);
    }
}

fn write_all(file: &File, bytes: &[u8]) -> Result<(), Errno> {
    let mut at = 0usize;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pwrite(file, rest, at as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => at += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
