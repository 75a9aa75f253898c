//! Takes a space for a mount: its locks, its record, its mountpoint.

use std::fs::File;
use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::library::catalog::CatalogInfo;
use crate::library::digest::Hex;
use crate::session::registry;
use crate::session::request::MountPlan;
use crate::space::held::{Held, Kept};
use crate::space::meta::MetaLock;
use crate::space::mountpoint::Mountpoint;
use crate::space::record::{self, Basis, SpaceRecord};
use crate::space::state::{StateDir, place_below};
use crate::space::{SpaceError, meta, mountpoint, remove};
use crate::sys::guarded::Dir;
use crate::sys::process;

impl MountPlan {
    /// Takes the space for this mount: locks it with its own lock and rcc's, makes its record fit the catalog, and makes
    /// sure that its mountpoint is an empty directory. `catalog_sha256` is the digest of the catalog file.
    ///
    /// Hold the claim until the mount answers, then call [`Claim::publish`].
    ///
    /// # Errors
    /// When the space cannot be mounted. No change of the user is lost.
    pub fn claim(&self, catalog_sha256: &[u8; 32]) -> Result<Claim<'_>, SpaceError> {
        if let Some(dir) = &self.request.upper_dir {
            place_below(&self.state_dir(), dir)?;
        }
        let state = StateDir::open_locked(&self.state_dir())?;
        let is_new = remove::is_of_new_space(&state);
        let claimed = self.claim_in(&state, catalog_sha256);
        match claimed {
            Ok(Claimed { recorded, base, mountpoint, made, aside, described, lock }) => {
                let (lock, umask) = (Some(lock), process::umask());
                let new = is_new.then_some(New { mountpoint: made });
                Ok(Claim {
                    plan: self,
                    state,
                    recorded,
                    base,
                    mountpoint,
                    aside,
                    described,
                    lock,
                    umask,
                    new,
                })
            }
            Err(error) => {
                if is_new {
                    remove::undo(&state);
                }
                Err(error)
            }
        }
    }

    fn claim_in(&self, state: &StateDir, catalog_sha256: &[u8; 32]) -> Result<Claimed, SpaceError> {
        // Used by descriptor from here on: somebody may replace the directory at this path.
        let base = mountpoint::open_base(&self.space)?;
        let lock = match self.space.own {
            Some(_) => MetaLock::none(),
            None => MetaLock::take(&base, &self.space, self.lock_timeout)?,
        };
        let Mountpoint { dir: mountpoint, made } = mountpoint::prepare(&base, &self.space)?;
        let (recorded, aside) = self.adopt(state, catalog_sha256).inspect_err(|_| {
            if made {
                self.remove_mountpoint();
            }
        })?;
        if let Some(feature) = recorded.ro_compat.first().filter(|_| !self.request.read_only) {
            let (path, feature) = (self.state_dir().join(record::FILE), feature.clone());
            return Err(SpaceError::UnknownFeature { path, feature, may_read: true });
        }
        // Files that only this run sees must not count: without them, the space would later look deleted.
        let described = self.request.private_ns
            || Held::of(&self.state_dir(), &recorded, &self.space.mountpoint)?
                != Held::Catalog { described: false };
        Ok(Claimed { recorded, base, mountpoint, made, aside, described, lock })
    }

    fn remove_mountpoint(&self) {
        if let Err(error) = std::fs::remove_dir(&self.space.mountpoint) {
            tracing::debug!(%error, "the new mountpoint is not removed");
        }
    }

    /// Makes the record fit the catalog. The caller holds rcc's lock, so rcc does not change the space meanwhile. If rcc
    /// converted the space, its changes belong to another blueprint now. If rcc deleted it, its changes are moved aside.
    fn adopt(
        &self,
        state: &StateDir,
        catalog_sha256: &[u8; 32],
    ) -> Result<(SpaceRecord, Option<PathBuf>), SpaceError> {
        let basis = self.basis(catalog_sha256);
        let kept = if self.request.fresh { None } else { Kept::of(&self.state_dir())? };
        // `StateDir::adopt` refuses changes of a space in another holotree.
        if let Some(kept) = kept.filter(|kept| kept.record.basis.base == basis.base) {
            if kept.held == Held::Deleted {
                let aside = state.set_aside()?;
                return Ok((state.adopt(&basis, true)?, aside));
            }
            let holds = kept.blueprint();
            if holds != self.holds {
                return Err(SpaceError::OtherContent {
                    identity: basis.identity,
                    kept: format!("blueprint {holds}"),
                    wanted: self.holds.clone(),
                    blueprint: Some(holds.to_owned()),
                });
            }
        }
        Ok((state.adopt(&basis, self.request.fresh)?, None))
    }

    /// Renews the usage mark in the library, from which rcc computes how long an environment was not used.
    ///
    /// # Errors
    /// When the mark cannot be written, for example because the library belongs to another user.
    pub fn touch_usage(&self) -> Result<(), SpaceError> {
        let Some(hololib) = self.location.hololib() else { return Ok(()) };
        meta::touch_used(hololib, &self.catalog.blueprint, &self.env.user7(), 0o022)
    }

    fn basis(&self, catalog_sha256: &[u8; 32]) -> Basis {
        Basis {
            identity: self.space.identity.to_string(),
            catalog_sha256: Hex(catalog_sha256).to_string(),
            blueprint: self.catalog.blueprint.clone(),
            base: self.space.own_base().to_string_lossy().into_owned(),
            foreign: self.space.own.is_some().then(|| self.space.mountpoint.clone()),
            placed: self.space.placed,
            library: self.location.path.to_string_lossy().into_owned(),
            controller: self.space.controller.clone(),
            space: self.space.label.clone(),
            ephemeral: self.request.ephemeral,
        }
    }
}

/// What a claim holds beside the state directory.
struct Claimed {
    recorded: SpaceRecord,
    base: Dir,
    mountpoint: Dir,
    /// The mountpoint is new.
    made: bool,
    aside: Option<PathBuf>,
    described: bool,
    lock: MetaLock,
}

/// A space that is new with this mount.
#[derive(Debug)]
struct New {
    /// The mountpoint is new, too.
    mountpoint: bool,
}

/// A space that is taken for a mount.
#[derive(Debug)]
pub struct Claim<'a> {
    plan: &'a MountPlan,
    /// Locked as long as this value lives.
    pub(in crate::session) state: StateDir,
    recorded: SpaceRecord,
    /// The directory above the mountpoint.
    base: Dir,
    /// The checked directory to mount on.
    pub(in crate::session) mountpoint: Dir,
    /// The directory to which the changes of the space were moved, if rcc had deleted the space.
    pub(in crate::session) aside: Option<PathBuf>,
    /// The files beside the mountpoint are right already.
    described: bool,
    /// None after [`Claim::publish`].
    lock: Option<MetaLock>,
    /// The user's umask. The daemon serves with umask 0.
    umask: u32,
    /// None for a space that stays: it was there before, or the mount begins to answer.
    new: Option<New>,
}

/// A new space whose mount fails before it answers is removed: nobody has seen it, and it would be listed.
impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let Some(New { mountpoint }) = self.new.take() else { return };
        // Programs may use a mount that could not be ended.
        if !matches!(registry::find(self.state.path()), Ok(None)) {
            return;
        }
        remove::undo(&self.state);
        if mountpoint {
            self.plan.remove_mountpoint();
        }
    }
}

impl<'a> Claim<'a> {
    /// The claim of an earlier program of this process. `base` is the directory above the mountpoint, twice: what was done
    /// with the two directories of a claim is done.
    pub(super) fn inherited(
        plan: &'a MountPlan,
        recorded: SpaceRecord,
        base: [Dir; 2],
        lock: File,
        umask: u32,
    ) -> Self {
        let [base, mountpoint] = base;
        let state = StateDir::resume(&plan.state_dir(), lock);
        let (aside, lock) = (None, None);
        Self { plan, state, recorded, base, mountpoint, aside, described: true, lock, umask, new: None }
    }
}

impl Claim<'_> {
    /// Goes on with a claim of an earlier worker, which may have released rcc's lock. Its descriptor is then closed, and
    /// the number may be in use.
    pub(in crate::session) fn resume(&mut self, is_open: impl Fn(RawFd) -> bool) {
        if self.lock.as_ref().and_then(MetaLock::fd).is_some_and(|fd| !is_open(fd)) {
            std::mem::forget(self.lock.take());
        }
    }

    /// Keeps the space, also if the mount fails. Called before the first request is answered.
    pub(in crate::session) fn keep(&mut self) {
        self.new = None;
    }

    /// Makes `rcc holotree list` show the space. The time does not depend on the size of the environment, since the list of
    /// its files is left to [`Claim::publish`].
    ///
    /// # Errors
    /// When the files beside the mountpoint cannot be written. The mount works without them.
    pub fn announce(&mut self, catalog: &CatalogInfo) -> Result<(), SpaceError> {
        if !self.described {
            // If the daemon is killed before `publish`, the next mount must not take the stub for the complete file.
            self.state.note_unpublished(&mut self.recorded)?;
            meta::write_stub(&self.base, &self.plan.space, catalog, self.umask)?;
        }
        if self.plan.space.own.is_some() {
            return Ok(());
        }
        meta::append_use(&self.base, &self.plan.space, self.umask)
    }

    /// Writes the complete files beside the mountpoint, and releases rcc's lock. Called when the mount answers.
    ///
    /// # Errors
    /// When the files beside the mountpoint cannot be written. The mount works without them. The lock is released.
    pub fn publish(&mut self) -> Result<(), SpaceError> {
        self.keep();
        let Some(lock) = self.lock.take() else { return Ok(()) };
        let (plan, pid) = (self.plan, std::process::id());
        tracing::info!(path = %plan.space.mountpoint.display(), blueprint = plan.catalog.blueprint, pid, "mounted");
        let described = self.describe();
        if let Err(error) = self.plan.touch_usage() {
            tracing::debug!(%error, "the usage mark in the library is not renewed");
        }
        lock.release();
        described
    }

    fn describe(&mut self) -> Result<(), SpaceError> {
        if self.described {
            return Ok(());
        }
        let space = &self.plan.space;
        let (library, name) = (&self.plan.location.library, &self.plan.catalog);
        let place = PathBuf::from(library.catalog_place(name));
        let packed = library.open_catalog(name).map_err(SpaceError::io(&place))?;
        meta::write_meta(&self.base, space, packed, &self.recorded.basis.catalog_sha256, self.umask)?;
        self.state.note_published(&mut self.recorded, meta::look_of(&space.mountpoint))
    }
}

#[cfg(test)]
mod tests;
