//! A library that has the bytecode of an environment too.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Bytecode;
use crate::library::catalogs::{CatalogName, CatalogStamp, Catalogs};
use crate::library::digest::Digest;
use crate::library::stored::{StoredBlob, StoredBlobs};
use crate::library::turn::{Turn, Waiting};
use crate::library::{Latency, Library, LibraryError};
use crate::metrics::Contact;

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

    fn is_here(&self, digest: &Digest) -> bool {
        self.library.is_here(digest) || self.bytecode.content(digest).is_some()
    }

    fn latency(&self) -> Latency {
        self.library.latency()
    }

    fn turn(&self, digest: &Digest, waiting: Waiting<'_>) -> io::Result<Option<Turn>> {
        if self.bytecode.content(digest).is_some() { Ok(None) } else { self.library.turn(digest, waiting) }
    }

    fn patience(&self, since: Instant) -> Option<Duration> {
        self.library.patience(since)
    }

    fn forget(&self, digest: &Digest) {
        self.library.forget(digest);
    }

    fn position(&self, digest: &Digest) -> u64 {
        self.library.position(digest)
    }

    fn group_of(&self, digest: &Digest) -> Option<u64> {
        self.library.group_of(digest)
    }

    fn stored_size(&self, digest: &Digest) -> Option<u64> {
        self.library.stored_size(digest)
    }

    fn has_catalog(&self, name: &CatalogName) -> Option<bool> {
        self.library.has_catalog(name)
    }

    fn profile(&self, name: &CatalogName) -> Option<PathBuf> {
        self.library.profile(name)
    }

    fn finds(&self, catalog: &[u8; 32]) -> Option<Vec<u8>> {
        self.library.finds(catalog)
    }

    fn bytecode(&self, name: &CatalogName, known: &dyn Fn(&[u8; 32]) -> bool) -> Option<Vec<u8>> {
        self.library.bytecode(name, known)
    }

    fn pause(&self) {
        self.library.pause();
    }

    fn contact(&self) -> Option<Contact> {
        self.library.contact()
    }

    fn catalog_place(&self, name: &CatalogName) -> String {
        self.library.catalog_place(name)
    }

    fn blob_place(&self, digest: &Digest) -> String {
        self.library.blob_place(digest)
    }
}
