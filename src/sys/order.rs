//! Bytes before names: a file's bytes are out before anything that is done to names afterwards can be.
//!
//! A loss of power may keep a rename and lose the bytes of the renamed file: it is then empty. A sync before the
//! rename prevents that, and waits for the journal, which takes milliseconds. On a filesystem whose journal keeps the
//! order in which things were done, it is enough that the device was given the bytes: the file's size and extents are
//! in the journal then, before the rename, and the journal has the device's cache flushed before it counts. That takes
//! a fortieth. Invariant: where the order is not known to be kept, the file is synced.
//!
//! Kept by ext4 with a journal (`jbd2` commits in order; a page counts as written when its extent was recorded) and by
//! XFS (one log; likewise). Not by btrfs: it records extents some time after the pages were written.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// `EXT4_SUPER_MAGIC` and `XFS_SUPER_MAGIC` of `linux/magic.h`.
const EXT4: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;

/// Whether the journal of one filesystem keeps the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// What was done first survives first.
    Kept,
    /// Not known.
    Unknown,
}

impl Order {
    /// That of the filesystem which holds an open file or directory.
    #[must_use]
    pub fn of(fd: impl AsFd) -> Self {
        let kept = rustix::fs::fstatfs(&fd).is_ok_and(|found| match found.f_type {
            XFS => true,
            EXT4 => has_journal(fd.as_fd()),
            _ => false,
        });
        if kept { Self::Kept } else { Self::Unknown }
    }

    /// Has the bytes of a file survive before anything that is done afterwards does.
    ///
    /// # Errors
    /// Those of writing to the device.
    pub fn write_out(self, file: &impl AsFd) -> Result<(), Errno> {
        match self {
            Self::Kept => wait_for_device(file),
            Self::Unknown => rustix::fs::fdatasync(file),
        }
    }
}

/// An ext4 without a journal has none of the order. The kernel tells by the process that writes the journal.
fn has_journal(fd: impl AsFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(fd) else { return false };
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let Ok(device) = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")) else { return false };
    let Some(name) = device.file_name() else { return false };
    let told = std::fs::read_to_string(std::path::Path::new("/sys/fs/ext4").join(name).join("journal_task"));
    told.is_ok_and(|pid| pid.trim().parse::<u32>().is_ok())
}

/// Writes a file's pages and waits until the device has them.
fn wait_for_device(file: &impl AsFd) -> Result<(), Errno> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, and the call takes numbers only.
    match unsafe { libc::sync_file_range(fd, 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_written_out_whatever_is_known() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"bytes").unwrap();
        for order in [Order::of(&file), Order::Kept, Order::Unknown] {
            order.write_out(&file).unwrap();
        }
    }

    #[test]
    fn nothing_is_known_of_a_filesystem_without_a_journal() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(Order::of(&proc), Order::Unknown);
    }
}
