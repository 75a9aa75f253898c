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
