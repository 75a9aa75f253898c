//! Accesses a mount with a timeout.
//!
//! A system call on a mount whose daemon is stopped, or hangs on its disk, does not return. A process with a thread in such
//! a call possibly cannot exit. Therefore a child process makes the call, and is abandoned after the timeout.
//!
//! Invariant: the child has none of the standard streams, so whoever reads our output until EOF does not wait for the
//! child.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, WaitOptions};

use super::process;

/// Runs `question` in a child process and returns its result; None after the timeout `limit`. The process must have a
/// single thread.
///
/// # Errors
/// When the child cannot be started.
pub fn ask(limit: Duration, question: impl FnOnce() -> Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    match process::fork()? {
        Some(child) => {
            drop(write);
            let answer = read_until(read, Instant::now() + limit)?;
            // A child that has answered exits at once. Another one may be unable to, and init reaps it later.
            let how = if answer.is_some() { WaitOptions::empty() } else { WaitOptions::NOHANG };
            if answer.is_none() {
                rustix::process::kill_process(child, Signal::KILL)?;
            }
            rustix::process::waitpid(Some(child), how)?;
            Ok(answer)
        }
        None => {
            drop(read);
            let written = process::detach()
                .map_err(io::Error::from)
                .and_then(|()| File::from(write).write_all(&question()));
            // SAFETY: the call ends the process. It skips the exit handlers, which belong to the parent.
            unsafe { libc::_exit(i32::from(written.is_err())) }
        }
    }
}

/// Reads a pipe until EOF. None when `deadline` passes first.
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
