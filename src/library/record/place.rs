//! Where a recording goes: an existing library or a new one, the holotree beside it, compressed or raw, and rcc's
//! lock over all of it.
//!
//! Nothing is made before it is known that the place will do; what is made then is only ever added to.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::RecordError;
use super::store::make_dirs;
use crate::library::LibraryError;
use crate::library::digest::DigestKind;
use crate::library::locate::{LibraryKind, locate};

/// rcc's mark of a library whose blobs are raw.
const MARKER: &str = "compress.no";

/// A library and its holotree, both absolute and clean.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) hololib: PathBuf,
    pub(super) holotree: PathBuf,
    /// Whether all users of the machine write here.
    pub(super) shared: bool,
}

/// Finds the place meant by `library`; `default` is rcc's own hololib, for `auto`.
///
/// # Errors
/// When something else is there.
pub(super) fn find(library: &OsStr, default: &Path) -> Result<Place, RecordError> {
    let refused = match locate(library, default) {
        Ok(found) => {
            let hololib = clean(&found.hololib)?;
            let above = parent(&hololib);
            // rcc's shared holotree has its library below the spaces.
            let below = found.kind == LibraryKind::Shared || hololib.file_name() == Some(OsStr::new("lib"));
            let holotree = if below { above.to_owned() } else { above.join("holotree") };
            let mode = std::fs::metadata(hololib.join("library")).map_err(RecordError::io(&hololib))?.mode();
            return Ok(Place { hololib, holotree, shared: mode & 0o002 != 0 });
        }
        Err(refused) => refused,
    };
    let given = if library == "auto" || library == "-" { default } else { Path::new(library) };
    let path = clean(&std::path::absolute(given).map_err(RecordError::io(given))?)?;
    if !may_become_a_library(&path) {
        return Err(refused.into());
    }
    if path.file_name() == Some(OsStr::new("hololib")) {
        let holotree = parent(&path).join("holotree");
        return Ok(Place { hololib: path, holotree, shared: false });
    }
    Ok(Place { hololib: path.join("hololib"), holotree: path.join("holotree"), shared: false })
}

/// Nothing, an empty directory, or a home in which rcc has not recorded yet. Anything else is likelier a mistake.
fn may_become_a_library(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(mut entries) => {
            let is_home = ["hololib", "holotree", "journals"].iter().any(|name| path.join(name).is_dir());
            let is_hololib =
                ["catalog", "library", "used", "pids"].iter().any(|name| path.join(name).is_dir());
            is_home || is_hololib || entries.next().is_none()
        }
    }
}

impl Place {
    /// Makes what is missing of the directories.
    pub(super) fn make(&self) -> Result<(), RecordError> {
        let inner = ["catalog", "library", "used", "pids"].map(|name| self.hololib.join(name));
        for dir in inner.iter().chain([&self.holotree]) {
            make_dirs(dir, self.shared).map_err(RecordError::io(dir))?;
        }
        Ok(())
    }

    /// How blobs are stored here; `compress` is what was asked for, and decides for a library that holds nothing.
    ///
    /// # Errors
    /// When the library is of the other kind: its marker says how *all* of its blobs are read.
    pub(super) fn digest_kind(&self, compress: Option<bool>) -> Result<DigestKind, RecordError> {
        let marker = self.hololib.join("catalog").join(MARKER);
        let is_raw = std::fs::metadata(&marker).is_ok_and(|metadata| !metadata.is_dir());
        match (compress, is_raw) {
            (None | Some(false), true) => Ok(DigestKind::Sip128),
            (None | Some(true), false) => Ok(DigestKind::Sha256),
            (Some(true), true) => {
                Err(RecordError::Kind { hololib: self.hololib.clone(), is: "raw", asked: "compressed" })
            }
            (Some(false), false) if self.is_empty()? => {
                std::fs::write(&marker, "present").map_err(RecordError::io(&marker))?;
                Ok(DigestKind::Sip128)
            }
            (Some(false), false) => {
                Err(RecordError::Kind { hololib: self.hololib.clone(), is: "compressed", asked: "raw" })
            }
        }
    }

    fn is_empty(&self) -> Result<bool, RecordError> {
        for name in ["catalog", "library"] {
            let dir = self.hololib.join(name);
            if std::fs::read_dir(&dir).map_err(RecordError::io(&dir))?.next().is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes rcc's lock over building, recording and restoring; it is held as long as the file is open.
    pub(super) fn lock(&self, timeout: Duration, cancel: &AtomicBool) -> Result<File, RecordError> {
        let path = self.holotree.join("global.lck");
        let mut options = OpenOptions::new();
        // As rcc opens it. Nothing is ever written to it, so truncating takes nothing from whoever holds it.
        let file = options.write(true).create(true).truncate(true).mode(0o666).open(&path);
        let file = file.map_err(RecordError::io(&path))?;
        if self.shared && file.metadata().is_ok_and(|metadata| metadata.mode() & 0o666 != 0o666) {
            // Its owner can do this, and has; for anybody else it is the owner's business.
            drop(file.set_permissions(Permissions::from_mode(0o666)));
        }
        let deadline = Instant::now() + timeout;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(RecordError::Io { path, source: error.into() }),
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(RecordError::Interrupted);
            }
            if Instant::now() >= deadline {
                return Err(RecordError::Busy { path, seconds: timeout.as_secs() });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The path without `.`, `..` and doubled slashes, by text alone, as rcc cleans the path it compares catalogs with.
fn clean(path: &Path) -> Result<PathBuf, RecordError> {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    if out.to_str().is_none() {
        return Err(RecordError::NameNotUtf8 { path: out });
    }
    Ok(out)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

impl From<LibraryError> for RecordError {
    fn from(error: LibraryError) -> Self {
        Self::Library(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(library: &Path) -> Place {
        find(library.as_os_str(), Path::new("/nowhere")).unwrap()
    }

    #[test]
    fn new_and_old_libraries_of_each_shape() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        for (given, hololib, holotree) in [
            ("home", "home/hololib", "home/holotree"),
            ("./x/../home/", "home/hololib", "home/holotree"),
            ("other/hololib", "other/hololib", "other/holotree"),
            ("ht/lib", "ht/lib", "ht"),
            ("ht", "ht/lib", "ht"),
        ] {
            let (hololib, holotree) = (base.join(hololib), base.join(holotree));
            if given == "ht/lib" {
                std::fs::create_dir_all(hololib.join("catalog")).unwrap();
                std::fs::create_dir_all(hololib.join("library")).unwrap();
            }
            for _new_then_old in 0..2 {
                let place = found(&base.join(given));
                assert_eq!((&place.hololib, &place.holotree), (&hololib, &holotree), "{given}");
                place.make().unwrap();
            }
            assert_eq!(found(&hololib).holotree, holotree);
        }
    }

    #[test]
    fn other_things_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for wrong in [dir.path(), &file, &file.join("below")] {
            let error = find(wrong.as_os_str(), Path::new("/nowhere")).unwrap_err();
            assert!(matches!(error, RecordError::Library(_)), "{error}");
        }
    }

    #[test]
    fn the_marker_decides_and_a_conflict_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, gzip) = (found(&dir.path().join("raw")), found(&dir.path().join("gzip")));
        raw.make().unwrap();
        gzip.make().unwrap();
        assert_eq!(raw.digest_kind(Some(false)).unwrap(), DigestKind::Sip128);
        assert_eq!(std::fs::read(raw.hololib.join("catalog/compress.no")).unwrap(), b"present");
        assert_eq!(raw.digest_kind(None).unwrap(), DigestKind::Sip128);
        assert!(matches!(raw.digest_kind(Some(true)), Err(RecordError::Kind { is: "raw", .. })));
        assert_eq!(gzip.digest_kind(None).unwrap(), DigestKind::Sha256);
        std::fs::create_dir(gzip.hololib.join("library/aa")).unwrap();
        assert_eq!(gzip.digest_kind(Some(true)).unwrap(), DigestKind::Sha256);
        assert!(matches!(gzip.digest_kind(Some(false)), Err(RecordError::Kind { is: "compressed", .. })));
    }

    #[test]
    fn a_held_lock_is_waited_for_and_then_named() {
        let dir = tempfile::tempdir().unwrap();
        let place = found(&dir.path().join("home"));
        place.make().unwrap();
        let never = AtomicBool::new(false);
        let held = place.lock(Duration::ZERO, &never).unwrap();
        let error = place.lock(Duration::from_millis(60), &never).unwrap_err();
        assert!(error.to_string().contains("global.lck"), "{error}");
        let stop = AtomicBool::new(true);
        let error = place.lock(Duration::from_secs(60), &stop).unwrap_err();
        assert!(matches!(error, RecordError::Interrupted));
        drop(held);
        place.lock(Duration::ZERO, &never).unwrap();
    }
}
