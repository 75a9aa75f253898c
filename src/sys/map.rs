//! Read-only memory mappings of whole files.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a whole file. Nobody may change the file while it is mapped: holofs only replaces index files, by rename.
///
/// # Errors
/// Those of mmap(2).
pub fn of(file: &File) -> io::Result<Mmap> {
    // SAFETY: an index file is complete before it gets its name, and belongs to the user. If the user truncates it
    // under a mount, the daemon gets SIGBUS, as any program that maps a file.
    unsafe { Mmap::map(file) }
}
