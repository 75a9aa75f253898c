//! A space's names, and the directory in which its environment works.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::library::name::Identity;

/// The names and the directory of a space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpacePath {
    /// The name of its directory. Relocation writes these bytes into files.
    pub identity: Identity,
    /// The directory on which it is mounted, absolute.
    pub mountpoint: PathBuf,
    /// The directory that the catalog names for it, if it is mounted on another one. rcc does not know such a mount.
    pub own: Option<PathBuf>,
    /// Its files name the mountpoint instead of `own`: the whole path is relocated.
    pub placed: bool,
    /// The name by which its user knows it (`demo`).
    pub label: String,
    /// The controller as rcc records it (`rcc.user`).
    pub controller: String,
}

impl SpacePath {
    /// The directory above the mountpoint.
    #[must_use]
    pub fn base(&self) -> &Path {
        self.mountpoint.parent().unwrap_or(Path::new("/"))
    }

    /// The directory above the one that its files name. The environment works in this directory only.
    #[must_use]
    pub fn own_base(&self) -> &Path {
        let own = self.own.as_ref().filter(|_| !self.placed);
        own.unwrap_or(&self.mountpoint).parent().unwrap_or(Path::new("/"))
    }

    /// The name of the directory in [`Self::base`]: the identity, unless it is mounted on another directory.
    #[must_use]
    pub fn dir_name(&self) -> &OsStr {
        self.mountpoint.file_name().unwrap_or(OsStr::new(self.identity.as_str()))
    }
}

/// A mountpoint as mountinfo shows it: links above it are resolved. The mountpoint itself is not accessed, since a dead
/// or hanging daemon would answer with an error, or never.
#[must_use]
pub fn resolved(mountpoint: &Path) -> PathBuf {
    match (mountpoint.parent().map(Path::canonicalize), mountpoint.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => mountpoint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_above_a_mountpoint_are_followed_and_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("base")).unwrap();
        std::os::unix::fs::symlink(real.join("base"), real.join("alias")).unwrap();
        std::os::unix::fs::symlink("/nowhere", real.join("base/space")).unwrap();
        assert_eq!(resolved(&real.join("alias/space")), real.join("base/space"));
        assert_eq!(resolved(Path::new("/no/such")), Path::new("/no/such"));
    }
}
