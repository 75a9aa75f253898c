//! The digests that the `.meta` of a space lists: what an earlier restore put there.

use std::collections::HashMap;

use crate::library::catalog::{EntryKind, Tree};
use crate::library::digest::Digest;

/// The digest of each file by its path in the tree.
#[derive(Debug, Default)]
pub struct Known(HashMap<Vec<u8>, Digest>);

impl Known {
    /// The digests in a parsed `.meta`.
    #[must_use]
    pub fn of(tree: &Tree) -> Self {
        let mut paths: Vec<Vec<u8>> = Vec::with_capacity(tree.entries.len());
        let mut known = HashMap::new();
        for (position, entry) in tree.entries.iter().enumerate() {
            let above = (position > 0).then(|| paths.get(entry.parent as usize)).flatten();
            let mut path =
                above.filter(|path| !path.is_empty()).map_or_else(Vec::new, |dir| [dir, &b"/"[..]].concat());
            path.extend_from_slice(tree.text(entry.name));
            match entry.kind {
                EntryKind::File { digest, .. } => {
                    if let Some(digest) = tree.digests.get(digest as usize) {
                        known.insert(path, *digest);
                    }
                    // Files have no entries.
                    paths.push(Vec::new());
                }
                EntryKind::Dir => paths.push(path),
                EntryKind::Symlink { .. } => paths.push(Vec::new()),
            }
        }
        Self(known)
    }

    /// Whether another content was put there than this one. False if nothing is known of the file.
    #[must_use]
    pub fn is_other(&self, path: &[u8], digest: &Digest) -> bool {
        self.0.get(path).is_some_and(|known| known != digest)
    }
}
