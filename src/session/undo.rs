//! Unmounts a mount that is not wanted after all.

use rustix::io::Errno;

use crate::sys::fuse_mount::{self, MountError};
use crate::sys::mountinfo::{self, MountEntry};

/// Takes away a mount of which nobody was told, wherever it is by now.
pub(super) fn undo_mounts(made: &MountEntry) {
    match mountinfo::mounts() {
        Ok(mounts) => {
            let same = mounts.iter().filter(|mount| mount.is_same_filesystem(made));
            same.for_each(undo_mount);
        }
        Err(error) => tracing::error!(%error, "cannot find the mount to end it"),
    }
}

/// Unmounts, lazily when it is in use: the daemon was told to end.
pub(super) fn undo_mount(mount: &MountEntry) {
    let done = match fuse_mount::unmount_wherever(mount, false) {
        Err(MountError::Os { source: Errno::BUSY, .. }) => fuse_mount::unmount_wherever(mount, true),
        other => other,
    };
    if let Err(error) = done {
        tracing::error!(path = %mount.mountpoint.display(), %error, "cannot unmount");
    }
}
