//! Conversions between fuser's types and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::namespace::read::Taken;
use crate::namespace::types::{Attr, Caller, Ino, Kind, SetTime, Time};

/// Preferred size of I/O that `stat` returns, in bytes.
const BLOCK_SIZE: u32 = 4096;

pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

pub(super) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Dir => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_number(attr.device),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// A device number in the kernel's encoding (`new_encode_dev`): 12 bits of major, 20 of minor.
fn device_number(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The inverse of [`device_number`].
pub(super) fn device_of(number: u32) -> u64 {
    rustix::fs::makedev((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}

/// Before the epoch, our seconds are negative and our nanoseconds still count forward.
fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nsec));
    let at = match u64::try_from(time.sec) {
        Ok(sec) => UNIX_EPOCH.checked_add(Duration::from_secs(sec)),
        Err(_) => UNIX_EPOCH.checked_sub(Duration::from_secs(time.sec.unsigned_abs())),
    };
    at.and_then(|at| at.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(time_of(at)),
    }
}

/// The time that the kernel sent.
///
/// Before the epoch, the kernel's nanoseconds count forward from negative seconds, but fuser counts both backward: it
/// decodes {-1 s, 999,999,999 ns} as 1.999999999 s before the epoch. So the distance has the kernel's own seconds and
/// nanoseconds, and only the sign of the seconds is missing.
fn time_of(at: SystemTime) -> Time {
    let (since, sign) = match at.duration_since(UNIX_EPOCH) {
        Ok(since) => (since, 1),
        Err(before) => (before.duration(), -1),
    };
    let sec = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Time { sec: sign * sec, nsec: since.subsec_nanos() }
}

/// Who sent a request.
pub(super) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

/// Whether a listing has room for more.
pub(super) fn taken(full: bool) -> Taken {
    if full { Taken::Full } else { Taken::Yes }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes a time of the kernel as fuser does.
    fn decoded(time: Time) -> SystemTime {
        let parts = Duration::new(time.sec.unsigned_abs(), time.nsec);
        if time.sec >= 0 { UNIX_EPOCH + parts } else { UNIX_EPOCH - parts }
    }

    #[test]
    fn times_of_the_kernel_are_kept_also_before_the_epoch() {
        for (sec, nsec) in [(0, 0), (1_610_000_000, 0), (1, 999_999_999), (-1, 0), (-1, 999_999_999), (-2, 5)]
        {
            assert_eq!(time_of(decoded(Time { sec, nsec })), Time { sec, nsec });
        }
    }

    #[test]
    fn times_are_sent_as_distances_from_the_epoch() {
        let sent = system_time(Time { sec: -2, nsec: 500_000_000 });
        assert_eq!(sent, UNIX_EPOCH - Duration::from_millis(1500));
    }

    #[test]
    fn device_numbers_go_to_the_kernel_and_back() {
        for (major, minor) in [(0, 0), (1, 3), (259, 70_000), (4095, (1 << 20) - 1)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(device_of(device_number(device)), device);
        }
        assert_eq!(device_number(rustix::fs::makedev(1, 3)), 0x103);
    }
}
