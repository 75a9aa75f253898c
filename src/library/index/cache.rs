//! The cache of compiled indexes: a catalog is compiled when it is first used, and its index is mapped from then on.
//!
//! The name of an index file is the SHA-256 of its catalog. Computing that sum, or verifying the index, takes time that
//! grows with the environment. So a small note in the cache records the stamp of each catalog, its sum, and the look of its
//! index file.
//!
//! Invariant: an index is used without verification only while the catalog has the same stamp and the index file the same
//! look as in the note. Otherwise the sums are computed again. A damaged index, and one of another version, is compiled
//! again.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::compile::compile;
use super::format::VERSION;
use super::{Index, IndexError};
use crate::library::cache_dir::{cached, make_dir, sweep};
use crate::library::catalog::{self, CatalogError};
use crate::library::catalogs::{CatalogName, CatalogStamp};
use crate::library::digest::Hex;
use crate::library::look::Look;
use crate::library::{Library, LibraryError};
use crate::sys::guarded::{self, Durability, PART};

/// The note about one catalog.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Note {
    stamp: CatalogStamp,
    catalog_sha256: String,
    index: Look,
    /// Whether all blobs that the catalog names were in its library.
    blobs_seen: bool,
}

/// Opens the index of a catalog. Compiles the catalog first when it is new, or its index is old or damaged.
///
/// # Errors
/// When the catalog is refused, or the cache cannot be written.
pub fn open_or_compile(
    library: &dyn Library,
    name: &CatalogName,
    cache_dir: &Path,
) -> Result<Index, LibraryError> {
    if let Some(index) = open_known(library, name, cache_dir) {
        return index;
    }
    make_dir(cache_dir)?;
    let (stamp, bytes) = library.catalog(name)?;
    let sum: [u8; 32] = Sha256::digest(&bytes).into();
    let sum_text = Hex(&sum).to_string();
    let path = index_path(cache_dir, &sum_text);
    // There is an index if the catalog was touched or copied. rcc touches a catalog at every restore.
    let index = match open_checked(&path, &sum_text, true) {
        Some(index) => index,
        None => {
            let refused = |source| LibraryError::Catalog { place: library.catalog_place(name), source };
            let tree = catalog::parse_file(&bytes).map_err(refused)?;
            drop(bytes);
            sweep(cache_dir, PART);
            let compiled = compile(&tree, sum).map_err(refused)?;
            guarded::replace(&path, cached(Durability::Data), &compiled).map_err(LibraryError::io(&path))?;
            Index::open(&path).map_err(LibraryError::io(&path))?
        }
    };
    write_note(&note_path(library, name, cache_dir), stamp, &sum_text, &path, false);
    checked_name(library, name, index)
}

/// Opens the index of a catalog that has not changed since it was compiled, without reading either. None if the catalog
/// must be read.
///
/// # Errors
/// When the catalog contradicts its name.
pub fn open_known(
    library: &dyn Library,
    name: &CatalogName,
    cache_dir: &Path,
) -> Option<Result<Index, LibraryError>> {
    let stamp = library.catalog_stamp(name).ok()?;
    let note_path = note_path(library, name, cache_dir);
    let note = read_note(&note_path).filter(|note| note.stamp == stamp)?;
    let path = index_path(cache_dir, &note.catalog_sha256);
    let unchanged = look_of(&path).is_ok_and(|now| now == note.index);
    let mut index = open_checked(&path, &note.catalog_sha256, !unchanged)?;
    if !unchanged {
        write_note(&note_path, stamp, &note.catalog_sha256, &path, note.blobs_seen);
    }
    index.blobs_seen = note.blobs_seen;
    Some(checked_name(library, name, index))
}

/// Opens the index of the catalog with this SHA-256 (in hex), whether or not a library still has that catalog. Reads all
/// of it. None if the cache does not have it.
#[must_use]
pub fn open_by_sum(sum: &str, cache_dir: &Path) -> Option<Index> {
    let is_sum = sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_sum { open_checked(&index_path(cache_dir, sum), sum, true) } else { None }
}

/// Compares an index with the name of its catalog. The compiler cannot: catalogs with equal content share an index,
/// whatever their names.
fn checked_name(library: &dyn Library, name: &CatalogName, mut index: Index) -> Result<Index, LibraryError> {
    match name.complete(&mut index.info) {
        Ok(()) => Ok(index),
        Err(why) => Err(LibraryError::Catalog {
            place: library.catalog_place(name),
            source: CatalogError::BadHeader(why),
        }),
    }
}

/// Records that the library has all blobs of a catalog, unless the catalog has changed since `index` was opened.
pub fn note_blobs_seen(library: &dyn Library, name: &CatalogName, cache_dir: &Path, index: &Index) {
    let note_path = note_path(library, name, cache_dir);
    let sum = Hex(&index.catalog_sha256()).to_string();
    let noted = read_note(&note_path).filter(|note| note.catalog_sha256 == sum);
    if let Some(note) = noted.filter(|note| library.catalog_stamp(name).is_ok_and(|now| now == note.stamp)) {
        write_note(&note_path, note.stamp, &sum, &index_path(cache_dir, &sum), true);
    }
}

fn look_of(path: &Path) -> std::io::Result<Look> {
    std::fs::metadata(path).map(|found| Look::from(&found))
}

/// The note about a catalog.
pub(in crate::library) fn note_path(library: &dyn Library, name: &CatalogName, cache_dir: &Path) -> PathBuf {
    let key: [u8; 32] = Sha256::digest(library.catalog_place(name)).into();
    let (key, _) = key.split_at(8);
    cache_dir.join(format!("{}.stamp", Hex(key)))
}

/// The index of the catalog with this SHA-256, in hex.
pub(in crate::library) fn index_path(cache_dir: &Path, sum: &str) -> PathBuf {
    cache_dir.join(format!("{sum}.v{VERSION}.idx"))
}

/// Opens the index of the catalog with this sum. None if it is missing or damaged. Verifies the body only with `whole`.
pub(super) fn open_checked(path: &Path, sum: &str, whole: bool) -> Option<Index> {
    let opened = Index::open(path).and_then(|index| {
        if Hex(&index.catalog_sha256()).to_string() != sum {
            return Err(IndexError("it is of another catalog").into());
        }
        if whole {
            index.verify()?;
        }
        Ok(index)
    });
    if let Err(why) = &opened
        && why.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %why, "compiling the catalog again");
    }
    opened.ok()
}

/// The largest size of a note in bytes. It holds a sum and a few numbers.
const MAX_NOTE: u64 = 64 << 10;

/// The SHA-256 of a catalog, in hex, if this note about it can be read.
pub(in crate::library) fn noted_sum(note_path: &Path) -> Option<String> {
    read_note(note_path).map(|note| note.catalog_sha256)
}

fn read_note(path: &Path) -> Option<Note> {
    let text = guarded::read(path, MAX_NOTE).ok()?;
    let note: Note = serde_json::from_slice(&text).ok()?;
    // The sum becomes a part of a path.
    let is_sum =
        note.catalog_sha256.len() == 64 && note.catalog_sha256.bytes().all(|b| b.is_ascii_hexdigit());
    is_sum.then_some(note)
}

/// Writes the note about a catalog. Without the note, the next mount reads the catalog and the index.
fn write_note(path: &Path, stamp: CatalogStamp, sum: &str, index: &Path, blobs_seen: bool) {
    let written = look_of(index).and_then(|index| {
        let note = Note { stamp, catalog_sha256: sum.to_owned(), index, blobs_seen };
        // A power cut may truncate the note. Then it cannot be parsed, and counts as missing.
        guarded::replace(path, cached(Durability::CacheOnly), &serde_json::to_vec(&note)?)
    });
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "cannot record that a catalog was compiled");
    }
}
