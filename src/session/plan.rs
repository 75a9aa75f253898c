//! A mount as it was requested: every decision is made, and nothing is done yet.
//!
//! Made from what was typed and what is on disk; [`MountPlan::claim`] takes the space for it. Invariant: a plan's paths
//! are absolute.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::library::catalogs::CatalogName;
use crate::library::index::Index;
use crate::library::locate::Location;
use crate::settings::{IoMode, MountHelper, Prefetch, Setting, Strategy};
use crate::space::home::Env;
use crate::space::path::SpacePath;
use crate::space::run::Extra;

/// A mount to be made.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// The library, and its place on this machine.
    pub location: Location,
    /// The catalog in it.
    pub catalog: CatalogName,
    /// The catalog's index, if an earlier mount compiled it.
    pub index: Option<Arc<Index>>,
    /// The blueprint of what the space holds. It differs from the catalog's when rcc converted the space.
    pub holds: String,
    /// The space and its directory.
    pub space: SpacePath,
    /// The directories of this user.
    pub env: Env,
    /// How the mount is served.
    pub serve: ServeOptions,
    /// Drop the changes of earlier mounts.
    pub fresh: bool,
    /// Serve in this process instead of a daemon.
    pub foreground: bool,
    /// The mount helper to use if one is needed.
    pub mount_helper: MountHelper,
    /// How long to wait for rcc's locks.
    pub lock_timeout: Duration,
}

/// How a mount is served: what `run.json` records while it is mounted. A mount that exists already must agree with the
/// options that were typed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServeOptions {
    /// How private copies are made.
    pub strategy: Setting<Strategy>,
    /// Who reads and writes files.
    pub io: Setting<IoMode>,
    /// How many bytes of unpacked blobs the cache may keep.
    pub cache_size: Setting<u64>,
    /// Refuse every change.
    pub read_only: bool,
    /// Drop the changes at unmount.
    pub ephemeral: bool,
    /// What is unpacked in the background.
    pub prefetch: Prefetch,
    /// Let other users use the mount.
    pub allow_other: bool,
    /// Further mount options by name.
    pub options: Vec<String>,
}

impl MountPlan {
    /// The space's state directory; see [`crate::space::state::StateDir`].
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.env.state_dir(&self.space.identity)
    }

    /// The directory of compiled indexes and unpacked blobs.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.env.cache_dir()
    }
}

impl ServeOptions {
    /// Whether the mount option of this name is set.
    #[must_use]
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|set| set == option)
    }

    /// What `run.json` records of these options under `extra`.
    #[must_use]
    pub fn extra(&self) -> Extra {
        Extra {
            allow_other: self.allow_other,
            options: self.options.clone(),
            prefetch: self.prefetch.clone(),
            cache_size: self.cache_size.value,
        }
    }
}
