//! Writes rcc's files beside a space's directory D, by which rcc knows a mounted space as one of its own: `D.lck`, `D.meta`,
//! `D.meta.info`, `D.use`, and the library's usage marks.
//!
//! A mount needs none of these files, and rcc works without them: it then compares names, sizes and modes. But
//! rcc trusts the list of files in `D.meta`, so a wrong one is harmful. Invariants: `D.meta` and `D.meta.info` are replaced
//! by a rename, under `D.lck`, and only if [`crate::space::held`] finds that they are not right. Other users may write to
//! the directory of these files, so each file is opened through [`guarded`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::library::catalog::CatalogInfo;
use crate::library::catalog::limits::MAX_FILE;
use crate::library::catalog::{Header, header, write};
use crate::library::digest::Hex;
use crate::library::look::Look;
use crate::space::path::SpacePath;
use crate::space::{SpaceError, lock};
use crate::sys::guarded::{
    self, Access, Dir, Durability, GuardedError, Problem, Replace, Staged, Trust, Writers,
};

/// The path of the file beside the space's directory with this ending.
#[must_use]
pub fn beside(mountpoint: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(mountpoint);
    name.push(ending);
    PathBuf::from(name)
}

/// The name of the file beside the space's directory with this ending.
fn name_beside(space: &SpacePath, ending: &str) -> OsString {
    let mut name = space.dir_name().to_owned();
    name.push(ending);
    name
}

/// Holds `D.lck`. rcc waits for this lock.
#[derive(Debug)]
pub struct MetaLock {
    /// None if this user cannot create the file. Then rcc cannot restore the space for this user either.
    file: Option<File>,
}

impl MetaLock {
    /// No lock, for a space that rcc does not know.
    #[must_use]
    pub fn none() -> MetaLock {
        MetaLock { file: None }
    }

    /// Waits for the lock up to `timeout`. `base` is the directory above the space's directory.
    ///
    /// # Errors
    /// [`SpaceError::LockTimeout`], and the errors of opening the file.
    pub fn take(base: &Dir, space: &SpacePath, timeout: Duration) -> Result<MetaLock, SpaceError> {
        let name = name_beside(space, ".lck");
        match lock::take(base, &name, 0o666, timeout) {
            Ok(Ok(file)) => {
                if let Err(errno) = open_to_all(base, &file) {
                    tracing::debug!(%errno, "other users cannot take rcc's lock of this space");
                }
                Ok(MetaLock { file: Some(file) })
            }
            Ok(Err(pid)) => {
                Err(SpaceError::LockTimeout { path: base.path().join(name), pid, waited: timeout })
            }
            Err(SpaceError::Guarded(error)) if is_not_allowed(&error) => {
                tracing::debug!(%error, "cannot create rcc's lock: mounting without it");
                Ok(MetaLock { file: None })
            }
            Err(error) => Err(error),
        }
    }

    /// The number of the lock's descriptor.
    #[must_use]
    pub fn fd(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Releases the lock, also for processes that inherited it.
    pub fn release(self) {
        if let Some(file) = self.file
            && let Err(error) = rustix::fs::flock(&file, FlockOperation::Unlock)
        {
            tracing::warn!(%error, "cannot release rcc's lock before the daemon ends");
        }
    }
}

/// In a shared holotree every user may take the locks, as in rcc. Only a file of this user is changed.
fn open_to_all(base: &Dir, file: &File) -> Result<(), Errno> {
    let (above, found) = (rustix::fs::fstat(base)?, rustix::fs::fstat(file)?);
    let is_shared = above.st_mode & 0o002 != 0;
    let is_ours = found.st_uid == rustix::process::geteuid().as_raw();
    if is_shared && is_ours && found.st_mode & 0o777 != 0o666 {
        rustix::fs::fchmod(file, Mode::from_raw_mode(0o666))?;
    }
    Ok(())
}

fn is_not_allowed(error: &GuardedError) -> bool {
    matches!(error.problem, Problem::Os(Errno::ACCESS | Errno::PERM | Errno::ROFS))
}

/// The state of `D.meta`.
#[derive(Debug)]
pub enum Beside {
    /// The file does not exist.
    Missing,
    /// The file cannot be read, perhaps because rcc is writing it.
    Unreadable,
    /// The header of the file.
    Says(Header),
}

/// Reads `D.meta`. `D.meta.info` is less reliable: rcc writes it later, and `rcc holotree delete` does not remove it.
#[must_use]
pub fn beside_of(mountpoint: &Path) -> Beside {
    let meta = beside(mountpoint, ".meta");
    match std::fs::symlink_metadata(&meta) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Beside::Missing,
        Ok(found) if found.is_file() => header_of(&meta).map_or(Beside::Unreadable, Beside::Says),
        Ok(_) | Err(_) => Beside::Unreadable,
    }
}

/// Reads the header of a `.meta`, usually from the first block of the file. None if that is not possible.
fn header_of(meta: &Path) -> Option<Header> {
    let file = guarded::open_file(meta, Access::Read).ok()?;
    let stored = file.metadata().ok()?.len();
    header::read_header(file, stored).ok()
}

/// The header of `D.meta`. None if the file does not exist or cannot be read.
#[must_use]
pub fn recorded(mountpoint: &Path) -> Option<Header> {
    if let Beside::Says(header) = beside_of(mountpoint) { Some(header) } else { None }
}

/// What stat(2) says of `D.meta`.
pub(crate) fn look_of(mountpoint: &Path) -> Option<Look> {
    std::fs::symlink_metadata(beside(mountpoint, ".meta")).ok().map(|found| Look::from(&found))
}

/// Writes a `D.meta` and a `D.meta.info` that name the environment but list none of its files. The time does not depend on
/// the size of the environment, and `rcc holotree list` shows the space. rcc would restore by the list of files, so the
/// caller must hold `D.lck` until [`write_meta`] has written the complete files.
///
/// # Errors
/// When the files cannot be written.
pub fn write_stub(
    base: &Dir,
    space: &SpacePath,
    catalog: &CatalogInfo,
    umask: u32,
) -> Result<(), SpaceError> {
    let CatalogInfo { rcc, platform, blueprint, .. } = catalog.clone();
    let header = Header { rcc, platform, blueprint, ..names(space) };
    let staged = stage_both(base, space, umask, Durability::CacheOnly, |out| {
        write::write_empty(&header, out)?;
        Ok(header)
    })?;
    staged.publish()
}

/// Writes `D.meta` and `D.meta.info` from the stored bytes of the catalog with this digest. Reads them once, with memory that
/// does not grow with the catalog. `umask` is the user's, which may differ from that of the process.
///
/// # Errors
/// When `packed` is not that catalog, or the files cannot be written. The old files are still there.
pub fn write_meta(
    base: &Dir,
    space: &SpacePath,
    packed: impl Read,
    catalog_sha256: &str,
    umask: u32,
) -> Result<(), SpaceError> {
    stage_meta(base, space, packed, catalog_sha256, umask)?.publish()
}

/// As [`write_meta`], but the files get their names later, by [`StagedMeta::publish`]. The caller holds `D.lck` until then.
///
/// # Errors
/// As [`write_meta`].
pub fn stage_meta<'d>(
    base: &'d Dir,
    space: &SpacePath,
    packed: impl Read,
    catalog_sha256: &str,
    umask: u32,
) -> Result<StagedMeta<'d>, SpaceError> {
    let mut packed = Summed { from: packed.take(MAX_FILE), sum: Sha256::new() };
    stage_both(base, space, umask, Durability::Data, |out| {
        let header = header::rewrite(&mut packed, names(space), out)?;
        io::copy(&mut packed, &mut io::sink())?;
        if Hex(&packed.sum.finalize()).to_string() != catalog_sha256 {
            return Err(io::Error::other("the catalog has changed since it was compiled"));
        }
        Ok(header)
    })
}

/// A `D.meta` and a `D.meta.info` that are written and have no names yet.
#[derive(Debug)]
pub struct StagedMeta<'d> {
    meta: (PathBuf, Staged<'d>),
    info: (PathBuf, Staged<'d>),
}

impl StagedMeta<'_> {
    /// Gives the files their names.
    ///
    /// # Errors
    /// When they cannot be renamed.
    pub fn publish(self) -> Result<(), SpaceError> {
        for (path, staged) in [self.meta, self.info] {
            staged.publish().map_err(|source| SpaceError::Io { path, source })?;
        }
        Ok(())
    }
}

/// Computes the digest of what is read.
struct Summed<R> {
    from: R,
    sum: Sha256,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.sum.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// What a space's `.meta` says otherwise than the catalog.
fn names(space: &SpacePath) -> Header {
    Header {
        identity: space.identity.to_string(),
        path: space.mountpoint.to_string_lossy().into_owned(),
        controller: space.controller.clone(),
        space: space.label.clone(),
        ..Header::default()
    }
}

/// Writes `D.meta` with the text that `fill` writes, and `D.meta.info` with the header alone, which `fill` returns.
fn stage_both<'d>(
    base: &'d Dir,
    space: &SpacePath,
    umask: u32,
    durability: Durability,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<Header>,
) -> Result<StagedMeta<'d>, SpaceError> {
    let mut header = Header::default();
    let meta = stage(base, &name_beside(space, ".meta"), umask, durability, |file| {
        let mut out = write::gzip(BufWriter::new(file));
        header = fill(&mut out)?;
        out.finish()?.flush()
    })?;
    let info = stage(base, &name_beside(space, ".meta.info"), umask, durability, |file| {
        write::write_info(&header, file)
    })?;
    Ok(StagedMeta { meta, info })
}

/// Writes the new content of a file beside the space's directory.
fn stage<'d>(
    base: &'d Dir,
    name: &OsStr,
    umask: u32,
    durability: Durability,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(PathBuf, Staged<'d>), SpaceError> {
    let how = Replace { mode: 0o666 & !umask, writers: Writers::One, durability };
    let path = base.path().join(name);
    match base.stage(name, how, fill) {
        Ok(staged) => Ok((path, staged)),
        Err(source) => Err(SpaceError::Io { path, source }),
    }
}

/// Counts a use of the space in `D.use`. The size of the file is the count, its mtime the time of the last use.
///
/// # Errors
/// When the file cannot be written.
pub fn append_use(base: &Dir, space: &SpacePath, umask: u32) -> Result<(), SpaceError> {
    let name = name_beside(space, ".use");
    let (mut file, _) = base.open_or_create(&name, Access::Append, 0o644 & !umask)?;
    file.write_all(b".").map_err(|source| SpaceError::Io { path: base.path().join(name), source })
}

/// Sets the time at which this user last used the catalog. rcc removes catalogs that nobody has used for long.
///
/// # Errors
/// When the library cannot be written, for example because it belongs to another user.
pub fn touch_used(hololib: &Path, blueprint: &str, user7: &str, umask: u32) -> Result<(), SpaceError> {
    let name = OsString::from(format!("{blueprint}.{user7}"));
    let used = Dir::open(hololib, Trust::Shared)?.open_dir(OsStr::new("used"), Trust::Shared)?;
    let (file, _) = used.open_or_create(&name, Access::Append, 0o644 & !umask)?;
    file.set_modified(SystemTime::now())
        .map_err(|source| SpaceError::Io { path: used.path().join(name), source })
}

/// How often the space was used, and when last, from `D.use`.
#[must_use]
pub fn usage(mountpoint: &Path) -> Option<(u64, SystemTime)> {
    let found = std::fs::symlink_metadata(beside(mountpoint, ".use")).ok().filter(|found| found.is_file())?;
    Some((found.len(), found.modified().ok()?))
}

#[cfg(test)]
mod tests;
