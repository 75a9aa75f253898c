//! The commands that use a mount which ends with the last of them.
//!
//! `holofs run` mounts a space and unmounts it at its end. Two of them can use one space at the same time. Therefore each
//! holds a shared lock on the file `runs` in the state directory, and the one that gets the lock alone at its end unmounts.
//! The file names the daemon of the mount that a run made. Any other mount stays: one by `holofs mount`, and one that
//! `holofs mount` or `--keep` took over, which empties the file.
//!
//! Invariant: a run that has its lock, and sees its mount after that, keeps the mount. A run that was killed has no lock, so
//! the next run ends its mount.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::session::error::Error;
use crate::session::registry;
use crate::space::run::{RunInfo, read_run};
use crate::space::{SpaceError, lock};
use crate::sys::guarded::{Access, Dir, GuardedError, Trust};
use crate::sys::{errno_of, guarded};

const FILE: &str = "runs";

/// Longer than the two numbers in the file.
const MAX_LEN: u64 = 64;

/// A user of the mount of a space.
#[derive(Debug)]
pub(in crate::session) struct User {
    /// Locked while the value lives.
    file: File,
    daemon: RunInfo,
}

impl User {
    /// Becomes a user of the mount that a daemon serves. None if this mount has ended meanwhile, or is ending.
    ///
    /// # Errors
    /// When the file cannot be opened, or a run holds the lock alone for longer than `limit`.
    pub(in crate::session) fn join(
        state_dir: &Path,
        daemon: u32,
        limit: Duration,
    ) -> Result<Option<Self>, Error> {
        let dir = Dir::open(state_dir, Trust::Owned).map_err(SpaceError::from)?;
        let (file, _) =
            dir.open_or_create(OsStr::new(FILE), Access::Write, 0o600).map_err(SpaceError::from)?;
        let deadline = Instant::now() + limit;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => break,
                // The last run is unmounting.
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(Errno::WOULDBLOCK) => {
                    let identity = state_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    return Err(SpaceError::Busy { identity, pid: lock::holder(&file) }.into());
                }
                Err(source) => return Err(os(state_dir, "flock")(source)),
            }
        }
        let run = read_run(state_dir).filter(|run| run.pid == daemon && run.is_running());
        match run {
            Some(daemon) if registry::find(state_dir)?.is_some() => Ok(Some(Self { file, daemon })),
            _ => Ok(None),
        }
    }

    /// Makes the mount end with its last run.
    pub(in crate::session) fn end_with_runs(&self, state_dir: &Path) -> Result<(), Error> {
        self.write(state_dir, &format!("{} {}\n", self.daemon.pid, self.daemon.start_time))
    }

    /// Makes the mount stay.
    pub(in crate::session) fn keep(&self, state_dir: &Path) -> Result<(), Error> {
        self.write(state_dir, "")
    }

    /// In place: a text that is not whole names no daemon, and the mount stays.
    fn write(&self, state_dir: &Path, text: &str) -> Result<(), Error> {
        let mut file = &self.file;
        let written = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
        let written = written.and_then(|_| file.write_all(text.as_bytes()));
        written.map_err(|error| os(state_dir, "write")(errno_of(&error)))
    }

    /// Leaves. True if this was the last user and the mount is to end: then the caller unmounts before it drops the value.
    pub(in crate::session) fn is_last(&self, state_dir: &Path) -> Result<bool, Error> {
        // This gives up the shared lock in any case. The last one that does so gets the lock.
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(source) => return Err(os(state_dir, "flock")(source)),
        }
        let named = named(state_dir).map_err(SpaceError::from)?;
        Ok(named == Some((self.daemon.pid, self.daemon.start_time)))
    }
}

/// The daemon that the file names.
fn named(state_dir: &Path) -> Result<Option<(u32, u64)>, GuardedError> {
    let mut text = String::new();
    let file = guarded::open_file(&state_dir.join(FILE), Access::Read)?;
    let read = file.take(MAX_LEN).read_to_string(&mut text);
    let words = read.ok().and_then(|_| text.trim_end_matches('\n').split_once(' '));
    Ok(words.and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?))))
}

/// Makes a mount stay that a run made. True if it is still there afterwards.
///
/// # Errors
/// As [`User::join`].
pub(in crate::session) fn take_over(state_dir: &Path, daemon: u32, limit: Duration) -> Result<bool, Error> {
    match named(state_dir) {
        // No run has ever made a mount of this space.
        Err(error) if error.is_not_found() => return Ok(true),
        Ok(None) => return Ok(true),
        // A damaged file is opened below, and reported.
        _ => {}
    }
    let Some(user) = User::join(state_dir, daemon, limit)? else { return Ok(false) };
    user.keep(state_dir)?;
    Ok(true)
}

fn os(state_dir: &Path, call: &'static str) -> impl Fn(Errno) -> Error {
    let path = state_dir.join(FILE);
    move |source| Error::Os { path: path.clone(), call, source }
}
