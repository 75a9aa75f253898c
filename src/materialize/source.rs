//! Fills files with the content of lower nodes.
//!
//! A mounted space, a restore to a plain directory and a commit all need the same step: make an empty file hold what
//! node N holds in this space. [`Source`] does that step: it finds the node's blob, clones or copies its bytes, and
//! applies the relocations. It does not decide where the file is, which name it gets, or who may see it.
//!
//! Invariants: the library is only read, and nobody gets the bytes of a relocated file before they are relocated.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::io::Errno;

use super::clone::{self, CloneError, Cloner, Method};
use super::relocate::{self, Names, RelocateError};
use super::splice::{At, Place, Pushing, Same, Splicer};
use crate::library::Latency;
use crate::library::blob::direct::{Room, Unpacked};
use crate::library::blob::{BlobError, Blobs, Streamed};
use crate::library::digest::Digest;
use crate::library::index::{Index, IndexError, NodeId, NodeKind, Relocations};
use crate::library::memory::is_full;
use crate::settings::Strategy;
use crate::sys::{errno_of, fd};

/// Files up to this size are decompressed into memory and copied from there. A larger file goes through the blob
/// cache. Below this size a cache file (an inode, a rename, a verification) costs more than decompressing again.
pub const SMALL_FILE: u64 = 128 * 1024;

/// How much of a large file is read at once.
const PIECE: usize = 256 * 1024;

/// The content of an environment's files, as one space shows them.
#[derive(Debug)]
pub struct Source {
    index: Arc<Index>,
    blobs: Arc<Blobs>,
    names: Names,
    /// The whole paths, if the environment is shown at another path than the one for which it was built.
    place: Option<Place>,
    cloner: Cloner,
}

/// A regular file of the index.
#[derive(Clone, Copy, Debug)]
pub struct LowerFile<'a> {
    /// Its node in the index.
    pub node: NodeId,
    /// Size in bytes.
    pub size: u64,
    digest: Digest,
    relocations: Relocations<'a>,
    /// Size of the blob.
    stored: u64,
}

impl LowerFile<'_> {
    /// Whether the file is served from memory.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.size <= SMALL_FILE
    }

    /// Whether the bytes differ from the blob's.
    #[must_use]
    pub fn is_relocated(&self) -> bool {
        !self.relocations.is_empty()
    }
}

impl Source {
    /// The files of `index`, with the bytes of `blobs`, relocated as `names` and the index say.
    #[must_use]
    pub fn new(index: Arc<Index>, blobs: Arc<Blobs>, names: Names, strategy: Strategy) -> Self {
        let info = index.info();
        let place = info.placed.as_ref().map(|placed| Place {
            from: info.path.clone().into_bytes(),
            to: placed.path.clone().into_bytes(),
        });
        Self { index, blobs, names, place, cloner: Cloner::new(strategy) }
    }

    /// Looks up a regular file.
    ///
    /// # Errors
    /// When the node is not a regular file, or the index is damaged.
    pub fn file(&self, node: NodeId) -> Result<LowerFile<'_>, Error> {
        match self.index.node(node)?.kind {
            NodeKind::File { size, digest, relocations, stored, .. } => {
                Ok(LowerFile { node, size, digest, relocations, stored })
            }
            NodeKind::Dir { .. } | NodeKind::Symlink { .. } => Err(Error::NotAFile(node)),
        }
    }

    /// The node's path in the environment, for messages.
    #[must_use]
    pub fn path(&self, node: NodeId) -> String {
        self.index.path_of(node)
    }

    /// Whether a small blob is read without a long wait.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.blobs.latency() == Latency::Disk
    }

    /// Ends what waits for a library that is not near, with an error.
    pub fn pause(&self) {
        if !self.is_near() {
            self.blobs.pause();
        }
    }

    /// All bytes of a small file, if they are near. None if they have to be fetched.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn read_at_once(&self, file: &LowerFile<'_>) -> Result<Option<Vec<u8>>, Error> {
        if self.is_near() {
            return self.read(file).map(Some);
        }
        let read = self.blobs.read_at_once(&file.digest, file.stored);
        let bytes = read.map_err(|source| self.blob_error(file.node, source))?;
        bytes.map(|bytes| self.shown(file, bytes)).transpose()
    }

    /// All bytes of a file, in memory.
    ///
    /// # Errors
    /// When the blob or a relocation is bad.
    pub fn read(&self, file: &LowerFile<'_>) -> Result<Vec<u8>, Error> {
        let read = self.blobs.read_all(&file.digest, file.stored);
        self.shown(file, read.map_err(|source| self.blob_error(file.node, source))?)
    }

    /// The bytes of a blob as this space shows them.
    fn shown(&self, file: &LowerFile<'_>, mut bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        if let Some(mut splicer) = self.splicer(file, Vec::with_capacity(file.size as usize)) {
            let spliced = splicer.push(&bytes).and_then(|()| splicer.finish());
            return spliced.map_err(|source| self.relocate_error(file, source));
        }
        relocate::patch_bytes(&mut bytes, file.relocations.iter().map(|at| at.get()), &self.names)
            .map_err(|source| self.relocate_error(file, source))?;
        Ok(bytes)
    }

    /// A verified file with the bytes of the blob, before relocation. It must not be written to.
    ///
    /// # Errors
    /// When the blob is bad.
    pub fn open_blob(&self, file: &LowerFile<'_>) -> Result<File, Error> {
        self.blobs.open_raw(&file.digest, file.stored).map_err(|source| self.blob_error(file.node, source))
    }

    /// As [`Source::open_blob`], if the blob cache has a copy. The library is not read.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn kept(&self, file: &LowerFile<'_>) -> Result<Option<File>, Error> {
        self.blobs.kept(&file.digest, file.stored).map_err(|source| self.blob_error(file.node, source))
    }

    /// As [`Source::kept`], if the blob cache can share the extents of `from`, which may hold the bytes of the blob.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn adopt(&self, file: &LowerFile<'_>, from: &File) -> Result<Option<File>, Error> {
        let adopted = self.blobs.adopt(&file.digest, file.stored, from);
        adopted.map_err(|source| self.blob_error(file.node, source))
    }

    /// Whether the blob is read without waiting for a disk.
    #[must_use]
    pub fn is_in_memory(&self, file: &LowerFile<'_>) -> bool {
        self.blobs.is_in_memory(&file.digest)
    }

    /// The bytes of a blob, readable while it is still being unpacked. `failed` is called when the blob turns out to
    /// be bad after bytes of it were read.
    ///
    /// # Errors
    /// When the blob is bad.
    pub(super) fn stream(
        &self,
        file: &LowerFile<'_>,
        failed: impl FnOnce() + Send + 'static,
    ) -> Result<Streamed, Error> {
        self.blobs
            .stream(&file.digest, file.stored, failed)
            .map_err(|source| self.blob_error(file.node, source))
    }

    /// Makes the empty file `to` hold the content of `file`, and returns how the bytes were moved.
    ///
    /// # Errors
    /// When the blob or a relocation is bad, or `to` cannot be written. `to` then has undefined content.
    pub fn fill(&self, file: &LowerFile<'_>, to: &File) -> Result<Method, Error> {
        if file.is_small() && self.cloner.strategy() != Strategy::Reflink {
            let bytes = self.read(file)?;
            let written = to.write_all_at(&bytes, 0);
            written.map_err(|error| errno_of(&error)).map_err(self.os_error(file, "write"))?;
            return Ok(Method::Copy);
        }
        self.fill_from(&self.open_blob(file)?, file, to)
    }

    /// As [`Source::fill`], from the file of [`Source::open_blob`] or [`Source::kept`].
    ///
    /// # Errors
    /// As [`Source::fill`].
    pub fn fill_from(&self, blob: &File, file: &LowerFile<'_>, to: &File) -> Result<Method, Error> {
        if self.splice_to(file, blob, At::new(to, 0))? {
            return Ok(Method::Copy);
        }
        let done = self
            .cloner
            .clone_file(blob, to, file.size)
            .map_err(|source| Error::Clone { path: self.path(file.node), source })?;
        self.relocate(file, to)?;
        Ok(done)
    }

    /// Makes the empty file `to` hold the content of `file`, unpacked straight from the library: the blob cache gets no
    /// copy. For a restore, which needs each blob once.
    ///
    /// # Errors
    /// As [`Source::fill`].
    pub fn unpack(&self, file: &LowerFile<'_>, to: &File, room: &mut Room) -> Result<(), Error> {
        if let Some(splicer) = self.splicer(file, BufWriter::with_capacity(PIECE, At::new(to, 0))) {
            let mut pushing = Pushing::new(splicer);
            let unpacked = self.blobs.unpack_to(&file.digest, file.stored, &mut pushing);
            return match (pushing.end(), unpacked) {
                (_, Err(Unpacked::Blob(source))) => Err(self.blob_error(file.node, source)),
                (Err(source), _) => Err(self.relocate_error(file, source)),
                (Ok(_), Err(Unpacked::Write(source))) => Err(self.os_error(file, "write")(errno_of(&source))),
                (Ok(mut out), Ok(())) => {
                    out.flush().map_err(|error| errno_of(&error)).map_err(self.os_error(file, "write"))
                }
            };
        }
        if !self.blobs.is_read_at_once(file.size, room) {
            let unpacked = self.blobs.unpack_to(&file.digest, file.stored, &mut &*to);
            return unpacked
                .map_err(|error| match error {
                    Unpacked::Blob(source) => self.blob_error(file.node, source),
                    Unpacked::Write(source) => self.os_error(file, "write")(errno_of(&source)),
                })
                .and_then(|()| self.relocate(file, to));
        }
        let read = self.blobs.read_into(&file.digest, file.stored, room);
        let bytes = read.map_err(|source| self.blob_error(file.node, source))?;
        relocate::patch_bytes(bytes, file.relocations.iter().map(|at| at.get()), &self.names)
            .map_err(|source| self.relocate_error(file, source))?;
        let written = to.write_all_at(bytes, 0);
        written.map_err(|error| errno_of(&error)).map_err(self.os_error(file, "write"))
    }

    /// As [`Source::fill`], always by copying: for a `to` in memory.
    ///
    /// # Errors
    /// As [`Source::fill`].
    pub(super) fn fill_by_copy(&self, file: &LowerFile<'_>, to: &File) -> Result<(), Error> {
        let blob = self.open_blob(file)?;
        if self.splice_to(file, &blob, At::new(to, 0))? {
            return Ok(());
        }
        clone::copy(&blob, to, file.size)
            .map_err(|source| Error::Clone { path: self.path(file.node), source })?;
        self.relocate(file, to)
    }

    /// Brings the blob of a file into the cache, until `stop` is set. Returns whether it was unpacked now.
    ///
    /// # Errors
    /// When the blob is bad.
    pub fn prepare(&self, file: &LowerFile<'_>, stop: &AtomicBool) -> Result<bool, Error> {
        let prepared = self.blobs.prepare(&file.digest, file.stored, stop);
        prepared.map_err(|source| self.blob_error(file.node, source))
    }

    /// Whether `other`, a file of the same size, holds the content of `file`.
    ///
    /// # Errors
    /// When the blob or a relocation is bad, or `other` cannot be read.
    pub fn is_in(&self, file: &LowerFile<'_>, other: &File) -> Result<bool, Error> {
        let blob = if file.is_small() { None } else { Some(self.open_blob(file)?) };
        if let Some(blob) = &blob
            && self.place.is_some()
            && file.is_relocated()
        {
            let mut same = Same { other, at: 0, differs: None };
            return match (self.splice_to(file, blob, &mut same), same.differs) {
                (_, Some(Ok(()))) => Ok(false),
                (_, Some(Err(errno))) => Err(self.os_error(file, "read")(errno)),
                (compared, None) => compared.map(|_| true),
            };
        }
        let small = if blob.is_none() { self.read(file)? } else { Vec::new() };
        let (mut ours, mut theirs) = (vec![0; PIECE], vec![0; PIECE]);
        let mut at = 0;
        loop {
            let read = fd::read_full(other, at, &mut theirs).map_err(self.os_error(file, "read"))?;
            let theirs = theirs.get(..read).unwrap_or_default();
            let expected = match &blob {
                None => {
                    let start = usize::try_from(at).unwrap_or(usize::MAX).min(small.len());
                    small.get(start..small.len().min(start + PIECE)).unwrap_or_default()
                }
                Some(blob) => {
                    let read = fd::read_full(blob, at, &mut ours).map_err(self.os_error(file, "read"))?;
                    let ours = ours.get_mut(..read).unwrap_or_default();
                    relocate::patch_piece(ours, at, file.relocations.iter().map(|at| at.get()), &self.names);
                    &*ours
                }
            };
            if theirs != expected {
                return Ok(false);
            }
            if read < PIECE {
                return Ok(true);
            }
            at += PIECE as u64;
        }
    }

    /// Unpacks the blob of a large file into the cache, or starts reading the blob of a small one, until `stop` is set.
    ///
    /// # Errors
    /// When the blob is bad.
    pub fn warm(&self, node: NodeId, stop: &AtomicBool) -> Result<(), Error> {
        let file = self.file(node)?;
        let done = if file.is_small() && self.is_near() {
            self.blobs.read_ahead(&file.digest)
        } else {
            self.blobs.prepare(&file.digest, file.stored, stop).map(drop)
        };
        done.map_err(|source| self.blob_error(node, source))
    }

    /// The first files of the groups in which a library in an object store has `files`, each group once and in the order of
    /// the files. Files that are fetched alone are all there.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn one_of_each_group(&self, files: &[NodeId]) -> Result<Vec<NodeId>, Error> {
        let mut seen = HashSet::new();
        let mut first = Vec::new();
        for node in files {
            let Ok(file) = self.file(*node) else { continue };
            if self.blobs.group_of(&file.digest).is_none_or(|group| seen.insert(group)) {
                first.push(*node);
            }
        }
        Ok(first)
    }

    /// Makes an [`Error::Os`] of a step on a file.
    pub(super) fn os_error(&self, file: &LowerFile<'_>, call: &'static str) -> impl FnOnce(Errno) -> Error {
        let node = file.node;
        move |source| Error::Os { path: self.path(node), call, source }
    }

    /// Makes the bytes of a file of those of its blob, if it is one that names another path. None for all other files.
    fn splicer<W: Write>(&self, file: &LowerFile<'_>, out: W) -> Option<Splicer<'_, W>> {
        let place = self.place.as_ref().filter(|_| file.is_relocated())?;
        // The words belong to the index, as the file's do.
        let Ok(NodeKind::File { relocations, .. }) = self.index.node(file.node).map(|node| node.kind) else {
            return None;
        };
        Some(Splicer::new(relocations, &self.names, place, file.size, out))
    }

    /// Writes a file that names another path to `out`. Returns whether it is one.
    fn splice_to(&self, file: &LowerFile<'_>, blob: &File, out: impl Write) -> Result<bool, Error> {
        let Some(mut splicer) = self.splicer(file, BufWriter::with_capacity(PIECE, out)) else {
            return Ok(false);
        };
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        loop {
            let read = fd::read_full(blob, at, &mut piece).map_err(self.os_error(file, "read"))?;
            let pushed = splicer.push(piece.get(..read).unwrap_or_default());
            pushed.map_err(|source| self.relocate_error(file, source))?;
            at += read as u64;
            if read < PIECE {
                break;
            }
        }
        let mut out = splicer.finish().map_err(|source| self.relocate_error(file, source))?;
        out.flush().map_err(|error| errno_of(&error)).map_err(self.os_error(file, "write"))?;
        Ok(true)
    }

    fn relocate(&self, file: &LowerFile<'_>, to: &File) -> Result<(), Error> {
        relocate::patch_file(to, file.relocations.iter().map(|at| at.get()), &self.names)
            .map_err(|source| self.relocate_error(file, source))
    }

    /// Makes an [`Error::Blob`] of what is wrong with a file's blob.
    #[must_use]
    pub fn blob_error(&self, node: NodeId, source: impl Into<Arc<BlobError>>) -> Error {
        Error::Blob { path: self.path(node), source: source.into() }
    }

    fn relocate_error(&self, file: &LowerFile<'_>, source: RelocateError) -> Error {
        Error::Relocate { path: self.path(file.node), source }
    }
}

/// Why the bytes of a lower file cannot be provided. Each `path` is the file's path in the environment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The blob is missing, corrupt or unreadable.
    #[error("{path}: {source}")]
    Blob {
        /// Path in the environment.
        path: String,
        /// What is wrong with the blob.
        source: Arc<BlobError>,
    },
    /// The compiled index is inconsistent.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The node is not a file.
    #[error("node {0:?} is not a regular file")]
    NotAFile(NodeId),
    /// The catalog and the blob disagree about a relocation.
    #[error("{path}: {source}")]
    Relocate {
        /// Path in the environment.
        path: String,
        /// What is wrong with the relocation.
        source: RelocateError,
    },
    /// Copying the bytes into the private file failed.
    #[error("{path}: cannot make a private copy: {source}")]
    Clone {
        /// Path in the environment.
        path: String,
        /// The step that failed.
        source: CloneError,
    },
    /// A system call on one of the space's own files failed.
    #[error("{path}: {call}: {source}")]
    Os {
        /// Path in the environment.
        path: String,
        /// The step that failed.
        call: &'static str,
        /// Its errno.
        source: Errno,
    },
}

impl Error {
    /// Whether the cause is a full disk or an exceeded quota.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Clone { source: CloneError::Os { source, .. }, .. } | Self::Os { source, .. } => {
                matches!(*source, Errno::NOSPC | Errno::DQUOT)
            }
            Self::Relocate { source: RelocateError::Io { source, .. }, .. } => is_full(source),
            _ => false,
        }
    }
}
