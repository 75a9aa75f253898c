//! Which library is meant by what was typed.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::LibraryError;

/// What was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LibraryKind {
    /// A hololib itself: `catalog/` and `library/`.
    Hololib,
    /// A ROBOCORP_HOME: `hololib/`.
    Home,
    /// A shared holotree: `lib/`.
    Shared,
}

/// A library found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Location {
    /// The directory that holds `catalog/` and `library/`, absolute.
    pub hololib: PathBuf,
    /// How it was given.
    pub kind: LibraryKind,
}

impl Location {
    /// The directory in which the spaces of this library's own environments are. rcc's shared holotree has its library
    /// below the spaces.
    #[must_use]
    pub fn holotree(&self) -> PathBuf {
        let above = self.hololib.parent().unwrap_or(&self.hololib);
        let below = self.kind == LibraryKind::Shared || self.hololib.file_name() == Some(OsStr::new("lib"));
        if below { above.to_owned() } else { above.join("holotree") }
    }
}

/// Finds the library: the first of a hololib, a ROBOCORP_HOME, a shared holotree that fits; `auto` or `-` is
/// `default`, rcc's own.
///
/// # Errors
/// [`LibraryError::NotALibrary`] with what was found instead.
pub fn locate(given: &OsStr, default: &Path) -> Result<Location, LibraryError> {
    if given == "auto" || given == "-" {
        return hololib_at(default, LibraryKind::Hololib)
            .ok_or_else(|| not(default, "rcc has no library here: it holds no catalog/ and library/"));
    }
    let path = std::path::absolute(given).map_err(LibraryError::io(given))?;
    let found = hololib_at(&path, LibraryKind::Hololib)
        .or_else(|| hololib_at(&path.join("hololib"), LibraryKind::Home))
        .or_else(|| hololib_at(&path.join("lib"), LibraryKind::Shared));
    if let Some(found) = found {
        return Ok(found);
    }
    Err(not(&path, why_not(&path)))
}

fn hololib_at(path: &Path, kind: LibraryKind) -> Option<Location> {
    // Within a home the place says what it is; only a directory of any name must show both.
    let is_one =
        path.join("catalog").is_dir() && (kind != LibraryKind::Hololib || path.join("library").is_dir());
    is_one.then(|| Location { hololib: path.to_owned(), kind })
}

fn not(path: &Path, why: &'static str) -> LibraryError {
    LibraryError::NotALibrary { path: path.to_owned(), why }
}

fn why_not(path: &Path) -> &'static str {
    let Ok(metadata) = std::fs::metadata(path) else { return "there is no such file or directory" };
    if metadata.is_dir() {
        return "not a library: it holds neither catalog/ and library/, nor hololib/, nor lib/";
    }
    if !metadata.is_file() {
        return "not a library: it is neither a directory nor a file";
    }
    let mut start = [0u8; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    if read.is_ok() && start == *b"PK\x03\x04" {
        return "zip libraries cannot be mounted yet; import it with `rcc holotree import`";
    }
    "not a library: it is a file"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shape_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for (inner, kind) in
            [("a", LibraryKind::Hololib), ("b/hololib", LibraryKind::Home), ("c/lib", LibraryKind::Shared)]
        {
            let hololib = dir.path().join(inner);
            std::fs::create_dir_all(hololib.join("catalog")).unwrap();
            std::fs::create_dir_all(hololib.join("library")).unwrap();
            let given = dir.path().join(inner.split('/').next().unwrap());
            let found = locate(given.as_os_str(), Path::new("/nowhere")).unwrap();
            assert_eq!((found.kind, &found.hololib), (kind, &hololib));
            assert_eq!(locate(OsStr::new("auto"), &hololib).unwrap().hololib, hololib);
        }
    }

    #[test]
    fn a_home_whose_library_holds_no_blobs_yet() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("hololib/catalog")).unwrap();
        let found = locate(dir.path().as_os_str(), Path::new("/nowhere")).unwrap();
        assert_eq!(found.kind, LibraryKind::Home);
        let itself = dir.path().join("hololib");
        assert!(locate(itself.as_os_str(), Path::new("/nowhere")).is_err());
    }

    #[test]
    fn what_is_no_library_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let zip = dir.path().join("x.zip");
        std::fs::write(&zip, b"PK\x03\x04....").unwrap();
        for (path, word) in
            [(zip.as_path(), "zip"), (dir.path(), "neither"), (Path::new("/nowhere"), "no such")]
        {
            let error = locate(path.as_os_str(), Path::new("/nowhere")).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
