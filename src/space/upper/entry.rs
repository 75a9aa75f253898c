//! What one entry of the upper is in the space.
//!
//! An entry is read in two steps. [`OnDisk`] is what the filesystem says: type, inode number, mark. [`Present`] is
//! what that means over a catalog: kind, inode number in the space, origin. A mark that does not fit the catalog is
//! an error, so a damaged upper never shows one file in the place of another.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, DirEntry, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::mark::{Mark, is_whiteout_device};
use super::{Ino, Kind, UpperError};
use crate::library::index::{Index, NodeId};

/// Lists a directory of the upper, without `.` and `..`. Its time of access stays as it is. The type of an entry is
/// `Unknown` where the filesystem's listings have none. On overlayfs, its inode number can differ from that of stat(2).
///
/// # Errors
/// [`UpperError::Os`] when it cannot be read.
pub fn list(
    dir: BorrowedFd<'_>,
) -> Result<impl Iterator<Item = Result<DirEntry, UpperError>> + use<>, UpperError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME;
    let readable = open(dir, c".", flags).map_err(UpperError::os(c".", "open a directory"))?;
    let entries = rustix::fs::Dir::new(readable).map_err(UpperError::os(c".", "read a directory"))?;
    Ok(entries.filter_map(|entry| match entry {
        Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => None,
        Ok(entry) => Some(Ok(entry)),
        Err(errno) => Some(Err(UpperError::os(c".", "read a directory")(errno))),
    }))
}

/// Opens an entry of a directory. Where the kernel refuses `O_NOATIME`, because the file belongs to another user,
/// the entry is opened without it.
///
/// # Errors
/// The errno of openat(2).
pub fn open(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => {
            rustix::fs::openat(dir, name, flags.difference(OFlags::NOATIME), Mode::empty())
        }
        opened => opened,
    }
}

/// Calls stat(2) on an entry of a directory, without following a link.
///
/// # Errors
/// [`UpperError::Os`] when the call fails.
pub fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat, UpperError> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(UpperError::os(name, "stat"))
}

/// Turns the error of an entry that does not exist, or was replaced by one of another type, into None.
pub(crate) fn unless_vanished<T>(done: Result<T, UpperError>) -> Result<Option<T>, UpperError> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(UpperError::Os { source: Errno::NOENT | Errno::NOTDIR | Errno::LOOP, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the filesystem says about an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OnDisk {
    /// The type on disk. A changed symbolic link of the catalog is a regular file here.
    pub file_type: FileType,
    /// The inode number on disk.
    pub ino: u64,
    /// The mark; `Gone` for a whiteout of either kind. None for an entry that was created in the space.
    pub mark: Option<Mark>,
}

impl OnDisk {
    /// Reads type, inode number and mark of an entry. With `exact`, the inode number comes from stat(2). Without it,
    /// the number comes from the listing, which saves a system call and is right except on overlayfs.
    ///
    /// # Errors
    /// [`UpperError::Damaged`] for a mark that makes no sense, [`UpperError::Os`] when the entry cannot be read.
    pub fn read(dir: BorrowedFd<'_>, listed: &DirEntry, exact: bool) -> Result<Self, UpperError> {
        let (name, file_type) = (listed.file_name(), listed.file_type());
        if exact || matches!(file_type, FileType::Unknown | FileType::CharacterDevice) {
            return Self::of_stat(dir, name, &stat_at(dir, name)?);
        }
        Ok(Self { file_type, ino: listed.ino(), mark: Mark::read(dir, name, file_type)? })
    }

    /// The same, from the result of stat(2).
    ///
    /// # Errors
    /// Those of [`OnDisk::read`].
    pub fn of_stat(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<Self, UpperError> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let mark =
            if is_whiteout_device(stat) { Some(Mark::Gone) } else { Mark::read(dir, name, file_type)? };
        Ok(Self { file_type, ino: stat.st_ino, mark })
    }
}

/// An entry of the upper that the space shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Present {
    /// The inode number in the space.
    pub ino: Ino,
    /// The kind in the space.
    pub kind: Kind,
    /// The lower node that it came from; None when it was created in the space.
    pub origin: Option<NodeId>,
    /// Whether its bytes or link text are still those of `origin`.
    pub meta: bool,
    /// The inode number on disk.
    pub backing_ino: u64,
}

impl Present {
    /// An entry that was created in the space.
    #[must_use]
    pub fn created(kind: Kind, backing_ino: u64) -> Self {
        Self { ino: Ino::of_created(backing_ino), kind, origin: None, meta: false, backing_ino }
    }

    /// The entry that a file is over the catalog of `index`; None for a whiteout. `name` is for the error.
    ///
    /// # Errors
    /// [`UpperError::Damaged`] when the mark names a node that the catalog does not have, or one of another kind.
    pub fn of(index: &Index, name: &CStr, on_disk: &OnDisk) -> Result<Option<Self>, UpperError> {
        let damaged = |why| Err(UpperError::damaged(name, why));
        let Some(kind) = Kind::of_file(on_disk.file_type) else {
            return damaged("its file type is unknown");
        };
        let backing_ino = on_disk.ino;
        let Some(mark) = on_disk.mark else { return Ok(Some(Self::created(kind, backing_ino))) };
        let Some(origin) = mark.origin() else { return Ok(None) };
        if index.is_bytecode(origin) && index.node(origin).is_err() {
            // The bytecode of a source that is not shown, or not any more. What the space has written stays.
            return Ok(Some(Self::created(kind, backing_ino)).filter(|_| !matches!(mark, Mark::Meta(_))));
        }
        if origin.0 >= index.ids() {
            return damaged("its mark names a node that the catalog does not have");
        }
        let lower_kind = Kind::of_lower(&index.node(origin)?);
        let (fits, kind, meta) = match mark {
            Mark::Dir(_) => (lower_kind == Kind::Dir && kind == Kind::Dir, kind, false),
            Mark::Data(_) | Mark::Emptied(..) => {
                (lower_kind == Kind::File && kind == Kind::File, kind, false)
            }
            Mark::Meta(_) => (lower_kind != Kind::Dir && kind == Kind::File, lower_kind, true),
            Mark::Gone => (false, kind, false),
        };
        if !fits {
            return damaged("its mark names a node of another kind");
        }
        Ok(Some(Self { ino: Ino::of_lower(origin), kind, origin: Some(origin), meta, backing_ino }))
    }
}
