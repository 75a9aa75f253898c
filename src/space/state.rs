//! A space's state directory: its lock, its changes, and the record that says what they are based on.
//!
//! ```text
//! $HOLOFS_HOME/spaces/<identity>/
//!   lock        flock, held for the life of a mount
//!   state.json  which catalog the changes are based on
//!   run.json    the running daemon; true only while `lock` is held
//!   ended.json  why the last mount was given up; removed by the next mount
//!   stats.json  the sums of the counters of all mounts
//!   runs        the runs that use the mount; see `session::users`
//!   log         the daemon's log, and log.old the one before it
//!   upper/      the user's changes
//!   work/       staging
//!   reloc/      relocated files that were only read
//!   trash.N/    dropped directories that are being removed
//!   aside.N/    state.json and upper/ of a space that rcc has deleted
//! ```
//!
//! Invariants: `state.json` and `upper/` belong together at every instant, so also after a crash. An upper with entries
//! is dropped only by [`StateDir::adopt`] with `fresh`, by [`StateDir::discard_changes`], or if an ephemeral mount made
//! it.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ended::{self, Ended};
use super::record::{self, Basis, SpaceRecord, write_json};
use super::run::{self, RunInfo, read_run};
use super::upper::entry::{self, OnDisk};
use super::upper::mark::Mark;
use super::upper::{self, UpperError};
use super::{SpaceError, lock};
use crate::library::look::Look;
use crate::sys::guarded::{self, Access, Dir, Durability, Problem, Replace, Trust, Writers};
use crate::sys::tree;

/// How long a busy lock is tried again. `holofs list` holds the lock for an instant to see whether it is free.
const PROBE_GRACE: Duration = Duration::from_millis(200);

/// A space's state directory, locked.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Forked children share it: the lock is free when the last of them has ended.
    _lock: File,
    /// The upper was created just now, so it has no entries and no attributes.
    is_new: bool,
    /// `ended.json` was there. So a mount of another space need not try to remove it.
    has_ended: bool,
}

impl StateDir {
    /// Locks the directory, and creates it if necessary.
    ///
    /// # Errors
    /// [`SpaceError::Busy`] if another process has locked it, and the errors of creating it.
    pub fn open_locked(path: &Path) -> Result<StateDir, SpaceError> {
        let spaces = Dir::make_ours(path.parent().unwrap_or(path))?;
        let name = path.file_name().unwrap_or_default();
        let opened = match spaces.make_dir(name, Trust::Private) {
            // `--upper-dir` made this link. Only this user can write to the directory of the link.
            Err(error) if matches!(error.problem, Problem::NotADirectory(_)) => match link_target(path) {
                Some(target) => Dir::open(&target, Trust::Private)?,
                None => return Err(error.into()),
            },
            opened => opened?,
        };
        let lock = lock::take(&opened, OsStr::new("lock"), 0o600, PROBE_GRACE)?.map_err(|holder| {
            let identity = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            SpaceError::Busy { identity, pid: read_run(path).map(|run| run.pid).or(holder) }
        })?;
        let is_new = opened.stat(OsStr::new("upper")).is_err_and(|error| error.is_not_found());
        for sub in ["upper", "work", "reloc"] {
            opened.make_dir(OsStr::new(sub), Trust::Owned)?;
        }
        let mut dir = StateDir { path: path.to_owned(), _lock: lock, is_new, has_ended: false };
        dir.has_ended = dir.sweep(&|| ());
        Ok(dir)
    }

    /// The directory, with the lock that an earlier program of this process took.
    #[must_use]
    pub fn resume(path: &Path, lock: File) -> StateDir {
        StateDir { path: path.to_owned(), _lock: lock, is_new: false, has_ended: false }
    }

    /// The number of the lock's descriptor.
    #[must_use]
    pub fn lock_fd(&self) -> RawFd {
        self._lock.as_raw_fd()
    }

    /// Whether the directory was made by opening it.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the user's changes.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    /// Makes the directory fit `basis`, and returns what is recorded now. It keeps changes that are based on the same.
    /// It drops the changes if `fresh` is set.
    ///
    /// # Errors
    /// When there are changes, and they are based on something else or their record cannot be read. Nothing was dropped.
    pub fn adopt(&self, basis: &Basis, fresh: bool) -> Result<SpaceRecord, SpaceError> {
        let keeps_changes = !fresh && has_changes(&self.path)?;
        let recorded = match SpaceRecord::read(&self.path) {
            Err(error) if keeps_changes => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the record is written anew");
                None
            }
            Ok(None) if keeps_changes => {
                return Err(SpaceError::DamagedState {
                    path: self.path.join(record::FILE),
                    why: "it is missing, and the space has changes".to_owned(),
                });
            }
            Ok(recorded) => recorded,
        };
        let Some(mut recorded) = recorded else { return self.start_over(basis, None) };
        let is_same = recorded.basis.shows_the_same(basis);
        if fresh || recorded.basis.ephemeral || !(keeps_changes || is_same) {
            return self.start_over(basis, Some(recorded));
        }
        if !is_same {
            return Err(other_basis(&recorded.basis, basis));
        }
        if keeps_changes && basis.ephemeral {
            return Err(SpaceError::EphemeralOverChanges(basis.identity.clone()));
        }
        if recorded.basis != *basis {
            // The library has moved, or the space was named by its path this time.
            recorded.basis = basis.clone();
            recorded.write(&self.path, Durability::DataAndName)?;
        }
        Ok(recorded)
    }

    /// Drops the user's changes in one step, so that no reader sees a part of them, also after a crash.
    ///
    /// # Errors
    /// When the directory cannot be written. Either all changes are still there, or none.
    pub fn discard_changes(&self) -> Result<(), SpaceError> {
        self.discard_changes_with(&|| ())
    }

    /// As [`StateDir::discard_changes`]. Calls `each` after the removal of each entry, to show progress.
    ///
    /// # Errors
    /// As [`StateDir::discard_changes`].
    pub fn discard_changes_with(&self, each: &dyn Fn()) -> Result<(), SpaceError> {
        self.trash("upper")?;
        self.sweep(each);
        Ok(())
    }

    /// Moves the changes aside, as `rcc holotree delete` of the space asks for, and returns their directory `aside.N`, which
    /// holofs never reads or removes. Returns None if the upper's root has only whiteouts, as after a delete of a mounted
    /// space: there is nothing to keep, and the caller may drop the upper.
    ///
    /// The changes are moved by one rename, after their record was copied. So at every instant they are complete, in one of
    /// the two places, and beside a record.
    ///
    /// # Errors
    /// When the changes cannot be moved. They are still in the space.
    pub fn set_aside(&self) -> Result<Option<PathBuf>, SpaceError> {
        let upper = self.upper();
        if !has_more_than_whiteouts(&upper)? {
            return Ok(None);
        }
        let dir = unused(&self.path, ASIDE);
        make_private_dir(&dir)?;
        let (from, to) = (self.path.join(record::FILE), dir.join(record::FILE));
        // Synced before the changes move: without a record nobody can tell what the changes are based on.
        let how = Replace { mode: 0o600, writers: Writers::One, durability: Durability::DataAndName };
        guarded::read(&from, record::MAX_LEN)
            .map_err(io::Error::from)
            .and_then(|record| guarded::replace(&to, how, &record))
            .map_err(SpaceError::io(&to))?;
        let to = dir.join("upper");
        std::fs::rename(&upper, &to).map_err(SpaceError::io(&to))?;
        make_private_dir(&upper)?;
        sync_dir(&dir)?;
        sync_dir(&self.path)?;
        tracing::info!(path = %dir.display(), "rcc has deleted the space: its changes are kept aside");
        Ok(Some(dir))
    }

    /// Records that the files beside the mountpoint were written from the record's catalog, and what stat(2) says of
    /// `.meta` now.
    ///
    /// # Errors
    /// When `state.json` cannot be written.
    pub(crate) fn note_published(
        &self,
        record: &mut SpaceRecord,
        described: Option<Look>,
    ) -> Result<(), SpaceError> {
        record.published = Some(record.basis.catalog_sha256.clone());
        record.described = described;
        record.write(&self.path, Durability::DataAndName)
    }

    /// Records that the files beside the mountpoint are not, or not completely, those of the record's catalog.
    ///
    /// # Errors
    /// When `state.json` cannot be written.
    pub(crate) fn note_unpublished(&self, record: &mut SpaceRecord) -> Result<(), SpaceError> {
        if record.published.take().is_none() {
            return Ok(());
        }
        record.described = None;
        record.write(&self.path, Durability::DataAndName)
    }

    /// Records the running daemon.
    ///
    /// # Errors
    /// When `run.json` cannot be written.
    pub fn write_run(&self, run: &RunInfo) -> Result<(), SpaceError> {
        write_json(&self.path, run::FILE, run, Durability::CacheOnly)?;
        if self.has_ended {
            remove(&self.path.join(ended::FILE))?;
        }
        Ok(())
    }

    /// Records why the mount is given up. The next mount removes the record.
    ///
    /// # Errors
    /// When `ended.json` cannot be written.
    pub fn write_ended(&self, ended: &Ended) -> Result<(), SpaceError> {
        write_json(&self.path, ended::FILE, ended, Durability::CacheOnly)
    }

    /// Removes the record of the running daemon.
    ///
    /// # Errors
    /// When `run.json` exists and cannot be removed.
    pub fn remove_run(&self) -> Result<(), SpaceError> {
        tracing::info!(pid = std::process::id(), "the mount has ended");
        remove(&self.path.join(run::FILE))
    }

    /// Empties the directory, then records `basis`. Between the two steps the old record describes an empty upper. The
    /// record of a new space is not synced here: see [`StateDir::settle`].
    fn start_over(&self, basis: &Basis, old: Option<SpaceRecord>) -> Result<SpaceRecord, SpaceError> {
        for sub in ["upper", "reloc", "work"] {
            // Replacing a directory takes an fsync, which a new space need not wait for.
            if !self.is_new || has_entries(&self.path.join(sub))? {
                self.trash(sub)?;
            }
        }
        let mut record = SpaceRecord::new(basis.clone());
        if let Some(old) = old.filter(|old| old.basis.is_called_the_same(basis)) {
            // The files beside the mountpoint are not touched, so what is known of them stays true.
            record.published = old.published;
            record.described = old.described;
        }
        let durability = if self.is_new { Durability::CacheOnly } else { Durability::DataAndName };
        record.write(&self.path, durability)?;
        self.sweep(&|| ());
        Ok(record)
    }

    /// Syncs the record and its name. A process may be told that its data is safe only after that. The record of an old
    /// space is synced too, since the daemon that made the space may have been killed before its sync.
    ///
    /// # Errors
    /// Those of open(2) and fsync(2).
    pub fn settle(&self) -> Result<(), SpaceError> {
        let record = self.path.join(record::FILE);
        // Opened through `guarded`: to open a FIFO would block, and every change in the space waits for this.
        let file = guarded::open_file(&record, Access::Read).map_err(io::Error::from);
        file.and_then(|file| file.sync_all()).map_err(SpaceError::io(&record))?;
        sync_dir(&self.path)
    }

    /// Moves `sub` out of the way and creates an empty directory in its place.
    fn trash(&self, sub: &str) -> Result<(), SpaceError> {
        let path = self.path.join(sub);
        match std::fs::rename(&path, unused(&self.path, TRASH)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SpaceError::io(&path)(error))?,
            _ => {}
        }
        make_private_dir(&path)?;
        sync_dir(&self.path)
    }

    /// Removes dropped directories. What cannot be removed stays until the next time; nothing reads it. Returns whether
    /// there is an `ended.json`.
    fn sweep(&self, each: &dyn Fn()) -> bool {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return true };
        let mut has_ended = false;
        for entry in entries.flatten() {
            has_ended |= entry.file_name() == ended::FILE;
            let is_trash = entry.file_name().as_encoded_bytes().starts_with(TRASH.as_bytes());
            if is_trash && let Err(error) = tree::remove_with(rustix::fs::CWD, entry.path().as_path(), each) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove dropped changes");
            }
        }
        has_ended
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<(), SpaceError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SpaceError::io(path)(error)),
        _ => Ok(()),
    }
}

const TRASH: &str = "trash.";

const ASIDE: &str = "aside.";

/// A path in a state directory that is not in use: the prefix and a number.
fn unused(state_dir: &Path, prefix: &str) -> PathBuf {
    let mut n = 1_u64;
    loop {
        let path = state_dir.join(format!("{prefix}{n}"));
        if std::fs::symlink_metadata(&path).is_err() {
            return path;
        }
        n += 1;
    }
}

/// Keeps the state of a space below `dir` instead of in holofs's home, where a link leads to it. Nothing is moved.
///
/// # Errors
/// [`SpaceError::KeptElsewhere`] if the space has changes in another place, and the errors of making the directory.
pub fn place_below(state_dir: &Path, dir: &Path) -> Result<(), SpaceError> {
    let name = state_dir.file_name().unwrap_or_default();
    let wanted = dir.join(name);
    let place = link_target(state_dir).unwrap_or_else(|| state_dir.to_owned());
    let exists = std::fs::symlink_metadata(state_dir).is_ok();
    if exists && place == wanted {
        return Dir::make_ours(&wanted).map(drop).map_err(Into::into);
    }
    if exists && (is_locked(state_dir) || has_changes(state_dir)?) {
        let identity = name.to_string_lossy().into_owned();
        return Err(SpaceError::KeptElsewhere { identity, place, wanted });
    }
    Dir::make_ours(&wanted)?;
    let spaces = Dir::make_ours(state_dir.parent().unwrap_or(state_dir))?;
    if exists {
        tree::remove(spaces.as_fd(), Path::new(name))
            .map_err(|errno| SpaceError::io(state_dir)(errno.into()))?;
    }
    rustix::fs::symlinkat(&wanted, &spaces, name).map_err(|errno| SpaceError::io(state_dir)(errno.into()))?;
    Ok(spaces.sync()?)
}

/// The directory to which the link leads that [`place_below`] made.
#[must_use]
pub fn link_target(state_dir: &Path) -> Option<PathBuf> {
    std::fs::read_link(state_dir).ok().filter(|target| target.is_absolute())
}

/// The dropped directories of a space that are still on the disk. [`StateDir::open_locked`] removes them.
#[must_use]
pub fn trash_of(state_dir: &Path) -> Vec<PathBuf> {
    named(state_dir, TRASH).collect()
}

/// The path of a space's log.
#[must_use]
pub fn log_of(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// Whether the space has changes: any entry in the upper.
///
/// # Errors
/// When the upper exists and cannot be read.
pub fn has_changes(dir: &Path) -> Result<bool, SpaceError> {
    has_entries(&dir.join("upper"))
}

fn has_entries(dir: &Path) -> Result<bool, SpaceError> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(SpaceError::io(dir)(error)),
    }
}

/// The directories with changes of this space that were moved aside, in no order.
#[must_use]
pub fn aside_of(state_dir: &Path) -> Vec<PathBuf> {
    named(state_dir, ASIDE).filter(|path| path.join("upper").is_dir()).collect()
}

/// The entries of a state directory whose names begin with a prefix.
fn named(state_dir: &Path, prefix: &'static str) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(state_dir).into_iter().flatten().flatten();
    let fits = |name: &OsStr| name.as_encoded_bytes().starts_with(prefix.as_bytes());
    entries.filter(move |entry| fits(&entry.file_name())).map(|entry| entry.path())
}

/// Whether the root of the upper has entries other than whiteouts.
fn has_more_than_whiteouts(upper: &Path) -> Result<bool, SpaceError> {
    let look = || -> Result<bool, UpperError> {
        let Some(root) = upper::open(upper)? else { return Ok(false) };
        for listed in entry::list(root.as_fd())? {
            match OnDisk::read(root.as_fd(), &listed?, false) {
                Ok(on_disk) if on_disk.mark == Some(Mark::Gone) => {}
                // A damaged entry may be the user's work, too.
                Ok(_) | Err(UpperError::Damaged { .. }) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    };
    look().map_err(|error| SpaceError::io(upper)(error.into()))
}

/// Whether a process has locked the space.
#[must_use]
pub fn is_locked(dir: &Path) -> bool {
    lock::busy(&dir.join("lock")).is_some()
}

/// Refuses a state directory inside the library, because holofs never writes to a library.
///
/// # Errors
/// [`SpaceError::StateInsideLibrary`].
pub fn check_outside(state_dir: &Path, library: &Path) -> Result<(), SpaceError> {
    // Resolves symbolic links in the part of the path that exists.
    let real = |path: &Path| {
        let found = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
        let rest = found.as_ref().and_then(|(above, _)| path.strip_prefix(above).ok());
        found.zip(rest).map_or_else(|| path.to_owned(), |((_, real), rest)| real.join(rest))
    };
    if real(state_dir).starts_with(real(library)) {
        let (state, library) = (state_dir.to_owned(), library.to_owned());
        return Err(SpaceError::StateInsideLibrary { state, library });
    }
    Ok(())
}

fn other_basis(kept: &Basis, wanted: &Basis) -> SpaceError {
    let same_blueprint = kept.blueprint == wanted.blueprint;
    let (kept_text, wanted_text) = if kept.placed_at() != wanted.placed_at() {
        (kept.place().display().to_string(), wanted.place().display().to_string())
    } else if kept.base != wanted.base {
        (format!("the holotree {}", kept.base), wanted.base.clone())
    } else if same_blueprint {
        let text = |c: &Basis| format!("catalog {:.12} of blueprint {}", c.catalog_sha256, c.blueprint);
        (format!("an earlier {}", text(kept)), format!("the present {}", text(wanted)))
    } else {
        (format!("blueprint {}", kept.blueprint), wanted.blueprint.clone())
    };
    SpaceError::OtherContent {
        identity: wanted.identity.clone(),
        kept: kept_text,
        wanted: wanted_text,
        blueprint: (!same_blueprint && kept.base == wanted.base).then(|| kept.blueprint.clone()),
    }
}

fn make_private_dir(path: &Path) -> Result<(), SpaceError> {
    DirBuilder::new().mode(0o700).create(path).map_err(SpaceError::io(path))
}

fn sync_dir(path: &Path) -> Result<(), SpaceError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(SpaceError::io(path))
}

#[cfg(test)]
mod tests;
