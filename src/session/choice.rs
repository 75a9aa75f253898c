//! The environment, as the user chose it: by its hash, by a robot, or by files that describe it.

use std::path::PathBuf;

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

impl Choice {
    /// Whether files describe the environment.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.robot.is_some() || !self.conda.is_empty()
    }
}
