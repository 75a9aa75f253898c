//! Why there is no mount, or a mount did not end.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::choice::Near;
use super::holders::Holder;
use super::spaces::state::SpaceState;
use crate::blueprint::BlueprintError;
use crate::library::LibraryError;
use crate::library::index::find::FindError;
use crate::namespace;
use crate::record::RecordError;
use crate::restore::RestoreError;
use crate::settings::{SetBy, SettingsError};
use crate::space::reset::Refusal;
use crate::space::upper::UpperError;
use crate::space::{MountpointProblem, SpaceError};
use crate::sys::fuse_mount::MountError;
use crate::sys::{errno_of, plain, process};

/// Why a mount was not made, or did not end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library or its catalog cannot be used.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The space cannot be used.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// The files that describe the environment cannot be used.
    #[error(transparent)]
    Blueprint(#[from] BlueprintError),
    /// The library does not have the environment that files describe.
    #[error("{}: the library has no environment {blueprint}{}", library.display(), in_brackets(notes))]
    NoEnvironment {
        /// The hash of the environment.
        blueprint: String,
        /// The library.
        library: PathBuf,
        /// What the user should know about its files.
        notes: Vec<String>,
        /// The environments with the fewest differences.
        nearest: Vec<Near>,
    },
    /// `--build` with a library into which rcc does not build.
    #[error("{}: rcc builds into its own library only", .0.display())]
    NotRccs(PathBuf),
    /// `--build`, and rcc cannot be started.
    #[error("rcc cannot be started: {}", plain(.0))]
    NoRcc(io::Error),
    /// rcc could not build the environment.
    #[error("rcc could not build the environment ({0})")]
    NotBuilt(ExitStatus),
    /// `--cache-dir`, `--upper-dir` or `--link` is relative, and there is no current directory.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// `--verify never` with a library to which other users may write.
    #[error("{}: other users may write to this library, so its blobs must be verified", .0.display())]
    NotOurs(PathBuf),
    /// `--link` cannot be made.
    #[error("{path}: {why}")]
    Link {
        /// The path of the link.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// `mount` without arguments in a directory without a robot.yaml.
    #[error("no LIBRARY and SPACE were given, and there is no robot.yaml in this directory")]
    NothingChosen,
    /// Mounting or unmounting failed.
    #[error("{path}: {source}")]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// The cause.
        source: MountError,
    },
    /// The space is mounted with another environment.
    #[error("{path}: already mounted with blueprint {mounted}, not {wanted}")]
    OtherBlueprint {
        /// The mountpoint.
        path: PathBuf,
        /// What is mounted.
        mounted: String,
        /// What was asked for.
        wanted: String,
    },
    /// The space is mounted with other options.
    #[error("{path}: already mounted with other options than {}", differs.join(", "))]
    OtherOptions {
        /// The mountpoint.
        path: PathBuf,
        /// Each option that is not in force, with the value in force.
        differs: Vec<String>,
    },
    /// The files of an environment could not be searched for the path in which it was built.
    #[error("{path}: the environment cannot be shown there: {source}")]
    Unsearched {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: FindError,
    },
    /// Some files cannot name another path.
    #[error("{path}: {count} files would still name {from}")]
    Unpatchable {
        /// The path.
        path: PathBuf,
        /// The one in which the environment was built.
        from: String,
        /// How many files.
        count: u32,
        /// The first of them.
        named: Vec<String>,
    },
    /// `--strategy reflink` is impossible.
    #[error("{path} is {filesystem}: no reflink ({reason})")]
    NoReflink {
        /// The directory to which files would be cloned.
        path: PathBuf,
        /// The name of its filesystem.
        filesystem: String,
        /// The cause.
        reason: String,
    },
    /// A pattern of files that must not be hard links is not a pattern.
    #[error("{set_by}: {why}")]
    BadPattern {
        /// What set it.
        set_by: SetBy,
        /// The pattern, and what is wrong with it.
        why: String,
    },
    /// The space is mounted, so nothing can be restored there.
    #[error("{path}: the space is mounted{}", pid.map(|pid| format!(", by process {pid}")).unwrap_or_default())]
    MountedThere {
        /// The mountpoint.
        path: PathBuf,
        /// The space's name.
        space: String,
        /// The daemon.
        pid: Option<u32>,
    },
    /// The mount of an earlier program cannot go on.
    #[error("{0}")]
    CannotGoOn(String),
    /// The tree was not restored.
    #[error("{path}: {source}")]
    Restore {
        /// The space's directory.
        path: PathBuf,
        /// The cause.
        source: RestoreError,
    },
    /// `--io passthrough` is impossible.
    #[error("{path}: no passthrough here ({reason})")]
    NoPassthrough {
        /// The mountpoint.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// Processes use the mount.
    #[error("{path}: in use{}", users(.pids))]
    InUse {
        /// The mountpoint.
        path: PathBuf,
        /// The processes found.
        pids: Vec<u32>,
    },
    /// rcc deleted the space while it was mounted, and the mount is in use, so no new mount can replace it.
    #[error("{path}: rcc deleted this space, and its mount is in use{}", users(.pids))]
    DeletedInUse {
        /// The mountpoint.
        path: PathBuf,
        /// The processes found.
        pids: Vec<u32>,
    },
    /// The environment is still being recorded.
    #[error("{catalog}: still being recorded after {} s: {missing} of its blobs are missing{}", waited.as_secs_f64(), at_work(*pid))]
    BeingRecorded {
        /// The catalog.
        catalog: PathBuf,
        /// How many blobs are missing; 1 if the catalog is incomplete.
        missing: u32,
        /// The process that holds rcc's lock.
        pid: Option<u32>,
        /// How long the mount waited.
        waited: Duration,
    },
    /// The mount has bind mounts.
    #[error("{path}: in use: it is also mounted on {}", joined(.places.iter().map(|place| place.display())))]
    MountedElsewhere {
        /// The mountpoint.
        path: PathBuf,
        /// The mountpoints of the bind mounts.
        places: Vec<PathBuf>,
    },
    /// The mount is gone from this mount namespace, but its daemon still runs.
    #[error("{path}: unmounted here, but {}", lives_on(*.daemon, .holders))]
    StillServed {
        /// Where it was mounted.
        path: PathBuf,
        /// The daemon's process.
        daemon: u32,
        /// Processes that have the mount in another mount namespace.
        holders: Vec<Holder>,
    },
    /// There is no such mount option.
    #[error("-o {0}: no such mount option")]
    MountOption(String),
    /// The profile to unpack by cannot be read.
    #[error("{path}: {}", plain(.source))]
    NoProfile {
        /// The profile.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No earlier mount has recorded which files it read.
    #[error("{path}: {source}")]
    NeverRead {
        /// The profile that such a mount would have written.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Two options, of which one excludes the other.
    #[error("{0}")]
    Contradiction(String),
    /// A directory cannot be probed.
    #[error("{path}: {why}")]
    NotProbed {
        /// The directory.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The directory of `--upper-dir` cannot be used.
    #[error("{}: {why}", path.display())]
    UpperDir {
        /// The directory.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// No space has this name, identity or path.
    #[error("{given}: no such space{}", identity.as_ref().map(|id| format!(" ({id})")).unwrap_or_default())]
    NoSpace {
        /// The space as it was typed.
        given: String,
        /// The name of the directory that it would have. None for a path that cannot be that of a space.
        identity: Option<String>,
    },
    /// rcc converted the space to another environment, so its changes do not tell what it holds.
    #[error("{identity}: rcc converted it to blueprint {blueprint}")]
    Converted {
        /// The space.
        identity: String,
        /// The blueprint of what it holds.
        blueprint: String,
    },
    /// The space is mounted read-only.
    #[error("{0}: it is mounted read-only")]
    MountedReadOnly(PathBuf),
    /// There was no instant at which the space could be copied.
    #[error("{0}: programs keep writing to it")]
    KeepsChanging(PathBuf),
    /// The space has no upper, so nobody knows what was changed in it.
    #[error("{given}: {why}")]
    NoUpper {
        /// The space as it was typed.
        given: String,
        /// How the space came to be.
        why: &'static str,
    },
    /// The library no longer has the catalog that the changes were made over, and the cache does not have its index.
    #[error("{library}: it no longer has blueprint {blueprint} as it was when the space was made")]
    CatalogGone {
        /// The library.
        library: String,
        /// The blueprint.
        blueprint: String,
    },
    /// Something of another user is mounted on the space's directory.
    #[error("{path}: user {user} has mounted something on it")]
    OthersMount {
        /// The directory.
        path: PathBuf,
        /// The user's id.
        user: u32,
    },
    /// The space is not mounted.
    #[error("{0}: not mounted")]
    NotMounted(PathBuf),
    /// The mount to end is another user's.
    #[error("{path}: mounted by user {user}")]
    MountedByOther {
        /// The mountpoint.
        path: PathBuf,
        /// The user's id.
        user: u32,
    },
    /// The changes to drop are in another home.
    #[error("{0}: its changes are not in this home")]
    OtherHome(String),
    /// The changes to drop are still served.
    #[error("{0}: its daemon has not ended yet, so the changes stay")]
    ChangesInUse(String),
    /// The upper could not be opened.
    #[error("{path}: {source}")]
    Upper {
        /// The space's state directory.
        path: PathBuf,
        /// The cause.
        source: namespace::types::Error,
    },
    /// A system call failed.
    #[error("{path}: {call}: {source}")]
    Os {
        /// The file or directory.
        path: PathBuf,
        /// The call.
        call: &'static str,
        /// Why it failed.
        source: Errno,
    },
    /// The daemon does not answer.
    #[error("{path}: {why}")]
    NoAnswer {
        /// The mountpoint.
        path: PathBuf,
        /// Which process does not answer, and what it is doing.
        why: String,
    },
    /// The environment has no Python.
    #[error("{}: the environment has no Python", .0.display())]
    NoPython(PathBuf),
    /// Python did not compile.
    #[error("{path}: {why}")]
    Python {
        /// The program.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The space has nothing that could be recorded.
    #[error("{path}: there is nothing to record ({state})")]
    NotCommittable {
        /// The space's directory.
        path: PathBuf,
        /// Its state.
        state: SpaceState,
    },
    /// The blueprint of a commit is the one that the space is based on.
    #[error("{space}: the space is based on this blueprint, and a commit would replace that environment")]
    OwnBlueprint {
        /// The space.
        space: String,
    },
    /// A process changed the space while it was read, again after each attempt.
    #[error("{path}: changed while the space was read")]
    ChangedMeanwhile {
        /// The changed file, or the space's directory.
        path: PathBuf,
    },
    /// The changes of a space cannot be read.
    #[error("{path}: {source}")]
    Changes {
        /// The upper.
        path: PathBuf,
        /// The cause.
        source: UpperError,
    },
    /// The library lacks blobs of the space's environment.
    #[error("{library}: {missing} blobs of the environment are missing")]
    MissingBlobs {
        /// The library.
        library: PathBuf,
        /// How many.
        missing: u32,
    },
    /// The space could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No daemon listens on the control socket of a mounted space.
    #[error("{0}: its daemon has no control socket")]
    NoControl(PathBuf),
    /// The daemon refused a request.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// A limit of the process is too low.
    #[error("{0}")]
    Limits(String),
    /// The FUSE session ended with an error.
    #[error("the FUSE session failed: {0}")]
    Fuse(io::Error),
    /// The daemon died without an answer.
    #[error("the daemon ended before the mount was ready; its log is {0}")]
    DaemonDied(PathBuf),
    /// The daemon failed, and sent this answer.
    #[error("{}", .0.what)]
    Daemon(Failure),
}

/// An error as the command line shows it. It can be sent through the daemon's pipe, which an [`Error`] cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed, and why, in one line.
    pub what: String,
    /// What to try.
    pub fix: Option<String>,
    /// The candidates to choose from, one line each.
    #[serde(default)]
    pub choices: Vec<String>,
    /// The exit code.
    pub code: u8,
    /// A restore would do what the mount could not do; see [`Error::restorable`].
    #[serde(default)]
    pub restorable: bool,
}

/// Why a daemon did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// The request is of another version.
    #[error("its daemon is of another version of holofs")]
    Version,
    /// The request cannot be parsed.
    #[error("its daemon does not understand the request: {0}")]
    NotUnderstood(String),
    /// The peer is another user.
    #[error("its daemon answers only its own user")]
    Peer,
    /// A change that is in progress takes too long.
    #[error("a change of the space is in progress and does not end")]
    Changing,
    /// The mount cannot go on with another program.
    #[error("not upgraded: {0}")]
    Program(String),
    /// The paths cannot be reset.
    #[error("{0}")]
    Reset(Refusal),
    /// The request failed.
    #[error("{0}")]
    Failed(String),
}

/// Converts an error to what the command line shows.
pub type Describe = fn(&Error) -> Failure;

fn at_work(pid: Option<u32>) -> String {
    pid.map(|pid| format!("; process {pid} records it")).unwrap_or_default()
}

fn users(pids: &[u32]) -> String {
    if pids.is_empty() { String::new() } else { format!(" by process {}", joined(pids.iter())) }
}

fn joined(list: impl Iterator<Item = impl ToString>) -> String {
    list.map(|entry| entry.to_string()).collect::<Vec<_>>().join(", ")
}

fn lives_on(daemon: u32, holders: &[Holder]) -> String {
    if holders.is_empty() {
        let stopped = if process::condition(daemon) == process::Condition::Stopped {
            ", which is stopped,"
        } else {
            ""
        };
        return format!("its daemon, process {daemon},{stopped} has not ended").replace(",,", ",");
    }
    format!(
        "still mounted in the mount namespace of process {}; its daemon is process {daemon}",
        joined(holders.iter())
    )
}

impl From<crate::sys::thread::Panicked> for Error {
    fn from(panicked: crate::sys::thread::Panicked) -> Self {
        LibraryError::from(panicked).into()
    }
}

impl Error {
    /// Whether a restore does not need what the mount lacked: there is no FUSE here, or the place has a restored tree.
    #[must_use]
    pub fn restorable(&self) -> bool {
        match self {
            Self::Mount { source, .. } => source.means_no_fuse(),
            Self::Space(SpaceError::Mountpoint { problem, .. }) => *problem == MountpointProblem::Restored,
            Self::Daemon(failure) => failure.restorable,
            _ => false,
        }
    }

    /// Converts the error of a system call on a path, for `map_err`.
    pub(super) fn os<E: Into<io::Error>>(
        path: impl Into<PathBuf>,
        call: &'static str,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |error| Self::Os { path, call, source: errno_of(&error.into()) }
    }

    /// `daemon` is the daemon's process, or the one that starts to be it. None if `run.json` does not name it.
    pub(super) fn no_answer(path: PathBuf, daemon: Option<u32>) -> Self {
        let why = match daemon {
            Some(pid) => format!("process {pid} does not answer: {}", process::condition(pid)),
            None => "its daemon does not answer, and run.json does not name its process".to_owned(),
        };
        Self::NoAnswer { path, why }
    }
}

fn in_brackets(notes: &[String]) -> String {
    notes.iter().map(|note| format!(" ({note})")).collect()
}
