//! A mount as the user typed it, and as it is to be made.
//!
//! A request is what the user typed: a library, a space and some options. A plan has a catalog, a directory and a value for
//! every option. [`MountRequest::plan`] turns one into the other, and [`MountPlan::claim`] takes the space. Invariant: a
//! plan's paths are absolute.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;

use super::choice::{Choice, Composed};
use crate::blueprint::robot::Robot;
use crate::library::catalogs::CatalogName;
use crate::library::index::Index;
use crate::library::locate::Location;
use crate::settings::{Fallback, MountSettings, Prefetch};
use crate::space::home::Env;
use crate::space::path::SpacePath;
use crate::space::run::Extra;

/// Makes a progress bar with a name.
pub type Show = fn(&'static str) -> ProgressBar;

/// A mount, as the user typed it. The comments of the fields are the help of `holofs mount`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct MountRequest {
    /// Makes the progress bar of long work, with its name. None for no bar.
    #[arg(skip)]
    pub show: Option<Show>,
    /// A hololib, a hololib.zip, a ROBOCORP_HOME, a shared holotree, or `auto` for rcc's own [default: auto]
    #[arg(requires = "space")]
    pub library: Option<OsString>,
    /// The space: a name, an identity, or the path of its directory [default: user]
    pub space: Option<OsString>,
    /// The environment.
    #[command(flatten)]
    pub choice: Choice,
    /// Unpack files in the background: those that earlier mounts read, or those of a profile
    #[arg(long, value_name = "PROFILE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub prefetch: Option<Prefetch>,
    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,
    /// Drop the changes of earlier mounts
    #[arg(long)]
    pub fresh: bool,
    /// The directory of spaces is one that only this run sees. Set by `run`.
    #[arg(skip)]
    pub private_ns: bool,
    /// What is read is not added to the environment's profile: no robot reads it.
    #[arg(skip)]
    pub no_profile: bool,
    /// Drop the changes at unmount
    #[arg(long)]
    pub ephemeral: bool,
    /// Serve in this process until the mount ends.
    #[arg(skip)]
    pub foreground: bool,
    /// What to do where FUSE is not available: fail, or restore the environment as plain files [default: none]
    #[arg(
        long,
        value_name = "none|restore",
        hide_possible_values = true,
        hide_default_value = true,
        default_value = "none"
    )]
    pub fallback: Fallback,
    /// Mount options: ro, noexec, noatime, sync, dirsync, allow_other, auto_unmount
    #[arg(short, value_name = "OPTS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Mount an unmanaged space, which `rcc run --unmanaged` uses without checking it
    #[arg(long)]
    pub unmanaged: bool,
    /// Mount even if files cannot name the path of the space: binaries have no room for a longer path than their own
    #[arg(long)]
    pub foreign: bool,
    /// With --foreign: the name of the space, if it is not to be made of the path. For mount(8).
    #[arg(long, value_name = "NAME", requires = "foreign", hide = true)]
    pub called: Option<String>,
    /// Make PATH a symbolic link to the mountpoint
    #[arg(long, value_name = "PATH")]
    pub link: Option<PathBuf>,
    /// Keep the changes of the space below this directory
    #[arg(long, value_name = "DIR")]
    pub upper_dir: Option<PathBuf>,
    /// Fail with exit code 9 if changed files cannot share disk blocks with the cache
    #[arg(long)]
    pub require_reflink: bool,
    /// Use --io passthrough, and fail with exit code 8 if it is not possible
    #[arg(long)]
    pub require_passthrough: bool,
    /// Unmount the space when its daemon was killed
    #[arg(long)]
    pub auto_unmount: bool,
    /// Allow other users to access the mount
    #[arg(long)]
    pub allow_other: bool,
}

/// A mount to be made. Every decision is made, and nothing is done yet.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// The options that were typed. `-o ro` and the like are set as flags.
    pub request: MountRequest,
    /// The environment, if files describe it.
    pub composed: Option<Composed>,
    /// The values of the options that settings can set too.
    pub settings: MountSettings,
    /// `--cache-dir`, if it was typed.
    pub typed_cache_dir: Option<PathBuf>,
    /// How long to wait for rcc's locks.
    pub lock_timeout: Duration,
    /// The directories of this user.
    pub env: Env,
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
}

impl MountPlan {
    /// The space's state directory; see [`crate::space::state::StateDir`].
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.env.state_dir(&self.space.identity)
    }

    /// The robot, if one chose the environment.
    #[must_use]
    pub fn robot(&self) -> Option<&Robot> {
        self.composed.as_ref().and_then(|composed| composed.robot.as_ref())
    }

    /// What the user should know about the choice of files.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        self.composed.iter().flat_map(|composed| &composed.notes).map(String::as_str)
    }

    /// Whether the mount option of this name is set.
    #[must_use]
    pub fn has(&self, option: &str) -> bool {
        self.request.options.iter().any(|set| set == option)
    }

    /// What `run.json` records of the options under `extra`.
    #[must_use]
    pub fn extra(&self) -> Extra {
        let MountRequest { allow_other, options, prefetch, auto_unmount, .. } = self.request.clone();
        let cache_dir = Some(self.env.cache.clone());
        let verify = Some(self.settings.verify.value);
        Extra {
            allow_other,
            options,
            prefetch,
            auto_unmount,
            pycache: self.settings.pycache.value,
            bytecode: false,
            cache_size: self.settings.cache_size.value,
            cache_dir,
            verify,
        }
    }
}

impl MountRequest {
    /// Whether neither a library nor a space was typed.
    #[must_use]
    pub fn is_unspecific(&self) -> bool {
        self.library.is_none() && self.space.is_none()
    }
}
