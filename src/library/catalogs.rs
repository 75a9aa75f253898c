//! The names of catalogs, and the list of the catalogs of a library.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::catalog::CatalogInfo;
use super::digest::Hex;
use super::look::Look;
use super::name::is_hex;
use super::{Library, LibraryError};
pub use crate::blueprint::hash::this_platform;

/// The format version in the names of catalogs.
const VERSION: &str = "v12.";

/// The name of a catalog: `<blueprint>v12.<platform>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CatalogName {
    /// The blueprint's hash, 16 hex digits.
    pub blueprint: String,
    /// The platform in Go's words, such as `linux_amd64`.
    pub platform: String,
}

/// What became of a catalog that was put into a library or a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// No catalog of this name was there.
    New,
    /// Another one of this name was there.
    Replaced,
    /// It was there.
    Unchanged,
}

impl fmt::Display for CatalogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{VERSION}{}", self.blueprint, self.platform)
    }
}

impl CatalogName {
    /// Splits the name of a catalog. None for a name of another form or format version.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (blueprint, platform) = name.split_once(VERSION)?;
        let is_hash = is_hex(blueprint, 16);
        let is_platform = platform.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'_'));
        let is_name = is_hash && is_platform && platform.contains('_');
        is_name.then(|| Self { blueprint: blueprint.into(), platform: platform.into() })
    }

    /// Fills in the blueprint and the platform where the catalog itself does not give them.
    ///
    /// # Errors
    /// A message when the catalog contradicts its name.
    pub(crate) fn complete(&self, info: &mut CatalogInfo) -> Result<(), String> {
        for (said, name, what) in [
            (&mut info.blueprint, &self.blueprint, "blueprint"),
            (&mut info.platform, &self.platform, "platform"),
        ] {
            if said.is_empty() {
                said.clone_from(name);
            } else if said != name {
                return Err(format!("its name says {what} {name:?} and its content {said:?}"));
            }
        }
        Ok(())
    }
}

/// A value that changes whenever a catalog does. It is only compared.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CatalogStamp(String);

impl From<Look> for CatalogStamp {
    fn from(look: Look) -> Self {
        Self(look.to_string())
    }
}

impl CatalogStamp {
    /// For a catalog that is named by the SHA-256 of its bytes.
    #[must_use]
    pub fn of_digest(sha256: &[u8; 32]) -> Self {
        Self(Hex(sha256).to_string())
    }
}

/// A catalog as a library lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogEntry {
    pub name: CatalogName,
    /// When it was last restored or recorded.
    pub modified: SystemTime,
}

/// The catalogs of a library.
#[derive(Debug, Default)]
pub struct Catalogs {
    /// Sorted by name.
    pub entries: Vec<CatalogEntry>,
    /// Entries that have the name of a catalog and are no regular files.
    pub not_files: Vec<CatalogName>,
}

/// The catalogs of a library, by name. Entries that are no regular files are logged and left out.
///
/// # Errors
/// When the library cannot list them.
pub fn list(library: &dyn Library) -> Result<Vec<CatalogEntry>, LibraryError> {
    let Catalogs { entries, not_files } = library.catalogs()?;
    for name in not_files {
        let path = library.catalog_place(&name);
        tracing::warn!(path, "a catalog is ignored: it is not a regular file");
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "adb8c26db4d86a93";

    #[test]
    fn names_of_catalogs_and_of_other_things() {
        let name = CatalogName::parse("adb8c26db4d86a93v12.linux_amd64").unwrap();
        assert_eq!((name.blueprint.as_str(), name.platform.as_str()), (HASH, "linux_amd64"));
        assert_eq!(name.to_string(), "adb8c26db4d86a93v12.linux_amd64");
        for other in [
            "compress.no",
            "init",
            "adb8c26db4d86a93v12.linux_amd64.info",
            "adb8c26db4d86a93v13.linux_amd64",
            "adb8v12.linux_amd64",
            "v12.linux_amd64",
            "adb8c26db4d86a93v12.",
        ] {
            assert_eq!(CatalogName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_completes_a_catalog_and_may_not_contradict_it() {
        let name = CatalogName::parse("adb8c26db4d86a93v12.linux_amd64").unwrap();
        let mut info = CatalogInfo { platform: "linux_amd64".into(), ..CatalogInfo::default() };
        assert_eq!(name.complete(&mut info), Ok(()));
        assert_eq!(info.blueprint, HASH);
        info.platform = "darwin_arm64".into();
        assert!(name.complete(&mut info).unwrap_err().contains("darwin_arm64"));
    }
}
