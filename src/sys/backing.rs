//! Backing files of FUSE passthrough: files that the kernel reads, writes and maps in the daemon's stead.
//!
//! A number stands for each, valid on one FUSE connection. Registering needs `CAP_SYS_ADMIN` in the initial user
//! namespace: a daemon that has it asks the kernel itself ([`Direct`]). Invariant: a number that was handed out
//! is given back at most once.
#![allow(unsafe_code)]

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, opcode};

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
}

impl Direct {
    /// Over a descriptor of `/dev/fuse` that is (or was duplicated from) the mount's own.
    #[must_use]
    pub fn new(fuse: OwnedFd) -> Self {
        Self { fuse }
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
    if rustix::fs::fcntl_getfl(file)? & OFlags::RWMODE == OFlags::RDONLY {
        return file.try_clone_to_owned();
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

impl Backings for Direct {
    fn open(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        backing_open(self.fuse.as_fd(), file)
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
    flags: fuser::FopenFlags,
    id: u32,
) {
    // SAFETY: as in `reply_open`.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.created_passthrough(ttl, attr, fuser::Generation(0), fuser::FileHandle(0), flags, &backing);
    backing.into_raw();
}
