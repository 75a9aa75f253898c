//! Why there is no mount, or a mount did not end.

use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::holders::Holder;
use crate::library::LibraryError;
use crate::library::catalogs::CatalogName;
use crate::namespace;
use crate::space::SpaceError;
use crate::sys::fuse_mount::MountError;
use crate::sys::{plain, process};

/// Why there is no mount, or it did not end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library or its catalog.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The space on disk.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// Mounting or unmounting itself.
    #[error("{path}: {source}")]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// Why.
        source: MountError,
    },
    /// The space is mounted, with another environment.
    #[error("{path}: already mounted with blueprint {mounted}, not {wanted}")]
    OtherBlueprint {
        /// The mountpoint.
        path: PathBuf,
        /// What is mounted.
        mounted: String,
        /// What was asked for.
        wanted: String,
    },
    /// The space is mounted, and served otherwise than asked for.
    #[error("{path}: already mounted, otherwise than with {}", differs.join(", "))]
    OtherOptions {
        /// The mountpoint.
        path: PathBuf,
        /// In what it differs.
        differs: Vec<String>,
    },
    /// `--strategy reflink` where it cannot be.
    #[error("{path}: no reflink here ({reason})")]
    NoReflink {
        /// The space's state directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// `--io passthrough` where it cannot be.
    #[error("{path}: no passthrough here ({reason})")]
    NoPassthrough {
        /// The mountpoint.
        path: PathBuf,
        /// Why not.
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
    /// rcc deleted the space while it was mounted, and the mount cannot be ended to make a new one.
    #[error("{path}: rcc deleted this space, and its mount is in use{}", users(.pids))]
    DeletedInUse {
        /// The mountpoint.
        path: PathBuf,
        /// The processes found.
        pids: Vec<u32>,
    },
    /// The environment is being recorded, and not all of it is in the library yet.
    #[error("{catalog}: still being recorded after {} s: {missing} of its blobs are missing{}", waited.as_secs_f64(), at_work(*pid))]
    BeingRecorded {
        /// The catalog.
        catalog: PathBuf,
        /// How many are to come; 1 when the catalog itself is not whole.
        missing: u32,
        /// Who holds rcc's lock.
        pid: Option<u32>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The mount can be seen at further places, by bind mounts.
    #[error("{path}: in use: it is mounted on {} as well", list(.places))]
    MountedElsewhere {
        /// The mountpoint.
        path: PathBuf,
        /// The other places.
        places: Vec<PathBuf>,
    },
    /// The mount is gone from here, and its daemon is not.
    #[error("{path}: not mounted here any more, but {}", lives_on(*.daemon, .holders))]
    StillServed {
        /// Where it was mounted.
        path: PathBuf,
        /// The daemon.
        daemon: u32,
        /// Processes that have the mount in another mount namespace.
        holders: Vec<Holder>,
    },
    /// Nothing of ours is mounted there.
    #[error("{0}: not mounted")]
    NotMounted(PathBuf),
    /// No catalog fits the request, or several do.
    #[error("{why}")]
    NoCatalog {
        /// Why none was chosen.
        why: String,
        /// The catalogs to choose from, each with the beginning of its blueprint.
        candidates: Vec<(CatalogName, String)>,
    },
    /// There is no such mount option.
    #[error("-o {0}: no such mount option")]
    MountOption(String),
    /// The profile to unpack by cannot be read.
    #[error("{path}: {}", plain(.source))]
    NoProfile {
        /// The profile.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No space has this name, identity or path.
    #[error("{given}: no such space ({identity})")]
    NoSpace {
        /// The space as it was typed.
        given: String,
        /// The name of the directory that it would have.
        identity: String,
    },
    /// Something of another user is mounted on the space's directory.
    #[error("{path}: user {user} has mounted something on it")]
    OthersMount {
        /// The directory.
        path: PathBuf,
        /// The user's id.
        user: u32,
    },
    /// The mount to end is another user's.
    #[error("{path}: mounted by user {user}")]
    MountedByOther {
        /// The mountpoint.
        path: PathBuf,
        /// The user's id.
        user: u32,
    },
    /// The changes to drop are in another home.
    #[error("{given}: its changes are not in this home")]
    OtherHome {
        /// The space as it was typed.
        given: String,
    },
    /// The changes to drop are still served.
    #[error("{identity}: its daemon has not ended yet, so the changes stay")]
    ChangesInUse {
        /// The name of the space's directory.
        identity: String,
    },
    /// The upper could not be opened.
    #[error("{path}: {source}")]
    Upper {
        /// The space's state directory.
        path: PathBuf,
        /// Why.
        source: namespace::error::Error,
    },
    /// A call failed.
    #[error("{path}: {call}: {source}")]
    Os {
        /// What it was about.
        path: PathBuf,
        /// The call.
        call: &'static str,
        /// Its answer.
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
    /// A limit of the process leaves too little.
    #[error("{0}")]
    Limits(String),
    /// The FUSE session ended with an error.
    #[error("the FUSE session failed: {0}")]
    Fuse(std::io::Error),
    /// The daemon died before it could say why.
    #[error("the daemon ended before the mount was ready; its log is {0}")]
    DaemonDied(PathBuf),
    /// What the daemon said before it ended.
    #[error("{}", .0.what)]
    Daemon(Failure),
}

/// A failure in the words and with the exit code of the command line, which is the one to choose them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed, and why: one line.
    pub what: String,
    /// What to try.
    pub fix: Option<String>,
    /// What there is to choose from, one line each.
    #[serde(default)]
    pub choices: Vec<String>,
    /// The exit code.
    pub code: u8,
}

/// Puts an error into words: the daemon has to, since only words pass through the pipe.
pub type Describe = fn(&Error) -> Failure;

fn at_work(pid: Option<u32>) -> String {
    pid.map(|pid| format!(", and process {pid} is at work")).unwrap_or_default()
}

fn users(pids: &[u32]) -> String {
    if pids.is_empty() {
        return String::new();
    }
    let list: Vec<String> = pids.iter().map(u32::to_string).collect();
    format!(" by process {}", list.join(", "))
}

fn list(places: &[PathBuf]) -> String {
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    places.join(", ")
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
    let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
    format!(
        "another mount namespace has it, of process {}; its daemon is process {daemon}",
        holders.join(", ")
    )
}

impl Error {
    /// `daemon` is the daemon's process, or the one that starts to be it. None if `run.json` does not name it.
    pub(super) fn no_answer(path: PathBuf, daemon: Option<u32>) -> Self {
        let why = match daemon {
            Some(pid) => format!("process {pid} does not answer: {}", process::condition(pid)),
            None => "its daemon does not answer, and run.json does not name its process".to_owned(),
        };
        Self::NoAnswer { path, why }
    }
}
