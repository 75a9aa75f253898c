//! Writes environments of a library into a zip archive, in the layout that rcc exports and imports.
//!
//! The archive holds the blobs and then the catalogs, as the library stores them, under the names `library/aa/bb/cc/<digest>`
//! and `catalog/<name>`. Members are not compressed again: blobs are compressed already, and holofs mounts such an archive
//! in place. Every blob is compared with its digest on the way.
//!
//! Small blobs are read and verified in parallel, some megabytes at a time, and then written in order. Large ones are
//! verified while they are written.
//!
//! Invariants: the same environments always give the same bytes: members are in the order of their names and have no
//! times. The archive gets its name when all of it is verified and on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressBar;
use rawzip::ZipArchiveWriter;
use serde::Serialize;

use super::blob::{BlobError, copy_stored};
use super::cancellable::Cancellable;
use super::catalog::{EntryKind, Tree, parse_whole};
use super::catalogs::CatalogName;
use super::digest::Digest;
use super::{Latency, Library, LibraryError};
use crate::sys::guarded::{Dir, Durability, GuardedError, Problem, Replace, Trust, Writers, odd_kind};
use crate::sys::process;
use crate::sys::thread::{self, Panicked};

/// Blobs of contents up to this size in bytes are read in parallel.
const SMALL: u64 = 4 << 20;
/// How many bytes of contents are read at once.
const BATCH: u64 = 64 << 20;
/// How many bytes are written at once.
const PIECE: usize = 1 << 20;

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A blob is missing, or is not what its digest says.
    #[error("catalog {catalog}: {source}")]
    Blob { catalog: CatalogName, source: BlobError },
    /// What has the name of the archive is not a file.
    #[error(transparent)]
    Guarded(#[from] GuardedError),
    /// The archive cannot be written.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// What was exported, with the keys of `holofs export --json`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Exported {
    /// The archive.
    pub path: PathBuf,
    /// The names of the catalogs.
    pub catalogs: Vec<String>,
    /// The number of blobs.
    pub blobs: usize,
    /// The size of the archive in bytes.
    pub bytes: u64,
    /// The blobs that the catalogs list for links, and that the library lacks. rcc takes such an environment for
    /// incomplete; holofs does not need them.
    pub missing_for_links: usize,
}

/// Exports catalogs of a library to the file `to`, which is replaced if it exists. `progress` makes the progress bar for a
/// number of bytes.
///
/// # Errors
/// See [`ExportError`]. Then `to` is as it was.
pub fn export(
    library: &dyn Library,
    catalogs: &BTreeSet<CatalogName>,
    to: &Path,
    progress: impl FnOnce(u64) -> ProgressBar,
    cancel: &AtomicBool,
) -> Result<Exported, ExportError> {
    let mut done = Exported { path: to.to_owned(), ..Exported::default() };
    let mut files = Vec::new();
    let mut blobs = BTreeMap::new();
    for name in catalogs {
        let (_, bytes) = library.catalog(name)?;
        let mut tree = parse_whole(&bytes)
            .map_err(|source| LibraryError::Catalog { place: library.catalog_place(name), source })?;
        done.missing_for_links += add_blobs(library, name, &mut tree, &mut blobs)?;
        files.push((name, bytes));
        done.catalogs.push(name.to_string());
    }
    done.blobs = blobs.len();
    let failed = |source| ExportError::Io { path: to.to_owned(), source };
    let name = to.file_name().ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?;
    let above = to.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = Dir::open(above, Trust::Shared)?;
    // A device such as /dev/null must not be replaced by a file.
    if let Some(kind) = dir.stat(name).ok().and_then(|found| odd_kind(found.st_mode)) {
        return Err(GuardedError { path: to.to_owned(), problem: Problem::NotAFile(kind) }.into());
    }
    let progress = progress(blobs.values().map(|blob| blob.size).sum());
    let mut blobs: Vec<_> = blobs.into_values().collect();
    if library.latency() == Latency::Network {
        // Those that are fetched together, one after the other.
        blobs.sort_by_cached_key(|blob| library.position(&blob.digest));
    }
    let writing = Writing { library, progress: &progress, cancel, to };
    let mut outcome = None;
    let how = Replace { mode: 0o666, writers: Writers::Many, durability: Durability::DataAndName };
    let replaced = dir.replace(name, how, |file| {
        let written = writing.archive(file, &blobs, &files);
        done.bytes = file.metadata()?.len();
        let result = if written.is_ok() { Ok(()) } else { Err(io::Error::other("not written")) };
        outcome = Some(written);
        result
    });
    progress.finish_and_clear();
    outcome.unwrap_or(Ok(()))?;
    replaced.map_err(failed)?;
    Ok(done)
}

/// A blob to be exported.
struct Wanted<'n> {
    digest: Digest,
    /// The size of its content in bytes.
    size: u64,
    /// The first catalog that names it.
    catalog: &'n CatalogName,
}

/// Adds the blobs of a catalog: those of its files, and those of links that the library has. Returns the number of blobs of
/// links that the library lacks.
fn add_blobs<'n>(
    library: &dyn Library,
    catalog: &'n CatalogName,
    tree: &mut Tree,
    blobs: &mut BTreeMap<Digest, Wanted<'n>>,
) -> Result<usize, LibraryError> {
    for entry in &tree.entries {
        if let EntryKind::File { size, digest, .. } = entry.kind
            && let Some(digest) = tree.digests.get(digest as usize)
        {
            blobs.entry(*digest).or_insert(Wanted { digest: *digest, size, catalog });
        }
    }
    let mut missing = 0;
    for (digest, size) in std::mem::take(&mut tree.linked) {
        if blobs.contains_key(&digest) {
            continue;
        }
        if library.has_blob(&digest).map_err(LibraryError::io(library.blob_place(&digest)))? {
            blobs.insert(digest, Wanted { digest, size, catalog });
        } else {
            missing += 1;
        }
    }
    Ok(missing)
}

/// What the steps of writing share.
struct Writing<'a> {
    library: &'a dyn Library,
    progress: &'a ProgressBar,
    cancel: &'a AtomicBool,
    to: &'a Path,
}

impl Writing<'_> {
    fn archive(
        &self,
        file: &mut File,
        blobs: &[Wanted<'_>],
        catalogs: &[(&CatalogName, Vec<u8>)],
    ) -> Result<(), ExportError> {
        let out = BufWriter::with_capacity(PIECE, file);
        let mut zip = ZipArchiveWriter::builder().with_capacity(blobs.len() + catalogs.len()).build(out);
        let mut rest = blobs;
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(batch(rest));
            rest = later;
            self.batch(&mut zip, batch)?;
        }
        for (name, bytes) in catalogs {
            self.member(&mut zip, &format!("catalog/{name}"), |out| Ok(out.write_all(bytes)))?;
        }
        let mut out = zip.finish().map_err(|error| self.failed(of_zip(error)))?;
        out.flush().map_err(|error| self.failed(error))
    }

    fn batch(&self, zip: &mut Zip<'_>, blobs: &[Wanted<'_>]) -> Result<(), ExportError> {
        let read: Vec<_> = blobs.iter().map(|blob| (blob, OnceLock::new())).collect();
        thread::for_each(
            &read,
            process::processors(),
            || (),
            |(), (blob, slot)| {
                self.go_on()?;
                if blob.size <= SMALL {
                    let mut stored = Vec::new();
                    self.copy(blob, &mut stored)?.map_err(|error| self.failed(error))?;
                    slot.get_or_init(|| stored);
                }
                Ok::<(), ExportError>(())
            },
        )?;
        for (blob, stored) in &read {
            self.go_on()?;
            let name = format!("library/{}", blob.digest.fan_out().display());
            self.member(zip, &name, |out| match stored.get() {
                Some(stored) => Ok(out.write_all(stored)),
                None => self.copy(blob, &mut Cancellable { inner: out, cancel: self.cancel }),
            })?;
            self.progress.inc(blob.size);
        }
        Ok(())
    }

    fn copy(&self, blob: &Wanted<'_>, out: &mut dyn Write) -> Result<io::Result<()>, ExportError> {
        copy_stored(self.library, &blob.digest, blob.size, out)
            .map_err(|source| ExportError::Blob { catalog: blob.catalog.clone(), source })
    }

    fn member(
        &self,
        zip: &mut Zip<'_>,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> Result<io::Result<()>, ExportError>,
    ) -> Result<(), ExportError> {
        let failed = |error| self.failed(of_zip(error));
        let (mut entry, config) = zip.new_file(name).start().map_err(failed)?;
        let mut out = config.wrap(&mut entry);
        let filled = fill(&mut out)?;
        self.go_on()?;
        filled.map_err(|error| self.failed(error))?;
        let (_, described) = out.finish().map_err(failed)?;
        entry.finish(described).map_err(failed)?;
        Ok(())
    }

    fn go_on(&self) -> Result<(), ExportError> {
        if self.cancel.load(Ordering::Relaxed) { Err(ExportError::Interrupted) } else { Ok(()) }
    }

    fn failed(&self, source: io::Error) -> ExportError {
        ExportError::Io { path: self.to.to_owned(), source }
    }
}

type Zip<'f> = ZipArchiveWriter<BufWriter<&'f mut File>>;

/// How many of the first blobs are read together.
fn batch(blobs: &[Wanted<'_>]) -> usize {
    let mut room = BATCH;
    let fits = |blob: &&Wanted<'_>| {
        let size = if blob.size <= SMALL { blob.size } else { 0 };
        let left = room.checked_sub(size);
        room = left.unwrap_or_default();
        left.is_some()
    };
    blobs.iter().take_while(fits).count().max(1)
}

/// The error of the system in an error of the writer, if there is one.
fn of_zip(error: rawzip::Error) -> io::Error {
    match error.into_kind() {
        rawzip::ErrorKind::IO(error) => error,
        other => io::Error::other(rawzip::Error::from(other)),
    }
}
