//! The values that a user can choose from.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

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

/// What is unpacked before it is read (`--prefetch`). In JSON: null, `own`, or the path of a profile.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Option<PathBuf>", into = "Option<PathBuf>")]
pub enum Prefetch {
    /// None.
    #[default]
    No,
    /// The files that earlier mounts of the environment read.
    Own,
    /// The files in this profile.
    From(PathBuf),
}

impl From<Option<PathBuf>> for Prefetch {
    fn from(name: Option<PathBuf>) -> Self {
        match name {
            None => Self::No,
            Some(name) if name == Path::new(OWN) => Self::Own,
            Some(path) => Self::From(path),
        }
    }
}

impl From<Prefetch> for Option<PathBuf> {
    fn from(prefetch: Prefetch) -> Self {
        match prefetch {
            Prefetch::No => None,
            Prefetch::Own => Some(OWN.into()),
            Prefetch::From(path) => Some(path),
        }
    }
}

/// The JSON word of [`Prefetch::Own`]. Paths of profiles are absolute.
const OWN: &str = "own";

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
