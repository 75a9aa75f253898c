//! Calls on one descriptor that rustix does not have.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

/// Begins to write out what was written to a file, and does not wait: who syncs or clones it later waits less. It
/// is only advice, so nothing is said when the filesystem cannot.
pub fn start_writeback(file: &impl AsFd) {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, and the call takes numbers only.
    unsafe { libc::sync_file_range(fd, 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}
