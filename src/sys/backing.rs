//! Backing files of FUSE passthrough: files that the kernel reads, writes and maps in the daemon's stead.
//!
//! A number stands for each, valid on one FUSE connection. Registering needs `CAP_SYS_ADMIN` in the initial user
//! namespace: a daemon that has it asks the kernel itself ([`Direct`]). Invariant: a number that was handed out
//! is given back at most once.
#![allow(unsafe_code)]

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use holofs_mount_helper::view::Views;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, opcode};
use rustix::mount::{OpenTreeFlags, open_tree};

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

/// `struct fuse_backing_map` of the kernel's `include/uapi/linux/fuse.h`.
#[derive(Debug)]
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `FUSE_DEV_IOC_MAGIC`.
const MAGIC: u8 = 229;
const BACKING_OPEN: Opcode = opcode::write::<BackingMap>(MAGIC, 1);
const BACKING_CLOSE: Opcode = opcode::write::<u32>(MAGIC, 2);

// SAFETY: the operation only reads the `BackingMap` that `as_ptr` points to, and answers with a number in its return
// value.
unsafe impl Ioctl for BackingMap {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        BACKING_OPEN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| rustix::io::Errno::IO)
    }
}

/// Registers `file` on the connection that `fuse` is a descriptor of.
///
/// # Errors
/// See [`Backings::open`].
pub fn backing_open(fuse: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the opcode belongs to the device and its argument is the structure that it names; the kernel takes its
    // own reference of `file`.
    Ok(unsafe { rustix::ioctl::ioctl(fuse, map) }?)
}

/// Makes a mount that is attached nowhere read-only, and has it take no part in what happens to the one it is a clone of.
fn set_read_only(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string, and the structure is valid for reads of the size that is given with it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// A read-only clone of the mount, or the part of it, that a descriptor leads to.
fn read_only_clone(of: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(of, "", flags)?;
    set_read_only(clone.as_fd())?;
    Ok(clone)
}

/// Gives a number back.
///
/// # Errors
/// See [`Backings::close`].
pub fn backing_close(fuse: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the operation reads one u32.
    let close = unsafe { Setter::<BACKING_CLOSE, u32>::new(id) };
    // SAFETY: the opcode belongs to the device, and `close` carries the argument that it names.
    Ok(unsafe { rustix::ioctl::ioctl(fuse, close) }?)
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
            return backing_open(self.fuse.as_fd(), file);
        }
        let view = self.views.lock().open(file)?;
        backing_open(self.fuse.as_fd(), view.as_fd())
    }

    fn close(&self, id: u32) -> io::Result<()> {
        backing_close(self.fuse.as_fd(), id)
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
