//! Finds and opens the library that the user named.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dir::DirLibrary;
use super::zip::ZipLibrary;
use super::{Library, LibraryError};

/// A library, and its place on this machine.
#[derive(Clone, Debug)]
pub struct Location {
    /// The directory that holds `catalog/` and `library/`, or the archive. Absolute.
    pub path: PathBuf,
    pub library: Arc<dyn Library>,
    is_archive: bool,
}

impl Location {
    /// A library in a directory. Nothing is read yet.
    #[must_use]
    pub fn directory(hololib: PathBuf) -> Self {
        Self { library: Arc::new(DirLibrary::new(&hololib)), path: hololib, is_archive: false }
    }

    fn archive(path: &Path) -> Result<Self, LibraryError> {
        Ok(Self { library: Arc::new(ZipLibrary::open(path)?), path: path.to_owned(), is_archive: true })
    }

    /// The library at a path that an earlier mount recorded.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn recorded(path: &Path) -> Result<Self, LibraryError> {
        if path.is_file() {
            return Self::archive(path);
        }
        Ok(Self::directory(path.to_owned()))
    }

    /// The directory in which rcc keeps usage marks. None for an archive, for which rcc keeps none.
    #[must_use]
    pub fn hololib(&self) -> Option<&Path> {
        (!self.is_archive).then_some(&*self.path)
    }

    /// The directory in which rcc keeps the spaces of this library. In a shared holotree it is above the library. None for an
    /// archive, which does not belong to a holotree.
    #[must_use]
    pub fn holotree(&self) -> Option<PathBuf> {
        let hololib = self.hololib()?;
        let above = hololib.parent().unwrap_or(hololib);
        let is_shared = hololib.file_name() == Some(OsStr::new("lib"));
        Some(if is_shared { above.to_owned() } else { above.join("holotree") })
    }

    /// The lock that rcc holds while it records into this library. None for an archive.
    #[must_use]
    pub fn lock(&self) -> Option<PathBuf> {
        self.holotree().map(|holotree| holotree.join("global.lck"))
    }
}

/// Opens the library: the first of a hololib, a ROBOCORP_HOME, a shared holotree, a `hololib.zip` and a robot bundle that
/// fits. `auto` and `-` mean `default`, which is rcc's own.
///
/// # Errors
/// [`LibraryError::NotALibrary`] with what was found instead, and [`LibraryError::Archive`] when an archive is refused.
pub fn locate(given: &OsStr, default: &Path) -> Result<Location, LibraryError> {
    if given == "auto" || given == "-" {
        return hololib_at(default)
            .filter(holds_library)
            .ok_or_else(|| not(default, "rcc has no library here: it holds no catalog/ and library/"));
    }
    if given.is_empty() {
        return Err(not(Path::new("LIBRARY"), "it is empty"));
    }
    let path = std::path::absolute(given).map_err(LibraryError::io(given))?;
    // A new home may have no `library/` yet. There the name `hololib` or `lib` tells enough.
    let found = hololib_at(&path)
        .filter(holds_library)
        .or_else(|| hololib_at(&path.join("hololib")))
        .or_else(|| hololib_at(&path.join("lib")));
    if let Some(found) = found {
        return Ok(found);
    }
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() => Location::archive(&path),
        Ok(found) if found.is_dir() => {
            // Nobody can tell what is in a directory that may not be entered.
            std::fs::metadata(path.join(".")).map_err(LibraryError::io(&path))?;
            Err(not(&path, "not a library: it holds neither catalog/ and library/, nor hololib/, nor lib/"))
        }
        Ok(_) => Err(not(&path, "not a library: it is neither a directory nor a file")),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(not(&path, "there is no such file or directory"))
        }
        Err(error) => Err(LibraryError::io(&path)(error)),
    }
}

fn hololib_at(path: &Path) -> Option<Location> {
    path.join("catalog").is_dir().then(|| Location::directory(path.to_owned()))
}

fn holds_library(location: &Location) -> bool {
    location.path.join("library").is_dir()
}

fn not(path: &Path, why: &'static str) -> LibraryError {
    LibraryError::NotALibrary { path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shape_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for (inner, holotree) in [("a", "holotree"), ("b/hololib", "b/holotree"), ("c/lib", "c")] {
            let hololib = dir.path().join(inner);
            std::fs::create_dir_all(hololib.join("catalog")).unwrap();
            std::fs::create_dir_all(hololib.join("library")).unwrap();
            let given = dir.path().join(inner.split('/').next().unwrap());
            let found = locate(given.as_os_str(), Path::new("/nowhere")).unwrap();
            assert_eq!((found.holotree(), &found.path), (Some(dir.path().join(holotree)), &hololib));
            assert_eq!(locate(OsStr::new("auto"), &hololib).unwrap().path, hololib);
        }
    }

    #[test]
    fn a_home_whose_library_holds_no_blobs_yet() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("hololib/catalog")).unwrap();
        let found = locate(dir.path().as_os_str(), Path::new("/nowhere")).unwrap();
        let itself = dir.path().join("hololib");
        assert_eq!(found.path, itself);
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
