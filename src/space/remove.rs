//! Removes a space from the disk: its directory, rcc's files beside it, and its state.
//!
//! The directory of a mounted space is empty once it is unmounted. The tree of a restored one is removed if `D.meta` says
//! that it is a space's. Anything else in the directory is the user's and stays.
//!
//! The order makes an interruption harmless: `D.meta` is removed after the tree and the state after that, so the space is
//! listed until all of it is gone, and removing it again completes the work. The changes go first and in one step.
//!
//! Invariants: no link is followed, nothing of another user is removed, and nothing is removed through a mount.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::meta::{self, MetaLock};
use super::path::{SpacePath, resolved};
use super::state::{StateDir, link_target};
use super::{MountpointProblem, SpaceError, record};
use crate::library::name::Identity;
use crate::sys::guarded::{Dir, GuardedError, Problem, Trust};
use crate::sys::{mountinfo, tree};

/// The beginning of the name of a state directory that is being removed.
pub const GONE: &str = ".gone.";

/// rcc's files beside a space's directory, in the order in which they are removed. `.meta` is the one that makes rcc list
/// the space.
const BESIDE: [&str; 4] = [".use", ".meta.info", ".meta", ".lck"];

/// What is removed.
pub struct Removal<'a> {
    /// The name of the space's directory.
    pub identity: &'a Identity,
    /// The space's directory.
    pub place: &'a Path,
    /// Its state directory, which may be missing.
    pub state_dir: &'a Path,
    /// How long to wait for rcc's lock.
    pub lock_timeout: Duration,
    /// Called after the removal of each entry, to show progress.
    pub each: &'a dyn Fn(),
}

impl std::fmt::Debug for Removal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { identity, place, state_dir, lock_timeout, each: _ } = self;
        f.debug_struct("Removal")
            .field("identity", identity)
            .field("place", place)
            .field("state_dir", state_dir)
            .field("lock_timeout", lock_timeout)
            .finish_non_exhaustive()
    }
}

impl Removal<'_> {
    /// Removes the space, which must not be mounted. Returns whether its directory is gone: it stays if it holds files that
    /// are not a space's.
    ///
    /// # Errors
    /// When the space is in use, belongs to another user, or cannot be removed.
    pub fn run(&self) -> Result<bool, SpaceError> {
        // Keeps mounts of the space from starting.
        let state = if self.state_dir.is_dir() { Some(StateDir::open_locked(self.state_dir)?) } else { None };
        let space = SpacePath {
            identity: self.identity.clone(),
            mountpoint: self.place.to_owned(),
            own: None,
            placed: false,
            label: String::new(),
            controller: String::new(),
        };
        let is_gone = match Dir::open(space.base(), Trust::Shared) {
            // Mounted with `--foreign` on a directory of the user, beside which rcc has no files.
            _ if self.place.file_name() != Some(OsStr::new(self.identity.as_str())) => {
                self.refuse_mounts()?;
                true
            }
            Err(error) if error.is_not_found() => true,
            Err(error) => return Err(error.into()),
            Ok(base) => {
                let lock = MetaLock::take(&base, &space, self.lock_timeout)?;
                self.check(&base)?;
                if let Some(state) = &state {
                    state.discard_changes_with(self.each)?;
                }
                let is_gone = self.remove_tree(&base)?;
                for ending in BESIDE {
                    base.remove_file(&self.beside(ending))?;
                }
                lock.release();
                is_gone
            }
        };
        if std::fs::symlink_metadata(self.state_dir).is_ok() {
            remove_state(self.state_dir, self.each)?;
        }
        Ok(is_gone)
    }

    fn beside(&self, ending: &str) -> OsString {
        OsString::from(format!("{}{ending}", self.identity))
    }

    /// Refuses a directory that is mounted on, also somewhere below.
    fn refuse_mounts(&self) -> Result<(), SpaceError> {
        let place = resolved(self.place);
        let mounts = mountinfo::mounts().map_err(SpaceError::io(Path::new("/proc/self/mountinfo")))?;
        match mounts.into_iter().find(|mount| mount.mountpoint.starts_with(&place)) {
            Some(mount) => Err(self.refused(MountpointProblem::Mounted(mount.source))),
            None => Ok(()),
        }
    }

    fn refused(&self, problem: MountpointProblem) -> SpaceError {
        SpaceError::Mountpoint { path: self.place.to_owned(), problem }
    }

    /// Refuses mounts, and files of another user.
    fn check(&self, base: &Dir) -> Result<(), SpaceError> {
        self.refuse_mounts()?;
        let names = BESIDE.iter().filter(|ending| **ending != ".lck").map(|ending| self.beside(ending));
        for name in names.chain([self.identity.as_str().into()]) {
            match base.stat(&name) {
                Ok(found) if found.st_uid != rustix::process::geteuid().as_raw() => {
                    return Err(self.refused(MountpointProblem::Owner(found.st_uid)));
                }
                Err(error) if !error.is_not_found() => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Removes the space's directory. Returns false if it holds files that are not a space's.
    fn remove_tree(&self, base: &Dir) -> Result<bool, SpaceError> {
        let name = OsStr::new(self.identity.as_str());
        let failed = |errno: Errno| SpaceError::io(self.place)(errno.into());
        let is_space = meta::recorded(self.place).is_some_and(|header| {
            header.identity == self.identity.as_str() && Path::new(&header.path) == self.place
        });
        if is_space {
            match base.open_dir(name, Trust::Owned) {
                Err(error) if error.is_not_found() => return Ok(true),
                // Not a directory: it is not the tree that rcc restored.
                Err(GuardedError { problem: Problem::NotADirectory(_), .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
                // By descriptor: somebody may exchange the directory.
                Ok(dir) => {
                    let dir = dir.as_fd().try_clone_to_owned().map_err(SpaceError::io(self.place))?;
                    tree::clear(dir, self.each).map_err(failed)?;
                }
            }
        }
        match rustix::fs::unlinkat(base, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(failed(errno)),
        }
    }
}

/// Whether nothing of a space was there before its state directory was opened. Asked before the record is written.
#[must_use]
pub fn is_of_new_space(state: &StateDir) -> bool {
    state.is_new() && !state.path().join(record::FILE).exists()
}

/// Removes the state directory of a new space that is not mounted after all. Otherwise the space would be listed.
pub fn undo(state: &StateDir) {
    let path = state.path();
    if let Err(error) = remove_state(path, &|| ()) {
        tracing::debug!(path = %path.display(), %error, "the new state directory is not removed");
    }
}

/// Removes a state directory: at once from the list of spaces, and then from the disk. With `--upper-dir` it is a link, and
/// the directory to which it leads is removed too.
fn remove_state(state_dir: &Path, each: &dyn Fn()) -> Result<(), SpaceError> {
    let spaces = Dir::open(state_dir.parent().unwrap_or(state_dir), Trust::Private)?;
    let name = state_dir.file_name().unwrap_or_default();
    if let Some(target) = link_target(state_dir) {
        let failed = |errno: Errno| SpaceError::io(&target)(errno.into());
        let above = Dir::open(target.parent().unwrap_or(&target), Trust::Private)?;
        tree::remove_with(above.as_fd(), Path::new(target.file_name().unwrap_or_default()), each)
            .map_err(failed)?;
        spaces.remove_file(name)?;
        return Ok(spaces.sync()?);
    }
    let mut gone = OsString::from(GONE);
    gone.push(name);
    let failed = |errno: Errno| SpaceError::io(state_dir)(errno.into());
    // What an interrupted removal left.
    tree::remove(spaces.as_fd(), Path::new(&gone)).map_err(failed)?;
    spaces.rename(name, &gone)?;
    tree::remove_with(spaces.as_fd(), Path::new(&gone), each).map_err(failed)?;
    Ok(spaces.sync()?)
}

/// The state directories whose removal was interrupted.
///
/// # Errors
/// When the directory of all state directories cannot be read.
pub fn half_removed(spaces_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(spaces_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(GONE.as_bytes()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
