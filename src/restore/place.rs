//! Puts a tree at its place: a new one by one rename, or an existing one file by file.
//!
//! Beside the place lies `<name>.restoring` while a restore works, or after one was interrupted. It is a directory, the new
//! tree, or a file, the mark that an existing tree is being changed. The mark outlives a crash: after it, sizes and modes
//! say nothing about files, because they may be of the environment before or after the change. So all are made anew.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::fill::{Tree, is_refused};
use super::known::Known;
use super::layout::{LaidDir, batches, directories};
use super::report::Report;
use super::sweep::{Trust, open_dir};
use super::{Restore, RestoreError, Sharing, os};
use crate::sys::guarded::Dir;
use crate::sys::tree;

/// What is at the place of the tree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    EmptyDir,
    Tree,
}

/// What follows the name of the place.
pub const ENDING: &str = ".restoring";

/// The name of the new tree, or of the mark.
fn aside(name: &str) -> String {
    format!("{name}{ENDING}")
}

impl Restore<'_> {
    /// Makes `name` in `base` the tree. `known` reads the `.meta` of an existing tree, if it is needed.
    ///
    /// When the caller has written `.meta`, it calls [`settle`].
    ///
    /// # Errors
    /// See [`RestoreError`]. The next restore completes what is there.
    pub fn run(&self, base: &Dir, name: &str, known: impl FnOnce() -> Known) -> Result<Report, RestoreError> {
        let dirs = directories(self.index)?;
        let mut report = Report::default();
        if let Sharing::Links(pool) = self.sharing {
            pool.probe(base.as_fd())?;
        }
        let left = kind_of(base, &aside(name)).map_err(os(aside(name), "stat"))?;
        report.resumed = left.is_some();
        match there(base, name).map_err(os(".", "open"))? {
            There::Tree => {
                let trust = if left == Some(FileType::RegularFile) { None } else { Some(known()) };
                self.update(base, name, &dirs, trust.as_ref(), &mut report)?;
            }
            empty => match self.begin_new(base, name) {
                Ok(root) => self.put_new(base, name, &root, &dirs, &mut report)?,
                // The directory is this user's, and the one above is not.
                Err(errno) if is_refused(errno) && empty == There::EmptyDir => {
                    self.update(base, name, &dirs, Some(&Known::default()), &mut report)?;
                }
                Err(errno) => return Err(os(aside(name), "mkdir")(errno)),
            },
        }
        Ok(report)
    }

    fn begin_new(&self, base: &Dir, name: &str) -> Result<OwnedFd, Errno> {
        let aside = aside(name);
        // Of an interrupted restore. Its files may have half of their bytes.
        tree::remove(base, aside.as_str())?;
        rustix::fs::mkdirat(base, aside.as_str(), Mode::from_raw_mode(self.dir_mode))?;
        open_dir(base, aside.as_bytes(), OFlags::RDONLY)
    }

    fn put_new(
        &self,
        base: &Dir,
        name: &str,
        root: &OwnedFd,
        dirs: &[LaidDir],
        report: &mut Report,
    ) -> Result<(), RestoreError> {
        let aside = aside(name);
        let made = self.build(root, dirs, report).and_then(|()| {
            // An empty directory at the place is replaced.
            rustix::fs::renameat(base, aside.as_str(), base, name).map_err(os(".", "rename the new tree"))
        });
        if made.is_err()
            && let Err(errno) = tree::remove(base, aside.as_str())
        {
            tracing::warn!(name = aside, %errno, "the unfinished tree is not removed; the next restore does");
        }
        made
    }

    fn build(&self, root: &OwnedFd, dirs: &[LaidDir], report: &mut Report) -> Result<(), RestoreError> {
        report.directories = 1 + self.make_directories(root, dirs)?;
        let all: Result<Vec<_>, RestoreError> = dirs
            .iter()
            .map(|dir| dir.missing(self.index, |_| false))
            .enumerate()
            .map(|(at, nodes)| Ok((at, nodes?)))
            .collect();
        let (batches, total) = batches(self.index, all?.into_iter())?;
        self.progress.total(total.files, total.bytes);
        let tree = Tree::new(root, dirs, false);
        self.fill(&tree, &batches, report)?;
        self.set_times(&tree)
    }

    fn update(
        &self,
        base: &Dir,
        name: &str,
        dirs: &[LaidDir],
        known: Option<&Known>,
        report: &mut Report,
    ) -> Result<(), RestoreError> {
        let root = open_dir(base, name.as_bytes(), OFlags::RDONLY).map_err(os(".", "open"))?;
        report.directories = self.make_directories(&root, dirs)?;
        let dirty = self.sweep(&root, dirs, known.map_or(Trust::Nothing, Trust::Known), report)?;
        let (batches, total) = batches(self.index, dirty.into_iter())?;
        self.progress.total(total.files, total.bytes);
        let tree = Tree::new(&root, dirs, true);
        if !batches.is_empty() {
            mark(base, name)?;
            self.fill(&tree, &batches, report)?;
        }
        self.set_times(&tree)
    }
}

/// Removes the mark, when everything that tells of the tree is written.
///
/// # Errors
/// When it cannot be removed: then the next restore makes all files anew.
pub fn settle(base: &Dir, name: &str) -> Result<(), RestoreError> {
    let aside = aside(name);
    tree::remove(base, aside.as_str()).map_err(os(aside.clone(), "remove"))
}

/// The names in `base` of trees that were not finished, and of marks without a tree, if they are this user's. A mark beside
/// a tree is needed by the next restore. A restore may be working on them: whoever removes one locks its place before.
#[must_use]
pub fn left_in(base: &Dir) -> Vec<String> {
    let entries = std::fs::read_dir(base.path()).into_iter().flatten().flatten();
    let names =
        entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(ENDING)?.to_owned()));
    names.filter(|name| is_left(base, name)).collect()
}

/// Removes one of [`left_in`], if it still is one.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_left(base: &Dir, name: &str) -> Result<(), RestoreError> {
    if is_left(base, name) { settle(base, name) } else { Ok(()) }
}

fn is_left(base: &Dir, name: &str) -> bool {
    let Ok(found) = base.stat(OsStr::new(&aside(name))) else { return false };
    let is_unneeded = match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => true,
        FileType::RegularFile => base.stat(OsStr::new(name)).is_err_and(|error| error.is_not_found()),
        _ => false,
    };
    is_unneeded && found.st_uid == rustix::process::geteuid().as_raw()
}

/// Marks the tree before its first change, on the disk too.
fn mark(base: &Dir, name: &str) -> Result<(), RestoreError> {
    let aside = aside(name);
    tree::remove(base, aside.as_str())
        .and_then(|()| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            drop(rustix::fs::openat(base, aside.as_str(), flags, Mode::RUSR | Mode::WUSR)?);
            Ok(())
        })
        .or_else(|errno| {
            // Without a mark, an interrupted change of the environment may keep wrong files of the same size.
            if is_refused(errno) { Ok(()) } else { Err(errno) }
        })
        .map_err(os(aside, "create"))?;
    base.sync().map_err(|error| match error.problem {
        crate::sys::guarded::Problem::Os(errno) => os(name, "sync")(errno),
        _ => os(name, "sync")(Errno::IO),
    })
}

fn kind_of(base: &Dir, name: &str) -> Result<Option<FileType>, Errno> {
    match rustix::fs::statat(base, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn there(base: &Dir, name: &str) -> Result<There, Errno> {
    let dir = match open_dir(base, name.as_bytes(), OFlags::RDONLY) {
        Err(Errno::NOENT) => return Ok(There::Nothing),
        dir => dir?,
    };
    for entry in rustix::fs::Dir::new(dir)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(There::Tree);
        }
    }
    Ok(There::EmptyDir)
}
