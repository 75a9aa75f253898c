//! The blob cache: raw, verified copies of gzip blobs, and notes about raw blobs that were verified in place.
//!
//! It belongs to one user and is shared by all his spaces; it may be deleted at any time. Invariant: a file gets its
//! name here only after its bytes were verified, and is trusted later only while it looks untouched: its size, and
//! the time that every copy is given.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::LibraryError;
use super::digest::Digest;
use super::index::cache::make_dir;
use crate::materialize::{MOTHER_TIME, set_mother_time};

/// The cache's directory.
#[derive(Debug)]
pub struct BlobCache {
    dir: PathBuf,
    next: AtomicU64,
}

/// How a raw blob looked when it was verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified(String);

impl Verified {
    /// How an open file looks.
    ///
    /// # Errors
    /// What fstat(2) may answer.
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self(format!(
            "{} {} {} {}.{:09} {}.{:09}",
            found.dev(),
            found.ino(),
            found.size(),
            found.mtime(),
            found.mtime_nsec(),
            found.ctime(),
            found.ctime_nsec()
        )))
    }
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
        make_dir(&dir.join("tmp"))?;
        Ok(Self { dir: dir.to_owned(), next: AtomicU64::new(0) })
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
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = file.metadata()?;
        if found.is_file() && found.size() == size && (found.mtime(), found.mtime_nsec()) == (MOTHER_TIME, 0)
        {
            return Ok(Some(file));
        }
        tracing::warn!(path = %path.display(), "a cached blob was changed from outside; fetching it again");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(None),
        }
    }

    /// A new copy to write to, without a name.
    ///
    /// # Errors
    /// What making a file may answer.
    pub fn begin(&self) -> io::Result<Pending> {
        let tmp = self.dir.join("tmp");
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::open(&tmp, OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, mode) {
            Ok(fd) => return Ok(Pending { file: fd.into(), name: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            // The directory went with a cleaned cache.
            Err(Errno::NOENT) => std::fs::create_dir_all(&tmp)?,
            Err(errno) => return Err(errno.into()),
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = tmp.join(format!("{}.{number}", std::process::id()));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&name, flags, mode)?;
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
        match pending.name.take() {
            Some(name) => std::fs::rename(&name, &path)?,
            None => {
                let source = format!("/proc/self/fd/{}", pending.file.as_raw_fd());
                let target = CString::new(path.as_os_str().as_bytes())?;
                match rustix::fs::linkat(CWD, source, CWD, target, AtFlags::SYMLINK_FOLLOW) {
                    // Another process was quicker, with the same bytes.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        File::open(path)
    }

    /// Whether a raw blob was verified when it looked like this.
    #[must_use]
    pub fn is_verified(&self, digest: &Digest, look: &Verified) -> bool {
        std::fs::read_to_string(self.note(digest)).is_ok_and(|noted| noted == look.0)
    }

    /// Notes that a raw blob was verified when it looked like this.
    ///
    /// # Errors
    /// What writing may answer.
    pub fn note_verified(&self, digest: &Digest, look: &Verified) -> io::Result<()> {
        let path = self.note(digest);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join("tmp").join(format!("note.{}.{number}", std::process::id()));
        std::fs::write(&temporary, &look.0)?;
        std::fs::rename(temporary, path)
    }

    fn note(&self, digest: &Digest) -> PathBuf {
        self.dir.join("verified").join(digest.fan_out())
    }

    /// Removes the copies that were not read for longest, until the cache holds no more than `limit` bytes. What is
    /// open stays readable. Returns the bytes freed.
    ///
    /// # Errors
    /// What reading the directories may answer.
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
            std::fs::remove_file(&path)?;
            total -= size;
            freed += size;
        }
        Ok(freed)
    }
}

/// The copies below a directory of the fan-out: when last read, bytes, path.
fn collect(dir: &Path, depth: usize, out: &mut Vec<(i64, u64, PathBuf)>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if depth < 3 {
            // Two digits; `tmp` and `verified` are none of it.
            if name.len() == 2 && entry.file_type()?.is_dir() {
                collect(&entry.path(), depth + 1, out)?;
            }
            continue;
        }
        let found = entry.metadata()?;
        if found.is_file() {
            out.push((found.atime().max(found.ctime()), found.size(), entry.path()));
        }
    }
    Ok(())
}
