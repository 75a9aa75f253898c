//! Read-only memory mappings of whole files.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;

/// A read-only mapping of a file.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps a whole file. Nobody may change the file while it is mapped: holofs only replaces index files, by rename.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn of(file: &File) -> std::io::Result<Self> {
        // SAFETY: an index file is complete before it gets its name, and belongs to the user. If the user truncates it
        // under a mount, the daemon gets SIGBUS, as any program that maps a file.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
