//! Finds and ends the mounts that `holofs unmount` names, and drops their changes on request.
//!
//! A name, an identity or a path is looked up in this order: the mounts of this home's spaces; the mounts of other homes,
//! by path only; daemons of this home that have no mount in this mount namespace.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use super::end::{How, end_unseen, unmount};
use super::error::Error;
use super::registry::{Registry, unreadable};
use crate::library::name::Identity;
use crate::space::SpaceError;
use crate::space::home::Env;
use crate::space::path::resolved;
use crate::space::run::read_run;
use crate::space::select::SpaceArg;
use crate::space::state::{StateDir, is_locked};
use crate::sys::mountinfo::{self, MountEntry};

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

    /// Ends all mounts of this home's spaces, and returns their mountpoints.
    ///
    /// # Errors
    /// When a mount cannot be ended; the later ones are then not tried.
    pub fn all(&self) -> Result<Vec<PathBuf>, Error> {
        self.live.iter().map(|mount| self.end(mount)).collect()
    }

    /// Ends the mount or the daemon of one space, and returns its mountpoint. None when there is neither.
    ///
    /// # Errors
    /// As `unmount`, and when the mount is another user's.
    pub fn one(&self, typed: &OsStr) -> Result<Option<PathBuf>, Error> {
        let given = SpaceArg::parse(typed)?;
        let identity = match (given.identity(self.env, self.controller), &given) {
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
