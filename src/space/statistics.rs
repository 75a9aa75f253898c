//! `stats.json`: what the mounts of a space add up to, see [`Totals`].
//!
//! Nothing depends on the file. One that is damaged, or of another environment, counts as missing. It is not synced: a loss
//! of power may take the statistics of the space with it.

use std::path::Path;

use super::SpaceError;
use super::record::write_json;
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
