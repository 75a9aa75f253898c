//! Finds or makes the library of a recording and the holotree beside it, and takes rcc's lock.
//!
//! Nothing is made before the place has been checked, and nothing that exists is changed. The paths of the library and
//! the holotree come from the user, so links in them are followed. Other users may be able to write below these
//! directories. So everything below is opened by descriptor, without following links.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::FileType;

use super::Target;
use super::error::RecordError;
use super::store::make_dir;
use crate::library::LibraryError;
use crate::library::digest::DigestKind;
use crate::library::locate::locate_here;
use crate::sys::guarded::{Access, Dir, Trust};
use crate::sys::{fd, lexically_clean};

/// rcc's mark of a library with raw blobs.
const MARKER: &str = "compress.no";
/// The file of the lock that rcc takes to build, record and restore.
pub(super) const LOCK: &str = "global.lck";

/// A library and its holotree. Both paths are absolute and clean.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) hololib: PathBuf,
    pub(super) holotree: PathBuf,
    /// Whether the library exists.
    is_there: bool,
}

/// The directories of a place, opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) catalog: Dir,
    pub(super) library: Dir,
    pub(super) holotree: Dir,
    /// Whether all users of the machine write to the library.
    pub(super) shared: bool,
}

/// Finds the place that the target means.
///
/// # Errors
/// When something other than a library is there.
pub(super) fn find(target: &Target) -> Result<Place, RecordError> {
    let (library, default) = (target.library.as_os_str(), target.default_hololib.as_path());
    let refused = match locate_here(library, default) {
        Ok(mut found) => {
            found.path = clean(&found.path)?;
            match found.holotree() {
                Some(holotree) => return Ok(Place { holotree, hololib: found.path, is_there: true }),
                None => LibraryError::NotALibrary { path: found.path, why: "rcc cannot write to it" },
            }
        }
        Err(refused @ LibraryError::Remote { .. }) => return Err(refused.into()),
        Err(refused) => refused,
    };
    let given = if library == "auto" || library == "-" { default } else { Path::new(library) };
    let path = clean(&std::path::absolute(given).map_err(RecordError::io(given))?)?;
    if !may_become_a_library(&path, target.robocorp_home.as_deref()) {
        return Err(refused.into());
    }
    if path.file_name() == Some(OsStr::new("hololib")) {
        let holotree = parent(&path).join("holotree");
        return Ok(Place { hololib: path, holotree, is_there: false });
    }
    Ok(Place { hololib: path.join("hololib"), holotree: path.join("holotree"), is_there: false })
}

/// Whether this is nothing, an empty directory, rcc's home, or a home in which rcc has not recorded yet. A path to
/// anything else is probably a mistake.
fn may_become_a_library(path: &Path, home: Option<&Path>) -> bool {
    match std::fs::read_dir(path) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(mut entries) => {
            let is_home = ["hololib", "holotree", "journals"].iter().any(|name| path.join(name).is_dir());
            let is_hololib =
                ["catalog", "library", "used", "pids"].iter().any(|name| path.join(name).is_dir());
            let is_in_force = home.is_some_and(|home| path == home || path == home.join("hololib"));
            is_home || is_hololib || is_in_force || entries.next().is_none()
        }
    }
}

impl Place {
    /// Opens the directories, and makes those that are missing.
    ///
    /// # Errors
    /// When a directory cannot be opened or made, or the library no longer exists.
    pub(super) fn open(&self) -> Result<Opened, RecordError> {
        // A new library belongs to its user. In an existing one, the catalogs must still be there.
        let hololib = if self.is_there {
            Dir::open(&self.hololib, Trust::Shared)?
        } else {
            Dir::open_or_make(&self.hololib, 0o750, false)?
        };
        let catalog = if self.is_there {
            hololib.open_dir("catalog".as_ref(), Trust::Shared)?
        } else {
            make_dir(&hololib, "catalog".as_ref(), false)?
        };
        let stat = hololib.stat("library".as_ref()).or_else(|_| hololib.stat("catalog".as_ref()))?;
        let shared =
            stat.st_mode & 0o002 != 0 && FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let library = make_dir(&hololib, "library".as_ref(), shared)?;
        for name in ["used", "pids"] {
            make_dir(&hololib, name.as_ref(), shared)?;
        }
        let holotree = Dir::open_or_make(&self.holotree, if shared { 0o777 } else { 0o750 }, shared)?;
        Ok(Opened { catalog, library, holotree, shared })
    }
}

impl Opened {
    /// Whether there is a catalog of this name. What is not a regular file is none, and is replaced.
    pub(super) fn has_catalog(&self, name: &str) -> bool {
        let found = self.catalog.stat(name.as_ref());
        found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile)
    }

    /// How blobs are stored here. `compress` is the user's choice, and decides if the library is empty.
    ///
    /// # Errors
    /// When the library is of the other kind. Its marker applies to all of its blobs.
    pub(super) fn digest_kind(&self, compress: Option<bool>) -> Result<DigestKind, RecordError> {
        let marker = self.catalog.stat(MARKER.as_ref());
        let is_raw = marker.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory);
        let mixed = |is, asked| {
            let hololib = parent(self.catalog.path()).to_owned();
            Err(RecordError::Kind { hololib, is, asked })
        };
        match (compress, is_raw) {
            (None | Some(false), true) => Ok(DigestKind::Sip128),
            (None | Some(true), false) => Ok(DigestKind::Sha256),
            (Some(true), true) => mixed("raw", "compressed"),
            (Some(false), false) if self.catalog.is_empty()? && self.library.is_empty()? => {
                let mut file = self.catalog.create_new(MARKER.as_ref(), Access::Write, 0o666)?;
                file.write_all(b"present").map_err(RecordError::io(self.catalog.path().join(MARKER)))?;
                Ok(DigestKind::Sip128)
            }
            (Some(false), false) => mixed("compressed", "raw"),
        }
    }

    /// Takes rcc's lock. It is held until the file is closed.
    pub(super) fn lock(&self, timeout: Duration, cancel: &AtomicBool) -> Result<File, RecordError> {
        let path = self.holotree.path().join(LOCK);
        let (file, made) = self.holotree.open_or_create(LOCK.as_ref(), Access::Write, 0o666)?;
        if made && self.shared {
            file.set_permissions(Permissions::from_mode(0o666)).map_err(RecordError::io(&path))?;
        }
        let stop = || cancel.load(Ordering::Relaxed);
        if fd::lock(&file, timeout, Duration::from_millis(50), stop).map_err(RecordError::io(&path))? {
            return Ok(file);
        }
        Err(if stop() {
            RecordError::Interrupted
        } else {
            RecordError::Busy { path, seconds: timeout.as_secs(), pid: fd::holder(&file) }
        })
    }
}

/// Makes a path lexically clean, the form in which rcc compares the paths of catalogs.
fn clean(path: &Path) -> Result<PathBuf, RecordError> {
    let path = lexically_clean(path);
    if path.to_str().is_none() {
        return Err(RecordError::NameNotUtf8 { path });
    }
    Ok(path)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(library: &Path) -> Target {
        crate::record::tests::options(library, "").target
    }

    fn found(library: &Path) -> Place {
        find(&options(library)).unwrap()
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
                place.open().unwrap();
            }
            assert_eq!(found(&hololib).holotree, holotree);
        }
    }

    #[test]
    fn file_or_foreign_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for wrong in [dir.path(), &file, &file.join("below")] {
            let error = find(&options(wrong)).unwrap_err();
            assert!(matches!(error, RecordError::Library(_)), "{error}");
        }
    }

    #[test]
    fn active_home_may_hold_anything() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir_all(home.join("hololib")).unwrap();
        std::fs::remove_dir(home.join("hololib")).unwrap();
        std::fs::write(home.join("rcc.yaml"), "x").unwrap();
        let mut options = options(&home);
        assert!(find(&options).is_err());
        options.robocorp_home = Some(home.clone());
        assert_eq!(find(&options).unwrap().hololib, home.join("hololib"));
        options.robocorp_home = Some(dir.path().to_owned());
        assert!(find(&options).is_err());
    }

    #[test]
    fn marker_decides_the_kind_and_a_conflict_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, gzip) = (dir.path().join("raw"), dir.path().join("gzip"));
        let (raw, gzip) = (found(&raw).open().unwrap(), found(&gzip).open().unwrap());
        assert_eq!(raw.digest_kind(Some(false)).unwrap(), DigestKind::Sip128);
        assert_eq!(std::fs::read(raw.catalog.path().join("compress.no")).unwrap(), b"present");
        assert_eq!(raw.digest_kind(None).unwrap(), DigestKind::Sip128);
        assert!(matches!(raw.digest_kind(Some(true)), Err(RecordError::Kind { is: "raw", .. })));
        assert_eq!(gzip.digest_kind(None).unwrap(), DigestKind::Sha256);
        std::fs::create_dir(gzip.library.path().join("aa")).unwrap();
        assert_eq!(gzip.digest_kind(Some(true)).unwrap(), DigestKind::Sha256);
        assert!(matches!(gzip.digest_kind(Some(false)), Err(RecordError::Kind { is: "compressed", .. })));
    }

    #[test]
    fn held_lock_times_out_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let place = found(&dir.path().join("home")).open().unwrap();
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

    #[test]
    fn lock_that_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
        let place = found(&dir.path().join("home"));
        let lock = place.holotree.join(LOCK);
        for shared in [false, true] {
            let opened = Opened { shared, ..place.open().unwrap() };
            for make in [std::os::unix::fs::symlink::<&Path, &Path>, std::fs::hard_link] {
                make(&victim, &lock).unwrap();
                let error = opened.lock(Duration::ZERO, &AtomicBool::new(false)).unwrap_err();
                assert!(error.to_string().contains("link"), "{error}");
                std::fs::remove_file(&lock).unwrap();
            }
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert_eq!(std::fs::metadata(&victim).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_shared_library_stays_open_to_all() {
        let dir = tempfile::tempdir().unwrap();
        let ht = dir.path().join("ht");
        let open = Permissions::from_mode(0o777);
        for name in ["lib/catalog", "lib/library"] {
            std::fs::create_dir_all(ht.join(name)).unwrap();
            std::fs::set_permissions(ht.join(name), open.clone()).unwrap();
        }
        let opened = found(&ht).open().unwrap();
        opened.lock(Duration::ZERO, &AtomicBool::new(false)).unwrap();
        let mode = |name: &str| std::fs::metadata(ht.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("lib/used"), mode("lib/pids"), mode(LOCK)), (0o777, 0o777, 0o666));
    }
}
