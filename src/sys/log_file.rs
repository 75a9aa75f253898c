//! The log file of a daemon, with rotation.
//!
//! After [`open`], lines go to the file. Standard error becomes the same file, so that the message of a panic or an abort
//! is logged too. Before that, lines go to standard error.
//!
//! Invariants: writing a line never fails for the caller and never panics. It waits at most 100 ms for another writer,
//! which may hang on its disk. The file and the rotated file have at most [`LIMIT`] bytes each.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use parking_lot::Mutex;

use super::guarded::{Access, Dir, GuardedError, Problem};

/// Size in bytes at which the log is rotated. Only one rotated file is kept.
pub const LIMIT: u64 = 1 << 20;

/// How long a line waits for another writer before it is dropped.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// The names of the log and of the rotated log.
const NAME: &str = "log";
const OLD: &str = "log.old";

/// The log of this process, after [`open`]. A leaf lock.
static LOG: Mutex<Option<LogFile>> = Mutex::new(None);

#[derive(Debug)]
struct LogFile {
    dir: Dir,
    file: File,
    len: u64,
    /// Lines that were lost since the last line that was written.
    lost: u64,
    /// The last write was short, so the file does not end with a newline.
    torn: bool,
}

/// Opens the log in `dir`, and sends all further lines of this process to it.
///
/// # Errors
/// When the file cannot be opened, or is not a regular file with one hard link.
pub fn open(dir: Dir) -> Result<(), GuardedError> {
    let (file, _) = dir.open_or_create(OsStr::new(NAME), Access::Append, 0o600)?;
    let failed = |errno| GuardedError { path: dir.path().join(NAME), problem: Problem::Os(errno) };
    let len = rustix::fs::fstat(&file).map_err(failed)?.st_size.unsigned_abs();
    rustix::stdio::dup2_stderr(&file).map_err(failed)?;
    let mut log = LogFile { dir, file, len, lost: 0, torn: false };
    // If the rotation fails here, the next line that exceeds the limit tries again.
    if log.len > LIMIT && log.rotate().is_err() {
        log.lost += 1;
    }
    *LOG.lock() = Some(log);
    Ok(())
}

/// Opens the log anew, in a process that took the place of another one. That one may have closed the descriptors of this
/// value, and their numbers may be in use.
///
/// # Errors
/// As [`open`].
pub fn reopen(dir: Dir) -> Result<(), GuardedError> {
    std::mem::forget(LOG.lock().take());
    open(dir)
}

/// Whether this process has a log file.
#[must_use]
pub fn is_open() -> bool {
    LOG.try_lock_for(LOCK_TIMEOUT).is_none_or(|log| log.is_some())
}

/// Writes complete lines, or drops them if that is not possible.
pub fn write(lines: &[u8]) {
    let Some(mut log) = LOG.try_lock_for(LOCK_TIMEOUT) else { return };
    match log.as_mut() {
        Some(log) => log.write(lines),
        // An error here cannot be reported anywhere.
        None => drop(io::stderr().write_all(lines)),
    }
}

impl LogFile {
    fn write(&mut self, lines: &[u8]) {
        let mut text = Vec::new();
        if self.torn {
            text.push(b'\n');
        }
        if self.lost > 0 {
            text.extend(format!("{} lines could not be written here\n", self.lost).into_bytes());
        }
        text.extend(lines);
        if self.len + text.len() as u64 > LIMIT && self.rotate().is_err() {
            self.lost += 1;
            return;
        }
        match self.file.write(&text) {
            Ok(n) => {
                self.len += n as u64;
                self.torn = n < text.len();
                self.lost = if self.torn { self.lost + 1 } else { 0 };
            }
            Err(_) => self.lost += 1,
        }
    }

    /// Renames the log and opens a new one. After an error, the next line tries again.
    fn rotate(&mut self) -> io::Result<()> {
        match self.dir.rename(OsStr::new(NAME), OsStr::new(OLD)) {
            // ENOENT: an earlier call renamed the log and could not open a new one.
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        self.file = self.dir.open_or_create(OsStr::new(NAME), Access::Append, 0o600)?.0;
        (self.len, self.torn) = (0, false);
        Ok(rustix::stdio::dup2_stderr(&self.file)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::guarded::Trust;
    use super::*;

    fn log(dir: &std::path::Path) -> LogFile {
        let dir = Dir::open(dir, Trust::Private).unwrap();
        let (file, _) = dir.open_or_create(OsStr::new(NAME), Access::Append, 0o600).unwrap();
        LogFile { dir, file, len: 0, lost: 0, torn: false }
    }

    #[test]
    fn a_log_and_the_one_before_it_stay_small() {
        // Rotation replaces standard error, so this test stays below the limit; an e2e test rotates.
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        let line = vec![b'x'; 10_000];
        for _ in 0..LIMIT / 10_000 {
            log.write(&line);
        }
        assert!(std::fs::metadata(dir.path().join(NAME)).unwrap().len() <= LIMIT);
        assert!(!dir.path().join(OLD).exists());
    }

    #[test]
    fn what_could_not_be_written_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        let good = std::mem::replace(&mut log.file, File::open("/dev/null").unwrap());
        log.write(b"lost\n");
        log.write(b"lost\n");
        log.file = good;
        log.write(b"there\n");
        let text = std::fs::read_to_string(dir.path().join(NAME)).unwrap();
        assert_eq!(text, "2 lines could not be written here\nthere\n");
    }
}
