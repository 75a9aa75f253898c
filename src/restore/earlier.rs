//! The tree that was restored before from the same catalog, of which the blob cache gets clones.
//!
//! A clone waits until the bytes of its source are on the disk. So unpacking a blob into the cache and cloning it takes
//! longer than unpacking it into the tree. The first restore of an environment does the latter, and the cache gets nothing.
//! When the next one begins, the bytes of the first tree are on the disk. Then the cache gets a clone of each file that the
//! next tree needs, which takes no room on the disk, and the next tree a clone of that.
//!
//! Programs may have written to the files since. Invariants: a file that does not look as it was restored is left out, and
//! the bytes of a clone are compared with the digest before anybody uses them ([`Blobs::adopt`]).
//!
//! Limits: only the tree that was restored last is known, and used only for trees in the same directory. A relocated file has other bytes than its blob, so the cache gets
//! its blob from the library.
//!
//! [`Blobs::adopt`]: crate::library::blob::Blobs::adopt

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};

use super::sweep::open_below;
use crate::library::MOTHER_TIME;
use crate::library::cache_dir::{cached, make_dir};
use crate::sys::fd;
use crate::sys::guarded::{self, Dir, Durability, Trust};

/// The longest path in bytes, `PATH_MAX`.
const LONGEST: u64 = 4096;

/// A tree of the same environment.
#[derive(Debug)]
pub struct Earlier(Dir);

impl Earlier {
    /// The place of the tree that was restored last, as the note says.
    #[must_use]
    pub fn noted(note: &Path) -> Option<PathBuf> {
        let path = guarded::read(note, LONGEST);
        if let Err(error) = &path {
            tracing::debug!(%error, "no earlier space of this environment is known");
        }
        Some(PathBuf::from(OsString::from_vec(path.ok()?)))
    }

    /// Opens a tree. None if it is gone. Nothing may be mounted there: opening it could wait for a daemon.
    #[must_use]
    pub fn open(base: &Dir, name: &OsStr) -> Option<Self> {
        let opened = base.open_dir(name, Trust::Owned);
        if let Err(error) = &opened {
            tracing::debug!(%error, "the earlier space of this environment is not used");
        }
        opened.ok().map(Self)
    }

    /// Notes that this tree was restored.
    pub fn note(note: &Path, this: &Path) {
        let made = note.parent().map_or(Ok(()), make_dir).map_err(std::io::Error::other);
        let bytes = this.as_os_str().as_bytes();
        let noted = made.and_then(|()| guarded::replace(note, cached(Durability::CacheOnly), bytes));
        if let Err(error) = noted {
            tracing::debug!(%error, "the next restore will not share extents with this space");
        }
    }

    /// The file at a path of the tree, if it looks as it was restored and cloning it waits for nothing.
    pub(super) fn file(&self, path: &[u8], size: u64) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        // What cannot be opened is not as it was restored.
        let file = File::from(open_below(&self.0, path, flags).ok()?);
        let found = rustix::fs::fstat(&file).ok()?;
        let is_as_restored = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && u64::try_from(found.st_size) == Ok(size)
            && (found.st_mtime, found.st_mtime_nsec) == (MOTHER_TIME, 0);
        (is_as_restored && fd::is_written_out(&file)).then_some(file)
    }
}

/// Where the tree is noted that was restored last from a catalog: beside the catalog's profile.
#[must_use]
pub fn note_place(profile: &Path) -> PathBuf {
    profile.with_extension("restored")
}
