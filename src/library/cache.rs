//! The blob cache: raw, verified copies of gzip blobs, and notes about raw blobs that were verified in place.
//!
//! It belongs to one user and is shared by all his spaces; it may be deleted at any time. Invariant: a file gets its
//! name here only after its bytes were verified, and is trusted later only while it looks untouched: its size, and
//! the time that every copy is given.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::digest::Digest;
use super::index::cache::make_dir;
use super::look::Look;
use super::{LibraryError, MOTHER_TIME};

/// Leftovers of writers that died are this old, in seconds, before they are swept.
const OLD: u64 = 3600;

/// The cache's directory.
#[derive(Debug)]
pub struct BlobCache {
    dir: PathBuf,
    next: AtomicU64,
    /// Raw blobs that were verified where they are, and how they looked. A leaf lock.
    verified: Mutex<HashMap<Digest, Look>>,
}

/// A copy that is being written and has no name yet.
#[derive(Debug)]
pub struct Pending {
    file: File,
    /// Its temporary name, where the filesystem has no unnamed files.
    name: Option<PathBuf>,
}

impl Pending {
    /// Where to write.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = std::fs::remove_file(&name)
        {
            tracing::debug!(path = %name.display(), %error, "a temporary copy stays");
        }
    }
}

impl BlobCache {
    /// The cache in a directory, made if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, LibraryError> {
        let cache = Self { dir: dir.to_owned(), next: AtomicU64::new(0), verified: Mutex::default() };
        make_dir(&cache.tmp())?;
        cache.sweep();
        Ok(cache)
    }

    fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// A name in `tmp` that nobody else uses.
    fn temporary(&self, kind: &str) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Several caches of one process may share the directory.
        let own = std::ptr::from_ref(self) as usize;
        self.tmp().join(format!("{kind}.{}.{own:x}.{number}", std::process::id()))
    }

    /// Removes what writers that died left half-written.
    fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(self.tmp()) else { return };
        for entry in entries.flatten() {
            let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
            if age().is_some_and(|age| age.as_secs() > OLD)
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::debug!(%error, "a temporary copy stays");
            }
        }
    }

    /// Where the copy of a blob is or would be.
    #[must_use]
    pub fn place(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.fan_out())
    }

    /// The copy of a blob, when there is one that looks as it was made. One that does not is removed.
    ///
    /// # Errors
    /// What opening may answer.
    pub fn get(&self, digest: &Digest, size: u64) -> io::Result<Option<File>> {
        let path = self.place(digest);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Some(File::from(fd)),
            Err(Errno::NOENT) => return Ok(None),
            // A link stands in its place, or nobody may read it.
            Err(Errno::LOOP | Errno::ACCESS | Errno::NXIO) => None,
            Err(errno) => return Err(errno.into()),
        };
        if let Some(file) = file {
            let found = file.metadata()?;
            let as_made = found.is_file()
                && found.size() == size
                && (found.mtime(), found.mtime_nsec()) == (MOTHER_TIME, 0)
                && found.mode() & 0o7777 == 0o400;
            if as_made {
                return Ok(Some(file));
            }
        }
        tracing::warn!(path = %path.display(), "a cached blob was changed from outside; fetching it again");
        let removed = match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
            _ => std::fs::remove_file(&path),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(None),
        }
    }

    /// A new copy to write to, without a name.
    ///
    /// # Errors
    /// What making a file may answer.
    pub fn begin(&self) -> io::Result<Pending> {
        // The whole cache may be deleted at any time.
        match self.begin_in_tmp() {
            Err(Errno::NOENT) => {
                std::fs::create_dir_all(self.tmp())?;
                self.begin_in_tmp()
            }
            begun => begun,
        }
        .map_err(Into::into)
    }

    fn begin_in_tmp(&self) -> Result<Pending, Errno> {
        let mode = Mode::RUSR | Mode::WUSR;
        let unnamed = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::open(self.tmp(), unnamed, mode) {
            Ok(fd) => Ok(Pending { file: fd.into(), name: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => self.begin_named(),
            Err(errno) => Err(errno),
        }
    }

    /// Where the filesystem has no unnamed files.
    pub(super) fn begin_named(&self) -> Result<Pending, Errno> {
        let name = self.temporary("copy");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Pending { file: fd.into(), name: Some(name) })
    }

    /// Gives a written and verified copy its name, and returns it open for reading.
    ///
    /// # Errors
    /// What the calls may answer.
    pub fn commit(&self, mut pending: Pending, digest: &Digest) -> io::Result<File> {
        let path = self.place(digest);
        rustix::fs::fchmod(&pending.file, Mode::RUSR)?;
        set_mother_time(&pending.file)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // The descriptor that wrote it stays ours alone; the one that is handed out can only read. It is of the
        // file that was verified, even when another stands under the name by now.
        let proc = format!("/proc/self/fd/{}", pending.file.as_raw_fd());
        match &pending.name {
            Some(name) => {
                let file = File::open(name)?;
                std::fs::rename(name, &path)?;
                pending.name = None;
                Ok(file)
            }
            None => {
                let file = File::open(&proc)?;
                match rustix::fs::linkat(CWD, &proc, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
                    // Another process was quicker, with the same bytes: one copy in the page cache is enough.
                    Err(Errno::EXIST) => File::open(&path),
                    Ok(()) => Ok(file),
                    Err(errno) => Err(errno.into()),
                }
            }
        }
    }

    /// Whether a raw blob was verified when it looked like this.
    #[must_use]
    pub(crate) fn is_verified(&self, digest: &Digest, look: &Look) -> bool {
        if let Some(known) = self.verified.lock().get(digest) {
            return known == look;
        }
        let noted = std::fs::read(self.note(digest)).ok().and_then(|note| serde_json::from_slice(&note).ok());
        let is_noted = noted == Some(*look);
        if is_noted {
            self.verified.lock().insert(*digest, *look);
        }
        is_noted
    }

    /// Notes that a raw blob was verified when it looked like this.
    ///
    /// # Errors
    /// What writing may answer; it is known to this process then.
    pub(crate) fn note_verified(&self, digest: &Digest, look: &Look) -> io::Result<()> {
        self.verified.lock().insert(*digest, *look);
        let path = self.note(digest);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let temporary = self.temporary("note");
        std::fs::write(&temporary, serde_json::to_vec(look)?)?;
        std::fs::rename(temporary, path)
    }

    fn note(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.dir.join("verified").join(name.get(..2).unwrap_or_default()).join(name)
    }

    /// Removes the copies that were not read for longest, until the cache holds no more than `limit` bytes. What is
    /// open stays readable. Returns the bytes freed.
    ///
    /// # Errors
    /// What reading the directories and removing may answer.
    pub fn evict(&self, limit: u64) -> io::Result<u64> {
        let mut copies = Vec::new();
        collect(&self.dir, 0, &mut copies)?;
        let mut total: u64 = copies.iter().map(|copy| copy.1).sum();
        copies.sort_unstable();
        let mut freed = 0;
        for (_, size, path) in copies {
            if total <= limit {
                break;
            }
            match std::fs::remove_file(&path) {
                // Another daemon evicts as well.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(()) => freed += size,
            }
            total -= size;
        }
        Ok(freed)
    }
}

/// The copies below a directory of the fan-out: when last read, bytes, path.
fn collect(dir: &Path, depth: usize, out: &mut Vec<((i64, i64), u64, PathBuf)>) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if depth < 3 {
            // Two digits; `tmp` and `verified` are none of it.
            if name.len() == 2 && entry.file_type()?.is_dir() {
                collect(&entry.path(), depth + 1, out)?;
            }
            continue;
        }
        match entry.metadata() {
            // A new copy has the mother's access time until it is read; it is as young as its last change.
            Ok(found) if found.is_file() => {
                let used = (found.atime(), found.atime_nsec()).max((found.ctime(), found.ctime_nsec()));
                out.push((used, found.size(), entry.path()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives a file the time that a restored file has.
///
/// # Errors
/// The errno of `futimens`.
pub fn set_mother_time(file: impl AsFd) -> Result<(), Errno> {
    let mother = rustix::fs::Timespec { tv_sec: MOTHER_TIME, tv_nsec: 0 };
    rustix::fs::futimens(file, &rustix::fs::Timestamps { last_access: mother, last_modification: mother })
}
