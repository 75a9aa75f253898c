//! Turns a request to mount into a plan.
//!
//! The values that were not typed come from the settings and from the records on disk. Nothing on disk is changed here,
//! except that rcc builds a missing environment when the user asked for that.

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::ahead::fetch_ahead;
use super::arrival::wait_for_recording;
use super::{link, required};
use crate::blueprint::robot;
use crate::library::LibraryError;
use crate::library::locate::{Kind, Location, locate};
use crate::session::choice::Composed;
use crate::session::environment::Environment;
use crate::session::error::Error;
use crate::session::request::{MountPlan, MountRequest};
use crate::session::{placed, wanted};
use crate::settings::{MountSettings, Prefetch, Settings, Verify, absolute};
use crate::space::SpaceError;
use crate::space::home::Env;
use crate::space::select::{Selected, Wanted, select};
use crate::space::state::check_outside;
use crate::sys::fuse_mount::check_option;
use crate::sys::plain;

impl MountRequest {
    /// Chooses catalog, directory and options.
    ///
    /// # Errors
    /// When there is no such library, catalog or option, or the space cannot be mounted.
    pub fn plan(mut self, settings: &Settings, mount: &MountSettings, env: &Env) -> Result<MountPlan, Error> {
        if self.is_unspecific() && self.choice.is_empty() {
            let here = Path::new(robot::FILE);
            self.choice.robot = Some(here.to_owned()).filter(|file| file.is_file());
            self.choice.robot.as_ref().ok_or(Error::NothingChosen)?;
        }
        let composed = self.choice.compose(env)?;
        let location = match self.locate(composed.as_ref(), env) {
            // rcc makes its library when it first builds.
            Err(Error::Library(LibraryError::NotALibrary { .. }))
                if self.choice.build && composed.is_some() && self.is_auto() =>
            {
                wanted::build(&env.robocorp_home, &self.choice, env)?;
                self.locate(composed.as_ref(), env)?
            }
            location => location?,
        };
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
            check_dir(dir)?;
            if let Some(path) = location.on_disk() {
                check_outside(&dir.join(space.identity.as_str()), path)?;
            }
        }
        if let Some(link) = &mut self.link {
            *link = absolute(link)?;
            link::check(link, &space.mountpoint)?;
        }
        if let Some(path) = location.on_disk() {
            check_outside(&env.state_dir(&space.identity), path)?;
        }
        if location.kind == Kind::Remote {
            let open = || placed::ahead(&location, &catalog, &space, env, self.show);
            fetch_ahead(&*location.library, &catalog, &env.cache_dir(), mount.pycache.value, open)?;
        }
        // The process that serves the mount makes connections of its own.
        location.library.pause();
        let mount = required::apply(&self, mount.clone(), &space.mountpoint)?;
        Ok(MountPlan {
            request: self,
            composed,
            settings: mount,
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

    /// Whether the library is rcc's own.
    fn is_auto(&self) -> bool {
        self.library.as_ref().is_none_or(|given| given == "auto" || given == "-")
    }

    /// The library. As in rcc, a `hololib.zip` beside robot.yaml takes the place of rcc's own library.
    fn locate(&self, composed: Option<&Composed>, env: &Env) -> Result<Location, Error> {
        let given = self.library.as_deref().unwrap_or(OsStr::new("auto"));
        let zip = composed.and_then(|composed| composed.robot.as_ref()?.hololib_zip());
        match zip.filter(|_| self.is_auto()) {
            Some(zip) => Ok(locate(zip.as_os_str(), &env.hololib(), &env.access())?),
            None => Ok(locate(given, &env.hololib(), &env.access())?),
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
            called: self.called.as_deref(),
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
                match Environment::open(location, catalog, env).and_then(|found| found.in_short()) {
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
                "auto_unmount" => self.auto_unmount = true,
                known if check_option(known) => self.options.push(option),
                _ => return Err(Error::MountOption(option)),
            }
        }
        Ok(())
    }
}

/// Checks that a directory for changes, which a mount makes if necessary, is not something else.
fn check_dir(dir: &Path) -> Result<(), Error> {
    let not = |why: String| Error::UpperDir { path: dir.to_owned(), why };
    match std::fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Err(not("it is not a directory".to_owned())),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(not(plain(&error))),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Checks that nobody else can write to the library. `--verify never` trusts what is there.
fn check_own(location: &Location) -> Result<(), Error> {
    if location.on_disk().is_none() {
        return Err(Error::NotOurs(location.path.clone()));
    }
    let inner = location.hololib().into_iter().flat_map(|dir| [dir.join("catalog"), dir.join("library")]);
    for path in std::iter::once(location.path.clone()).chain(inner) {
        let found = std::fs::metadata(&path).map_err(LibraryError::io(&path))?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(Error::NotOurs(location.path.clone()));
        }
    }
    Ok(())
}
