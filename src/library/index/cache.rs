//! The cache of compiled indexes: a catalog is compiled when it is first seen, and mapped from then on.
//!
//! An index file is named by the SHA-256 of its catalog file. A stamp beside it says which catalog file (by device,
//! inode, size and time) has which sum, and how the index file looked when it was put in place, so that opening one
//! reads neither of them through. Invariant: an index is trusted without being read only while both look exactly as
//! they did; else the sums are computed anew, and a bad or old index is compiled again.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Index;
use super::compile::compile;
use super::format::VERSION;
use crate::library::{LibraryError, catalog};

/// How a file looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Look {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    /// Of the index only: rcc sets a catalog's time at each restore, and reading an index never changes it.
    ctime: (i64, i64),
}

impl Look {
    fn of(path: &Path) -> std::io::Result<Self> {
        let found = std::fs::metadata(path)?;
        Ok(Self {
            dev: found.dev(),
            ino: found.ino(),
            size: found.size(),
            mtime: (found.mtime(), found.mtime_nsec()),
            ctime: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// What is remembered of one catalog file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Stamp {
    catalog: Look,
    catalog_sha256: String,
    index: Look,
}

/// Opens the index of a catalog, compiling it first when it is new, old or damaged.
///
/// # Errors
/// When the catalog is refused, or the cache cannot be written.
pub fn open_or_compile(catalog_path: &Path, cache_dir: &Path) -> Result<Index, LibraryError> {
    make_dir(cache_dir)?;
    let look = Look::of(catalog_path).map_err(LibraryError::io(catalog_path))?;
    let stamp_path = stamp_path(catalog_path, cache_dir);
    let stamp = read_stamp(&stamp_path);
    if let Some(stamp) = stamp.filter(|stamp| stamp.catalog == look) {
        let path = index_path(cache_dir, &stamp.catalog_sha256);
        let unchanged = Look::of(&path).is_ok_and(|now| now == stamp.index);
        if let Some(index) = open_checked(&path, !unchanged) {
            if !unchanged {
                write_stamp(&stamp_path, look, &stamp.catalog_sha256, &path)?;
            }
            return Ok(index);
        }
    }
    let bytes = read_whole(catalog_path)?;
    let sum: [u8; 32] = Sha256::digest(&bytes).into();
    let sum_text: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = index_path(cache_dir, &sum_text);
    // The same content, touched or copied: rcc touches a catalog at every restore.
    if let Some(index) = open_checked(&path, true).filter(|index| index.catalog_sha256() == sum) {
        write_stamp(&stamp_path, look, &sum_text, &path)?;
        return Ok(index);
    }
    let tree = catalog::parse_file(&bytes)
        .map_err(|source| LibraryError::Catalog { path: catalog_path.to_owned(), source })?;
    let compiled = compile(&tree, sum)
        .map_err(|source| LibraryError::Compile { path: catalog_path.to_owned(), source })?;
    write_whole(&path, &compiled)?;
    write_stamp(&stamp_path, look, &sum_text, &path)?;
    let opened = Index::open(&path).map_err(LibraryError::io(&path))?;
    opened.map_err(|error| LibraryError::Io { path, source: std::io::Error::other(error) })
}

fn stamp_path(catalog_path: &Path, cache_dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(catalog_path).unwrap_or_else(|_| catalog_path.to_owned());
    let key = Sha256::digest(absolute.as_os_str().as_encoded_bytes());
    let key: String = key.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    cache_dir.join(format!("{key}.stamp"))
}

fn index_path(cache_dir: &Path, sum: &str) -> PathBuf {
    cache_dir.join(format!("{sum}.v{VERSION}.idx"))
}

/// An index that is there and good; with `whole`, its checksum is computed.
fn open_checked(path: &Path, whole: bool) -> Option<Index> {
    match Index::open(path) {
        Ok(Ok(index)) => match if whole { index.verify() } else { Ok(()) } {
            Ok(()) => Some(index),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiling the catalog again");
                None
            }
        },
        Ok(Err(error)) => {
            tracing::warn!(path = %path.display(), %error, "compiling the catalog again");
            None
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "compiling the catalog again");
            None
        }
    }
}

fn read_stamp(path: &Path) -> Option<Stamp> {
    let text = std::fs::read(path).ok()?;
    let stamp: Stamp = serde_json::from_slice(&text).ok()?;
    // It becomes a part of a path.
    let is_sum =
        stamp.catalog_sha256.len() == 64 && stamp.catalog_sha256.bytes().all(|b| b.is_ascii_hexdigit());
    is_sum.then_some(stamp)
}

fn write_stamp(path: &Path, catalog: Look, sum: &str, index: &Path) -> Result<(), LibraryError> {
    let index = Look::of(index).map_err(LibraryError::io(index))?;
    let stamp = Stamp { catalog, catalog_sha256: sum.to_owned(), index };
    let text = serde_json::to_vec(&stamp).unwrap_or_default();
    write_whole(path, &text)
}

fn read_whole(path: &Path) -> Result<Vec<u8>, LibraryError> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(LibraryError::io(path))?;
    Ok(bytes)
}

/// Writes a file under another name and renames it into place.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), LibraryError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_data()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|source| {
        if let Err(error) = std::fs::remove_file(&temporary) {
            tracing::debug!(%error, "a half-written cache file stays");
        }
        LibraryError::Io { path: path.to_owned(), source }
    })
}

/// Makes a directory of the cache, for its owner alone.
pub(crate) fn make_dir(path: &Path) -> Result<(), LibraryError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(LibraryError::io(path))
}
