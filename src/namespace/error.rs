//! The errors of operations on the namespace. `fs::error` gives each of them its errno.

use rustix::io::Errno;

use super::types::Ino;
use crate::library::index::IndexError;
use crate::materialize;
use crate::space::upper::UpperError;

/// The reason why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no entry of that name.
    #[error("no such entry")]
    NotFound,
    /// The new name is in use.
    #[error("the name exists")]
    Exists,
    /// The operation needs a directory.
    #[error("not a directory")]
    NotADirectory,
    /// The operation does not work on directories.
    #[error("is a directory")]
    IsADirectory,
    /// The directory to be removed or replaced has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// The kernel used an inode number that no entry has any more.
    #[error("no entry has inode number {0:?} any more")]
    Stale(Ino),
    /// A library file cannot change while other processes have it open by passthrough.
    #[error("the program or library is in use")]
    InUse,
    /// The name is longer than 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// The arguments are invalid.
    #[error("{0}")]
    Invalid(&'static str),
    /// A rule of the filesystem forbids the operation.
    #[error("{0}")]
    NotPermitted(&'static str),
    /// holofs does not support this kind of entry or request.
    #[error("{0}")]
    NotSupported(&'static str),
    /// The entry has no such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// A search for data or a hole started at the end of the file, or found none.
    #[error("offset beyond the end")]
    BeyondEnd,
    /// An entry of the upper has a mark that makes no sense.
    #[error("the upper entry {name:?} is damaged: {why}")]
    Damaged {
        /// The name of the entry.
        name: String,
        /// What is wrong with the mark.
        why: &'static str,
    },
    /// The compiled index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The bytes of a lower file could not be read or copied.
    #[error(transparent)]
    Materialize(#[from] materialize::Error),
    /// A system call on the upper failed. The operation fails with the same errno.
    #[error("{call}: {source}")]
    Upper {
        /// The system call, or what it was for.
        call: &'static str,
        /// The errno of the system call.
        source: Errno,
    },
}

impl From<UpperError> for Error {
    fn from(error: UpperError) -> Self {
        match error {
            UpperError::Damaged { path, why } => {
                Self::Damaged { name: path.to_string_lossy().into_owned(), why }
            }
            UpperError::Os { call, source, .. } => Self::Upper { call, source },
            UpperError::Index(error) => Self::Index(error),
        }
    }
}

/// Makes the error of a system call on the upper: `.map_err(upper("mkdirat"))`.
pub(crate) fn upper(call: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Upper { call, source }
}

/// The result of an operation on the namespace.
pub type Result<T, E = Error> = std::result::Result<T, E>;
