//! The environment, as the user chose it: by its hash, by a robot, or by files that describe it.

use std::path::{Path, PathBuf};

use crate::blueprint::robot::{self, Robot};
use crate::blueprint::{Blueprint, BlueprintError, Differences, Source, local_channel};
use crate::library::catalogs::CatalogName;
use crate::space::home::Env;

/// The flags that choose an environment. All commands that use one flatten them; the comments are their help.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Choice {
    /// The environment, by the first digits of its blueprint's hash
    #[arg(long, value_name = "HASH", conflicts_with_all = ["robot", "conda"], help_heading = "Environment")]
    pub blueprint: Option<String>,
    /// The environment of a robot, by its robot.yaml
    #[arg(short, long, value_name = "FILE", help_heading = "Environment")]
    pub robot: Option<PathBuf>,
    /// The environment of these conda.yaml and package.yaml files, merged from left to right
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Environment")]
    pub conda: Vec<PathBuf>,
    /// Include the dev-dependencies of package.yaml
    #[arg(long, help_heading = "Environment")]
    pub devdeps: bool,
    /// Let rcc build the environment if the library does not have it
    #[arg(long, help_heading = "Environment")]
    pub build: bool,
}

/// An environment that files describe.
#[derive(Clone, Debug)]
pub struct Composed {
    /// What rcc composes from the files.
    pub blueprint: Blueprint,
    /// The robot, if there is one.
    pub robot: Option<Robot>,
    /// What the user should know about the choice of files.
    pub notes: Vec<String>,
}

/// An environment of the library that is not the wanted one.
#[derive(Clone, Debug)]
pub struct Near {
    /// Its catalog.
    pub catalog: CatalogName,
    /// What differs.
    pub differences: Differences,
}

impl Choice {
    /// Whether nothing was chosen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blueprint.is_none() && self.robot.is_none() && self.conda.is_empty()
    }

    /// The robot.yaml in the current directory, if there is one and nothing was chosen.
    #[must_use]
    pub fn or_robot_here(mut self) -> Self {
        if self.is_empty() && Path::new(robot::FILE).is_file() {
            self.robot = Some(robot::FILE.into());
        }
        self
    }

    /// Composes the environment from the chosen files: the robot's file first, then the others. As in rcc, the robot.yaml of
    /// the current directory is merged too if no other one was chosen. None if no file was chosen.
    ///
    /// # Errors
    /// When a file cannot be used. The robot.yaml of the current directory is then ignored, with a note.
    pub fn compose(&self, env: &Env) -> Result<Option<Composed>, BlueprintError> {
        let (mut sources, mut notes) = (Vec::new(), Vec::new());
        let here = Path::new(robot::FILE);
        let robot = match &self.robot {
            Some(file) => {
                let robot = Robot::read(file)?;
                sources.push(Source::File(robot.environment_file()?));
                Some(robot)
            }
            None if self.conda.is_empty() && self.devdeps => return Err(BlueprintError::NoFile),
            None if self.conda.is_empty() => return Ok(None),
            None if here.is_file() => {
                match Robot::read(here).and_then(|robot| Ok((robot.environment_file()?, robot))) {
                    Ok((file, robot)) => {
                        sources.push(Source::File(file));
                        notes.push(format!("merged with ./{}", robot::FILE));
                        Some(robot)
                    }
                    Err(error) => {
                        notes.push(format!("./{} is ignored: {error}", robot::FILE));
                        None
                    }
                }
            }
            None => None,
        };
        sources.extend(self.conda.iter().cloned().map(Source::File));
        let channel = local_channel(&env.robocorp_home);
        let blueprint = Blueprint::compose(&sources, self.devdeps, channel.as_deref())?;
        Ok(Some(Composed { blueprint, robot, notes }))
    }
}
