//! The directories of a tree, and batches of files to make in them.

use std::collections::VecDeque;
use std::ops::Range;

use super::RestoreError;
use crate::library::index::{Index, NodeId, NodeKind};

/// The largest number of files of a batch, so that the threads end at about the same time.
const FILES: usize = 64;
/// A batch is full when its files have so many bytes.
const BYTES: u64 = 4 << 20;

/// A directory of the tree.
#[derive(Debug)]
pub(super) struct LaidDir {
    pub(super) node: NodeId,
    /// Relative to the root of the tree, which is `.`.
    pub(super) path: Vec<u8>,
    pub(super) children: Range<u32>,
}

impl LaidDir {
    /// The path of an entry, for messages.
    pub(super) fn path_of(&self, name: &[u8]) -> String {
        String::from_utf8_lossy(&join(&self.path, name)).into_owned()
    }

    /// The path of an entry.
    pub(super) fn path_bytes(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }

    /// Its files and links, except for those at the positions that `is_kept` names.
    pub(super) fn missing(
        &self,
        index: &Index,
        is_kept: impl Fn(usize) -> bool,
    ) -> Result<Vec<NodeId>, RestoreError> {
        let mut missing = Vec::new();
        for (at, child) in self.children.clone().map(NodeId).enumerate() {
            if !is_kept(at) && !matches!(index.node(child)?.kind, NodeKind::Dir { .. }) {
                missing.push(child);
            }
        }
        Ok(missing)
    }

    /// Its path, for messages.
    pub(super) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// Files and links of one directory.
#[derive(Debug)]
pub(super) struct Batch {
    /// Position in the list of directories.
    pub(super) dir: usize,
    pub(super) nodes: Vec<NodeId>,
    bytes: u64,
}

/// The directories of a tree, each before the directories in it.
pub(super) fn directories(index: &Index) -> Result<Vec<LaidDir>, RestoreError> {
    let mut dirs = Vec::new();
    let mut queue = VecDeque::from([(NodeId(0), b".".to_vec())]);
    while let Some((node, path)) = queue.pop_front() {
        let NodeKind::Dir { children, .. } = index.node(node)?.kind else { continue };
        for child in children.clone().map(NodeId) {
            let found = index.node(child)?;
            if matches!(found.kind, NodeKind::Dir { .. }) {
                queue.push_back((child, join(&path, found.name)));
            }
        }
        dirs.push(LaidDir { node, path, children });
    }
    Ok(dirs)
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir == b"." { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Batches with these files and links: for each directory, by its position, the ones to make in it. Batches with large files
/// come first, so that no thread begins one when the others have ended.
pub(super) fn batches(
    index: &Index,
    wanted: impl Iterator<Item = (usize, Vec<NodeId>)>,
) -> Result<(Vec<Batch>, Total), RestoreError> {
    let (mut batches, mut total) = (Vec::new(), Total::default());
    for (dir, nodes) in wanted {
        let mut batch = Batch { dir, nodes: Vec::new(), bytes: 0 };
        for node in nodes {
            if batch.nodes.len() == FILES || batch.bytes >= BYTES {
                batches.push(std::mem::replace(&mut batch, Batch { dir, nodes: Vec::new(), bytes: 0 }));
            }
            if let NodeKind::File { size, .. } = index.node(node)?.kind {
                batch.bytes += size;
                total.files += 1;
                total.bytes += size;
            }
            batch.nodes.push(node);
        }
        if !batch.nodes.is_empty() {
            batches.push(batch);
        }
    }
    // Stable, so that the others stay in the order of the tree.
    batches.sort_by_key(|batch| std::cmp::Reverse(if batch.bytes >= BYTES { batch.bytes } else { 0 }));
    Ok((batches, total))
}

/// How much is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Total {
    pub(super) files: u64,
    pub(super) bytes: u64,
}
