//! What a mount is to be: everything decided, nothing done.
//!
//! Made from what was typed and what is on disk; [`MountPlan::claim`] takes the space for it. Invariant: a plan's paths
//! are absolute.

use std::path::PathBuf;
use std::time::Duration;

use crate::library::locate::Location;
use crate::settings::{IoMode, Prefetch, Strategy};
use crate::space::home::Env;
use crate::space::path::SpacePath;
use crate::space::run::Extra;

/// A mount to be made.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// The library.
    pub library: Location,
    /// The catalog in it.
    pub catalog_path: PathBuf,
    /// The catalog's blueprint hash, 16 hex digits.
    pub blueprint: String,
    /// The blueprint of what the space holds, or will hold: another one than the catalog's when rcc converted the space.
    pub holds: String,
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
    /// Who reads and writes files.
    pub io: IoMode,
    /// What is unpacked in the background.
    pub prefetch: Prefetch,
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
    /// What of all this was typed: a mount that is there already must agree with it.
    pub asked: Asked,
    /// How long to wait for the lock that rcc takes too.
    pub lock_timeout: Duration,
    /// How many bytes of raw blobs the cache may keep.
    pub cache_size: u64,
}

/// What was typed, where the plan has a default for what was not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// `--strategy`.
    pub strategy: Option<Strategy>,
    /// `--io`.
    pub io: Option<IoMode>,
    /// `--cache-size`.
    pub cache_size: Option<u64>,
}

impl MountPlan {
    /// What `run.json` records of this plan beside its own keys.
    #[must_use]
    pub fn extra(&self) -> Extra {
        Extra {
            allow_other: self.allow_other,
            options: self.options.clone(),
            prefetch: match &self.prefetch {
                Prefetch::No => None,
                Prefetch::Own => Some("own".into()),
                Prefetch::From(path) => Some(path.clone()),
            },
            cache_size: self.cache_size,
        }
    }
}
