//! Read-only memory mappings of whole files.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;

/// A file mapped read-only.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps a whole file, which nobody changes while it is mapped: an index file is made under another name and
    /// only ever replaced by rename.
    ///
    /// # Errors
    /// What mmap(2) may answer.
    pub fn of(file: &File) -> std::io::Result<Self> {
        // SAFETY: index files are written once, before they get their name, and are owned by the user; a user who
        // truncates his own file under a mount takes the SIGBUS himself, as with any mapped file.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
