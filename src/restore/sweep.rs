//! Compares an existing tree with the environment, as rcc does, and removes what does not belong to it.
//!
//! A file stays if its size and mode are those of the catalog, unless `.meta` lists another digest for it. Neither its
//! content nor its time is looked at, as in rcc: an edit that keeps the size stays. A link stays if its text is right.
//! Everything that the environment does not have is removed: files, directories with all they contain, FIFOs.
//!
//! Two things differ from rcc, which cannot complete its restore then, or leaves a wrong tree: a file in the place of a
//! directory is replaced, and so is a file in the place of a link.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use super::known::Known;
use super::layout::LaidDir;
use super::report::Report;
use super::{Restore, RestoreError, Sharing, os};
use crate::library::index::{NodeId, NodeKind};
use crate::sys::{thread, tree};

/// How much of a directory is listed by one call, in bytes.
const LISTING: usize = 32 * 1024;

/// How many directories a thread makes before it takes the next ones.
const DIRS: usize = 64;

/// A directory of the tree, by its position, and what is to be made in it.
pub(super) type Dirty = (usize, Vec<NodeId>);

/// What decides that a file stays.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trust<'k> {
    /// Size and mode, and no other digest in `.meta`.
    Known(&'k Known),
    /// Nothing: an earlier restore was interrupted, and the tree may have files of two environments.
    Nothing,
}

/// Opens a directory of the tree. No link is followed.
pub(super) fn open_dir(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    open_below(root, path, flags | OFlags::DIRECTORY)
}

/// Opens an entry of the tree. No link is followed.
pub(super) fn open_below(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(&root, path, flags, Mode::empty(), within) {
        // Seccomp filters of containers may not know openat2(2). The tree is this user's own.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(&root, path, flags, Mode::empty()),
        opened => opened,
    }
}

impl Restore<'_> {
    /// Makes the missing directories. What stands in the place of one is removed.
    pub(super) fn make_directories(&self, root: &OwnedFd, dirs: &[LaidDir]) -> Result<u64, RestoreError> {
        let made = AtomicU64::new(0);
        let depth = |dir: &LaidDir| dir.path.iter().filter(|byte| **byte == b'/').count();
        // The directories are in the order of their depth, and those of one depth do not need each other.
        for level in dirs.get(1..).unwrap_or_default().chunk_by(|a, b| depth(a) == depth(b)) {
            let batches: Vec<&[LaidDir]> = level.chunks(DIRS).collect();
            thread::for_each(
                &batches,
                self.jobs.busy,
                || (),
                |(), batch| {
                    self.go_on()?;
                    batch.iter().try_for_each(|dir| {
                        made.fetch_add(u64::from(self.make_directory(root, dir)?), Ordering::Relaxed);
                        Ok::<(), RestoreError>(())
                    })
                },
            )?;
        }
        Ok(made.into_inner())
    }

    /// Makes a directory, unless it is there. Returns whether it was made.
    fn make_directory(&self, root: &OwnedFd, dir: &LaidDir) -> Result<bool, RestoreError> {
        let path = dir.path.as_slice();
        let failed = |errno| os(dir.shown(), "mkdir")(errno);
        match rustix::fs::mkdirat(root, path, Mode::from_raw_mode(self.dir_mode)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                    return Ok(false);
                }
                rustix::fs::unlinkat(root, path, AtFlags::empty()).map_err(failed)?;
                rustix::fs::mkdirat(root, path, Mode::from_raw_mode(self.dir_mode)).map_err(failed)?;
                Ok(true)
            }
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Finds what is to be made, in the order of the directories.
    pub(super) fn sweep(
        &self,
        root: &OwnedFd,
        dirs: &[LaidDir],
        trust: Trust<'_>,
        report: &mut Report,
    ) -> Result<Vec<Dirty>, RestoreError> {
        let found = Mutex::new((Vec::new(), Report::default()));
        let positions: Vec<usize> = (0..dirs.len()).collect();
        let buffer = || Vec::with_capacity(LISTING);
        thread::for_each(&positions, self.jobs.waiting, buffer, |buffer: &mut Vec<u8>, position| {
            self.go_on()?;
            let Some(dir) = dirs.get(*position) else { return Ok::<(), RestoreError>(()) };
            let mut counted = Report::default();
            let dirty = self.sweep_one(root, dir, trust, buffer, &mut counted)?;
            let mut found = found.lock();
            found.1.add(&counted);
            if !dirty.is_empty() {
                found.0.push((*position, dirty));
            }
            Ok(())
        })?;
        let (mut dirty, counted) = found.into_inner();
        dirty.sort_unstable_by_key(|(position, _)| *position);
        report.add(&counted);
        Ok(dirty)
    }

    fn sweep_one(
        &self,
        root: &OwnedFd,
        dir: &LaidDir,
        trust: Trust<'_>,
        buffer: &mut Vec<u8>,
        counted: &mut Report,
    ) -> Result<Vec<NodeId>, RestoreError> {
        let failed = |call| os(dir.shown(), call);
        let opened = open_dir(root, &dir.path, OFlags::RDONLY).map_err(failed("open"))?;
        // Files and links that are right already.
        let mut kept = vec![false; dir.children.len()];
        let mut entries = RawDir::new(&opened, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(failed("list"))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let child = self.index.lookup(dir.node, name.to_bytes())?;
            let node = child.map(|child| self.index.node(child)).transpose()?;
            let file_type = match entry.file_type() {
                FileType::Unknown => {
                    let found = rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW);
                    FileType::from_raw_mode(found.map_err(failed("stat"))?.st_mode)
                }
                known => known,
            };
            let is_right = match node.as_ref().map(|node| &node.kind) {
                Some(NodeKind::Dir { .. }) if file_type == FileType::Directory => continue,
                Some(NodeKind::Symlink { target }) if file_type == FileType::Symlink => {
                    let text = rustix::fs::readlinkat(&opened, name, Vec::new());
                    text.is_ok_and(|text| text.as_bytes() == *target)
                }
                Some(NodeKind::File { size, perm, digest, relocations, .. })
                    if file_type == FileType::RegularFile =>
                {
                    match trust {
                        Trust::Nothing => false,
                        Trust::Known(known) => {
                            let found = rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW)
                                .map_err(failed("stat"))?;
                            let path = dir.path_bytes(name.to_bytes());
                            let linked = match self.sharing {
                                Sharing::Links(pool) if relocations.is_empty() => {
                                    pool.has(digest, *size, *perm, &found)
                                }
                                _ => false,
                            };
                            let as_recorded =
                                found.st_size as u64 == *size && found.st_mode & 0o7777 == *perm;
                            (as_recorded || linked) && !known.is_other(&path, digest)
                        }
                    }
                }
                // Files and links are replaced by a rename. A directory in the place of one cannot be.
                Some(NodeKind::File { .. } | NodeKind::Symlink { .. })
                    if file_type != FileType::Directory =>
                {
                    false
                }
                Some(_) | None => {
                    tree::remove(&opened, name).map_err(os(dir.path_of(name.to_bytes()), "remove"))?;
                    counted.removed += 1;
                    false
                }
            };
            let at =
                child.and_then(|child| kept.get_mut((child.0.wrapping_sub(dir.children.start)) as usize));
            if let Some(kept) = at.filter(|_| is_right) {
                *kept = true;
                counted.kept += 1;
            }
        }
        dir.missing(self.index, |at| kept.get(at).copied().unwrap_or_default())
    }
}
