//! What rcc keeps beside a space's directory D, so that it knows a mounted space as one of its own:
//! `D.lck`, `D.meta`, `D.meta.info`, `D.use`, and the library's usage marks.
//!
//! These files tell about the space; none of them is needed to mount it, and rcc works without them (it takes names,
//! sizes and modes then). Invariant: `D.meta` and `D.meta.info` are replaced whole, under `D.lck`, and only when they
//! would say something else. Other users may write where these files are, so each is opened through [`guarded`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use flate2::bufread::MultiGzDecoder;
use flate2::{Compression, GzBuilder};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::space::document::{self, Header, Replaced};
use crate::space::plan::SpacePath;
use crate::space::{SpaceError, lock};
use crate::sys::guarded::{self, Access, Dir, GuardedError, Problem, Trust};

/// How often a lock that somebody holds is tried.
const RETRY: Duration = Duration::from_millis(20);

/// The file beside the space's directory with this ending.
#[must_use]
pub fn beside(mountpoint: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(mountpoint);
    name.push(ending);
    PathBuf::from(name)
}

/// The name of that file in the space's base.
fn name_beside(space: &SpacePath, ending: &str) -> OsString {
    let mut name = OsString::from(space.identity.as_str());
    name.push(ending);
    name
}

/// `D.lck`, held: rcc waits as long as this lives.
#[derive(Debug)]
pub struct MetaLock {
    /// None where this user cannot make the file; then rcc of this user cannot restore there either.
    file: Option<File>,
}

impl MetaLock {
    /// Waits for the lock up to `timeout`; `base` is the space's base, opened.
    ///
    /// # Errors
    /// [`SpaceError::LockTimeout`] with the holder, and what keeps the file from being opened.
    pub fn take(base: &Dir, space: &SpacePath, timeout: Duration) -> Result<MetaLock, SpaceError> {
        let name = name_beside(space, ".lck");
        let deadline = Instant::now() + timeout;
        loop {
            let file = match base.open_or_create(&name, Access::Write, 0o666) {
                Ok((file, _)) => file,
                Err(error) if is_not_allowed(&error) => {
                    tracing::debug!(%error, "goes without rcc's lock");
                    return Ok(MetaLock { file: None });
                }
                Err(error) => return Err(error.into()),
            };
            let held = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if lock::is_still_at(&file, base, &name) => {
                    return Ok(MetaLock { file: Some(file) });
                }
                // `rcc holotree delete` removed it while we waited.
                Ok(()) => false,
                Err(Errno::WOULDBLOCK) => true,
                Err(errno) => {
                    return Err(SpaceError::Io { path: base.path().join(name), source: errno.into() });
                }
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let pid = held.then(|| lock::holder(&file)).flatten();
                let path = base.path().join(name);
                return Err(SpaceError::LockTimeout { path, pid, waited: timeout });
            }
            if held {
                std::thread::sleep(RETRY.min(left));
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

fn is_not_allowed(error: &GuardedError) -> bool {
    matches!(error.problem, Problem::Os(Errno::ACCESS | Errno::PERM | Errno::ROFS))
}

/// What is recorded beside a space's directory; None when nothing is, or nothing that can be read.
#[must_use]
pub fn recorded(mountpoint: &Path) -> Option<Header> {
    let meta = beside(mountpoint, ".meta");
    // `rcc holotree delete` leaves the .info behind.
    if !is_file(&meta) {
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
    !right || !is_file(&beside(&space.mountpoint, ".meta"))
}

fn is_file(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// Writes `D.meta` and `D.meta.info` from the catalog. `umask` is the user's, in case the process has another one.
///
/// # Errors
/// When the catalog cannot be read or the files not be written; what was there before is there still.
pub fn write_meta(base: &Dir, space: &SpacePath, catalog: &Path, umask: u32) -> Result<(), SpaceError> {
    let mut header = document::read_header(catalog)?;
    let path = space.mountpoint.to_string_lossy().into_owned();
    let replaced = Replaced {
        identity: space.identity.as_str(),
        path: &path,
        controller: &space.controller,
        space: &space.label,
    };
    replace(base, &name_beside(space, ".meta"), umask, |file| {
        let catalog = guarded::open_file(catalog, Access::Read)?;
        let text = BufReader::new(MultiGzDecoder::new(BufReader::new(catalog)));
        // As Go writes it: no name, no time, an unknown system.
        let mut out = GzBuilder::new().operating_system(255).write(BufWriter::new(file), Compression::fast());
        document::rewrite(text, &replaced, &mut out)?;
        out.finish()?.flush()
    })?;
    header.identity = replaced.identity.to_owned();
    header.controller = replaced.controller.to_owned();
    header.space = replaced.space.to_owned();
    header.path.clone_from(&path);
    let info = name_beside(space, ".meta.info");
    replace(base, &info, umask, |mut file| file.write_all(document::info_text(&header).as_bytes()))
}

/// Replaces a file by one that `fill` made, or leaves it.
fn replace(
    base: &Dir,
    name: &OsStr,
    umask: u32,
    fill: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), SpaceError> {
    // Not named *.meta: rcc would take it for a space.
    let mut temporary = name.to_owned();
    temporary.push(".part#holofs");
    base.remove_file(&temporary)?;
    let file = base.create_new(&temporary, Access::Write, 0o666 & !umask)?;
    let filled = fill(&file).and_then(|()| file.sync_all());
    let done = filled
        .map_err(|source| SpaceError::Io { path: base.path().join(name), source })
        .and_then(|()| Ok(base.rename(&temporary, name)?));
    if done.is_err() {
        base.remove_file(&temporary)?;
    }
    done
}

/// Counts a use of the space: the file's size is the count, its time the last use.
///
/// # Errors
/// When the file cannot be written.
pub fn append_use(base: &Dir, space: &SpacePath, umask: u32) -> Result<(), SpaceError> {
    let name = name_beside(space, ".use");
    let (mut file, _) = base.open_or_create(&name, Access::Append, 0o644 & !umask)?;
    file.write_all(b".").map_err(|source| SpaceError::Io { path: base.path().join(name), source })
}

/// Marks the catalog as used by this user now; rcc removes catalogs that nobody used for long.
///
/// # Errors
/// When the library cannot be written, which is no fault: the one who owns it decides about it.
pub fn touch_used(hololib: &Path, blueprint: &str, user7: &str, umask: u32) -> Result<(), SpaceError> {
    let name = OsString::from(format!("{blueprint}.{user7}"));
    let used = Dir::open(hololib, Trust::Anybodys)?.open_dir(OsStr::new("used"), Trust::Anybodys)?;
    let (file, _) = used.open_or_create(&name, Access::Append, 0o644 & !umask)?;
    file.set_modified(SystemTime::now())
        .map_err(|source| SpaceError::Io { path: used.path().join(name), source })
}

/// How often and when a space was used last, from `D.use`.
#[must_use]
pub fn usage(mountpoint: &Path) -> Option<(u64, SystemTime)> {
    let found = std::fs::symlink_metadata(beside(mountpoint, ".use")).ok().filter(|found| found.is_file())?;
    Some((found.len(), found.modified().ok()?))
}

#[cfg(test)]
mod tests;
