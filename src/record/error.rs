//! The errors of a recording.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::library::LibraryError;
use crate::library::blob::BlobError;
use crate::library::catalogs::CatalogName;
use crate::library::digest::Digest;
use crate::sys::guarded::GuardedError;
use crate::sys::thread::Panicked;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// LIBRARY is not a library and cannot become one.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The library has blobs of the other kind.
    #[error(
        "the library {hololib} is {is} and cannot store {asked} blobs: all blobs of a library are of one kind"
    )]
    Kind {
        hololib: PathBuf,
        /// The kind that it has.
        is: &'static str,
        /// The kind that was asked for.
        asked: &'static str,
    },
    #[error("the blueprint is empty")]
    NoBlueprint,
    #[error("no command to fill the stage with")]
    NoCommand,
    /// A blueprint names one environment of a library.
    #[error("{catalog}: the library has another environment of this blueprint")]
    Exists { catalog: PathBuf },
    /// rcc or another recorder holds the lock.
    #[error(
        "{path} is still locked after {seconds} s{}: rcc or another recording is using the holotree",
        pid.map(|pid| format!(" by process {pid}")).unwrap_or_default()
    )]
    Busy {
        path: PathBuf,
        /// How long the recorder waited.
        seconds: u64,
        /// The process that holds it, if that is known.
        pid: Option<u32>,
    },
    #[error("the stage {path} is not empty: an interrupted build left it; remove it if nothing uses it")]
    StageInUse { path: PathBuf },
    #[error("{}: {source}", program.display())]
    CommandStart { program: OsString, source: io::Error },
    #[error("{}: {status}", program.display())]
    CommandFailed { program: OsString, status: ExitStatus },
    /// [`Target::cancel`](super::Target::cancel) was set.
    #[error("interrupted")]
    Interrupted,
    /// An entry that a catalog cannot list. A catalog is JSON, so link targets must be UTF-8.
    #[error("{path}: {what} cannot be recorded")]
    Special {
        path: PathBuf,
        /// Such as `a FIFO`.
        what: &'static str,
    },
    /// A catalog is JSON, so names must be UTF-8.
    #[error("{path:?}: a name that is not UTF-8 cannot be recorded")]
    NameNotUtf8 { path: PathBuf },
    /// A directory is nested deeper than a catalog may be.
    #[error("{path}: nested too deeply to be recorded")]
    TooDeep { path: PathBuf },
    /// A binary names the path of its space, and has no room for the path in which the environment was built.
    #[error(
        "{path}: it names the path of the space, and the path in which the environment was built is longer"
    )]
    DoesNotFit { path: PathBuf },
    /// A process still changes files of the stage.
    #[error("{path}: changed while it was recorded")]
    Changed { path: PathBuf },
    /// Another process removed the catalog or some of its blobs, again after each attempt.
    #[error(
        "{catalog}: another process removed it or some of its blobs while it was recorded, as `rcc holotree check` does"
    )]
    NotWhole { catalog: PathBuf },
    /// An imported catalog names blobs that neither the archives nor the library have.
    #[error(
        "catalog {catalog}: {count} of its blobs are neither in the archive nor in the library, the first is {first}"
    )]
    Lacks { catalog: CatalogName, count: usize, first: Digest },
    /// What would be imported does not fit.
    #[error("{path}: the import needs {needed} bytes, and {free} are free")]
    NoRoom { path: PathBuf, needed: u64, free: u64 },
    /// A file or directory of the library or the holotree could not be opened or made, or is of the wrong type.
    #[error(transparent)]
    Guarded(#[from] GuardedError),
    /// A file or directory could not be read or written.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// A blob of the library from which the environment comes cannot be read.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A server does not give what it was asked for.
    #[cfg(feature = "remote")]
    #[error(transparent)]
    Server(#[from] crate::library::remote::StoreError),
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl RecordError {
    /// For `map_err` on an I/O call about a path.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// The exit status that a shell would report, if the command failed.
    #[must_use]
    pub fn command_status(&self) -> Option<u8> {
        use std::os::unix::process::ExitStatusExt;
        let status = match self {
            Self::CommandStart { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::CommandStart { .. } => 126,
            Self::CommandFailed { status, .. } => {
                status.code().or_else(|| status.signal().map(|signal| signal + 128)).unwrap_or(1)
            }
            _ => return None,
        };
        Some(u8::try_from(status).unwrap_or(1))
    }
}
