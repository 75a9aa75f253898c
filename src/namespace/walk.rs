//! Finding an entry of the upper by its number on disk: for what is known by nothing else, after a crash or when the
//! kernel has forgotten it. It takes time in proportion to the upper, so nothing that is done often needs it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;

use super::error::{Result, upper as call};
use super::upper;

/// An entry that the walk comes by.
pub(super) struct Met<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
    pub(super) kind: FileType,
}

impl Met<'_> {
    /// Its number on disk. Not that of the listing, which on overlayfs can be another one.
    pub(super) fn number(&self) -> Option<u64> {
        number(self.dir, self.name)
    }
}

/// The names that lead from `root` to the first entry that `wanted` takes.
pub(super) fn find(
    root: BorrowedFd<'_>,
    wanted: &mut dyn FnMut(&Met<'_>) -> bool,
) -> Result<Option<Vec<CString>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME;
    let dir = upper::open(root, c".", flags).map_err(call("open a directory"))?;
    let mut below = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir).map_err(call("read a directory"))? {
        let entry = entry.map_err(call("read a directory"))?;
        let met = Met { dir: dir.as_fd(), name: entry.file_name(), kind: entry.file_type() };
        if matches!(met.name.to_bytes(), b"." | b"..") {
            continue;
        }
        if wanted(&met) {
            return Ok(Some(vec![met.name.to_owned()]));
        }
        if matches!(met.kind, FileType::Directory | FileType::Unknown) {
            below.push(met.name.to_owned());
        }
    }
    for name in below {
        let inner = match upper::open(dir.as_fd(), &name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
        {
            Ok(inner) => inner,
            // Removed or replaced meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(errno) => return Err(call("open a directory")(errno)),
        };
        if let Some(mut path) = find(inner.as_fd(), wanted)? {
            path.insert(0, name);
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The number on disk of a name.
pub(super) fn number(dir: BorrowedFd<'_>, name: &CStr) -> Option<u64> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_ino)
}

/// The directory of a number, `root` itself included.
pub(super) fn open_dir(root: BorrowedFd<'_>, ino: u64) -> Result<Option<OwnedFd>> {
    let open = |dir: BorrowedFd<'_>, name: &CStr| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        upper::open(dir, name, flags).map_err(call("open a directory"))
    };
    let mut at = open(root, c".")?;
    if number(root, c".") == Some(ino) {
        return Ok(Some(at));
    }
    let mut is_it = |met: &Met<'_>| {
        matches!(met.kind, FileType::Directory | FileType::Unknown) && met.number() == Some(ino)
    };
    let Some(path) = find(root, &mut is_it)? else { return Ok(None) };
    for name in path {
        at = open(at.as_fd(), &name)?;
    }
    Ok(Some(at))
}
