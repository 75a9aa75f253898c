//! A space on disk: its names and paths, its state directory, and the files that rcc expects beside its directory.
//!
//! This layer chooses the catalog and the directory of a space, locks them, and writes what the next mount and rcc need to
//! know. It knows nothing of FUSE or of the content of files. Invariant: changes of the user are dropped only when the user
//! asks for that.

pub mod commit;
pub mod copy;
pub mod diff;
pub mod ended;
pub mod fork;
pub mod held;
pub mod home;
pub mod lock;
pub mod meta;
pub mod mountpoint;
pub mod path;
pub mod record;
pub mod remove;
pub mod reset;
pub mod run;
pub mod select;
pub mod state;
pub mod statistics;
pub mod upper;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::library::LibraryError;
use crate::library::catalogs::CatalogName;
use crate::sys::guarded::GuardedError;

/// Why a space cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// `state.json` is damaged, and the space has changes.
    #[error("{path}: {why}")]
    DamagedState {
        /// The file.
        path: PathBuf,
        /// The damage.
        why: String,
    },
    /// A newer version of holofs wrote the record, with a feature that this version must not ignore.
    #[error("{path} needs {feature:?}, which this version {}", if *may_read { "can only read" } else { "does not know" })]
    UnknownFeature {
        /// The file.
        path: PathBuf,
        /// The feature, or the version of the format.
        feature: String,
        /// This version may read the space.
        may_read: bool,
    },
    /// The space has changes that are based on another catalog.
    #[error("{identity}: its changes belong to {kept}, not to {wanted}")]
    OtherContent {
        /// The space.
        identity: String,
        /// What the changes are based on.
        kept: String,
        /// What the user asked for.
        wanted: String,
        /// The blueprint with which the changes can be used. None if that blueprint has other files now.
        blueprint: Option<String>,
    },
    /// There is such a space already, or something else in its place.
    #[error("{0}: there is such a space already")]
    Exists(PathBuf),
    /// `--ephemeral` would drop the changes of earlier mounts, too.
    #[error("{0}: it has changes from earlier mounts, which --ephemeral would drop")]
    EphemeralOverChanges(String),
    /// `--upper-dir`, and the changes of the space are kept in another place.
    #[error("{identity}: its changes are kept in {place}, not in {wanted}")]
    KeptElsewhere {
        /// The space.
        identity: String,
        /// The directory in which they are kept.
        place: PathBuf,
        /// The directory in which they should be kept.
        wanted: PathBuf,
    },
    /// The state directory would be inside the library, which holofs never writes.
    #[error("the state directory {state} is inside the library {library}")]
    StateInsideLibrary {
        /// The state directory.
        state: PathBuf,
        /// The library.
        library: PathBuf,
    },
    /// Another process has locked the space: it is mounted, or a mount starts or ends.
    #[error("{identity}: in use{}", by(*pid))]
    Busy {
        /// The space.
        identity: String,
        /// The process.
        pid: Option<u32>,
    },
    /// rcc's lock beside the space's directory did not become free in time.
    #[error("{path}: still locked after {} s{}", waited.as_secs_f64(), by(*pid))]
    LockTimeout {
        /// The lock file.
        path: PathBuf,
        /// The process that holds it.
        pid: Option<u32>,
        /// How long the mount waited.
        waited: Duration,
    },
    /// The typed name cannot be the name of a space's directory.
    #[error("{given}: {source}")]
    Name {
        /// What the user typed.
        given: String,
        /// The cause.
        source: crate::library::name::NameError,
    },
    /// The environment does not work in the typed directory.
    #[error("{given}: the environment can only be used in {base}")]
    BaseMismatch {
        /// What the user typed.
        given: PathBuf,
        /// The directory in which it works.
        base: PathBuf,
    },
    /// A fork needs a path of the length of the other space's.
    #[error("{path}: the path of a fork of this space must have {len} bytes")]
    OtherLength {
        /// The path.
        path: PathBuf,
        /// The length of the other space's path.
        len: usize,
    },
    /// An environment cannot be shown at this path.
    #[error("{path}: {why}")]
    Unusable {
        /// The path.
        path: PathBuf,
        /// What would not work there.
        why: &'static str,
    },
    /// The mountpoint cannot be mounted on.
    #[error("{path}: {problem}")]
    Mountpoint {
        /// The directory.
        path: PathBuf,
        /// The problem.
        problem: MountpointProblem,
    },
    /// No catalog fits, or several do.
    #[error("{why}")]
    NoCatalog {
        /// Why no catalog was chosen.
        why: String,
        /// The catalogs to choose from, each with the beginning of its blueprint, which may be empty.
        candidates: Vec<(CatalogName, String)>,
    },
    /// The library cannot be read.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A catalog cannot be read.
    #[error("catalog {path}: {why}")]
    BadCatalog {
        /// The catalog, or a space's `.meta`.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// A file or directory may have been put there by another user, or be changed by one.
    #[error(transparent)]
    Guarded(#[from] GuardedError),
    /// A file or directory could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Why a directory cannot be mounted on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MountpointProblem {
    /// The directory above the holotree does not exist.
    #[error("the directory above it, {0}, does not exist")]
    NoParent(PathBuf),
    /// It is a file or a symbolic link.
    #[error("it is not a directory")]
    NotADirectory,
    /// It belongs to another user, who could replace it, or unmount the space.
    #[error("it belongs to user {0}")]
    Owner(u32),
    /// rcc has restored an environment there.
    #[error("it is not empty: an environment was restored there")]
    Restored,
    /// A filesystem is mounted on it.
    #[error("{0} is mounted on it")]
    Mounted(String),
    /// It has entries, which a mount would hide.
    #[error("it is not empty")]
    NotEmpty,
    /// This user cannot create or read it.
    #[error("{0}")]
    Refused(String),
}

fn by(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" by process {pid}")).unwrap_or_default()
}

impl SpaceError {
    /// Makes an I/O error of this path, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> SpaceError + use<'_> {
        move |source| SpaceError::Io { path: path.to_owned(), source }
    }
}
