//! Copies of blobs to make hard links to: `cache/links/<mode>/<aa>/<digest>`.
//!
//! A hard link is the same inode in several spaces. A program that could write to it in one space would change the others.
//! So the copies have no write permission, and the linked files have none either: their modes differ from the catalog's by
//! the write bits. A program of an ordinary user cannot open such a file for writing. It can still replace or remove it in
//! its own space. Modes do not bind root, so root should not choose hard links for programs that it does not trust.
//! rcc takes the linked files for changed ones, because of their modes, and replaces them by copies.
//!
//! The copies are holofs's own, verified when they are made. The library's files are never linked: rcc writes to them in
//! place. Files with relocations differ between spaces, and a file that matches one of the excluding patterns may have to be
//! written to, so they are copied.
//!
//! Invariant: a copy is linked only while its size, mode and time are those that it was made with. A write would have
//! changed the time. After a loss of power a copy that was not on the disk is too short.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use glob::{MatchOptions, Pattern};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{RestoreError, TIMES, os};
use crate::library::MOTHER_TIME;
use crate::library::blob::direct::Room;
use crate::library::digest::Digest;
use crate::materialize::source::{LowerFile, Source};
use crate::sys::guarded::{Dir, GuardedError, Problem, Trust};
use crate::sys::tree;

/// How often a copy is looked up that others replace.
const ATTEMPTS: u32 = 10;
/// How old in seconds a temporary file is when its writer must have died.
const OLD: i64 = 3600;

/// The copies, and the paths that are not linked.
#[derive(Debug)]
pub struct LinkPool {
    dir: Dir,
    place: PathBuf,
    excluded: Vec<Pattern>,
    next: AtomicU64,
}

/// A pattern of paths is not one.
#[derive(Debug, thiserror::Error)]
#[error("{pattern}: {why}")]
pub struct BadPattern {
    /// As it was set.
    pub pattern: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Parses patterns as shells have them: `*` also matches `/`.
///
/// # Errors
/// When one is not a pattern.
pub fn patterns(texts: &[String]) -> Result<Vec<Pattern>, BadPattern> {
    let parse = |text: &String| {
        Pattern::new(text).map_err(|error| BadPattern { pattern: text.clone(), why: error.msg })
    };
    texts.iter().map(parse).collect()
}

impl LinkPool {
    /// Opens or makes the directory of copies.
    ///
    /// # Errors
    /// When it cannot be made, or others can write to it.
    pub fn open(place: &Path, excluded: Vec<Pattern>) -> Result<Self, GuardedError> {
        let dir = Dir::make_ours(place)?;
        let pool = Self { dir, place: place.to_owned(), excluded, next: AtomicU64::new(0) };
        pool.remove_old_parts();
        Ok(pool)
    }

    /// Tries a hard link from here to a directory.
    ///
    /// # Errors
    /// Why hard links are not possible.
    pub(super) fn probe(&self, to: BorrowedFd<'_>) -> Result<(), RestoreError> {
        let name = self.temporary();
        let failed = |source| RestoreError::NoLinks { pool: self.place.display().to_string(), source };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        drop(rustix::fs::openat(&self.dir, &name, flags, Mode::RUSR).map_err(failed)?);
        let linked = rustix::fs::linkat(&self.dir, &name, to, &name, AtFlags::empty());
        let removed = if linked.is_ok() { tree::remove(to, &name) } else { Ok(()) };
        tree::remove(&self.dir, &name).and(linked).and(removed).map_err(failed)
    }

    /// Whether a file with this path may be linked.
    pub(super) fn allows(&self, path: &[u8]) -> bool {
        if self.excluded.is_empty() {
            return true;
        }
        let Ok(path) = std::str::from_utf8(path) else { return false };
        let name = path.rsplit('/').next().unwrap_or(path);
        let how = MatchOptions::new();
        // A pattern without a slash is about names, in every directory.
        let matches = |pattern: &Pattern| {
            pattern.matches_with(path, how)
                || !pattern.as_str().contains('/') && pattern.matches_with(name, how)
        };
        !self.excluded.iter().any(matches)
    }

    /// Whether a file in the tree is a link to the copy.
    pub(super) fn has(&self, digest: &Digest, size: u64, perm: u32, file: &Stat) -> bool {
        self.copy(&place_of(digest, perm), size, perm)
            .is_some_and(|copy| (copy.st_dev, copy.st_ino) == (file.st_dev, file.st_ino))
    }

    /// Makes `name` in `dir` a link to the copy of a file's content, which is made if there is none. Returns how many bytes
    /// were written for that. None if the copy has as many links as the filesystem allows.
    pub(super) fn link(
        &self,
        source: &Source,
        file: &LowerFile<'_>,
        (digest, perm): (&Digest, u32),
        (dir, name): (BorrowedFd<'_>, &[u8]),
        room: &mut Room,
    ) -> Result<Option<u64>, RestoreError> {
        let place = place_of(digest, perm);
        let mut written = 0;
        for attempt in 1.. {
            if self.copy(&place, file.size, perm).is_none() {
                self.make(source, file, &place, perm, room)?;
                written = file.size;
            }
            match rustix::fs::linkat(&self.dir, place.as_str(), dir, name, AtFlags::empty()) {
                Ok(()) => return Ok(Some(written)),
                Err(Errno::MLINK) => break,
                // Another thread has put its own copy there after this one was looked up.
                Err(Errno::NOENT) if attempt < ATTEMPTS => {}
                Err(source) => {
                    return Err(RestoreError::NoLinks { pool: self.place.display().to_string(), source });
                }
            }
        }
        Ok(None)
    }

    /// The copy, if it is as it was made.
    fn copy(&self, place: &str, size: u64, perm: u32) -> Option<Stat> {
        let found = rustix::fs::statat(&self.dir, place, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_as_made = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && found.st_size as u64 == size
            && found.st_mode & 0o7777 == without_write(perm)
            && (found.st_mtime, found.st_mtime_nsec) == (MOTHER_TIME, 0);
        is_as_made.then_some(found)
    }

    fn make(
        &self,
        source: &Source,
        file: &LowerFile<'_>,
        place: &str,
        perm: u32,
        room: &mut Room,
    ) -> Result<(), RestoreError> {
        let failed = |call| os(source.path(file.node), call);
        let name = self.temporary();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let part =
            rustix::fs::openat(&self.dir, &name, flags, Mode::RUSR).map_err(failed("create a copy"))?;
        let part = File::from(part);
        let made = source.unpack(file, &part, room).map_err(RestoreError::from).and_then(|()| {
            rustix::fs::fchmod(&part, Mode::from_raw_mode(without_write(perm))).map_err(failed("chmod"))?;
            rustix::fs::futimens(&part, &TIMES).map_err(failed("set the times of"))?;
            self.publish(&name, place).map_err(failed("name a copy of"))
        });
        if made.is_err() {
            // The first error is told. What is left is removed as old.
            tree::remove(&self.dir, &name).ok();
        }
        made
    }

    fn publish(&self, name: &str, place: &str) -> Result<(), Errno> {
        match rustix::fs::renameat(&self.dir, name, &self.dir, place) {
            Err(Errno::NOENT) => {}
            done => return done,
        }
        for (at, _) in place.match_indices('/') {
            match rustix::fs::mkdirat(&self.dir, place.get(..at).unwrap_or_default(), Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        rustix::fs::renameat(&self.dir, name, &self.dir, place)
    }

    fn temporary(&self) -> String {
        format!("part.{}.{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Removes what writers that were killed have left.
    fn remove_old_parts(&self) {
        for (name, _) in old_parts(&self.dir, now()) {
            if let Err(error) = self.dir.remove_file(&name) {
                tracing::debug!(%error, "cannot remove a temporary copy");
            }
        }
    }
}

/// The sum of the sizes of what [`sweep`] removes, and how many files that are.
///
/// # Errors
/// When others can write to the directory, or it cannot be read.
pub fn surplus(place: &Path) -> Result<(u64, u64), GuardedError> {
    visit(place, now(), |_, _| Ok(()))
}

/// Removes the copies that no tree has a link to, and what writers that were killed have left. A restore that has just made
/// a copy makes it again.
///
/// # Errors
/// As [`surplus`], and those of unlink(2).
pub fn sweep(place: &Path) -> Result<(), GuardedError> {
    visit(place, now(), Dir::remove_file).map(drop)
}

fn visit(
    place: &Path,
    now: i64,
    mut each: impl FnMut(&Dir, &OsStr) -> Result<(), GuardedError>,
) -> Result<(u64, u64), GuardedError> {
    let pool = match Dir::open(place, Trust::Private) {
        Err(error) if error.is_not_found() => return Ok((0, 0)),
        pool => pool?,
    };
    let (mut files, mut bytes) = (0, 0);
    let mut count = |dir: &Dir, name: &OsStr, size: u64| {
        (files, bytes) = (files + 1, bytes + size);
        each(dir, name)
    };
    for (name, size) in old_parts(&pool, now) {
        count(&pool, &name, size)?;
    }
    for mode in directories_in(&pool)? {
        for dir in directories_in(&mode)? {
            for name in dir.names()? {
                let found = dir.stat(&name)?;
                if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_nlink == 1 {
                    count(&dir, &name, found.st_size as u64)?;
                }
            }
        }
    }
    Ok((files, bytes))
}

fn now() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec
}

/// The temporary files whose writers must have died, with their sizes.
fn old_parts(pool: &Dir, now: i64) -> Vec<(OsString, u64)> {
    let names = pool.names().unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot look for temporary copies");
        Vec::new()
    });
    let parts = names.into_iter().filter(|name| name.as_encoded_bytes().starts_with(b"part."));
    // Without a look at one that is gone by now.
    let found = parts.filter_map(|name| pool.stat(&name).ok().map(|found| (name, found)));
    found
        .filter(|(_, found)| now - found.st_ctime > OLD)
        .map(|(name, found)| (name, found.st_size as u64))
        .collect()
}

fn directories_in(dir: &Dir) -> Result<Vec<Dir>, GuardedError> {
    let opened = dir.names()?.into_iter().map(|name| dir.open_dir(&name, Trust::Private));
    let is_directory = |opened: &Result<Dir, GuardedError>| {
        !matches!(
            opened,
            Err(GuardedError {
                problem: Problem::NotADirectory(_) | Problem::Os(Errno::NOENT | Errno::NOTDIR),
                ..
            })
        )
    };
    opened.filter(is_directory).collect()
}

impl AsFd for LinkPool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

fn without_write(perm: u32) -> u32 {
    perm & 0o7555
}

/// The place of a copy, relative to the pool. Files of equal content and other modes need another inode.
fn place_of(digest: &Digest, perm: u32) -> String {
    let [first, ..] = digest.fan_out_dirs();
    format!("{:04o}/{first}/{digest}", without_write(perm))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(excluded: &[&str]) -> (tempfile::TempDir, LinkPool) {
        let dir = tempfile::tempdir().unwrap();
        let texts: Vec<String> = excluded.iter().map(|text| (*text).to_owned()).collect();
        let real = dir.path().canonicalize().unwrap();
        let pool = LinkPool::open(&real.join("links"), patterns(&texts).unwrap()).unwrap();
        (dir, pool)
    }

    #[test]
    fn patterns_exclude_names_and_paths() {
        let (_dir, pool) = pool(&["*.so", "bin/*", "lib/**/keep.txt"]);
        for (path, allowed) in [
            ("lib/a.so", false),
            ("a.so", false),
            ("lib/a.sox", true),
            ("bin/tool", false),
            ("lib/bin/tool", true),
            ("lib/x/y/keep.txt", false),
            ("keep.txt", true),
        ] {
            assert_eq!(pool.allows(path.as_bytes()), allowed, "{path}");
        }
        assert!(!pool.allows(b"\xff"));
        assert!(patterns(&["a[".to_owned()]).is_err());
    }

    #[test]
    fn unused_copies_and_old_parts_are_swept() {
        let (dir, pool) = pool(&[]);
        let at = |path: &str| pool.place.join(path);
        std::fs::create_dir_all(at("0444/ab")).unwrap();
        for (path, bytes) in [("0444/ab/unused", 7), ("0444/ab/used", 5), ("part.1.2", 3), ("else", 9)] {
            std::fs::write(at(path), vec![0; bytes]).unwrap();
        }
        std::fs::hard_link(at("0444/ab/used"), dir.path().join("space")).unwrap();
        std::os::unix::fs::symlink("/etc", at("link")).unwrap();
        // A young part may still be written to.
        assert_eq!(surplus(&pool.place).unwrap(), (1, 7));
        assert_eq!(visit(&pool.place, now() + OLD + 9, |_, _| Ok(())).unwrap(), (2, 10));
        sweep(&pool.place).unwrap();
        assert_eq!(surplus(&pool.place).unwrap(), (0, 0));
        assert!(at("0444/ab/used").exists() && at("part.1.2").exists() && at("else").exists());
        assert_eq!(surplus(&dir.path().canonicalize().unwrap().join("none")).unwrap(), (0, 0));
    }

    #[test]
    fn the_probe_leaves_nothing() {
        let (dir, pool) = pool(&[]);
        let to = dir.path().join("to");
        std::fs::create_dir(&to).unwrap();
        pool.probe(std::fs::File::open(&to).unwrap().as_fd()).unwrap();
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(&pool.place).unwrap().count(), 0);
    }
}
