//! What a command says about a mount that it has made, or has found.

use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::library::cache::BlobCache;
use crate::library::index::{Index, NodeId, NodeKind};
use crate::library::locate::Kind;
use crate::materialize::ReflinkProbe;
use crate::session::compose;
use crate::session::request::MountPlan;
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
    /// Files that name another directory, because no other path fits into them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unpatched: u32,
    /// The daemon's process.
    pub pid: u32,
    /// Time from the command to the first answer of the mount, in milliseconds.
    pub mounted_ms: u64,
    /// Number of blobs that the library does not have. Files with these blobs cannot be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_blobs: u32,
    /// With `--offline`, the number of files that are not in the cache and cannot be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_files: u32,
    /// Their size in bytes.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub missing_bytes: u64,
    /// Bytecode is shown: see [`crate::library::bytecode`].
    #[serde(default)]
    pub bytecode: bool,
    /// The space was mounted already.
    pub reused: bool,
    /// Nothing was mounted, for this reason, and the environment was restored as plain files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<String>,
    /// The directory to which the changes of a space were moved that rcc had deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<PathBuf>,
}

impl Mounted {
    /// What the user should know about it.
    #[must_use]
    pub fn notes(&self, plan: &MountPlan) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(why) = &self.restored {
            notes.push(format!("restored (no FUSE): {why}"));
        }
        if plan.settings.pycache.value && !self.bytecode && self.restored.is_none() {
            notes.push(
                "no bytecode is shown: compile it with `holofs warm --pycache` before the mount".to_owned(),
            );
        }
        if self.missing_blobs > 0 {
            let count = self.missing_blobs;
            notes.push(format!(
                "the library lacks {count} of the environment's blobs, and files that need them cannot be read: see `holofs check`"
            ));
        }
        if self.missing_files > 0 {
            let (files, bytes) = (self.missing_files, self.missing_bytes);
            notes.push(format!(
                "{files} files ({bytes} bytes) are not in the cache, and cannot be read offline"
            ));
        }
        if let Some(own) = plan.space.own.as_ref().filter(|_| !plan.space.placed || self.unpatched > 0) {
            let count = if plan.space.placed { self.unpatched } else { self.relocated };
            let own = own.display();
            notes.push(format!("{count} files name {own}, on which this space is not mounted"));
        }
        if let Some(aside) = &self.set_aside {
            let aside = aside.display();
            notes.push(format!(
                "rcc deleted this space, so a new one was made; the old changes are in {aside}"
            ));
        }
        notes
    }

    /// The mount of a plan that this daemon serves.
    pub(in crate::session) fn of(plan: &MountPlan, index: &Index, run: RunInfo, started: Instant) -> Self {
        let is_cut_off = plan.settings.remote.offline.value && plan.location.kind == Kind::Remote;
        let missing = if is_cut_off { not_in_cache(plan, index) } else { (0, 0) };
        Self {
            missing_files: missing.0,
            missing_bytes: missing.1,
            path: run.mountpoint,
            identity: plan.space.identity.to_string(),
            blueprint: plan.holds.clone(),
            library: plan.location.path.clone(),
            strategy: run.strategy,
            io: run.io,
            reflink: run.reflink,
            entries: index.len(),
            bytecode: run.extra.as_ref().is_some_and(|extra| extra.bytecode),
            relocated: index.relocated_files(),
            unpatched: index.info().placed.as_ref().map_or(0, |placed| placed.unpatched),
            pid: run.pid,
            mounted_ms: millis(started),
            missing_blobs: 0,
            reused: false,
            restored: None,
            set_aside: None,
        }
    }
}

/// The files that are not in the blob cache, and their size in bytes.
fn not_in_cache(plan: &MountPlan, index: &Index) -> (u32, u64) {
    let cache = BlobCache::existing(&compose::blob_cache_dir(&plan.env.cache_dir())).pinned();
    let mut missing = (0, 0);
    for node in (0..index.len()).map(NodeId) {
        // A damaged index is told by whoever reads the file.
        if let Ok(NodeKind::File { size, digest, stored, .. }) = index.node(node).map(|node| node.kind)
            && !matches!(cache.get(&digest, stored), Ok(Some(_)))
        {
            missing = (missing.0 + 1, missing.1 + size);
        }
    }
    missing
}

fn is_nothing(bytes: &u64) -> bool {
    *bytes == 0
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The time since `start` in milliseconds.
pub(in crate::session) fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
