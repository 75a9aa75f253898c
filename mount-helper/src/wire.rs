//! Sends and receives messages on a Unix socket, with the file descriptors that belong to them.
//!
//! Both sides of the helper's protocol use it, and holofs also receives the descriptor of `fusermount3` with it. Invariant:
//! every received descriptor is owned at once, so that it is closed if its message is rejected.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Room for descriptors in a received message. It is more than any valid message has, so that extra ones are noticed.
const MOST_FDS: usize = 4;

/// A received message of at most `N` bytes.
#[derive(Debug)]
pub struct Received<const N: usize> {
    bytes: [u8; N],
    size: usize,
    /// The descriptors, in the order in which they were sent.
    pub fds: Vec<OwnedFd>,
    /// Whether the message was truncated, or had other ancillary data than descriptors.
    pub is_malformed: bool,
}

impl<const N: usize> Received<N> {
    /// The bytes of the message.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.size).unwrap_or_default()
    }
}

/// Waits for the next message. None when the other side has closed the socket.
///
/// # Errors
/// The errno of recvmsg(2).
pub fn receive<const N: usize>(socket: impl AsFd) -> Result<Option<Received<N>>, Errno> {
    let mut bytes = [0; N];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let (size, flags) = (message.bytes, message.flags);
    let mut fds = Vec::new();
    let mut is_malformed = flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    for part in ancillary.drain() {
        match part {
            RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
            _ => is_malformed = true,
        }
    }
    Ok((size > 0 || !fds.is_empty()).then_some(Received { bytes, size, fds, is_malformed }))
}

/// Sends a message, with at most one descriptor.
///
/// # Errors
/// The errno of sendmsg(2), and EIO after a short write.
pub fn send(socket: impl AsFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    let sent =
        retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL))?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::IO) }
}
