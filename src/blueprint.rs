//! What an environment is made from: robot.yaml, conda.yaml and package.yaml, and rcc's name for the result.
//!
//! rcc composes one text from these files, the blueprint. The hash of this text is the name of the environment in a
//! library. holofs composes the same text to the byte, so that it finds what rcc recorded, and rcc what holofs recorded.
//!
//! The files are hostile input: they are regular files of limited size, the nesting of values is limited, and what is wrong
//! is an error with file and line. This layer knows no library and no space.

pub mod hash;
mod read;
pub mod robot;

use std::path::PathBuf;

use crate::sys::guarded::GuardedError;
use crate::yaml::YamlError;

/// Why an environment cannot be composed.
#[derive(Debug, thiserror::Error)]
pub enum BlueprintError {
    /// A file cannot be read, is not a regular file, or is too large.
    #[error(transparent)]
    Unreadable(#[from] GuardedError),
    /// A file is not what it should be.
    #[error("{}:{}: {}", path.display(), problem.line, problem.why)]
    Bad {
        /// The file.
        path: PathBuf,
        /// The line, and what is wrong there.
        problem: YamlError,
    },
    /// A robot.yaml lacks what every robot must have.
    #[error("{}: {why}", path.display())]
    NoRobot {
        /// The robot.yaml.
        path: PathBuf,
        /// What it lacks.
        why: String,
    },
    /// A robot.yaml names no environment that exists.
    #[error("{}: neither environmentConfigs nor condaConfigFile names a file for this platform", path.display())]
    NoEnvironment {
        /// The robot.yaml.
        path: PathBuf,
    },
    /// A robot has no task of this name, or no name was given and it has not exactly one task.
    #[error("{}: {}", path.display(), no_task(name.as_deref()))]
    NoTask {
        /// The robot.yaml.
        path: PathBuf,
        /// The name that was given.
        name: Option<String>,
        /// The names of its tasks.
        tasks: Vec<String>,
    },
}

fn no_task(name: Option<&str>) -> String {
    match name {
        Some(name) => format!("the robot has no task {name:?}"),
        None => "the robot does not have exactly one task".to_owned(),
    }
}
