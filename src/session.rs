//! A mount's life: from the user's wish to a daemon that serves it, and to its end.
//!
//! Parsing what was typed is `cli`'s, where things lie on disk is `space`'s, answering the kernel is `fuse`'s.
//! Invariants: the caller of [`mount`] gets its answer when the first request would be answered, and the answer is
//! the truth; a live mount is found in mountinfo, never by a remembered path, since a mount can move with its
//! directory; whatever way a mount ends, the space's changes stay.

mod arrival;
mod asked;
pub mod claim;
mod daemon;
mod end;
pub mod helper;
mod holders;
pub mod plan;
mod prefetch;
pub mod registry;
mod serve;
mod undo;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::library::LibraryError;
use crate::library::index::Index;
use crate::materialize::ReflinkProbe;
use crate::namespace;
use crate::settings::Strategy;
use crate::space::held::Held;
use crate::space::run::{RunInfo, read_run};
use crate::space::state::read_state;
use crate::space::{SpaceError, live};
use crate::sys::fuse_mount::{self, Liveness, MountError};
use crate::sys::mountinfo::MountEntry;
use crate::sys::{process, surroundings};
pub use arrival::wait_for_recording;
use asked::differences;
pub use end::{Ended, How, end_unseen, unmount};
pub use holders::Holder;
use plan::MountPlan;

/// What a mount is, once it answers. The keys of `holofs mount --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// The mountpoint.
    pub path: PathBuf,
    /// The space's name on disk.
    pub identity: String,
    /// The environment.
    pub blueprint: String,
    /// Its library.
    pub library: PathBuf,
    /// The strategy in force.
    pub strategy: Strategy,
    /// The I/O mode in force: `cached` or `passthrough`.
    pub io: String,
    /// Whether extents can be shared with the library.
    pub reflink: Option<ReflinkProbe>,
    /// Entries of the environment: files, directories and links.
    pub entries: u32,
    /// Files with relocations.
    pub relocated: u32,
    /// The daemon.
    pub pid: u32,
    /// From the call to the answer, in milliseconds.
    pub mounted_ms: u64,
    /// Contents that the library has not: files with them cannot be read.
    #[serde(default, skip_serializing_if = "is_none")]
    pub missing_blobs: u32,
    /// It was mounted already.
    pub reused: bool,
    /// Where the changes are that the space had before rcc deleted it; the space is a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<PathBuf>,
}

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
    /// Who should answer does not.
    #[error("{path}: process {pid} does not answer: {why}")]
    NoAnswer {
        /// The mountpoint.
        path: PathBuf,
        /// The daemon, or the process that was to become it.
        pid: u32,
        /// What keeps it from answering.
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
    Daemon(Report),
}

/// A failure in the words and with the exit code of the command line, which is the one to choose them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
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
pub type Describe = fn(&Error) -> Report;

fn is_none(count: &u32) -> bool {
    *count == 0
}

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

/// How long an ended mount's daemon may take to let go of the space.
const ENDING: Duration = Duration::from_secs(5);

/// Mounts a space and returns when it answers. With `plan.foreground`, `ready` is called then, and this returns
/// when the mount has ended.
///
/// # Errors
/// See [`Error`]. Nothing is mounted then, and nothing of the user's is lost.
pub fn mount(
    plan: &MountPlan,
    describe: Describe,
    ready: &mut dyn FnMut(&Mounted),
) -> Result<Mounted, Error> {
    let started = Instant::now();
    surroundings::serve_on();
    let begin = move || begin(plan, started);
    if plan.foreground {
        return match begin()? {
            Found::Free(prepared) => prepared.serve(ready),
            Found::Mounted(reused) => {
                ready(&reused);
                Ok(*reused)
            }
        };
    }
    let mut mounted = daemon::start(plan, begin, describe)?;
    mounted.mounted_ms = millis(started);
    ready(&mounted);
    Ok(mounted)
}

/// What a space is found to be by who wants to mount it.
enum Found<'p> {
    /// Mounted as it was asked for.
    Mounted(Box<Mounted>),
    /// Not mounted, and now ours to mount.
    Free(Box<serve::Prepared<'p>>),
}

/// Takes the space, unless it is mounted.
fn begin(plan: &MountPlan, started: Instant) -> Result<Found<'_>, Error> {
    let (index, missing_blobs) = arrival::whole_index(plan)?;
    process::trim_heap();
    let deadline = started + ENDING.min(plan.lock_timeout);
    loop {
        if let Some(reused) = reuse(plan, &index, started)? {
            return Ok(Found::Mounted(Box::new(reused)));
        }
        match plan.claim(&index.catalog_sha256()) {
            // Nothing was mounted, so whoever has the space is ending, or starting as we are: the next look tells.
            Err(SpaceError::Busy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            claim => {
                let prepared = serve::Prepared::new(plan, index, claim?, started, missing_blobs);
                return Ok(Found::Free(Box::new(prepared)));
            }
        }
    }
}

/// The mount that is there already, when it is the one asked for. A dead one (its daemon was killed) is cleared away.
fn reuse(plan: &MountPlan, index: &Index, started: Instant) -> Result<Option<Mounted>, Error> {
    let identity = plan.space.identity.as_str();
    let Some(live) = registry::find(&plan.state_dir())? else { return Ok(None) };
    match fuse_mount::liveness(&live.mountpoint, plan.lock_timeout) {
        Liveness::Alive => {}
        Liveness::Silent => {
            let pid = read_run(&plan.state_dir()).map_or(0, |run| run.pid);
            let why = process::condition(pid).to_string();
            return Err(Error::NoAnswer { path: live.mountpoint, pid, why });
        }
        Liveness::Dead => {
            tracing::info!(path = %live.mountpoint.display(), "clearing away a mount whose daemon is gone");
            return match fuse_mount::unmount(&live.mountpoint, true) {
                Ok(()) => Ok(None),
                // It was ending, and has ended.
                Err(_) if end::has_gone(&live, &plan.state_dir())? => Ok(None),
                Err(source) => Err(Error::Mount { path: live.mountpoint, source }),
            };
        }
    }
    let Some(run) = record_of(plan, &live)? else { return Ok(None) };
    let held = match read_state(&plan.state_dir())? {
        Some(state) => {
            let held = Held::of(&plan.state_dir(), &state, &live.mountpoint)?;
            Some((held, state.content.blueprint))
        }
        None => None,
    };
    if let Some((Held::Deleted, _)) = held {
        end_deleted(plan, live)?;
        return Ok(None);
    }
    let mounted = held.map(|(held, catalog)| held.blueprint(&catalog).to_owned()).unwrap_or_default();
    if mounted != plan.holds {
        let wanted = plan.holds.clone();
        return Err(Error::OtherBlueprint { path: live.mountpoint, mounted, wanted });
    }
    if plan.fresh {
        return Err(Error::InUse { path: live.mountpoint, pids: vec![run.pid] });
    }
    let differs = differences(plan, &run);
    if !differs.is_empty() {
        return Err(Error::OtherOptions { path: live.mountpoint, differs });
    }
    Ok(Some(Mounted {
        path: live.mountpoint,
        identity: identity.to_owned(),
        blueprint: mounted,
        library: plan.library.hololib.clone(),
        strategy: Strategy::parse(&run.strategy).unwrap_or(plan.serve.strategy),
        io: run.io,
        reflink: run.reflink,
        entries: index.len(),
        relocated: index.relocated_files(),
        pid: run.pid,
        mounted_ms: millis(started),
        missing_blobs: 0,
        reused: true,
        set_aside: None,
    }))
}

/// The record of a live mount's daemon. It comes just after the mount, and goes just before the daemon does: None when
/// the mount has gone meanwhile.
fn record_of(plan: &MountPlan, live: &MountEntry) -> Result<Option<RunInfo>, Error> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        // One that was left by a daemon that was killed is of an earlier mount.
        if let Some(run) = read_run(&plan.state_dir()).filter(live::is_running) {
            return Ok(Some(run));
        }
        match registry::find(&plan.state_dir())? {
            Some(now) if now.dev == live.dev => {}
            _ => return Ok(None),
        }
        if Instant::now() >= deadline {
            return Err(Error::NotMounted(live.mountpoint.clone()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends the mount of a space that rcc deleted, so that a new one can take its place.
fn end_deleted(plan: &MountPlan, live: MountEntry) -> Result<(), Error> {
    tracing::info!(path = %live.mountpoint.display(), "rcc deleted this space: its mount is ended");
    let how = How { lazy: false, force: false, timeout: ENDING };
    match unmount(&live, &plan.state_dir(), how) {
        Ok(_) => Ok(()),
        Err(Error::InUse { path, pids }) => Err(Error::DeletedInUse { path, pids }),
        Err(error) => Err(error),
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
