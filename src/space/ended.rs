//! `ended.json`: why the last mount of a space was given up.
//!
//! The last process of a mount that cannot be served any more writes the file, and the next mount removes it. Nothing
//! depends on it.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sys::guarded;

/// The file's name in the space's state directory.
pub(crate) const FILE: &str = "ended.json";

/// Longer than any `ended.json` that holofs writes.
const MAX_LEN: u64 = 1 << 16;

/// The end of a mount that was given up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// Why, in words.
    pub why: String,
    /// The name of the signal that ended the last process that served it, or its exit code in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// When, in seconds since the epoch.
    pub at: u64,
}

/// Reads `ended.json`. None if the file does not exist or cannot be read.
#[must_use]
pub fn read_ended(dir: &Path) -> Option<Ended> {
    let path = dir.join(FILE);
    let read = match guarded::read(&path, MAX_LEN) {
        Err(error) if error.is_not_found() => return None,
        read => read.map_err(io::Error::from),
    };
    read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "the reason is not known"))
        .ok()
}
