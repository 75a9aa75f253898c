//! A survey of the spaces on this machine: which spaces exist, and what state each is in.
//!
//! A space is known by its state directory, which holofs keeps, or by the `.meta` file beside its directory, which rcc and
//! mounts write. Its state follows from mountinfo, `state.json`, `run.json` and the library. To find the state, a mount
//! with a live daemon is not accessed, because the daemon might hang.
//!
//! If the records of one space cannot be read, the survey logs a warning and still contains the space. It fails only
//! when the table of mounts or the directory of all state directories cannot be read.

pub(super) mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::error::Error;
use super::registry::{Registry, unreadable};
use crate::fs::STATUS_XATTR;
use crate::library::LibraryError;
use crate::library::catalogs;
use crate::library::locate::{Location, is_url};
use crate::library::name::Identity;
use crate::materialize::ReflinkProbe;
use crate::metrics::Snapshot;
use crate::space::ended::{Ended, read_ended};
use crate::space::held::Held;
use crate::space::home::Env;
use crate::space::path::resolved;
use crate::space::record::{SpaceRecord, recorded_place};
use crate::space::run::{Extra, RunInfo, read_run};
use crate::space::select::SpaceArg;
use crate::space::state::{aside_of, log_of};
use crate::space::upper::walk::bytes_below;
use crate::space::{SpaceError, meta};
use crate::sys::fuse_mount::is_dead;
use crate::sys::mountinfo::{self, MountEntry};
use crate::sys::process;
pub use state::SpaceState;

/// How many changed files are counted for [`Survey::detail`].
const COUNTED_AT_MOST: usize = 200_000;

/// How long a mount may take to return its counters.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A space, as the survey found it. The keys of `holofs list --json`; the first ones are rcc's.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Space {
    /// The name of its directory.
    #[serde(rename = "id")]
    pub identity: String,
    /// The controller as rcc records it; empty when no record can be read.
    pub controller: String,
    /// The name that the user gave it; empty when no record can be read.
    #[serde(rename = "space")]
    pub label: String,
    /// The blueprint of its content; empty when no record can be read.
    pub blueprint: String,
    /// The directory on which it is mounted, or would be.
    pub path: PathBuf,
    /// Its state.
    pub state: SpaceState,
    /// Whether it is mounted, with a daemon that is not known to be dead.
    #[serde(rename = "mounted")]
    pub is_mounted: bool,
    /// The size of the changes that were counted, in bytes on disk.
    pub upper_bytes: u64,
    /// Whether some changes were not counted.
    pub upper_bytes_at_least: bool,
    /// The library of its environment. None when holofs has no record of it.
    #[serde(skip)]
    pub library: Option<String>,
    /// Why its last mount was given up. None while it is mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub given_up: Option<Ended>,
    /// The record of its mount's daemon.
    #[serde(skip)]
    pub run: Option<RunInfo>,
    /// The number of uses and the time of the last one, from rcc's record.
    #[serde(skip)]
    pub usage: Option<(u64, SystemTime)>,
}

/// What `holofs status` shows of a space, and `holofs list` does not.
#[derive(Debug, Serialize)]
pub struct Detail {
    /// The library of its environment. None when holofs has no record of it.
    pub library: Option<String>,
    /// Whether the mount can share extents with the library, when the state is mounted or moved.
    pub reflink: Option<ReflinkProbe>,
    /// Further options of the mount, as `reflink`.
    #[serde(flatten)]
    pub extra: Option<Extra>,
    /// The counters of its mount by name, when the mount answers.
    pub metrics: Option<Snapshot>,
    /// The log of its mounts.
    pub log: PathBuf,
    /// The directories with the changes of earlier spaces of this name, which rcc deleted.
    pub set_aside: Vec<PathBuf>,
}

/// The mounts of the machine, and where to look for spaces.
#[derive(Debug)]
pub struct Survey<'e> {
    env: &'e Env,
    registry: Registry,
    /// The mounts of all users and homes.
    all_mounts: Vec<MountEntry>,
    /// The directories with the spaces of rcc's own library. Catalogs name directories too, but any directory, so those
    /// are not used.
    bases: Vec<PathBuf>,
}

impl<'e> Survey<'e> {
    /// Reads the table of mounts.
    ///
    /// # Errors
    /// When mountinfo cannot be read.
    pub fn new(env: &'e Env) -> Result<Self, Error> {
        let library = Location::directory(env.hololib());
        let mut bases: Vec<PathBuf> =
            library.holotree().into_iter().chain([env.robocorp_home.join("holotree")]).collect();
        bases.dedup();
        Ok(Self {
            env,
            registry: Registry::read(&env.spaces_dir())?,
            all_mounts: mountinfo::holofs_mounts().map_err(unreadable)?,
            bases,
        })
    }

    /// The directories with the spaces of rcc's own library.
    pub(super) fn bases(&self) -> &[PathBuf] {
        &self.bases
    }

    /// All spaces, sorted by identity. Counts at most `entries` changed files of each.
    ///
    /// # Errors
    /// When the directory of the spaces' states cannot be read.
    pub fn all(&self, entries: usize) -> Result<Vec<Space>, Error> {
        let mut spaces = BTreeMap::new();
        let dir = self.env.spaces_dir();
        for name in names_in(&dir).map_err(|error| SpaceError::io(&dir)(error))? {
            if let Ok(identity) = Identity::from_name(name.as_encoded_bytes()) {
                let space = self.recorded(&identity, entries);
                spaces.insert(space.identity.clone(), space);
            }
        }
        let ours = spaces.values().filter_map(|space| space.path.parent().map(Path::to_owned));
        for base in ours.chain(self.bases.iter().cloned()).collect::<BTreeSet<PathBuf>>() {
            let names = names_in(&base).unwrap_or_else(|error| {
                tracing::warn!(path = %base.display(), %error, "cannot list the spaces in this directory");
                Vec::new()
            });
            for name in &names {
                let Some(identity) = name.to_str().and_then(|name| name.strip_suffix(".meta")) else {
                    continue;
                };
                if !spaces.contains_key(identity)
                    && let Some(space) = self.restored(identity, &base)
                {
                    spaces.insert(identity.to_owned(), space);
                }
            }
        }
        Ok(spaces.into_values().collect())
    }

    /// The space with this name, identity or path. Counts at most `entries` of its changed files.
    ///
    /// # Errors
    /// [`Error::NoSpace`], and when the name is not valid.
    pub fn find(&self, given: &OsStr, controller: &str, entries: usize) -> Result<Space, Error> {
        let arg = SpaceArg::parse(given)?.behind_link();
        let identity = match (arg.existing(self.env, controller), &arg) {
            (Ok(identity), _) => identity,
            // Such a directory cannot be that of a space.
            (Err(SpaceError::Name { .. }), SpaceArg::Path(path)) => {
                return Err(Error::NoSpace { given: path.display().to_string(), identity: None });
            }
            (Err(error), _) => return Err(error.into()),
        };
        let found = if self.env.state_dir(&identity).is_dir() {
            Some(self.recorded(&identity, entries))
        } else {
            self.bases.iter().find_map(|base| self.restored(identity.as_str(), base))
        };
        let found = found.filter(|space| match &arg {
            SpaceArg::Path(path) => resolved(path) == resolved(&space.path),
            SpaceArg::Identity(_) | SpaceArg::Name(_) => true,
        });
        let given = given.to_string_lossy().into_owned();
        found.ok_or_else(|| Error::NoSpace { given, identity: Some(identity.to_string()) })
    }

    /// One space in detail.
    ///
    /// # Errors
    /// As [`Survey::find`], and when the space's record is damaged.
    pub fn detail(&self, given: &OsStr, controller: &str) -> Result<(Space, Detail), Error> {
        let mut space = self.find(given, controller, COUNTED_AT_MOST)?;
        let state_dir = self.env.spaces_dir().join(&space.identity);
        SpaceRecord::read(&state_dir)?;
        let is_served = matches!(space.state, SpaceState::Mounted | SpaceState::Moved);
        let run = space.run.as_ref().filter(|_| is_served);
        let detail = Detail {
            library: space.library.clone(),
            reflink: run.and_then(|run| run.reflink.clone()),
            extra: run.and_then(|run| run.extra.clone()),
            metrics: run.and_then(|run| counters(&space.path, run.server())),
            log: log_of(&state_dir),
            set_aside: aside_of(&state_dir),
        };
        let refused = detail.metrics.as_ref().and_then(|metrics| metrics.get("blobs_refused"));
        if space.state == SpaceState::Mounted && refused.is_some_and(|refused| *refused > 0) {
            space.state = SpaceState::Degraded;
        }
        Ok((space, detail))
    }

    /// The directory of a space. Users run programs from it, so a directory on which another user has mounted something is
    /// refused.
    ///
    /// # Errors
    /// As [`Survey::find`], and [`Error::OthersMount`].
    pub fn path(&self, given: &OsStr, controller: &str) -> Result<PathBuf, Error> {
        let path = self.find(given, controller, 0)?.path;
        let mount = mountinfo::mount_at(&resolved(&path)).map_err(unreadable)?;
        match mount.filter(|mount| !mount.is_ours()).and_then(|mount| mount.user_id) {
            Some(user) => Err(Error::OthersMount { path, user }),
            None => Ok(path),
        }
    }

    /// A space that has a state directory.
    fn recorded(&self, identity: &Identity, entries: usize) -> Space {
        let state_dir = self.env.state_dir(identity);
        let run = read_run(&state_dir);
        let mount = self.registry.find(&state_dir, run.as_ref());
        let run = run.filter(|_| mount.is_some());
        let home = recorded_place(&state_dir, run.as_ref());
        let place = mount.map(|mount| mount.mountpoint.clone()).or_else(|| home.clone());
        let (record, is_damaged) = match SpaceRecord::read(&state_dir) {
            Ok(record) => (record, false),
            Err(error) => {
                tracing::warn!(%identity, %error, "cannot read the record of this space");
                (None, true)
            }
        };
        let held = record.as_ref().zip(place.as_ref()).and_then(|(record, place)| {
            let held = Held::of(&state_dir, record, place);
            held.inspect_err(
                |error| tracing::warn!(%identity, %error, "cannot tell what this space contains"),
            )
            .ok()
        });
        let state = match mount {
            Some(mount) if is_stale(mount, run.as_ref()) => SpaceState::Stale,
            Some(mount) if home.is_some_and(|home| resolved(&home) != mount.mountpoint) => SpaceState::Moved,
            _ if is_damaged => SpaceState::Damaged,
            _ if held == Some(Held::Deleted) => SpaceState::Deleted,
            _ if record
                .as_ref()
                .is_some_and(|record| is_catalog_gone(&record.basis.library, &record.basis.blueprint)) =>
            {
                SpaceState::CatalogGone
            }
            Some(_) => SpaceState::Mounted,
            // A directory without a mount is empty, unless rcc or `holofs restore` has made its tree there.
            None if place.as_ref().is_some_and(|place| !self.is_covered(place) && has_entries(place)) => {
                SpaceState::Restored
            }
            None => SpaceState::Unmounted,
        };
        let path = place.unwrap_or_else(|| {
            // No record has its directory, so take the one that the next mount would use.
            self.bases.first().map_or_else(|| state_dir.clone(), |base| base.join(identity.as_str()))
        });
        let (upper_bytes, is_all) = bytes_below(&state_dir.join("upper"), entries);
        let mut space = Space {
            is_mounted: mount.is_some() && state != SpaceState::Stale,
            given_up: mount.is_none().then(|| read_ended(&state_dir)).flatten(),
            run,
            upper_bytes,
            upper_bytes_at_least: !is_all,
            ..Space::bare(identity.as_str(), path, state)
        };
        if let Some(SpaceRecord { basis, .. }) = record {
            let held = held.as_ref().map(|held| held.blueprint(&basis.blueprint));
            space.blueprint = held.unwrap_or(&basis.blueprint).to_owned();
            space.library = Some(basis.library);
            (space.controller, space.label) = (basis.controller, basis.space);
        }
        space
    }

    /// Whether a holofs mount of somebody is on this directory. It may never answer.
    fn is_covered(&self, place: &Path) -> bool {
        let place = resolved(place);
        self.all_mounts.iter().any(|mount| mount.mountpoint == place)
    }

    /// A space without a state directory in this home.
    fn restored(&self, identity: &str, base: &Path) -> Option<Space> {
        let path = base.join(identity);
        let header = meta::recorded(&path)?;
        let is_mounted = self.is_covered(&path);
        let state = if is_mounted { SpaceState::Mounted } else { SpaceState::Restored };
        Some(Space {
            is_mounted,
            controller: header.controller,
            label: header.space,
            blueprint: header.blueprint,
            ..Space::bare(identity, path, state)
        })
    }
}

impl Space {
    fn bare(identity: &str, path: PathBuf, state: SpaceState) -> Self {
        let usage = meta::usage(&path);
        Self { identity: identity.to_owned(), usage, path, state, ..Self::default() }
    }
}

/// Asks the mount itself for its counters. A mount whose daemon hangs is not waited for.
fn counters(mountpoint: &Path, daemon: u32) -> Option<Snapshot> {
    /// The longest value of an attribute that Linux passes on.
    const LONGEST: usize = 64 * 1024;
    let path = mountpoint.display();
    // The process that reads can return only bytes. No bytes stand for an error.
    let question = || {
        let mut value = vec![0; LONGEST];
        let asked = rustix::fs::getxattr(mountpoint, STATUS_XATTR, &mut value[..]);
        asked.ok().and_then(|len| value.get(..len)).unwrap_or_default().to_vec()
    };
    match process::ask(ANSWER_TIMEOUT, question) {
        Ok(Some(text)) if text.is_empty() => tracing::warn!(%path, "the mount has no counters"),
        Ok(Some(text)) => match serde_json::from_slice(&text) {
            Ok(counters) => return Some(counters),
            Err(error) => tracing::warn!(%path, %error, "cannot parse the counters of the mount"),
        },
        Ok(None) => {
            let why = process::condition(daemon);
            tracing::warn!(%path, daemon, %why, "the daemon of the mount does not answer");
        }
        Err(error) => tracing::warn!(%path, %error, "cannot ask the mount for its counters"),
    }
    None
}

/// Whether something is in a directory that this user can read.
fn has_entries(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// The names in a directory. A missing directory has none.
fn names_in(dir: &Path) -> std::io::Result<Vec<OsString>> {
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.file_name())).collect(),
    }
}

/// Whether the daemon of a mount has died.
fn is_stale(mount: &MountEntry, run: Option<&RunInfo>) -> bool {
    !run.is_some_and(RunInfo::is_running) && is_dead(&mount.mountpoint)
}

/// Whether the library no longer has a space's catalog. False when the library cannot be read.
fn is_catalog_gone(library: &str, blueprint: &str) -> bool {
    // Nobody asks a store for that.
    if is_url(OsStr::new(library)) {
        return false;
    }
    let library_at = |path: &Path| {
        if path.is_file() { Location::archive(path) } else { Ok(Location::directory(path.to_owned())) }
    };
    let catalogs = library_at(Path::new(library)).and_then(|library| catalogs::list(&*library.library));
    match catalogs {
        Ok(catalogs) => catalogs.iter().all(|catalog| catalog.name.blueprint != blueprint),
        Err(LibraryError::Io { source, .. })
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
        {
            true
        }
        Err(error) => {
            tracing::warn!(library, %error, "cannot tell whether the library has the catalog");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLUEPRINT: &str = "adb8c26db4d86a93";

    #[test]
    fn catalog_is_gone_when_its_library_has_none_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let is_gone = || is_catalog_gone(dir.path().to_str().unwrap(), BLUEPRINT);
        assert!(is_gone());
        std::fs::create_dir(dir.path().join("catalog")).unwrap();
        assert!(is_gone());
        std::fs::write(dir.path().join(format!("catalog/{BLUEPRINT}v12.linux_amd64")), "").unwrap();
        assert!(!is_gone());
    }

    /// An error of another kind says nothing about the catalog.
    #[test]
    fn catalog_is_not_gone_when_its_library_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("catalog", dir.path().join("catalog")).unwrap();
        assert!(!is_catalog_gone(dir.path().to_str().unwrap(), BLUEPRINT));
    }

    #[test]
    fn missing_directory_has_no_names_and_any_other_error_is_returned() {
        let dir = tempfile::tempdir().unwrap();
        assert!(names_in(&dir.path().join("missing")).unwrap().is_empty());
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(names_in(&dir.path().join("file")).is_err());
    }
}
