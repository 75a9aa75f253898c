//! Provides the bytes of lower files to one mounted space: for reading, or as private copies.
//!
//! [`source`] combines blobs, relocations and the clone ladder. [`Materializer`] adds what belongs to a mounted space: the
//! staging directory, the relocated files that were only read, and caches of open files and small contents. The
//! namespace decides who may see a file, under which name, and whether its bytes are still the library's.
//!
//! Invariants: the library is only read. A relocated file is never shown without its relocations. Concurrent readers of a
//! relocated file materialize it once. Nothing here runs under the namespace's locks.

pub mod clone;
pub mod relocate;
mod relocated;
pub mod source;
mod splice;
pub mod staging;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::library::blob::Streamed;
use crate::library::index::NodeId;
use crate::library::memory::{LruBySize, Unkept};
use crate::library::profile::Touched;
use crate::library::stream::Filling;
use crate::metrics::{Counter, Metrics};
use crate::sys::{fd, plain};
use clone::Method;
use source::{LowerFile, Source};
use staging::{Staged, Staging};

pub use crate::library::MOTHER_TIME;
pub use source::{Error, SMALL_FILE};

/// Bytes of small files kept in memory. The kernel caches what it has read, so this only has to last for the few read
/// requests of one file.
const MEMORY_LIMIT: u64 = 4 * 1024 * 1024;

/// Limit of blobs and relocated files that are kept open. The limit is lower if this is more than a sixth of the
/// descriptors that the process may have.
const OPEN_LIMIT: usize = 256;

/// The bytes of a file, for reading.
#[derive(Clone, Debug)]
pub enum FileData {
    /// The cached copy of a blob, or a relocated file.
    File(Arc<File>),
    /// The space's own file.
    Upper(Arc<OwnedFd>),
    /// The whole content, in memory.
    Bytes(Arc<[u8]>),
    /// A blob that is being unpacked, and the node that it was opened for.
    Stream(Arc<Filling>, NodeId),
}

impl FileData {
    /// The file, unless the bytes are in memory or still being unpacked.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::File(file) => Some(file.as_fd()),
            Self::Upper(file) => Some(file.as_fd()),
            Self::Bytes(_) | Self::Stream(..) => None,
        }
    }
}

/// Called with the file that was read from a blob that turned out to be bad.
type BadBlob = Box<dyn Fn(NodeId) + Send + Sync>;

#[derive(Default)]
struct OnBadBlob(OnceLock<BadBlob>);

impl std::fmt::Debug for OnBadBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OnBadBlob").field(&self.0.get().is_some()).finish()
    }
}

/// A private copy of a lower file that is not visible yet.
#[derive(Debug)]
pub struct PrivateCopy {
    /// Open for reading and writing; mode 0600.
    pub file: File,
    /// The copy's name in the staging directory.
    pub staged: Staged,
}

/// Whether a space can share extents with its library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReflinkProbe {
    /// Whether FICLONE works from the blobs to the space.
    pub supported: bool,
    /// The reason, for messages.
    pub reason: String,
}

/// Materializes the files of one space.
#[derive(Debug)]
pub struct Materializer {
    source: Source,
    staging: Arc<Staging>,
    /// The directory of relocated files that were only read, named by node id.
    relocated: OwnedFd,
    /// Leaf locks, held for a map operation only.
    open: Mutex<LruCache<NodeId, Opened>>,
    memory: Mutex<LruBySize<NodeId, Arc<[u8]>>>,
    /// Relocated files kept in memory because the disk is full.
    unkept: Mutex<Unkept<NodeId>>,
    /// One lock per file that is being relocated, taken without any other; the map itself is a leaf lock.
    in_progress: Mutex<HashMap<NodeId, Arc<Mutex<()>>>>,
    /// Relocated files that [`Materializer::file`] handed out. A leaf lock.
    handed: Mutex<HashSet<NodeId>>,
    /// An earlier process may have handed out any relocated file.
    all_handed: AtomicBool,
    metrics: Arc<Metrics>,
    on_bad_blob: Arc<OnBadBlob>,
    /// The files that were read, in the order of their first read. A leaf lock.
    touched: Mutex<Touched>,
}

/// A file to read the bytes of a lower file from.
#[derive(Debug)]
enum Opened {
    File(Arc<File>),
    /// A blob that is being unpacked. The thread that unpacks it holds it.
    Stream(Weak<Filling>),
}

impl Materializer {
    /// Materializes the files of `source` in a space with these directories.
    #[must_use]
    pub fn new(source: Source, staging: Arc<Staging>, relocated: OwnedFd, metrics: Arc<Metrics>) -> Self {
        Self {
            source,
            staging,
            relocated,
            open: Mutex::new(LruCache::new(fd::share(OPEN_LIMIT, 6))),
            memory: Mutex::new(LruBySize::new(MEMORY_LIMIT)),
            unkept: Mutex::default(),
            in_progress: Mutex::new(HashMap::new()),
            handed: Mutex::default(),
            all_handed: AtomicBool::new(false),
            metrics,
            on_bad_blob: Arc::default(),
            touched: Mutex::default(),
        }
    }

    /// The content of the space's lower files.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Sets the callback for files that were read from a bad blob: the kernel has to drop their cached pages. Only
    /// the first call has an effect.
    pub fn when_bad(&self, tell: impl Fn(NodeId) + Send + Sync + 'static) {
        drop(self.on_bad_blob.0.set(Box::new(tell)));
    }

    /// The files that were read, in the order of their first read.
    #[must_use]
    pub fn touched(&self) -> Vec<NodeId> {
        self.touched.lock().order().to_vec()
    }

    /// The counters of the mount.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The bytes of a lower file, unless a large file has to be fetched first, or a slow library has to be asked. Then
    /// None: [`Materializer::fetch`] provides the bytes.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn at_once(&self, node: NodeId) -> Result<Option<FileData>, Error> {
        if let Some(bytes) = self.memory.lock().get(&node) {
            return Ok(Some(FileData::Bytes(bytes)));
        }
        match self.open.lock().get(&node) {
            Some(Opened::File(file)) => return Ok(Some(FileData::File(Arc::clone(file)))),
            Some(Opened::Stream(filling)) => {
                // After a failure the next read tries again: the library's blob may have been repaired.
                if let Some(filling) = filling.upgrade().filter(|filling| !filling.has_failed()) {
                    return Ok(Some(FileData::Stream(filling, node)));
                }
            }
            None => {}
        }
        let lower = self.source.file(node)?;
        if !lower.is_small() {
            return Ok(None);
        }
        let Some(bytes) = self.source.read_at_once(&lower)? else { return Ok(None) };
        self.touch(node);
        Ok(Some(self.keep_bytes(node, bytes)))
    }

    /// The bytes of a lower file as this space shows them, for reading. May take as long as fetching the file.
    ///
    /// # Errors
    /// See [`Error`]; a bad blob or relocation concerns this file only.
    pub fn fetch(&self, node: NodeId) -> Result<FileData, Error> {
        self.fetch_file(&self.source.file(node)?)
    }

    /// The bytes of a lower file, fetched first if necessary.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn data(&self, node: NodeId) -> Result<FileData, Error> {
        match self.at_once(node)? {
            Some(data) => Ok(data),
            None => self.fetch(node),
        }
    }

    fn fetch_file(&self, lower: &LowerFile<'_>) -> Result<FileData, Error> {
        let node = lower.node;
        self.touch(node);
        if lower.is_small() {
            let bytes = self.source.read(lower)?;
            return Ok(self.keep_bytes(node, bytes));
        }
        if lower.is_relocated() {
            return Ok(FileData::File(self.opened(lower)?));
        }
        let hook = Arc::clone(&self.on_bad_blob);
        let failed = move || {
            if let Some(tell) = hook.0.get() {
                tell(node);
            }
        };
        Ok(match self.source.stream(lower, failed)? {
            Streamed::Filling(filling) => {
                let closed_later = self.open.lock().push(node, Opened::Stream(Arc::downgrade(&filling)));
                drop(closed_later);
                FileData::Stream(filling, node)
            }
            Streamed::Whole(file) => FileData::File(self.keep(node, Arc::new(file))),
        })
    }

    /// Keeps the bytes of a small file for further reads.
    fn keep_bytes(&self, node: NodeId, bytes: Vec<u8>) -> FileData {
        let bytes: Arc<[u8]> = bytes.into();
        let dropped_later = self.memory.lock().put(node, Arc::clone(&bytes), bytes.len() as u64);
        drop(dropped_later);
        FileData::Bytes(bytes)
    }

    /// A file with the bytes of a lower file of any size, for the kernel to read without the daemon.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn file(&self, node: NodeId) -> Result<Arc<File>, Error> {
        let lower = self.source.file(node)?;
        if lower.is_relocated() {
            self.handed.lock().insert(node);
        }
        if let Some(Opened::File(file)) = self.open.lock().get(&node) {
            return Ok(Arc::clone(file));
        }
        self.touch(node);
        self.opened(&lower)
    }

    /// Lets no relocated file become the private copy of a writer: an earlier process may have handed it out.
    pub fn keep_relocated(&self) {
        self.all_handed.store(true, Ordering::Relaxed);
    }

    fn opened(&self, lower: &LowerFile<'_>) -> Result<Arc<File>, Error> {
        let file = if lower.is_relocated() {
            let gate = Arc::clone(self.in_progress.lock().entry(lower.node).or_default());
            let opened = {
                let _one_at_a_time = gate.lock();
                self.relocated_file(lower)
            };
            self.in_progress.lock().remove(&lower.node);
            opened?
        } else {
            Arc::new(self.source.open_blob(lower)?)
        };
        Ok(self.keep(lower.node, file))
    }

    /// Closes the files that are kept open for further reads.
    pub fn close_kept(&self) {
        let mut open = self.open.lock();
        let limit = open.cap();
        let closed_later = std::mem::replace(&mut *open, LruCache::new(limit));
        drop(open);
        drop(closed_later);
    }

    /// Keeps a file open for further reads.
    fn keep(&self, node: NodeId, file: Arc<File>) -> Arc<File> {
        // Files without a name are few and large; `unkept` holds them, here and in the blob cache.
        if fd::has_name(&*file).unwrap_or(false) {
            // Closed after the lock is released: closing a blob that was removed from the cache frees its blocks.
            let closed_later = self.open.lock().push(node, Opened::File(Arc::clone(&file)));
            drop(closed_later);
        }
        file
    }

    /// Whether a lower file is too large to be served from memory.
    #[must_use]
    pub fn is_large(&self, node: NodeId) -> bool {
        self.source.file(node).is_ok_and(|lower| !lower.is_small())
    }

    /// Whether reading a lower file may take long.
    #[must_use]
    pub fn is_slow(&self, node: NodeId) -> bool {
        !self.source.is_near() || self.is_large(node)
    }

    /// Whether [`Materializer::file`] may have to fetch a large file.
    #[must_use]
    pub fn must_fetch_much(&self, node: NodeId) -> bool {
        self.is_slow(node) && !matches!(self.open.lock().peek(&node), Some(Opened::File(_)))
    }

    /// A private copy of the first `len` bytes of a lower file.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left behind.
    pub fn private_copy(&self, node: NodeId, len: u64) -> Result<PrivateCopy, Error> {
        let lower = self.source.file(node)?;
        if len.min(lower.size) == 0 {
            return self.empty_copy(&lower);
        }
        // A file that was handed out may be mapped, so its bytes must stay the library's.
        let mine = lower.is_relocated()
            && !self.all_handed.load(Ordering::Relaxed)
            && !self.handed.lock().contains(&node);
        let promoted = if mine { self.promote(&lower)? } else { None };
        let copy = match promoted {
            Some(copy) => {
                // Later reads must not use the file that is going to be written to.
                self.forget_content(node);
                copy
            }
            None => self.whole_copy(&lower)?,
        };
        if len < lower.size {
            rustix::fs::ftruncate(&copy.file, len).map_err(self.source.os_error(&lower, "truncate"))?;
        }
        Ok(copy)
    }

    /// Tests, with a real FICLONE, whether blobs can be cloned into this space.
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
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cache = rustix::fs::open(cache_dir, flags, Mode::empty())
            .map_err(|errno| format!("cannot open the blob cache: {}", plain(&errno)))?;
        clone::probe(cache.as_fd(), self.staging.dir())
    }

    fn forget_content(&self, node: NodeId) {
        let closed_later = self.open.lock().pop(&node);
        drop(closed_later);
        let dropped_later = self.memory.lock().remove(&node);
        drop(dropped_later);
    }

    fn empty_copy(&self, lower: &LowerFile<'_>) -> Result<PrivateCopy, Error> {
        let made = self.staging.file();
        let (file, staged) = made.map_err(self.source.os_error(lower, "create a staging file"))?;
        Ok(PrivateCopy { file, staged })
    }

    /// A staged copy of the whole file, relocated.
    fn whole_copy(&self, lower: &LowerFile<'_>) -> Result<PrivateCopy, Error> {
        let copy = self.empty_copy(lower)?;
        let done = self.source.fill(lower, &copy.file)?;
        self.count(done, lower.size);
        Ok(copy)
    }

    /// Notes that bytes of a file are asked for.
    fn touch(&self, node: NodeId) {
        if self.metrics.touch(node.0) {
            self.touched.lock().add(node);
        }
    }

    fn count(&self, done: Method, size: u64) {
        match done {
            Method::Reflink => {
                self.metrics.add(Counter::Reflinked, 1);
                self.metrics.add(Counter::SharedBytes, size);
            }
            Method::CopyRange => self.metrics.add(Counter::CopiedInKernel, 1),
            Method::Copy => self.metrics.add(Counter::Copied, 1),
        }
        self.metrics.add(Counter::CopiedBytes, size);
    }
}
