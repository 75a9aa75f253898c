//! Starts a FUSE session for a worker.
//!
//! fuser begins each session by answering the kernel's INIT request, which comes once for each mount. So the request is
//! kept, and each worker's session gets it through a pair of sockets. The first worker's answer goes on to the kernel. Then
//! the device takes the place of the socket, under its number.
//!
//! Requests are read from further descriptors of the connection only. Where the kernel cannot send the requests of a dead
//! worker again, it ends those requests when these descriptors are closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use fuser::{Config, Session, SessionACL};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use crate::fuse::Adapter;
use crate::handoff::Handoff;
use crate::sys::fd;

/// The smallest buffer into which the kernel lets a request be read (`FUSE_MIN_READ_BUFFER`), before INIT has agreed on
/// longer ones. An INIT request takes about a hundred bytes.
const REQUEST: usize = 8192;

/// Starts the session of a worker.
///
/// # Errors
/// ENODEV when the mount has ended already, and the errors of the calls.
pub(in crate::session) fn session(
    handoff: &Handoff,
    adapter: Adapter,
    device: BorrowedFd<'_>,
    acl: SessionACL,
    config: Config,
) -> io::Result<Session<Adapter>> {
    let known = handoff.init();
    let is_first = known.is_none();
    let init = known.map_or_else(|| first_request(device, handoff), Ok)?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    send(&ours, &init, SendFlags::NOSIGNAL)?;
    let is_shared = !config.clone_fd;
    let session = Session::from_fd(adapter, theirs, acl, config)?;
    if is_first {
        let mut answer = [0; 4096];
        let (len, _) = recv(&ours, &mut answer[..], RecvFlags::empty())?;
        rustix::io::write(device, answer.get(..len).unwrap_or_default())?;
    }
    if is_shared {
        fd::put_in_place(session.as_fd(), device)?;
    } else {
        fd::put_in_place(session.as_fd(), fd::clone_fuse_device(device)?)?;
    }
    Ok(session)
}

/// Reads the INIT request, and keeps it.
fn first_request(device: BorrowedFd<'_>, handoff: &Handoff) -> io::Result<Vec<u8>> {
    let mut request = vec![0; REQUEST];
    let len = loop {
        match rustix::io::read(device, &mut request) {
            // As fuser does: the request was interrupted.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
            read => break read?,
        }
    };
    request.truncate(len);
    handoff.set_init(&request)?;
    Ok(request)
}
