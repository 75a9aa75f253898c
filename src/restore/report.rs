//! What a restore did: files, bytes and time by the way in which files got their bytes.

use std::time::Duration;

use serde::Serialize;

/// How a file got its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By a reflink: the extents are shared.
    Reflink,
    /// By a hard link: the inode is shared.
    Hardlink,
    /// By a copy.
    Copy,
}

/// Files that got their bytes in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    pub files: u64,
    /// The sizes of the files.
    pub bytes: u64,
    /// Of these, what was written to disk.
    pub bytes_written: u64,
    /// The time of all threads together.
    pub seconds: f64,
}

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub reflink: Row,
    pub hardlink: Row,
    pub copy: Row,
    /// Files that had relocations. They are in the other rows too.
    pub relocated: u64,
    /// Files and links that were right already.
    pub kept: u64,
    /// Entries that do not belong to the environment.
    pub removed: u64,
    /// Directories that were made.
    pub directories: u64,
    /// Links that were made.
    pub links: u64,
    /// The earlier restore of this space was interrupted, so everything was made anew.
    pub resumed: bool,
    /// Blobs of which the cache got a copy, for the next restores. What shares the extents of an earlier tree was not written.
    pub cached: Row,
}

impl Report {
    pub(super) fn count(&mut self, way: Way, bytes: u64, bytes_written: u64, took: Duration) {
        let row = match way {
            Way::Reflink => &mut self.reflink,
            Way::Hardlink => &mut self.hardlink,
            Way::Copy => &mut self.copy,
        };
        row.add(&Row { files: 1, bytes, bytes_written, seconds: took.as_secs_f64() });
    }

    pub(super) fn count_cached(&mut self, bytes: u64, bytes_written: u64, took: Duration) {
        self.cached.add(&Row { files: 1, bytes, bytes_written, seconds: took.as_secs_f64() });
    }

    /// Adds what another thread did.
    pub(super) fn add(&mut self, other: &Report) {
        self.reflink.add(&other.reflink);
        self.hardlink.add(&other.hardlink);
        self.copy.add(&other.copy);
        self.cached.add(&other.cached);
        self.relocated += other.relocated;
        self.kept += other.kept;
        self.removed += other.removed;
        self.directories += other.directories;
        self.links += other.links;
        self.resumed |= other.resumed;
    }

    /// All files that were made.
    #[must_use]
    pub fn made(&self) -> Row {
        let mut sum = self.reflink;
        sum.add(&self.hardlink);
        sum.add(&self.copy);
        sum
    }
}

impl Row {
    fn add(&mut self, other: &Row) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.bytes_written += other.bytes_written;
        self.seconds += other.seconds;
    }
}
