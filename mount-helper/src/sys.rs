//! The only `unsafe` code of the program: calls that rustix has not, or not safely.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, opcode};

/// Empties the environment.
pub(crate) fn clear_environment() -> Result<(), Errno> {
    // SAFETY: there is one thread, and nothing holds a reference to the environment.
    if unsafe { libc::clearenv() } == 0 { Ok(()) } else { Err(Errno::NOMEM) }
}

/// Closes all descriptors from a number on, whoever opened them.
pub(crate) fn close_from(first: u32) -> Result<(), Errno> {
    // SAFETY: called once, at the start, when nothing of ours has a descriptor above 2.
    if unsafe { libc::close_range(first, u32::MAX, 0) } == 0 { Ok(()) } else { Err(Errno::NOSYS) }
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
        u32::try_from(out).map_err(|_| Errno::IO)
    }
}

/// Registers `file` on the connection that `fuse` is a descriptor of.
pub(crate) fn backing_open(fuse: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32, Errno> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the opcode belongs to the device and its argument is the structure that it names; the kernel takes its
    // own reference of `file`.
    unsafe { rustix::ioctl::ioctl(fuse, map) }
}

/// Gives a number back.
pub(crate) fn backing_close(fuse: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    // SAFETY: the operation reads one u32.
    let close = unsafe { Setter::<BACKING_CLOSE, u32>::new(id) };
    // SAFETY: the opcode belongs to the device, and `close` carries the argument that it names.
    unsafe { rustix::ioctl::ioctl(fuse, close) }
}

/// Makes a mount that is attached nowhere read-only, and has it take no part in what happens to the one it is a clone of.
pub(crate) fn set_read_only(mount: BorrowedFd<'_>) -> Result<(), Errno> {
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

/// Whether another open file has a lock on a byte.
pub(crate) fn is_locked(file: BorrowedFd<'_>, byte: i64) -> Result<bool, Errno> {
    // Every lock is in the way of one for writing.
    Ok(i32::from(lock_call(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?) != libc::F_UNLCK)
}

/// Locks or unlocks a byte of a file for the open file, which keeps the lock as long as the kernel keeps it open. Any
/// number of open files may have a lock on one byte.
pub(crate) fn set_lock(file: BorrowedFd<'_>, byte: i64, wanted: bool) -> Result<(), Errno> {
    let kind = if wanted { libc::F_RDLCK } else { libc::F_UNLCK };
    lock_call(file, libc::F_OFD_SETLK, kind, byte).map(drop)
}

fn lock_call(file: BorrowedFd<'_>, command: i32, kind: i32, byte: i64) -> Result<i16, Errno> {
    // SAFETY: a structure of numbers only.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).map_err(|_| Errno::INVAL)?;
    lock.l_whence = 0;
    lock.l_start = byte;
    lock.l_len = 1;
    // SAFETY: the commands read and write one `flock`.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == 0 {
        Ok(lock.l_type)
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}
