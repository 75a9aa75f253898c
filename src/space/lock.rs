//! Takes the flock of a space's state directory and the one beside its mountpoint, and finds the holder of a flock.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::SpaceError;
use crate::sys::guarded::{self, Access, Dir};

/// How often to retry a busy lock.
const RETRY: Duration = Duration::from_millis(10);

/// Locks a file of a directory, and creates it if necessary. If the lock does not become free in `timeout`, the inner
/// error is the process that holds it, if that is known.
///
/// # Errors
/// Those of opening the file and of flock(2).
pub fn take(
    dir: &Dir,
    name: &OsStr,
    mode: u32,
    timeout: Duration,
) -> Result<Result<File, Option<u32>>, SpaceError> {
    let deadline = Instant::now() + timeout;
    loop {
        let (file, _) = dir.open_or_create(name, Access::Write, mode)?;
        let held = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if dir.still_has(name, &file) => return Ok(Ok(file)),
            // The file was removed or replaced meanwhile, for example by `rcc holotree delete`.
            Ok(()) => false,
            Err(Errno::WOULDBLOCK) => true,
            Err(errno) => return Err(SpaceError::io(&dir.path().join(name))(errno.into())),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(held.then(|| holder(&file)).flatten()));
        }
        if held {
            std::thread::sleep(RETRY.min(left));
        }
    }
}

/// Opens a file if a process holds a flock on it. None if nobody does, or the file does not exist.
#[must_use]
pub fn busy(path: &Path) -> Option<File> {
    let file = guarded::open_file(path, Access::Read).ok()?;
    // If the lock is free, this takes it until the file is closed at the end of this function.
    let is_busy = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
    is_busy.then_some(file)
}

/// The process that holds a flock on the file, if `/proc/locks` shows it. The answer may be outdated at once, so it is for
/// messages only.
#[must_use]
pub fn holder(file: &File) -> Option<u32> {
    let found = file.metadata().ok()?;
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    holder_in(&table, rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()), found.ino())
}

fn holder_in(table: &str, major: u32, minor: u32, inode: u64) -> Option<u32> {
    // 1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF      (a waiter's line has "->" after the number)
    let exact = format!("{major:02x}:{minor:02x}:{inode}");
    let same_inode = format!(":{inode}");
    let holders = || {
        table.lines().filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            if fields.next()? != "FLOCK" {
                return None;
            }
            let pid: u32 = fields.nth(2)?.parse().ok()?;
            Some((pid, fields.next()?))
        })
    };
    // On some filesystems this device number differs from stat's. Then compare the inode number only.
    let found = holders()
        .find(|(_, at)| *at == exact)
        .or_else(|| holders().find(|(_, at)| at.ends_with(&same_inode)));
    found.map(|(pid, _)| pid).filter(|pid| *pid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
1: POSIX  ADVISORY  WRITE 11 fd:01:77 0 EOF
2: FLOCK  ADVISORY  WRITE 4711 fd:01:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 4712 fd:01:77 0 EOF
3: FLOCK  ADVISORY  WRITE 99 00:2b:78 0 EOF
";

    #[test]
    fn holder_is_the_one_that_does_not_wait() {
        assert_eq!(holder_in(TABLE, 0xfd, 1, 77), Some(4711));
    }

    #[test]
    fn another_device_number_is_forgiven() {
        assert_eq!(holder_in(TABLE, 1, 1, 78), Some(99));
        assert_eq!(holder_in(TABLE, 1, 1, 79), None);
    }
}
