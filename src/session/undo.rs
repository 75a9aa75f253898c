//! Unmounts a mount that must not stay.

use std::path::Path;

use rustix::io::Errno;

use super::registry;
use crate::sys::fuse_mount::{self, MountError};
use crate::sys::mountinfo::MountEntry;

/// Unmounts a mount when it is dropped, unless [`UnmountOnDrop::keep`] was called.
#[derive(Debug)]
pub(super) struct UnmountOnDrop(Option<MountEntry>);

impl UnmountOnDrop {
    pub(super) fn new(mount: Option<MountEntry>) -> Self {
        Self(mount)
    }

    pub(super) fn mount(&self) -> Option<&MountEntry> {
        self.0.as_ref()
    }

    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for UnmountOnDrop {
    fn drop(&mut self) {
        self.0.iter().for_each(undo_mounts);
    }
}

/// Unmounts the mount of the space whose state is in `state_dir`, if there is one.
pub(super) fn undo_mount_of(state_dir: &Path) {
    match registry::find(state_dir) {
        Ok(Some(live)) => undo_mount(&live),
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "cannot find the mount to end it"),
    }
}

/// Unmounts a filesystem at all places where it is mounted by now.
pub(super) fn undo_mounts(made: &MountEntry) {
    match registry::places_of(made) {
        Ok(mounts) => mounts.iter().for_each(undo_mount),
        Err(error) => tracing::error!(%error, "cannot find the mount to end it"),
    }
}

/// Unmounts, lazily if the mount is in use: its daemon ends in any case.
pub(super) fn undo_mount(mount: &MountEntry) {
    let done = match fuse_mount::unmount_wherever(mount, false) {
        Err(MountError::Os { source: Errno::BUSY, .. }) => fuse_mount::unmount_wherever(mount, true),
        other => other,
    };
    if let Err(error) = done {
        tracing::error!(path = %mount.mountpoint.display(), %error, "cannot unmount");
    }
}
