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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::library::catalogs::{CatalogStamp, Catalogs};
    use crate::library::digest::Digest;
    use crate::library::stored::{StoredBlob, StoredBlobs};

    const LIMIT: Duration = Duration::from_secs(10);

    /// A library whose bytecode takes as long as its catalog.
    #[derive(Debug)]
    struct Slow {
        has_catalog: bool,
        begun: Mutex<Sender<()>>,
        catalog: Mutex<Receiver<()>>,
    }

    impl Library for Slow {
        fn has_catalog(&self, _: &CatalogName) -> Option<bool> {
            Some(self.has_catalog)
        }

        fn bytecode(&self, _: &CatalogName, _: &dyn Fn(&[u8; 32]) -> bool) -> Option<Vec<u8>> {
            self.begun.lock().send(()).unwrap();
            self.catalog.lock().recv_timeout(LIMIT).expect("the catalog is asked for meanwhile");
            None
        }

        fn name(&self) -> &str {
            unreachable!()
        }

        fn catalogs(&self) -> Result<Catalogs, LibraryError> {
            unreachable!()
        }

        fn catalog_stamp(&self, _: &CatalogName) -> io::Result<CatalogStamp> {
            unreachable!()
        }

        fn open_catalog(&self, _: &CatalogName) -> io::Result<StoredBlob> {
            unreachable!()
        }

        fn catalog(&self, _: &CatalogName) -> Result<(CatalogStamp, Vec<u8>), LibraryError> {
            unreachable!()
        }

        fn blob(&self, _: &Digest) -> io::Result<StoredBlob> {
            unreachable!()
        }

        fn has_blob(&self, _: &Digest) -> io::Result<bool> {
            unreachable!()
        }

        fn blobs(&self) -> Result<StoredBlobs, LibraryError> {
            unreachable!()
        }
    }

    /// Opens a catalog that is refused in the end. Returns whether bytecode was asked for.
    fn open(has_catalog: bool, shows_bytecode: bool) -> bool {
        let ((begun, seen), (tell, catalog)) = (channel(), channel());
        let library = Slow { has_catalog, begun: Mutex::new(begun), catalog: Mutex::new(catalog) };
        let name = CatalogName::parse("adb8c26db4d86a93v12.linux_amd64").unwrap();
        let mut asked = false;
        let opened = fetch_ahead(&library, &name, Path::new("/nowhere"), shows_bytecode, || {
            tell.send(()).unwrap();
            asked =
                seen.recv_timeout(if has_catalog && shows_bytecode { LIMIT } else { Duration::ZERO }).is_ok();
            Err(Error::NothingChosen)
        });
        assert!(matches!(opened, Err(Error::NothingChosen)));
        asked
    }

    #[test]
    fn bytecode_comes_while_the_catalog_does() {
        assert!(open(true, true));
    }

    #[test]
    fn bytecode_that_nobody_wants_is_not_asked_for() {
        assert!(!open(true, false));
        assert!(!open(false, true));
    }
}
