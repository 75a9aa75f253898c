//! What `mount` answers.

use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::plan::MountPlan;
use crate::library::index::Index;
use crate::materialize::ReflinkProbe;
use crate::settings::{IoMode, Strategy};
use crate::space::run::RunInfo;

/// A mount that answers. The keys of `holofs mount --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// The mountpoint.
    pub path: PathBuf,
    /// The name of the space's directory.
    pub identity: String,
    /// The blueprint of what the space holds.
    pub blueprint: String,
    /// The path of the library.
    pub library: PathBuf,
    /// The strategy in force. None for a daemon of another version with a strategy that this one does not know.
    pub strategy: Option<Strategy>,
    /// The I/O mode in force, as `strategy`.
    pub io: Option<IoMode>,
    /// Whether extents can be shared with the library.
    pub reflink: Option<ReflinkProbe>,
    /// Number of files, directories and links in the environment.
    pub entries: u32,
    /// Number of files with relocations.
    pub relocated: u32,
    /// The daemon's process.
    pub pid: u32,
    /// Time from the command to the first answer of the mount, in milliseconds.
    pub mounted_ms: u64,
    /// Number of blobs that the library does not have. Files with these blobs cannot be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_blobs: u32,
    /// The space was mounted already.
    pub reused: bool,
    /// The directory to which the changes of a space were moved that rcc had deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<PathBuf>,
}

impl Mounted {
    /// The mount of a plan that this daemon serves.
    pub(super) fn of(plan: &MountPlan, index: &Index, run: RunInfo, started: Instant) -> Self {
        Self {
            path: run.mountpoint,
            identity: plan.space.identity.to_string(),
            blueprint: plan.holds.clone(),
            library: plan.location.path.clone(),
            strategy: run.strategy,
            io: run.io,
            reflink: run.reflink,
            entries: index.len(),
            relocated: index.relocated_files(),
            pid: run.pid,
            mounted_ms: millis(started),
            missing_blobs: 0,
            reused: false,
            set_aside: None,
        }
    }
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The time since `start` in milliseconds.
pub(super) fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
