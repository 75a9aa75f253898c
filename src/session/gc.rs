//! Cleans up after mounts: dead mounts, the state of spaces that are gone, and what is left in the cache.
//!
//! First a plan is made, which changes nothing, and then it is carried out. So a dry run prints what a run frees. Changes of
//! a user are never in the plan, unless `unused` allows that for spaces that are gone.
//!
//! Everything here belongs to this user and this home. What a mount needs is left alone: spaces are taken with their locks,
//! and a file of the cache that a mount has open stays readable after it was removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::CWD;
use serde::Serialize;

use super::bench::made as bench;
use super::compose::blob_cache_dir;
use super::end::{How, Unmounting};
use super::error::Error;
use super::restore::{left_in, left_of, links_dir, remove_left};
use super::spaces::{Space, SpaceState, Survey};
use crate::library::bytecode;
use crate::library::cache::BlobCache;
use crate::library::cache_dir::{copies_of, known_urls};
use crate::library::locate::{Location, is_url};
use crate::library::name::Identity;
use crate::library::unneeded::unneeded;
use crate::library::{Library, LibraryError};
use crate::record::unfinished;
use crate::restore::links;
use crate::space::SpaceError;
use crate::space::fork::{is_unfinished, remove_unfinished, unfinished};
use crate::space::home::Env;
use crate::space::meta::beside;
use crate::space::record::SpaceRecord;
use crate::space::remove::{Removal, half_removed};
use crate::space::state::{StateDir, aside_of, has_changes, is_locked, trash_of};
use crate::sys::tree;

/// What is cleaned up, and how far.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Also remove changes of spaces that are gone, and changes that were set aside, if they are at least so many days old.
    pub unused: Option<u64>,
    /// The largest size of the blob cache in bytes.
    pub cache_size: u64,
    /// How long to wait for a lock.
    pub wait: Duration,
}

/// After this time, what is kept of a library in an object store goes, unless a space has it.
const REMOTE_UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);

/// The time since a file was written or stamped.
fn unused_for(path: &Path) -> Duration {
    let modified = std::fs::metadata(path).and_then(|found| found.modified());
    modified.ok().and_then(|at| at.elapsed().ok()).unwrap_or_default()
}

/// The kinds of things that are cleaned up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A mount whose daemon has died.
    StaleMount,
    /// The state of a space that is gone.
    OrphanState,
    /// Changes that were set aside when rcc deleted a space.
    SetAside,
    /// What an interrupted process left.
    Leftover,
    /// A compiled index or a profile of a catalog that is gone.
    Index,
    /// Raw copies of blobs that were not read for the longest time.
    Blobs,
    /// Copies of blobs for hard links, to which no restored space has a link any more.
    Links,
}

/// Something that is cleaned up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Item {
    /// Its kind.
    pub what: What,
    /// The file or directory. For blobs and links the directory of all of them.
    pub path: PathBuf,
    /// The sum of the sizes of the files that are removed.
    pub bytes: u64,
}

/// Changes of a space that is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Kept {
    /// The directory with the changes.
    pub path: PathBuf,
    /// The sum of the sizes of its files.
    pub bytes: u64,
}

/// What is to be cleaned up, with the keys of `holofs gc --json`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Plan {
    /// The sum of all items.
    pub freed_bytes: u64,
    /// What is removed or unmounted.
    pub items: Vec<Item>,
    /// Changes that stay, because only `--unused` may remove them.
    pub kept: Vec<Kept>,
}

impl Plan {
    /// Finds out what can be cleaned up. Changes nothing.
    ///
    /// # Errors
    /// When the mounts or the spaces cannot be listed.
    pub fn make(env: &Env, options: &Options) -> Result<Self, Error> {
        let mut plan = Self::default();
        let survey = Survey::new(env)?;
        let spaces = survey.all(0)?;
        let mut records = Vec::new();
        for space in &spaces {
            let state_dir = env.spaces_dir().join(&space.identity);
            if !state_dir.is_dir() {
                continue;
            }
            // The survey has warned of a record that cannot be read.
            let record = SpaceRecord::read(&state_dir).ok().flatten();
            plan.space(space, &state_dir, record.as_ref(), options.unused)?;
            records.extend(record);
        }
        let removed = half_removed(&env.spaces_dir()).map_err(Error::os(env.spaces_dir(), "list"))?;
        let places = spaces.iter().filter_map(|space| space.path.parent().map(Path::to_owned));
        let bases: BTreeSet<PathBuf> = survey.bases().iter().cloned().chain(places).collect();
        let restores = bases.iter().flat_map(|base| left_in(base));
        for path in removed.into_iter().chain(unfinished(&env.spaces_dir())).chain(restores) {
            let bytes = tree::size(&path);
            plan.add(What::Leftover, path, bytes);
        }
        for (home, bytes) in bench::left_in(env) {
            plan.add(What::Leftover, home, bytes);
        }
        plan.indexes(env, &records);
        let cache = BlobCache::existing(&blob_cache_dir(&env.cache_dir()));
        for (path, bytes) in cache.unfinished() {
            plan.add(What::Leftover, path, bytes);
        }
        let dir = blob_cache_dir(&env.cache_dir());
        let (copies, bytes) = cache.surplus(options.cache_size).map_err(Error::os(&dir, "list"))?;
        if copies > 0 {
            plan.add(What::Blobs, dir, bytes);
        }
        let links = links_dir(&env.cache_dir());
        match links::surplus(&links) {
            Ok((0, _)) => {}
            Ok((_, bytes)) => plan.add(What::Links, links, bytes),
            Err(error) => tracing::warn!(%error, "copies for hard links stay"),
        }
        Ok(plan)
    }

    fn add(&mut self, what: What, path: PathBuf, bytes: u64) {
        self.freed_bytes += bytes;
        self.items.push(Item { what, path, bytes });
    }

    fn space(
        &mut self,
        space: &Space,
        state_dir: &Path,
        record: Option<&SpaceRecord>,
        unused: Option<u64>,
    ) -> Result<(), Error> {
        if space.state == SpaceState::Stale {
            self.add(What::StaleMount, space.path.clone(), 0);
            return Ok(());
        }
        if space.is_mounted || is_locked(state_dir) {
            return Ok(());
        }
        let is_old = |path: &Path| unused.is_some_and(|days| age(path) >= days);
        let is_there = |path: &Path| std::fs::symlink_metadata(path).is_ok();
        let is_gone = !is_there(&space.path) && !is_there(&beside(&space.path, ".meta"));
        let is_ephemeral = record.is_some_and(|record| record.basis.ephemeral);
        let was_published = record.is_none_or(SpaceRecord::is_published);
        let aside = aside_of(state_dir);
        let has_changes = !is_ephemeral && has_changes(state_dir)?;
        let holds = has_changes || !aside.is_empty();
        // A fork that was never mounted has nothing beside it yet, and is not gone.
        let is_kept = has_changes && !was_published;
        if is_gone && (!holds || is_old(state_dir) && !is_kept) {
            self.add(What::OrphanState, state_dir.to_owned(), tree::size(state_dir));
            return Ok(());
        }
        for path in trash_of(state_dir) {
            let bytes = tree::size(&path);
            self.add(What::Leftover, path, bytes);
        }
        for path in aside {
            let bytes = tree::size(&path);
            if is_old(&path) {
                self.add(What::SetAside, path, bytes);
            } else {
                self.kept.push(Kept { path, bytes });
            }
        }
        let upper = state_dir.join("upper");
        if is_gone && has_changes && !is_kept {
            self.kept.push(Kept { bytes: tree::size(&upper), path: upper });
        }
        Ok(())
    }

    /// The files in the cache that belong to no catalog of a known library: rcc's own, and those of the spaces.
    fn indexes(&mut self, env: &Env, records: &[SpaceRecord]) {
        let recorded = records.iter().map(|record| PathBuf::from(&record.basis.library));
        let own = [env.hololib(), env.robocorp_home.join("hololib"), env.shared_root.join("lib")];
        let is_there = |path: &PathBuf| path.exists() || is_url(path.as_os_str());
        let known = known_urls(&env.cache_dir());
        let paths: BTreeSet<PathBuf> =
            own.into_iter().chain(recorded).chain(known).filter(is_there).collect();
        let access = env.access();
        let sums = records.iter().map(|record| record.basis.catalog_sha256.clone()).collect();
        let find = || -> Result<_, LibraryError> {
            let found: Vec<Location> =
                paths.iter().map(|path| Location::recorded(path, &access)).collect::<Result<_, _>>()?;
            let has_catalogs = |location: &&Location| {
                location.hololib().is_none_or(|hololib| hololib.join("catalog").is_dir())
            };
            let libraries: Vec<&dyn Library> =
                found.iter().filter(has_catalogs).map(|location| &*location.library).collect();
            let cache = env.cache_dir();
            unneeded(&libraries, sums, &cache.join("index"), &cache.join("profiles"), &bytecode::dir(&cache))
        };
        let used: BTreeSet<&Path> = records.iter().map(|record| Path::new(&record.basis.library)).collect();
        for url in known_urls(&env.cache_dir()).iter().filter(|url| !used.contains(url.as_path())) {
            let dir = copies_of(&env.cache_dir(), url);
            if unused_for(&dir.join("url")) > REMOTE_UNUSED {
                self.add(What::Index, dir.clone(), tree::size(&dir));
            }
        }
        for library in paths.iter().filter_map(|path| Location::recorded(path, &access).ok()) {
            if let Some((mark, bytes)) = unfinished::find(&library) {
                self.add(What::Leftover, mark, bytes);
            }
        }
        match find() {
            Ok(files) => {
                for (path, bytes) in files {
                    self.add(What::Index, path, bytes);
                }
            }
            Err(error) => tracing::warn!(%error, "compiled indexes stay: a library cannot be read"),
        }
    }

    /// Carries the plan out. Returns the errors; the other items are done nevertheless. Calls `each` after each item, and
    /// after the removal of each entry of a directory, to show progress.
    ///
    /// # Errors
    /// When the table of mounts cannot be read.
    pub fn run(
        &self,
        env: &Env,
        controller: &str,
        options: &Options,
        each: &dyn Fn(),
    ) -> Result<Vec<Error>, Error> {
        let how = How { lazy: false, force: false, timeout: options.wait };
        let unmounting = Unmounting::new(env, controller, how, false)?;
        let mut failed = Vec::new();
        for item in &self.items {
            let done = match item.what {
                What::StaleMount => unmounting.one(item.path.as_os_str()).map(drop),
                What::OrphanState => remove_state(&item.path, options.wait, each),
                What::SetAside => locked(&item.path, |path| remove(path, each)),
                // Whoever locks the space removes it.
                What::Leftover if is_in_state(&item.path, env) => locked(&item.path, |_| Ok(())),
                What::Leftover if is_unfinished(&item.path) => {
                    remove_unfinished(&item.path).map_err(Error::from)
                }
                What::Leftover if bench::is_home(&item.path) => bench::remove_left(&item.path, env),
                What::Leftover if unfinished::is_mark(&item.path) => {
                    unfinished::remove(&item.path).map_err(|error| SpaceError::from(error).into())
                }
                What::Leftover => match left_of(&item.path) {
                    Some(name) => remove_left(&item.path, name),
                    None => remove(&item.path, each),
                },
                What::Index => remove(&item.path, each),
                What::Links => links::sweep(&item.path).map_err(|error| SpaceError::from(error).into()),
                What::Blobs => BlobCache::existing(&item.path)
                    .evict(options.cache_size)
                    .map(drop)
                    .map_err(Error::os(&item.path, "evict")),
            };
            each();
            failed.extend(done.err());
        }
        Ok(failed)
    }
}

/// Whole days since a file or directory was changed.
fn age(path: &Path) -> u64 {
    let modified = std::fs::symlink_metadata(path).and_then(|found| found.modified()).ok();
    let newest = [path.join("log"), path.join("state.json"), path.join("upper")].iter().fold(
        modified,
        |newest: Option<SystemTime>, file| {
            newest.max(std::fs::symlink_metadata(file).and_then(|found| found.modified()).ok())
        },
    );
    newest.and_then(|newest| newest.elapsed().ok()).unwrap_or_default().as_secs() / 86_400
}

/// Removes the state of a space that is gone. Its place is looked at again, under the locks.
fn remove_state(state_dir: &Path, wait: Duration, each: &dyn Fn()) -> Result<(), Error> {
    let name = state_dir.file_name().unwrap_or_default();
    let identity = Identity::from_name(name.as_encoded_bytes())
        .map_err(|source| SpaceError::Name { given: name.to_string_lossy().into_owned(), source })?;
    let record = SpaceRecord::read(state_dir).ok().flatten();
    // Without a record nobody knows where the space was, so only the state is removed.
    let place = record.map_or_else(|| PathBuf::from("/nonexistent"), |record| record.basis.place());
    Removal { identity: &identity, place: &place, state_dir, lock_timeout: wait, each }.run()?;
    Ok(())
}

fn is_in_state(path: &Path, env: &Env) -> bool {
    path.parent().is_some_and(|above| above != env.spaces_dir() && above.starts_with(env.spaces_dir()))
}

/// Does something in a state directory under its lock. Taking the lock removes what was dropped.
fn locked(path: &Path, work: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let _state = StateDir::open_locked(path.parent().unwrap_or(path))?;
    work(path)
}

fn remove(path: &Path, each: &dyn Fn()) -> Result<(), Error> {
    tree::remove_with(CWD, path, each).map_err(Error::os(path, "remove"))
}
