//! The variables of a mounted space.
//!
//! This module collects what [`crate::activate`] needs: from the mount, from the settings, and from the robot.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::activate::env_file::EnvFileError;
use crate::activate::program::{self, Found};
use crate::activate::temp::Temp;
use crate::activate::{self, Facts, Given, Places, Variable, env_file};
use crate::blueprint::robot::Robot;
use crate::session::{Error, Mounted};
use crate::settings::{MountSettings, Settings, SettingsError, absolute};
use crate::space::SpaceError;
use crate::space::home::Env;

/// What a command asks for, beside the mount.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ActivationFlags {
    /// A JSON or YAML file with variables to add, as rcc's env.json
    #[arg(short, long = "environment", value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Let Python write bytecode into the space.
    #[arg(skip)]
    pub no_pyc_management: bool,
    /// Leave `TEMP` and `TMP` as they are.
    #[arg(skip)]
    pub no_temp_management: bool,
    /// As in rcc.
    #[arg(skip)]
    pub warranty_voided: bool,
}

/// Why there are no variables of a space.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// The space cannot be mounted or read.
    #[error(transparent)]
    Session(#[from] Error),
    /// The file of variables cannot be used.
    #[error(transparent)]
    EnvFile(#[from] EnvFileError),
    /// There is no current directory.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// What is known before the space is mounted.
#[derive(Debug)]
pub(in crate::session) struct Activation<'a> {
    flags: &'a ActivationFlags,
    settings: &'a Settings,
    mount: &'a MountSettings,
    env: &'a Env,
    extra: Vec<Variable>,
    cwd: PathBuf,
    rcc: Option<PathBuf>,
}

/// The variables, and the directory for temporary files that they name.
#[derive(Debug)]
pub struct Activated {
    /// In rcc's order.
    pub variables: Vec<Variable>,
    /// `PATH` for a program that is not the robot's.
    pub path: OsString,
    /// None when the caller manages it, or it cannot be made.
    pub temp: Option<Temp>,
}

impl<'a> Activation<'a> {
    /// Reads what was typed.
    ///
    /// # Errors
    /// When the file of variables cannot be used, or there is no current directory.
    pub(in crate::session) fn new(
        flags: &'a ActivationFlags,
        settings: &'a Settings,
        mount: &'a MountSettings,
        env: &'a Env,
    ) -> Result<Self, ActivationError> {
        let extra = flags.env_file.as_deref().map(env_file::read).transpose()?.unwrap_or_default();
        let cwd = absolute(Path::new("."))?;
        let rcc = rcc(settings, &cwd);
        Ok(Self { flags, settings, mount, env, extra, cwd, rcc })
    }

    /// The variables of the space, and those of the robot if there is one.
    ///
    /// # Errors
    /// When the space cannot be read.
    pub(in crate::session) fn of(
        &self,
        mounted: &Mounted,
        robot: Option<&Robot>,
    ) -> Result<Activated, ActivationError> {
        let caller = &self.settings.caller;
        let no_bytecode = !self.flags.no_pyc_management && caller.pyc_management.value;
        let own_temp = !self.flags.no_temp_management && caller.temp_management.value;
        let home = &self.settings.robocorp_home.value;
        // rcc's home may be read-only, as in a container.
        let make = || Temp::make(home).or_else(|_| Temp::make(&self.env.holofs_home));
        let temp = (no_bytecode || own_temp).then(make).and_then(|made| {
            made.inspect_err(
                |error| tracing::warn!(%error, "TEMP is not set: no directory can be made for it"),
            )
            .ok()
        });
        let places = robot.map(|robot| Places {
            root: robot.root().to_owned(),
            artifacts: robot.artifacts(),
            path: robot.paths(),
            python_path: robot.python_paths(),
        });
        let user7 = self.env.user7();
        let installation = self.settings.installation();
        let given = Given {
            extra: self.extra.clone(),
            facts: Facts::of(&mounted.path).map_err(|error| Error::from(SpaceError::from(error)))?,
            root: &mounted.path,
            blueprint: &mounted.blueprint,
            robocorp_home: home,
            home_variable: self.settings.product.value.home_variable(),
            user7: &user7,
            installation: &installation,
            temp: temp.as_ref().map(Temp::path),
            no_bytecode,
            bytecode: mounted.bytecode,
            own_temp,
            rcc: self.rcc.as_deref(),
            path: caller.path.as_deref(),
            cwd: &self.cwd,
            network: &self.mount.network.value,
            warranty_voided: self.flags.warranty_voided,
            robot: places.clone(),
        };
        let variables = activate::variables(&given);
        let path = activate::search_path(&given, places.as_ref().map_or(&[], |places| &places.path));
        Ok(Activated { variables, path, temp })
    }

    /// What a robot without an environment gets, as in rcc: the caller's variables, and the directories of its programs.
    pub(in crate::session) fn plain(&self, robot: &Robot) -> Activated {
        let caller = self.settings.caller.path.as_deref();
        let path = activate::plain_search_path(caller, &self.env.user7(), &self.cwd, &robot.paths());
        let mut variables = self.extra.clone();
        variables.push(Variable { name: "PATH".to_owned(), value: path.clone() });
        Activated { variables, path, temp: None }
    }

    /// The current directory.
    pub(in crate::session) fn cwd(&self) -> &Path {
        &self.cwd
    }
}

/// The program rcc: `HOLOFS_RCC`, or the one on `PATH`. Without one, `RCC_EXE` is not set: a program that starts it would
/// not get what it expects from any other program, and can find out that there is none.
pub(in crate::session) fn rcc(settings: &Settings, cwd: &Path) -> Option<PathBuf> {
    let caller = &settings.caller;
    let name = caller.rcc.value.as_deref().unwrap_or("rcc".as_ref());
    match program::find(name, caller.path.as_deref().unwrap_or_default(), cwd) {
        Found::At(path) => Some(path),
        Found::NoProgram(_) | Found::Nothing => None,
    }
}
