//! Makes the files and links of a batch, each complete with bytes, mode and times.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::layout::{Batch, LaidDir};
use super::report::{Report, Way};
use super::sweep::open_dir;
use super::{Restore, RestoreError, Sharing, TIMES, os};
use crate::library::NAME_LEN;
use crate::library::blob::direct::Room;
use crate::library::index::{NodeId, NodeKind};
use crate::materialize::clone::Method;
use crate::materialize::source::LowerFile;
use crate::sys::order::Order;
use crate::sys::{fd, thread};

/// A tree in which files are made.
#[derive(Debug)]
pub(super) struct Tree<'t> {
    root: &'t OwnedFd,
    dirs: &'t [LaidDir],
    /// Somebody may use the tree already, so files are made under temporary names.
    in_use: bool,
    /// New files may get other modes than those that they are created with: the directories have default ACLs.
    has_acl: bool,
    order: OnceLock<Order>,
    next: AtomicU64,
}

/// How many blobs are looked at to learn whether the library is in memory.
const LOOKED_AT: usize = 32;

/// How many directories a thread gives their times before it takes the next ones.
const DIRS: usize = 256;

/// What one thread needs. Its report is added to the sum when it ends.
struct Worker<'r> {
    room: Room,
    report: Report,
    sum: &'r Mutex<Report>,
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.sum.lock().add(&self.report);
    }
}

impl<'t> Tree<'t> {
    pub(super) fn new(root: &'t OwnedFd, dirs: &'t [LaidDir], in_use: bool) -> Self {
        // An error means that there is none, or that the filesystem has no ACLs.
        let has_acl = rustix::fs::fgetxattr(root, c"system.posix_acl_default", &mut [0u8; 0][..]).is_ok();
        Self { root, dirs, in_use, has_acl, order: OnceLock::new(), next: AtomicU64::new(0) }
    }

    fn temporary(&self) -> Vec<u8> {
        format!(".holofs.{}.{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }
}

impl Restore<'_> {
    /// Sets the time of every directory, when everything is in it.
    pub(super) fn set_times(&self, tree: &Tree<'_>) -> Result<(), RestoreError> {
        let batches: Vec<&[LaidDir]> = tree.dirs.chunks(DIRS).collect();
        let set = |dir: &LaidDir| {
            rustix::fs::utimensat(tree.root, dir.path.as_slice(), &TIMES, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(os(dir.shown(), "set the times of"))
        };
        thread::for_each(&batches, self.jobs.busy, || (), |(), batch| batch.iter().try_for_each(set))
    }

    /// Makes everything in the batches.
    pub(super) fn fill(
        &self,
        tree: &Tree<'_>,
        batches: &[Batch],
        report: &mut Report,
    ) -> Result<(), RestoreError> {
        let sum = Mutex::default();
        let worker = || Worker { room: Room::default(), report: Report::default(), sum: &sum };
        let jobs = self.jobs_for(batches)?;
        let filled = thread::for_each(batches, jobs, worker, |worker: &mut Worker<'_>, batch| {
            let Some(dir) = tree.dirs.get(batch.dir) else { return Ok(()) };
            let at = open_dir(tree.root, &dir.path, OFlags::PATH).map_err(os(dir.shown(), "open"))?;
            for node in &batch.nodes {
                self.go_on()?;
                self.make(tree, dir, at.as_fd(), *node, worker)?;
            }
            Ok(())
        });
        report.add(&sum.into_inner());
        filled
    }

    fn make(
        &self,
        tree: &Tree<'_>,
        dir: &LaidDir,
        at: BorrowedFd<'_>,
        node: NodeId,
        worker: &mut Worker<'_>,
    ) -> Result<(), RestoreError> {
        let found = self.index.node(node)?;
        let temporary = tree.in_use.then(|| tree.temporary());
        let name = temporary.as_deref().unwrap_or(found.name);
        let failed = |call| os(dir.path_of(found.name), call);
        let made = match &found.kind {
            NodeKind::Dir { .. } => return Ok(()),
            NodeKind::Symlink { target } => {
                worker.report.links += 1;
                rustix::fs::symlinkat(*target, at, name).map_err(failed("symlink"))
            }
            NodeKind::File { .. } => self.make_file(tree, dir, (at, name), node, worker),
        };
        if temporary.is_none() {
            return made;
        }
        let named =
            made.and_then(|()| rustix::fs::renameat(at, name, at, found.name).map_err(failed("rename")));
        if named.is_err() {
            // The first error is told. The next restore removes what is left.
            rustix::fs::unlinkat(at, name, AtFlags::empty()).ok();
        }
        named
    }

    fn make_file(
        &self,
        tree: &Tree<'_>,
        dir: &LaidDir,
        (at, name): (BorrowedFd<'_>, &[u8]),
        node: NodeId,
        worker: &mut Worker<'_>,
    ) -> Result<(), RestoreError> {
        let started = Instant::now();
        let found = self.index.node(node)?;
        let NodeKind::File { size, perm, digest, relocations, .. } = found.kind else { return Ok(()) };
        let lower = self.source.file(node)?;
        if let Sharing::Links(pool) = self.sharing
            && size > 0
            && !lower.is_relocated()
            && pool.allows(&dir.path_bytes(found.name))
            && let Some(written) =
                pool.link(self.source, &lower, (&digest, perm), (at, name), &mut worker.room)?
        {
            worker.report.count(Way::Hardlink, size, written, started.elapsed());
            self.progress.made(size);
            return Ok(());
        }
        let copy = self.to_clone(dir, found.name, &lower, worker)?;
        worker.report.relocated += u64::from(lower.is_relocated());
        let failed = |call| os(dir.path_of(found.name), call);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(at, name, flags, Mode::from_raw_mode(perm & 0o777))
            .map_err(failed("create"))?;
        let file = File::from(file);
        let method = match &copy {
            Some(copy) => self.source.fill_from(copy, &lower, &file)?,
            None => {
                self.source.unpack(&lower, &file, &mut worker.room)?;
                Method::Copy
            }
        };
        let (way, written) = if method == Method::Reflink {
            // A power cut must not leave the file with its size and without its relocations: nobody would notice.
            if lower.is_relocated() {
                let order = tree.order.get_or_init(|| Order::of(tree.root));
                order.write_out(&file).map_err(failed("sync"))?;
            }
            (Way::Reflink, (relocations.len() * NAME_LEN) as u64)
        } else {
            (Way::Copy, size)
        };
        // A write clears the bits above 0777.
        if tree.has_acl || perm & 0o7000 != 0 {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(perm)).map_err(failed("chmod"))?;
        }
        rustix::fs::futimens(&file, &TIMES).map_err(failed("set the times of"))?;
        worker.report.count(way, size, written, started.elapsed());
        self.progress.made(size);
        Ok(())
    }

    /// The copy in the blob cache from which a file is to be cloned. None if there is none, or if the clone would wait
    /// for the disk: unpacking takes less time.
    fn to_clone(
        &self,
        dir: &LaidDir,
        name: &[u8],
        file: &LowerFile<'_>,
        worker: &mut Worker<'_>,
    ) -> Result<Option<File>, RestoreError> {
        if !self.sharing.clones(file) {
            return Ok(None);
        }
        if let Some(copy) = self.source.kept(file)? {
            return Ok(fd::is_written_out(&copy).then_some(copy));
        }
        let Some(earlier) = self.earlier else { return Ok(None) };
        let started = Instant::now();
        if file.is_relocated() {
            // The earlier tree has other bytes. This file is unpacked twice, for the next trees.
            if self.source.prepare(file, self.cancel)? {
                worker.report.count_cached(file.size, file.size, started.elapsed());
            }
            return Ok(None);
        }
        let Some(from) = earlier.file(&dir.path_bytes(name), file.size) else { return Ok(None) };
        let adopted = self.source.adopt(file, &from)?;
        if adopted.is_some() {
            worker.report.count_cached(file.size, 0, started.elapsed());
        }
        Ok(adopted)
    }

    /// How many threads make the files of these batches.
    fn jobs_for(&self, batches: &[Batch]) -> Result<usize, RestoreError> {
        let step = (batches.len() / LOOKED_AT).max(1);
        let mut is_known = false;
        for batch in batches.iter().step_by(step) {
            for node in &batch.nodes {
                let NodeKind::File { size, .. } = self.index.node(*node)?.kind else { continue };
                let file = self.source.file(*node)?;
                if size == 0 || self.sharing.clones(&file) {
                    continue;
                }
                if !self.source.is_in_memory(&file) {
                    return Ok(self.jobs.waiting);
                }
                is_known = true;
                break;
            }
        }
        Ok(if is_known { self.jobs.busy } else { self.jobs.waiting })
    }
}

/// The size in bytes up to which a file has nothing to share: a block, or less than one in the metadata of btrfs.
const BLOCK: u64 = 4096;

impl Sharing {
    /// Whether a file is cloned.
    fn clones(&self, file: &LowerFile<'_>) -> bool {
        match self {
            Self::Clones => !file.is_small(),
            Self::AllClones => file.size > BLOCK,
            Self::Copies | Self::Links(_) => false,
        }
    }
}

/// The errno of creating an entry that this user may not create there.
pub(super) fn is_refused(errno: Errno) -> bool {
    matches!(errno, Errno::ACCESS | Errno::PERM | Errno::ROFS)
}
