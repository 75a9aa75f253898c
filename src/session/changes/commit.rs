//! Records a space as a new environment of a library.
//!
//! The changes are read from the upper, whether the space is mounted or not. An unmounted space is locked meanwhile. While
//! a space is mounted, its processes may change it. So the changes are looked at before and after they are read. If they
//! differ, the files that were read may not belong together. The space is read again, and its daemon holds back changes
//! meanwhile. Most of what was read is stored by then, so this takes a moment.
//!
//! Invariants: the space stays as it is. The library gets a catalog only of files that the space had at one instant. If
//! the command dies, the library has no new catalog, and perhaps blobs that no catalog names.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::writeback::hand_over_stores;
use crate::library::LibraryError;
use crate::library::blob::Blobs;
use crate::library::catalogs;
use crate::library::digest::Hex;
use crate::library::index::Index;
use crate::library::index::cache::open_or_compile;
use crate::library::locate::Location;
use crate::library::name::sipit_hex;
use crate::record::{self, Destination, Paths, Reading, RecordError, Recorded, Target};
use crate::session::compose;
use crate::session::control::{Client, Request};
use crate::session::error::Error;
use crate::session::mount::arrival::missing_blobs;
use crate::session::spaces::{Space, SpaceState, Survey};
use crate::space::commit::{CommitError, Names, merge, see_at};
use crate::space::home::Env;
use crate::space::record::{Basis, SpaceRecord};
use crate::space::run::read_run;
use crate::space::state::StateDir;

/// How often a mounted space is read before it is refused.
const ATTEMPTS: u32 = 3;
/// How long the changes of a mounted space are held back, in milliseconds.
const FROZEN_AT_MOST: u64 = 5_000;
/// How long the daemon may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A space to be recorded.
#[derive(Debug)]
pub struct Commit<'e> {
    env: &'e Env,
    space: Space,
    basis: Basis,
    location: Location,
    index: Index,
}

impl<'e> Commit<'e> {
    /// Finds the space and its environment.
    ///
    /// # Errors
    /// When there is no such space, or its environment is no longer in its library.
    pub fn of(given: &OsStr, controller: &str, env: &'e Env) -> Result<Self, Error> {
        let space = Survey::new(env)?.find(given, controller, 0)?;
        let state_dir = env.spaces_dir().join(&space.identity);
        let record = SpaceRecord::read(&state_dir)?;
        let basis = match (space.state, record) {
            (SpaceState::Deleted | SpaceState::CatalogGone, _) | (_, None) => {
                return Err(Error::NotCommittable { path: space.path, state: space.state });
            }
            (_, Some(record)) => record.basis,
        };
        let location = Location::recorded(Path::new(&basis.library), &env.access())?;
        let found = catalogs::list(&*location.library)?;
        for catalog in found.iter().filter(|catalog| catalog.name.blueprint == basis.blueprint) {
            let cache = env.cache_dir().join("index");
            let index = open_or_compile(&*location.library, &catalog.name, &cache)?;
            if Hex(&index.catalog_sha256()).to_string() == basis.catalog_sha256 {
                return Ok(Self { env, space, basis, location, index });
            }
        }
        Err(Error::NotCommittable { path: space.path, state: SpaceState::CatalogGone })
    }

    /// The library of the space.
    #[must_use]
    pub fn library(&self) -> OsString {
        // Nothing is recorded into an object store.
        self.location.on_disk().map_or_else(|| self.env.hololib(), Path::to_owned).into()
    }

    /// Records the space with this blueprint. With `replace`, it takes the place of another environment of this blueprint.
    ///
    /// # Errors
    /// See [`Error`]. The library has no new catalog then.
    pub fn record(&self, blueprint: &str, target: &Target, replace: bool) -> Result<Recorded, Error> {
        let blueprint = blueprint.trim();
        if blueprint.is_empty() {
            return Err(RecordError::NoBlueprint.into());
        }
        if sipit_hex(blueprint.as_bytes()) == self.basis.blueprint {
            return Err(Error::OwnBlueprint { space: self.space.identity.clone() });
        }
        let state_dir = self.env.spaces_dir().join(&self.space.identity);
        // No mount begins while the changes are read.
        let _locked = if self.space.is_mounted { None } else { Some(StateDir::open_locked(&state_dir)?) };
        let destination = Destination::open(target)?;
        let blobs = compose::blobs(&self.location, compose::blob_cache(&self.env.cache_dir())?);
        let upper = state_dir.join("upper");
        let mut attempt = 1;
        loop {
            let held = self.hold(&state_dir, attempt > 1);
            match self.try_record(blueprint, &destination, &blobs, &upper, &held, replace) {
                Err(Error::ChangedMeanwhile { .. }) if attempt < ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    /// Prepares a look at a mounted space. With `frozen`, its changes are held back until the value is dropped.
    fn hold(&self, state_dir: &Path, frozen: bool) -> Cell<Option<Client>> {
        if !self.space.is_mounted {
            return Cell::default();
        }
        // Before anything waits: a store to a map is written back by a request that would have to wait.
        let upper = std::fs::File::open(state_dir.join("upper"));
        let daemon = read_run(state_dir);
        if !upper.is_ok_and(|upper| hand_over_stores(&self.space.path, upper.as_fd(), daemon.as_ref())) {
            tracing::warn!("the mount does not answer: stores to mapped files may be missing");
        }
        let freeze = || {
            let mut client = Client::connect(state_dir)?;
            client.ask(&Request::Freeze { ms: FROZEN_AT_MOST }, ANSWER_WITHIN)?;
            Ok::<_, Error>(client)
        };
        let client = frozen.then(freeze).transpose().unwrap_or_else(|error| {
            tracing::debug!(%error, "the changes of the space are not held back");
            None
        });
        Cell::new(client)
    }

    fn try_record(
        &self,
        blueprint: &str,
        destination: &Destination<'_>,
        blobs: &Blobs,
        upper: &Path,
        held: &Cell<Option<Client>>,
        replace: bool,
    ) -> Result<Recorded, Error> {
        let failed = |error: CommitError| match error {
            CommitError::Record(RecordError::Changed { path }) => Error::ChangedMeanwhile { path },
            CommitError::Record(error) => Error::Record(error),
            CommitError::Upper(source) => Error::Changes { path: upper.to_owned(), source },
        };
        let info = self.index.info();
        let (space, stage) = (self.space.identity.as_str(), info.identity.as_str());
        let place = self.basis.placed_at().and_then(Path::to_str);
        let names = Names { space, place, stage, stage_path: &info.path };
        let before = see_at(upper, &self.index).map_err(|error| failed(error.into()))?;
        let tree = if self.is_own_library(destination)? {
            self.check_blobs()?;
            merge(&self.index, &before, upper, names, blueprint, &|_, _| Ok(true))
        } else {
            merge(&self.index, &before, upper, names, blueprint, &|digest, size| {
                destination.has(digest, size)
            })
        };
        let tree = tree.map_err(failed)?;
        let unchanged = || match see_at(upper, &self.index) {
            Ok(after) if after.signature == before.signature => {
                // What the kernel writes by itself, in passthrough, was not held back, and shows in the signature.
                if let Some(client) = held.take()
                    && let Err(error) = client.finish(ANSWER_WITHIN)
                {
                    tracing::debug!(%error, "the mount ended while its space was read");
                }
                Ok(())
            }
            Ok(_) => Err(RecordError::Changed { path: self.space.path.clone() }),
            Err(error) => Err(RecordError::io(upper)(error.into())),
        };
        let header = record::header(stage, &info.path, &info.platform, blueprint);
        let paths = place.map(|from| Paths { from: from.as_bytes(), to: info.path.as_bytes() });
        let reading =
            Reading { stage: stage.as_bytes(), space: Some(space.as_bytes()), paths, origin: Some(blobs) };
        destination.record(&header, &tree, reading, &unchanged, replace).map_err(|error| failed(error.into()))
    }

    /// Whether the space's own library is recorded into.
    fn is_own_library(&self, destination: &Destination<'_>) -> Result<bool, Error> {
        let Some(own) = self.location.on_disk() else { return Ok(false) };
        let inode = |path: &Path| {
            let found = std::fs::metadata(path).map_err(LibraryError::io(path))?;
            Ok::<_, LibraryError>((found.dev(), found.ino()))
        };
        Ok(inode(own)? == inode(destination.hololib())?)
    }

    /// The new catalog names the blobs of the old one. A mount has usually looked for them already.
    fn check_blobs(&self) -> Result<(), Error> {
        if self.index.blobs_seen {
            return Ok(());
        }
        match missing_blobs(&self.index, &*self.location.library) {
            0 => Ok(()),
            missing => Err(Error::MissingBlobs { library: self.location.path.clone(), missing }),
        }
    }
}
