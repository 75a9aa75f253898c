//! What rcc keeps beside a space's directory D, so that it knows a mounted space as one of its own:
//! `D.lck`, `D.meta`, `D.meta.info`, `D.use`, and the library's usage marks.
//!
//! These files tell about the space; none of them is needed to mount it, and rcc works without them (it takes names,
//! sizes and modes then). Invariant: `D.meta` and `D.meta.info` are replaced whole, under `D.lck`, and only when they
//! would say something else.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use flate2::bufread::MultiGzDecoder;
use flate2::{Compression, GzBuilder};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::space::document::{self, Header, Replaced};
use crate::space::plan::SpacePath;
use crate::space::{SpaceError, lock};

/// How often a lock that somebody holds is tried.
const RETRY: Duration = Duration::from_millis(20);

/// The file beside the space's directory with this ending.
#[must_use]
pub fn beside(mountpoint: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(mountpoint);
    name.push(ending);
    PathBuf::from(name)
}

/// `D.lck`, held: rcc waits as long as this lives.
#[derive(Debug)]
pub struct MetaLock {
    /// None where this user cannot make the file; then rcc of this user cannot restore there either.
    file: Option<File>,
}

impl MetaLock {
    /// Waits for the lock up to `timeout`.
    ///
    /// # Errors
    /// [`SpaceError::LockTimeout`] with the holder, and what keeps the file from being opened.
    pub fn take(space: &SpacePath, timeout: Duration) -> Result<MetaLock, SpaceError> {
        let path = beside(&space.mountpoint, ".lck");
        let start = Instant::now();
        loop {
            let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o666).open(&path);
            let file = match open {
                Ok(file) => file,
                Err(error) if is_not_allowed(&error) => {
                    tracing::debug!(path = %path.display(), %error, "goes without rcc's lock");
                    return Ok(MetaLock { file: None });
                }
                Err(error) => return Err(SpaceError::io(&path)(error)),
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if lock::is_still_at(&file, &path) => return Ok(MetaLock { file: Some(file) }),
                // `rcc holotree delete` removed it while we waited.
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if start.elapsed() < timeout => {
                    std::thread::sleep(RETRY.min(timeout.saturating_sub(start.elapsed())));
                }
                Err(Errno::WOULDBLOCK) => {
                    let pid = lock::holder(&file);
                    return Err(SpaceError::LockTimeout { path, pid, waited: timeout });
                }
                Err(errno) => return Err(SpaceError::io(&path)(errno.into())),
            }
        }
    }

    /// Lets go of it, for every process that inherited it.
    pub fn release(self) {
        if let Some(file) = self.file
            && let Err(error) = rustix::fs::flock(&file, FlockOperation::Unlock)
        {
            tracing::warn!(%error, "cannot unlock; the lock goes with the process");
        }
    }
}

fn is_not_allowed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// What is recorded beside a space's directory; None when nothing is, or nothing that can be read.
#[must_use]
pub fn recorded(mountpoint: &Path) -> Option<Header> {
    let meta = beside(mountpoint, ".meta");
    // `rcc holotree delete` leaves the .info behind.
    if !meta.exists() {
        return None;
    }
    document::read_info(&beside(mountpoint, ".meta.info")).or_else(|_| document::read_header(&meta)).ok()
}

/// Whether the files beside the space's directory say something else than that it holds `blueprint`.
#[must_use]
pub fn needs_meta(space: &SpacePath, blueprint: &str) -> bool {
    let told = document::read_info(&beside(&space.mountpoint, ".meta.info")).ok();
    let right = told.is_some_and(|told| {
        told.blueprint == blueprint
            && told.identity == space.identity.as_str()
            && Path::new(&told.path) == space.mountpoint
    });
    !right || !beside(&space.mountpoint, ".meta").exists()
}

/// Writes `D.meta` and `D.meta.info` from the catalog. `umask` is the user's, in case the process has another one.
///
/// # Errors
/// When the catalog cannot be read or the files not be written; what was there before is there still.
pub fn write_meta(space: &SpacePath, catalog: &Path, umask: u32) -> Result<(), SpaceError> {
    let mut header = document::read_header(catalog)?;
    let path = space.mountpoint.to_string_lossy().into_owned();
    let replaced = Replaced {
        identity: space.identity.as_str(),
        path: &path,
        controller: &space.controller,
        space: &space.label,
    };
    let meta = beside(&space.mountpoint, ".meta");
    replace(&meta, umask, |file| {
        let text = BufReader::new(MultiGzDecoder::new(BufReader::new(File::open(catalog)?)));
        // As Go writes it: no name, no time, an unknown system.
        let mut out = GzBuilder::new().operating_system(255).write(BufWriter::new(file), Compression::fast());
        document::rewrite(text, &replaced, &mut out)?;
        out.finish()?.flush()
    })
    .map_err(SpaceError::io(&meta))?;
    header.identity = replaced.identity.to_owned();
    header.controller = replaced.controller.to_owned();
    header.space = replaced.space.to_owned();
    header.path.clone_from(&path);
    let info = beside(&space.mountpoint, ".meta.info");
    replace(&info, umask, |mut file| file.write_all(document::info_text(&header).as_bytes()))
        .map_err(SpaceError::io(&info))
}

/// Replaces a file by one that `fill` made, or leaves it.
fn replace(path: &Path, umask: u32, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    // Not named *.meta: rcc would take it for a space.
    let temporary = beside(path, ".part#holofs");
    remove_if_there(&temporary)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o666 & !umask).open(&temporary)?;
    let done = fill(&file).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&temporary, path));
    if done.is_err() {
        remove_if_there(&temporary)?;
    }
    done
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Counts a use of the space: the file's size is the count, its time the last use.
///
/// # Errors
/// When the file cannot be written.
pub fn append_use(space: &SpacePath, umask: u32) -> Result<(), SpaceError> {
    let path = beside(&space.mountpoint, ".use");
    let append = || {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o644 & !umask).open(&path)?;
        file.write_all(b".")
    };
    append().map_err(SpaceError::io(&path))
}

/// Marks the catalog as used by this user now; rcc removes catalogs that nobody used for long.
///
/// # Errors
/// When the library cannot be written, which is no fault: the one who owns it decides about it.
pub fn touch_used(hololib: &Path, blueprint: &str, user7: &str, umask: u32) -> Result<(), SpaceError> {
    let path = hololib.join("used").join(format!("{blueprint}.{user7}"));
    let touch = || {
        let file = OpenOptions::new().append(true).create(true).mode(0o644 & !umask).open(&path)?;
        file.set_modified(SystemTime::now())
    };
    touch().map_err(SpaceError::io(&path))
}

/// How often and when a space was used last, from `D.use`.
#[must_use]
pub fn usage(mountpoint: &Path) -> Option<(u64, SystemTime)> {
    let found = std::fs::metadata(beside(mountpoint, ".use")).ok()?;
    Some((found.len(), found.modified().ok()?))
}

#[cfg(test)]
mod tests;
