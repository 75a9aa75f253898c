//! What people want to know about an environment: the text of its blueprint, its largest files, its last use.

use std::io::ErrorKind;
use std::time::SystemTime;

use super::blob::Blobs;
use super::digest::Digest;
use super::index::{Index, IndexError, NodeId, NodeKind};
use super::locate::Location;

/// The largest blueprint that is read, in bytes.
const MAX_IDENTITY: u64 = 1 << 20;

/// The digest and the size of `identity.yaml`, the file with the blueprint's text. None when the environment lacks it.
///
/// # Errors
/// When the index is damaged.
pub fn identity_file(index: &Index) -> Result<Option<(Digest, u64)>, IndexError> {
    let Some(id) = index.lookup(NodeId(0), b"identity.yaml")? else { return Ok(None) };
    Ok(match index.node(id)?.kind {
        NodeKind::File { digest, size, .. } => Some((digest, size)),
        NodeKind::Dir { .. } | NodeKind::Symlink { .. } => None,
    })
}

/// The text of `identity.yaml`. Where it cannot be read, the reason in brackets stands for it.
///
/// # Errors
/// When the index is damaged.
pub fn identity_text(index: &Index, blobs: &Blobs) -> Result<Option<String>, IndexError> {
    Ok(identity_file(index)?.map(|(digest, size)| {
        if size > MAX_IDENTITY {
            return format!("(it is longer than {MAX_IDENTITY} bytes)");
        }
        match blobs.read_all(&digest, size) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("({error})"),
        }
    }))
}

/// The paths and sizes of the `n` largest files.
///
/// # Errors
/// When the index is damaged.
pub fn largest(index: &Index, n: usize) -> Result<Vec<(String, u64)>, IndexError> {
    let mut files = Vec::new();
    for id in (0..index.len()).map(NodeId) {
        if let NodeKind::File { size, .. } = index.node(id)?.kind {
            files.push((size, id));
        }
    }
    files.sort_unstable_by(|a, b| b.cmp(a));
    files.truncate(n);
    Ok(files.into_iter().map(|(size, id)| (index.path_of(id), size)).collect())
}

/// When somebody on this machine used an environment last, by the library's usage marks.
#[must_use]
pub fn last_use(location: &Location, blueprint: &str) -> Option<SystemTime> {
    let dir = location.hololib()?.join("used");
    let marks = || -> std::io::Result<Option<SystemTime>> {
        let mut last = None;
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let hash = name.to_str().and_then(|name| name.split_once('.')).map(|(hash, _)| hash);
            if hash == Some(blueprint) {
                last = last.max(Some(entry.metadata()?.modified()?));
            }
        }
        Ok(last)
    };
    marks().unwrap_or_else(|error| {
        if error.kind() != ErrorKind::NotFound {
            tracing::warn!(path = %dir.display(), %error, "the usage marks of the library cannot be read");
        }
        None
    })
}
