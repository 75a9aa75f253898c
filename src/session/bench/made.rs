//! What a benchmark makes, and its removal: at the end, or by `holofs gc` after the benchmark was killed.
//!
//! The home of a benchmark, `bench.<pid>` in holofs's home, is locked while it or a command that it started runs, and lists
//! the directories of its spaces before they are made. The commands get the lock as their standard input: nothing else that
//! they inherit stays open in all of them, and a daemon closes it when it has mounted.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::error::Error;
use crate::library::name::Identity;
use crate::space::home::Env;
use crate::space::meta::beside;
use crate::space::{SpaceError, lock};
use crate::sys::guarded::{Access, Dir, Trust};
use crate::sys::tree;

const PREFIX: &str = "bench.";
const LOCK: &str = "lock";
const PLACES: &str = "places";
/// What holofs and rcc keep beside the directory of a space.
const BESIDE: [&str; 5] = [".meta", ".meta.info", ".use", ".lck", ".restoring"];

/// The home of a benchmark.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) home: PathBuf,
    places: File,
    pub(super) lock: File,
}

impl Made {
    pub(super) fn make(env: &Env) -> Result<Self, Error> {
        let home = env.holofs_home.join(format!("{PREFIX}{}", std::process::id()));
        let dir = Dir::make_ours(&home).map_err(SpaceError::from)?;
        let lock = lock::take(&dir, LOCK.as_ref(), 0o600, Duration::ZERO)?;
        let lock = lock.map_err(|_| Error::os(&home, "lock")(rustix::io::Errno::WOULDBLOCK))?;
        let places = dir.open_or_create(PLACES.as_ref(), Access::Write, 0o600).map_err(SpaceError::from)?.0;
        Ok(Self { home, places, lock })
    }

    /// Notes the directory of a space that is to be made.
    pub(super) fn add(&mut self, place: &Path) -> io::Result<()> {
        writeln!(self.places, "{}", place.display())
    }

    /// Removes everything.
    pub(super) fn remove(self, program: &Path, env: &Env) {
        if let Err(error) = remove(&self.home, &self.lock, program, env) {
            tracing::warn!(%error, "cannot remove what the benchmark made");
        }
    }
}

/// The homes of benchmarks that were killed, and the bytes of what they have made.
pub(crate) fn left_in(env: &Env) -> Vec<(PathBuf, u64)> {
    let homes = std::fs::read_dir(&env.holofs_home).into_iter().flatten().flatten();
    let is_home = |path: &PathBuf| is_home(path) && lock::busy(&path.join(LOCK)).is_none();
    let mut left: Vec<PathBuf> = homes.map(|entry| entry.path()).filter(is_home).collect();
    left.sort();
    let bytes = |home: &Path| {
        let places: u64 =
            places(home).iter().filter(|place| !is_mounted(place)).map(|place| size(place)).sum();
        places + tree::size(home)
    };
    left.into_iter().map(|home| (home.clone(), bytes(&home))).collect()
}

/// Whether a path is that of the home of a benchmark.
pub(crate) fn is_home(path: &Path) -> bool {
    let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Removes what a killed benchmark has left, unless a command that it started still works there.
///
/// # Errors
/// When something cannot be removed.
pub(crate) fn remove_left(home: &Path, env: &Env) -> Result<(), Error> {
    let dir = Dir::open(home, Trust::Private).map_err(SpaceError::from)?;
    let Ok(lock) = lock::take(&dir, LOCK.as_ref(), 0o600, Duration::ZERO)? else { return Ok(()) };
    let program =
        std::env::current_exe().map_err(|source| SpaceError::Io { path: home.to_owned(), source })?;
    remove(home, &lock, &program, env)
}

/// Makes a command work in the home of a benchmark.
pub(super) fn in_home(command: &mut Command, home: &Path, env: &Env) {
    command.env("HOLOFS_HOME", home).env("ROBOCORP_HOME", &env.robocorp_home);
    for inherited in ["HOLOFS_STRATEGY", "RCC_HOLOTREE_STRATEGY", "HOLOFS_CACHE_DIR"] {
        command.env_remove(inherited);
    }
}

/// Unmounts a space of a benchmark, and drops its changes.
pub(super) fn end_mount(place: &Path, program: &Path, home: &Path, lock: &File, env: &Env) {
    let mut command = Command::new(program);
    in_home(command.arg("unmount").arg(place).arg("--discard"), home, env);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = lock.try_clone().and_then(|lock| command.stdin(lock).status()) {
        tracing::warn!(%error, place = %place.display(), "cannot unmount a space of the benchmark");
    }
}

fn remove(home: &Path, lock: &File, program: &Path, env: &Env) -> Result<(), Error> {
    for place in places(home) {
        let (Some(base), Some(name)) = (place.parent(), place.file_name()) else { continue };
        if lock::busy(&beside(&place, ".lck")).is_some() {
            let path = beside(&place, ".lck");
            return Err(SpaceError::LockTimeout { path, pid: None, waited: Duration::ZERO }.into());
        }
        if is_mounted(&place) {
            end_mount(&place, program, home, lock, env);
        }
        let base = match Dir::open(base, Trust::Shared) {
            Err(error) if error.is_not_found() => continue,
            base => base.map_err(SpaceError::from)?,
        };
        tree::remove(&base, name).map_err(Error::os(&place, "remove"))?;
        for ending in BESIDE {
            let path = beside(&place, ending);
            base.remove_file(path.file_name().unwrap_or_default()).map_err(SpaceError::from)?;
        }
    }
    let above = Dir::open(home.parent().unwrap_or(home), Trust::Owned).map_err(SpaceError::from)?;
    tree::remove(&above, home.file_name().unwrap_or_default()).map_err(Error::os(home, "remove"))
}

/// The directories of the spaces that a benchmark has begun to make.
fn places(home: &Path) -> Vec<PathBuf> {
    let Ok(file) = crate::sys::guarded::open_file(&home.join(PLACES), Access::Read) else {
        return Vec::new();
    };
    let lines = BufReader::new(file).lines().map_while(Result::ok).map(PathBuf::from);
    let is_space = |place: &PathBuf| {
        let name = place.file_name().unwrap_or_default();
        place.is_absolute() && Identity::from_name(name.as_encoded_bytes()).is_ok()
    };
    lines.filter(is_space).collect()
}

/// Whether something is mounted there. A mount whose daemon is dead cannot be looked at.
fn is_mounted(place: &Path) -> bool {
    let device = |path: &Path| path.symlink_metadata().map(|found| found.dev());
    match (device(place), place.parent().map(device)) {
        (Ok(here), Some(Ok(above))) => here != above,
        (Err(error), _) => error.kind() != io::ErrorKind::NotFound,
        _ => false,
    }
}

fn size(place: &Path) -> u64 {
    let beside = BESIDE.iter().filter_map(|ending| beside(place, ending).symlink_metadata().ok());
    tree::size(place) + beside.map(|found| found.len()).sum::<u64>()
}
