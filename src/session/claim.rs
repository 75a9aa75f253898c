//! Takes a space for a mount: its locks, its record, its mountpoint.

use std::path::{Path, PathBuf};

use super::plan::MountPlan;
use crate::library::digest::Hex;
use crate::library::index::CatalogInfo;
use crate::space::aside::set_aside;
use crate::space::held::{Held, Kept};
use crate::space::meta::MetaLock;
use crate::space::mountpoint::Mountpoint;
use crate::space::record::{self, Basis, SpaceRecord};
use crate::space::state::StateDir;
use crate::space::{SpaceError, meta, mountpoint};
use crate::sys::guarded::Dir;
use crate::sys::process;

impl MountPlan {
    /// Takes the space for this mount: its own lock, the lock beside its directory, its state made to fit the
    /// catalog, its mountpoint an empty directory. `catalog_sha256` is the sum of the catalog file.
    ///
    /// Hold the claim until the mount answers, then [`Claim::publish`] it.
    ///
    /// # Errors
    /// Whatever keeps the space from being mounted; nothing of the user's has been changed then.
    pub fn claim(&self, catalog_sha256: &[u8; 32]) -> Result<Claim<'_>, SpaceError> {
        let state = StateDir::open_locked(&self.state_dir())?;
        // From here on the base is this directory, wherever its path may lead later.
        let base = mountpoint::open_base(&self.space)?;
        let lock = MetaLock::take(&base, &self.space, self.lock_timeout)?;
        let Mountpoint { dir: mountpoint, made } = mountpoint::prepare(&base, &self.space)?;
        let (recorded, aside) = self.adopt(&state, catalog_sha256).inspect_err(|_| {
            if made && let Err(error) = std::fs::remove_dir(&self.space.mountpoint) {
                tracing::debug!(%error, "the mountpoint stays");
            }
        })?;
        if let Some(feature) = recorded.unknown_ro_feature().filter(|_| !self.serve.read_only) {
            let (path, feature) = (self.state_dir().join(record::FILE), feature.to_owned());
            return Err(SpaceError::ReadOnlyFeature { path, feature });
        }
        let described = Held::of(&self.state_dir(), &recorded, &self.space.mountpoint)?
            != Held::Catalog { described: false };
        let (lock, umask) = (Some(lock), process::umask());
        Ok(Claim { plan: self, state, recorded, base, mountpoint, aside, described, lock, umask })
    }

    /// Makes the state fit the catalog. What rcc did to the space is looked at under the lock that rcc takes: a space
    /// that it converted is not taken for what it was, and the changes of one that it deleted are moved aside.
    fn adopt(
        &self,
        state: &StateDir,
        catalog_sha256: &[u8; 32],
    ) -> Result<(SpaceRecord, Option<PathBuf>), SpaceError> {
        let basis = self.basis(catalog_sha256);
        let kept = if self.fresh { None } else { Kept::of(&self.state_dir())? };
        // Changes of a space in another holotree are refused below, whatever became of it.
        if let Some(kept) = kept.filter(|kept| kept.record.basis.base == basis.base) {
            if kept.held == Held::Deleted {
                let aside = set_aside(state)?;
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
        Ok((state.adopt(&basis, self.fresh)?, None))
    }

    /// Renews the mark by which rcc tells how long an environment was not used. The daemon does so daily.
    ///
    /// # Errors
    /// When the mark cannot be written, as in a library of somebody else's.
    pub fn touch_usage(&self) -> Result<(), SpaceError> {
        let Some(hololib) = self.location.hololib() else { return Ok(()) };
        meta::touch_used(hololib, &self.catalog.blueprint, &self.env.user7(), 0o022)
    }

    fn basis(&self, catalog_sha256: &[u8; 32]) -> Basis {
        Basis {
            identity: self.space.identity.to_string(),
            catalog_sha256: Hex(catalog_sha256).to_string(),
            blueprint: self.catalog.blueprint.clone(),
            base: self.space.base().to_string_lossy().into_owned(),
            library: self.location.path.to_string_lossy().into_owned(),
            controller: self.space.controller.clone(),
            space: self.space.label.clone(),
            ephemeral: self.serve.ephemeral,
        }
    }
}

/// A space taken for a mount that is not there yet.
#[derive(Debug)]
pub struct Claim<'a> {
    plan: &'a MountPlan,
    state: StateDir,
    recorded: SpaceRecord,
    /// The space's base.
    base: Dir,
    /// The directory to mount on.
    mountpoint: Dir,
    /// Where changes were moved to because rcc had deleted the space.
    aside: Option<PathBuf>,
    /// The files beside the mountpoint need not be written.
    described: bool,
    /// Until published.
    lock: Option<MetaLock>,
    /// The user's, when the claim was made: a daemon serves with another.
    umask: u32,
}

impl Claim<'_> {
    /// The space's own directory, locked for as long as it lives.
    #[must_use]
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// The empty directory that was checked, which is the one to mount on.
    #[must_use]
    pub fn mountpoint(&self) -> &Dir {
        &self.mountpoint
    }

    /// What is recorded in it now.
    #[must_use]
    pub fn recorded(&self) -> &SpaceRecord {
        &self.recorded
    }

    /// Where the changes of a space that rcc had deleted were moved to.
    #[must_use]
    pub fn aside(&self) -> Option<&Path> {
        self.aside.as_deref()
    }

    /// Has `rcc holotree list` show the space, in the same time for every environment; [`Claim::publish`] does the rest.
    ///
    /// # Errors
    /// When the files beside the mountpoint cannot be written. The mount is good without them.
    pub fn announce(&mut self, catalog: &CatalogInfo) -> Result<(), SpaceError> {
        if !self.described {
            // Should the daemon be killed before `publish`, the next mount must not take the stub for the whole.
            self.state.note_unpublished(&mut self.recorded)?;
            meta::write_stub(&self.base, &self.plan.space, catalog, self.umask)?;
        }
        meta::append_use(&self.base, &self.plan.space, self.umask)
    }

    /// Tells rcc what is mounted, and lets go of the lock that rcc takes too. To be called when the mount answers.
    ///
    /// # Errors
    /// When the files beside the mountpoint cannot be written. The mount is good without them, and the lock is gone.
    pub fn publish(&mut self) -> Result<(), SpaceError> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        let (plan, pid) = (self.plan, std::process::id());
        tracing::info!(path = %plan.space.mountpoint.display(), blueprint = plan.catalog.blueprint, pid, "mounted");
        let described = self.describe();
        if let Err(error) = self.plan.touch_usage() {
            tracing::debug!(%error, "the library keeps no usage mark");
        }
        lock.release();
        described
    }

    fn describe(&mut self) -> Result<(), SpaceError> {
        if self.described {
            return Ok(());
        }
        let space = &self.plan.space;
        let library = &self.plan.location.library;
        let (_, catalog) = library.catalog(&self.plan.catalog).map_err(|error| SpaceError::BadCatalog {
            path: library.catalog_place(&self.plan.catalog).into(),
            why: error.to_string(),
        })?;
        meta::write_meta(&self.base, space, &catalog, self.umask)?;
        self.state.note_published(&mut self.recorded, meta::look_of(&space.mountpoint))
    }
}

#[cfg(test)]
mod tests;
