//! Ends mounts: unmounts them, and waits until their daemons have released the spaces.
//!
//! `holofs unmount` names a space or a path, which is looked up in this order: the mounts of this home's spaces; the mounts
//! of other homes, by path only; daemons of this home that have no mount in this mount namespace.
//!
//! Invariant: a mount is reported as ended only when its daemon has ended, or with `lazy`. Every change that the daemon
//! acknowledged is in the space's upper, so no way of ending a mount loses changes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::error::Error;
use super::holders::{that_see, that_use};
use super::registry::{self, Registry, unreadable};
use crate::library::name::Identity;
use crate::space::SpaceError;
use crate::space::home::Env;
use crate::space::path::resolved;
use crate::space::record::recorded_place;
use crate::space::run::{RunInfo, read_run};
use crate::space::select::SpaceArg;
use crate::space::state::{StateDir, is_locked};
use crate::sys::fuse_mount::{self, MountError};
use crate::sys::mountinfo::{self, MountEntry};
use crate::sys::process::{self, Condition};

/// How long to retry while the mount is in use. A process that ends, or is between fork and exec, holds its files for a
/// moment longer.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a daemon may take to end after its connection was aborted.
const GRACE: Duration = Duration::from_secs(2);

/// How to end a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// Detach it, and do not wait. The daemon ends when the last process has closed its files.
    pub lazy: bool,
    /// End it also while processes use it, and kill its daemon if necessary.
    pub force: bool,
    /// How long to wait for the daemon.
    pub timeout: Duration,
}

/// A request to end mounts.
#[derive(Debug)]
pub struct Unmounting<'e> {
    env: &'e Env,
    controller: &'e str,
    how: How,
    /// Drop the changes of the spaces.
    discard: bool,
    /// The mounts of this home's spaces, one for each space.
    live: Vec<MountEntry>,
}

impl<'e> Unmounting<'e> {
    /// Reads the table of mounts.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(env: &'e Env, controller: &'e str, how: How, discard: bool) -> Result<Self, Error> {
        let spaces = env.spaces_dir();
        let registry = Registry::read(&spaces)?;
        let live = registry.identities().into_iter().filter_map(|identity| {
            let state_dir = spaces.join(identity);
            registry.find(&state_dir, read_run(&state_dir).as_ref()).cloned()
        });
        Ok(Self { env, controller, how, discard, live: live.collect() })
    }

    /// Ends all mounts of this home's spaces: for each its mountpoint, or why it could not be ended.
    pub fn all(&self) -> impl Iterator<Item = Result<PathBuf, Error>> {
        self.live.iter().map(|mount| self.end(mount))
    }

    /// Ends the mount or the daemon of one space, and returns its mountpoint. None when there is neither.
    ///
    /// # Errors
    /// As `unmount`, and when the mount is another user's.
    pub fn one(&self, typed: &OsStr) -> Result<Option<PathBuf>, Error> {
        let given = SpaceArg::parse(typed)?.behind_link();
        let identity = match (given.existing(self.env, self.controller), &given) {
            // The path cannot be the mountpoint of a space, so nothing of ours is mounted there.
            (Err(_), SpaceArg::Path(_)) => None,
            (identity, _) => Some(identity?),
        };
        if let Some(mount) = self.find(&given, identity.as_ref()) {
            return self.end(mount).map(Some);
        }
        if let Some(mount) = of_another_home(&given)? {
            if self.discard {
                return Err(Error::OtherHome(typed.to_string_lossy().into_owned()));
            }
            // Its record is in another home, so its daemon is not known and not waited for.
            let how = How { timeout: Duration::ZERO, ..self.how };
            return unmount(&mount, None, how).map(Some);
        }
        let Some(identity) = identity else { return Ok(None) };
        let ended = end_unseen(&self.env.state_dir(&identity), self.how)?;
        self.discard_changes(&identity)?;
        Ok(ended)
    }

    /// The mount at the path that was typed, else the mount of the space, which may have moved.
    fn find(&self, given: &SpaceArg, identity: Option<&Identity>) -> Option<&MountEntry> {
        if let SpaceArg::Path(path) = given {
            let path = resolved(path);
            if let Some(found) = self.live.iter().rfind(|mount| mount.mountpoint == path) {
                return Some(found);
            }
        }
        let identity = identity?.as_str();
        self.live.iter().rfind(|mount| mount.identity() == Some(identity))
    }

    fn end(&self, mount: &MountEntry) -> Result<PathBuf, Error> {
        let identity = Identity::from_name(mount.identity().unwrap_or_default().as_bytes())
            .map_err(|source| SpaceError::Name { given: mount.source.clone(), source })?;
        let ended = unmount(mount, Some(&self.env.state_dir(&identity)), self.how)?;
        self.discard_changes(&identity)?;
        Ok(ended)
    }

    fn discard_changes(&self, identity: &Identity) -> Result<(), Error> {
        let state_dir = self.env.state_dir(identity);
        if !self.discard || !state_dir.exists() {
            return Ok(());
        }
        if is_locked(&state_dir) {
            return Err(Error::ChangesInUse(identity.to_string()));
        }
        StateDir::open_locked(&state_dir)?.discard_changes()?;
        Ok(())
    }
}

/// The mount at a path whose space belongs to another home. Only root may end a mount of another user.
fn of_another_home(given: &SpaceArg) -> Result<Option<MountEntry>, Error> {
    let SpaceArg::Path(path) = given else { return Ok(None) };
    let path = resolved(path);
    let mounts = mountinfo::holofs_mounts().map_err(unreadable)?;
    let Some(found) = mounts.into_iter().rfind(|mount| mount.mountpoint == path) else { return Ok(None) };
    match found.user_id {
        Some(user) if !found.is_ours() && !rustix::process::geteuid().is_root() => {
            Err(Error::MountedByOther { path, user })
        }
        _ => Ok(Some(found)),
    }
}

/// Unmounts a live mount and waits for its daemon, so that the next mount finds the space free. Returns where it was
/// mounted. `state_dir` is None for a space of another home: its daemon is not known, so nothing waits for it.
///
/// # Errors
/// [`Error::InUse`] and [`Error::MountedElsewhere`] if it is still mounted; [`Error::StillServed`] if it is unmounted and
/// its daemon still runs; the errors of unmounting.
pub(super) fn unmount(live: &MountEntry, state_dir: Option<&Path>, how: How) -> Result<PathBuf, Error> {
    // Before the unmount: the daemon removes the record when it ends.
    let daemon = state_dir.and_then(read_run);
    let path = live.mountpoint.clone();
    // `is_dead` accesses the mount, which blocks if a running daemon hangs.
    let is_dead = !daemon.as_ref().is_some_and(RunInfo::is_running) && fuse_mount::is_dead(&path);
    let places = if how.lazy || is_dead { Vec::new() } else { other_places(live)? };
    if how.force {
        if !write_out(&path, daemon.as_ref()) {
            tracing::warn!("the daemon does not answer: data written to mapped files may be lost");
        }
        cut(&live.dev);
        for place in places.iter().chain([&path]) {
            detach(place)?;
        }
    } else if !places.is_empty() {
        return Err(Error::MountedElsewhere { path, places });
    } else {
        unmount_with_retry(live, how.lazy || is_dead)?;
    }
    if let Some(daemon) = daemon {
        wait_for_daemon(&path, &daemon, &live.source, how)?;
    }
    Ok(path)
}

fn unmount_with_retry(live: &MountEntry, lazily: bool) -> Result<(), Error> {
    let path = live.mountpoint.clone();
    let deadline = Instant::now() + BUSY_TIMEOUT;
    let mut again = 3;
    loop {
        match fuse_mount::unmount(&path, lazily) {
            Ok(()) => return Ok(()),
            Err(MountError::Os { source: Errno::BUSY, .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(MountError::Os { source: Errno::BUSY, .. }) => {
                return Err(Error::InUse { pids: that_use(&path), path });
            }
            // Another process has unmounted it.
            Err(_) if !registry::is_mounted(live)? => return Ok(()),
            // It moved, or a new mount got its device number. The retry finds out.
            Err(_) if again > 0 => {
                again -= 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(source) => return Err(Error::Mount { path, source }),
        }
    }
}

/// Ends a daemon whose mount is not in this mount namespace: it is in another one, or was detached. Returns None if there
/// is no such daemon.
///
/// # Errors
/// [`Error::StillServed`] when the daemon has not ended.
fn end_unseen(state_dir: &Path, how: How) -> Result<Option<PathBuf>, Error> {
    let Some(daemon) = read_run(state_dir).filter(RunInfo::is_running) else { return Ok(None) };
    // The lock proves that the process with this number is the daemon.
    if how.lazy || !is_locked(state_dir) || registry::find(state_dir)?.is_some() {
        return Ok(None);
    }
    let path = recorded_place(state_dir, Some(&daemon)).unwrap_or_else(|| daemon.mountpoint.clone());
    let source = registry::source_of(state_dir)?;
    if let Some(dev) = daemon.dev.as_deref().filter(|dev| how.force && !that_see(dev, &source).is_empty()) {
        cut(dev);
    }
    wait_for_daemon(&path, &daemon, &source, how)?;
    Ok(Some(path))
}

/// The other mountpoints of the same filesystem in this mount namespace.
fn other_places(live: &MountEntry) -> Result<Vec<PathBuf>, Error> {
    let others = registry::places_of(live)?.into_iter().filter(|mount| mount.id != live.id);
    Ok(others.map(|mount| mount.mountpoint).collect())
}

fn detach(place: &Path) -> Result<(), Error> {
    let Err(source) = fuse_mount::unmount(place, true) else { return Ok(()) };
    // It may have gone with another mountpoint, or its daemon has ended.
    match mountinfo::mount_at(place) {
        Ok(Some(mount)) if mount.identity().is_some() => Err(Error::Mount { path: place.to_owned(), source }),
        _ => Ok(()),
    }
}

/// Makes the kernel write dirty pages of mapped files. Does not wait long for a daemon that hangs, and not at all for one
/// that is stopped. Returns whether it was done.
pub(super) fn write_out(path: &Path, daemon: Option<&RunInfo>) -> bool {
    if daemon.is_some_and(|run| process::condition(run.pid) == Condition::Stopped) {
        return false;
    }
    let sync = || {
        let synced = std::fs::File::open(path).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.err().map(|error| error.to_string().into_bytes()).unwrap_or_default()
    };
    matches!(process::ask(GRACE, sync), Ok(Some(answer)) if answer.is_empty())
}

/// Waits until the daemon of an unmounted mount has ended, and kills it with `force`.
fn wait_for_daemon(path: &Path, daemon: &RunInfo, source: &str, how: How) -> Result<(), Error> {
    let start = Instant::now();
    let usual = if how.force { GRACE } else { how.timeout.min(BUSY_TIMEOUT) };
    if how.lazy || has_ended(daemon, usual) {
        return Ok(());
    }
    let (holders, left) = if how.force {
        // With the worker that the keeper has by now. If the keeper was killed, the worker that is recorded is the keeper.
        for process in daemon.processes() {
            match process::kill_with_children(process.pid, process.start_time) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(Error::os(path, "kill")(errno)),
            }
        }
        (Vec::new(), GRACE)
    } else {
        // The daemon takes longer than usual: another mount namespace has the mount, or much is left to write.
        let holders = daemon.dev.as_deref().map(|dev| that_see(dev, source)).unwrap_or_default();
        (holders, how.timeout.saturating_sub(start.elapsed()))
    };
    if holders.is_empty() && has_ended(daemon, left) {
        return Ok(());
    }
    Err(Error::StillServed { path: path.to_owned(), daemon: daemon.server(), holders })
}

/// Aborts the FUSE connection, after which the daemon ends in good order.
fn cut(dev: &str) {
    if let Err(error) = fuse_mount::abort(dev) {
        tracing::debug!(%error, "cannot abort the connection: the daemon is killed if it does not end");
    }
}

fn has_ended(daemon: &RunInfo, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while daemon.is_running() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Unmounts a mount when it is dropped, unless [`UnmountOnDrop::keep`] was called.
#[derive(Debug)]
pub(super) struct UnmountOnDrop {
    pub(super) mount: Option<MountEntry>,
}

impl UnmountOnDrop {
    pub(super) fn keep(mut self) {
        self.mount = None;
    }
}

impl Drop for UnmountOnDrop {
    fn drop(&mut self) {
        self.mount.iter().for_each(undo_mounts);
    }
}

/// Unmounts the mount of the space whose state is in `state_dir`, if there is one.
pub(super) fn undo_mount_of(state_dir: &Path) {
    match registry::find(state_dir) {
        Ok(Some(live)) => undo_mount(&live),
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "cannot find the mount to end it"),
    }
}

/// Unmounts a filesystem at all places where it is mounted by now.
pub(super) fn undo_mounts(made: &MountEntry) {
    match registry::places_of(made) {
        Ok(mounts) => mounts.iter().for_each(undo_mount),
        Err(error) => tracing::error!(%error, "cannot find the mount to end it"),
    }
}

/// Unmounts, lazily if the mount is in use: its daemon ends in any case.
pub(super) fn undo_mount(mount: &MountEntry) {
    let done = match fuse_mount::unmount_wherever(mount, false) {
        Err(MountError::Os { source: Errno::BUSY, .. }) => fuse_mount::unmount_wherever(mount, true),
        other => other,
    };
    if let Err(error) = done {
        tracing::error!(path = %mount.mountpoint.display(), %error, "cannot unmount");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The filesystem is mounted, but not at this place, so unmounting fails.
    #[test]
    fn mount_that_cannot_be_ended_is_not_said_to_have_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = mountinfo::mount_at(Path::new("/proc")).unwrap().unwrap();
        mount.mountpoint = dir.path().to_owned();
        let how = How { lazy: false, force: false, timeout: Duration::ZERO };
        let ended = unmount(&mount, None, how);
        assert!(matches!(ended, Err(Error::Mount { .. })), "{ended:?}");
    }
}
