//! The compiled index: the tree of a catalog in a form that is mapped into memory and read in place.
//!
//! Parsing a catalog takes time that grows with the environment, and a mount must not. So each catalog is compiled
//! once. Node 0 is the root, and the nodes are in breadth-first order. The children of a directory are neighbours,
//! sorted by the bytes of their names: a lookup is a binary search, and a listing is a walk along the array. Neither
//! allocates or makes a system call. The position of a node is its id, which stays the same as long as the content of
//! the catalog does.
//!
//! Invariant: reading a damaged index returns [`IndexError`]; it never panics and never reads outside the mapping.

pub mod cache;
pub mod compile;
pub mod find;
pub mod format;
pub(crate) mod node;
pub mod place;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;
use zerocopy::{FromBytes, Immutable, Unaligned};

use super::bytecode::{self, Bytecode};
use super::catalog::CatalogInfo;
use super::digest::Digest;
use crate::sys::fd;
use crate::sys::guarded::{self, Access};
use format::{Header, RawDigest, RawNode, Section};
pub use node::{IndexError, Node, NodeId, NodeKind, Relocations};

#[derive(Debug)]
pub struct Index {
    map: Mmap,
    header: Header,
    info: CatalogInfo,
    /// The library had all blobs at the last check, and the catalog file has not changed since. Set by `cache`.
    pub blobs_seen: bool,
    /// Shown beside the sources of the catalog.
    bytecode: OnceLock<Arc<Bytecode>>,
}

impl Index {
    /// Maps an index file and checks its header, in constant time. The body is not checked: see [`Index::verify`].
    ///
    /// # Errors
    /// When the file cannot be mapped, or is not an index of this version.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = guarded::open_file(path, Access::Read)?;
        if file.metadata()?.len() < format::HEADER_SIZE as u64 {
            return Err(IndexError("shorter than a header").into());
        }
        let map = fd::map(&file)?;
        let header = Header::decode(&map)?;
        let info = serde_json::from_slice(header.info.of(&map)?)
            .map_err(|_| IndexError("the catalog's header cannot be read"))?;
        Ok(Self { map, header, info, blobs_seen: false, bytecode: OnceLock::new() })
    }

    /// Compares the body with its checksum. Reads all of the file.
    ///
    /// # Errors
    /// When they differ.
    pub fn verify(&self) -> Result<(), IndexError> {
        let body = self.map.get(format::HEADER_SIZE..).ok_or(IndexError("shorter than a header"))?;
        if crc32fast::hash(body) == self.header.body_crc.get() {
            Ok(())
        } else {
            Err(IndexError("wrong checksum"))
        }
    }

    /// The number of nodes, with the root.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // there is always a root
    pub fn len(&self) -> u32 {
        self.header.node_count.get()
    }

    /// The number of node ids: of the catalog's entries, and of the bytecode that is shown.
    #[must_use]
    pub fn ids(&self) -> u32 {
        if self.bytecode.get().is_some() { self.len().saturating_mul(2) } else { self.len() }
    }

    /// Shows the bytecode of the catalog's sources from now on: see [`bytecode`].
    pub fn show(&self, bytecode: Arc<Bytecode>) {
        self.bytecode.get_or_init(|| bytecode);
    }

    /// The bytecode that is shown.
    #[must_use]
    pub fn bytecode(&self) -> Option<&Arc<Bytecode>> {
        self.bytecode.get()
    }

    /// Whether this is the id of bytecode or of its directory, shown or not. Such entries may come and go.
    #[must_use]
    pub fn is_bytecode(&self, id: NodeId) -> bool {
        (self.len()..self.len().saturating_mul(2)).contains(&id.0)
    }

    #[must_use]
    pub fn info(&self) -> &CatalogInfo {
        &self.info
    }

    /// The digests of the regular files, each once.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn digests(&self) -> Result<impl Iterator<Item = Result<Digest, IndexError>> + '_, IndexError> {
        Ok(self.table(self.header.digests)?.iter().map(RawDigest::decode))
    }

    /// The SHA-256 of the catalog file.
    #[must_use]
    pub fn catalog_sha256(&self) -> [u8; 32] {
        self.header.catalog_sha256
    }

    /// The number of regular files with relocations.
    #[must_use]
    pub fn relocated_files(&self) -> u32 {
        self.header.relocated.get()
    }

    /// Returns a node.
    ///
    /// # Errors
    /// When there is no such node, or the index is damaged.
    pub fn node(&self, id: NodeId) -> Result<Node<'_>, IndexError> {
        let Ok(raw) = self.raw(id) else { return self.bytecode_node(id) };
        let (a, b) = (raw.a.get(), raw.b.get());
        let kind = match raw.kind.get() {
            format::DIR => {
                let (first, count) = (a as u32, (a >> 32) as u32);
                let end = first.checked_add(count).filter(|end| *end <= self.len());
                // Children come after their directory, so that every walk ends.
                let end = end.filter(|_| count == 0 || first > id.0).ok_or(IndexError("wrong children"))?;
                NodeKind::Dir { children: first..end, subdirs: b as u32 }
            }
            format::FILE => NodeKind::File {
                size: a,
                perm: u32::from(raw.perm.get()),
                digest: self.digest(b as u32)?,
                relocations: self.relocations(raw.c.get(), (b >> 32) as u32)?,
                stored: a,
            },
            format::PLACED => {
                let words = self.relocations(raw.c.get(), (b >> 32) as u32)?;
                let (stored, relocations) =
                    words.split_first().ok_or(IndexError("a file without its size"))?;
                NodeKind::File {
                    size: a,
                    perm: u32::from(raw.perm.get()),
                    digest: self.digest(b as u32)?,
                    relocations,
                    stored: stored.get(),
                }
            }
            format::SYMLINK => NodeKind::Symlink { target: self.string(a as u32, (a >> 32) as u32)? },
            _ => return Err(IndexError("a node of unknown kind")),
        };
        Ok(Node { id, parent: NodeId(raw.parent.get()), name: self.name(raw)?, kind })
    }

    /// Finds the child of a directory by its name. Other nodes have no children.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>, IndexError> {
        if dir.0 >= self.len() {
            return self.lookup_bytecode(dir, name);
        }
        let NodeKind::Dir { children, .. } = self.node(dir)?.kind else { return Ok(None) };
        let (mut low, mut high) = (children.start, children.end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(self.raw(NodeId(middle))?)?.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(NodeId(middle))),
            }
        }
        if name == bytecode::DIRECTORY
            && let Some(bytecode) = self.bytecode.get()
            && bytecode.has_any(&children)
        {
            return Ok(Some(NodeId(self.len() + dir.0)));
        }
        Ok(None)
    }

    /// Finds the bytecode of a source by its name, in the `__pycache__` with the id `dir`.
    fn lookup_bytecode(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>, IndexError> {
        let Some(bytecode) = self.bytecode.get() else { return Ok(None) };
        let above = self.node(NodeId(dir.0 - self.len()))?;
        let NodeKind::Dir { children, .. } = above.kind else { return Ok(None) };
        Ok(bytecode.find(&children, name).map(|source| NodeId(self.len() + source.0)))
    }

    /// A node of bytecode. Its directory has no entries, because bytecode is not listed.
    fn bytecode_node(&self, id: NodeId) -> Result<Node<'_>, IndexError> {
        const NONE: IndexError = IndexError("a node that does not exist");
        let bytecode = self.bytecode.get().ok_or(NONE)?;
        let of = NodeId(id.0.checked_sub(self.len()).ok_or(NONE)?);
        let raw = self.raw(of)?;
        if raw.kind.get() == format::DIR {
            let kind = NodeKind::Dir { children: 0..0, subdirs: 0 };
            return Ok(Node { id, parent: of, name: bytecode::DIRECTORY, kind });
        }
        let found = bytecode.of(of).ok_or(NONE)?;
        let kind = NodeKind::File {
            size: found.size,
            perm: 0o644,
            digest: found.digest,
            relocations: &[],
            stored: found.size,
        };
        Ok(Node { id, parent: NodeId(self.len() + raw.parent.get()), name: found.name, kind })
    }

    /// The path of a node from the root, for messages. If the index is damaged, it begins below the damage.
    #[must_use]
    pub fn path_of(&self, node: NodeId) -> String {
        let mut parts = Vec::new();
        let mut at = node;
        while at.0 != 0 {
            let Ok(found) = self.node(at) else { break };
            parts.push(String::from_utf8_lossy(found.name).into_owned());
            // A parent comes before its children. A damaged index must not cause an endless loop.
            if found.parent >= at {
                break;
            }
            at = found.parent;
        }
        parts.reverse();
        parts.join("/")
    }

    fn table<T: FromBytes + Immutable + Unaligned>(&self, section: Section) -> Result<&[T], IndexError> {
        let (table, _) =
            <[T]>::ref_from_prefix(section.of(&self.map)?).map_err(|_| IndexError("a wrong section"))?;
        Ok(table)
    }

    fn raw(&self, id: NodeId) -> Result<&RawNode, IndexError> {
        let node = self.table(self.header.nodes)?.get(id.0 as usize);
        node.ok_or(IndexError("a node that does not exist"))
    }

    fn name(&self, raw: &RawNode) -> Result<&[u8], IndexError> {
        self.string(raw.name_offset.get(), raw.name_len.get().into())
    }

    fn string(&self, offset: u32, len: u32) -> Result<&[u8], IndexError> {
        let (start, len) = (offset as usize, len as usize);
        let text = self.header.strings.of(&self.map)?.get(start..start + len);
        text.ok_or(IndexError("a name beyond the end of the strings"))
    }

    fn digest(&self, number: u32) -> Result<Digest, IndexError> {
        let digest = self.table::<RawDigest>(self.header.digests)?.get(number as usize);
        digest.ok_or(IndexError("a digest that does not exist"))?.decode()
    }

    fn relocations(&self, first: u64, count: u32) -> Result<Relocations<'_>, IndexError> {
        let all = self.table(self.header.relocations)?;
        let end = first.checked_add(u64::from(count));
        let range = end.and_then(|end| all.get(usize::try_from(first).ok()?..usize::try_from(end).ok()?));
        range.ok_or(IndexError("relocations that do not exist"))
    }
}
