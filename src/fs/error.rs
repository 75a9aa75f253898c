//! The one place that decides which errno an error becomes.
//!
//! The matches are exhaustive: a new error does not compile until somebody decides.

use rustix::io::Errno;

use crate::library::blob::BlobError;
use crate::materialize::clone::CloneError;
use crate::materialize::relocate::RelocateError;
use crate::materialize::{self};
use crate::namespace::error::Error;

/// What the caller of an operation is told.
#[must_use]
pub fn errno(error: &Error) -> Errno {
    match error {
        Error::NotFound => Errno::NOENT,
        Error::Exists => Errno::EXIST,
        Error::NotADirectory => Errno::NOTDIR,
        Error::IsADirectory => Errno::ISDIR,
        Error::NotEmpty => Errno::NOTEMPTY,
        Error::Stale(_) => Errno::STALE,
        Error::InUse => Errno::TXTBSY,
        Error::NameTooLong => Errno::NAMETOOLONG,
        Error::Invalid(_) => Errno::INVAL,
        Error::NotPermitted(_) => Errno::PERM,
        Error::NotSupported(_) => Errno::OPNOTSUPP,
        Error::NoAttribute => Errno::NODATA,
        Error::BeyondEnd => Errno::NXIO,
        // Our own files do not hold together: the caller can only be told that reading failed.
        Error::Damaged { .. } | Error::Index(_) => Errno::IO,
        Error::Materialize(error) => materialize_errno(error),
        Error::Upper { source, .. } => *source,
    }
}

fn materialize_errno(error: &materialize::Error) -> Errno {
    match error {
        materialize::Error::Blob { source, .. } => blob_errno(source),
        materialize::Error::Index(_) => Errno::IO,
        materialize::Error::NotAFile(_) => Errno::INVAL,
        materialize::Error::Relocate { source, .. } => match source {
            RelocateError::OutOfBounds { .. } | RelocateError::NameNotThere { .. } => Errno::IO,
            RelocateError::Io { source, .. } => io_errno(source),
        },
        materialize::Error::Clone { source, .. } => match source {
            // The user asked for reflinks or nothing.
            CloneError::ReflinkRefused(_) => Errno::OPNOTSUPP,
            CloneError::Os { source, .. } => *source,
            CloneError::ShortSource { .. } => Errno::IO,
        },
        materialize::Error::Os { source, .. } => *source,
    }
}

fn blob_errno(error: &BlobError) -> Errno {
    match error {
        // Not ENOENT: the file is there, its bytes cannot be had.
        BlobError::Missing { .. } | BlobError::Corrupt { .. } => Errno::IO,
        BlobError::Io { source, .. } => io_errno(source),
    }
}

/// The errno inside of an I/O error; EIO for one that the standard library made up.
pub(crate) fn io_errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
