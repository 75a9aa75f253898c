//! The advice for errors of object stores.

use super::{
    Advice, CATALOG_AGAIN, CERTIFICATE, CONFIG, FAILED, Failure, INTERRUPTED, LIBRARY, USAGE,
    is_about_writing, only, try_this,
};
use crate::library::remote::StoreError;
use crate::library::remote::push::PushError;
use crate::library::remote::store::OpenError;
use crate::settings::remote::aws::AwsError;

const CREDENTIALS: &str =
    "the credentials of the store, in the variables or files of its service: see docs/REMOTE.md";

impl Advice for OpenError {
    fn advice(&self) -> Failure {
        match self {
            Self::Secret => try_this(USAGE, "the URL without them; AWS_*, GOOGLE_* and AZURE_* are read"),
            Self::NotAStore(_) => try_this(
                USAGE,
                "s3://BUCKET/PATH, gs://BUCKET, az://CONTAINER, https://HOST or file:///DIRECTORY",
            ),
            Self::Aws(AwsError::Unsupported { .. }) => {
                try_this(CONFIG, "aws configure export-credentials --format env, and its variables")
            }
            Self::Aws(AwsError::NoProfile(..)) => try_this(CONFIG, "another AWS_PROFILE, or unset it"),
            Self::Aws(_) => try_this(CONFIG, "correct or remove the file"),
            Self::Certificates { .. } => {
                try_this(CONFIG, "a file with certificates in PEM format, or no file")
            }
            Self::Setting { .. } | Self::NoCredentials { .. } => try_this(CONFIG, CREDENTIALS),
        }
    }
}

impl Advice for StoreError {
    fn advice(&self) -> Failure {
        match self {
            Self::NotFound { .. } => try_this(LIBRARY, "check the URL; the bucket must be there"),
            Self::Denied { .. } => try_this(LIBRARY, CREDENTIALS),
            Self::Unreachable { .. } => {
                try_this(LIBRARY, "again when it answers, or a longer --remote-timeout")
            }
            Self::Untrusted { .. } => try_this(LIBRARY, CERTIFICATE),
            Self::Offline { .. } => try_this(LIBRARY, "without --offline and HOLOFS_OFFLINE, once"),
            Self::Refused { .. } => only(LIBRARY),
            Self::Content { .. } => only(FAILED),
        }
    }
}

impl Advice for PushError {
    fn advice(&self) -> Failure {
        match self {
            Self::Library(error) => error.advice(),
            Self::Blob { source, .. } => source.advice(),
            Self::Pack { source, .. } if is_about_writing(source) => {
                try_this(FAILED, "free some space, or HOLOFS_CACHE_DIR on another disk")
            }
            Self::Pack { .. } => only(FAILED),
            Self::Profile { .. } => {
                try_this(USAGE, "--profile with a profile of this environment, auto or none")
            }
            Self::Index(_) => try_this(FAILED, "remove the cache of holofs; nothing is lost"),
            Self::Store(error) => error.advice(),
            Self::Layout(_) => try_this(LIBRARY, CATALOG_AGAIN),
            Self::Head(_) | Self::Panicked(_) => only(FAILED),
            Self::Interrupted => only(INTERRUPTED),
        }
    }
}
