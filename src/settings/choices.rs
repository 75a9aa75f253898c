//! The values that a user can choose from.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The product whose rcc is meant (`--product`): it decides the home and the shared holotree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Product {
    /// rcc of Robocorp.
    #[default]
    Robocorp,
    /// rcc of Sema4.ai.
    #[value(name = "sema4ai")]
    Sema4ai,
}

impl Product {
    /// The variable with the home.
    #[must_use]
    pub fn home_variable(self) -> &'static str {
        match self {
            Self::Robocorp => "ROBOCORP_HOME",
            Self::Sema4ai => "SEMA4AI_HOME",
        }
    }

    /// The name of the home in the user's home, if the variable is not set.
    #[must_use]
    pub fn home_name(self) -> &'static str {
        match self {
            Self::Robocorp => ".robocorp",
            Self::Sema4ai => ".sema4ai",
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// How private copies are made (`--strategy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Reflink where the filesystem supports it, else the cheapest copy.
    #[default]
    Smart,
    /// Reflink, or fail.
    Reflink,
    /// Plain copies only.
    Copy,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// How a restore makes files (`restore --strategy`, and the variables and files that set a strategy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RestoreStrategy {
    /// Reflink large files where the filesystem supports it, and copy the others.
    #[default]
    Smart,
    /// Reflink every file that is larger than a block, or fail.
    Reflink,
    /// Hard links to read-only copies that all spaces share.
    Hardlink,
    /// Plain copies only.
    Copy,
}

impl RestoreStrategy {
    /// The strategy of a mount with this setting. None for [`RestoreStrategy::Hardlink`], which only restores can use.
    #[must_use]
    pub fn of_mount(self) -> Option<Strategy> {
        match self {
            Self::Smart => Some(Strategy::Smart),
            Self::Reflink => Some(Strategy::Reflink),
            Self::Copy => Some(Strategy::Copy),
            Self::Hardlink => None,
        }
    }
}

impl From<Strategy> for RestoreStrategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Smart => Self::Smart,
            Strategy::Reflink => Self::Reflink,
            Strategy::Copy => Self::Copy,
        }
    }
}

impl fmt::Display for RestoreStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What a mount does if it is not possible here (`--fallback`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Fallback {
    /// It fails.
    #[default]
    None,
    /// It restores the environment as plain files, if there is no FUSE or such a restore is there already.
    Restore,
}

/// When the content of a blob is compared with its digest (`--verify`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// When its copy in the cache is made, and again in a later boot.
    #[default]
    Once,
    /// When a mount first uses it, too.
    Always,
    /// By no mount with this setting. Other mounts verify the copies that it makes.
    Never,
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Who reads and writes files: the daemon, or the kernel (`--io`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IoMode {
    /// The best mode for most uses, which is [`IoMode::Cached`]: see `docs/PERFORMANCE.md`.
    #[default]
    Auto,
    /// The kernel opens files without a request to the daemon. It reads pages from the daemon and caches them per mount.
    Cached,
    /// The kernel sends a request for each open, and then reads, writes and maps the backing file by itself. All mounts
    /// share the cached pages of a backing file.
    Passthrough,
}

impl IoMode {
    /// Whether the kernel gets backing files.
    #[must_use]
    pub fn is_passthrough(self) -> bool {
        self == Self::Passthrough
    }

    /// The mode that a mount with this setting has: never [`IoMode::Auto`].
    #[must_use]
    pub fn in_force(self) -> Self {
        if self == Self::Auto { Self::Cached } else { self }
    }
}

impl fmt::Display for IoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What is unpacked before it is read (`--prefetch`). In JSON: `own`, or the path of a profile.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    /// The files that earlier mounts of the environment read.
    Own,
    /// The files in this profile. `mount` makes its path absolute.
    #[serde(untagged)]
    From(PathBuf),
}

impl From<OsString> for Prefetch {
    /// As typed: nothing, or the path of a profile.
    fn from(typed: OsString) -> Self {
        if typed.is_empty() { Self::Own } else { Self::From(typed.into()) }
    }
}

/// The mount helper to start, when a mount needs one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum MountHelper {
    /// The helper beside the program, or below /usr.
    #[default]
    Installed,
    /// None.
    Off,
    /// The program at this path.
    At(PathBuf),
}

impl MountHelper {
    /// The variable with the path of the helper.
    pub const VARIABLE: &str = "HOLOFS_MOUNT_HELPER";

    /// The helper at the path in the variable; an empty value turns the helper off.
    pub(super) fn named(path: OsString) -> Self {
        if path.is_empty() { Self::Off } else { Self::At(path.into()) }
    }
}

impl fmt::Display for MountHelper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed => f.write_str("installed"),
            Self::Off => f.write_str("off"),
            Self::At(path) => write!(f, "{}", path.display()),
        }
    }
}
