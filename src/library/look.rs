//! Tells cheaply whether a file has changed: by its device, inode, size and times.
//!
//! This detects that a file was restored, replaced or changed by accident. Invariant: two equal looks mean the same inode
//! without a write in between, because each write changes the ctime and no program can set it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

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
