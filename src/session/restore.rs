//! `holofs restore`: decides where and how an environment is restored, takes rcc's locks, and writes what rcc reads.
//!
//! Order: the index, then rcc's locks, then the tree, and the name of `.meta` last, so that a `.meta` never tells of a tree
//! that is not there. A thread writes its content while others make the tree. rcc holds `global.lck` alone for everything that it does with a library. A restore shares it, if it is free, with
//! other restores of holofs: then `rcc holotree import` does not write to blobs meanwhile. It does not wait for it, because
//! rcc holds it for as long as it builds an environment.
//!
//! Invariants: nothing is restored to a place where something is mounted. The changes of a space stay.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::compose;
use super::error::Error;
use super::mount::arrival;
use super::mount::mounted::Mounted;
use super::registry;
use super::request::MountPlan;
use crate::library::catalog;
use crate::library::catalog::limits::MAX_FILE;
use crate::library::digest::Hex;
use crate::library::index::Index;
use crate::library::name::Identity;
use crate::library::profile;
use crate::materialize::source::Source;
use crate::materialize::{ReflinkProbe, clone};
use crate::restore::earlier::{Earlier, note_place};
use crate::restore::known::Known;
use crate::restore::links::{LinkPool, patterns};
use crate::restore::report::Report;
use crate::restore::{self, Jobs, Progress, Restore, Sharing};
use crate::settings::{Fallback, RestoreStrategy, Strategy};
use crate::space::held::Kept;
use crate::space::meta::{self, MetaLock, StagedMeta};
use crate::space::mountpoint::open_base;
use crate::space::path::resolved;
use crate::space::run::read_run;
use crate::space::{MountpointProblem, SpaceError, lock, state};
use crate::sys::guarded::{self, Access, Dir, GuardedError, Problem, Trust};
use crate::sys::{filesystem, mountinfo, plain, process, thread};

/// What a restore did. The keys of `holofs restore --json`.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// The space's directory.
    pub path: PathBuf,
    /// Its name.
    pub identity: String,
    pub blueprint: String,
    pub library: PathBuf,
    /// As it was asked for.
    pub strategy: RestoreStrategy,
    /// Whether files can share extents with the blob cache.
    pub reflink: bool,
    /// Why they cannot, if the strategy would use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_reflink: Option<String>,
    /// Entries of the environment.
    pub entries: u32,
    /// Files with relocations.
    pub relocated: u32,
    /// Files that name another directory, because no other path fits into them.
    #[serde(skip_serializing_if = "is_zero")]
    pub unpatched: u32,
    pub restored_ms: u64,
    /// The space's changes of earlier mounts, which the restored tree does not show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<PathBuf>,
    pub report: Report,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What the user can choose about a restore besides the place.
#[derive(Debug)]
pub struct Wishes<'a> {
    /// The number of threads, if the user has chosen one.
    pub jobs: Option<usize>,
    /// Ends the restore when it is set.
    pub cancel: &'a AtomicBool,
}

/// Restores a space.
///
/// # Errors
/// See [`Error`]. After an error in the tree, the next restore completes it.
pub fn restore(
    plan: &MountPlan,
    wishes: &Wishes<'_>,
    progress: &(dyn Progress + Sync),
) -> Result<Restored, Error> {
    let started = Instant::now();
    let (index, _) = arrival::whole_index(plan)?;
    let _library = plan.location.lock().and_then(|lock| share(&lock));
    check_free(plan)?;
    let base = open_base(&plan.space)?;
    let lock = MetaLock::take(&base, &plan.space, plan.lock_timeout)?;
    // Again, because a mount may have come before the lock.
    check_free(plan)?;
    check_place(plan, &base)?;
    let changes = Kept::of(&plan.state_dir())?.map(|_| plan.state_dir().join("upper"));
    // Files are created with their modes, and directories with rcc's.
    let umask = rustix::process::umask(Mode::empty());
    let stage = || stage_meta(plan, &index, &base, umask.bits());
    let (done, staged) =
        thread::beside("meta", stage, || restore_to(plan, &index, &base, umask.bits(), wishes, progress));
    let restored = done.and_then(|(report, how)| {
        // Before that, rcc would trust a list of files that are not there.
        staged??.publish()?;
        tell_rcc(plan, &base, umask.bits())?;
        restore::settle(&base, dir_name(plan)).map_err(|source| in_space(plan, source))?;
        if how.reflink.is_ok() {
            Earlier::note(&earlier_place(plan, &index), &plan.space.mountpoint);
        }
        Ok(Restored {
            path: plan.space.mountpoint.clone(),
            identity: plan.space.identity.to_string(),
            blueprint: plan.catalog.blueprint.clone(),
            library: plan.location.path.clone(),
            strategy: plan.settings.restore_strategy.value,
            reflink: how.reflink.is_ok(),
            no_reflink: how.no_reflink(),
            entries: index.len(),
            relocated: index.relocated_files(),
            unpatched: index.info().placed.as_ref().map_or(0, |placed| placed.unpatched),
            restored_ms: super::mount::mounted::millis(started),
            changes,
            report,
        })
    });
    rustix::process::umask(umask);
    lock.release();
    restored
}

/// The directory above the space, opened, or made if it may be.
pub(super) fn base_of(plan: &MountPlan) -> Result<Dir, Error> {
    Ok(open_base(&plan.space)?)
}

/// Restores the space because it could not be mounted, if the user allows that and it helps.
///
/// # Errors
/// `error`, or why the restore failed.
pub(super) fn instead(plan: &MountPlan, started: Instant, error: Error) -> Result<Mounted, Error> {
    if plan.request.fallback != Fallback::Restore || !error.restorable() {
        return Err(error);
    }
    tracing::info!(%error, "restoring instead of mounting");
    let never = AtomicBool::new(false);
    let wishes = Wishes { jobs: None, cancel: &never };
    let bar = plan.request.show.map(|show| show("restoring"));
    let restored = restore(plan, &wishes, &Bar(bar.as_ref()));
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let restored = restored?;
    let reflink = match restored.no_reflink {
        None => ReflinkProbe { supported: restored.reflink, reason: String::new() },
        Some(reason) => ReflinkProbe { supported: false, reason },
    };
    Ok(Mounted {
        path: restored.path,
        identity: restored.identity,
        blueprint: restored.blueprint,
        library: restored.library,
        strategy: restored.strategy.of_mount(),
        io: None,
        reflink: Some(reflink),
        bytecode: false,
        entries: restored.entries,
        relocated: restored.relocated,
        unpatched: restored.unpatched,
        pid: std::process::id(),
        mounted_ms: super::mount::mounted::millis(started),
        missing_blobs: 0,
        missing_files: 0,
        missing_bytes: 0,
        reused: false,
        restored: Some(error.to_string()),
        set_aside: None,
    })
}

/// Each thread waits for the disk of the library for most of its time, if the blobs are not in the page cache: they are small
/// files in directories of their own. So there are many more threads than processors then. If they are, so many threads take a
/// quarter more processor time on btrfs, waiting for each other. See "Restores" in docs/PERFORMANCE.md.
fn jobs() -> Jobs {
    let processors = process::processors();
    let for_each = |threads: usize, most: usize| processors.max((processors * threads).min(most));
    Jobs { waiting: for_each(8, 32), busy: for_each(2, 16) }
}

/// A progress bar, if one is wanted.
struct Bar<'b>(Option<&'b ProgressBar>);

impl Progress for Bar<'_> {
    fn total(&self, _files: u64, bytes: u64) {
        if let Some(bar) = self.0 {
            bar.set_length(bytes);
        }
    }

    fn made(&self, bytes: u64) {
        if let Some(bar) = self.0 {
            bar.inc(bytes);
        }
    }
}

/// How files get their bytes, and whether reflinks are possible.
struct How {
    sharing: Sharing,
    reflink: Result<(), String>,
    wants_reflinks: bool,
}

impl How {
    fn no_reflink(&self) -> Option<String> {
        self.reflink.as_ref().err().filter(|_| self.wants_reflinks).cloned()
    }
}

fn restore_to(
    plan: &MountPlan,
    index: &Arc<Index>,
    base: &Dir,
    umask: u32,
    wishes: &Wishes<'_>,
    progress: &(dyn Progress + Sync),
) -> Result<(Report, How), Error> {
    let how = how(plan, base)?;
    let cache =
        compose::blob_cache(&plan.env.cache_dir())?.with_limit(plan.settings.cache_size.value).pinned();
    let blobs = Arc::new(compose::blobs(&plan.location, cache));
    let names = compose::names(index, plan.space.identity.as_str())?;
    let strategy = match how.sharing {
        Sharing::AllClones => Strategy::Reflink,
        Sharing::Clones => Strategy::Smart,
        Sharing::Copies | Sharing::Links(_) => Strategy::Copy,
    };
    let source = Source::new(Arc::clone(index), blobs, names, strategy);
    let earlier = how.reflink.as_ref().ok().and_then(|()| earlier(plan, base, index));
    let restore = Restore {
        index,
        source: &source,
        sharing: &how.sharing,
        earlier: earlier.as_ref(),
        dir_mode: 0o750 & !umask,
        jobs: wishes.jobs.map_or_else(jobs, |jobs| Jobs { waiting: jobs, busy: jobs }),
        cancel: wishes.cancel,
        progress,
    };
    let report = restore.run(base, dir_name(plan), || known(plan));
    Ok((report.map_err(|source| in_space(plan, source))?, how))
}

/// The name of the space's directory. What is not UTF-8 was refused.
fn dir_name(plan: &MountPlan) -> &str {
    plan.space.dir_name().to_str().unwrap_or(plan.space.identity.as_str())
}

fn in_space(plan: &MountPlan, source: restore::RestoreError) -> Error {
    Error::Restore { path: plan.space.mountpoint.clone(), source }
}

fn how(plan: &MountPlan, base: &Dir) -> Result<How, Error> {
    let cache_dir = plan.env.cache_dir();
    // Made here, because the probe writes to it.
    compose::blob_cache(&cache_dir)?;
    let reflink = probe(&compose::blob_cache_dir(&cache_dir), base);
    let (sharing, wants_reflinks) = match (plan.settings.restore_strategy.value, &reflink) {
        (RestoreStrategy::Copy, _) => (Sharing::Copies, false),
        (RestoreStrategy::Smart, Ok(())) => (Sharing::Clones, true),
        (RestoreStrategy::Smart, Err(_)) => (Sharing::Copies, true),
        (RestoreStrategy::Reflink, Ok(())) => (Sharing::AllClones, true),
        (RestoreStrategy::Reflink, Err(reason)) => {
            return Err(Error::NoReflink {
                path: base.path().to_owned(),
                filesystem: filesystem::name(base),
                reason: reason.clone(),
            });
        }
        (RestoreStrategy::Hardlink, _) => {
            let excluded = &plan.settings.hardlink_excludes;
            let patterns = patterns(&excluded.value)
                .map_err(|bad| Error::BadPattern { set_by: excluded.source.clone(), why: bad.to_string() })?;
            (
                Sharing::Links(LinkPool::open(&links_dir(&cache_dir), patterns).map_err(SpaceError::from)?),
                false,
            )
        }
    };
    Ok(How { sharing, reflink, wants_reflinks })
}

/// The space that was restored last from this catalog, if it is another one in the same directory.
fn earlier(plan: &MountPlan, base: &Dir, index: &Index) -> Option<Earlier> {
    let this = &plan.space.mountpoint;
    let path = Earlier::noted(&earlier_place(plan, index))?;
    if path == *this || path.parent() != this.parent() {
        return None;
    }
    match mountinfo::mount_at(&resolved(&path)) {
        Ok(None) => Earlier::open(base, path.file_name()?),
        Ok(Some(_)) => None,
        Err(error) => {
            tracing::debug!(%error, "whether the earlier space is mounted is not known, so it is not used");
            None
        }
    }
}

/// Where the space is noted that was restored last from this catalog.
fn earlier_place(plan: &MountPlan, index: &Index) -> PathBuf {
    note_place(&profile::place(&plan.env.cache_dir(), &index.catalog_sha256()))
}

/// The copies of blobs to which `--strategy hardlink` links.
pub(super) fn links_dir(cache_dir: &Path) -> PathBuf {
    cache_dir.join("links")
}

/// What interrupted restores have left in a directory of spaces: nobody restores there now.
pub(super) fn left_in(base: &Path) -> Vec<PathBuf> {
    let base = match Dir::open(base, Trust::Shared) {
        Ok(base) => base,
        Err(error) => {
            if !error.is_not_found() {
                tracing::warn!(%error, "cannot look for what interrupted restores have left");
            }
            return Vec::new();
        }
    };
    let names =
        restore::left_in(&base).into_iter().filter(|name| Identity::from_name(name.as_bytes()).is_ok());
    let free = names.filter(|name| lock::busy(&base.path().join(format!("{name}.lck"))).is_none());
    let mut left: Vec<PathBuf> = free.map(|name| base.path().join(name + restore::ENDING)).collect();
    left.sort();
    left
}

/// The name of the space beside whose directory an interrupted restore has left this. None for any other path.
pub(super) fn left_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(restore::ENDING)
}

/// Removes one of [`left_in`] under rcc's lock, unless somebody has begun to restore there.
///
/// # Errors
/// When it cannot be locked or removed.
pub(super) fn remove_left(path: &Path, name: &str) -> Result<(), Error> {
    let base = Dir::open(path.parent().unwrap_or(path), Trust::Shared).map_err(SpaceError::from)?;
    let lock_name = format!("{name}.lck");
    let Ok(_lock) = lock::take(&base, OsStr::new(&lock_name), 0o666, Duration::ZERO)? else { return Ok(()) };
    restore::remove_left(&base, name).map_err(|source| Error::Restore { path: path.to_owned(), source })
}

/// Tries a reflink from the blob cache to the space.
fn probe(cache: &Path, base: &Dir) -> Result<(), String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open =
        |path: &Path| rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| format!("open: {errno}"));
    let tried = open(cache).and_then(|cache| clone::probe(cache.as_fd(), base.as_fd()));
    tried.map_err(|why| plain(&why))
}

/// What an earlier restore put there. Nothing, if `.meta` cannot be read: then sizes and modes decide, as in rcc.
fn known(plan: &MountPlan) -> Known {
    let path = meta::beside(&plan.space.mountpoint, ".meta");
    let tree = match guarded::read(&path, MAX_FILE) {
        Ok(bytes) => catalog::parse_file(&bytes).map_err(|error| error.to_string()),
        Err(error) if error.is_not_found() => return Known::default(),
        Err(error) => Err(error.to_string()),
    };
    match tree {
        Ok(tree) if Path::new(&tree.info.path) == plan.space.mountpoint => Known::of(&tree),
        Ok(_) => Known::default(),
        Err(why) => {
            tracing::warn!(path = %path.display(), %why, "cannot read what was restored there before");
            Known::default()
        }
    }
}

/// Writes the list of files beside the space, for rcc, without giving it its name. This takes about as long as a hundredth
/// of the files, and then waits for the disk.
fn stage_meta<'d>(
    plan: &MountPlan,
    index: &Index,
    base: &'d Dir,
    umask: u32,
) -> Result<StagedMeta<'d>, Error> {
    let library = &plan.location.library;
    let place = PathBuf::from(library.catalog_place(&plan.catalog));
    let packed = library.open_catalog(&plan.catalog).map_err(SpaceError::io(&place))?;
    Ok(meta::stage_meta(base, &plan.space, packed, &Hex(&index.catalog_sha256()).to_string(), umask)?)
}

/// Counts the use of the space, and renews the usage mark in the library.
fn tell_rcc(plan: &MountPlan, base: &Dir, umask: u32) -> Result<(), Error> {
    meta::append_use(base, &plan.space, umask)?;
    if let Err(error) = plan.touch_usage() {
        tracing::debug!(%error, "the usage mark in the library is not renewed");
    }
    Ok(())
}

/// Holds rcc's lock on the library together with other readers, unless rcc holds it or this user may not open it.
fn share(lock: &Path) -> Option<File> {
    let file = guarded::open_file(lock, Access::Read).ok()?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Some(file),
        Err(errno) => {
            tracing::debug!(path = %lock.display(), %errno, "restoring without rcc's lock on the library");
            None
        }
    }
}

/// Makes sure that nothing is mounted on the space's directory.
fn check_free(plan: &MountPlan) -> Result<(), Error> {
    let state_dir = plan.state_dir();
    let path = plan.space.mountpoint.clone();
    if let Some(live) = registry::find(&state_dir)? {
        let pid = read_run(&state_dir).map(|run| run.server());
        return Err(Error::MountedThere { path: live.mountpoint, space: plan.space.label.clone(), pid });
    }
    if state::is_locked(&state_dir) {
        let pid = read_run(&state_dir).map(|run| run.server());
        return Err(SpaceError::Busy { identity: plan.space.identity.to_string(), pid }.into());
    }
    match mountinfo::mount_at(&resolved(&path)).map_err(registry::unreadable)? {
        Some(mount) => {
            let problem = MountpointProblem::Mounted(mount.source);
            Err(SpaceError::Mountpoint { path, problem }.into())
        }
        None => Ok(()),
    }
}

/// Makes sure that the place is this user's, if something is there.
fn check_place(plan: &MountPlan, base: &Dir) -> Result<(), Error> {
    let problem =
        |problem| Error::from(SpaceError::Mountpoint { path: plan.space.mountpoint.clone(), problem });
    match base.open_dir(plan.space.dir_name(), Trust::Owned) {
        // What is in a directory of the user's choice and was not restored there would be removed.
        Ok(dir) if plan.space.own.is_some() && !dir.is_empty().map_err(SpaceError::from)? => {
            let restored = meta::recorded(&plan.space.mountpoint);
            match restored.filter(|restored| Path::new(&restored.path) == plan.space.mountpoint) {
                Some(_) => Ok(()),
                None => Err(problem(MountpointProblem::NotEmpty)),
            }
        }
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(GuardedError { problem: Problem::NotADirectory(_) | Problem::Os(Errno::NOTDIR), .. }) => {
            Err(problem(MountpointProblem::NotADirectory))
        }
        Err(GuardedError { problem: Problem::Owner { owner, .. }, .. }) => {
            Err(problem(MountpointProblem::Owner(owner)))
        }
        Err(error) => Err(SpaceError::from(error).into()),
    }
}
