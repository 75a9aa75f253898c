//! A library in a directory, in rcc's layout: `catalog/` and `library/`.
//!
//! Other users may be able to write to the directory. So a catalog must be a regular file, and not a symbolic link, which
//! could lead to any file. A blob may be a link, as in rcc: its content is compared with its digest.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::catalog::CatalogError;
use super::catalog::limits::MAX_FILE;
use super::catalogs::{CatalogEntry, CatalogName, CatalogStamp, Catalogs};
use super::digest::Digest;
use super::look::Look;
use super::stored::{StoredBlob, StoredBlobs};
use super::{Library, LibraryError};
use crate::sys::fd;
use crate::sys::guarded::{self, Access, Problem};

/// How often to read a catalog that changes while it is read: rcc writes catalogs in place.
const READS: u32 = 3;
/// How long to wait before the next read.
const BETWEEN_READS: Duration = Duration::from_millis(50);

/// A hololib: a directory with `catalog/` and `library/`.
#[derive(Debug)]
pub struct DirLibrary {
    path: PathBuf,
    name: String,
}

impl DirLibrary {
    /// The library in `hololib`. Reads nothing.
    #[must_use]
    pub fn new(hololib: &Path) -> Self {
        // The name is a part of cache keys, so it must not depend on the working directory.
        let path = std::path::absolute(hololib).unwrap_or_else(|_| hololib.to_owned());
        Self { name: path.to_string_lossy().into_owned(), path }
    }

    fn catalog_path(&self, name: &CatalogName) -> PathBuf {
        self.path.join("catalog").join(name.to_string())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("library").join(digest.fan_out())
    }
}

impl Library for DirLibrary {
    fn name(&self) -> &str {
        &self.name
    }

    fn catalogs(&self) -> Result<Catalogs, LibraryError> {
        let dir = self.path.join("catalog");
        let mut catalogs = Catalogs::default();
        for entry in std::fs::read_dir(&dir).map_err(LibraryError::io(&dir))? {
            let entry = entry.map_err(LibraryError::io(&dir))?;
            let Some(name) = entry.file_name().to_str().and_then(CatalogName::parse) else { continue };
            let path = entry.path();
            let metadata = match std::fs::symlink_metadata(&path) {
                // rcc removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(LibraryError::io(&path))?,
            };
            if metadata.is_file() {
                let modified = metadata.modified().map_err(LibraryError::io(&path))?;
                catalogs.entries.push(CatalogEntry { name, modified });
            } else {
                // A link could lead to any file, and reading a special file may never end.
                catalogs.not_files.push(name);
            }
        }
        catalogs.entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(catalogs)
    }

    fn catalog_stamp(&self, name: &CatalogName) -> io::Result<CatalogStamp> {
        std::fs::metadata(self.catalog_path(name)).map(|found| Look::from(&found).into())
    }

    fn open_catalog(&self, name: &CatalogName) -> io::Result<StoredBlob> {
        // The reader compares the bytes with a digest, so a link does no harm.
        let (file, _) = fd::open_regular(&self.catalog_path(name))?;
        Ok(StoredBlob::of_file(file))
    }

    fn catalog(&self, name: &CatalogName) -> Result<(CatalogStamp, Vec<u8>), LibraryError> {
        let path = self.catalog_path(name);
        let failed = |source| LibraryError::Io { path: path.clone(), source };
        let refused = |problem| match problem {
            Problem::Os(errno) => failed(errno.into()),
            problem => LibraryError::Catalog {
                place: self.catalog_place(name),
                source: CatalogError::BadHeader(problem.to_string()),
            },
        };
        for _ in 0..READS {
            let file = guarded::open_file(&path, Access::Read).map_err(|error| refused(error.problem))?;
            let before = file.metadata().map_err(failed)?;
            let bytes = guarded::read_at_most(&file, MAX_FILE).map_err(refused)?;
            let look = Look::from(&before);
            if look == Look::from(&file.metadata().map_err(failed)?) && bytes.len() as u64 == before.size() {
                return Ok((look.into(), bytes));
            }
            std::thread::sleep(BETWEEN_READS);
        }
        Err(failed(io::Error::other("it changes while it is read; is rcc recording?")))
    }

    fn blob(&self, digest: &Digest) -> io::Result<StoredBlob> {
        // A FIFO in its place must not block.
        let (file, _) = fd::open_regular(&self.blob_path(digest))?;
        Ok(StoredBlob::of_file(file))
    }

    fn has_blob(&self, digest: &Digest) -> io::Result<bool> {
        match rustix::fs::stat(self.blob_path(digest)) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn blobs(&self) -> Result<StoredBlobs, LibraryError> {
        let library = self.path.join("library");
        let mut found = StoredBlobs::default();
        let mut dirs = vec![library.clone()];
        while let Some(dir) = dirs.pop() {
            let entries = match std::fs::read_dir(&dir) {
                // A library of no blobs may have no directory for them.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(LibraryError::io(&dir))?,
            };
            for entry in entries {
                let entry = entry.map_err(LibraryError::io(&dir))?;
                let path = entry.path();
                // Links are followed to blobs and not to directories. A broken link is no blob.
                let Ok(metadata) = std::fs::metadata(&path) else { continue };
                if metadata.is_dir() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        dirs.push(path);
                    }
                    continue;
                }
                let named = Digest::parse(entry.file_name().as_encoded_bytes()).ok();
                match named.filter(|digest| library.join(digest.fan_out()) == path) {
                    Some(digest) => found.blobs.push((digest, metadata.len())),
                    None => found.strays += metadata.len(),
                }
            }
        }
        found.blobs.sort_unstable();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::catalogs::list;

    const HASH: &str = "adb8c26db4d86a93";

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
        let library = DirLibrary::new(dir.path());
        let found: Vec<_> =
            list(&library).unwrap().into_iter().map(|entry| library.catalog_place(&entry.name)).collect();
        assert_eq!(found, [catalogs.join(name).to_str().unwrap()]);
    }
}
