//! The catalogs of a library: which there are, and what each holds.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::LibraryError;

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

/// The format version in the names of catalogs.
const VERSION: &str = "v12.";

/// Every catalog of a hololib, by name. What is there and is no catalog is passed over, as rcc does.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(hololib: &Path) -> Result<Vec<CatalogFile>, LibraryError> {
    let dir = hololib.join("catalog");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(LibraryError::io(&dir))? {
        let entry = entry.map_err(LibraryError::io(&dir))?;
        let name = entry.file_name();
        let Some((blueprint, platform)) = name.to_str().and_then(parse_name) else { continue };
        let path = entry.path();
        let metadata = std::fs::metadata(&path).map_err(LibraryError::io(&path))?;
        if !metadata.is_file() {
            continue;
        }
        let modified = metadata.modified().map_err(LibraryError::io(&path))?;
        found.push(CatalogFile { path, blueprint: blueprint.into(), platform: platform.into(), modified });
    }
    found.sort_by(|a, b| (&a.blueprint, &a.platform).cmp(&(&b.blueprint, &b.platform)));
    Ok(found)
}

/// Blueprint and platform of a catalog's name.
fn parse_name(name: &str) -> Option<(&str, &str)> {
    let (blueprint, platform) = name.split_once(VERSION)?;
    let is_hash = blueprint.len() == 16 && blueprint.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (is_hash && !platform.is_empty() && !platform.contains('.')).then_some((blueprint, platform))
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

    #[test]
    fn names_of_catalogs_and_of_other_things() {
        let hash = "adb8c26db4d86a93";
        assert_eq!(parse_name(&format!("{hash}v12.linux_amd64")), Some((hash, "linux_amd64")));
        for other in ["compress.no", "init", "adb8c26db4d86a93v12.linux_amd64.info", "adb8v12.x", "v12.linux"]
        {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
