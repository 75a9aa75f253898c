//! The directories of one user: rcc's home, the shared holotree, holofs's own files.
//!
//! It accesses only the marker of the shared mode, and holofs's own directories to check their owners.
//!
//! Invariant: every path in an [`Env`] is absolute and lexically clean.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::library::locate::Access;
use crate::library::name;
use crate::settings::remote::RemoteSettings;
use crate::settings::{Product, Settings};
use crate::sys::guarded::{Dir, GuardedError, Trust};

/// The holotree that the users of one machine share. rcc has no variable for it.
fn shared_root(product: Product) -> PathBuf {
    let above = if cfg!(target_os = "macos") { "/Users/Shared" } else { "/opt" };
    let name = match product {
        Product::Robocorp => "robocorp",
        Product::Sema4ai => "sema4ai",
    };
    Path::new(above).join(name).join("ht")
}

/// The directories of one invocation.
#[derive(Clone, Debug)]
pub struct Env {
    /// `$HOME` as it is, not cleaned: the names of spaces are made from its bytes.
    pub home: Option<OsString>,
    /// rcc's home.
    pub robocorp_home: PathBuf,
    /// The directory of holofs's own files.
    pub holofs_home: PathBuf,
    /// The directory of compiled indexes, unpacked blobs and profiles.
    pub cache: PathBuf,
    /// The shared holotree, also if this user has not joined it.
    pub shared_root: PathBuf,
    /// What object stores need.
    pub remote: Arc<RemoteSettings>,
}

impl Env {
    /// The directories that the settings name.
    #[must_use]
    pub fn new(settings: &Settings) -> Env {
        Env {
            home: settings.home.clone(),
            robocorp_home: settings.robocorp_home.value.clone(),
            holofs_home: settings.holofs_home.value.clone(),
            cache: settings.cache_dir.value.clone(),
            shared_root: shared_root(settings.product.value),
            // An error is told by the commands that use the settings of mounts.
            remote: settings.mount.as_ref().map(|mount| Arc::new(mount.remote.clone())).unwrap_or_default(),
        }
    }

    /// The user part of the names of this user's spaces.
    #[must_use]
    pub fn user7(&self) -> String {
        name::user7(self.home_bytes())
    }

    /// `$HOME` in the form that [`name`] hashes.
    #[must_use]
    pub fn home_bytes(&self) -> Option<&[u8]> {
        self.home.as_deref().map(OsStr::as_bytes)
    }

    /// Whether this user has joined the shared holotree (`rcc holotree init`).
    #[must_use]
    pub fn is_shared(&self) -> bool {
        let marker = self.shared_root.join("lib/catalog/init").join(self.user7());
        std::fs::symlink_metadata(marker).is_ok_and(|m| m.is_file())
    }

    /// The library that rcc uses for this user.
    #[must_use]
    pub fn hololib(&self) -> PathBuf {
        if self.is_shared() { self.shared_root.join("lib") } else { self.robocorp_home.join("hololib") }
    }

    /// The space's state directory.
    #[must_use]
    pub fn state_dir(&self, identity: &name::Identity) -> PathBuf {
        self.spaces_dir().join(identity.as_str())
    }

    /// The directory of all state directories.
    #[must_use]
    pub fn spaces_dir(&self) -> PathBuf {
        self.holofs_home.join("spaces")
    }

    /// Makes sure that no other user can write to holofs's own directories, as far as they exist. Another user with such a
    /// right could replace the programs of a space.
    ///
    /// # Errors
    /// When a directory belongs to another user, or other users may write to it.
    pub fn check_own_dirs(&self) -> Result<(), GuardedError> {
        let there = |found: Result<Dir, GuardedError>| match found {
            Err(error) if error.is_not_found() => Ok(None),
            found => found.map(Some),
        };
        if let Some(home) = there(Dir::open(&self.holofs_home, Trust::Private))? {
            there(home.open_dir(OsStr::new("spaces"), Trust::Private))?;
        }
        let Some(cache) = there(Dir::open(&self.cache, Trust::Private))? else { return Ok(()) };
        for name in ["index", "blobs", "profiles"] {
            there(cache.open_dir(OsStr::new(name), Trust::Private))?;
        }
        Ok(())
    }

    /// What is needed to reach libraries in object stores.
    #[must_use]
    pub fn access(&self) -> Access {
        Access { cache_dir: self.cache.clone(), settings: Arc::clone(&self.remote) }
    }

    /// The directory of compiled indexes, unpacked blobs and profiles.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.cache.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Flags;

    #[test]
    fn shared_mode_needs_a_regular_file_as_marker() {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            Settings::from_variables(Flags::default(), &|name| (name == "HOME").then(|| "/root".into()));
        let mut env = Env::new(&settings.unwrap());
        env.shared_root = dir.path().to_owned();
        assert!(!env.is_shared());
        let init = dir.path().join("lib/catalog/init");
        std::fs::create_dir_all(init.join("720c7a8")).unwrap();
        assert!(!env.is_shared());
        std::fs::remove_dir(init.join("720c7a8")).unwrap();
        std::fs::write(init.join("720c7a8"), "OK!").unwrap();
        assert!(env.is_shared());
        assert_eq!(env.hololib(), dir.path().join("lib"));
    }
}
