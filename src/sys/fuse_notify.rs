//! A message to the kernel's FUSE driver that fuser does not send.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// Has the kernel send again all requests that were read and not answered (`FUSE_NOTIFY_RESEND`). Returns false when the
/// kernel cannot (before Linux 6.9).
#[must_use]
pub fn resend(device: BorrowedFd<'_>) -> bool {
    const CODE: u32 = 7;
    /// The length of the message, its code in the place of an error, and the number of the request, which is 0.
    const LEN: u32 = 16;
    let mut message = [0_u8; LEN as usize];
    let head = LEN.to_ne_bytes().into_iter().chain(CODE.to_ne_bytes());
    message.iter_mut().zip(head).for_each(|(to, from)| *to = from);
    // Another error says that the mount has ended, which the loops notice.
    rustix::io::write(device, &message) != Err(Errno::INVAL)
}
