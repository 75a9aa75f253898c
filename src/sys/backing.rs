//! Backing files of FUSE passthrough. The kernel reads, writes and maps them without asking the daemon.
//!
//! A registered file has a backing id, which is valid on one FUSE connection. Registering needs `CAP_SYS_ADMIN` in the
//! initial user namespace. A daemon with that capability makes the ioctls itself ([`Direct`]). Invariant: a backing id
//! is closed at most once.
#![allow(unsafe_code)]

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holofs_mount_helper::passthrough::{backing_close, backing_open, read_only_clone};
use holofs_mount_helper::view::Views;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::fd::proc_path;

/// Registers backing files on the connection of one mount.
pub trait Backings: Send + Sync + Debug {
    /// Registers an open regular file, and returns its backing id. The kernel keeps the file open until the id is closed
    /// and no open file uses it. For each open through the mount, the kernel opens the file again with the requested
    /// access mode. If `file` is read-only, every such open for writing fails.
    ///
    /// # Errors
    /// EPERM without the privilege, or for a file that cannot be registered; ELOOP when the file lies on a stacked
    /// filesystem; ENOMEM.
    fn open(&self, file: BorrowedFd<'_>) -> io::Result<u32>;

    /// Closes a backing id. Open files that use it are not affected.
    ///
    /// # Errors
    /// ENOENT for an id that is not registered.
    fn close(&self, id: u32) -> io::Result<()>;

    /// Called when this process takes the place of one that died, before the first file. `restarts` is larger than for
    /// that one.
    fn take_over(&self, restarts: u64);
}

/// Makes the ioctls in this process.
#[derive(Debug)]
pub struct Direct {
    fuse: OwnedFd,
    /// Opens the files that are registered read-only. A leaf lock.
    views: Mutex<Views>,
}

impl Direct {
    /// `fuse` is the `/dev/fuse` descriptor of the mount, or a duplicate.
    #[must_use]
    pub fn new(fuse: OwnedFd) -> Self {
        Self { fuse, views: Mutex::new(Views::new(read_only_clone)) }
    }
}

/// A read-only descriptor of the same file.
///
/// # Errors
/// Those of open(2).
pub fn read_only(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    if is_read_only(file)? {
        return file.try_clone_to_owned();
    }
    Ok(rustix::fs::open(proc_path(file), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn is_read_only(file: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::fcntl_getfl(file)? & OFlags::RWMODE == OFlags::RDONLY)
}

impl Backings for Direct {
    fn open(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        if !is_read_only(file)? {
            return Ok(backing_open(self.fuse.as_fd(), file)?);
        }
        let view = self.views.lock().open(file)?;
        Ok(backing_open(self.fuse.as_fd(), view.as_fd())?)
    }

    fn close(&self, id: u32) -> io::Result<()> {
        Ok(backing_close(self.fuse.as_fd(), id)?)
    }

    fn take_over(&self, _: u64) {}
}

/// Replies to an open with a registered backing file. The caller still owns the backing id.
pub fn reply_open(reply: fuser::ReplyOpen, handle: fuser::FileHandle, flags: fuser::FopenFlags, id: u32) {
    // SAFETY: fuser's wrapper would close the id when it is dropped; `into_raw` prevents that.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(handle, flags, &backing);
    backing.into_raw();
}

/// Replies to a create. See [`reply_open`].
pub fn reply_create(
    reply: fuser::ReplyCreate,
    ttl: &std::time::Duration,
    attr: &fuser::FileAttr,
    generation: fuser::Generation,
    handle: fuser::FileHandle,
    flags: fuser::FopenFlags,
    id: u32,
) {
    // SAFETY: as in `reply_open`.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.created_passthrough(ttl, attr, generation, handle, flags, &backing);
    backing.into_raw();
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// Root cannot write through the descriptor either, and a file that was put in the name's place is not opened.
    #[test]
    fn a_view_of_a_file_cannot_be_written_to() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "bytes").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let mut views = Views::new(read_only_clone);
        for change in ["none", "another file", "no file"] {
            match change {
                "another file" => {
                    std::fs::rename(&path, dir.path().join("moved")).unwrap();
                    std::fs::rename(dir.path().join("moved"), dir.path().join("again")).unwrap();
                    std::fs::write(&path, "other").unwrap();
                }
                "no file" => std::fs::remove_file(dir.path().join("again")).unwrap(),
                _ => {}
            }
            let view = views.open(file.as_fd()).unwrap();
            assert_eq!(
                std::io::read_to_string(std::fs::File::from(view.try_clone().unwrap())).unwrap(),
                "bytes"
            );
            let shown = proc_path(&view);
            for flags in [OFlags::RDWR, OFlags::WRONLY] {
                assert_eq!(
                    rustix::fs::open(&shown, flags, Mode::empty()).unwrap_err(),
                    Errno::ROFS,
                    "{change}"
                );
            }
        }
    }
}
