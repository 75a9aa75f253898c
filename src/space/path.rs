//! A space's names, and the directory in which its environment works.

use std::path::{Path, PathBuf};

use crate::library::name::Identity;

/// A space's name and place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpacePath {
    /// The name of its directory: the bytes that relocation writes.
    pub identity: Identity,
    /// Its directory.
    pub mountpoint: PathBuf,
    /// The name its user knows it by (`demo`).
    pub label: String,
    /// The controller as rcc records it (`rcc.user`).
    pub controller: String,
}

impl SpacePath {
    /// The directory above: the only one in which the environment works.
    #[must_use]
    pub fn base(&self) -> &Path {
        self.mountpoint.parent().unwrap_or(Path::new("/"))
    }
}
