//! A library that has the bytecode of an environment too.

use std::io;
use std::sync::Arc;

use super::Bytecode;
use crate::library::catalogs::{CatalogName, CatalogStamp, Catalogs};
use crate::library::digest::Digest;
use crate::library::stored::{StoredBlob, StoredBlobs};
use crate::library::{Latency, Library, LibraryError};

/// A library, and the bytecode of one of its environments as further blobs.
#[derive(Debug)]
pub struct WithBytecode {
    library: Arc<dyn Library>,
    bytecode: Arc<Bytecode>,
}

impl WithBytecode {
    /// Adds the bytecode to a library.
    #[must_use]
    pub fn new(library: Arc<dyn Library>, bytecode: Arc<Bytecode>) -> Self {
        Self { library, bytecode }
    }
}

impl Library for WithBytecode {
    fn name(&self) -> &str {
        self.library.name()
    }

    fn catalogs(&self) -> Result<Catalogs, LibraryError> {
        self.library.catalogs()
    }

    fn catalog_stamp(&self, name: &CatalogName) -> io::Result<CatalogStamp> {
        self.library.catalog_stamp(name)
    }

    fn open_catalog(&self, name: &CatalogName) -> io::Result<StoredBlob> {
        self.library.open_catalog(name)
    }

    fn catalog(&self, name: &CatalogName) -> Result<(CatalogStamp, Vec<u8>), LibraryError> {
        self.library.catalog(name)
    }

    fn blob(&self, digest: &Digest) -> io::Result<StoredBlob> {
        match self.bytecode.content(digest) {
            Some(content) => Ok(content),
            None => self.library.blob(digest),
        }
    }

    fn has_blob(&self, digest: &Digest) -> io::Result<bool> {
        Ok(self.bytecode.content(digest).is_some() || self.library.has_blob(digest)?)
    }

    fn blobs(&self) -> Result<StoredBlobs, LibraryError> {
        self.library.blobs()
    }

    fn latency(&self) -> Latency {
        self.library.latency()
    }
}
