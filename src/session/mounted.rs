//! What `mount` answers.

use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::materialize::ReflinkProbe;
use crate::settings::{IoMode, Strategy};

/// What a mount is, once it answers. The keys of `holofs mount --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// The mountpoint.
    pub path: PathBuf,
    /// The space's name on disk.
    pub identity: String,
    /// The environment.
    pub blueprint: String,
    /// Its library.
    pub library: PathBuf,
    /// The strategy in force. None for a daemon of another version with a strategy that this one does not know.
    pub strategy: Option<Strategy>,
    /// The I/O mode in force, as `strategy`.
    pub io: Option<IoMode>,
    /// Whether extents can be shared with the library.
    pub reflink: Option<ReflinkProbe>,
    /// Entries of the environment: files, directories and links.
    pub entries: u32,
    /// Files with relocations.
    pub relocated: u32,
    /// The daemon.
    pub pid: u32,
    /// From the call to the answer, in milliseconds.
    pub mounted_ms: u64,
    /// Contents that the library has not: files with them cannot be read.
    #[serde(default, skip_serializing_if = "is_none")]
    pub missing_blobs: u32,
    /// It was mounted already.
    pub reused: bool,
    /// Where the changes are that the space had before rcc deleted it; the space is a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<PathBuf>,
}

fn is_none(count: &u32) -> bool {
    *count == 0
}

/// The time since `start` in milliseconds.
pub(super) fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
