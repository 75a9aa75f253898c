//! What a recording or an import that was killed has left in a library: files under temporary names.
//!
//! A blob is written beside its place, so that the rename stays in one directory. To find such files, all directories of a
//! library must be listed. So a recording leaves a mark in `catalog` while it works, one for each user, and only a library
//! with a mark is searched. A recording holds rcc's lock: if that lock is free, whoever made the mark is dead, also when it
//! ran in another container.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::place::LOCK;
use crate::library::locate::Location;
use crate::sys::fd;
use crate::sys::guarded::{Access, Dir, GuardedError, PART, Problem, Trust};

/// The mark of a recording that is under way. It is removed at the end.
#[derive(Debug)]
pub(super) struct Mark<'d> {
    /// The directory `catalog`.
    dir: &'d Dir,
    name: OsString,
    /// An earlier recording was killed. Its mark stays until its files were removed.
    is_older: bool,
}

impl<'d> Mark<'d> {
    /// Makes the mark. The caller holds rcc's lock.
    pub(super) fn make(dir: &'d Dir) -> Result<Self, GuardedError> {
        let name = name();
        let (_, made) = dir.open_or_create(&name, Access::Write, 0o600)?;
        Ok(Self { dir, name, is_older: !made })
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        if !self.is_older
            && let Err(error) = self.dir.remove_file(&self.name)
        {
            tracing::debug!(%error, "the mark of a recording stays");
        }
    }
}

fn name() -> OsString {
    format!(".recording.{}{PART}holofs", rustix::process::geteuid().as_raw()).into()
}

/// The mark of this user's killed recording in a library, and the bytes of the files that it has left. None when there is
/// no mark, or a process records.
pub(crate) fn find(library: &Location) -> Option<(PathBuf, u64)> {
    let mark = library.hololib()?.join("catalog").join(name());
    if !mark.exists() || !is_free(library) {
        return None;
    }
    let mut bytes = 0;
    let searched = each(library.hololib()?, &mut |_, _, size| {
        bytes += size;
        Ok(())
    });
    if let Err(error) = searched {
        tracing::warn!(%error, "what a killed recording has left stays");
        return None;
    }
    Some((mark, bytes))
}

/// Whether a path is that of a mark.
pub(crate) fn is_mark(path: &Path) -> bool {
    path.file_name() == Some(&name())
}

/// Removes what was found, and its mark, unless somebody has begun to record.
///
/// # Errors
/// When a file cannot be removed.
pub(crate) fn remove(mark: &Path) -> Result<(), GuardedError> {
    let hololib = mark.parent().and_then(Path::parent).unwrap_or(mark);
    let library = Location::directory(hololib.to_owned());
    let Some(_lock) = lock(&library)? else { return Ok(()) };
    each(hololib, &mut |dir, name, _| dir.remove_file(name))?;
    Dir::open(&hololib.join("catalog"), Trust::Shared)?.remove_file(&name())
}

fn is_free(library: &Location) -> bool {
    lock(library).is_ok_and(|lock| lock.is_some())
}

/// Takes rcc's lock. None when another process has it.
fn lock(library: &Location) -> Result<Option<std::fs::File>, GuardedError> {
    let Some(holotree) = library.holotree() else { return Ok(None) };
    let file = Dir::open(&holotree, Trust::Shared)?.open_file(LOCK.as_ref(), Access::Read)?;
    let is_free = fd::lock(&file, Duration::ZERO, Duration::ZERO, || true);
    let failed = |source: std::io::Error| GuardedError {
        path: holotree.join(LOCK),
        problem: Problem::Os(Errno::from_io_error(&source).unwrap_or(Errno::IO)),
    };
    Ok(is_free.map_err(failed)?.then_some(file))
}

/// Calls `found` with each file of this user that a recording has left.
fn each(
    hololib: &Path,
    found: &mut dyn FnMut(&Dir, &OsStr, u64) -> Result<(), GuardedError>,
) -> Result<(), GuardedError> {
    let hololib = Dir::open(hololib, Trust::Shared)?;
    for (name, depth) in [("catalog", 0), ("library", 3)] {
        below(&hololib.open_dir(name.as_ref(), Trust::Shared)?, depth, found)?;
    }
    Ok(())
}

fn below(
    dir: &Dir,
    depth: u32,
    found: &mut dyn FnMut(&Dir, &OsStr, u64) -> Result<(), GuardedError>,
) -> Result<(), GuardedError> {
    for entry in dir.names()? {
        if is_temporary(&entry) {
            let stat = dir.stat(&entry)?;
            let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
            if is_ours && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                found(dir, &entry, u64::try_from(stat.st_size).unwrap_or(0))?;
            }
        } else if depth > 0 && entry.len() == 2 {
            match dir.open_dir(&entry, Trust::Shared) {
                Ok(inner) => below(&inner, depth - 1, found)?,
                // No directory of blobs: somebody else's link or file.
                Err(error) => tracing::debug!(%error, "not searched"),
            }
        }
    }
    Ok(())
}

/// Whether a name is one of `sys::guarded`'s unique temporary names: `.NAME.part#PID.NUMBER`. rcc's have no leading dot.
fn is_temporary(name: &OsStr) -> bool {
    let Some(name) = name.to_str().and_then(|name| name.strip_prefix('.')) else { return false };
    let Some((_, numbers)) = name.rsplit_once(PART) else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.split_once('.').is_some_and(|(pid, number)| is_number(pid) && is_number(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_killed_recordings_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (hololib, holotree) = (dir.path().join("hololib"), dir.path().join("holotree"));
        let blobs = hololib.join("library/aa/bb/cc");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::create_dir_all(hololib.join("catalog")).unwrap();
        std::fs::create_dir_all(&holotree).unwrap();
        std::fs::write(holotree.join("global.lck"), "").unwrap();
        for (name, bytes) in [(".aabbcc.part#12.3", "half"), ("aabbcc", "whole"), ("aabbcc.part#1", "rcc's")]
        {
            std::fs::write(blobs.join(name), bytes).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", blobs.join(".link.part#12.4")).unwrap();
        let library = Location::directory(hololib.clone());
        assert_eq!(find(&library), None, "no recording was killed");
        let catalogs = Dir::open(&hololib.join("catalog"), Trust::Shared).unwrap();
        std::mem::forget(Mark::make(&catalogs).unwrap());
        // The next recording leaves the mark of the killed one.
        drop(Mark::make(&catalogs).unwrap());
        let (mark, bytes) = find(&library).unwrap();
        assert!(is_mark(&mark) && bytes == 4, "{bytes}");
        let held = lock(&library).unwrap().unwrap();
        assert_eq!(find(&library), None, "somebody records");
        remove(&mark).unwrap();
        assert!(mark.exists());
        drop(held);
        remove(&mark).unwrap();
        assert_eq!(find(&library), None);
        let left = Dir::open(&blobs, Trust::Shared).unwrap().names().unwrap();
        assert_eq!(left.len(), 3, "{left:?}");
        drop(Mark::make(&catalogs).unwrap());
        assert!(!mark.exists());
    }
}
