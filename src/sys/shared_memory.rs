//! Memory that a process shares with the processes that it forks: words that all of them read and write atomically.
//!
//! The memory is sparse: a page takes no space before it is written, and all of them are zero at first. A process that is
//! killed leaves the words as they are at that instant. Whoever reads them must be able to tell a half-written record by
//! its words alone.
//!
//! Invariant: nobody can make the memory shorter than its mapping, so no access ends in SIGBUS.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::errno_of;

/// Bytes of a word.
const WORD: usize = size_of::<AtomicU64>();

/// A mapping of words.
#[derive(Debug)]
pub struct SharedMemory {
    map: MmapRaw,
    words: usize,
    /// The memory itself, which another program can map.
    file: Option<File>,
}

impl SharedMemory {
    /// Zeroed memory that forked processes share. `name` is shown in `/proc`. Where no file may be so large (`ulimit -f`),
    /// the memory has no descriptor.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2) and mmap(2).
    pub fn create(name: &str, words: usize) -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(name, flags)?;
        match rustix::fs::ftruncate(&file, (words * WORD) as u64) {
            Err(Errno::FBIG) => return Self::without_fd(words),
            made => made?,
        }
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::of(file)
    }

    fn without_fd(words: usize) -> Result<Self, Errno> {
        let zeroes =
            File::options().read(true).write(true).open("/dev/zero").map_err(|error| errno_of(&error))?;
        let map = MmapOptions::new().len(words * WORD).map_raw(&zeroes).map_err(|error| errno_of(&error))?;
        Ok(Self { map, words, file: None })
    }

    /// The memory behind a descriptor of [`SharedMemory::fd`].
    ///
    /// # Errors
    /// EINVAL for a file that could be made shorter or that has no whole words, and the errors of the calls.
    pub fn of(file: OwnedFd) -> Result<Self, Errno> {
        if !rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK) {
            return Err(Errno::INVAL);
        }
        let len = usize::try_from(rustix::fs::fstat(&file)?.st_size).map_err(|_| Errno::INVAL)?;
        if len == 0 || !len.is_multiple_of(WORD) {
            return Err(Errno::INVAL);
        }
        let file = File::from(file);
        let map = MmapOptions::new().len(len).map_raw(&file).map_err(|error| errno_of(&error))?;
        Ok(Self { map, words: len / WORD, file: Some(file) })
    }

    /// Zeroed memory of this process alone.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn private(words: usize) -> Result<Self, Errno> {
        let made = |error: io::Error| errno_of(&error);
        let map = MmapOptions::new().len(words * WORD).map_anon().map_err(made)?;
        Ok(Self { map: map.into(), words, file: None })
    }

    /// The descriptor of the memory. None for memory that no other program can map.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(File::as_fd)
    }

    /// All words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping starts at a page, has at least this many words, and lives as long as `self`. The memory
        // cannot shrink. All processes access it as atomic words only, so that no access is a data race.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.words) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn two_mappings_of_a_memory_are_the_same() {
        let one = SharedMemory::create("test", 1000).unwrap();
        let other = SharedMemory::of(one.fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(other.words().len(), 1000);
        assert!(other.words().iter().all(|word| word.load(Relaxed) == 0));
        one.words()[999].store(7, Relaxed);
        assert_eq!(other.words()[999].load(Relaxed), 7);
    }

    #[test]
    fn memory_that_could_become_shorter_is_refused() {
        let file = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        assert_eq!(SharedMemory::of(file).unwrap_err(), Errno::INVAL);
        let one = SharedMemory::create("test", 1).unwrap();
        assert_eq!(rustix::fs::ftruncate(one.fd().unwrap(), 0), Err(Errno::PERM));
    }

    #[test]
    fn private_memory_is_zeroed() {
        let one = SharedMemory::private(3).unwrap();
        assert!(one.fd().is_none());
        assert_eq!(one.words().len(), 3);
        one.words()[2].fetch_add(1, Relaxed);
        assert_eq!(one.words()[2].load(Relaxed), 1);
    }
}
