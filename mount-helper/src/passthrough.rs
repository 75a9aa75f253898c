//! The system calls that register files with the kernel for FUSE passthrough.
//!
//! They need CAP_SYS_ADMIN in the initial user namespace. The mount helper makes them for an ordinary user, and a daemon
//! with the capability makes them itself. This is the only `unsafe` code of the library.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, opcode};
use rustix::mount::{OpenTreeFlags, open_tree};

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

// SAFETY: the ioctl only reads the `BackingMap` that `as_ptr` points to, and returns a number.
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
        u32::try_from(out).map_err(|_| Errno::IO)
    }
}

/// Registers `file` on the connection of `fuse`, and returns the backing id.
///
/// # Errors
/// EPERM without the privilege, or for a file that cannot be registered; ELOOP when the file lies on a stacked
/// filesystem; ENOMEM.
pub fn backing_open(fuse: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32, Errno> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the argument is the structure that belongs to the opcode. The kernel takes its own reference to `file`.
    unsafe { rustix::ioctl::ioctl(fuse, map) }
}

/// Closes a backing id. Open files that use it are not affected.
///
/// # Errors
/// ENOENT for an id that is not registered.
pub fn backing_close(fuse: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    // SAFETY: the ioctl reads a u32.
    let close = unsafe { Setter::<BACKING_CLOSE, u32>::new(id) };
    // SAFETY: `close` has the argument that belongs to the opcode.
    unsafe { rustix::ioctl::ioctl(fuse, close) }
}

/// Clones the mount that a descriptor is on, from the descriptor's path downwards. The clone is read-only and detached, and
/// does not contain the mounts below.
///
/// # Errors
/// Those of open_tree(2) and mount_setattr(2).
pub fn read_only_clone(of: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(of, "", flags)?;
    set_read_only(clone.as_fd())?;
    Ok(clone)
}

/// Makes a detached mount read-only and private.
fn set_read_only(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string, and the structure has the size that is passed with it.
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
