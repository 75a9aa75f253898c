//! Copies an upper, also while it changes.
//!
//! A copy is made in passes. Each pass visits all entries and copies those that are new or look different from when they
//! were copied last. So the first pass may run while programs write, and only the last one needs an instant at which
//! nothing changes: it takes a stat(2) of each entry, and copies what changed since.
//!
//! An entry looks the same if type, inode number, size and times are the same. The kernel does not count time
//! finely enough to tell two writes of a moment apart, so an entry that was changed just before it was copied is copied
//! again. Attributes of directories are set at the end, because copying changes the times of directories.
//!
//! Invariants: nothing but the copy is written to. No symbolic link is followed.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::upper::entry;
use super::upper::mark::{Mark, is_whiteout_device};
use super::upper::walk::{Visited, Walk};
use crate::library::index::NodeId;
use crate::materialize::clone::{Cloner, Method};
use crate::settings::Strategy;
use crate::sys::fd::proc_path;
use crate::sys::{errno_of, tree};

/// An entry that was changed less than this before it was copied may change once more without looking different.
const FINENESS: Duration = Duration::from_millis(20);

/// What a copy consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Copied {
    /// Files whose extents are shared.
    pub reflinked: u64,
    /// Files whose bytes were copied.
    pub copied: u64,
    /// The bytes of the latter.
    pub bytes: u64,
}

/// Why an upper cannot be copied.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct CopyError {
    /// The entry, below the root of the upper.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// Changes the copy of a file that came from a node of the catalog.
pub type Edit<'a> = &'a dyn Fn(NodeId, &File) -> io::Result<()>;

/// A copy that is being made.
#[derive(Debug)]
pub struct Copy<'a> {
    from: BorrowedFd<'a>,
    to: OwnedFd,
    cloner: Cloner,
    done: HashMap<PathBuf, Done>,
    pass: u64,
    /// The copy of a file with several names, by its inode number in this pass.
    linked: HashMap<u64, PathBuf>,
    copied: Copied,
}

/// An entry that was copied.
#[derive(Debug)]
struct Done {
    pass: u64,
    look: Look,
    /// Of a directory, what is set at the end.
    dir: Option<(Stat, Xattrs)>,
}

/// Names and values of extended attributes.
type Xattrs = Vec<(CString, Vec<u8>)>;

/// How an entry looked before it was copied. None when it may change without looking different.
type Look = Option<(u64, u32, i64, (i64, i64), (i64, i64))>;

fn look(stat: &Stat) -> Look {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let changed = Duration::new(u64::try_from(stat.st_ctime).ok()?, u32::try_from(stat.st_ctime_nsec).ok()?);
    let is_old = since_epoch.checked_sub(changed).is_some_and(|age| age > FINENESS);
    let (mtime, ctime) =
        ((stat.st_mtime, stat.st_mtime_nsec as i64), (stat.st_ctime, stat.st_ctime_nsec as i64));
    is_old.then_some((stat.st_ino, stat.st_mode, stat.st_size, mtime, ctime))
}

impl<'a> Copy<'a> {
    /// Begins a copy of the upper with the root `from` in the empty directory `to`.
    #[must_use]
    pub fn new(from: BorrowedFd<'a>, to: OwnedFd) -> Self {
        Self {
            from,
            to,
            cloner: Cloner::new(Strategy::Smart),
            done: HashMap::new(),
            pass: 0,
            linked: HashMap::new(),
            copied: Copied::default(),
        }
    }

    /// Copies what changed since the last pass, calls `each` after each entry that was looked at, and returns how many entries were copied. While the upper changes, an entry
    /// that cannot be copied is left to a later pass; with `is_last` it is an error.
    ///
    /// # Errors
    /// When the upper cannot be read, or the copy cannot be written.
    pub fn pass(&mut self, is_last: bool, edit: Edit<'_>, each: &dyn Fn()) -> Result<usize, CopyError> {
        self.pass += 1;
        self.linked.clear();
        let mut changed = 0;
        self.look_at_dir(Path::new(""), self.from, c".")?;
        let mut walk = Walk::new(self.from).map_err(at(Path::new("")))?;
        while let Some(visited) = walk.advance() {
            each();
            let copied = visited
                .map_err(|error| CopyError { path: PathBuf::new(), source: error.into() })
                .and_then(|visited| self.visit(&visited, edit));
            match copied {
                Ok(true) => changed += 1,
                Ok(false) => {}
                // A full disk stays full.
                Err(error) if is_last || is_about_writing(&error.source) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "left to the next pass");
                    changed += 1;
                }
            }
        }
        let mut gone: Vec<PathBuf> = self
            .done
            .iter()
            .filter(|(_, done)| done.pass != self.pass)
            .map(|(path, _)| path.clone())
            .collect();
        gone.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
        for path in gone {
            self.remove(&path)?;
            self.done.remove(&path);
            changed += 1;
        }
        Ok(changed)
    }

    /// Sets the attributes of the directories, and returns what was copied.
    ///
    /// # Errors
    /// When they cannot be set.
    pub fn finish(self) -> Result<Copied, CopyError> {
        let mut dirs: Vec<(&PathBuf, &Done)> =
            self.done.iter().filter(|(_, done)| done.dir.is_some()).collect();
        // What is below a directory comes first.
        dirs.sort_by_key(|(path, _)| std::cmp::Reverse(path.as_os_str().len()));
        for (path, done) in dirs {
            let Some((stat, xattrs)) = &done.dir else { continue };
            let set = self.dir(path).and_then(|dir| {
                write_xattrs(dir.as_fd(), xattrs)?;
                write_attributes(dir.as_fd(), stat)
            });
            set.map_err(|source| CopyError { path: path.clone(), source })?;
        }
        Ok(self.copied)
    }

    /// Copies an entry, unless it looks as when it was copied. Returns whether it was copied.
    fn visit(&mut self, visited: &Visited<'_>, edit: Edit<'_>) -> Result<bool, CopyError> {
        let path = visited.path;
        let Some((stat, on_disk)) = visited.look().map_err(at(path))? else { return Ok(false) };
        let now = look(&stat);
        let pass = self.pass;
        let is_dir = on_disk.file_type == FileType::Directory;
        let has_links = !is_dir && stat.st_nlink > 1;
        let known = self.done.get_mut(path).filter(|done| done.look == now && now.is_some());
        let is_new = known.is_none();
        if let Some(done) = known.filter(|_| !has_links) {
            done.pass = pass;
            return Ok(false);
        }
        if is_dir && self.done.get(path).is_some_and(|done| done.dir.is_some()) {
            return self.look_at_dir(path, visited.dir, visited.listed.file_name()).map(|()| true);
        }
        self.remove(path)?;
        // All below a directory that gave its place away has gone with it.
        if self.done.remove(path).is_some_and(|done| done.dir.is_some()) {
            self.done.retain(|other, _| !other.starts_with(path));
        }
        if is_dir {
            self.in_parent(path, |at, name| Ok(rustix::fs::mkdirat(at, name, Mode::RWXU)?))?;
            return self.look_at_dir(path, visited.dir, visited.listed.file_name()).map(|()| true);
        }
        let first = if has_links { self.linked.get(&stat.st_ino).cloned() } else { None };
        match first {
            Some(first) => {
                let (dir, name) = self.place(&first)?;
                self.in_parent(path, |at, new| {
                    Ok(rustix::fs::linkat(&dir, &name, at, new, AtFlags::empty())?)
                })?;
            }
            None => {
                let origin = on_disk.mark.and_then(Mark::origin);
                self.copy(visited, &stat, origin, edit)?;
                if has_links {
                    self.linked.insert(stat.st_ino, path.to_owned());
                }
            }
        }
        self.done.insert(path.to_owned(), Done { pass, look: now, dir: None });
        Ok(is_new)
    }

    /// Notes the attributes of a directory.
    fn look_at_dir(&mut self, path: &Path, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), CopyError> {
        let found = || -> io::Result<_> {
            let dir = entry::open(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
            Ok((rustix::fs::fstat(&dir)?, read_xattrs(dir.as_fd())?))
        };
        let found = found().map_err(at(path))?;
        let done = Done { pass: self.pass, look: look(&found.0), dir: Some(found) };
        self.done.insert(path.to_owned(), done);
        Ok(())
    }

    fn copy(
        &mut self,
        visited: &Visited<'_>,
        stat: &Stat,
        origin: Option<NodeId>,
        edit: Edit<'_>,
    ) -> Result<(), CopyError> {
        let (from, name) = (visited.dir, visited.listed.file_name());
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let mut copied = self.copied;
        let cloner = &self.cloner;
        self.in_parent(visited.path, |to, new| match file_type {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME;
                let source = File::from(entry::open(from, name, flags)?);
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let target = File::from(rustix::fs::openat(to, new, flags, Mode::RUSR | Mode::WUSR)?);
                let len = source.metadata()?.len();
                match cloner.clone_file(&source, &target, len).map_err(io::Error::other)? {
                    Method::Reflink => copied.reflinked += 1,
                    Method::CopyRange | Method::Copy => {
                        (copied.copied, copied.bytes) = (copied.copied + 1, copied.bytes + len);
                    }
                }
                if let Some(origin) = origin {
                    edit(origin, &target)?;
                }
                write_xattrs(target.as_fd(), &read_xattrs(source.as_fd())?)?;
                write_attributes(target.as_fd(), stat)
            }
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&text, to, new)?;
                let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(to, new, Some(uid), Some(gid), flags)?;
                Ok(rustix::fs::utimensat(to, new, &times(stat), flags)?)
            }
            _ => {
                rustix::fs::mknodat(to, new, file_type, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
                if is_whiteout_device(stat) {
                    return Ok(());
                }
                let made = entry::open(to, new, OFlags::PATH | OFlags::NOFOLLOW)?;
                write_attributes(made.as_fd(), stat)
            }
        })?;
        self.copied = copied;
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), CopyError> {
        match self.place(path) {
            Ok((dir, name)) => tree::remove(&dir, &*name)
                .map_err(|errno| CopyError { path: path.to_owned(), source: errno.into() }),
            // The directory above is gone already.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn in_parent(
        &self,
        path: &Path,
        work: impl FnOnce(BorrowedFd<'_>, &CStr) -> io::Result<()>,
    ) -> Result<(), CopyError> {
        let (dir, name) = self.place(path)?;
        work(dir.as_fd(), &name).map_err(at(path))
    }

    /// The directory of an entry of the copy, and its name.
    fn place(&self, path: &Path) -> Result<(OwnedFd, CString), CopyError> {
        let found = || -> io::Result<_> {
            let name = path.file_name().unwrap_or_default();
            let dir = self.dir(path.parent().unwrap_or(Path::new("")))?;
            Ok((dir, CString::new(name.as_bytes())?))
        };
        found().map_err(at(path))
    }

    /// A directory of the copy. Opened name by name, because the kernel accepts no path of more than 4,095 bytes.
    fn dir(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let mut dir = entry::open(self.to.as_fd(), c".", flags)?;
        if path.as_os_str().len() < 4000 && !path.as_os_str().is_empty() {
            // Only this process writes here, so no name on the way is a link.
            return Ok(entry::open(dir.as_fd(), &CString::new(path.as_os_str().as_bytes())?, flags)?);
        }
        for name in path {
            dir = entry::open(dir.as_fd(), &CString::new(name.as_bytes())?, flags)?;
        }
        Ok(dir)
    }
}

fn at<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> CopyError + use<'_, E> {
    move |error| CopyError { path: path.to_owned(), source: error.into() }
}

fn is_about_writing(error: &io::Error) -> bool {
    matches!(errno_of(error), Errno::NOSPC | Errno::DQUOT | Errno::ROFS)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Sets owner, mode and times. The descriptor may be an `O_PATH` descriptor.
fn write_attributes(fd: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    let now = rustix::fs::fstat(fd)?;
    if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    let path = proc_path(fd);
    rustix::fs::chmod(&*path, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(rustix::fs::utimensat(rustix::fs::CWD, &*path, &times(stat), AtFlags::empty())?)
}

fn read_xattrs(fd: BorrowedFd<'_>) -> io::Result<Xattrs> {
    const LONGEST: usize = 1 << 16;
    let path = proc_path(fd);
    let mut names = vec![0; 1024];
    let len = match rustix::fs::listxattr(&*path, &mut names[..]) {
        Err(Errno::RANGE) => {
            names = vec![0; LONGEST];
            rustix::fs::listxattr(&*path, &mut names[..])?
        }
        Err(Errno::NOTSUP) => 0,
        len => len?,
    };
    let mut out = Vec::new();
    for name in names.get(..len).unwrap_or_default().split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let mut value = vec![0; 256];
        let len = match rustix::fs::getxattr(&*path, name, &mut value[..]) {
            Err(Errno::RANGE) => {
                value = vec![0; LONGEST];
                rustix::fs::getxattr(&*path, name, &mut value[..])?
            }
            // It was removed meanwhile, or only the kernel may read it.
            Err(Errno::NODATA | Errno::PERM | Errno::NOTSUP) => continue,
            len => len?,
        };
        value.truncate(len);
        out.push((name.to_owned(), value));
    }
    Ok(out)
}

fn write_xattrs(fd: BorrowedFd<'_>, xattrs: &[(CString, Vec<u8>)]) -> io::Result<()> {
    let path = proc_path(fd);
    for (name, value) in xattrs {
        match rustix::fs::setxattr(&*path, &**name, value, XattrFlags::empty()) {
            // A label that the system gives to each file.
            Err(Errno::PERM | Errno::NOTSUP) if !name.to_bytes().starts_with(b"user.") => {}
            done => done?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
