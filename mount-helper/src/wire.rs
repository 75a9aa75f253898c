//! Messages in and out of the socket, with their descriptors.
//!
//! Invariant: every descriptor that comes in is owned at once, so that it is closed whatever becomes of its message.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use holofs_mount_helper::proto::{REQUEST_SIZE, Reply};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors for which there is room beside a request: more than any brings, so that too many are seen.
const MOST_FDS: usize = 4;

/// What came in.
#[derive(Debug)]
pub(crate) struct Received {
    bytes: [u8; REQUEST_SIZE + 1],
    size: usize,
    /// The descriptors, in order.
    pub(crate) fds: Vec<OwnedFd>,
    /// Something was left out, because it was too long or because it was too much, or there was something else.
    pub(crate) is_odd: bool,
}

impl Received {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.size).unwrap_or_default()
    }
}

/// The next message; None when the other side is gone.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Option<Received>, Errno> {
    let mut bytes = [0; REQUEST_SIZE + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut into = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    let mut is_odd = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    for part in ancillary.drain() {
        match part {
            RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
            _ => is_odd = true,
        }
    }
    if message.bytes == 0 && fds.is_empty() {
        return Ok(None);
    }
    Ok(Some(Received { bytes, size: message.bytes, fds, is_odd }))
}

/// Sends a reply, with the descriptor that belongs to it.
pub(crate) fn send(socket: BorrowedFd<'_>, reply: Reply, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let bytes = reply.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(_) => return Err(Errno::IO),
            Err(errno) => return Err(errno),
        }
    }
}
