//! Keeps the cache within its limit.
//!
//! Several daemons add copies, so the size of all copies is recorded in the file `size`, which is locked while a copy is
//! added. When there is no room, the copies are counted again, because the user may have removed some, and those that
//! were not read for the longest time are evicted. The same happens when the record is missing, damaged, or of an earlier
//! boot.
//!
//! Invariant: a copy is added only under the lock, and only if all copies then fit the limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::BlobCache;
use crate::sys::boot::{self, Boot};
use crate::sys::{fd, tree};

/// How long to wait for the lock. Counting and evicting take less; a process that is stopped must not block others.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The file `size`, locked. It holds the boot's number and the sum of the sizes of all copies.
#[derive(Debug)]
pub(super) struct Sum(File);

impl Sum {
    fn read(&mut self) -> io::Result<Option<u64>> {
        let mut text = String::new();
        (&self.0).take(64).read_to_string(&mut text)?;
        let Boot(number) = boot::this();
        let of_this_boot =
            text.strip_prefix(&format!("{number:08x} ")).and_then(|rest| rest.strip_suffix('\n'));
        Ok(of_this_boot.and_then(|sum| sum.parse().ok()))
    }

    pub(super) fn write(&mut self, sum: u64) -> io::Result<()> {
        let Boot(number) = boot::this();
        // The record always has the same length. A partial one has no newline at its end, and is ignored.
        self.0.write_all_at(format!("{number:08x} {sum:020}\n").as_bytes(), 0)
    }
}

impl BlobCache {
    /// Makes room for a copy, evicting others if necessary. Returns the locked sum, and what to write to it once the copy
    /// is added. None if another process holds the lock for too long.
    pub(super) fn make_room(&self, size: u64) -> io::Result<Option<(Sum, u64)>> {
        let Some(mut sum) = self.locked_sum()? else {
            tracing::warn!("another process holds the lock on the blob cache; not keeping a copy");
            return Ok(None);
        };
        let fits = |total: u64| total.checked_add(size).filter(|after| *after <= self.limit);
        // A record that cannot be read is a damaged one.
        let known = sum.read().unwrap_or_default();
        let after = match known.and_then(fits) {
            Some(after) => after,
            None => {
                let (left, freed) = self.evict_locked(self.limit.saturating_sub(size))?;
                if freed > 0 {
                    tracing::info!(freed, "evicted blobs from the cache");
                }
                left.saturating_add(size)
            }
        };
        Ok(Some((sum, after)))
    }

    /// Removes the copies that were not read for the longest time, until the cache holds at most `limit` bytes. Open files
    /// stay readable. Returns the bytes freed.
    ///
    /// # Errors
    /// When a directory cannot be read or a file not removed.
    pub fn evict(&self, limit: u64) -> io::Result<u64> {
        let Some(mut sum) = self.locked_sum()? else { return Ok(0) };
        let (left, freed) = self.evict_locked(limit)?;
        sum.write(left)?;
        // Earlier versions kept notes here.
        tree::remove(rustix::fs::CWD, self.dir.join("verified").as_path())?;
        Ok(freed)
    }

    /// The number and the bytes of the copies that [`BlobCache::evict`] would remove.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn surplus(&self, limit: u64) -> io::Result<(u64, u64)> {
        let (copies, _) = self.over(limit)?;
        Ok((copies.len() as u64, copies.iter().map(|copy| copy.0).sum()))
    }

    /// The copies that were not read for the longest time and do not fit the limit, size and path of each, and the size of
    /// all copies.
    fn over(&self, limit: u64) -> io::Result<(Vec<(u64, PathBuf)>, u64)> {
        let mut copies = Vec::new();
        collect(&self.dir, 0, &mut copies)?;
        let total: u64 = copies.iter().map(|copy| copy.1).sum();
        copies.sort_unstable();
        let mut left = total;
        let is_over = |(_, size, _): &(_, u64, PathBuf)| {
            let is_over = left > limit;
            left -= size;
            is_over
        };
        let over = copies.into_iter().take_while(is_over).map(|(_, size, path)| (size, path));
        Ok((over.collect(), total))
    }

    /// Returns the bytes that are left and the bytes that were freed.
    fn evict_locked(&self, limit: u64) -> io::Result<(u64, u64)> {
        let (over, mut total) = self.over(limit)?;
        let mut freed = 0;
        for (size, path) in over {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(()) => freed += size,
            }
            total -= size;
        }
        Ok((total, freed))
    }

    fn locked_sum(&self) -> io::Result<Option<Sum>> {
        // The user may have deleted the cache.
        std::fs::create_dir_all(&self.dir)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(self.dir.join("size"))?;
        let is_ours = fd::lock(&file, LOCK_TIMEOUT, Duration::from_millis(1), || false)?;
        Ok(is_ours.then_some(Sum(file)))
    }
}

/// Collects the copies below a directory of the fan-out: time of the last read, size in bytes, path.
fn collect(dir: &Path, depth: usize, out: &mut Vec<((i64, i64), u64, PathBuf)>) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if depth < 3 {
            // The directories of the fan-out have two digits. Skips `tmp` and `size`.
            if name.len() == 2 && entry.file_type()?.is_dir() {
                collect(&entry.path(), depth + 1, out)?;
            }
            continue;
        }
        match entry.metadata() {
            Ok(found) if found.is_file() => {
                let used = (found.atime(), found.atime_nsec()).max((found.ctime(), found.ctime_nsec()));
                out.push((used, found.size(), entry.path()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
