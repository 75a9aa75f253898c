//! A space on disk: its names and paths, its own state, and what rcc expects beside its directory.
//!
//! It knows nothing of FUSE or of what a file holds: it answers which catalog and which directory are meant, who
//! may use them now, and what is left there for rcc and for the next mount. Invariant: the user's changes are
//! never dropped unless he asked for it by name.

pub mod aside;
pub mod held;
pub mod home;
pub mod lock;
pub mod meta;
pub mod mountpoint;
pub mod path;
pub mod record;
pub mod run;
pub mod select;
pub mod state;
pub mod upper;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::library::catalogs::CatalogName;
use crate::sys::guarded::GuardedError;

/// What can be wrong with a space.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// `state.json` cannot be read as what it should be, and there are changes that belong to it.
    #[error("{path}: {why}")]
    DamagedState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The state was written by a newer holofs that keeps something this one must not ignore.
    #[error("{path} needs {feature:?}, which this version does not know")]
    UnknownFeature {
        /// The file.
        path: PathBuf,
        /// The feature's name, or the format's version.
        feature: String,
    },
    /// The state was written by a newer holofs that keeps something this one must not write to.
    #[error("{path} needs {feature:?}, without which it can only be read")]
    ReadOnlyFeature {
        /// The file.
        path: PathBuf,
        /// The feature's name.
        feature: String,
    },
    /// The space has changes that were made over another catalog.
    #[error("{identity}: its changes belong to {kept}, not to {wanted}")]
    OtherContent {
        /// The space.
        identity: String,
        /// What the changes were made over.
        kept: String,
        /// What was asked for.
        wanted: String,
        /// The blueprint to ask for to keep the changes; None when that blueprint has another content now.
        blueprint: Option<String>,
    },
    /// `--ephemeral` would drop changes of earlier mounts with its own.
    #[error("{identity}: it has changes from earlier mounts, which --ephemeral would drop")]
    EphemeralOverChanges {
        /// The space.
        identity: String,
    },
    /// The space's state would lie inside of the library, which is never written.
    #[error("the state directory {state} is inside the library {library}")]
    StateInsideLibrary {
        /// Where the state would be.
        state: PathBuf,
        /// The library.
        library: PathBuf,
    },
    /// Another process has the space mounted, or is about to.
    #[error("{identity}: it is in use{}", by(*pid))]
    Busy {
        /// The space.
        identity: String,
        /// That process.
        pid: Option<u32>,
    },
    /// The lock beside the space's directory was not to be had in time.
    #[error("{path}: still locked after {} s{}", waited.as_secs_f64(), by(*pid))]
    LockTimeout {
        /// The lock file.
        path: PathBuf,
        /// Its holder.
        pid: Option<u32>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The name given cannot be the name of a space's directory.
    #[error("{given}: {source}")]
    Name {
        /// What was given.
        given: String,
        /// Why.
        source: crate::library::name::NameError,
    },
    /// The path given is not where the environment can be.
    #[error("{given}: the environment can only be used in {base}")]
    BaseMismatch {
        /// What was given.
        given: PathBuf,
        /// The only directory that fits.
        base: PathBuf,
    },
    /// The catalog names a directory that is not its library's, and nobody typed it.
    #[error("catalog {catalog}: its spaces belong in {base:?}, which is not a directory of this library")]
    ForeignBase {
        /// The catalog.
        catalog: PathBuf,
        /// The directory that it names.
        base: PathBuf,
    },
    /// The mountpoint cannot be mounted on.
    #[error("{path}: {problem}")]
    Mountpoint {
        /// The directory.
        path: PathBuf,
        /// Why not.
        problem: MountpointProblem,
    },
    /// No catalog fits, or several do.
    #[error("{why}")]
    NoCatalog {
        /// Why none was chosen.
        why: String,
        /// What there is to choose from.
        candidates: Vec<CatalogName>,
    },
    /// A catalog's header could not be read.
    #[error("catalog {path}: {why}")]
    BadCatalog {
        /// The catalog, or a space's `.meta`.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A file or directory that somebody else could have put there, or could change.
    #[error(transparent)]
    Guarded(#[from] GuardedError),
    /// A file or directory could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a directory cannot be mounted on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MountpointProblem {
    /// The directory above the space's base does not exist.
    #[error("the directory above it, {0}, does not exist")]
    NoParent(PathBuf),
    /// It is a file or a link.
    #[error("it is not a directory")]
    NotADirectory,
    /// Another user's, who could exchange it or unmount what is on it.
    #[error("it belongs to user {0}")]
    Owner(u32),
    /// rcc restored an environment there.
    #[error("it is not empty: rcc restored the space there")]
    Restored,
    /// Something is mounted on it.
    #[error("{0} is mounted on it")]
    Mounted(String),
    /// It has entries of its own, which a mount would hide.
    #[error("it is not empty")]
    NotEmpty,
    /// It cannot be made or read by this user.
    #[error("{0}")]
    Refused(String),
}

fn by(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" by process {pid}")).unwrap_or_default()
}

impl SpaceError {
    /// For `map_err` on an I/O call about a path.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> SpaceError + use<'_> {
        move |source| SpaceError::Io { path: path.to_owned(), source }
    }
}
