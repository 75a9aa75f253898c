//! Backing files of FUSE passthrough: files that the kernel reads, writes and maps in the daemon's stead.
//!
//! A number stands for each, valid on one FUSE connection. Registering needs `CAP_SYS_ADMIN` in the initial user
//! namespace: a daemon that has it asks the kernel itself ([`Direct`]). Invariant: a number that was handed out
//! is given back at most once.
#![allow(unsafe_code)]

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use holofs_mount_helper::passthrough::{backing_close, backing_open, read_only_clone};
use holofs_mount_helper::view::Views;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

/// Registers backing files on the connection of one mount.
pub trait Backings: Send + Sync + Debug {
    /// The number for an open regular file. The kernel keeps the file open until the number is closed and no
    /// open file uses it. It opens the file anew for each open through the mount, with the access that this one asks
    /// for; of a file that was given by a read-only descriptor every open for writing fails.
    ///
    /// # Errors
    /// EPERM where this may not be done at all, or not with this file; ELOOP when the file lies on a stacked
    /// filesystem; ENOMEM.
    fn open(&self, file: BorrowedFd<'_>) -> io::Result<u32>;

    /// Gives a number back; open files that use it go on.
    ///
    /// # Errors
    /// ENOENT for a number that was not handed out.
    fn close(&self, id: u32) -> io::Result<()>;
}

/// Asks the kernel itself.
#[derive(Debug)]
pub struct Direct {
    fuse: OwnedFd,
    /// For the files that may only be read. A leaf lock.
    views: Mutex<Views>,
}

impl Direct {
    /// Over a descriptor of `/dev/fuse` that is (or was duplicated from) the mount's own.
    #[must_use]
    pub fn new(fuse: OwnedFd) -> Self {
        Self { fuse, views: Mutex::new(Views::new(read_only_clone)) }
    }
}

/// The same file by a descriptor that cannot be written to.
///
/// # Errors
/// What opening it anew may answer.
pub fn read_only(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    if is_read_only(file)? {
        return file.try_clone_to_owned();
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
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
}

/// Answers an open with a registered backing file, whose number stays the caller's.
pub fn reply_open(reply: fuser::ReplyOpen, flags: fuser::FopenFlags, id: u32) {
    // SAFETY: fuser would give the number back when its wrapper goes; `into_raw` takes it out before that.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(fuser::FileHandle(0), flags, &backing);
    backing.into_raw();
}

/// Answers a create, as [`reply_open`] does an open.
pub fn reply_create(
    reply: fuser::ReplyCreate,
    ttl: &std::time::Duration,
    attr: &fuser::FileAttr,
    generation: fuser::Generation,
    flags: fuser::FopenFlags,
    id: u32,
) {
    // SAFETY: as in `reply_open`.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.created_passthrough(ttl, attr, generation, fuser::FileHandle(0), flags, &backing);
    backing.into_raw();
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// Whoever may do all cannot write by it; nor is another file opened when the name leads elsewhere by now.
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
            let shown = format!("/proc/self/fd/{}", view.as_raw_fd());
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
