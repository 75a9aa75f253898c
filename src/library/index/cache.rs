//! The cache of compiled indexes: a catalog is compiled when it is first seen, and mapped from then on.
//!
//! An index file is named by the SHA-256 of its catalog file. A stamp beside it says which catalog file (by device,
//! inode, size and time) has which sum, and how the index file looked when it was put in place, so that opening one
//! reads neither of them through. Invariant: an index is trusted without being read only while both look exactly as
//! they did; else the sums are computed anew, and a bad or old index is compiled again.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::compile::compile;
use super::format::VERSION;
use super::{Index, IndexError};
use crate::library::LibraryError;
use crate::library::catalog::limits::MAX_FILE;
use crate::library::catalog::{self, CatalogError};
use crate::library::catalogs::CatalogName;
use crate::library::digest::Hex;
use crate::library::look::Look;
use crate::sys::guarded::{self, Access, Durability, PART, Problem, Replace, Writers};

/// What is remembered of one catalog file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Stamp {
    catalog: Look,
    catalog_sha256: String,
    index: Look,
    /// All blobs that this file names were in its library.
    #[serde(default)]
    blobs_seen: bool,
}

/// Opens the index of a catalog, compiling it first when it is new, old or damaged.
///
/// # Errors
/// When the catalog is refused, or the cache cannot be written.
pub fn open_or_compile(catalog_path: &Path, cache_dir: &Path) -> Result<Index, LibraryError> {
    let named = CatalogName::of(catalog_path)
        .ok_or_else(|| refused(catalog_path, "its name is not that of a catalog of version 12".into()))?;
    make_dir(cache_dir)?;
    let mut index = match open_stamped(catalog_path, cache_dir) {
        Some(index) => index,
        None => open_or_compile_unstamped(catalog_path, cache_dir)?,
    };
    // Here and not in the compiler: an index is found by the catalog's content, whatever its name.
    if let Err(why) = named.complete(&mut index.info) {
        return Err(refused(catalog_path, why));
    }
    Ok(index)
}

fn refused(catalog_path: &Path, why: String) -> LibraryError {
    LibraryError::Catalog { path: catalog_path.to_owned(), source: CatalogError::BadHeader(why) }
}

/// The index of a catalog file that looks as it did when it was read last. Reads neither of them through, unless
/// the index looks otherwise than it did.
fn open_stamped(catalog_path: &Path, cache_dir: &Path) -> Option<Index> {
    let look = look_of(catalog_path).ok()?;
    let stamp_path = stamp_path(catalog_path, cache_dir);
    let stamp = read_stamp(&stamp_path).filter(|stamp| stamp.catalog == look)?;
    let path = index_path(cache_dir, &stamp.catalog_sha256);
    let unchanged = look_of(&path).is_ok_and(|now| now == stamp.index);
    let mut index = open_checked(&path, &stamp.catalog_sha256, !unchanged)?;
    if !unchanged {
        write_stamp(&stamp_path, look, &stamp.catalog_sha256, &path, stamp.blobs_seen);
    }
    index.blobs_seen = stamp.blobs_seen;
    Some(index)
}

fn open_or_compile_unstamped(catalog_path: &Path, cache_dir: &Path) -> Result<Index, LibraryError> {
    let (look, bytes) = read_whole(catalog_path)?;
    let sum: [u8; 32] = Sha256::digest(&bytes).into();
    let sum_text = Hex(&sum).to_string();
    let path = index_path(cache_dir, &sum_text);
    let stamp_path = stamp_path(catalog_path, cache_dir);
    // The same content, touched or copied: rcc touches a catalog at every restore.
    if let Some(index) = open_checked(&path, &sum_text, true) {
        write_stamp(&stamp_path, look, &sum_text, &path, false);
        return Ok(index);
    }
    let tree = catalog::parse_file(&bytes)
        .map_err(|source| LibraryError::Catalog { path: catalog_path.to_owned(), source })?;
    drop(bytes);
    sweep(cache_dir);
    let compiled = compile(&tree, sum)
        .map_err(|source| LibraryError::Compile { path: catalog_path.to_owned(), source })?;
    guarded::replace(&path, cached(Durability::Data), &compiled).map_err(LibraryError::io(&path))?;
    write_stamp(&stamp_path, look, &sum_text, &path, false);
    let opened = Index::open(&path).map_err(LibraryError::io(&path))?;
    opened.map_err(|error| LibraryError::Io { path, source: std::io::Error::other(error) })
}

/// Notes that all blobs of a catalog were seen in its library, unless the file has changed since `index` was opened.
pub fn note_blobs_seen(catalog_path: &Path, cache_dir: &Path, index: &Index) {
    let stamp_path = stamp_path(catalog_path, cache_dir);
    let sum = Hex(&index.catalog_sha256()).to_string();
    let noted = read_stamp(&stamp_path).filter(|stamp| stamp.catalog_sha256 == sum);
    if let Some(stamp) = noted.filter(|stamp| look_of(catalog_path).is_ok_and(|look| look == stamp.catalog)) {
        write_stamp(&stamp_path, stamp.catalog, &sum, &index_path(cache_dir, &sum), true);
    }
}

fn look_of(path: &Path) -> std::io::Result<Look> {
    std::fs::metadata(path).map(|found| Look::from(&found))
}

fn stamp_path(catalog_path: &Path, cache_dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(catalog_path).unwrap_or_else(|_| catalog_path.to_owned());
    let key: [u8; 32] = Sha256::digest(absolute.as_os_str().as_encoded_bytes()).into();
    let (key, _) = key.split_at(8);
    cache_dir.join(format!("{}.stamp", Hex(key)))
}

fn index_path(cache_dir: &Path, sum: &str) -> PathBuf {
    cache_dir.join(format!("{sum}.v{VERSION}.idx"))
}

/// The index of a catalog content that is there and good; with `whole`, its checksum is computed.
fn open_checked(path: &Path, sum: &str, whole: bool) -> Option<Index> {
    let opened = match Index::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => Err(error.to_string()),
        Ok(opened) => opened
            .and_then(|index| {
                if Hex(&index.catalog_sha256()).to_string() != sum {
                    return Err(IndexError("it is of another catalog"));
                }
                if whole {
                    index.verify()?
                };
                Ok(index)
            })
            .map_err(|error| error.to_string()),
    };
    opened.inspect_err(|why| tracing::warn!(path = %path.display(), %why, "compiling the catalog again")).ok()
}

/// A stamp is a sum and a few numbers.
const MAX_STAMP: u64 = 64 << 10;

fn read_stamp(path: &Path) -> Option<Stamp> {
    let text = guarded::read(path, MAX_STAMP).ok()?;
    let stamp: Stamp = serde_json::from_slice(&text).ok()?;
    // It becomes a part of a path.
    let is_sum =
        stamp.catalog_sha256.len() == 64 && stamp.catalog_sha256.bytes().all(|b| b.is_ascii_hexdigit());
    is_sum.then_some(stamp)
}

/// Notes how both files look. Without the note the next mount reads both through, and that is all.
fn write_stamp(path: &Path, catalog: Look, sum: &str, index: &Path, blobs_seen: bool) {
    let written = look_of(index).and_then(|index| {
        let stamp = Stamp { catalog, catalog_sha256: sum.to_owned(), index, blobs_seen };
        // After a loss of power a part of it is none, and the files are read through once.
        guarded::replace(path, cached(Durability::CacheOnly), &serde_json::to_vec(&stamp)?)
    });
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "cannot note that a catalog was compiled");
    }
}

/// A catalog file's bytes, and how it looked before and after they were read.
pub(crate) fn read_whole(path: &Path) -> Result<(Look, Vec<u8>), LibraryError> {
    let failed = |source| LibraryError::Io { path: path.to_owned(), source };
    // rcc writes catalogs in place: one that is being written is read once more.
    for _ in 0..3 {
        let file = guarded::open_file(path, Access::Read).map_err(|error| match error.problem {
            Problem::Os(errno) => failed(errno.into()),
            problem => refused(path, problem.to_string()),
        })?;
        let before = file.metadata().map_err(failed)?;
        let bytes = guarded::read_at_most(&file, MAX_FILE).map_err(|problem| match problem {
            Problem::Os(errno) => failed(errno.into()),
            problem => refused(path, problem.to_string()),
        })?;
        let after = file.metadata().map_err(failed)?;
        let look = Look::from(&before);
        if look == Look::from(&after) && bytes.len() as u64 == before.size() {
            return Ok((look, bytes));
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Err(failed(std::io::Error::other("it changes while it is read; is rcc recording?")))
}

/// How a file of the cache is written.
pub(crate) fn cached(durability: Durability) -> Replace {
    Replace { mode: 0o600, writers: Writers::Many, durability }
}

/// Removes what writers that died left half-written.
fn sweep(cache_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(cache_dir) else { return };
    for entry in entries.flatten() {
        let is_old = || Some(entry.metadata().ok()?.modified().ok()?.elapsed().ok()?.as_secs() > 3600);
        if entry.file_name().to_string_lossy().contains(PART)
            && is_old() == Some(true)
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(%error, "a half-written cache file stays");
        }
    }
}

/// Makes a directory of the cache, for its owner alone.
pub(crate) fn make_dir(path: &Path) -> Result<(), LibraryError> {
    // Making what is there already would wait for a disk that takes no write.
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(LibraryError::io(path))
}
