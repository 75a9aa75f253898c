//! What an environment is made from: robot.yaml, conda.yaml and package.yaml, and rcc's name for the result.
//!
//! rcc composes one text from these files, the blueprint. The hash of this text is the name of the environment in a
//! library. holofs composes the same text to the byte, so that it finds what rcc recorded, and rcc what holofs recorded.
//!
//! The files are hostile input: they are regular files of limited size, the nesting of values is limited, and what is wrong
//! is an error with file and line. This layer knows no library and no space.

mod dependency;
mod emit;
mod environment;
pub mod hash;
mod read;
pub mod robot;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::sys::guarded::GuardedError;
use crate::yaml::BadFile;

use environment::Environment;
pub use read::MAX_FILE;

/// A composed environment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blueprint {
    /// rcc's text.
    pub text: String,
    /// The hash of the text, by which libraries name the environment.
    pub hash: String,
    /// The hashes of its layers: conda's dependencies alone, with pip's, with the commands that run after the installation.
    pub layers: [String; 3],
    /// What rcc leaves out without a word.
    pub notes: Vec<String>,
    environment: Environment,
}

/// A file that describes an environment: conda.yaml or package.yaml. It is a package.yaml if it has this name, in upper or
/// lower case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The file at this path.
    File(PathBuf),
    /// A text, and the path that stands for it.
    Text(PathBuf, Vec<u8>),
}

impl Blueprint {
    /// Composes an environment from files, merged from left to right. `local_channel` is the channel on this machine that
    /// rcc puts in front of those of a conda.yaml; see [`local_channel`].
    ///
    /// # Errors
    /// When there is no file, a file cannot be used, or two files want different versions of something.
    pub fn compose(
        sources: &[Source],
        devdeps: bool,
        local_channel: Option<&Path>,
    ) -> Result<Self, BlueprintError> {
        let channel = local_channel.map(Path::to_string_lossy);
        let mut merged: Option<Environment> = None;
        for source in sources {
            let read = source.environment(devdeps, channel.as_deref())?;
            merged = Some(match merged {
                None => read,
                Some(left) => left.merge(read).map_err(|conflict| BlueprintError::Conflict {
                    path: source.path().to_owned(),
                    known: conflict.0,
                    added: conflict.1,
                })?,
            });
        }
        merged.map(Self::of).ok_or(BlueprintError::NoFile)
    }

    fn of(mut environment: Environment) -> Self {
        let text = environment.text();
        let hash = hash::sipit_hex(text.as_bytes());
        let layers = environment.layers().map(|layer| hash::sipit_hex(layer.as_bytes()));
        let notes = std::mem::take(&mut environment.notes);
        Self { text, hash, layers, notes, environment }
    }

    /// What this environment has and an environment with another text has not, and the other way round. None when the text
    /// is not that of an environment.
    #[must_use]
    pub fn differences(&self, text: &[u8]) -> Option<Differences> {
        let document = crate::yaml::Document::parse(text).ok()?;
        let root = document.as_ref().and_then(|document| document.root());
        let other = Environment::from_conda(root, None).ok()?.parts();
        let mine = self.environment.parts();
        let without = |all: &[String], others: &[String]| {
            let others: BTreeSet<&String> = others.iter().collect();
            all.iter().filter(|part| !others.contains(part)).cloned().collect()
        };
        Some(Differences { missing: without(&mine, &other), additional: without(&other, &mine) })
    }
}

/// How another environment differs from the wanted one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Differences {
    /// What the other one lacks.
    pub missing: Vec<String>,
    /// What only the other one has.
    pub additional: Vec<String>,
}

impl Source {
    fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Text(path, _) => path,
        }
    }

    fn environment(&self, devdeps: bool, channel: Option<&str>) -> Result<Environment, BlueprintError> {
        let read;
        let (path, bytes) = match self {
            Self::File(path) => {
                read = read::bytes(path)?;
                (path, &read)
            }
            Self::Text(path, bytes) => (path, bytes),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        // rcc takes a robot.yaml as an environment without any dependency.
        if name == robot::FILE {
            return Err(BlueprintError::IsRobot { path: path.clone() });
        }
        let is_package = name == "package.yaml";
        if devdeps && !is_package {
            return Err(BlueprintError::Devdeps { path: path.clone() });
        }
        let document = read::document(path, bytes)?;
        let root = document.as_ref().and_then(|document| document.root());
        let environment = if is_package {
            Environment::from_package(root, devdeps)
        } else {
            Environment::from_conda(root, channel)
        };
        let mut environment = environment.map_err(BadFile::at(path))?;
        for note in &mut environment.notes {
            *note = format!("{}: {note}", path.display());
        }
        Ok(environment)
    }
}

/// The conda channel in rcc's home, if it exists. rcc puts it in front of the channels of every conda.yaml.
#[must_use]
pub fn local_channel(robocorp_home: &Path) -> Option<PathBuf> {
    let channel = robocorp_home.join("channel");
    channel.join("channeldata.json").metadata().is_ok_and(|data| !data.is_dir()).then_some(channel)
}

/// Why an environment cannot be composed.
#[derive(Debug, thiserror::Error)]
pub enum BlueprintError {
    /// A file cannot be read, is not a regular file, or is too large.
    #[error(transparent)]
    Unreadable(#[from] GuardedError),
    /// A file is not what it should be.
    #[error(transparent)]
    Bad(#[from] BadFile),
    /// Two files want different versions of something.
    #[error("{}: wont choose between dependencies: {known} vs. {added}", path.display())]
    Conflict {
        /// The file that was merged.
        path: PathBuf,
        /// What the files before it want.
        known: String,
        /// What this file wants.
        added: String,
    },
    /// `--devdeps` with a file that has no dev-dependencies.
    #[error("{}: --devdeps is only for a package.yaml", path.display())]
    Devdeps {
        /// The file.
        path: PathBuf,
    },
    /// A robot.yaml in the place of a conda.yaml.
    #[error("{}: it describes a robot, not an environment", path.display())]
    IsRobot {
        /// The file.
        path: PathBuf,
    },
    /// No file describes the environment.
    #[error("no file describes the environment")]
    NoFile,
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

#[cfg(test)]
mod tests;
