//! An environment at another path than the one in which it was built.
//!
//! The first mount of an environment elsewhere reads all of its files once, to find where they name that path. What it finds,
//! and the index for each path, are kept, so that every later mount costs as much as any other. See `library::index::place`.
//! A library in an object store has what `push` found.

use std::path::Path;
use std::sync::Arc;

use super::compose;
use super::error::Error;
use super::request::{MountPlan, Show};
use crate::library::catalogs::CatalogName;
use crate::library::index::Index;
use crate::library::index::cache::open_or_compile;
use crate::library::index::find::Finds;
use crate::library::index::place;
use crate::library::locate::Location;
use crate::space::home::Env;
use crate::space::path::SpacePath;
use crate::sys::process;

/// How many contents of a library in an object store are searched at the same time, at least.
const FETCHING: usize = 8;

/// The index of the plan's environment at the plan's path.
///
/// # Errors
/// [`Error::Unpatchable`], unless the user allows that, and those of reading the library.
pub(super) fn of_plan(plan: &MountPlan, index: Arc<Index>) -> Result<Arc<Index>, Error> {
    if !plan.space.placed {
        return Ok(index);
    }
    let (to, from) = (&plan.space.mountpoint, index.info().path.clone());
    let placed = at(&index, to, Some(&plan.location), &plan.env.cache_dir(), plan.request.show)?;
    match &placed.info().placed {
        Some(found) if found.unpatched > 0 && !plan.request.foreign => Err(Error::Unpatchable {
            path: to.clone(),
            from,
            count: found.unpatched,
            named: found.named.clone(),
        }),
        _ => Ok(placed),
    }
}

/// Fetches and finds what [`of_plan`] needs, so that it takes no time. Returns the index of the catalog.
///
/// # Errors
/// As [`of_plan`], and those of the catalog.
pub(super) fn ahead(
    location: &Location,
    catalog: &CatalogName,
    space: &SpacePath,
    env: &Env,
    show: Option<Show>,
) -> Result<Index, Error> {
    let cache_dir = env.cache_dir();
    let index = open_or_compile(&*location.library, catalog, &cache_dir.join("index"))?;
    if space.placed {
        at(&index, &space.mountpoint, Some(location), &cache_dir, show)?;
    }
    Ok(index)
}

/// The index of an environment at the path `to`. `location` is its library, if that still has the environment.
///
/// # Errors
/// When the library cannot be read.
pub(super) fn at(
    index: &Index,
    to: &Path,
    location: Option<&Location>,
    cache_dir: &Path,
    show: Option<Show>,
) -> Result<Arc<Index>, Error> {
    // `select` has refused every other path.
    let text = to.to_str().unwrap_or_default();
    let indexes = cache_dir.join("index");
    let found = || {
        if let Some(found) = Finds::read(index, &indexes) {
            return Ok(found);
        }
        let location = location.ok_or_else(|| Error::CatalogGone {
            library: String::new(),
            blueprint: index.info().blueprint.clone(),
        })?;
        let sum = index.catalog_sha256();
        let known = location.library.finds(&sum).and_then(|bytes| Finds::parse(index, &bytes));
        let found = match known {
            Some(found) => found,
            None => search(index, to, location, cache_dir, show)?,
        };
        found.write(index, &indexes);
        Ok(found)
    };
    place::open(index, text, &indexes, found).map(Arc::new)
}

fn search(
    index: &Index,
    to: &Path,
    location: &Location,
    cache_dir: &Path,
    show: Option<Show>,
) -> Result<Finds, Error> {
    let started = std::time::Instant::now();
    let blobs = compose::blobs(location, compose::blob_cache(cache_dir)?);
    let bar = show.map(|show| show("searching"));
    if let Some(bar) = &bar {
        bar.set_length(Finds::to_read(index, &blobs).map_err(crate::library::LibraryError::from)?);
    }
    let read = |bytes| {
        if let Some(bar) = &bar {
            bar.inc(bytes);
        }
    };
    // Whoever asks a store waits most of the time.
    let jobs = if blobs.is_far() { process::processors().max(FETCHING) } else { process::processors() };
    let found = Finds::search(index, &blobs, jobs, &read);
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    let found = found.map_err(|source| Error::Unsearched { path: to.to_owned(), source })?;
    let took = started.elapsed();
    tracing::info!(path = %to.display(), ?took, "searched the environment for the path in which it was built");
    Ok(found)
}
