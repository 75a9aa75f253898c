//! The limit of the cache: how much its copies take, known without looking at each, and eviction.
//!
//! The sum is in a file of the cache, since several daemons add to it. Invariant: nobody adds a copy but under the
//! file's lock, after the sum and the new copy fit the limit. A sum that cannot be right (none, damaged, of another boot
//! of the machine) is counted anew, and so is one by which there would be no room: copies may be removed at any time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::BlobCache;
use crate::sys::boot::{self, Boot};
use crate::sys::tree;

/// How long another process may hold the sum. Longer than counting and evicting takes; one that is stopped must not
/// stop us.
const PATIENCE: Duration = Duration::from_secs(2);

/// Room for one more copy, while the sum is locked.
#[derive(Debug)]
pub(super) struct Room {
    sum: Sum,
    after: u64,
}

impl Room {
    /// The copy is there.
    pub(super) fn taken(mut self) -> io::Result<()> {
        self.sum.write(self.after)
    }
}

/// The file with the sum, locked.
#[derive(Debug)]
struct Sum(File);

impl Sum {
    fn read(&mut self) -> io::Result<Option<u64>> {
        let mut text = String::new();
        (&self.0).take(64).read_to_string(&mut text)?;
        let Boot(number) = boot::this();
        let of_this_boot =
            text.strip_prefix(&format!("{number:08x} ")).and_then(|rest| rest.strip_suffix('\n'));
        Ok(of_this_boot.and_then(|sum| sum.parse().ok()))
    }

    fn write(&mut self, sum: u64) -> io::Result<()> {
        let Boot(number) = boot::this();
        // In place, and never shorter: it is locked, and one that was cut short does not end in a newline.
        self.0.write_all_at(format!("{number:08x} {sum:020}\n").as_bytes(), 0)
    }
}

impl BlobCache {
    /// Makes room for a copy, by eviction if need be. None when the sum is not to be had: the copy then cannot be kept.
    pub(super) fn make_room(&self, size: u64) -> io::Result<Option<Room>> {
        let Some(mut sum) = self.locked_sum()? else {
            tracing::warn!("another process does not let go of the blob cache; a copy is not kept");
            return Ok(None);
        };
        let fits = |total: u64| total.checked_add(size).filter(|after| *after <= self.limit);
        let known = sum.read().unwrap_or_default();
        let after = match known.and_then(fits) {
            Some(after) => after,
            None => {
                let (left, freed) = self.evict_locked(self.limit.saturating_sub(size))?;
                if freed > 0 {
                    tracing::info!(freed, "removed blobs that were not read for longest from the cache");
                }
                left.saturating_add(size)
            }
        };
        Ok(Some(Room { sum, after }))
    }

    /// Removes the copies that were not read for longest, until the cache holds no more than `limit` bytes. What is
    /// open stays readable. Returns the bytes freed.
    ///
    /// # Errors
    /// What reading the directories and removing may answer.
    pub fn evict(&self, limit: u64) -> io::Result<u64> {
        let Some(mut sum) = self.locked_sum()? else { return Ok(0) };
        let (left, freed) = self.evict_locked(limit)?;
        sum.write(left)?;
        // Notes of versions that read blobs where they are.
        tree::remove(rustix::fs::CWD, self.dir.join("verified").as_path())?;
        Ok(freed)
    }

    /// Returns what is left, and what was freed.
    fn evict_locked(&self, limit: u64) -> io::Result<(u64, u64)> {
        let mut copies = Vec::new();
        collect(&self.dir, 0, &mut copies)?;
        let mut total: u64 = copies.iter().map(|copy| copy.1).sum();
        copies.sort_unstable();
        let mut freed = 0;
        for (_, size, path) in copies {
            if total <= limit {
                break;
            }
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
        // The whole cache may have been deleted.
        std::fs::create_dir_all(&self.dir)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(self.dir.join("size"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Sum(file))),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The copies below a directory of the fan-out: when last read, bytes, path.
fn collect(dir: &Path, depth: usize, out: &mut Vec<((i64, i64), u64, PathBuf)>) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if depth < 3 {
            // Two digits; `tmp` and `size` are none of it.
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
