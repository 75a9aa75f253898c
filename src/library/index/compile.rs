//! Compiles a checked tree into the bytes of an index.
//!
//! The tree is in the order of the catalog's text. The index is in breadth-first order with the children of each
//! directory sorted by name. So the entries are grouped by directory and sorted, then walked breadth first, and each
//! gets its place in that walk as its number.

use std::collections::BTreeMap;

use zerocopy::{FromZeros, IntoBytes};

use super::CatalogInfo;
use super::format::{self, HEADER_SIZE, Header, RawDigest, RawNode, Section};
use crate::library::catalog::CatalogError::{self, Inconsistent};
use crate::library::catalog::{Entry, EntryKind, Tree};

/// Compiles a tree.
///
/// # Errors
/// When a directory has two entries of one name, or the tree is not one that the parser makes.
pub fn compile(tree: &Tree, catalog_sha256: [u8; 32]) -> Result<Vec<u8>, CatalogError> {
    let children = children(tree)?;
    let children_of = |position: u32| match entry(tree, position)?.kind {
        EntryKind::Dir => Ok(children.get(&position).map_or(&[][..], Vec::as_slice)),
        _ => Ok(&[][..]),
    };
    // Serves as the queue of the walk, too.
    let mut order = vec![0u32];
    let mut next = 0;
    while let Some(position) = order.get(next).copied() {
        order.extend_from_slice(children_of(position)?);
        next += 1;
    }
    if order.len() != tree.entries.len() {
        return Err(Inconsistent("a parent"));
    }
    let mut numbers = vec![0u32; tree.entries.len()];
    for (number, position) in order.iter().enumerate() {
        *numbers.get_mut(*position as usize).ok_or(Inconsistent("no root"))? = number as u32;
    }
    let mut file = Vec::with_capacity(size_of_index(tree));
    file.resize(HEADER_SIZE, 0);
    let mut out = Output { header: Header::new_zeroed(), file, next_child: 1 };
    out.header.catalog_sha256 = catalog_sha256;
    for position in order {
        let entry = entry(tree, position)?;
        let parent = *numbers.get(entry.parent as usize).ok_or(Inconsistent("a parent"))?;
        out.node(tree, children_of(position)?, entry, parent)?;
    }
    out.finish(tree)
}

/// About how many bytes the index of a tree takes: enough for the buffer not to grow.
fn size_of_index(tree: &Tree) -> usize {
    tree.entries.len() * size_of::<RawNode>()
        + tree.digests.len() * size_of::<RawDigest>()
        + tree.relocations.len() * 8
        + tree.strings.len()
        + 4096
}

fn entry(tree: &Tree, position: u32) -> Result<&Entry, CatalogError> {
    tree.entries.get(position as usize).ok_or(Inconsistent("an entry"))
}

/// The positions of the children of each directory that has any, sorted by name.
fn children(tree: &Tree) -> Result<BTreeMap<u32, Vec<u32>>, CatalogError> {
    let mut children = BTreeMap::<u32, Vec<u32>>::new();
    let mut positions = 1..;
    // Most entries of a directory follow each other in the tree.
    for run in tree.entries.get(1..).unwrap_or_default().chunk_by(|a, b| a.parent == b.parent) {
        let parent = run.first().map_or(0, |entry| entry.parent);
        children.entry(parent).or_default().extend(positions.by_ref().take(run.len()));
    }
    let name_of =
        |position: u32| tree.entries.get(position as usize).map_or(&[][..], |entry| tree.text(entry.name));
    for siblings in children.values_mut() {
        siblings.sort_unstable_by_key(|child| name_of(*child));
        let twice = siblings.windows(2).find_map(|pair| match *pair {
            [a, b] if name_of(a) == name_of(b) => Some(a),
            _ => None,
        });
        if let Some(position) = twice {
            return Err(CatalogError::Entry {
                path: tree.path_of(position as usize),
                why: "a duplicate name".into(),
            });
        }
    }
    Ok(children)
}

struct Output {
    header: Header,
    /// The file so far: room for the header, then the nodes.
    file: Vec<u8>,
    /// The number of the next directory's first child.
    next_child: u32,
}

impl Output {
    /// Appends the node of an entry. `parent` is the number of its directory.
    fn node(
        &mut self,
        tree: &Tree,
        children: &[u32],
        entry: &Entry,
        parent: u32,
    ) -> Result<(), CatalogError> {
        let (name_offset, name_len) = entry.name;
        let name_len = u16::try_from(name_len).map_err(|_| Inconsistent("a name is too long"))?;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let (kind, perm, a, b, c) = match entry.kind {
            EntryKind::Dir => {
                let (first, count) = (self.next_child, children.len() as u32);
                self.next_child += count;
                let mut subdirs = 0;
                for child in children {
                    subdirs += u64::from(self::entry(tree, *child)?.kind == EntryKind::Dir);
                }
                (format::DIR, 0, pair(first, count), subdirs, 0)
            }
            EntryKind::File { size, perm, digest, relocations: (first, count) } => {
                self.header.files += 1;
                self.header.relocated += u32::from(count > 0);
                self.header.total_bytes.set(self.header.total_bytes.get().saturating_add(size));
                (format::FILE, perm, size, pair(digest, count), first)
            }
            EntryKind::Symlink { target: (offset, len) } => (format::SYMLINK, 0, pair(offset, len), 0, 0),
        };
        self.header.node_count += 1;
        let raw = RawNode {
            name_offset: name_offset.into(),
            name_len: name_len.into(),
            perm: perm.into(),
            parent: parent.into(),
            kind: kind.into(),
            a: a.into(),
            b: b.into(),
            c: c.into(),
        };
        self.file.extend_from_slice(raw.as_bytes());
        Ok(())
    }

    /// Appends the other sections, and puts the header in front.
    fn finish(self, tree: &Tree) -> Result<Vec<u8>, CatalogError> {
        let digests = tree.digests.iter().copied().map(RawDigest::from);
        let digests =
            |file: &mut Vec<u8>| digests.clone().for_each(|digest| file.extend_from_slice(digest.as_bytes()));
        let done = assemble(self.header, self.file, &digests, &tree.relocations, &tree.strings, &tree.info);
        done.ok_or(Inconsistent("its header"))
    }
}

/// Completes an index: `file` has room for the header, and the nodes. Appends the other sections, and puts the header in
/// front. None if the catalog's header is no JSON.
pub(super) fn assemble(
    mut header: Header,
    mut file: Vec<u8>,
    digests: &dyn Fn(&mut Vec<u8>),
    relocations: &[u64],
    strings: &[u8],
    info: &CatalogInfo,
) -> Option<Vec<u8>> {
    let since = |file: &Vec<u8>, start: usize| Section {
        offset: (start as u64).into(),
        len: ((file.len() - start) as u64).into(),
    };
    header.nodes = since(&file, HEADER_SIZE);
    let mut section = |fill: &dyn Fn(&mut Vec<u8>)| {
        // Sections begin at multiples of 8, so that numbers are aligned in the mapping.
        file.resize(file.len().next_multiple_of(8), 0);
        let start = file.len();
        fill(&mut file);
        since(&file, start)
    };
    header.digests = section(digests);
    header.relocations =
        section(&|file| file.extend(relocations.iter().flat_map(|offset| offset.to_le_bytes())));
    header.strings = section(&|file| file.extend_from_slice(strings));
    let info = serde_json::to_vec(info).ok()?;
    header.info = section(&|file| file.extend_from_slice(&info));
    let (head, body) = file.split_at_mut(HEADER_SIZE);
    header.body_crc = crc32fast::hash(body).into();
    header.seal();
    head.copy_from_slice(header.as_bytes());
    Some(file)
}
