//! The library: what rcc recorded, read and never trusted, and never written.
//!
//! Catalogs are parsed strictly and compiled into mapped indexes; blobs are verified against their digests when
//! they are first used. The one trait is at the blob store, where faults (and later remote stores) are put in.

pub mod blob;
pub mod cache;
pub mod catalog;
pub mod catalogs;
pub mod check;
pub mod digest;
pub mod index;
pub mod locate;
pub(crate) mod look;
pub mod name;
pub mod profile;
pub mod stamp;
pub mod stream;
pub(crate) mod unkept;

use std::path::PathBuf;

use catalog::CatalogError;
use index::compile::CompileError;

/// The time that rcc gives every restored file: 2021-01-07T06:13:20Z, in seconds since the epoch.
pub const MOTHER_TIME: i64 = 1_610_000_000;

/// Bytes of a stage's or a space's name, which relocation puts one in the place of the other.
pub const NAME_LEN: usize = 24;

/// What can be wrong with a library as a whole, or with one of its catalogs.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// There is nothing, or something else.
    #[error("{path}: {why}")]
    NotALibrary {
        /// What was given.
        path: PathBuf,
        /// Why it is no library.
        why: &'static str,
    },
    /// The catalog is refused.
    #[error("catalog {path}: {source}")]
    Catalog {
        /// The catalog file.
        path: PathBuf,
        /// Why.
        source: CatalogError,
    },
    /// The catalog's tree is refused.
    #[error("catalog {path}: {source}")]
    Compile {
        /// The catalog file.
        path: PathBuf,
        /// Why.
        source: CompileError,
    },
    /// A file or directory could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl LibraryError {
    /// For `map_err` on an I/O call about a path.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
