//! What an operation on the merged view can answer. `fs::error` gives each answer its errno.

use rustix::io::Errno;

use super::types::Ino;
use crate::library::index::IndexError;
use crate::materialize;
use crate::space::upper::UpperError;

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No entry of that name.
    #[error("no such entry")]
    NotFound,
    /// The name is taken.
    #[error("the name exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// A directory stood where none may.
    #[error("is a directory")]
    IsADirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// The kernel asked for a number that nothing has any more.
    #[error("inode {0:?} is gone")]
    Stale(Ino),
    /// Others have the library's file open by passthrough and cannot be given another one.
    #[error("the program or library is in use")]
    InUse,
    /// Longer than 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// The arguments make no sense together.
    #[error("{0}")]
    Invalid(&'static str),
    /// Refused by rule.
    #[error("{0}")]
    NotPermitted(&'static str),
    /// The kind of entry or request is not supported.
    #[error("{0}")]
    NotSupported(&'static str),
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// No data or hole beyond the offset.
    #[error("offset beyond the end")]
    BeyondEnd,
    /// An entry of the upper carries a mark that makes no sense.
    #[error("the upper entry {name:?} is damaged: {why}")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The compiled index does not hold together.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The bytes of a lower file could not be had.
    #[error(transparent)]
    Materialize(#[from] materialize::Error),
    /// A call on the upper failed; its errno passes through.
    #[error("{call}: {source}")]
    Upper {
        /// What was tried.
        call: &'static str,
        /// The answer.
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

/// Names the call that failed on the upper: `.map_err(upper("mkdirat"))`.
pub(crate) fn upper(call: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Upper { call, source }
}

/// The result of an operation on the merged view.
pub type Result<T, E = Error> = std::result::Result<T, E>;
