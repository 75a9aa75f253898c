//! Reads catalogs: hostile bytes in, a checked tree out.
//!
//! A catalog is a gzip stream of JSON that lists the files of one environment. This module parses bytes and opens no
//! files. It accepts what rcc writes, and what rcc reads from other writers: offsets that are repeated or unsorted,
//! lists that are absent or `null`, links without a valid digest, bytes after the document, and a gzip stream without
//! its trailer. It refuses what could do harm: names that lead out of the tree, invalid digests, offsets out of bounds,
//! and absurd sizes and depths. Each refusal names the entry. A duplicate name in a directory is refused when the tree
//! is compiled, because compiling sorts the names anyway.
//!
//! rcc lists the content of a link to a directory once more, with the mark `shadow`. These entries are in rcc's own
//! counts, but are not part of the tree.
//!
//! Invariant: memory use depends on the entries that are kept, not on the size of the text. The size of the file limits
//! both, see `limits`.

mod build;
mod gunzip;
pub mod header;
mod info;
mod json;
pub(crate) mod limits;
#[cfg(test)]
mod tests;
pub(crate) mod write;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::NAME_LEN;
use super::digest::Digest;
use super::name::is_hex;
pub use info::{CatalogInfo, Placed};
use limits::Limits;

/// The deepest nesting of directories. A path of the kernel's limit (4096 bytes) could have 2048 levels. Real
/// environments have fewer than 40.
pub const MAX_DEPTH: usize = 256;
/// The largest file, 2^62 bytes. A sum of larger sizes could overflow.
pub const MAX_SIZE: u64 = 1 << 62;
/// The longest target of a symbolic link in bytes, which is the kernel's limit.
pub const MAX_LINK: usize = 4095;

/// Why a catalog is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file is not a gzip stream, or the stream is broken.
    #[error("{0}")]
    NotGzip(String),
    /// An entry is invalid.
    #[error("entry {path:?}: {why}")]
    Entry {
        /// The path of the entry from the root.
        path: String,
        why: String,
    },
    /// The text is not that of a catalog.
    #[error("not a catalog: {why} (at byte {offset} of the text)")]
    NotACatalog {
        why: &'static str,
        /// The position in the unpacked text, in bytes.
        offset: u64,
    },
    /// The header is invalid or incomplete.
    #[error("{0}")]
    BadHeader(String),
    /// The catalog exceeds a limit.
    #[error("{0}")]
    TooLarge(String),
    /// The tree is not one that the parser makes.
    #[error("the tree is not consistent: {0}")]
    Inconsistent(&'static str),
}

/// The header of a catalog or of a space's `.meta`, with the members in rcc's order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// The version of rcc. Old versions wrote none; then the member is left out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rcc: String,
    /// The name of the directory: of the stage in a catalog, of the space in a `.meta`.
    pub identity: String,
    /// The absolute path of the directory.
    pub path: String,
    /// `rcc.user` in a `.meta`, empty in a catalog.
    pub controller: String,
    /// The space's name in a `.meta`, empty in a catalog.
    pub space: String,
    /// Such as `linux_amd64`.
    pub platform: String,
    /// The hash of the blueprint, 16 hexadecimal digits.
    pub blueprint: String,
}

/// A checked tree, in the order of the text.
#[derive(Debug, Default)]
pub struct Tree {
    /// All entries. The root is the first, and a directory comes before its entries.
    pub entries: Vec<Entry>,
    /// Names and link targets.
    pub strings: Vec<u8>,
    /// The digests of files, each once.
    pub digests: Vec<Digest>,
    /// The digests and sizes of what rcc lists for links, each once: of a link's target, and of everything below a link to
    /// a directory. No file of the tree needs them, but rcc looks for their blobs. Filled by [`parse_whole`] only.
    pub linked: BTreeMap<Digest, u64>,
    /// The offsets of relocations. Those of one file are ascending, without repeats, and each leaves room for the name.
    pub relocations: Vec<u64>,
    /// The header, and rcc's own counts.
    pub info: CatalogInfo,
}

/// A range of [`Tree::strings`]: offset and length.
pub type Text = (u32, u32);

/// A directory, file or link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub name: Text,
    /// The position of its directory in [`Tree::entries`].
    pub parent: u32,
    pub kind: EntryKind,
}

/// The kind of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// In bytes.
        size: u64,
        /// Permission bits (07777).
        perm: u16,
        /// Position in [`Tree::digests`].
        digest: u32,
        /// First position in [`Tree::relocations`], and the number of offsets.
        relocations: (u64, u32),
    },
    /// A symbolic link.
    Symlink { target: Text },
}

impl Tree {
    #[must_use]
    pub fn text(&self, (offset, len): Text) -> &[u8] {
        self.strings.get(offset as usize..offset as usize + len as usize).unwrap_or_default()
    }

    /// The path of an entry, without a leading slash. For messages: names that are not UTF-8 are changed.
    #[must_use]
    pub fn path_of(&self, mut position: usize) -> String {
        let mut names = Vec::new();
        // A parent comes before its children, so the loop ends also in an inconsistent tree.
        while let Some(entry) = self.entries.get(position).filter(|entry| (entry.parent as usize) < position)
        {
            names.push(String::from_utf8_lossy(self.text(entry.name)));
            position = entry.parent as usize;
        }
        names.reverse();
        names.join("/")
    }
}

/// Unpacks and parses a catalog file. A large file is unpacked by a second thread.
///
/// # Errors
/// See [`CatalogError`].
pub fn parse_file(bytes: &[u8]) -> Result<Tree, CatalogError> {
    parse(bytes, false)
}

/// Like [`parse_file`], and collects what rcc lists for links too.
///
/// # Errors
/// See [`CatalogError`].
pub fn parse_whole(bytes: &[u8]) -> Result<Tree, CatalogError> {
    parse(bytes, true)
}

fn parse(bytes: &[u8], with_links: bool) -> Result<Tree, CatalogError> {
    let limits = Limits::of(bytes.len() as u64);
    let tree = gunzip::unpacking(bytes, limits, |pieces| build::build(pieces, limits, with_links))?;
    check_header(&tree.info)?;
    Ok(tree)
}

fn check_header(info: &CatalogInfo) -> Result<(), CatalogError> {
    let bad = |why: String| Err(CatalogError::BadHeader(why));
    if info.identity.len() != NAME_LEN || info.identity.contains('/') {
        return bad(format!("the identity {:?} is not a name of {NAME_LEN} bytes", info.identity));
    }
    let (base, name) = info.path.rsplit_once('/').unwrap_or_default();
    if !info.path.starts_with('/') || base.split('/').any(|part| matches!(part, "." | "..")) {
        return bad(format!("the path {:?} is not an absolute path without `.` and `..`", info.path));
    }
    if name != info.identity || info.path.contains('\0') {
        return bad(format!("the path {:?} does not end in the identity {:?}", info.path, info.identity));
    }
    if !info.blueprint.is_empty() && !is_hex(&info.blueprint, 16) {
        return bad(format!("the blueprint {:?} is not a hash of 16 hexadecimal digits", info.blueprint));
    }
    Ok(())
}

/// The setuid, setgid and sticky bits of an `st_mode`, and their positions in a Go `FileMode`.
const GO_BITS: [(u16, u32); 3] = [(0o4000, 23), (0o2000, 22), (0o1000, 20)];

/// The permission bits (07777) of an `st_mode`, from a Go `FileMode`.
#[must_use]
pub fn perm_of_go_mode(mode: u32) -> u16 {
    let mut perm = (mode & 0o777) as u16;
    for (st_bit, bit) in GO_BITS {
        if mode & (1 << bit) != 0 {
            perm |= st_bit;
        }
    }
    perm
}

/// Why a name is not a valid file name, or None if it is one.
fn bad_name(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("an empty name"),
        b"." | b".." => Some("the name `.` or `..`"),
        _ if name.contains(&b'/') => Some("a name with a slash"),
        _ if name.contains(&0) => Some("a name with a NUL byte"),
        _ if name.len() > 255 => Some("a name longer than 255 bytes"),
        _ => None,
    }
}
