//! The strategies by which a restored file gets its bytes, on Linux, macOS and Windows.
//!
//! A strategy makes a new file of an existing one: by a reflink (FICLONE on Linux, clonefile on macOS, a block clone on
//! Windows's ReFS), by a hard link, or by a copy. [`Smart`] takes the first of reflink and copy that works, and remembers a
//! refusal, so that it is not tried for every file.
//!
//! `holofs restore` on Linux does the same steps by descriptors (`materialize::clone`), because other users may change the
//! paths. This crate is for the platforms that have no such calls. The rest of holofs does not build there: it needs FUSE,
//! openat2 and mountinfo. On macOS and Windows this crate is only compiled (`cargo check --target`), and was never run.
//!
//! Invariant: after an error there is no new file.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a file got its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// The blocks are shared until one of the files is written to.
    Reflink,
    /// The file is shared.
    Hardlink,
    /// Nothing is shared.
    Copy,
}

/// A way to make a file of another one.
pub trait Strategy: Send + Sync + std::fmt::Debug {
    /// Makes `to`, which must not exist, a file with the bytes of `from`.
    ///
    /// # Errors
    /// Those of the system. `Unsupported` when the platform or the filesystem cannot do it.
    fn make(&self, from: &Path, to: &Path) -> io::Result<Method>;
}

/// By a reflink, or not at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reflink;

/// By a hard link, or not at all. The caller must not link files that may be written to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hardlink;

/// By a copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Copy;

/// By a reflink, else by a copy. One value is for one pair of filesystems.
#[derive(Debug, Default)]
pub struct Smart {
    /// A reflink was refused.
    refused: AtomicBool,
}

impl Strategy for Reflink {
    #[cfg(any(target_os = "linux", target_os = "macos", windows))]
    fn make(&self, from: &Path, to: &Path) -> io::Result<Method> {
        // It removes what it has made after an error.
        reflink_copy::reflink(from, to).map(|()| Method::Reflink)
    }

    #[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
    fn make(&self, _from: &Path, _to: &Path) -> io::Result<Method> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "reflink: unsupported on this platform"))
    }
}

impl Strategy for Hardlink {
    fn make(&self, from: &Path, to: &Path) -> io::Result<Method> {
        std::fs::hard_link(from, to).map(|()| Method::Hardlink)
    }
}

impl Strategy for Copy {
    fn make(&self, from: &Path, to: &Path) -> io::Result<Method> {
        let mut source = std::fs::File::open(from)?;
        let mut target = OpenOptions::new().write(true).create_new(true).open(to)?;
        let copied = io::copy(&mut source, &mut target).map(|_| Method::Copy);
        drop(target);
        if copied.is_err() {
            // The first error is told.
            std::fs::remove_file(to).ok();
        }
        copied
    }
}

impl Strategy for Smart {
    fn make(&self, from: &Path, to: &Path) -> io::Result<Method> {
        if !self.refused.load(Ordering::Relaxed) {
            // The library for reflinks reports a missing file as a wrong argument, as filesystems report a refusal.
            std::fs::metadata(from)?;
            match Reflink.make(from, to) {
                Err(error) if is_refusal(&error) => self.refused.store(true, Ordering::Relaxed),
                done => return done,
            }
        }
        Copy.make(from, to)
    }
}

/// Whether the error means "not between these filesystems". A full disk and a missing file are other errors.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, NotFound, QuotaExceeded, StorageFull};
    /// `EIO` on Linux and macOS.
    const IO: i32 = 5;
    let failed = matches!(error.kind(), AlreadyExists | NotFound | QuotaExceeded | StorageFull);
    let is_io = cfg!(unix) && error.raw_os_error() == Some(IO);
    !failed && !is_io
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_strategy_makes_the_bytes_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::write(&from, "bytes").unwrap();
        let strategies: [&dyn Strategy; 4] = [&Reflink, &Hardlink, &Copy, &Smart::default()];
        for (n, strategy) in strategies.into_iter().enumerate() {
            let to = dir.path().join(n.to_string());
            match strategy.make(&from, &to) {
                Ok(_) => assert_eq!(std::fs::read(&to).unwrap(), b"bytes", "{strategy:?}"),
                // A filesystem without reflinks.
                Err(error) => {
                    assert_eq!(format!("{strategy:?}"), "Reflink", "{error}");
                    assert!(!to.exists(), "{error}");
                }
            }
        }
        assert_eq!(Copy.make(&from, &dir.path().join("2")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn what_is_missing_is_no_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let smart = Smart::default();
        let error = smart.make(&dir.path().join("missing"), &dir.path().join("to")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!smart.refused.load(Ordering::Relaxed));
    }
}
