//! A walk through an upper.
//!
//! It goes through the directories of an upper by descriptors, and gives every entry before what is below it. It needs
//! neither a mount nor a catalog: [`changes`](super::changes) adds what the entries mean. It only reads, so it may look at the
//! upper of a mounted space as well. It then gives each entry as it was at some moment, and leaves out those that
//! vanish while it looks.
//!
//! The cost grows with the entries of the upper, not with the catalog. The memory is one listing for each directory
//! on the path to the present entry, and at most [`KEPT`] of those directories are open at a time. No directory is
//! followed through a symbolic link. A directory deeper than [`MAX_DEPTH`] is an error.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::UpperError;
use super::entry::{Listed, OnDisk, list, open, stat_at};

/// The deepest directory that is read. The kernel takes paths of at most 2,048 steps at once.
pub const MAX_DEPTH: usize = 4096;

/// The most directories that are open at a time. One that was closed is opened again by its path.
const KEPT: usize = 32;

/// A walk through an upper.
#[derive(Debug)]
pub struct Walk<'r> {
    root: BorrowedFd<'r>,
    /// The directories from the root to the present entry.
    levels: Vec<Level>,
    /// The path of the present entry.
    path: Vec<u8>,
    /// The present entry, before the first step and after an error none.
    here: Option<Listed>,
    /// The present entry may be a directory that is yet to be entered.
    enter: bool,
}

#[derive(Debug)]
struct Level {
    /// None while it is closed.
    dir: Option<OwnedFd>,
    /// The entries that are still to come, the next one last.
    left: Vec<Listed>,
    /// The length of the directory's own path.
    path_len: usize,
}

/// An entry that the walk has come to.
#[derive(Clone, Copy, Debug)]
pub struct Met<'w> {
    /// The directory of the entry.
    pub dir: BorrowedFd<'w>,
    /// Name, type and number as the directory's listing has them.
    pub listed: &'w Listed,
    /// The path below the root of the upper.
    pub path: &'w Path,
    /// How many directories are above it: 0 for an entry of the root.
    pub depth: usize,
}

impl Met<'_> {
    /// stat(2) of the entry; None when it has vanished.
    ///
    /// # Errors
    /// [`UpperError::Os`] when the call fails.
    pub fn stat(&self) -> Result<Option<Stat>, UpperError> {
        self.unless_vanished(stat_at(self.dir, &self.listed.name))
    }

    /// What the filesystem says of the entry, whose `stat` is known; None when it has vanished.
    ///
    /// # Errors
    /// As those of [`OnDisk::read`].
    pub fn on_disk(&self, stat: &Stat) -> Result<Option<OnDisk>, UpperError> {
        self.unless_vanished(OnDisk::of_stat(self.dir, &self.listed.name, stat))
    }

    fn unless_vanished<T>(&self, done: Result<T, UpperError>) -> Result<Option<T>, UpperError> {
        unless_vanished(done).map_err(|error| error.at(self.path))
    }
}

impl<'r> Walk<'r> {
    /// A walk through the upper whose root directory is `root`.
    ///
    /// # Errors
    /// [`UpperError::Os`] when the root cannot be read.
    pub fn new(root: BorrowedFd<'r>) -> Result<Self, UpperError> {
        let mut walk = Self { root, levels: Vec::new(), path: Vec::new(), here: None, enter: false };
        walk.push(open_dir(root, c".")?)?;
        Ok(walk)
    }

    /// Goes to the next entry; None at the end. After an error the walk can go on: what is below the entry that could
    /// not be read is left out.
    pub fn advance(&mut self) -> Option<Result<Met<'_>, UpperError>> {
        match self.step()? {
            Ok(()) => self.met().map(Ok),
            Err(error) => Some(Err(error)),
        }
    }

    /// Leaves out what is below the present entry.
    pub fn skip_below(&mut self) {
        self.enter = false;
    }

    /// The present entry.
    pub(super) fn met(&self) -> Option<Met<'_>> {
        Some(Met {
            dir: self.levels.last()?.dir.as_ref()?.as_fd(),
            listed: self.here.as_ref()?,
            path: Path::new(OsStr::from_bytes(&self.path)),
            depth: self.levels.len().saturating_sub(1),
        })
    }

    /// As [`Walk::advance`], for a caller that asks for the entry by [`Walk::met`].
    pub(super) fn step(&mut self) -> Option<Result<(), UpperError>> {
        if let Err(error) = self.enter() {
            return Some(Err(error.at(Path::new(OsStr::from_bytes(&self.path)))));
        }
        loop {
            let level = self.levels.last_mut()?;
            self.path.truncate(level.path_len);
            let Some(listed) = level.left.pop() else {
                self.levels.pop();
                continue;
            };
            match self.reopen() {
                Ok(true) => {}
                Ok(false) => {
                    self.levels.pop();
                    continue;
                }
                Err(error) => {
                    self.levels.pop();
                    return Some(Err(error.at(Path::new(OsStr::from_bytes(&self.path)))));
                }
            }
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(listed.name.as_bytes());
            self.enter = matches!(listed.file_type, FileType::Directory | FileType::Unknown);
            self.here = Some(listed);
            return Some(Ok(()));
        }
    }

    /// Enters the present entry if it is a directory that is still to be entered.
    fn enter(&mut self) -> Result<(), UpperError> {
        let Some(listed) = self.here.take().filter(|_| std::mem::take(&mut self.enter)) else {
            return Ok(());
        };
        let Some(dir) = self.levels.last().and_then(|level| level.dir.as_ref()) else { return Ok(()) };
        let Some(dir) = unless_vanished(open_dir(dir.as_fd(), &listed.name))? else { return Ok(()) };
        if self.levels.len() > MAX_DEPTH {
            return Err(UpperError::damaged(&listed.name, "it is too deep below the root"));
        }
        self.push(dir)
    }

    fn push(&mut self, dir: OwnedFd) -> Result<(), UpperError> {
        let Some(mut left) = unless_vanished(list(dir.as_fd()))? else { return Ok(()) };
        left.sort_unstable_by(|one, two| two.name.cmp(&one.name));
        self.levels.push(Level { dir: Some(dir), left, path_len: self.path.len() });
        let oldest = self.levels.len().checked_sub(KEPT + 1).and_then(|n| self.levels.get_mut(n));
        if let Some(oldest) = oldest {
            oldest.dir = None;
        }
        Ok(())
    }

    /// Opens the directory of the last level again if it was closed; false when it has vanished.
    fn reopen(&mut self) -> Result<bool, UpperError> {
        let Some(level) = self.levels.last_mut() else { return Ok(false) };
        if level.dir.is_some() {
            return Ok(true);
        }
        level.dir = open_path(self.root, &self.path)?;
        Ok(level.dir.is_some())
    }
}

/// The directory of an upper that has the inode number `ino`, the root included.
///
/// # Errors
/// [`UpperError::Os`] when a directory cannot be read.
pub fn find_dir(root: BorrowedFd<'_>, ino: u64) -> Result<Option<OwnedFd>, UpperError> {
    if stat_at(root, c".")?.st_ino == ino {
        return open_dir(root, c".").map(Some);
    }
    let mut walk = Walk::new(root)?;
    while let Some(met) = walk.advance() {
        let met = met?;
        if matches!(met.listed.file_type, FileType::Directory | FileType::Unknown)
            && met.stat()?.is_some_and(|stat| stat.st_ino == ino)
        {
            return unless_vanished(open_dir(met.dir, &met.listed.name));
        }
    }
    Ok(None)
}

fn open_dir(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, UpperError> {
    open(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
        .map_err(UpperError::os(name, "open a directory"))
}

/// Opens a directory by its path, one step at a time: the path can be longer than the kernel takes at once.
fn open_path(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<OwnedFd>, UpperError> {
    let mut at = open_dir(root, c".")?;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        let Ok(name) = CString::new(name) else { return Ok(None) };
        match unless_vanished(open_dir(at.as_fd(), &name))? {
            Some(below) => at = below,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}

/// None for an entry that was removed, or replaced by one of another type, while it was looked at.
fn unless_vanished<T>(done: Result<T, UpperError>) -> Result<Option<T>, UpperError> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(UpperError::Os { source: Errno::NOENT | Errno::NOTDIR | Errno::LOOP, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
