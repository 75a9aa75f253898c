//! The catalog parser: hostile bytes in, a checked tree out.
//!
//! Pure over bytes: it opens nothing. It accepts what rcc itself writes and what real rcc reads from other writers
//! (offsets repeated or unsorted, absent or null lists, links whose digest is no digest, bytes after the
//! document, a stream whose trailer is cut off), and refuses what could hurt: names that lead elsewhere, digests
//! that are none, offsets out of bounds, absurd sizes and depths. Each refusal names the entry. Names twice in one
//! directory are refused when the tree is compiled, where names are sorted anyway.
//!
//! What lies below a link to a directory is listed by rcc once more (`shadow`); it counts in rcc's own numbers and
//! is no part of the tree.
//!
//! Invariant: memory is bounded by what is kept of the entries, never by the size of the text; and both are bounded by the
//! size of the file, see `limits`.

mod build;
mod gunzip;
pub mod header;
mod json;
pub(crate) mod limits;
#[cfg(test)]
mod tests;
pub(crate) mod write;

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::NAME_LEN;
use super::digest::Digest;
use super::index::CatalogInfo;
use limits::Limits;

/// The deepest nesting of directories. A path of the kernel's limit (4096 bytes) could name 2048; real
/// environments stay below 40.
pub const MAX_DEPTH: usize = 256;
/// The largest file, 2^62 bytes: larger numbers are nonsense, and sums of them would wrap.
pub const MAX_SIZE: u64 = 1 << 62;
/// The longest text of a link, as the kernel has it.
pub const MAX_LINK: usize = 4095;

/// Why a catalog is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CatalogError {
    /// It is no gzip stream, or a broken one.
    #[error("{0}")]
    NotGzip(String),
    /// One of its entries cannot be shown to anybody.
    #[error("entry {path:?}: {why}")]
    Entry {
        /// Which, from the root.
        path: String,
        /// Why.
        why: String,
    },
    /// Its text is not that of a catalog.
    #[error("it is no catalog: {why} (at byte {offset} of its text)")]
    NotACatalog {
        /// Why.
        why: &'static str,
        /// Where, in the unpacked text.
        offset: u64,
    },
    /// What it says about itself cannot be.
    #[error("{0}")]
    BadHeader(String),
    /// It is larger than any environment.
    #[error("{0}")]
    TooLarge(String),
}

/// What a catalog or a space's `.meta` says about itself, in rcc's order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// The version of rcc; empty in old ones, and left out then.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rcc: String,
    /// The directory's name: of the stage in a catalog, of the space in a `.meta`.
    pub identity: String,
    /// The directory.
    pub path: String,
    /// `rcc.user`; empty in a catalog.
    pub controller: String,
    /// The space's name; empty in a catalog.
    pub space: String,
    /// `linux_amd64`.
    pub platform: String,
    /// The blueprint's hash.
    pub blueprint: String,
}

impl Header {
    /// The directory in which spaces of it must lie.
    #[must_use]
    pub fn base(&self) -> Option<&Path> {
        Path::new(&self.path).parent()
    }
}

/// A checked tree, in the order of the text.
#[derive(Debug, Default)]
pub struct Tree {
    /// Every entry; the root is the first, and parents come before children.
    pub entries: Vec<Entry>,
    /// Names and link texts.
    pub strings: Vec<u8>,
    /// Distinct digests.
    pub digests: Vec<Digest>,
    /// Offsets of relocations: per file rising, without repeats, each with room for the name.
    pub relocations: Vec<u64>,
    /// What the catalog says about itself.
    pub info: CatalogInfo,
}

/// A piece of [`Tree::strings`]: offset and length.
pub type Text = (u32, u32);

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name.
    pub name: Text,
    /// The position of its directory.
    pub parent: u32,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Permission bits (07777).
        perm: u16,
        /// Position in [`Tree::digests`].
        digest: u32,
        /// First position in [`Tree::relocations`], and how many.
        relocations: (u64, u32),
    },
    /// A symbolic link.
    Symlink {
        /// Its text.
        target: Text,
    },
}

impl Tree {
    /// The bytes of a text.
    #[must_use]
    pub fn text(&self, (offset, len): Text) -> &[u8] {
        self.strings.get(offset as usize..offset as usize + len as usize).unwrap_or_default()
    }

    /// The path of an entry, without a leading slash. For messages: names that are not UTF-8 are changed.
    #[must_use]
    pub fn path_of(&self, mut position: usize) -> String {
        let mut names = Vec::new();
        // Parents come before their children, or this would not end.
        while let Some(entry) = self.entries.get(position).filter(|entry| (entry.parent as usize) < position)
        {
            names.push(String::from_utf8_lossy(self.text(entry.name)));
            position = entry.parent as usize;
        }
        names.reverse();
        names.join("/")
    }
}

/// Unpacks and parses a catalog file, at once where there are two processors.
///
/// # Errors
/// See [`CatalogError`].
pub fn parse_file(bytes: &[u8]) -> Result<Tree, CatalogError> {
    let limits = Limits::of(bytes.len() as u64);
    let tree = gunzip::unpacking(bytes, limits, |pieces| build::build(pieces, limits))?;
    check_header(&tree.info)?;
    Ok(tree)
}

fn check_header(info: &CatalogInfo) -> Result<(), CatalogError> {
    let bad = |why: String| Err(CatalogError::BadHeader(why));
    if info.identity.len() != NAME_LEN || info.identity.contains('/') {
        return bad(format!("its identity {:?} is not a name of {NAME_LEN} bytes", info.identity));
    }
    let (base, name) = info.path.rsplit_once('/').unwrap_or_default();
    if !info.path.starts_with('/') || base.split('/').any(|part| matches!(part, "." | "..")) {
        return bad(format!("its path {:?} is not an absolute, plain path", info.path));
    }
    if name != info.identity || info.path.contains('\0') {
        return bad(format!("its path {:?} does not end in its identity {:?}", info.path, info.identity));
    }
    let is_hash =
        |text: &str| text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !info.blueprint.is_empty() && !is_hash(&info.blueprint) {
        return bad(format!("its blueprint {:?} is not a hash of 16 digits", info.blueprint));
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

/// Why a name cannot be the name of an entry; None when it can.
fn bad_name(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("an empty name"),
        b"." | b".." => Some("a name that leads elsewhere"),
        _ if name.contains(&b'/') => Some("a name with a slash"),
        _ if name.contains(&0) => Some("a name with a NUL byte"),
        _ if name.len() > 255 => Some("a name longer than 255 bytes"),
        _ => None,
    }
}
