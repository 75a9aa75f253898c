//! Writes blobs into a library.
//!
//! An existing blob is not touched, as in rcc, unless it is obviously broken: a raw blob of another size, or a gzip
//! stream whose trailer has another size. A loss of power can leave such blobs. They are of no use to anybody, so they
//! are replaced.
//!
//! Other users may be able to write to a shared library. So each directory is opened below its parent, links are not
//! followed, and only files and directories made here get other permissions.
//!
//! Invariant: a partial blob never has the blob's name. It is written under a temporary name and renamed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::error::RecordError;
use crate::library::catalog::write::gzip;
use crate::library::digest::{Digest, DigestKind, Hasher};
use crate::sys::guarded::{Access, Dir, Durability, GuardedError, Problem, Replace, Trust, Writers};

/// How many bytes are written at once.
const BUFFER: usize = 256 << 10;
/// How often a blob is written if `rcc holotree check` removes directories and files at the same time.
const ATTEMPTS: u32 = 10;

#[derive(Debug)]
pub(super) struct Store<'a> {
    /// The directory `library`.
    pub(super) library: &'a Dir,
    pub(super) kind: DigestKind,
    /// Whether other users write here too.
    pub(super) shared: bool,
    /// The digests that were seen, and the sizes of the contents.
    claimed: Mutex<HashMap<Digest, u64>>,
    written: &'a Written,
}

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The number of blobs.
    pub(super) blobs: AtomicU64,
    /// The sum of their sizes as stored.
    pub(super) bytes: AtomicU64,
}

impl<'a> Store<'a> {
    pub(super) fn new(library: &'a Dir, kind: DigestKind, shared: bool, written: &'a Written) -> Self {
        Self { library, kind, shared, claimed: Mutex::default(), written }
    }

    /// Whether the library has a blob for every digest that was seen.
    ///
    /// # Errors
    /// When a blob cannot be opened.
    pub(super) fn is_whole(&self) -> Result<bool, RecordError> {
        let seen = self.claimed.lock().clone();
        for (digest, size) in &seen {
            if !self.has(digest, *size)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the library has a blob for a content of this size.
    ///
    /// # Errors
    /// When the blob cannot be opened.
    pub(super) fn has(&self, digest: &Digest, size: u64) -> Result<bool, RecordError> {
        self.is_there(digest, size).map_err(self.failed(digest))
    }

    /// Forgets the digests, so that all blobs are checked and stored again.
    pub(super) fn forget(&self) {
        self.claimed.lock().clear();
    }

    /// Whether this digest is seen for the first time. Then the caller stores its blob.
    pub(super) fn claim(&self, digest: Digest, size: u64) -> bool {
        self.claimed.lock().insert(digest, size).is_none()
    }

    /// Stores the blob of the empty file, and returns its digest.
    pub(super) fn store_empty(&self) -> Result<Digest, RecordError> {
        let digest = Hasher::digest(self.kind, b"");
        if self.claim(digest, 0) {
            self.blob(digest, 0, &mut |_| Ok(digest))?;
        }
        Ok(digest)
    }

    /// Stores a blob for a content of `size` bytes, if there is none. `content` writes the content and returns its
    /// digest.
    pub(super) fn blob(&self, digest: Digest, size: u64, content: &mut Fill<'_>) -> Result<(), RecordError> {
        self.put(&digest, size, &mut |file| {
            let mut out = BufWriter::with_capacity(BUFFER, file);
            let found = match self.kind {
                DigestKind::Sip128 => content(&mut out)?,
                DigestKind::Sha256 => {
                    let mut gzip = gzip(&mut out);
                    let found = content(&mut gzip)?;
                    gzip.finish()?;
                    found
                }
            };
            if found != digest {
                return Err(io::Error::other("changed while it was read"));
            }
            out.flush()
        })
    }

    /// Stores a blob for a content of `size` bytes, if there is none. `fill` writes it as it is stored, and has compared
    /// it with its digest when it returns.
    pub(super) fn put(
        &self,
        digest: &Digest,
        size: u64,
        fill: &mut dyn FnMut(&mut File) -> io::Result<()>,
    ) -> Result<(), RecordError> {
        for attempt in 1.. {
            let done = self.try_put(digest, size, fill);
            let is_gone = done.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            if !is_gone || attempt == ATTEMPTS {
                return done.map_err(self.failed(digest));
            }
        }
        Ok(())
    }

    fn try_put(
        &self,
        digest: &Digest,
        size: u64,
        fill: &mut dyn FnMut(&mut File) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.is_there(digest, size)? {
            return Ok(());
        }
        let dir = self.dir_of(digest, |above, name| make_dir(above, name, self.shared))?;
        let mut stored = 0;
        replace(&dir, digest.to_string().as_ref(), self.shared, |file| {
            fill(file)?;
            stored = file.metadata()?.len();
            Ok(())
        })?;
        self.written.blobs.fetch_add(1, Ordering::Relaxed);
        self.written.bytes.fetch_add(stored, Ordering::Relaxed);
        Ok(())
    }

    /// Whether there is a blob for a content of `size` bytes, without reading all of it. Anything but a regular file is
    /// not a blob.
    fn is_there(&self, digest: &Digest, size: u64) -> io::Result<bool> {
        let opened = self.open_blob(digest);
        let file = match opened {
            Ok(file) => file,
            Err(GuardedError { problem: Problem::NotAFile(_), .. }) => return Ok(false),
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let len = file.metadata()?.len();
        if self.kind == DigestKind::Sip128 {
            return Ok(len == size);
        }
        let mut magic = [0; 2];
        let mut end = [0; 4];
        if len < 18 {
            return Ok(false);
        }
        file.read_exact_at(&mut magic, 0)?;
        file.read_exact_at(&mut end, len - 4)?;
        Ok(magic == [0x1f, 0x8b] && u32::from_le_bytes(end) == size as u32)
    }

    fn open_blob(&self, digest: &Digest) -> Result<File, GuardedError> {
        let dir = self.dir_of(digest, |above, name| above.open_dir(name, Trust::Shared))?;
        dir.open_file(digest.to_string().as_ref(), Access::Read)
    }

    /// Opens the directory of a blob. `open` opens a directory below its parent.
    fn dir_of(
        &self,
        digest: &Digest,
        open: impl Fn(&Dir, &OsStr) -> Result<Dir, GuardedError>,
    ) -> Result<Dir, GuardedError> {
        let [first, second, third] = digest.fan_out_dirs();
        let dir = open(self.library, first.as_ref())?;
        let dir = open(&dir, second.as_ref())?;
        open(&dir, third.as_ref())
    }

    fn failed(&self, digest: &Digest) -> impl FnOnce(io::Error) -> RecordError {
        let path = self.library.path().join(digest.fan_out());
        move |source| RecordError::Io { path, source }
    }
}

/// Writes the content of a blob, and returns its digest. Called again for each attempt.
pub(super) type Fill<'a> = dyn FnMut(&mut dyn Write) -> io::Result<Digest> + 'a;

/// Replaces a file of a library. In a shared library everybody may write to it. Does not sync: see
/// [`Dir::sync_filesystem`].
pub(super) fn replace(
    dir: &Dir,
    name: &OsStr,
    shared: bool,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let how = Replace { mode: 0o666, writers: Writers::Many, durability: Durability::CacheOnly };
    dir.replace(name, how, |file| {
        fill(file)?;
        if shared { file.set_permissions(Permissions::from_mode(0o666)) } else { Ok(()) }
    })
}

/// As [`replace`], with the content on the disk at the end.
pub(super) fn replace_synced(
    dir: &Dir,
    name: &str,
    shared: bool,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), RecordError> {
    let written = replace(dir, name.as_ref(), shared, |file| {
        fill(file)?;
        file.sync_all()
    });
    written.map_err(RecordError::io(dir.path().join(name)))
}

/// Opens or makes a directory of a library. In a shared library all users may write to it; otherwise the mode is 0750,
/// as in rcc, and others may read what they may read in the directory above.
pub(super) fn make_dir(above: &Dir, name: &OsStr, shared: bool) -> Result<Dir, GuardedError> {
    let readable = || rustix::fs::fstat(above).map_or(0, |found| found.st_mode & 0o005);
    let mode = if shared { 0o777 } else { 0o750 | readable() };
    above.make_dir_with(name, mode, shared).map(|(dir, _)| dir)
}
