//! Finds and opens the library that the user named.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dir::DirLibrary;
use super::zip::ZipLibrary;
use super::{Library, LibraryError};

/// How the path that the user named leads to the library.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LibraryKind {
    /// A hololib: `catalog/` and `library/`.
    Hololib,
    /// A ROBOCORP_HOME: `hololib/`.
    Home,
    /// A shared holotree: `lib/`.
    Shared,
    /// A `hololib.zip`.
    Zip,
    /// A robot bundle with a `hololib.zip` in it.
    Bundle,
}

/// A library, and its place on this machine.
#[derive(Clone, Debug)]
pub struct Location {
    /// The directory that holds `catalog/` and `library/`, or the archive. Absolute.
    pub path: PathBuf,
    pub kind: LibraryKind,
    pub library: Arc<dyn Library>,
}

impl Location {
    /// A library in a directory. Nothing is read yet.
    #[must_use]
    pub fn directory(hololib: PathBuf, kind: LibraryKind) -> Self {
        Self { library: Arc::new(DirLibrary::new(&hololib)), path: hololib, kind }
    }

    fn archive(path: &Path) -> Result<Self, LibraryError> {
        let library = ZipLibrary::open(path)?;
        let kind = if library.is_nested() { LibraryKind::Bundle } else { LibraryKind::Zip };
        Ok(Self { library: Arc::new(library), path: path.to_owned(), kind })
    }

    /// The library at a path that an earlier mount recorded.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn recorded(path: &Path) -> Result<Self, LibraryError> {
        if path.is_file() {
            return Self::archive(path);
        }
        Ok(Self::directory(path.to_owned(), LibraryKind::Hololib))
    }

    /// The directory in which rcc keeps usage marks. None for an archive, for which rcc keeps none.
    #[must_use]
    pub fn hololib(&self) -> Option<&Path> {
        match self.kind {
            LibraryKind::Hololib | LibraryKind::Home | LibraryKind::Shared => Some(&self.path),
            LibraryKind::Zip | LibraryKind::Bundle => None,
        }
    }

    /// The directory in which rcc keeps the spaces of this library. In a shared holotree it is above the library. None for an
    /// archive, which does not belong to a holotree.
    #[must_use]
    pub fn holotree(&self) -> Option<PathBuf> {
        let hololib = self.hololib()?;
        let above = hololib.parent().unwrap_or(hololib);
        let below = self.kind == LibraryKind::Shared || hololib.file_name() == Some(OsStr::new("lib"));
        Some(if below { above.to_owned() } else { above.join("holotree") })
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
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() => Location::archive(&path),
        Ok(found) if found.is_dir() => {
            Err(not(&path, "not a library: it holds neither catalog/ and library/, nor hololib/, nor lib/"))
        }
        Ok(_) => Err(not(&path, "not a library: it is neither a directory nor a file")),
        Err(_) => Err(not(&path, "there is no such file or directory")),
    }
}

fn hololib_at(path: &Path, kind: LibraryKind) -> Option<Location> {
    // A new home may have no `library/` yet. There the name `hololib` or `lib` tells enough.
    let is_one =
        path.join("catalog").is_dir() && (kind != LibraryKind::Hololib || path.join("library").is_dir());
    is_one.then(|| Location::directory(path.to_owned(), kind))
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
        for (inner, kind) in
            [("a", LibraryKind::Hololib), ("b/hololib", LibraryKind::Home), ("c/lib", LibraryKind::Shared)]
        {
            let hololib = dir.path().join(inner);
            std::fs::create_dir_all(hololib.join("catalog")).unwrap();
            std::fs::create_dir_all(hololib.join("library")).unwrap();
            let given = dir.path().join(inner.split('/').next().unwrap());
            let found = locate(given.as_os_str(), Path::new("/nowhere")).unwrap();
            assert_eq!((found.kind, &found.path), (kind, &hololib));
            assert_eq!(locate(OsStr::new("auto"), &hololib).unwrap().path, hololib);
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
