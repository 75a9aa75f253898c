//! The system calls that register files with the kernel for FUSE passthrough.
//!
//! They need CAP_SYS_ADMIN in the initial user namespace. The mount helper makes them for an ordinary user, and a daemon
//! with the capability makes them itself. This is the only `unsafe` code of the library.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};
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

/// Registers `file` on the connection of `fuse`, and returns the backing id.
///
/// # Errors
/// EPERM without the privilege, or for a file that cannot be registered; ELOOP when the file lies on a stacked
/// filesystem; ENOMEM.
pub fn backing_open(fuse: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32, Errno> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the kernel reads the structure that belongs to the opcode. It takes its own reference to `file`.
    let id = unsafe { libc::ioctl(fuse.as_raw_fd(), BACKING_OPEN as libc::Ioctl, &raw const map) };
    u32::try_from(id).map_err(|_| last_errno())
}

/// Closes a backing id. Open files that use it are not affected.
///
/// # Errors
/// ENOENT for an id that is not registered.
pub fn backing_close(fuse: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    // SAFETY: the kernel reads the u32 that belongs to the opcode.
    match unsafe { libc::ioctl(fuse.as_raw_fd(), BACKING_CLOSE as libc::Ioctl, &raw const id) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
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
            clone.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(clone) } else { Err(last_errno()) }
}

/// The errno of the last call of the C library.
#[must_use]
pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
