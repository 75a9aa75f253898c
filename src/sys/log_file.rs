//! The log of a daemon: a file that stays small, and whose failure harms nobody.
//!
//! Once a log has been taken, lines go there and standard error is the same file, for what is said at the end of a
//! process that dies. Before that, lines go to standard error.
//!
//! Invariants: writing a line never fails for the caller, never panics, and never waits for another line that waits
//! for its disk; the file and the one before it hold at most [`LIMIT`] bytes each.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use parking_lot::Mutex;

use super::guarded::{Access, Dir, GuardedError, Problem};

/// How large a log becomes before it is put aside, in place of the one that was put aside before.
pub const LIMIT: u64 = 1 << 20;

/// How long a line waits for others that are being written.
const PATIENCE: Duration = Duration::from_millis(100);

/// The log's name in its directory, and that of the log before it.
const NAME: &str = "log";
const OLD: &str = "log.old";

/// The process's log, once it has one. A leaf lock.
static TAKEN: Mutex<Option<LogFile>> = Mutex::new(None);

#[derive(Debug)]
struct LogFile {
    dir: Dir,
    file: File,
    len: u64,
    /// Lines that could not be written since the last one that could.
    lost: u64,
    /// The last line is not whole.
    torn: bool,
}

/// Has this process's lines go to the log in `dir` from now on.
///
/// # Errors
/// When the file cannot be opened, or is not a file of ours alone.
pub fn take(dir: Dir) -> Result<(), GuardedError> {
    let (file, _) = dir.open_or_create(OsStr::new(NAME), Access::Append, 0o600)?;
    let len = file.metadata().map_or(0, |found| found.len());
    rustix::stdio::dup2_stderr(&file)
        .map_err(|errno| GuardedError { path: dir.path().to_owned(), problem: Problem::Os(errno) })?;
    let mut log = LogFile { dir, file, len, lost: 0, torn: false };
    // One that cannot be put aside now will be when a line is too much for it.
    if log.len > LIMIT && log.put_aside().is_err() {
        log.lost += 1;
    }
    *TAKEN.lock() = Some(log);
    Ok(())
}

/// Whether this process has a log.
#[must_use]
pub fn is_taken() -> bool {
    TAKEN.try_lock_for(PATIENCE).is_none_or(|taken| taken.is_some())
}

/// Writes whole lines, or nothing when that cannot be done.
pub fn write(lines: &[u8]) {
    let Some(mut taken) = TAKEN.try_lock_for(PATIENCE) else { return };
    match taken.as_mut() {
        Some(log) => log.write(lines),
        // There is nobody to tell that nothing can be told.
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
        if self.len + text.len() as u64 > LIMIT && self.put_aside().is_err() {
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

    /// Begins a new file; when that fails the next line tries again.
    fn put_aside(&mut self) -> io::Result<()> {
        match self.dir.rename(OsStr::new(NAME), OsStr::new(OLD)) {
            // Put aside before, and then no new one could be made.
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
        let dir = Dir::open(dir, Trust::Ours).unwrap();
        let (file, _) = dir.open_or_create(OsStr::new(NAME), Access::Append, 0o600).unwrap();
        LogFile { dir, file, len: 0, lost: 0, torn: false }
    }

    #[test]
    fn a_log_and_the_one_before_it_stay_small() {
        // In a process of its own, since standard error changes: only what does not change it is tried here.
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
