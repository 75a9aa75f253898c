//! System calls that rustix does not have as safe functions.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use holofs_mount_helper::passthrough::last_errno;
use rustix::io::Errno;

/// Empties the environment.
pub(crate) fn clear_environment() -> Result<(), Errno> {
    // SAFETY: there is one thread, and nothing holds a reference to a variable.
    if unsafe { libc::clearenv() } == 0 { Ok(()) } else { Err(Errno::NOMEM) }
}

/// Closes all descriptors from `first` on.
pub(crate) fn close_from(first: u32) -> Result<(), Errno> {
    // SAFETY: called once at the start, when no value owns a descriptor above 2.
    if unsafe { libc::close_range(first, u32::MAX, 0) } == 0 { Ok(()) } else { Err(Errno::NOSYS) }
}

/// Whether another open file description has a lock on a byte.
pub(crate) fn is_locked(file: BorrowedFd<'_>, byte: i64) -> Result<bool, Errno> {
    // A write lock conflicts with every other lock.
    Ok(i32::from(lock_call(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?) != libc::F_UNLCK)
}

/// Sets or clears a shared lock on a byte. The lock belongs to the open file description, and lasts until the kernel closes
/// it. Several open file descriptions can have a lock on the same byte.
pub(crate) fn set_lock(file: BorrowedFd<'_>, byte: i64, wanted: bool) -> Result<(), Errno> {
    let kind = if wanted { libc::F_RDLCK } else { libc::F_UNLCK };
    lock_call(file, libc::F_OFD_SETLK, kind, byte).map(drop)
}

fn lock_call(file: BorrowedFd<'_>, command: i32, kind: i32, byte: i64) -> Result<i16, Errno> {
    // SAFETY: all fields are numbers, for which zero is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).map_err(|_| Errno::INVAL)?;
    lock.l_whence = 0;
    lock.l_start = byte;
    lock.l_len = 1;
    // SAFETY: the commands read and write one `flock`.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == 0 {
        Ok(lock.l_type)
    } else {
        Err(last_errno())
    }
}
