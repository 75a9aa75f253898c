//! A space with its changes, opened to be read: what was changed in it, over which catalog.
//!
//! It works on mounted and on unmounted spaces. The upper is read directly: every change that a mount has reported as done
//! is there. Stores to maps are not reported; the kernel is asked to write them back first.

pub mod commit;
pub mod fork;
pub mod reset;
mod writeback;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::compose;
use super::end::write_out;
use super::error::Error;
use super::placed;
use super::spaces::{SpaceState, Survey};
use crate::library::LibraryError;
use crate::library::catalogs::{CatalogName, this_platform};
use crate::library::digest::Hex;
use crate::library::index::cache::{open_by_sum, open_or_compile};
use crate::library::index::{Index, NodeId};
use crate::library::locate::Location;
use crate::materialize::source::Source;
use crate::settings::Strategy;
use crate::space::diff::{Difference, Pristine, Scan};
use crate::space::home::Env;
use crate::space::record::SpaceRecord;
use crate::space::run::read_run;
use crate::space::upper::{self, UpperError};
use crate::sys::process;

/// A space whose changes can be read.
#[derive(Debug)]
pub struct Changed {
    /// What the changes are based on.
    pub record: SpaceRecord,
    /// The space's state directory.
    pub state_dir: PathBuf,
    /// The catalog that the changes were made over.
    pub index: Arc<Index>,
    /// The root of the upper.
    pub upper: OwnedFd,
    /// Where the space is mounted.
    pub mounted: Option<PathBuf>,
    /// The library. None when it no longer has the catalog.
    location: Option<Location>,
    cache_dir: PathBuf,
}

impl Changed {
    /// Opens the space with this name, identity or path.
    ///
    /// # Errors
    /// When there is no such space, it has no upper, or its catalog is gone.
    pub fn open(env: &Env, given: &OsStr, controller: &str) -> Result<Self, Error> {
        let space = Survey::new(env)?.find(given, controller, 0)?;
        let no_upper = |why| Error::NoUpper { given: given.to_string_lossy().into_owned(), why };
        match space.state {
            SpaceState::Restored if space.library.is_none() => {
                return Err(no_upper("it was restored as plain files, so its changes are not known"));
            }
            SpaceState::Deleted => return Err(no_upper("rcc deleted it; the next mount makes a new space")),
            SpaceState::Mounted if space.library.is_none() => {
                return Err(no_upper("it is mounted from another home"));
            }
            _ => {}
        }
        let state_dir = env.spaces_dir().join(&space.identity);
        let record = SpaceRecord::read(&state_dir)?.ok_or_else(|| Error::NoSpace {
            given: given.to_string_lossy().into_owned(),
            identity: Some(space.identity),
        })?;
        let mounted = space.is_mounted.then_some(space.path);
        let cache_dir = env.cache_dir();
        let (index, location) = catalog_of(&record, env)?;
        let index = match record.basis.placed_at() {
            Some(place) => placed::at(&index, place, location.as_ref(), &cache_dir, None)?,
            None => Arc::new(index),
        };
        let path = state_dir.join("upper");
        let upper = upper::open(&path)
            .and_then(|found| {
                found.ok_or_else(|| UpperError::Os {
                    path: path.clone(),
                    call: "open",
                    source: rustix::io::Errno::NOENT,
                })
            })
            .map_err(|source| Error::Changes { path, source })?;
        Ok(Self { record, state_dir, index, upper, mounted, location, cache_dir })
    }

    /// What was changed, in the order of the paths.
    ///
    /// # Errors
    /// When the upper cannot be read.
    pub fn differences(&self) -> Result<Vec<Difference>, Error> {
        if let Some(mountpoint) = &self.mounted
            && !write_out(mountpoint, read_run(&self.state_dir).as_ref())
        {
            tracing::warn!("the mount does not answer: stores to mapped files may be missing");
        }
        let source = self.source()?;
        let same = |node: NodeId, file: &File| {
            let Some(source) = &source else { return false };
            let same = source.file(node).and_then(|lower| source.is_in(&lower, file));
            same.unwrap_or_else(|error| {
                tracing::warn!(%error, "not compared with the library; shown as modified");
                false
            })
        };
        let scan = Scan::new(self.upper.as_fd(), &self.index, self.pristine()?, &same);
        scan.and_then(|scan| scan.differences()).map_err(self.unreadable())
    }

    /// The attributes of what was never changed. The root of the upper belongs to the user who mounts.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn pristine(&self) -> Result<Pristine, Error> {
        pristine_of(self.upper.as_fd()).map_err(self.unreadable())
    }

    /// The content of the catalog's files as this space shows them. None when the library no longer has the catalog.
    ///
    /// # Errors
    /// When the blob cache cannot be opened.
    pub fn source(&self) -> Result<Option<Source>, Error> {
        let Some(location) = &self.location else { return Ok(None) };
        let cache = compose::blob_cache(&self.cache_dir)?;
        let names = compose::names(&self.index, &self.record.basis.identity)?;
        let blobs = Arc::new(compose::blobs(location, cache));
        Ok(Some(Source::new(Arc::clone(&self.index), blobs, names, Strategy::Smart)))
    }

    /// Converts an error of reading the upper, for `map_err`.
    pub(super) fn unreadable(&self) -> impl Fn(UpperError) -> Error {
        let path = self.state_dir.join("upper");
        move |source| Error::Changes { path: path.clone(), source }
    }
}

/// The attributes of what was never changed in the space with this upper.
pub(super) fn pristine_of(upper: impl AsFd) -> Result<Pristine, UpperError> {
    let stat = rustix::fs::fstat(upper).map_err(|source| UpperError::Os {
        path: PathBuf::new(),
        call: "stat",
        source,
    })?;
    Ok(Pristine { uid: stat.st_uid, gid: stat.st_gid, dir_mode: 0o750 & !process::umask() })
}

/// The index of the catalog that a record names, and the library if it still has that catalog.
fn catalog_of(record: &SpaceRecord, env: &Env) -> Result<(Index, Option<Location>), Error> {
    let basis = &record.basis;
    let indexes = env.cache_dir().join("index");
    let name = CatalogName { blueprint: basis.blueprint.clone(), platform: this_platform() };
    let opened = Location::recorded(Path::new(&basis.library), &env.access()).and_then(|location| {
        open_or_compile(&*location.library, &name, &indexes).map(|index| (index, location))
    });
    match opened {
        Ok((index, location)) if Hex(&index.catalog_sha256()).to_string() == basis.catalog_sha256 => {
            return Ok((index, Some(location)));
        }
        Ok(_) => {}
        Err(error @ LibraryError::Index(_)) => return Err(error.into()),
        Err(error) => tracing::debug!(%error, "the library does not have the catalog of the space"),
    }
    let gone = || Error::CatalogGone { library: basis.library.clone(), blueprint: basis.blueprint.clone() };
    let index = open_by_sum(&basis.catalog_sha256, &indexes).ok_or_else(gone)?;
    Ok((index, None))
}
