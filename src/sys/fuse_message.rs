//! Messages to the kernel's FUSE driver that fuser does not send, or whose answer it hides.
//!
//! Each is written to a FUSE device, and its answer is the error of write(2). Two of them ask what no memory of a process
//! that died can tell for certain: whether the kernel still knows an inode number, and whether a request still waits.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, RawFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::process;

/// `FUSE_NOTIFY_INVAL_INODE` of `linux/fuse.h`.
const INVAL_INODE: u32 = 2;
/// `FUSE_NOTIFY_RESEND`.
const RESEND: u32 = 7;

/// The bit of a request's number that marks an interrupt of it.
const INTERRUPT: u64 = 1;

/// The error of an answer.
const EINTR: u32 = (-libc::EINTR).cast_unsigned();

/// The device number of `/dev/fuse`.
const DEVICE: (u32, u32) = (10, 229);

/// Writes a message: `struct fuse_out_header` and more words. `code` is that of a notification (which has no request, so
/// `unique` is 0), or 0.
fn send(device: BorrowedFd<'_>, code: u32, unique: u64, more: &[u64]) -> Result<(), Errno> {
    let len = u32::try_from(16 + size_of_val(more)).map_err(|_| Errno::INVAL)?;
    let mut message = [len.to_ne_bytes(), code.to_ne_bytes()].concat();
    message.extend([unique].iter().chain(more).flat_map(|word| word.to_ne_bytes()));
    rustix::io::retry_on_intr(|| rustix::io::write(device, &message)).map(drop)
}

/// Has the kernel send again all requests that were read and not answered. Returns false when the kernel cannot (before
/// Linux 6.9).
#[must_use]
pub fn resend(device: BorrowedFd<'_>) -> bool {
    // Another error says that the mount has ended, which the loops notice.
    send(device, RESEND, 0, &[]) != Err(Errno::INVAL)
}

/// Whether the kernel knows an inode number. If it does not tell, it may. The question makes the kernel ask for the
/// attributes of the inode again, which costs next to nothing.
#[must_use]
pub fn knows(device: BorrowedFd<'_>, ino: u64) -> bool {
    // A negative offset drops only attributes. The kernel answers ENOENT if it does not have the inode.
    match send(device, INVAL_INODE, 0, &[ino, u64::MAX, 0]) {
        Err(Errno::NOENT) => false,
        Ok(()) => true,
        Err(errno) => {
            tracing::debug!(ino, %errno, "the kernel does not say whether it knows an inode");
            true
        }
    }
}

/// Whether a request that was read from this device still waits for its answer. `unique` is the number as it was read. The
/// device is the very descriptor from which it was read, or a duplicate, not a clone.
///
/// The kernel finds a request by its number when the answer to an *interrupt* of it is written. Such an answer without an
/// error has no effect, and fails with ENOENT when no request with that number waits. (`fuse_dev_do_write` in the kernel's
/// `fs/fuse/dev.c`; the same since Linux 2.6.)
///
/// # Errors
/// The errno of write(2): ENODEV or EPERM when the device has no connection.
pub fn is_in_flight(device: BorrowedFd<'_>, unique: u64) -> Result<bool, Errno> {
    match send(device, 0, unique | INTERRUPT, &[]) {
        Ok(()) => Ok(true),
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
        is_device(fd)
            && is_in_flight(device, unique).unwrap_or_else(|errno| {
                tracing::debug!(fd, %errno, "cannot ask the kernel for a request");
                false
            })
    }))
}

/// Answers requests with EINTR, whichever FUSE device of this process they were read from. Those that do not wait any more are
/// left alone. EINTR says that nobody knows whether they were done: the kernel then forgets the names that a rename or a
/// removal was about. Returns how many were answered. As [`is_in_flight_anywhere`], for a process that takes the place of another one.
///
/// # Errors
/// When the descriptors of this process cannot be listed.
pub fn interrupt_anywhere(uniques: &[u64]) -> Result<usize, Errno> {
    let mut failed = 0;
    for (fd, ..) in process::open_descriptors()?.into_iter().filter(|(fd, ..)| is_device(*fd)) {
        // SAFETY: no thread closes the descriptors of a process that died before its successor has begun.
        let device = unsafe { BorrowedFd::borrow_raw(fd) };
        let answer = |unique: &&u64| send(device, EINTR, **unique, &[]).is_ok();
        failed += uniques.iter().filter(answer).count();
    }
    Ok(failed)
}

/// Whether the descriptor of this number is a FUSE device.
#[must_use]
pub fn is_device(fd: RawFd) -> bool {
    if fd < 0 {
        return false;
    }
    // SAFETY: fstat(2) does no harm to a descriptor, whoever owns it, and fails for one that is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && number == DEVICE
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let (reads, writes) = rustix::pipe::pipe().unwrap();
        let received = || {
            let mut buffer = [0; 64];
            let len = rustix::io::read(&reads, &mut buffer).unwrap();
            (len, buffer)
        };
        assert!(knows(writes.as_fd(), 0x0102));
        let (len, message) = received();
        let number = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().unwrap());
        assert_eq!(
            (len, &message[..4], &message[4..8]),
            (40, &40_u32.to_ne_bytes()[..], &2_u32.to_ne_bytes()[..])
        );
        assert_eq!([8, 16, 24, 32].map(number), [0, 0x0102, u64::MAX, 0]);
        assert!(resend(writes.as_fd()));
        assert_eq!(received().0, 16);
        assert_eq!(is_in_flight(writes.as_fd(), 6), Ok(true));
        let (len, message) = received();
        assert_eq!((len, &message[4..16]), (16, &[[0; 4], 7_u32.to_ne_bytes(), [0; 4]].concat()[..]));
    }
}
