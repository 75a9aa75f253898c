//! Live mounts: found in mountinfo, never by a remembered path, since a mount can move with its directory.

use std::path::Path;

use super::Error;
use crate::fs::error::io_errno;
use crate::sys::mountinfo::{self, MountEntry};

/// The mount of the space whose state is in `state_dir`; the topmost, should there be several.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn find(state_dir: &Path) -> Result<Option<MountEntry>, Error> {
    let spaces = state_dir.parent().unwrap_or(state_dir);
    let mounts = mountinfo::holofs_mounts_of(spaces).map_err(|source| Error::Os {
        path: "/proc/self/mountinfo".into(),
        call: "read",
        source: io_errno(&source),
    })?;
    let identity = state_dir.file_name().and_then(|name| name.to_str());
    Ok(mounts.into_iter().rfind(|mount| mount.identity() == identity))
}
