//! Between fuser's types and ours. Nothing is decided here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::namespace::types::{Attr, Ino, Kind, SetTime, Time};

/// The block size that `stat` recommends for I/O.
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
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// A time before the epoch has negative seconds and nanoseconds that count forward from them.
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

fn time_of(at: SystemTime) -> Time {
    match at.duration_since(UNIX_EPOCH) {
        Ok(since) => {
            Time { sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nsec: since.subsec_nanos() }
        }
        Err(before) => {
            let before = before.duration();
            let sec = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => Time { sec: -sec, nsec: 0 },
                nsec => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_also_before_the_epoch() {
        for time in [
            Time { sec: 0, nsec: 0 },
            Time { sec: 1_610_000_000, nsec: 0 },
            Time { sec: 1, nsec: 999_999_999 },
            Time { sec: -1, nsec: 0 },
            Time { sec: -2, nsec: 500_000_000 },
        ] {
            assert_eq!(time_of(system_time(time)), time);
        }
    }
}
