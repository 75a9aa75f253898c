//! The blob cache: raw, verified copies of blobs, packed ones and plain ones alike.
//!
//! It belongs to one user and is shared by all his spaces; it may be deleted at any time. Copies are what spaces read,
//! map and clone, and never the library's own files: rcc writes over those in place. Invariants: a file gets its name
//! here only after its bytes were verified *in it*, and is believed later only while it looks untouched and its stamp
//! says that the bytes are there (see `stamp`); the named copies take no more than the limit.

mod room;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;

use super::LibraryError;
use super::digest::Digest;
use super::index::cache::make_dir;
use super::stamp::Stamp;
use crate::sys::tree;

/// Leftovers of writers that died are this old, in seconds, before they are swept.
const OLD: u64 = 3600;

/// The cache's directory.
#[derive(Debug)]
pub struct BlobCache {
    dir: PathBuf,
    next: AtomicU64,
    limit: u64,
}

/// A copy that was found.
#[derive(Debug)]
pub enum Copy {
    /// It is what it was when it was verified.
    Believed(File),
    /// It was verified in an earlier boot, and may since have lost bytes.
    Unverified(File),
}

/// A copy that is being written and has no name yet.
#[derive(Debug)]
pub struct Pending {
    file: File,
    /// Its temporary name, where the filesystem has no unnamed files.
    name: Option<PathBuf>,
    /// It lies in memory, and gets no name.
    in_memory: bool,
}

impl Pending {
    /// A copy in memory, for when the disk is full. Nobody else will find it.
    ///
    /// # Errors
    /// What `memfd_create` may answer.
    pub fn in_memory() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("holofs-blob", MemfdFlags::CLOEXEC)?;
        Ok(Self { file: fd.into(), name: None, in_memory: true })
    }

    /// Where to write.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Whether it lies in memory.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Takes the bytes of an open file as they are now, sharing them, where the filesystems can. False where not;
    /// nothing was written then.
    ///
    /// # Errors
    /// When it failed for a reason that copying would not cure.
    pub fn clone_of(&mut self, source: &File) -> io::Result<bool> {
        match rustix::fs::ioctl_ficlone(&self.file, source) {
            Ok(()) => Ok(true),
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => Err(errno.into()),
            Err(_) => Ok(false),
        }
    }

    /// Ends the writing of a verified copy without naming it: it lives as long as it is open.
    ///
    /// # Errors
    /// What the calls may answer.
    pub fn unnamed(self) -> io::Result<File> {
        reopened(&self.file)
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

/// A descriptor of the same file that can only read.
pub(super) fn reopened(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

impl BlobCache {
    /// The cache in a directory, made if need be, without a limit.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, LibraryError> {
        let cache = Self { dir: dir.to_owned(), next: AtomicU64::new(0), limit: u64::MAX };
        make_dir(&cache.tmp())?;
        cache.sweep();
        Ok(cache)
    }

    /// From now on its copies take no more than so many bytes.
    #[must_use]
    pub fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// Whether a copy of so many bytes would be kept.
    #[must_use]
    pub fn keeps(&self, size: u64) -> bool {
        size <= self.limit
    }

    fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// A name in `tmp` that nobody else uses.
    fn temporary(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Several caches of one process may share the directory.
        let own = std::ptr::from_ref(self) as usize;
        self.tmp().join(format!("copy.{}.{own:x}.{number}", std::process::id()))
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
    pub fn get(&self, digest: &Digest, size: u64) -> io::Result<Option<Copy>> {
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
            let as_made = found.is_file() && found.size() == size && found.mode() & 0o7777 == 0o400;
            let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
            if as_made && Stamp::read(seconds, nanoseconds).is_some() {
                return Ok(Some(Copy::Believed(file)));
            }
            if as_made && Stamp::was_one(seconds, nanoseconds) {
                return Ok(Some(Copy::Unverified(file)));
            }
        }
        tracing::warn!(path = %path.display(), "a cached blob is not as it was made; fetching it again");
        self.remove(digest)?;
        Ok(None)
    }

    /// Removes whatever stands in the place of a copy.
    ///
    /// # Errors
    /// What removing may answer.
    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        Ok(tree::remove(CWD, self.place(digest).as_path())?)
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
            Ok(fd) => Ok(Pending { file: fd.into(), name: None, in_memory: false }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => self.begin_named(),
            Err(errno) => Err(errno),
        }
    }

    /// Where the filesystem has no unnamed files.
    pub(super) fn begin_named(&self) -> Result<Pending, Errno> {
        let name = self.temporary();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Pending { file: fd.into(), name: Some(name), in_memory: false })
    }

    /// Gives a written and verified copy its name, and returns it open for reading. One that there is no room for
    /// gets none: it lives as long as it is open.
    ///
    /// # Errors
    /// What the calls may answer.
    pub fn commit(&self, mut pending: Pending, digest: &Digest, size: u64) -> io::Result<File> {
        if pending.in_memory || !self.keeps(size) {
            return pending.unnamed();
        }
        let path = self.place(digest);
        rustix::fs::fchmod(&pending.file, Mode::RUSR)?;
        // Nobody waits for the disk: the bytes are there while the machine runs, and are verified again after that.
        Stamp::ThisBoot.set(&pending.file)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // The descriptor that wrote it stays ours alone; the one that is handed out can only read. It is of the
        // file that was verified, even when another stands under the name by now.
        let file = reopened(&pending.file)?;
        let Some(room) = self.make_room(size)? else { return Ok(file) };
        match &pending.name {
            Some(name) => {
                std::fs::rename(name, &path)?;
                pending.name = None;
            }
            None => {
                let proc = format!("/proc/self/fd/{}", pending.file.as_raw_fd());
                match rustix::fs::linkat(CWD, &proc, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
                    Ok(()) => {}
                    // Another process was quicker, with the same bytes: one copy in the page cache is enough, when it
                    // is one to be believed.
                    Err(Errno::EXIST) => {
                        return Ok(match self.get(digest, size)? {
                            Some(Copy::Believed(theirs)) => theirs,
                            Some(Copy::Unverified(_)) | None => file,
                        });
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        if let Err(error) = room.taken() {
            tracing::warn!(%error, "the blob cache may grow beyond its limit until it is counted anew");
        }
        Ok(file)
    }
}
