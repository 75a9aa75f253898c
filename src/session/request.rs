//! Turns a request to mount into a plan.
//!
//! A request is what the user typed: a library, a space and some options. A plan has a catalog, a directory and a value for
//! every option. The missing values come from the settings and from the records on disk. Nothing on disk is changed here;
//! [`MountPlan::claim`] takes the space. Invariant: a plan's paths are absolute.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::arrival::wait_for_recording;
use super::choice::{Choice, Composed};
use super::environment::Environment;
use super::error::Error;
use super::{link, wanted};
use crate::blueprint::robot::{self, Robot};
use crate::library::LibraryError;
use crate::library::catalogs::CatalogName;
use crate::library::index::Index;
use crate::library::locate::{Location, locate};
use crate::settings::{Fallback, MountSettings, Prefetch, Settings, Verify, absolute};
use crate::space::SpaceError;
use crate::space::home::Env;
use crate::space::path::SpacePath;
use crate::space::run::Extra;
use crate::space::select::{Selected, Wanted, select};
use crate::space::state::check_outside;
use crate::sys::fuse_mount::check_option;

/// A mount, as the user typed it. The comments of the fields are the help of `holofs mount`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct MountRequest {
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
    /// Mount options: ro, noexec, noatime, sync, dirsync, allow_other
    #[arg(short, value_name = "OPTS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Mount an unmanaged space, which `rcc run --unmanaged` uses without checking it
    #[arg(long)]
    pub unmanaged: bool,
    /// Mount on the path SPACE, which may be any directory; files with relocations still name the space's own directory
    #[arg(long)]
    pub foreign: bool,
    /// Make PATH a symbolic link to the mountpoint
    #[arg(long, value_name = "PATH")]
    pub link: Option<PathBuf>,
    /// Keep the changes of the space below this directory
    #[arg(long, value_name = "DIR")]
    pub upper_dir: Option<PathBuf>,
    /// Allow other users to access the mount
    #[arg(long)]
    pub allow_other: bool,
}

/// A mount to be made. Every decision is made, and nothing is done yet.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// The options that were typed. `-o ro` and `-o allow_other` are set as flags.
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
        let MountRequest { allow_other, options, prefetch, .. } = self.request.clone();
        let cache_dir = Some(self.env.cache.clone());
        let verify = Some(self.settings.verify.value);
        Extra {
            allow_other,
            options,
            prefetch,
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

    /// Chooses catalog, directory and options.
    ///
    /// # Errors
    /// When there is no such library, catalog or option, or the space cannot be mounted.
    pub fn plan(mut self, settings: &Settings, mount: &MountSettings, env: &Env) -> Result<MountPlan, Error> {
        if self.library.is_none() && self.space.is_none() && self.choice.is_empty() {
            let here = Path::new(robot::FILE);
            self.choice.robot = Some(here.to_owned()).filter(|file| file.is_file());
            self.choice.robot.as_ref().ok_or(Error::NothingChosen)?;
        }
        let composed = self.choice.compose(env)?;
        let location = self.locate(composed.as_ref(), env)?;
        if let Some(composed) = &composed {
            self.choice.blueprint = Some(wanted::find(&location, composed, &self.choice, env)?);
        }
        let Selected { holds, catalog, index, space } = self.select(&location, settings, env)?;
        self.check_options()?;
        if mount.verify.value == Verify::Never {
            check_own(&location)?;
        }
        if let Some(dir) = &mut self.upper_dir {
            *dir = absolute(dir)?;
            check_outside(&dir.join(space.identity.as_str()), &location.path)?;
        }
        if let Some(link) = &mut self.link {
            *link = absolute(link)?;
            link::check(link, &space.mountpoint)?;
        }
        check_outside(&env.state_dir(&space.identity), &location.path)?;
        Ok(MountPlan {
            request: self,
            composed,
            settings: mount.clone(),
            typed_cache_dir: settings.cache_dir.typed().cloned(),
            lock_timeout: settings.lock_timeout.value,
            env: env.clone(),
            location,
            catalog,
            index,
            holds,
            space,
        })
    }

    /// The library. As in rcc, a `hololib.zip` beside robot.yaml takes the place of rcc's own library.
    fn locate(&self, composed: Option<&Composed>, env: &Env) -> Result<Location, Error> {
        let given = self.library.as_deref().unwrap_or(OsStr::new("auto"));
        let zip = composed.and_then(|composed| composed.robot.as_ref()?.hololib_zip());
        match zip.filter(|_| given == "auto" || given == "-") {
            Some(zip) => Ok(locate(zip.as_os_str(), &env.hololib())?),
            None => Ok(locate(given, &env.hololib())?),
        }
    }

    fn select(&self, location: &Location, settings: &Settings, env: &Env) -> Result<Selected, SpaceError> {
        let wanted = Wanted {
            space: self.space.as_deref().unwrap_or(OsStr::new("user")),
            controller: &settings.controller.value,
            blueprint: self.choice.blueprint.as_deref(),
            fresh: self.fresh,
            unmanaged: self.unmanaged,
            foreign: self.foreign,
        };
        let mut selected = select(location, &wanted, env);
        // rcc writes catalogs in place, so a catalog that cannot be read may be complete a moment later.
        if matches!(selected, Err(SpaceError::BadCatalog { .. }))
            && wait_for_recording(location, settings.lock_timeout.value)
        {
            selected = select(location, &wanted, env);
        }
        if let Err(SpaceError::NoCatalog { candidates, .. }) = &mut selected {
            for (catalog, about) in candidates {
                match Environment::open(location, catalog, env).and_then(|found| found.first_lines()) {
                    Ok(lines) => *about = lines,
                    Err(error) => tracing::debug!(%catalog, %error, "cannot read the text of the blueprint"),
                }
            }
        }
        selected
    }

    /// Checks the profile and the mount options. The daemon has another working directory, so the profile's path becomes
    /// absolute.
    fn check_options(&mut self) -> Result<(), Error> {
        if let Some(Prefetch::From(path)) = &mut self.prefetch {
            let found = std::path::absolute(&*path).and_then(|path| File::open(&path).map(|_| path));
            *path = found.map_err(|source| Error::NoProfile { path: path.clone(), source })?;
        }
        for option in std::mem::take(&mut self.options) {
            match option.as_str() {
                "ro" => self.read_only = true,
                "allow_other" => self.allow_other = true,
                known if check_option(known) => self.options.push(option),
                _ => return Err(Error::MountOption(option)),
            }
        }
        Ok(())
    }
}

/// Checks that nobody else can write to the library. `--verify never` trusts what is there.
fn check_own(location: &Location) -> Result<(), Error> {
    let found = std::fs::metadata(&location.path).map_err(LibraryError::io(&location.path))?;
    let is_own = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if is_own { Ok(()) } else { Err(Error::NotOurs(location.path.clone())) }
}
