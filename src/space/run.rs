//! `run.json`: which daemon serves a space, and with what.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::materialize::{Counts, ReflinkProbe};
use crate::sys::guarded;

/// The file's name in the space's state directory.
pub(crate) const FILE: &str = "run.json";

/// Longer than any `run.json` that holofs writes.
const MAX_LEN: u64 = 1 << 20;

/// `run.json`: the daemon that serves the space.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunInfo {
    /// Its process.
    pub pid: u32,
    /// When that process started, in clock ticks since boot: tells it from a later one with the same number.
    pub start_time: u64,
    /// Where it was mounted; the mount may have moved since.
    pub mountpoint: PathBuf,
    /// The mount's device number as `major:minor`: finds it in mountinfo wherever it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
    /// `smart`, `reflink` or `copy`.
    pub strategy: String,
    /// `cached` or `passthrough`.
    #[serde(default)]
    pub io: String,
    /// Whether the space can share extents with its library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reflink: Option<ReflinkProbe>,
    /// When it was mounted, in seconds since the epoch.
    pub started: u64,
    /// Every change is refused.
    pub read_only: bool,
    /// The changes go at unmount.
    pub ephemeral: bool,
    /// What else is in force; None in the record of an older version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra: Option<Extra>,
    /// What was materialized so far; the daemon writes it now and then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub materialized: Option<Counts>,
}

/// What a daemon serves with, beside what `run.json` says in names of its own.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Extra {
    /// Other users are let in.
    pub allow_other: bool,
    /// Mount options by name.
    pub options: Vec<String>,
    /// What is unpacked in the background: `own`, or the path of a profile.
    pub prefetch: Option<PathBuf>,
    /// How many bytes of raw blobs the cache may keep.
    pub cache_size: u64,
}

/// Reads `run.json`; None when there is none or it is not whole: it is only information.
#[must_use]
pub fn read_run(dir: &Path) -> Option<RunInfo> {
    serde_json::from_slice(&guarded::read(&dir.join(FILE), MAX_LEN).ok()?).ok()
}
