//! Opens files in directories where another user may create, link or replace entries.
//!
//! A [`Dir`] is a directory that was opened and checked once. Files in it are opened by name relative to its descriptor.
//! Symbolic links are not followed, a FIFO does not block, nothing is truncated, and only regular files are accepted.
//!
//! Invariants: only a regular file with one hard link is ever written to, and it was reached without following a link
//! below the checked directory. A read takes no more memory than the caller allows.

mod make;
mod replace;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::errno_of;
pub use replace::{Durability, PART, Replace, Staged, Writers, replace};

/// How often opening and creating a file are tried in turn. Somebody else may create and remove the file each time.
const ATTEMPTS: u32 = 100;
/// As many symbolic links as the kernel follows in a path.
const MAX_LINKS: u32 = 40;

/// A file or directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct GuardedError {
    /// Its path.
    pub path: PathBuf,
    /// The reason.
    pub problem: Problem,
}

/// Why a file or directory cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// A system call failed.
    #[error("{0}")]
    Os(Errno),
    /// It is a link, FIFO, device, socket or directory.
    #[error("it is {0}, not a regular file")]
    NotAFile(&'static str),
    /// It has several hard links, so a write would change a file elsewhere.
    #[error("it has {0} hard links, so holofs does not write to it")]
    Linked(u32),
    /// It is not a directory.
    #[error("it is {0}, not a directory")]
    NotADirectory(&'static str),
    /// Its owner, another user, could change or replace entries.
    #[error("it belongs to user {owner}, not to user {wanted}")]
    Owner {
        /// The user id of its owner.
        owner: u32,
        /// The user id that it should have.
        wanted: u32,
    },
    /// Other users could change or replace entries.
    #[error("other users may write to it (mode {0:04o})")]
    Writable(u32),
    /// Somebody replaced the directory between its creation and its opening.
    #[error("somebody replaced it while it was created")]
    Exchanged,
    /// It is larger than the caller's limit.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
}

impl GuardedError {
    fn new(path: &Path, problem: Problem) -> Self {
        Self { path: path.to_owned(), problem }
    }

    fn os(path: &Path) -> impl Fn(Errno) -> Self + Copy + use<'_> {
        move |errno| Self::new(path, Problem::Os(errno))
    }

    /// Whether the file or directory does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.problem == Problem::Os(Errno::NOENT)
    }
}

/// Without the path, which the caller adds to an [`io::Error`].
impl From<GuardedError> for io::Error {
    fn from(error: GuardedError) -> Self {
        match error.problem {
            Problem::Os(errno) => errno.into(),
            other => Self::other(other),
        }
    }
}

/// Who may be able to write to a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Only this (effective) user. Neither its group nor others can write to it. Every directory above it belongs to this
    /// user or root, and nobody else can replace its entries. Symbolic links on the way must belong to this user or root.
    Private,
    /// Anybody whom its mode allows. It belongs to this user, and the directory above keeps other users out.
    Owned,
    /// Anybody, as in rcc's shared directories. The descriptor only guarantees that it stays the same directory.
    Shared,
}

/// How a file is opened. Writing requires a file with one hard link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing and locking, without truncation.
    Write,
    /// Reading and writing, without truncation.
    ReadWrite,
    /// Appending.
    Append,
}

impl Access {
    fn flags(self) -> OFlags {
        let common = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        common
            | match self {
                Self::Read => OFlags::RDONLY,
                Self::Write => OFlags::WRONLY,
                Self::ReadWrite => OFlags::RDWR,
                Self::Append => OFlags::WRONLY | OFlags::APPEND,
            }
    }
}

/// A directory that was opened and checked.
#[derive(Debug)]
pub struct Dir {
    /// Opened with `O_PATH`, so that search permission is sufficient.
    fd: OwnedFd,
    /// For messages, and for calls that take no descriptor.
    path: PathBuf,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// Opens an existing directory by an absolute path.
    ///
    /// # Errors
    /// When it is missing, or does not satisfy `trust`.
    pub fn open(path: &Path, trust: Trust) -> Result<Self, GuardedError> {
        let fd = match trust {
            Trust::Private => walk(path, false)?,
            Trust::Owned | Trust::Shared => {
                rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(GuardedError::os(path))?
            }
        };
        Self { fd, path: path.to_owned() }.checked(trust)
    }

    /// Like [`Dir::open`] with [`Trust::Private`], but creates missing directories with mode 0700.
    ///
    /// # Errors
    /// As [`Dir::open`], and those of mkdir(2).
    pub fn make_ours(path: &Path) -> Result<Self, GuardedError> {
        Self { fd: walk(path, true)?, path: path.to_owned() }.checked(Trust::Private)
    }

    /// Opens a directory in this one. Does not follow a symbolic link.
    ///
    /// # Errors
    /// As [`Dir::open`].
    pub fn open_dir(&self, name: &OsStr, trust: Trust) -> Result<Self, GuardedError> {
        let path = self.path.join(name);
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty()).map_err(|errno| {
            let found =
                (errno == Errno::NOTDIR || errno == Errno::LOOP).then(|| self.kind_of(name)).flatten();
            GuardedError::new(&path, found.map_or(Problem::Os(errno), Problem::NotADirectory))
        })?;
        Self { fd, path }.checked(trust)
    }

    /// Opens a directory in this one, or creates it with mode 0700.
    ///
    /// # Errors
    /// As [`Dir::open_dir`].
    pub fn make_dir(&self, name: &OsStr, trust: Trust) -> Result<Self, GuardedError> {
        // Opened first, because mkdir(2) of an existing directory blocks on a frozen filesystem.
        match self.open_dir(name, trust) {
            Err(error) if error.is_not_found() => {
                self.make_dir_with(name, 0o700, false)?;
                self.open_dir(name, trust)
            }
            found => found,
        }
    }

    fn checked(self, trust: Trust) -> Result<Self, GuardedError> {
        if trust == Trust::Shared {
            return Ok(self);
        }
        let mode = self.own_mode()?;
        if trust == Trust::Private && mode & 0o022 != 0 {
            return Err(GuardedError::new(&self.path, Problem::Writable(mode & 0o7777)));
        }
        Ok(self)
    }

    /// The mode of the directory, if it belongs to this user.
    fn own_mode(&self) -> Result<u32, GuardedError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(GuardedError::os(&self.path))?;
        let wanted = rustix::process::geteuid().as_raw();
        if stat.st_uid != wanted {
            return Err(GuardedError::new(&self.path, Problem::Owner { owner: stat.st_uid, wanted }));
        }
        Ok(stat.st_mode)
    }

    /// Makes the error for an entry.
    fn failed(&self, name: &OsStr) -> impl Fn(Errno) -> GuardedError {
        move |errno| GuardedError::new(&self.path.join(name), Problem::Os(errno))
    }

    /// The path by which it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file in this directory.
    ///
    /// # Errors
    /// When it is missing or not a regular file.
    pub fn open_file(&self, name: &OsStr, access: Access) -> Result<File, GuardedError> {
        let path = self.path.join(name);
        let fd = rustix::fs::openat(&self.fd, name, access.flags(), Mode::empty()).map_err(|errno| {
            // ELOOP means a link, ENXIO a FIFO or a socket, EISDIR a directory. The message names the kind.
            let odd = matches!(errno, Errno::LOOP | Errno::NXIO | Errno::ISDIR);
            let found = odd.then(|| self.kind_of(name)).flatten();
            GuardedError::new(&path, found.map_or(Problem::Os(errno), Problem::NotAFile))
        })?;
        check_file(&fd, access).map_err(|problem| GuardedError::new(&path, problem))?;
        Ok(File::from(fd))
    }

    /// Creates a file in this directory. `mode` is subject to the umask.
    ///
    /// # Errors
    /// EEXIST when the name exists, also as a dangling symbolic link, and other errors of open(2).
    pub fn create_new(&self, name: &OsStr, access: Access, mode: u32) -> Result<File, GuardedError> {
        let flags = access.flags() | OFlags::CREATE | OFlags::EXCL;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_bits_truncate(mode));
        fd.map(File::from).map_err(self.failed(name))
    }

    /// Opens a file, or creates it if it is missing. Returns whether it was created: only then may the caller set its mode.
    ///
    /// # Errors
    /// As [`Dir::open_file`] and [`Dir::create_new`].
    pub fn open_or_create(
        &self,
        name: &OsStr,
        access: Access,
        mode: u32,
    ) -> Result<(File, bool), GuardedError> {
        for _ in 0..ATTEMPTS {
            match self.open_file(name, access) {
                Err(error) if error.is_not_found() => {}
                found => return found.map(|file| (file, false)),
            }
            match self.create_new(name, access, mode) {
                Err(error) if error.problem == Problem::Os(Errno::EXIST) => {}
                made => return made.map(|file| (file, true)),
            }
        }
        Err(GuardedError::new(&self.path.join(name), Problem::Os(Errno::BUSY)))
    }

    /// The content of a regular file of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Dir::open_file`], and [`Problem::TooLarge`].
    pub fn read(&self, name: &OsStr, limit: u64) -> Result<Vec<u8>, GuardedError> {
        let file = self.open_file(name, Access::Read)?;
        read_at_most(&file, limit).map_err(|problem| GuardedError::new(&self.path.join(name), problem))
    }

    /// The attributes of an entry. Does not follow a symbolic link.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn stat(&self, name: &OsStr) -> Result<Stat, GuardedError> {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed(name))
    }

    /// Removes an entry that is not a directory. A missing entry is no error.
    ///
    /// # Errors
    /// Those of unlink(2), except ENOENT.
    pub fn remove_file(&self, name: &OsStr) -> Result<(), GuardedError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed(name)(errno)),
        }
    }

    /// Renames an entry in this directory, and replaces an entry with the new name.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), GuardedError> {
        rustix::fs::renameat(&self.fd, from, &self.fd, to).map_err(self.failed(from))
    }

    /// Syncs the names of the entries to the disk.
    ///
    /// # Errors
    /// Those of open(2) and fsync(2).
    pub fn sync(&self) -> Result<(), GuardedError> {
        rustix::fs::fsync(self.readable()?).map_err(GuardedError::os(&self.path))
    }

    fn kind_of(&self, name: &OsStr) -> Option<&'static str> {
        self.stat(name).ok().and_then(|stat| odd_kind(stat.st_mode))
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a regular file by its path. Does not follow a symbolic link in the last component.
///
/// # Errors
/// As [`Dir::open_file`].
pub fn open_file(path: &Path, access: Access) -> Result<File, GuardedError> {
    let (dir, name) = split(path)?;
    dir.open_file(name, access).map_err(|error| GuardedError { path: path.to_owned(), ..error })
}

/// The content of a regular file of at most `limit` bytes, by its path.
///
/// # Errors
/// As [`Dir::read`].
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, GuardedError> {
    let (dir, name) = split(path)?;
    dir.read(name, limit).map_err(|error| GuardedError { path: path.to_owned(), ..error })
}

/// As [`read`], for a path that may be a link. What the link leads to must be a regular file.
///
/// # Errors
/// As [`read`].
pub fn read_through_link(path: &Path, limit: u64) -> Result<Vec<u8>, GuardedError> {
    let real = path.canonicalize().map_err(|error| GuardedError::new(path, Problem::Os(errno_of(&error))))?;
    read(&real, limit).map_err(|error| GuardedError { path: path.to_owned(), ..error })
}

fn split(path: &Path) -> Result<(Dir, &OsStr), GuardedError> {
    let name = path.file_name().ok_or_else(|| GuardedError::new(path, Problem::Os(Errno::INVAL)))?;
    let above = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir =
        Dir::open(above, Trust::Shared).map_err(|error| GuardedError { path: path.to_owned(), ..error })?;
    Ok((dir, name))
}

/// Reads an open file of at most `limit` bytes.
///
/// # Errors
/// [`Problem::TooLarge`], and those of read(2).
pub fn read_at_most(file: &File, limit: u64) -> Result<Vec<u8>, Problem> {
    let size = rustix::fs::fstat(file).map_err(Problem::Os)?.st_size.unsigned_abs();
    if size > limit {
        return Err(Problem::TooLarge(limit));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // The file may grow while it is read.
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Problem::Os(errno_of(&error)))?;
    if bytes.len() as u64 > limit {
        return Err(Problem::TooLarge(limit));
    }
    Ok(bytes)
}

fn check_file(fd: &OwnedFd, access: Access) -> Result<(), Problem> {
    let stat = rustix::fs::fstat(fd).map_err(Problem::Os)?;
    if let Some(kind) = odd_kind(stat.st_mode) {
        return Err(Problem::NotAFile(kind));
    }
    // A file without a link was removed after the open. A caller that locks the file checks for that.
    if access != Access::Read && stat.st_nlink > 1 {
        return Err(Problem::Linked(u32::try_from(stat.st_nlink).unwrap_or(u32::MAX)));
    }
    Ok(())
}

/// What a file of this `st_mode` is. None for a regular file.
#[must_use]
pub fn odd_kind(mode: u32) -> Option<&'static str> {
    Some(match FileType::from_raw_mode(mode) {
        FileType::RegularFile => return None,
        FileType::Directory => "a directory",
        FileType::Symlink => "a link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something unknown",
    })
}

/// Opens an absolute path component by component, and checks every directory on the way: only root and this user may be
/// able to replace its entries. A group with write permission is accepted, because the owner chose its members.
fn walk(path: &Path, make: bool) -> Result<OwnedFd, GuardedError> {
    let root = || rustix::fs::open("/", DIRECTORY, Mode::empty()).map_err(GuardedError::os(Path::new("/")));
    let mut fd = root()?;
    let mut at = PathBuf::from("/");
    // In a user namespace, the owner of the root directory stands for root.
    let roots = rustix::fs::fstat(&fd).map_err(GuardedError::os(&at))?.st_uid;
    let us = rustix::process::geteuid().as_raw();
    let is_trusted = |uid: u32| uid == us || uid == 0 || uid == roots;
    let mut rest: VecDeque<OsString> = names(path).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        let above = rustix::fs::fstat(&fd).map_err(GuardedError::os(&at))?;
        let is_sticky = above.st_mode & 0o1000 != 0;
        if !is_trusted(above.st_uid) {
            return Err(GuardedError::new(&at, Problem::Owner { owner: above.st_uid, wanted: us }));
        }
        if above.st_mode & 0o002 != 0 && !is_sticky {
            return Err(GuardedError::new(&at, Problem::Writable(above.st_mode & 0o7777)));
        }
        let here = at.join(&name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut opened = rustix::fs::openat(&fd, &name, flags, Mode::empty());
        if make && matches!(opened, Err(Errno::NOENT)) {
            opened = match rustix::fs::mkdirat(&fd, &name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => rustix::fs::openat(&fd, &name, flags, Mode::empty()),
                Err(errno) => Err(errno),
            };
        }
        let next = opened.map_err(GuardedError::os(&here))?;
        let stat = rustix::fs::fstat(&next).map_err(GuardedError::os(&here))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => (fd, at) = (next, here),
            FileType::Symlink if !is_trusted(stat.st_uid) => {
                return Err(GuardedError::new(&here, Problem::Owner { owner: stat.st_uid, wanted: us }));
            }
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(GuardedError::new(&here, Problem::Os(Errno::LOOP)));
                }
                let target =
                    rustix::fs::readlinkat(&next, "", Vec::new()).map_err(GuardedError::os(&here))?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    (fd, at) = (root()?, PathBuf::from("/"));
                }
                for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                    rest.push_front(name);
                }
            }
            _ => {
                let kind = odd_kind(stat.st_mode).unwrap_or("a file");
                return Err(GuardedError::new(&here, Problem::NotADirectory(kind)));
            }
        }
    }
    Ok(fd)
}

/// The components of a path. `..` is kept, and the kernel resolves it.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests;
