//! The files in holofs's cache directory: how they are written, where those of a library in an object store are, and what
//! killed processes leave there.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use super::LibraryError;
use super::digest::Hex;
use crate::sys::guarded::{self, Durability, Replace, Writers};

/// How a file of the cache is written.
pub(crate) fn cached(durability: Durability) -> Replace {
    Replace { mode: 0o600, writers: Writers::Many, durability }
}

/// Creates a directory of the cache with mode 0700, unless it exists.
pub(crate) fn make_dir(path: &Path) -> Result<(), LibraryError> {
    // On a frozen filesystem, mkdir blocks even if the directory exists.
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(LibraryError::io(path))
}

/// After this time nobody writes to a file any more.
pub(super) const SETTLED: Duration = Duration::from_secs(3600);

pub(super) fn is_past(time: SystemTime, age: Duration) -> bool {
    time.elapsed().is_ok_and(|elapsed| elapsed > age)
}

/// The temporary files in a directory that a killed process left, with their sizes: those with `part` in their name that
/// nobody has written to for an hour.
pub(crate) fn left_behind(dir: &Path, part: &str) -> Vec<(PathBuf, u64)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let left = entries.filter_map(|entry| {
        let found = entry.metadata().ok()?;
        let is_left =
            entry.file_name().to_string_lossy().contains(part) && is_past(found.modified().ok()?, SETTLED);
        is_left.then(|| (entry.path(), found.len()))
    });
    left.collect()
}

/// Removes the temporary files that a process left in a directory when it was killed: those with `part` in their name that
/// nobody has written to for an hour.
pub(crate) fn sweep(dir: &Path, part: &str) {
    for (path, _) in left_behind(dir, part) {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!(%error, "cannot remove a temporary file of the cache");
        }
    }
}

/// The URLs of the libraries of which something is kept in holofs's cache directory.
#[must_use]
pub fn known_urls(cache_dir: &Path) -> Vec<PathBuf> {
    /// The longest URL in bytes.
    const LONGEST: u64 = 8 << 10;
    let dirs = std::fs::read_dir(cache_dir.join("remote")).into_iter().flatten().flatten();
    let url = |dir: std::fs::DirEntry| guarded::read(&dir.path().join("url"), LONGEST).ok();
    dirs.filter_map(url).filter_map(|url| Some(PathBuf::from(String::from_utf8(url).ok()?))).collect()
}

/// What is kept of the library at a URL, beside its blobs.
#[must_use]
pub fn copies_of(cache_dir: &Path, url: &Path) -> PathBuf {
    let sum = Sha256::digest(url.as_os_str().as_encoded_bytes());
    let (short, _) = sum.split_at(8);
    cache_dir.join("remote").join(Hex(short).to_string())
}
