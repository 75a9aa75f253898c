//! Asks the kernel whether a FUSE request that a process has read still waits for its answer.
//!
//! A process that died may have answered a request or not, and nothing in its memory can tell for certain. The kernel can:
//! it finds a request by its number when the answer to an *interrupt* of it is written. Such an answer without an error has
//! no effect, and fails with ENOENT when no request with that number waits. (`fuse_dev_do_write` in the kernel's
//! `fs/fuse/dev.c`; the same since Linux 2.6.)
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::process;

/// The bit of a request's number that marks an interrupt of it.
const INTERRUPT: u64 = 1;

/// The device number of `/dev/fuse`.
const DEVICE: (u32, u32) = (10, 229);

/// `struct fuse_out_header`: length, error, number.
const HEADER: usize = 16;

/// Whether a request that was read from this device still waits for its answer. `unique` is the number as it was read. The
/// device is the very descriptor from which it was read, or a duplicate, not a clone.
///
/// # Errors
/// The errno of write(2): ENODEV or EPERM when the device has no connection.
pub fn is_in_flight(device: BorrowedFd<'_>, unique: u64) -> Result<bool, Errno> {
    let mut message = [0; HEADER];
    let fields = (HEADER as u32).to_ne_bytes().into_iter().chain([0; 4]);
    let fields = fields.chain((unique | INTERRUPT).to_ne_bytes());
    message.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    match rustix::io::retry_on_intr(|| rustix::io::write(device, &message)) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// As [`is_in_flight`], for a request that was read from any FUSE device that this process has open. All of them belong to
/// one mount. False when the mount has ended.
///
/// # Errors
/// When the descriptors of this process cannot be listed.
pub fn is_in_flight_anywhere(unique: u64) -> Result<bool, Errno> {
    let open = process::open_descriptors()?;
    Ok(open.into_iter().any(|(fd, ..)| {
        // SAFETY: no thread closes the descriptors of a process that died before its successor has begun.
        let device = unsafe { BorrowedFd::borrow_raw(fd) };
        is_device(device)
            && is_in_flight(device, unique).unwrap_or_else(|errno| {
                tracing::debug!(fd, %errno, "cannot ask the kernel for a request");
                false
            })
    }))
}

fn is_device(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && number == DEVICE
    })
}
