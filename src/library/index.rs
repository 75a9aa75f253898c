//! The compiled index: a catalog's tree in a form that is mapped and read in place.
//!
//! Node 0 is the root, and nodes stand in breadth-first order, so that the children of a directory are
//! neighbours, sorted by the bytes of their names: a lookup is a binary search, a listing a walk along the array,
//! and neither allocates nor makes a system call. A node's id is its position and names it for as long as the
//! catalog's content is the same.
//!
//! Invariant: a damaged map never panics and never reads outside of it; it answers [`IndexError`].

pub mod cache;
pub mod compile;
pub mod format;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use crate::sys::guarded::{self, Access};
use crate::sys::map::Map;
use format::{DIGEST_SIZE, Header, NODE_SIZE, RawNode};

/// A node: its position in the index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u32);

/// An index that does not hold together.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the compiled index is damaged: {0}")]
pub struct IndexError(pub &'static str);

/// What a catalog says about itself, and rcc's own counts of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CatalogInfo {
    /// The version of rcc that wrote it; empty for old ones.
    pub rcc: String,
    /// The stage's name: the 24 bytes that relocation replaces.
    pub identity: String,
    /// The stage's path; its parent is where spaces must be.
    pub path: String,
    /// The platform, `linux_amd64`.
    pub platform: String,
    /// The blueprint's hash, 16 hex digits.
    pub blueprint: String,
    /// Directories as rcc counts them: what lies below links to directories once more.
    pub rcc_directories: u64,
    /// Files as rcc counts them.
    pub rcc_files: u64,
    /// Bytes as rcc counts them.
    pub rcc_bytes: u64,
    /// Files with relocations as rcc counts them.
    pub rcc_relocations: u64,
}

/// A node as the index shows it.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    /// Its id.
    pub id: NodeId,
    /// Its directory; the root's is itself.
    pub parent: NodeId,
    /// Its name; the root's is empty.
    pub name: &'a [u8],
    /// What it is.
    pub kind: NodeKind<'a>,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum NodeKind<'a> {
    /// A directory.
    Dir {
        /// Its children's ids.
        children: Range<u32>,
        /// How many of them are directories.
        subdirs: u32,
    },
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Permission bits with setuid, setgid and sticky (07777).
        perm: u32,
        /// Its content.
        digest: Digest,
        /// Where the stage's name stands in it.
        relocations: Relocations<'a>,
    },
    /// A symbolic link.
    Symlink {
        /// Its text.
        target: &'a [u8],
    },
}

/// The offsets at which a file is relocated: rising, without repeats, each with room for the name.
#[derive(Clone, Copy, Debug)]
pub struct Relocations<'a>(&'a [[u8; 8]]);

impl<'a> Relocations<'a> {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The offsets.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.0.iter().map(|offset| u64::from_le_bytes(*offset))
    }
}

/// A mapped index.
#[derive(Debug)]
pub struct Index {
    map: Map,
    header: Header,
    info: CatalogInfo,
    /// All blobs were in the library when somebody looked, and the catalog file has not been touched since. `cache`
    /// knows it.
    blobs_seen: bool,
}

impl Index {
    /// Maps an index file and checks its header, which takes the same time whatever its size. Whether the body is
    /// what was written is [`Index::verify`]'s to say, and `cache`'s to know.
    ///
    /// # Errors
    /// When it cannot be mapped, or is no index of this version.
    pub fn open(path: &Path) -> std::io::Result<Result<Self, IndexError>> {
        let file = guarded::open_file(path, Access::Read)?;
        if file.metadata()?.len() < format::HEADER_SIZE as u64 {
            return Ok(Err(IndexError("it is shorter than a header")));
        }
        let map = Map::of(&file)?;
        Ok(Header::decode(&map).and_then(|header| {
            let info = header.section(&map, header.info)?;
            let info =
                serde_json::from_slice(info).map_err(|_| IndexError("its description cannot be read"))?;
            Ok(Self { map, header, info, blobs_seen: false })
        }))
    }

    /// Compares the body with its checksum: reads all of it.
    ///
    /// # Errors
    /// When they differ.
    pub fn verify(&self) -> Result<(), IndexError> {
        let body = self.map.get(format::HEADER_SIZE..).ok_or(IndexError("it is shorter than a header"))?;
        if crc32fast::hash(body) == self.header.body_crc {
            Ok(())
        } else {
            Err(IndexError("checksum mismatch"))
        }
    }

    /// Nodes, the root included.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // there is always a root
    pub fn len(&self) -> u32 {
        self.header.node_count
    }

    /// What the catalog says about itself.
    #[must_use]
    pub fn info(&self) -> &CatalogInfo {
        &self.info
    }

    /// Whether all of its blobs were in the library when that was looked at last, for this very catalog file.
    #[must_use]
    pub fn blobs_seen(&self) -> bool {
        self.blobs_seen
    }

    /// The contents of its regular files, each once.
    pub fn digests(&self) -> impl Iterator<Item = Result<Digest, IndexError>> + '_ {
        let (digests, error) = match self.raw_digests() {
            Ok(digests) => (digests, None),
            Err(error) => (&[][..], Some(Err(error))),
        };
        error.into_iter().chain(digests.iter().map(|digest| format::decode_digest(digest)))
    }

    /// SHA-256 of the catalog file that it was compiled from.
    #[must_use]
    pub fn catalog_sha256(&self) -> [u8; 32] {
        self.header.catalog_sha256
    }

    /// Regular files.
    #[must_use]
    pub fn files(&self) -> u32 {
        self.header.files
    }

    /// Regular files with relocations.
    #[must_use]
    pub fn relocated_files(&self) -> u32 {
        self.header.relocated
    }

    /// Bytes of all regular files.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.header.total_bytes
    }

    /// A node.
    ///
    /// # Errors
    /// When there is none of that id, or it does not hold together.
    pub fn node(&self, id: NodeId) -> Result<Node<'_>, IndexError> {
        let raw = self.raw(id)?;
        let kind = match raw.kind {
            format::DIR => {
                let (first, count) = (raw.a as u32, (raw.a >> 32) as u32);
                let end = first.checked_add(count).filter(|end| *end <= self.header.node_count);
                // Children come after their directory: a walk always ends.
                let end = end.filter(|_| count == 0 || first > id.0).ok_or(IndexError("children"))?;
                NodeKind::Dir { children: first..end, subdirs: raw.b as u32 }
            }
            format::FILE => NodeKind::File {
                size: raw.a,
                perm: u32::from(raw.perm),
                digest: self.digest(raw.b as u32)?,
                relocations: self.relocations(raw.c, (raw.b >> 32) as u32)?,
            },
            format::SYMLINK => NodeKind::Symlink { target: self.string(raw.a as u32, (raw.a >> 32) as u32)? },
            _ => return Err(IndexError("a node of no known kind")),
        };
        let name = self.string(raw.name_offset, u32::from(raw.name_len))?;
        Ok(Node { id, parent: NodeId(raw.parent), name, kind })
    }

    /// The child of a directory under a name.
    ///
    /// # Errors
    /// When the index does not hold together. What is no directory has no children.
    pub fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>, IndexError> {
        let NodeKind::Dir { children, .. } = self.node(dir)?.kind else { return Ok(None) };
        let (mut low, mut high) = (children.start, children.end);
        while low < high {
            let middle = low + (high - low) / 2;
            let raw = self.raw(NodeId(middle))?;
            match self.string(raw.name_offset, u32::from(raw.name_len))?.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(NodeId(middle))),
            }
        }
        Ok(None)
    }

    /// The path of a node from the root, as far as the index holds together. For messages.
    #[must_use]
    pub fn path_of(&self, node: NodeId) -> String {
        let mut parts = Vec::new();
        let mut at = node;
        while at.0 != 0 {
            let Ok(found) = self.node(at) else { break };
            parts.push(String::from_utf8_lossy(found.name).into_owned());
            // A parent always comes before its children; a damaged index must not loop here.
            if found.parent >= at {
                break;
            }
            at = found.parent;
        }
        parts.reverse();
        parts.join("/")
    }

    fn raw(&self, id: NodeId) -> Result<RawNode, IndexError> {
        let nodes = self.header.section(&self.map, self.header.nodes)?.as_chunks::<NODE_SIZE>().0;
        RawNode::decode(nodes.get(id.0 as usize).ok_or(IndexError("no such node"))?)
    }

    fn string(&self, offset: u32, len: u32) -> Result<&[u8], IndexError> {
        let strings = self.header.section(&self.map, self.header.strings)?;
        let (start, len) = (offset as usize, len as usize);
        strings.get(start..start + len).ok_or(IndexError("a name"))
    }

    fn digest(&self, number: u32) -> Result<Digest, IndexError> {
        format::decode_digest(self.raw_digests()?.get(number as usize).ok_or(IndexError("a digest"))?)
    }

    fn raw_digests(&self) -> Result<&[[u8; DIGEST_SIZE]], IndexError> {
        Ok(self.header.section(&self.map, self.header.digests)?.as_chunks().0)
    }

    fn relocations(&self, first: u64, count: u32) -> Result<Relocations<'_>, IndexError> {
        let all = self.header.section(&self.map, self.header.relocations)?.as_chunks().0;
        let end = first.checked_add(u64::from(count));
        let range = end.and_then(|end| all.get(usize::try_from(first).ok()?..usize::try_from(end).ok()?));
        range.map(Relocations).ok_or(IndexError("relocations"))
    }
}
