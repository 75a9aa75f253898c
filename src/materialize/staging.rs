//! Staging: a file or directory is made under a name of its own in the space's `work` directory, and becomes
//! visible in one rename.
//!
//! Not a cache: what lies here has no meaning for a reader, and whatever a crash leaves is swept at the next
//! mount. Invariant: an entry is published whole or not at all; a dropped [`Staged`] removes itself.

use std::ffi::CString;
use std::fs::File;
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
    /// Notes that an earlier mount has left. A leaf lock.
    notes: Mutex<Vec<CString>>,
}

/// With this begins the name of a note: what an earlier mount was about to do, for the next one to finish.
pub const NOTE: &str = "moved.";

/// Something staged and not yet visible.
#[derive(Debug)]
pub struct Staged {
    dir: Arc<OwnedFd>,
    /// None once published.
    name: Option<CString>,
    is_dir: bool,
}

impl Staging {
    /// Takes the directory; the caller holds the space's lock, so that nobody else stages here.
    #[must_use]
    pub fn new(dir: OwnedFd) -> Self {
        Self { dir: Arc::new(dir), next: AtomicU64::new(0), order: OnceLock::new(), notes: Mutex::default() }
    }

    /// Has the bytes of a file on this filesystem survive before the name that it is given next.
    ///
    /// # Errors
    /// Those of writing to the disk.
    pub fn write_out(&self, file: &impl AsFd) -> Result<(), Errno> {
        self.order.get_or_init(|| Order::of(&self.dir)).write_out(file)
    }

    /// The directory itself, as a source or target of renames.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Removes what an earlier mount left behind, but for its notes. Returns how many entries went.
    ///
    /// # Errors
    /// When the directory cannot be read, or an entry not be removed.
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

    /// The notes that an earlier mount has left.
    #[must_use]
    pub fn take_notes(&self) -> Vec<CString> {
        std::mem::take(&mut *self.notes.lock())
    }

    /// A name for a note. No earlier mount has used it: a note may outlive a mount.
    #[must_use]
    pub fn fresh_note(&self) -> CString {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        CString::new(format!("{NOTE}{}.{:09}.{number}", now.tv_sec, now.tv_nsec)).unwrap_or_default()
    }

    /// A name that nothing staged by this mount has.
    #[must_use]
    pub fn fresh_name(&self) -> CString {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        CString::new(number.to_string()).unwrap_or_default()
    }

    /// A new empty regular file, open for reading and writing, mode 0600.
    ///
    /// # Errors
    /// The errno of the open.
    pub fn file(&self) -> Result<(File, Staged), Errno> {
        let name = self.fresh_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&*self.dir, &name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok((File::from(fd), self.adopt(name, false)))
    }

    /// A new empty directory, mode 0700, with an `O_PATH` descriptor for it.
    ///
    /// # Errors
    /// The errno of the calls.
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

    /// Takes responsibility for an entry of `work` that was made by other means (a symlink, a fifo, a link).
    #[must_use]
    pub fn adopt(&self, name: CString, is_dir: bool) -> Staged {
        Staged { dir: Arc::clone(&self.dir), name: Some(name), is_dir }
    }
}

impl Staged {
    /// Its name inside `work`.
    ///
    /// # Errors
    /// ENOENT when it was published already, which no caller does.
    pub fn name(&self) -> Result<&CString, Errno> {
        self.name.as_ref().ok_or(Errno::NOENT)
    }

    /// Renames it to its place, over whatever stands there.
    ///
    /// # Errors
    /// The errno of the rename; the staged entry is then removed.
    pub fn publish(self, dir: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
        self.publish_with(dir, name, RenameFlags::empty())
    }

    /// Renames it to its place with flags.
    ///
    /// # Errors
    /// The errno of the rename; the staged entry is then removed.
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

    /// Changes places with what stands at `name`; what stood there is then staged, and goes when this is dropped.
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
            // Nothing is lost: the next mount sweeps.
            tracing::warn!(name = ?name, %errno, "a staging entry stays until the next mount");
        }
    }
}
