//! The upper: the directory that holds a space's changes.
//!
//! A space shows its catalog's tree (the *lower*) with its own changes over it. The changes lie in a directory of
//! real files with the names and paths that the space shows, so that plain tools can read them while the space is not
//! mounted. What a plain file cannot say is in *marks*: extended attributes that begin with `user.holofs.`, and
//! whiteouts.
//!
//! * [`types`] has inode numbers, kinds and times.
//! * [`mark`] has the format of the marks. No other module knows it.
//! * [`entry`] tells what one entry of the upper is in the space.
//! * [`walk`] visits all entries of an upper, and [`changes`] tells what each of them changes.
//!
//! Other programs can change the files while the space is not mounted. So marks are read with a bounded length, and a
//! mark that makes no sense is an error of its own entry only. `docs/ON-DISK.md` describes the format for users.

pub mod changes;
pub mod entry;
pub mod mark;
pub mod types;
pub mod walk;

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::library::index::IndexError;

/// An error of reading an upper.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// An entry has a mark that makes no sense. The other entries are not affected.
    #[error("the upper entry {path:?} is damaged: {why}")]
    Damaged {
        /// The entry, below the directory that was read.
        path: PathBuf,
        /// What is wrong with its mark.
        why: &'static str,
    },
    /// A system call failed.
    #[error("{call} {path:?}: {source}")]
    Os {
        /// The entry, below the directory that was read.
        path: PathBuf,
        /// The system call.
        call: &'static str,
        /// Why it failed.
        source: Errno,
    },
    /// The compiled index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl From<UpperError> for io::Error {
    fn from(error: UpperError) -> Self {
        match error {
            UpperError::Os { source, .. } => source.into(),
            UpperError::Damaged { .. } | UpperError::Index(_) => {
                io::Error::new(io::ErrorKind::InvalidData, error)
            }
        }
    }
}

/// Opens the root directory of an upper; None when there is no such directory.
///
/// # Errors
/// [`UpperError::Os`] when it cannot be opened.
pub fn open(path: &Path) -> Result<Option<OwnedFd>, UpperError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(root) => Ok(Some(root)),
        Err(Errno::NOENT) => Ok(None),
        Err(source) => Err(UpperError::Os { path: path.to_owned(), call: "open", source }),
    }
}

impl UpperError {
    fn damaged(name: &CStr, why: &'static str) -> Self {
        Self::Damaged { path: path_of(name), why }
    }

    fn os(name: &CStr, call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| Self::Os { path: path_of(name), call, source }
    }

    /// Replaces the name by a path. In a tree, the name alone does not tell which entry it is.
    fn at(self, path: &Path) -> Self {
        let path = path.to_owned();
        match self {
            Self::Damaged { why, .. } => Self::Damaged { path, why },
            Self::Os { call, source, .. } => Self::Os { path, call, source },
            Self::Index(error) => Self::Index(error),
        }
    }
}

fn path_of(name: &CStr) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()))
}
