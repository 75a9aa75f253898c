//! Turns a request to mount into a plan.
//!
//! A request is what the user typed: a library, a space and some options. A plan has a catalog, a directory and a value for
//! every option. The missing values come from the settings and from the records on disk. Nothing on disk is changed here.

use std::ffi::OsString;
use std::fs::File;

use super::arrival::wait_for_recording;
use super::environment::Environment;
use super::error::Error;
use super::plan::{MountPlan, ServeOptions};
use crate::library::locate::{Location, locate};
use crate::settings::{MountSettings, Prefetch, Settings};
use crate::space::SpaceError;
use crate::space::home::Env;
use crate::space::select::{Selected, Wanted, select};
use crate::space::state::check_outside;
use crate::sys::fuse_mount::check_option;

/// A mount, as the user typed it.
#[derive(Clone, Debug, Default)]
pub struct MountRequest {
    /// The library: a path, or `auto`.
    pub library: OsString,
    /// The space: a name, an identity or a path.
    pub space: OsString,
    /// The first digits of the blueprint's hash.
    pub blueprint: Option<String>,
    /// The files to unpack in the background.
    pub prefetch: Prefetch,
    /// Refuse every change.
    pub read_only: bool,
    /// Drop the changes of earlier mounts first.
    pub fresh: bool,
    /// Drop the changes at unmount.
    pub ephemeral: bool,
    /// Allow other users to access the mount.
    pub allow_other: bool,
    /// Serve in this process.
    pub foreground: bool,
    /// Mount options by name.
    pub options: Vec<String>,
}

impl MountRequest {
    /// Chooses catalog, directory and options.
    ///
    /// # Errors
    /// When there is no such library, catalog or option, or the space cannot be mounted.
    pub fn plan(&self, settings: &Settings, mount: &MountSettings, env: &Env) -> Result<MountPlan, Error> {
        if let Some(warning) = &mount.warning {
            tracing::warn!("{warning}");
        }
        let location = locate(&self.library, &env.hololib())?;
        let selected = self.select(&location, settings, env)?;
        let serve = self.serve_options(mount)?;
        check_outside(&env.state_dir(&selected.space.identity), &location.path)?;
        Ok(MountPlan {
            holds: selected.holds,
            catalog: selected.catalog,
            index: selected.index,
            space: selected.space,
            location,
            env: env.clone(),
            serve,
            fresh: self.fresh,
            foreground: self.foreground,
            mount_helper: mount.mount_helper.value.clone(),
            lock_timeout: settings.lock_timeout.value,
        })
    }

    fn select(&self, location: &Location, settings: &Settings, env: &Env) -> Result<Selected, SpaceError> {
        let wanted = Wanted {
            space: &self.space,
            controller: &settings.controller.value,
            blueprint: self.blueprint.as_deref(),
            fresh: self.fresh,
        };
        let mut selected = select(location, &wanted, env);
        // rcc writes catalogs in place, so a catalog that cannot be read may be complete a moment later.
        if matches!(selected, Err(SpaceError::BadCatalog { .. }))
            && wait_for_recording(location, settings.lock_timeout.value)
        {
            selected = select(location, &wanted, env);
        }
        selected.map_err(|error| match error {
            SpaceError::NoCatalog { why, mut candidates } => {
                for (catalog, about) in &mut candidates {
                    match Environment::open(location, catalog, env).and_then(|found| found.first_lines()) {
                        Ok(lines) => *about = lines,
                        Err(error) => {
                            tracing::debug!(%catalog, %error, "cannot read the text of the blueprint");
                        }
                    }
                }
                SpaceError::NoCatalog { why, candidates }
            }
            error => error,
        })
    }

    fn serve_options(&self, mount: &MountSettings) -> Result<ServeOptions, Error> {
        let mut serve = ServeOptions {
            strategy: mount.strategy.clone(),
            io: mount.io.clone(),
            prefetch: checked(&self.prefetch)?,
            cache_size: mount.cache_size.clone(),
            read_only: self.read_only,
            ephemeral: self.ephemeral,
            allow_other: self.allow_other,
            options: Vec::new(),
        };
        for option in &self.options {
            match option.as_str() {
                "ro" => serve.read_only = true,
                "allow_other" => serve.allow_other = true,
                known if check_option(known) => serve.options.push(option.clone()),
                _ => return Err(Error::MountOption(option.clone())),
            }
        }
        Ok(serve)
    }
}

/// Checks that a profile can be opened, and makes its path absolute, because the daemon has another working directory.
fn checked(prefetch: &Prefetch) -> Result<Prefetch, Error> {
    let Prefetch::From(path) = prefetch else { return Ok(prefetch.clone()) };
    let found = std::path::absolute(path).and_then(|path| File::open(&path).map(|_| path));
    found.map(Prefetch::From).map_err(|source| Error::NoProfile { path: path.clone(), source })
}
