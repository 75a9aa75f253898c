//! What a mount fetches from a store before its daemon starts: a daemon has to answer within a time limit, which a network does
//! not know.
//!
//! Invariant: only an error of the catalog is one of the mount.

use std::io;
use std::path::Path;

use crate::library::bytecode::{Bytecode, travel};
use crate::library::catalogs::CatalogName;
use crate::library::index::Index;
use crate::library::{Library, LibraryError};
use crate::session::error::Error;
use crate::sys::thread;

/// Opens the index of a catalog in a store by `open`. If the mount is to show bytecode, and this machine has none, that comes
/// meanwhile.
///
/// # Errors
/// Those of `open`. Without bytecode the mount goes on.
pub(in crate::session) fn fetch_ahead(
    library: &dyn Library,
    catalog: &CatalogName,
    cache_dir: &Path,
    shows_bytecode: bool,
    open: impl FnOnce() -> Result<Index, Error>,
) -> Result<(), Error> {
    // Both need the head of the catalog. So the store is asked for it before, once.
    if !shows_bytecode || library.has_catalog(catalog) != Some(true) {
        return open().map(drop);
    }
    let known = |catalog: &[u8; 32]| matches!(Bytecode::open(cache_dir, catalog), Ok(Some(_)));
    let fetch = || library.bytecode(catalog, &known).map(|packed| travel::unpack(&packed));
    let (opened, bytecode) = thread::beside("bytecode", fetch, open);
    let index = opened?;
    match bytecode {
        Ok(Some(unpacked)) => keep(unpacked, &index, cache_dir),
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "bytecode is not fetched"),
    }
    Ok(())
}

/// Keeps bytecode that came from a store for all mounts of this machine.
fn keep(unpacked: io::Result<Vec<u8>>, index: &Index, cache_dir: &Path) {
    let kept = unpacked.map_err(LibraryError::io("gzip"));
    match kept.and_then(|unpacked| travel::keep(&unpacked, cache_dir, index)) {
        Ok(written) => tracing::info!(files = written.files, bytes = written.bytes, "bytecode of the store"),
        Err(error) => tracing::warn!(%error, "the bytecode of the store is not used"),
    }
}
