//! Live mounts: found in mountinfo, never by a remembered path, since a mount can move with its directory.

use super::Error;
use crate::fs::error::io_errno;
use crate::sys::mountinfo::{self, MountEntry, SOURCE_PREFIX};

/// The source of the mount of a space.
#[must_use]
pub fn source_of(identity: &str) -> String {
    format!("{SOURCE_PREFIX}{identity}")
}

/// The mount of a space; the topmost, should there be several.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn find(identity: &str) -> Result<Option<MountEntry>, Error> {
    let mounts = mountinfo::holofs_mounts().map_err(|source| Error::Os {
        path: "/proc/self/mountinfo".into(),
        call: "read",
        source: io_errno(&source),
    })?;
    Ok(mounts.into_iter().rfind(|mount| mount.identity() == Some(identity)))
}
