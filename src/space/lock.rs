//! Takes the flock of a space's state directory and the one beside its mountpoint.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::SpaceError;
pub use crate::sys::fd::holder;
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
