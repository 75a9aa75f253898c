//! Staging: a file or directory is made under a temporary name in the space's `work` directory, and becomes visible by one
//! rename.
//!
//! What a crash leaves in `work` is removed at the next mount, except for *notes*: entries whose name says what an earlier
//! mount was about to do, so that the next mount can finish it.
//!
//! Invariant: an entry is published as a whole or not at all. Dropping a [`Staged`] removes the entry.

use std::ffi::CString;
use std::fs::File;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::sys::order::Order;
use crate::sys::tree;

/// The `work` directory of a mounted space.
#[derive(Debug)]
pub struct Staging {
    dir: Arc<OwnedFd>,
    next: AtomicU64,
    order: OnceLock<Order>,
    /// The notes of earlier mounts. A leaf lock.
    notes: Mutex<Vec<CString>>,
}

/// Prefix of the name of a note.
pub const NOTE: &str = "moved.";

/// A staged entry that is not visible yet.
#[derive(Debug)]
pub struct Staged {
    dir: Arc<OwnedFd>,
    /// None once published.
    name: Option<CString>,
    is_dir: bool,
}

impl Staging {
    /// Stages in `dir`. The caller holds the space's lock, so no other process does.
    #[must_use]
    pub fn new(dir: OwnedFd) -> Self {
        Self { dir: Arc::new(dir), next: AtomicU64::new(0), order: OnceLock::new(), notes: Mutex::default() }
    }

    /// Writes the bytes of a file to the disk, so that the file's next name never survives a crash without them.
    ///
    /// # Errors
    /// The errno of the sync.
    pub fn write_out(&self, file: &impl AsFd) -> Result<(), Errno> {
        self.order.get_or_init(|| Order::of(&self.dir)).write_out(file)
    }

    /// The directory, as source or target of renames.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Removes what an earlier mount has left, except for notes. Returns the number of removed entries.
    ///
    /// # Errors
    /// When the directory cannot be read, or an entry cannot be removed.
    pub fn sweep(&self) -> Result<usize, Errno> {
        let mut swept = 0;
        let dir = rustix::fs::Dir::read_from(&*self.dir)?;
        for entry in dir {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            if entry.file_name().to_bytes().starts_with(NOTE.as_bytes()) {
                self.notes.lock().push(entry.file_name().to_owned());
                continue;
            }
            tree::remove(&self.dir, entry.file_name())?;
            swept += 1;
        }
        Ok(swept)
    }

    /// The names of the notes that [`Staging::sweep`] found.
    #[must_use]
    pub fn take_notes(&self) -> Vec<CString> {
        std::mem::take(&mut *self.notes.lock())
    }

    /// A name for a note. It is unique also among mounts, because a note can outlive a mount.
    #[must_use]
    pub fn fresh_note(&self) -> CString {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        name_of(&format!("{NOTE}{}.{:09}.{number}", now.tv_sec, now.tv_nsec))
    }

    /// A name that is unique within this mount.
    #[must_use]
    pub fn fresh_name(&self) -> CString {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        name_of(&number.to_string())
    }

    /// A new empty regular file, open for reading and writing, mode 0600.
    ///
    /// # Errors
    /// The errno of open(2).
    pub fn file(&self) -> Result<(File, Staged), Errno> {
        let name = self.fresh_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&*self.dir, &name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok((File::from(fd), self.adopt(name, false)))
    }

    /// A new empty directory with mode 0700, and an `O_PATH` descriptor of it.
    ///
    /// # Errors
    /// The errno of mkdir(2) or open(2).
    pub fn directory(&self) -> Result<(OwnedFd, Staged), Errno> {
        let name = self.fresh_name();
        rustix::fs::mkdirat(&*self.dir, &name, Mode::RWXU)?;
        let staged = self.adopt(name, true);
        let fd = rustix::fs::openat(
            &*self.dir,
            staged.name()?,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        )?;
        Ok((fd, staged))
    }

    /// Stages an entry that the caller has made in `work`: a symbolic link, a FIFO, a hard link.
    #[must_use]
    pub fn adopt(&self, name: CString, is_dir: bool) -> Staged {
        Staged { dir: Arc::clone(&self.dir), name: Some(name), is_dir }
    }
}

impl Staged {
    /// The entry's name in `work`.
    ///
    /// # Errors
    /// ENOENT when the entry is published already.
    pub fn name(&self) -> Result<&CString, Errno> {
        self.name.as_ref().ok_or(Errno::NOENT)
    }

    /// Renames the entry to its final place, and replaces what is there.
    ///
    /// # Errors
    /// The errno of the rename. The staged entry is then removed.
    pub fn publish(self, dir: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
        self.publish_with(dir, name, RenameFlags::empty())
    }

    /// As [`Staged::publish`], with flags.
    ///
    /// # Errors
    /// As [`Staged::publish`].
    pub fn publish_with(
        mut self,
        dir: BorrowedFd<'_>,
        name: &CString,
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        rustix::fs::renameat_with(&*self.dir, self.name()?, dir, name, flags)?;
        self.name = None;
        Ok(())
    }

    /// Leaves the entry in `work` until the next mount.
    pub fn keep(&mut self) {
        self.name = None;
    }

    /// Exchanges the entry with the one at `name`, which is then staged in its place, and removed when this is dropped.
    ///
    /// # Errors
    /// The errno of the rename.
    pub fn exchange(&mut self, dir: BorrowedFd<'_>, name: &CString, other_is_dir: bool) -> Result<(), Errno> {
        rustix::fs::renameat_with(&*self.dir, self.name()?, dir, name, RenameFlags::EXCHANGE)?;
        self.is_dir = other_is_dir;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        let removed = if self.is_dir {
            tree::remove(&self.dir, name.as_c_str())
        } else {
            rustix::fs::unlinkat(&*self.dir, &name, AtFlags::empty())
        };
        if let Err(errno) = removed {
            // The next mount removes it.
            tracing::warn!(name = ?name, %errno, "cannot remove a staged entry; the next mount does");
        }
    }
}

/// A file name without a NUL byte.
pub(super) fn name_of(text: &str) -> CString {
    text.bytes().filter_map(NonZero::new).collect::<Vec<NonZero<u8>>>().into()
}
