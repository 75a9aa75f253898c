//! Files and directories that another user could have put there, linked or exchanged.
//!
//! A [`Dir`] is opened once, by descriptor, and checked. Files below it are opened by name under that descriptor:
//! links are not followed, nothing is waited for (a FIFO), nothing is truncated, and what was opened must be a regular
//! file. It knows nothing of what the files mean.
//!
//! Invariants: nothing is written to, truncated or chmod'ed that is not a regular file with one name, reached without
//! following a link below the checked directory; a read takes no more memory than the caller allows.

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

pub use replace::{Durability, PART, Replace, Writers, replace};

/// How often a file is looked for and created in turn before we give up: somebody makes and removes it all the time.
const ATTEMPTS: u32 = 100;
/// As many links as the kernel follows in one path.
const MAX_LINKS: u32 = 40;

/// What is wrong with a file or directory that was found.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct GuardedError {
    /// Which one.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: Problem,
}

/// See [`GuardedError`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// A system call failed.
    #[error("{0}")]
    Os(Errno),
    /// A link, FIFO, device, socket or directory.
    #[error("it is {0}, not a regular file")]
    NotAFile(&'static str),
    /// Writing to it would change a file somewhere else.
    #[error("it has {0} names (hard links), so it is not written to")]
    Linked(u64),
    /// A directory is expected.
    #[error("it is {0}, not a directory")]
    NotADirectory(&'static str),
    /// The owner could change or exchange what we keep there.
    #[error("it belongs to user {owner}, not to user {wanted}")]
    Owner {
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        wanted: u32,
    },
    /// Others could change or exchange what we keep there.
    #[error("other users may write to it (mode {0:04o})")]
    Writable(u32),
    /// It is not what was made under this name a moment ago.
    #[error("somebody exchanged it while it was made")]
    Exchanged,
    /// There is more in it than anybody but an attacker would put there.
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

    /// Whether there is nothing of that name.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.problem == Problem::Os(Errno::NOENT)
    }
}

/// Without the path: whoever wants an [`io::Error`] adds the path himself.
impl From<GuardedError> for io::Error {
    fn from(error: GuardedError) -> Self {
        match error.problem {
            Problem::Os(errno) => errno.into(),
            other => Self::other(other),
        }
    }
}

/// Who may write to a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Only this user (the effective one). Neither its group nor others may write to it, and no other user but root
    /// owns, or may exchange the entries of, a directory above it. Links on the way must belong to this user or root.
    Ours,
    /// Whoever its mode allows, but it belongs to this user: the directory above keeps others out.
    Owned,
    /// Anybody, as in rcc's shared directories. Only the descriptor is certain: it stays the same directory.
    Anybodys,
}

/// What a file is opened for. Whatever writes needs a file with one name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing and locking; never truncated.
    Write,
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
                Self::Append => OFlags::WRONLY | OFlags::APPEND,
            }
    }
}

/// A directory, opened and checked once.
#[derive(Debug)]
pub struct Dir {
    /// An `O_PATH` descriptor: a directory that may be searched and not listed will do.
    fd: OwnedFd,
    /// For messages, and for calls that know no descriptors.
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
    /// When it is missing or may not be trusted as asked.
    pub fn open(path: &Path, trust: Trust) -> Result<Self, GuardedError> {
        match trust {
            Trust::Ours => Self::ours(path, false),
            Trust::Owned | Trust::Anybodys => {
                let fd = rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(GuardedError::os(path))?;
                let dir = Self { fd, path: path.to_owned() };
                dir.check(trust)?;
                Ok(dir)
            }
        }
    }

    /// As [`Dir::open`] with [`Trust::Ours`]; makes what is missing of the path, with mode 0700.
    ///
    /// # Errors
    /// As [`Dir::open`], and what keeps a directory from being made.
    pub fn make_ours(path: &Path) -> Result<Self, GuardedError> {
        Self::ours(path, true)
    }

    fn ours(path: &Path, make: bool) -> Result<Self, GuardedError> {
        let fd = walk(path, make)?;
        let dir = Self { fd, path: path.to_owned() };
        dir.check(Trust::Ours)?;
        Ok(dir)
    }

    /// Opens a directory in this one; a link is not followed.
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
        let dir = Self { fd, path };
        dir.check(trust)?;
        Ok(dir)
    }

    /// Opens a directory in this one, and makes it with mode 0700 when it is missing.
    ///
    /// # Errors
    /// As [`Dir::open_dir`].
    pub fn make_dir(&self, name: &OsStr, trust: Trust) -> Result<Self, GuardedError> {
        // Looked for first: making what is there already would wait for a disk that takes no write.
        match self.open_dir(name, trust) {
            Err(error) if error.is_not_found() => {}
            found => return found,
        }
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => self.open_dir(name, trust),
            Err(errno) => Err(GuardedError::new(&self.path.join(name), Problem::Os(errno))),
        }
    }

    fn check(&self, trust: Trust) -> Result<(), GuardedError> {
        if trust == Trust::Anybodys {
            return Ok(());
        }
        let stat = rustix::fs::fstat(&self.fd).map_err(GuardedError::os(&self.path))?;
        let wanted = rustix::process::geteuid().as_raw();
        if stat.st_uid != wanted {
            return Err(GuardedError::new(&self.path, Problem::Owner { owner: stat.st_uid, wanted }));
        }
        if trust == Trust::Ours && stat.st_mode & 0o022 != 0 {
            return Err(GuardedError::new(&self.path, Problem::Writable(stat.st_mode & 0o7777)));
        }
        Ok(())
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file in this directory, which must be there.
    ///
    /// # Errors
    /// When there is none, or something else.
    pub fn open_file(&self, name: &OsStr, access: Access) -> Result<File, GuardedError> {
        let path = self.path.join(name);
        let fd = rustix::fs::openat(&self.fd, name, access.flags(), Mode::empty()).map_err(|errno| {
            // ELOOP is a link, ENXIO a FIFO or a socket, EISDIR a directory: in words.
            let odd = matches!(errno, Errno::LOOP | Errno::NXIO | Errno::ISDIR);
            let found = odd.then(|| self.kind_of(name)).flatten();
            GuardedError::new(&path, found.map_or(Problem::Os(errno), Problem::NotAFile))
        })?;
        check_file(&fd, access).map_err(|problem| GuardedError::new(&path, problem))?;
        Ok(File::from(fd))
    }

    /// Makes a file in this directory; there must be nothing of that name, not even a link to nowhere. `mode` is
    /// subject to the umask.
    ///
    /// # Errors
    /// EEXIST, and what else open(2) may say.
    pub fn create_new(&self, name: &OsStr, access: Access, mode: u32) -> Result<File, GuardedError> {
        let flags = access.flags() | OFlags::CREATE | OFlags::EXCL;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_bits_truncate(mode));
        fd.map(File::from).map_err(|errno| GuardedError::new(&self.path.join(name), Problem::Os(errno)))
    }

    /// Opens a file, and makes it when it is missing. Returns whether it was made: only then its mode is ours to set.
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

    /// What an entry is, without opening it or following a link.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn stat(&self, name: &OsStr) -> Result<Stat, GuardedError> {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| GuardedError::new(&self.path.join(name), Problem::Os(errno)))
    }

    /// Removes a file, whatever it is, or finds none.
    ///
    /// # Errors
    /// Those of unlink(2) but ENOENT.
    pub fn remove_file(&self, name: &OsStr) -> Result<(), GuardedError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(GuardedError::new(&self.path.join(name), Problem::Os(errno))),
        }
    }

    /// Gives an entry another name in this directory, in place of what has that name.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), GuardedError> {
        rustix::fs::renameat(&self.fd, from, &self.fd, to)
            .map_err(|errno| GuardedError::new(&self.path.join(from), Problem::Os(errno)))
    }

    /// Has the directory's entries survive a loss of power.
    ///
    /// # Errors
    /// Those of open(2) and fsync(2).
    pub fn sync(&self) -> Result<(), GuardedError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, ".", flags, Mode::empty())
            .and_then(rustix::fs::fsync)
            .map_err(GuardedError::os(&self.path))
    }

    fn kind_of(&self, name: &OsStr) -> Option<&'static str> {
        self.stat(name).ok().and_then(|stat| odd_kind(&stat))
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a regular file by its path, without following a link in the last place.
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

fn split(path: &Path) -> Result<(Dir, &OsStr), GuardedError> {
    let name = path.file_name().ok_or_else(|| GuardedError::new(path, Problem::Os(Errno::INVAL)))?;
    let above = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir =
        Dir::open(above, Trust::Anybodys).map_err(|error| GuardedError { path: path.to_owned(), ..error })?;
    Ok((dir, name))
}

/// Reads an open file to its end when that is at most `limit` bytes away.
///
/// # Errors
/// [`Problem::TooLarge`], and what read(2) says.
pub fn read_at_most(file: &File, limit: u64) -> Result<Vec<u8>, Problem> {
    let size = rustix::fs::fstat(file).map_err(Problem::Os)?.st_size.unsigned_abs();
    if size > limit {
        return Err(Problem::TooLarge(limit));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // It may grow while it is read.
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Problem::Os(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    if bytes.len() as u64 > limit {
        return Err(Problem::TooLarge(limit));
    }
    Ok(bytes)
}

fn check_file(fd: &OwnedFd, access: Access) -> Result<(), Problem> {
    let stat = rustix::fs::fstat(fd).map_err(Problem::Os)?;
    if let Some(kind) = odd_kind(&stat) {
        return Err(Problem::NotAFile(kind));
    }
    // None is one that was removed since; whoever locks it looks for that himself.
    if access != Access::Read && stat.st_nlink > 1 {
        return Err(Problem::Linked(stat.st_nlink));
    }
    Ok(())
}

/// What it is, unless it is a regular file.
fn odd_kind(stat: &Stat) -> Option<&'static str> {
    Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return None,
        FileType::Directory => "a directory",
        FileType::Symlink => "a link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something unknown",
    })
}

/// Follows an absolute path from the root, and checks each directory in which something is looked up: nobody but root
/// and we must be able to put something else there. Members of a directory's group are the choice of whoever set it.
fn walk(path: &Path, make: bool) -> Result<OwnedFd, GuardedError> {
    let root = || rustix::fs::open("/", DIRECTORY, Mode::empty()).map_err(GuardedError::os(Path::new("/")));
    let mut fd = root()?;
    let mut at = PathBuf::from("/");
    // In a user namespace root's directories have another owner: whoever owns the root directory.
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
                let kind = odd_kind(&stat).unwrap_or("a file");
                return Err(GuardedError::new(&here, Problem::NotADirectory(kind)));
            }
        }
    }
    Ok(fd)
}

/// A path's steps; `..` is one, which the kernel takes.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests;
