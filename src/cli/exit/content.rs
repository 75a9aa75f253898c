//! The advice for errors about content: exports, recordings, blobs, benchmarks, restores.

use std::io;

use rustix::io::Errno;

use super::{
    Advice, BUSY, CATALOG_AGAIN, ENVIRONMENT, FAILED, Failure, INTEGRITY, INTERRUPTED, LIBRARY, MORE_SPACE,
    STRATEGY, USAGE, is_about_writing, only, try_this,
};
use crate::library::blob::BlobError;
use crate::library::export::ExportError;
use crate::materialize;
use crate::materialize::clone::CloneError;
use crate::materialize::relocate::RelocateError;
use crate::record::RecordError;
use crate::restore::RestoreError;
use crate::session::bench::BenchError;
use crate::sys::guarded::{GuardedError, Problem};

impl Advice for ExportError {
    fn advice(&self) -> Failure {
        match self {
            Self::Library(error) => error.advice(),
            Self::Blob { source, .. } => source.advice(),
            Self::Guarded(GuardedError { problem: Problem::NotAFile(_), .. }) => {
                try_this(USAGE, "-z with the name of a file")
            }
            Self::Guarded(error) => error.advice(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                try_this(FAILED, "-z with a file that you may write")
            }
            Self::Io { source, .. } if is_about_writing(source) => try_this(FAILED, "free some space"),
            Self::Io { .. } | Self::Panicked(_) => only(FAILED),
            Self::Interrupted => only(INTERRUPTED),
        }
    }
}

impl Advice for RecordError {
    fn advice(&self) -> Failure {
        match self {
            Self::Library(error) => error.advice(),
            Self::Kind { .. } => try_this(USAGE, "another library; for `record`, leave out the flag"),
            Self::Exists { .. } => try_this(
                ENVIRONMENT,
                "a FILE that describes the difference; or --force, after which spaces with changes over the other one are refused",
            ),
            Self::NoBlueprint => try_this(ENVIRONMENT, "a file with some text"),
            Self::NoCommand => try_this(USAGE, "`holofs record --help`"),
            Self::Busy { .. } => try_this(BUSY, "wait until it has finished"),
            Self::StageInUse { .. } => only(BUSY),
            Self::Guarded(GuardedError { path, problem: Problem::Owner { .. } | Problem::Writable(_) }) => {
                try_this(FAILED, format!("find out who put it there, and remove it: {}", path.display()))
            }
            Self::Guarded(GuardedError { problem: Problem::Os(Errno::ACCESS | Errno::PERM), .. }) => {
                try_this(LIBRARY, "a library that you may write to")
            }
            Self::Guarded(error) => error.advice(),
            Self::NotWhole { .. } => {
                try_this(INTEGRITY, "record or import it again while nothing else uses the library")
            }
            Self::Lacks { .. } => {
                try_this(INTEGRITY, "import the archive that has them first, or export the environment again")
            }
            Self::DoesNotFit { .. } => try_this(
                ENVIRONMENT,
                "make the change in a space that is mounted by its name, or at a longer path",
            ),
            Self::NoRoom { .. } => try_this(FAILED, "free some space"),
            #[cfg(feature = "remote")]
            Self::Server(error) => error.advice(),
            Self::Interrupted => only(INTERRUPTED),
            // The environment is wrong, or the command that should have made it.
            Self::CommandStart { .. }
            | Self::CommandFailed { .. }
            | Self::Special { .. }
            | Self::NameNotUtf8 { .. }
            | Self::TooDeep { .. }
            | Self::Changed { .. } => only(ENVIRONMENT),
            Self::Blob(error) => error.advice(),
            Self::Io { .. } | Self::Panicked(_) => only(FAILED),
        }
    }
}

impl Advice for BlobError {
    fn advice(&self) -> Failure {
        match self {
            Self::Missing { .. } | Self::Corrupt { .. } => try_this(INTEGRITY, CATALOG_AGAIN),
            Self::Io { source, .. } if is_about_writing(source) => try_this(FAILED, MORE_SPACE),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::HostUnreachable => {
                try_this(LIBRARY, "again when the object store answers; without --offline, if it was given")
            }
            Self::Io { .. } | Self::Panicked(_) => only(FAILED),
        }
    }
}

impl Advice for BenchError {
    fn advice(&self) -> Failure {
        match self {
            Self::Session(error) => error.advice(),
            Self::NoRoom { .. } => try_this(FAILED, "fewer --runs, or a disk with more room"),
            Self::NotStarted { .. } => try_this(FAILED, "the path of the program"),
            Self::Failed { .. } => only(FAILED),
            Self::Interrupted => only(INTERRUPTED),
        }
    }
}

impl Advice for RestoreError {
    fn advice(&self) -> Failure {
        match self {
            Self::Content(error) => error.advice(),
            Self::Index(_) => try_this(FAILED, "remove the cache of holofs; nothing is lost"),
            Self::Os { source, .. } if is_about_writing(&(*source).into()) => {
                try_this(FAILED, "free some space on the disk of the space, then restore again")
            }
            Self::NoLinks { .. } => {
                try_this(STRATEGY, "--strategy smart, or HOLOFS_HOME on the filesystem of the spaces")
            }
            Self::Interrupted => try_this(INTERRUPTED, "restore again: that completes it"),
            Self::Os { .. } | Self::Panicked(_) => only(FAILED),
        }
    }
}

impl Advice for materialize::Error {
    fn advice(&self) -> Failure {
        match self {
            Self::Blob { source, .. }
                if matches!(**source, BlobError::Missing { .. } | BlobError::Corrupt { .. }) =>
            {
                try_this(INTEGRITY, CATALOG_AGAIN)
            }
            Self::Relocate { source: RelocateError::Io { .. }, .. } => only(FAILED),
            Self::Relocate { .. } => try_this(INTEGRITY, CATALOG_AGAIN),
            Self::Blob { .. } => {
                try_this(LIBRARY, "run as a user who may read it; if the disk is full, free some space")
            }
            Self::Clone { source: CloneError::ReflinkRefused(_), .. } => {
                try_this(STRATEGY, "--strategy smart")
            }
            error if error.is_disk_full() => {
                try_this(FAILED, "free some space on the disk of the space, then restore again")
            }
            Self::Clone { .. } | Self::Os { .. } | Self::Index(_) | Self::NotAFile(_) => only(FAILED),
        }
    }
}
