//! From a checked tree to the bytes of an index.

use std::collections::VecDeque;

use super::IndexError;
use super::format::{self, HEADER_SIZE, Header, RawNode};
use crate::library::catalog::{EntryKind, Tree};

/// Why a tree cannot be compiled.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompileError {
    /// One directory has a name twice.
    #[error("entry {0:?}: its directory has the name twice")]
    NameTwice(String),
    /// More than the format can number.
    #[error(transparent)]
    TooLarge(#[from] IndexError),
}

/// Compiles a tree.
///
/// # Errors
/// When a name stands twice in one directory.
pub fn compile(tree: &Tree, catalog_sha256: [u8; 32]) -> Result<Vec<u8>, CompileError> {
    let children = Children::of(tree)?;
    let order = breadth_first(tree, &children);
    let mut number = vec![0u32; tree.entries.len()];
    for (position, entry) in order.iter().enumerate() {
        if let Some(number) = number.get_mut(*entry as usize) {
            *number = position as u32;
        }
    }
    let nodes = vec![0u8; HEADER_SIZE];
    let mut out =
        Output { header: Header { catalog_sha256, ..Header::default() }, file: nodes, next_child: 0 };
    out.file.reserve_exact(size_of_index(tree));
    for entry in &order {
        out.node(tree, &children, &number, *entry);
    }
    Ok(out.finish(tree))
}

/// About how many bytes the index of a tree takes, so that it is not copied as it grows.
fn size_of_index(tree: &Tree) -> usize {
    tree.entries.len() * format::NODE_SIZE
        + tree.digests.len() * format::DIGEST_SIZE
        + tree.relocations.len() * 8
        + tree.strings.len()
        + 4096
}

/// The children of each entry, sorted by name: one array, and where each one's part begins.
struct Children {
    starts: Vec<u32>,
    all: Vec<u32>,
}

impl Children {
    fn of(tree: &Tree) -> Result<Self, CompileError> {
        let mut starts = vec![0u32; tree.entries.len() + 1];
        for entry in tree.entries.iter().skip(1) {
            if let Some(count) = starts.get_mut(entry.parent as usize + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut next = starts.clone();
        let mut all = vec![0u32; tree.entries.len().saturating_sub(1)];
        for (position, entry) in tree.entries.iter().enumerate().skip(1) {
            if let Some(slot) = next.get_mut(entry.parent as usize) {
                if let Some(child) = all.get_mut(*slot as usize) {
                    *child = position as u32;
                }
                *slot += 1;
            }
        }
        for bounds in starts.windows(2) {
            let &[from, to] = bounds else { continue };
            let Some(part) = all.get_mut(from as usize..to as usize) else { continue };
            part.sort_unstable_by_key(|child| name_of(tree, *child));
            let twice = part.windows(2).find(|pair| match pair {
                [a, b] => name_of(tree, *a) == name_of(tree, *b),
                _ => false,
            });
            if let Some([entry, _]) = twice {
                return Err(CompileError::NameTwice(path_of(tree, *entry)));
            }
        }
        Ok(Self { starts, all })
    }

    fn part(&self, entry: u32) -> &[u32] {
        let bounds = self.starts.get(entry as usize).zip(self.starts.get(entry as usize + 1));
        bounds.and_then(|(from, to)| self.all.get(*from as usize..*to as usize)).unwrap_or_default()
    }
}

fn name_of(tree: &Tree, entry: u32) -> &[u8] {
    tree.entries.get(entry as usize).map_or(&[], |entry| tree.text(entry.name))
}

fn path_of(tree: &Tree, mut entry: u32) -> String {
    let mut parts = Vec::new();
    while entry != 0 {
        parts.push(String::from_utf8_lossy(name_of(tree, entry)).into_owned());
        let parent = tree.entries.get(entry as usize).map_or(0, |entry| entry.parent);
        // Parents come before children, or this would not end.
        entry = if parent < entry { parent } else { 0 };
    }
    parts.reverse();
    parts.join("/")
}

fn breadth_first(tree: &Tree, children: &Children) -> Vec<u32> {
    let mut order = Vec::with_capacity(tree.entries.len());
    let mut queue = VecDeque::from([0u32]);
    while let Some(entry) = queue.pop_front() {
        order.push(entry);
        queue.extend(children.part(entry));
    }
    order
}

struct Output {
    header: Header,
    /// The file so far: room for the header, then the nodes.
    file: Vec<u8>,
    /// Where the next directory's children begin.
    next_child: u32,
}

impl Output {
    fn node(&mut self, tree: &Tree, children: &Children, number: &[u32], position: u32) {
        let Some(entry) = tree.entries.get(position as usize) else { return };
        let parent = number.get(entry.parent as usize).copied().unwrap_or(0);
        let (name_offset, name_len) = entry.name;
        let mut raw = RawNode {
            name_offset,
            name_len: u16::try_from(name_len).unwrap_or(u16::MAX),
            parent,
            ..RawNode::default()
        };
        match entry.kind {
            EntryKind::Dir => {
                let part = children.part(position);
                if self.next_child == 0 {
                    self.next_child = 1;
                }
                raw.kind = format::DIR;
                raw.a = u64::from(self.next_child) | (part.len() as u64) << 32;
                raw.b = part.iter().filter(|child| is_dir(tree, **child)).count() as u64;
                self.next_child += part.len() as u32;
            }
            EntryKind::File { size, perm, digest, relocations: (first, count) } => {
                raw.kind = format::FILE;
                raw.perm = perm;
                raw.a = size;
                raw.b = u64::from(digest) | u64::from(count) << 32;
                raw.c = first;
                self.header.files += 1;
                self.header.relocated += u32::from(count > 0);
                self.header.total_bytes = self.header.total_bytes.saturating_add(size);
            }
            EntryKind::Symlink { target: (offset, len) } => {
                raw.kind = format::SYMLINK;
                raw.a = u64::from(offset) | u64::from(len) << 32;
            }
        }
        self.header.node_count += 1;
        raw.encode(&mut self.file);
    }

    fn finish(mut self, tree: &Tree) -> Vec<u8> {
        let mut file = self.file;
        self.header.nodes = (HEADER_SIZE as u64, (file.len() - HEADER_SIZE) as u64);
        let mut section = |fill: &dyn Fn(&mut Vec<u8>)| {
            // Whole words, so that numbers are aligned in the mapping.
            file.resize(file.len().next_multiple_of(8), 0);
            let start = file.len();
            fill(&mut file);
            (start as u64, (file.len() - start) as u64)
        };
        self.header.digests =
            section(&|file| tree.digests.iter().for_each(|digest| format::encode_digest(digest, file)));
        self.header.relocations =
            section(&|file| file.extend(tree.relocations.iter().flat_map(|offset| offset.to_le_bytes())));
        self.header.strings = section(&|file| file.extend_from_slice(&tree.strings));
        let info = serde_json::to_vec(&tree.info).unwrap_or_default();
        self.header.info = section(&|file| file.extend_from_slice(&info));
        self.header.body_crc = crc32fast::hash(file.get(HEADER_SIZE..).unwrap_or_default());
        if let Some(start) = file.get_mut(..HEADER_SIZE) {
            start.copy_from_slice(&self.header.encode());
        }
        file
    }
}

fn is_dir(tree: &Tree, entry: u32) -> bool {
    tree.entries.get(entry as usize).is_some_and(|entry| entry.kind == EntryKind::Dir)
}
