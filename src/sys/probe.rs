//! Asking a mount something without waiting for ever.
//!
//! A call on a mount whose daemon is stopped, or waits for its disk, does not return; and a process with a thread in
//! such a call may not even be able to end. So a child asks, and is left behind when it gets no answer.
//!
//! Invariant: the child holds none of the standard streams, so nobody waits for it by waiting for our output.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};

use super::process::{self, Forked};

/// Asks `question` in a child; None when there was no answer within `limit`. Only while the process has a single
/// thread.
///
/// # Errors
/// When there can be no child.
pub fn ask(limit: Duration, question: impl FnOnce() -> Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    match process::fork()? {
        Forked::Parent(child) => {
            drop(write);
            let answer = read_until(read, Instant::now() + limit)?;
            let child = Pid::from_raw(child).ok_or(Errno::SRCH)?;
            // One that has answered ends now; one that has not may be unable to, and goes to init with us.
            let how = if answer.is_some() { WaitOptions::empty() } else { WaitOptions::NOHANG };
            if answer.is_none() {
                rustix::process::kill_process(child, Signal::KILL)?;
            }
            rustix::process::waitpid(Some(child), how)?;
            Ok(answer)
        }
        Forked::Child => {
            drop(read);
            let told = process::detach()
                .map_err(io::Error::from)
                .and_then(|()| File::from(write).write_all(&question()));
            // SAFETY: the call ends the process, without what the parent has registered for its own end.
            unsafe { libc::_exit(i32::from(told.is_err())) }
        }
    }
}

/// All that comes through a pipe until its other end is closed; None when that takes longer than `deadline`.
///
/// # Errors
/// Those of poll(2) and read(2).
pub fn read_until(pipe: OwnedFd, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let mut pipe = File::from(pipe);
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(None),
            Err(Errno::INTR) => continue,
            ready => ready?,
        };
        match pipe.read(&mut piece)? {
            0 => return Ok(Some(all)),
            n => all.extend_from_slice(piece.get(..n).unwrap_or_default()),
        }
    }
}
