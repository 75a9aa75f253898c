//! Descriptors: how many there may be, and calls on one that rustix does not have.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};

use rustix::process::Resource;

/// How many descriptors a cache may keep open: `most`, or one part in so many of what this process may have open at
/// once. The limit does not change once a daemon has raised it.
#[must_use]
pub fn share(most: NonZeroUsize, part: u64) -> NonZeroUsize {
    let Some(limit) = rustix::process::getrlimit(Resource::Nofile).current else { return most };
    let share = usize::try_from(limit / part.max(1)).unwrap_or(usize::MAX);
    NonZeroUsize::new(share).unwrap_or(NonZeroUsize::MIN).min(most)
}

/// Begins to write out what was written to a file, and does not wait: who syncs or clones it later waits less. It
/// is only advice, so nothing is said when the filesystem cannot.
pub fn start_writeback(file: &impl AsFd) {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, and the call takes numbers only.
    unsafe { libc::sync_file_range(fd, 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}
