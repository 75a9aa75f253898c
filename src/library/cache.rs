//! The blob cache: verified raw copies of blobs.
//!
//! Spaces read, map and clone these copies. They never use the library's own files, because rcc overwrites those in place.
//! So plain blobs are copied too. The cache belongs to one user, all spaces of the user share it, and it may be deleted at
//! any time.
//!
//! Invariants:
//! * A copy gets its name only after its bytes were verified in the file itself.
//! * A copy is used without verification only while its size, its mode and its stamp are those of a finished copy
//!   (see [`super::stamp`]).
//! * The named copies together do not exceed the limit.

mod room;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;

use super::LibraryError;
use super::cache_dir::{left_behind, make_dir, sweep};
use super::digest::Digest;
use super::stamp::Stamp;
use crate::sys::tree;

#[derive(Debug)]
pub struct BlobCache {
    dir: PathBuf,
    /// The number of the next temporary name.
    next: AtomicU64,
    /// The largest size of all copies together in bytes.
    limit: u64,
    /// The directory, opened once: see [`BlobCache::pinned`].
    pinned: Option<OwnedFd>,
}

/// A copy in the cache.
#[derive(Debug)]
pub struct CachedCopy {
    pub file: File,
    /// Whether it was verified in this boot, or is known to be on the disk. If not, a power cut may have damaged it since.
    pub is_verified: bool,
}

/// A copy that is being written and is not in the cache yet.
#[derive(Debug)]
pub struct Pending {
    pub(super) file: File,
    /// The temporary name, if the filesystem has no `O_TMPFILE`.
    name: Option<PathBuf>,
    /// Whether the file is a memfd, which never gets a name.
    pub(super) in_memory: bool,
}

impl Pending {
    /// A copy in memory, for a full disk. Other processes do not find it.
    ///
    /// # Errors
    /// The errno of `memfd_create`.
    pub fn in_memory() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("holofs-blob", MemfdFlags::CLOEXEC)?;
        Ok(Self { file: fd.into(), name: None, in_memory: true })
    }

    /// Makes the copy a reflink of `source`. Returns false, and writes nothing, if the filesystem cannot do that.
    ///
    /// # Errors
    /// A full disk and an I/O error: copying would fail too.
    pub fn clone_of(&mut self, source: &File) -> io::Result<bool> {
        match rustix::fs::ioctl_ficlone(&self.file, source) {
            Ok(()) => Ok(true),
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => Err(errno.into()),
            Err(_) => Ok(false),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = std::fs::remove_file(&name)
        {
            tracing::debug!(path = %name.display(), %error, "cannot remove a temporary copy");
        }
    }
}

/// Opens the same file again, read-only.
pub(super) fn reopened(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

impl BlobCache {
    /// Opens the cache in `dir`, which is created if it is missing. The cache has no limit.
    ///
    /// # Errors
    /// When the directory cannot be created.
    pub fn open(dir: &Path) -> Result<Self, LibraryError> {
        let cache = Self::existing(dir);
        make_dir(&cache.tmp())?;
        sweep(&cache.tmp(), "");
        Ok(cache)
    }

    /// The cache in `dir`, of which nothing is made or removed yet.
    #[must_use]
    pub fn existing(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), next: AtomicU64::new(0), limit: u64::MAX, pinned: None }
    }

    /// The copies that killed processes did not finish, with their sizes.
    #[must_use]
    pub fn unfinished(&self) -> Vec<(PathBuf, u64)> {
        left_behind(&self.tmp(), "")
    }

    /// Sets the largest size of all copies together in bytes.
    #[must_use]
    pub fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// Looks copies up by a descriptor of the directory, which is faster than by its path. For a short-lived process: if the
    /// user deletes the directory, its copies are not found any more.
    #[must_use]
    pub fn pinned(self) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // Without a descriptor, the path is used.
        let pinned = rustix::fs::open(&self.dir, flags, Mode::empty()).ok();
        Self { pinned, ..self }
    }

    /// Whether the cache would keep a copy of `size` bytes.
    #[must_use]
    pub fn keeps(&self, size: u64) -> bool {
        size <= self.limit
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// The path of the copy of a blob, whether it exists or not.
    #[must_use]
    pub fn place(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.fan_out())
    }

    /// Opens the copy of a blob. A file that does not look like a finished copy is removed.
    ///
    /// # Errors
    /// When opening or removing fails.
    pub fn get(&self, digest: &Digest, size: u64) -> io::Result<Option<CachedCopy>> {
        let path = self.place(digest);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = match &self.pinned {
            Some(dir) => rustix::fs::openat(dir, digest.fan_out(), flags, Mode::empty()),
            None => rustix::fs::open(&path, flags, Mode::empty()),
        };
        let file = match opened {
            Ok(fd) => Some(File::from(fd)),
            Err(Errno::NOENT) => return Ok(None),
            // A symbolic link, a file without read permission, or a socket.
            Err(Errno::LOOP | Errno::ACCESS | Errno::NXIO) => None,
            Err(errno) => return Err(errno.into()),
        };
        if let Some(file) = file {
            let found = file.metadata()?;
            let as_made = found.is_file() && found.size() == size && found.mode() & 0o7777 == 0o400;
            let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
            let is_verified = Stamp::read(seconds, nanoseconds).is_some();
            if as_made && (is_verified || Stamp::was_one(seconds, nanoseconds)) {
                return Ok(Some(CachedCopy { file, is_verified }));
            }
        }
        tracing::warn!(path = %path.display(), "a cached blob was changed; fetching it again");
        self.remove(digest)?;
        Ok(None)
    }

    /// Removes the copy of a blob, or whatever is in its place.
    ///
    /// # Errors
    /// When removing fails. A missing copy is no error.
    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        Ok(tree::remove(CWD, self.place(digest).as_path())?)
    }

    /// Creates a file for a new copy.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn begin(&self) -> io::Result<Pending> {
        // The user may have deleted the cache.
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
            Ok(fd) => Ok(Pending { file: fd.into(), name: None, in_memory: false }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => self.begin_named(),
            Err(errno) => Err(errno),
        }
    }

    /// For filesystems without `O_TMPFILE`.
    pub(super) fn begin_named(&self) -> Result<Pending, Errno> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // One process may have several caches in the same directory.
        let own = std::ptr::from_ref(self) as usize;
        let name = self.tmp().join(format!("copy.{}.{own:x}.{number}", std::process::id()));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Pending { file: fd.into(), name: Some(name), in_memory: false })
    }

    /// Gives a verified copy its name in the cache, and opens it for reading. If the cache has no room for it, it gets no
    /// name and lives as long as it is open.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn commit(&self, pending: Pending, digest: &Digest, size: u64) -> io::Result<File> {
        self.commit_as(Stamp::ThisBoot, pending, digest, size)
    }

    /// As [`BlobCache::commit`], with a stamp that says whether the copy was verified.
    ///
    /// # Errors
    /// As [`BlobCache::commit`].
    pub(super) fn commit_as(
        &self,
        stamp: Stamp,
        mut pending: Pending,
        digest: &Digest,
        size: u64,
    ) -> io::Result<File> {
        if pending.in_memory || !self.keeps(size) {
            return reopened(&pending.file);
        }
        let path = self.place(digest);
        rustix::fs::fchmod(&pending.file, Mode::RUSR)?;
        // No fsync: after the next boot the copy is verified again.
        stamp.set(&pending.file)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // The caller gets a descriptor that cannot write. It is opened by descriptor, so it is the verified file even if
        // another file takes the name.
        let file = reopened(&pending.file)?;
        let Some((mut sum, after)) = self.make_room(size)? else { return Ok(file) };
        match &pending.name {
            Some(name) => {
                std::fs::rename(name, &path)?;
                pending.name = None;
            }
            None => {
                let proc = format!("/proc/self/fd/{}", pending.file.as_raw_fd());
                match rustix::fs::linkat(CWD, &proc, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
                    Ok(()) => {}
                    // Another process was faster. Using its copy keeps the bytes in the page cache only once.
                    Err(Errno::EXIST) => {
                        let theirs = self.get(digest, size)?.filter(|copy| copy.is_verified);
                        return Ok(theirs.map_or(file, |copy| copy.file));
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        if let Err(error) = sum.write(after) {
            tracing::warn!(%error, "cannot record the size of the blob cache; it may exceed its limit");
        }
        Ok(file)
    }
}
