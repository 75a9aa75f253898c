//! Visits every entry of an upper.
//!
//! The walk needs neither a mount nor a catalog; [`changes`](super::changes) adds what the entries mean. It visits an
//! entry before the entries below it. It only reads, so it may run over the upper of a mounted space. It then sees
//! each entry as it was at some moment, and skips entries that vanish meanwhile.
//!
//! Everything is opened by descriptor and name, and no symbolic link is followed. The time grows with the entries of
//! the upper, not with the catalog. The memory is one listing for each directory on the path to the current entry. At
//! most 33 of these directories are open at a time, and a directory deeper than [`MAX_DEPTH`] is an error, so a
//! hostile tree exhausts neither the stack nor the descriptors.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{DirEntry, FileType, OFlags, Stat};

use super::UpperError;
use super::entry::{OnDisk, list, open, stat_at, unless_vanished};

/// The deepest directory that is read. A path that the kernel accepts has at most 2,047 names, so only a program that
/// changes its working directory again and again can make a deeper one.
pub const MAX_DEPTH: usize = 2048;

/// The number of directories above the deepest one that stay open. One that was closed is opened again by its path.
const KEPT: usize = 32;

/// A walk through an upper.
#[derive(Debug)]
pub struct Walk<'r> {
    root: BorrowedFd<'r>,
    /// The number of entries of one directory after which the rest is not read.
    most: usize,
    /// The directories from the root to the current entry.
    levels: Vec<Level>,
    /// The path of the current entry.
    path: Vec<u8>,
    /// The current entry; None before the first step and after an error.
    here: Option<DirEntry>,
    /// The next step goes into the current entry, if it is a directory.
    enter: bool,
}

/// A directory on the path to the current entry.
#[derive(Debug)]
struct Level {
    /// None while the directory is closed.
    dir: Option<OwnedFd>,
    /// The entries that are not visited yet, the next one last.
    left: Vec<DirEntry>,
    /// The length of the directory's own path.
    path_len: usize,
}

/// An entry that the walk visits.
#[derive(Clone, Copy, Debug)]
pub struct Visited<'w> {
    /// The directory of the entry.
    pub dir: BorrowedFd<'w>,
    /// Name, type and inode number, as the listing of the directory has them.
    pub listed: &'w DirEntry,
    /// The path below the root of the upper.
    pub path: &'w Path,
    /// The number of directories on the path: 0 for an entry of the root.
    pub depth: usize,
}

impl Visited<'_> {
    /// stat(2) of the entry; None when it has vanished.
    ///
    /// # Errors
    /// [`UpperError::Os`] when the call fails.
    pub fn stat(&self) -> Result<Option<Stat>, UpperError> {
        self.unless_vanished(stat_at(self.dir, self.listed.file_name()))
    }

    /// stat(2) and mark of the entry, both of the same file; None when the entry has vanished.
    ///
    /// # Errors
    /// Those of [`OnDisk::read`].
    pub fn look(&self) -> Result<Option<(Stat, OnDisk)>, UpperError> {
        let Some(mut stat) = self.stat()? else { return Ok(None) };
        loop {
            let on_disk = OnDisk::of_stat(self.dir, self.listed.file_name(), &stat);
            let Some(on_disk) = self.unless_vanished(on_disk)? else { return Ok(None) };
            // In a mounted space, another file can get the name between the two calls.
            let Some(now) = self.stat()? else { return Ok(None) };
            if (now.st_ino, now.st_mode) == (stat.st_ino, stat.st_mode) {
                return Ok(Some((stat, on_disk)));
            }
            stat = now;
        }
    }

    fn unless_vanished<T>(&self, done: Result<T, UpperError>) -> Result<Option<T>, UpperError> {
        unless_vanished(done).map_err(|error| error.at(self.path))
    }
}

impl<'r> Walk<'r> {
    /// Starts a walk at the root directory of an upper.
    ///
    /// # Errors
    /// [`UpperError::Os`] when the root cannot be read.
    pub fn new(root: BorrowedFd<'r>) -> Result<Self, UpperError> {
        Self::of_at_most(root, usize::MAX)
    }

    /// Starts a walk that reads at most `most` entries of each directory.
    fn of_at_most(root: BorrowedFd<'r>, most: usize) -> Result<Self, UpperError> {
        let mut walk = Self { root, most, levels: Vec::new(), path: Vec::new(), here: None, enter: false };
        walk.push(open_dir(root, c".")?)?;
        Ok(walk)
    }

    /// Goes to the next entry; None at the end. After an error the walk can go on. It skips what is below the entry
    /// that could not be read.
    pub fn advance(&mut self) -> Option<Result<Visited<'_>, UpperError>> {
        match self.step()? {
            Ok(()) => self.current().map(Ok),
            Err(error) => Some(Err(error)),
        }
    }

    /// Skips what is below the current entry.
    pub fn skip_below(&mut self) {
        self.enter = false;
    }

    /// The current entry.
    pub(super) fn current(&self) -> Option<Visited<'_>> {
        Some(Visited {
            dir: self.levels.last()?.dir.as_ref()?.as_fd(),
            listed: self.here.as_ref()?,
            path: Path::new(OsStr::from_bytes(&self.path)),
            depth: self.levels.len().saturating_sub(1),
        })
    }

    /// Does what [`Walk::advance`] does, for a caller that gets the entry from [`Walk::current`].
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
            self.path.extend_from_slice(listed.file_name().to_bytes());
            self.enter = matches!(listed.file_type(), FileType::Directory | FileType::Unknown);
            self.here = Some(listed);
            return Some(Ok(()));
        }
    }

    /// Goes into the current entry, unless it is not a directory or is to be skipped.
    fn enter(&mut self) -> Result<(), UpperError> {
        let Some(listed) = self.here.take().filter(|_| std::mem::take(&mut self.enter)) else {
            return Ok(());
        };
        let Some(dir) = self.levels.last().and_then(|level| level.dir.as_ref()) else { return Ok(()) };
        let Some(dir) = unless_vanished(open_dir(dir.as_fd(), listed.file_name()))? else { return Ok(()) };
        if self.levels.len() > MAX_DEPTH {
            return Err(UpperError::damaged(listed.file_name(), "it is too deep below the root"));
        }
        self.push(dir)
    }

    fn push(&mut self, dir: OwnedFd) -> Result<(), UpperError> {
        let listed =
            list(dir.as_fd()).and_then(|entries| entries.take(self.most).collect::<Result<Vec<_>, _>>());
        let Some(mut left) = unless_vanished(listed)? else { return Ok(()) };
        left.sort_unstable_by(|one, two| two.file_name().cmp(one.file_name()));
        self.levels.push(Level { dir: Some(dir), left, path_len: self.path.len() });
        let oldest = self.levels.len().checked_sub(KEPT + 1).and_then(|n| self.levels.get_mut(n));
        if let Some(oldest) = oldest {
            oldest.dir = None;
        }
        Ok(())
    }

    /// Opens the deepest directory again if it was closed, and the directories above it that stay open. Returns false
    /// when one has vanished. The directories are opened name by name, because the kernel accepts no path of more
    /// than 4,095 bytes.
    fn reopen(&mut self) -> Result<bool, UpperError> {
        if self.levels.last().is_none_or(|level| level.dir.is_some()) {
            return Ok(true);
        }
        let first_kept = self.levels.len().saturating_sub(KEPT);
        let mut at = open_dir(self.root, c".")?;
        let mut above: Option<&mut Level> = None;
        for (depth, level) in self.levels.iter_mut().enumerate() {
            let start = above.as_ref().map_or(0, |above| above.path_len);
            let name = self.path.get(start..level.path_len).unwrap_or_default();
            if let Some(above) = above {
                let Ok(name) = CString::new(name.strip_prefix(b"/").unwrap_or(name)) else {
                    return Ok(false);
                };
                let Some(below) = unless_vanished(open_dir(at.as_fd(), &name))? else { return Ok(false) };
                let opened = std::mem::replace(&mut at, below);
                above.dir = (depth > first_kept).then_some(opened);
            }
            above = Some(level);
        }
        if let Some(last) = above {
            last.dir = Some(at);
        }
        Ok(true)
    }
}

/// The bytes that the files of an upper take on disk, as `du` counts them without directories, and whether all of
/// them were counted. Counting ends after `most` entries, and an entry that cannot be read is not counted.
#[must_use]
pub fn bytes_below(upper: &Path, most: usize) -> (u64, bool) {
    let mut total = 0;
    let mut count = || -> Result<bool, UpperError> {
        let Some(root) = super::open(upper)? else { return Ok(true) };
        let mut walk = Walk::of_at_most(root.as_fd(), most.saturating_add(1))?;
        let (mut looked, mut is_all) = (0, true);
        while let Some(visited) = walk.advance() {
            if looked == most {
                return Ok(false);
            }
            looked += 1;
            match visited.and_then(|visited| visited.stat()) {
                Ok(Some(stat)) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                    total += stat.st_blocks.unsigned_abs() * 512;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(upper = %upper.display(), %error, "cannot read an entry of the upper; its size is not counted");
                    is_all = false;
                }
            }
        }
        Ok(is_all)
    };
    match count() {
        Ok(is_all) => (total, is_all),
        Err(error) => {
            tracing::debug!(upper = %upper.display(), %error, "cannot read the upper; its size is not known");
            (total, false)
        }
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
    while let Some(visited) = walk.advance() {
        let visited = visited?;
        if matches!(visited.listed.file_type(), FileType::Directory | FileType::Unknown)
            && visited.stat()?.is_some_and(|stat| stat.st_ino == ino)
        {
            return unless_vanished(open_dir(visited.dir, visited.listed.file_name()));
        }
    }
    Ok(None)
}

fn open_dir(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, UpperError> {
    open(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
        .map_err(UpperError::os(name, "open a directory"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// The paths of an upper, in the order of the walk, and the errors by their text.
    fn walked(root: &Path) -> Vec<String> {
        let root = File::open(root).unwrap();
        let mut walk = Walk::new(root.as_fd()).unwrap();
        let mut out = Vec::new();
        while let Some(visited) = walk.advance() {
            out.push(match visited {
                Ok(visited) => visited.path.to_str().unwrap().to_owned(),
                Err(error) => error.to_string(),
            });
        }
        out
    }

    #[test]
    fn an_entry_comes_before_what_is_below_it_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(walked(dir.path()), [""; 0]);
        std::fs::create_dir_all(dir.path().join("b/c/d")).unwrap();
        for file in ["a", "b/z", "b/c/d/e"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("b", dir.path().join("link")).unwrap();
        assert_eq!(walked(dir.path()), ["a", "b", "b/c", "b/c/d", "b/c/d/e", "b/z", "link"]);
    }

    #[test]
    fn what_vanishes_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d"] {
            std::fs::create_dir_all(dir.path().join(name).join("below")).unwrap();
        }
        let root = File::open(dir.path()).unwrap();
        let mut walk = Walk::new(root.as_fd()).unwrap();
        assert_eq!(walk.advance().unwrap().unwrap().path, Path::new("a"));
        std::fs::remove_dir_all(dir.path().join("a")).unwrap();
        assert_eq!(walk.advance().unwrap().unwrap().path, Path::new("b"));
        std::fs::remove_dir_all(dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("b"), "a file now").unwrap();
        assert_eq!(walk.advance().unwrap().unwrap().path, Path::new("c"));
        std::fs::remove_dir_all(dir.path().join("c")).unwrap();
        let visited = walk.advance().unwrap().unwrap();
        assert_eq!(visited.path, Path::new("d"));
        std::fs::remove_dir_all(dir.path().join("d")).unwrap();
        assert!(visited.stat().unwrap().is_none());
        assert!(walk.advance().is_none());
    }

    /// Deeper than the descriptors that are kept, than the kernel's longest path, and than the walk goes.
    #[test]
    fn a_deep_tree_is_walked_with_few_descriptors_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        let mode = rustix::fs::Mode::RWXU;
        let mut at = root.try_clone().unwrap();
        for n in 0..MAX_DEPTH + 10 {
            rustix::fs::mkdirat(&at, "d", mode).unwrap();
            if n % 64 == 0 {
                rustix::fs::mkdirat(&at, "e", mode).unwrap();
            }
            at = open_dir(at.as_fd(), c"d").unwrap();
        }
        let mut walk = Walk::new(root.as_fd()).unwrap();
        let (mut entries, mut errors) = (0, Vec::new());
        while let Some(visited) = walk.advance() {
            match visited {
                Ok(_) => entries += 1,
                Err(error) => errors.push(error),
            }
            assert!(walk.levels.iter().filter(|level| level.dir.is_some()).count() <= KEPT + 1);
        }
        assert_eq!(entries, MAX_DEPTH + 1 + MAX_DEPTH / 64 + 1);
        assert_eq!(errors.len(), 2);
        assert!(
            errors
                .iter()
                .all(|error| matches!(error, UpperError::Damaged { path, .. } if path.starts_with("d/d/d")))
        );
        remove(dir.path());
    }

    /// Removes the tree of the test above, which `remove_dir_all` would open a descriptor for each directory of.
    fn remove(root: &Path) {
        while std::fs::rename(root.join("d/d"), root.join("next")).is_ok() {
            std::fs::remove_dir_all(root.join("d")).unwrap();
            std::fs::rename(root.join("next"), root.join("d")).unwrap();
        }
    }

    #[test]
    fn counts_bytes_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/c"), vec![1u8; 10_000]).unwrap();
        let (bytes, is_all) = bytes_below(dir.path(), 100);
        assert!(bytes >= 10_000 && is_all);
        assert_eq!(bytes_below(dir.path(), 3), (bytes, true));
        assert_eq!(bytes_below(&dir.path().join("nowhere"), 0), (0, true));
        assert!(!bytes_below(dir.path(), 1).1);
    }
}
