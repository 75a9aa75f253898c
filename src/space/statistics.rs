//! `stats.json`: what the mounts of a space add up to, see [`Totals`].
//!
//! Nothing depends on the file. One that is damaged, or of another environment, counts as missing. It is not synced: a loss
//! of power may take the statistics of the space with it.

use std::path::Path;

use super::SpaceError;
use super::record::write_json;
use crate::library::digest::Hex;
use crate::library::index::{Index, NodeId, NodeKind};
use crate::metrics::totals::Totals;
use crate::sys::guarded::{self, Durability};

/// The file's name in the space's state directory.
pub(crate) const FILE: &str = "stats.json";

/// Longer than any file that holofs writes: a bit for each of some millions of files.
const MAX_LEN: u64 = 4 << 20;

/// Reads the totals. None without a usable file.
#[must_use]
pub fn read(state_dir: &Path) -> Option<Totals> {
    let path = state_dir.join(FILE);
    let bytes = match guarded::read(&path, MAX_LEN) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return None,
        Err(error) => {
            tracing::warn!(%error, "the statistics of the space start anew");
            return None;
        }
    };
    serde_json::from_slice(&bytes)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "the statistics of the space start anew"),
        )
        .ok()
}

/// Writes the totals.
///
/// # Errors
/// When the file cannot be written. The earlier one stays then.
pub fn write(state_dir: &Path, totals: &Totals) -> Result<(), SpaceError> {
    write_json(state_dir, FILE, totals, Durability::CacheOnly)
}

/// What earlier mounts of a space with this environment add up to.
#[must_use]
pub fn earlier(state_dir: &Path, index: &Index) -> Totals {
    let catalog = Hex(&index.catalog_sha256()).to_string();
    read(state_dir).filter(|totals| totals.catalog == catalog).unwrap_or_else(|| of_index(index))
}

/// The totals of an environment without a mount.
#[must_use]
pub fn of_index(index: &Index) -> Totals {
    let is_file =
        |id: &u32| matches!(index.node(NodeId(*id)).map(|node| node.kind), Ok(NodeKind::File { .. }));
    let files = (0..index.len()).filter(is_file).count() as u64;
    Totals::new(Hex(&index.catalog_sha256()).to_string(), files, index.relocated_files().into())
}
