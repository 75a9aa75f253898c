//! Asks the kernel whether it knows an inode number.
//!
//! `FUSE_NOTIFY_INVAL_INODE` with a negative offset makes the kernel ask for the attributes of an inode again, which costs
//! next to nothing. The kernel answers ENOENT if it does not have the inode. fuser hides that answer.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::namespace::types::Ino;

/// `FUSE_NOTIFY_INVAL_INODE` of `linux/fuse.h`.
const INVAL_INODE: u32 = 2;
/// `struct fuse_out_header` and `struct fuse_notify_inval_inode_out`.
const LEN: usize = 16 + 24;

/// Whether the kernel knows an inode number of the mount behind a FUSE device. If it does not tell, it may.
#[must_use]
pub fn knows(device: BorrowedFd<'_>, ino: Ino) -> bool {
    match rustix::io::write(device, &message(ino)) {
        Err(Errno::NOENT) => false,
        Ok(_) => true,
        Err(errno) => {
            tracing::debug!(?ino, %errno, "the kernel does not say whether it knows an inode");
            true
        }
    }
}

fn message(ino: Ino) -> [u8; LEN] {
    let mut message = [0; LEN];
    // Length, code in the place of an error, no request; inode number, offset, length.
    let words = (LEN as u32).to_ne_bytes().into_iter().chain(INVAL_INODE.to_ne_bytes()).chain([0; 8]);
    let words = words.chain(ino.0.to_ne_bytes()).chain((-1_i64).to_ne_bytes()).chain([0; 8]);
    message.iter_mut().zip(words).for_each(|(to, from)| *to = from);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_laid_out_as_the_kernel_reads_it() {
        let message = message(Ino(0x0102));
        let number = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().unwrap());
        assert_eq!(message[..4], 40_u32.to_ne_bytes());
        assert_eq!(message[4..8], 2_u32.to_ne_bytes());
        assert_eq!([8, 16, 24, 32].map(number), [0, 0x0102, u64::MAX, 0]);
    }
}
