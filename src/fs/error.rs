//! Maps each error to its errno.
//!
//! The matches are exhaustive, so a new error does not compile until its errno is decided here.

use std::io::ErrorKind;

use rustix::io::Errno;

use crate::library::blob::BlobError;
use crate::materialize;
use crate::materialize::clone::CloneError;
use crate::materialize::relocate::RelocateError;
use crate::namespace::types::Error;
use crate::sys::errno_of;

/// The errno that the caller of an operation gets.
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
        // holofs's own files are inconsistent. For the caller that is a failed read.
        Error::Damaged { .. } | Error::Index(_) => Errno::IO,
        // A further try would kill this one as well, and with it all requests that are under way.
        Error::Poisoned => Errno::IO,
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
            RelocateError::OutOfBounds { .. }
            | RelocateError::NameNotThere { .. }
            | RelocateError::OtherSize { .. } => Errno::IO,
            RelocateError::Io { source, .. } => errno_of(source),
        },
        materialize::Error::Clone { source, .. } => match source {
            // `--strategy reflink`: the user does not want a copy.
            CloneError::ReflinkRefused(_) => Errno::OPNOTSUPP,
            CloneError::Os { source, .. } => *source,
            CloneError::ShortSource { .. } => Errno::IO,
        },
        materialize::Error::Os { source, .. } => *source,
    }
}

/// The path of the file, and the digest that its blob should have, if an error is about a corrupt blob.
#[must_use]
pub fn corrupt(error: &Error) -> Option<(&str, String)> {
    match error {
        Error::Materialize(materialize::Error::Blob { path, source }) => match &**source {
            BlobError::Corrupt { digest, .. } => Some((path, digest.to_string())),
            _ => None,
        },
        _ => None,
    }
}

/// Whether an error says that the object store of the library does not answer.
#[must_use]
pub fn is_cut_off(error: &Error) -> bool {
    match error {
        Error::Materialize(materialize::Error::Blob { source, .. }) => {
            matches!(&**source, BlobError::Io { source, .. } if source.kind() == ErrorKind::HostUnreachable)
        }
        _ => false,
    }
}

fn blob_errno(error: &BlobError) -> Errno {
    match error {
        // Not ENOENT: the file exists, and only its bytes cannot be read.
        BlobError::Missing { .. } | BlobError::Corrupt { .. } | BlobError::Panicked(_) => Errno::IO,
        // Programs know what to do about EIO.
        BlobError::Io { source, .. } if source.kind() == ErrorKind::HostUnreachable => Errno::IO,
        BlobError::Io { source, .. } => errno_of(source),
    }
}
