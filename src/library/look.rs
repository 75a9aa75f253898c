//! How a file looked: the cheap question that stands for "are these the bytes that were verified?".
//!
//! It is an answer about tampering by accident, restoring and replacing, for files of the user's own cache and of
//! the library. Invariant: two equal looks are of one inode whose bytes were not written in between, since nobody
//! can set the change time, which every write moves.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// How a file looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Look {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl From<&Metadata> for Look {
    fn from(found: &Metadata) -> Self {
        Self {
            dev: found.dev(),
            ino: found.ino(),
            size: found.size(),
            mtime: (found.mtime(), found.mtime_nsec()),
            ctime: (found.ctime(), found.ctime_nsec()),
        }
    }
}

impl std::fmt::Display for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { dev, ino, size, mtime, ctime } = self;
        write!(f, "{dev}.{ino}.{size}.{}.{}.{}.{}", mtime.0, mtime.1, ctime.0, ctime.1)
    }
}
