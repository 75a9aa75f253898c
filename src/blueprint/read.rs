//! Reads the files that describe robots and environments.

use std::path::Path;

use super::BlueprintError;
use crate::sys::guarded;
use crate::yaml::{BadFile, Document};

/// The largest file that is read, in bytes. rcc's templates have less than 2,000.
pub const MAX_FILE: u64 = 1 << 20;

/// The content of a file. The file may be a link, but what the link leads to must be a regular file.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, BlueprintError> {
    Ok(guarded::read_through_link(path, MAX_FILE)?)
}

/// The document of a file with this content.
pub(super) fn document(path: &Path, bytes: &[u8]) -> Result<Option<Document>, BlueprintError> {
    Ok(Document::parse(bytes).map_err(BadFile::at(path))?)
}
