//! Asks the kernel whether a FUSE request that was read from a device still waits for its answer.
//!
//! A worker that died may have answered a request or not, and nothing in its memory can tell for certain. The kernel can:
//! it finds a request by its number when an answer to an *interrupt* of it is written. Such an answer without an error has
//! no effect, and fails with ENOENT when no request with that number waits. (`fuse_dev_do_write` in the kernel's
//! `fs/fuse/dev.c`; the same since Linux 2.6.)
//!
//! Limit: each device descriptor knows only the requests that were read from it.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// The bit of a request's number that marks an interrupt of it.
const INTERRUPT: u64 = 1;

/// `struct fuse_out_header`: length, error, number.
const HEADER: usize = 16;

/// Whether a request that was read from this device still waits for its answer. `unique` is the number as it was read.
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
