//! What this machine keeps of a remote library beside its blobs: heads, catalogs, layouts and profiles.
//!
//! ```text
//! <cache>/remote/<16 hex digits of the SHA-256 of the URL>/
//!     url                the URL, for people
//!     heads/<catalog>    the head as it was read last
//!     catalogs/, layouts/, profiles/   objects by SHA-256, each in the form of the blob cache
//! <cache>/remote/locks/  who fetches which blobs: see `library::turn`
//! ```
//!
//! Invariant: an object is used only if it was compared with its name in this boot, or since it was written to the disk. See
//! [`crate::library::cache`]. A damaged one is removed, and fetched again. Everything here may be deleted at any time.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::head::{Head, MAX_HEAD, Object};
use super::layout::Layout;
use crate::library::LibraryError;
use crate::library::blob::is_content;
use crate::library::cache::{BlobCache, Pending};
use crate::library::cache_dir::{cached, copies_of, make_dir};
use crate::library::catalogs::CatalogName;
use crate::library::digest::Digest;
use crate::library::memory::is_full;
use crate::library::stamp::Stamp;
use crate::sys::fd;
use crate::sys::guarded::{self, Access, Dir, Durability, Trust};

/// The number of locks. Groups share them by chance, which costs a wait now and then.
const LOCKS: u64 = 4096;

/// How often to look whether another one has fetched a group.
const RETRY: Duration = Duration::from_millis(2);

/// The local copies of one remote library.
#[derive(Debug)]
pub(super) struct Local {
    dir: PathBuf,
    locks: PathBuf,
    pub(super) catalogs: BlobCache,
    pub(super) layouts: BlobCache,
    pub(super) profiles: BlobCache,
}

/// The directory of all remote libraries below holofs's cache directory.
#[must_use]
pub fn dir(cache_dir: &Path) -> PathBuf {
    cache_dir.join("remote")
}

impl Local {
    /// The copies of the library at `url`. With `make`, its directories are made.
    ///
    /// # Errors
    /// When they cannot be made, or other users may write to them.
    pub(super) fn open(cache_dir: &Path, url: &str, make: bool) -> Result<Self, LibraryError> {
        let all = dir(cache_dir);
        let dir = copies_of(cache_dir, Path::new(url));
        let locks = all.join("locks");
        let place = |name: &str| BlobCache::existing(&dir.join(name));
        let local = Self {
            locks,
            catalogs: place("catalogs"),
            layouts: place("layouts"),
            profiles: place("profiles"),
            dir,
        };
        if make {
            let is_new = !local.dir.is_dir();
            for dir in [&local.dir.join("heads"), &local.locks] {
                make_dir(dir)?;
            }
            let checked = Dir::open(&all, Trust::Private).and_then(|all| {
                let name = local.dir.file_name().unwrap_or(OsStr::new("."));
                all.open_dir(name, Trust::Private)?.open_dir(OsStr::new("heads"), Trust::Private)
            });
            checked.map_err(|error| LibraryError::io(&all)(io::Error::other(error)))?;
            let path = local.dir.join("url");
            if !is_new {
                note_use(&path);
            } else {
                let written = guarded::replace(&path, cached(Durability::CacheOnly), url.as_bytes());
                written.map_err(LibraryError::io(&path))?;
            }
        }
        Ok(local)
    }

    fn head_path(&self, name: &CatalogName) -> PathBuf {
        self.dir.join("heads").join(name.to_string())
    }

    /// The head of a catalog as it was read last. One that cannot be read counts as missing.
    pub(super) fn head(&self, name: &CatalogName) -> Option<Head> {
        let bytes = guarded::read(&self.head_path(name), MAX_HEAD).ok()?;
        Head::parse(&bytes)
            .inspect_err(|error| tracing::debug!(%name, %error, "the local copy of a head is ignored"))
            .ok()
    }

    /// Keeps a head. Without the copy, the next mount needs the store.
    pub(super) fn keep_head(&self, name: &CatalogName, head: &Head) {
        if self.head(name).as_ref() == Some(head) {
            return;
        }
        let written = head.to_bytes().map_err(io::Error::other).and_then(|bytes| {
            make_dir(&self.dir.join("heads")).map_err(io::Error::other)?;
            guarded::replace(&self.head_path(name), cached(Durability::CacheOnly), &bytes)
        });
        if let Err(error) = written {
            tracing::warn!(%name, %error, "cannot keep the head of a catalog");
        }
    }

    /// The catalogs whose heads are here, and when they were read.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) fn heads(&self) -> io::Result<Vec<(CatalogName, SystemTime)>> {
        let entries = match std::fs::read_dir(self.dir.join("heads")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().and_then(CatalogName::parse) else { continue };
            found.push((name, entry.metadata()?.modified()?));
        }
        Ok(found)
    }

    /// All layouts that are here, also of catalogs that the store does not have any more.
    pub(super) fn all_layouts(&self) -> Vec<Layout> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.join("layouts")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let digest = Digest::parse(name.as_encoded_bytes()).ok();
                match (digest, entry.metadata()) {
                    (None, Ok(is)) if is.is_dir() && name.len() == 2 => dirs.push(entry.path()),
                    (Some(digest), Ok(is)) if is.is_file() => {
                        let kept = open(&self.layouts, &digest, is.len());
                        found.extend(kept.ok().flatten().and_then(|file| Layout::map(&file).ok()));
                    }
                    _ => {}
                }
            }
        }
        found
    }

    /// Waits for the lock of what `key` stands for. None after `timeout`, when `stop` returns true, or where there are no
    /// locks: the caller then goes on without, and may fetch what another one fetches too.
    pub(super) fn lock(&self, key: u64, timeout: Duration, stop: &dyn Fn() -> bool) -> Option<File> {
        let path = self.locks.join(format!("{:03x}", key % LOCKS));
        let open = || File::options().write(true).create(true).truncate(false).open(&path);
        let opened = open().or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => std::fs::create_dir_all(&self.locks).and_then(|()| open()),
            _ => Err(error),
        });
        let locked = opened.and_then(|file| Ok(fd::lock(&file, timeout, RETRY, stop)?.then_some(file)));
        locked.unwrap_or_else(|error| {
            tracing::debug!(%error, "no lock: another process may fetch the same blobs");
            None
        })
    }
}

/// Shows `gc` that a library is in use.
fn note_use(path: &Path) {
    /// How exact that has to be.
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let noted = || -> io::Result<()> {
        let file = guarded::open_file(path, Access::Write).map_err(io::Error::other)?;
        let is_old = file.metadata()?.modified()?.elapsed().is_ok_and(|since| since > DAY);
        if is_old { file.set_modified(SystemTime::now()) } else { Ok(()) }
    };
    if let Err(error) = noted() {
        tracing::debug!(%error, "the use of a remote library is not noted");
    }
}

/// The directory of a library's copies.
pub(super) fn dir_name(local: &Local) -> &Path {
    &local.dir
}

/// The digest that is the name of an object.
pub(super) fn digest(object: &Object) -> Digest {
    Digest::Sha256(object.sha256)
}

/// Opens a local copy. One that is not known to be right is read and compared first.
pub(super) fn open(cache: &BlobCache, digest: &Digest, bytes: u64) -> io::Result<Option<File>> {
    let Some(copy) = cache.get(digest, bytes)? else { return Ok(None) };
    if copy.is_verified {
        return Ok(Some(copy.file));
    }
    if is_content(&copy.file, digest)? {
        if let Err(error) = Stamp::Safe.set(&copy.file) {
            tracing::debug!(%digest, %error, "cannot stamp a verified copy");
        }
        return Ok(Some(copy.file));
    }
    tracing::warn!(%digest, "the local copy of an object has other content; fetching it again");
    cache.remove(digest)?;
    Ok(None)
}

/// Keeps the bytes of an object, which were compared with its name. On a full disk they stay in memory.
pub(super) fn keep(cache: &BlobCache, object: &Object, bytes: &[u8]) -> io::Result<File> {
    let write = |mut pending: Pending| {
        pending.file.write_all(bytes)?;
        cache.commit(pending, &digest(object), object.bytes)
    };
    cache.begin().and_then(write).or_else(|error| match is_full(&error) {
        true => write(Pending::in_memory()?),
        false => Err(error),
    })
}
