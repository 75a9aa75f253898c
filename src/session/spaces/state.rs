//! The states of a space, as the survey and errors name them.

use std::fmt;

use serde::Serialize;

/// The state of a space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpaceState {
    /// A daemon serves it.
    Mounted,
    /// Nothing is mounted.
    #[default]
    Unmounted,
    /// It is mounted, but its daemon has died. The next mount removes the dead mount.
    Stale,
    /// It is mounted, and a directory above it was renamed after the mount.
    Moved,
    /// `state.json` cannot be read.
    Damaged,
    /// A daemon serves it, and the library lacks blobs or has corrupt ones that were needed. Only `status` finds out.
    Degraded,
    /// rcc deleted it. The next mount makes a new one.
    Deleted,
    /// The library no longer has its catalog.
    CatalogGone,
    /// rcc restored it.
    Restored,
}

impl fmt::Display for SpaceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
