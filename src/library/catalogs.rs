//! The catalogs of a library: which there are, and what each holds.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::LibraryError;
use super::index::CatalogInfo;

/// The format version in the names of catalogs.
const VERSION: &str = "v12.";

/// What the name of a catalog file says: `<blueprint>v12.<platform>`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogName {
    /// The blueprint's hash, 16 hex digits.
    pub blueprint: String,
    /// `linux_amd64`.
    pub platform: String,
}

impl CatalogName {
    /// The parts of a catalog's file name; None when it is none of this format version.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let (blueprint, platform) = path.file_name()?.to_str()?.split_once(VERSION)?;
        let is_hash =
            blueprint.len() == 16 && blueprint.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_platform = platform.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'_'));
        let is_name = is_hash && is_platform && platform.contains('_');
        is_name.then(|| Self { blueprint: blueprint.into(), platform: platform.into() })
    }

    /// Puts in what the catalog does not say about itself.
    ///
    /// # Errors
    /// When it says otherwise than its name, in words.
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

/// A catalog file, by its name alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogFile {
    /// The file.
    pub path: PathBuf,
    /// The blueprint's hash in its name.
    pub blueprint: String,
    /// The platform in its name, `linux_amd64`.
    pub platform: String,
    /// When it was last restored or recorded.
    pub modified: SystemTime,
}

/// Every catalog of a hololib, by name. Entries that are no catalogs are skipped, as rcc does. Links and special files are
/// no catalogs: a link can lead to any file, and reading a special file may never end.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(hololib: &Path) -> Result<Vec<CatalogFile>, LibraryError> {
    let (catalogs, others) = list_with_others(hololib)?;
    for path in others {
        tracing::warn!(path = %path.display(), "this is not a regular file, so it is no catalog");
    }
    Ok(catalogs)
}

/// As [`list`]; also the entries that have the name of a catalog and are not regular files.
///
/// # Errors
/// As [`list`].
pub(crate) fn list_with_others(hololib: &Path) -> Result<(Vec<CatalogFile>, Vec<PathBuf>), LibraryError> {
    let dir = hololib.join("catalog");
    let mut others = Vec::new();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(LibraryError::io(&dir))? {
        let path = entry.map_err(LibraryError::io(&dir))?.path();
        let Some(CatalogName { blueprint, platform }) = CatalogName::of(&path) else { continue };
        let metadata = match std::fs::symlink_metadata(&path) {
            // rcc removed it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(LibraryError::io(&path))?,
        };
        if !metadata.is_file() {
            others.push(path);
            continue;
        }
        let modified = metadata.modified().map_err(LibraryError::io(&path))?;
        found.push(CatalogFile { path, blueprint, platform, modified });
    }
    found.sort_by(|a, b| (&a.blueprint, &a.platform).cmp(&(&b.blueprint, &b.platform)));
    Ok((found, others))
}

/// This machine's platform in rcc's (that is Go's) words.
#[must_use]
pub fn this_platform() -> String {
    let os = match std::env::consts::OS {
        "macos" => "darwin",
        os => os,
    };
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        arch => arch,
    };
    format!("{os}_{arch}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "adb8c26db4d86a93";

    #[test]
    fn names_of_catalogs_and_of_other_things() {
        let name = CatalogName::of(Path::new("/c/adb8c26db4d86a93v12.linux_amd64")).unwrap();
        assert_eq!((name.blueprint.as_str(), name.platform.as_str()), (HASH, "linux_amd64"));
        for other in [
            "compress.no",
            "init",
            "adb8c26db4d86a93v12.linux_amd64.info",
            "adb8c26db4d86a93v13.linux_amd64",
            "adb8v12.linux_amd64",
            "v12.linux_amd64",
            "adb8c26db4d86a93v12.",
        ] {
            assert_eq!(CatalogName::of(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_name_completes_a_catalog_and_may_not_contradict_it() {
        let name = CatalogName::of(Path::new("adb8c26db4d86a93v12.linux_amd64")).unwrap();
        let mut info = CatalogInfo { platform: "linux_amd64".into(), ..CatalogInfo::default() };
        assert_eq!(name.complete(&mut info), Ok(()));
        assert_eq!(info.blueprint, HASH);
        info.platform = "darwin_arm64".into();
        assert!(name.complete(&mut info).unwrap_err().contains("darwin_arm64"));
    }

    #[test]
    fn what_is_no_catalog_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let catalogs = dir.path().join("catalog");
        std::fs::create_dir(&catalogs).unwrap();
        let name = format!("{HASH}v12.linux_amd64");
        for file in [&name, &format!("{name}.info"), "compress.no"] {
            std::fs::write(catalogs.join(file), "").unwrap();
        }
        std::fs::create_dir(catalogs.join("4ef4502d7023d413v12.linux_amd64")).unwrap();
        std::os::unix::fs::symlink("nowhere", catalogs.join("0ef4502d7023d413v12.linux_amd64")).unwrap();
        let found: Vec<_> = list(dir.path()).unwrap().into_iter().map(|file| file.path).collect();
        assert_eq!(found, [catalogs.join(name)]);
    }
}
