//! The catalog parser: hostile JSON in, a checked tree out.
//!
//! Pure over bytes: it opens nothing. It accepts what rcc itself writes and what real rcc reads from other writers
//! (offsets repeated or unsorted, absent or null lists, links whose digest is no digest, bytes after the
//! document), and refuses what could hurt: names that lead elsewhere, names twice, digests that are none, offsets
//! out of bounds, absurd sizes and depths. Each refusal names the entry.
//!
//! What lies below a link to a directory is listed by rcc once more (`shadow`); it counts in rcc's own numbers and
//! is no part of the tree.

#[cfg(test)]
mod tests;
mod visit;

use std::collections::HashMap;
use std::io::Read;

use serde::de::DeserializeSeed;

use super::digest::Digest;
use super::index::CatalogInfo;
use crate::materialize::relocate::NAME_LEN;

/// The largest catalog text: a million files take about 300 MB.
pub const MAX_TEXT: u64 = 4 << 30;
/// The deepest nesting of directories. A path of the kernel's limit (4096 bytes) could name 2048; real
/// environments stay below 40.
pub const MAX_DEPTH: usize = 256;
/// The largest file, 2^62 bytes: larger numbers are nonsense, and sums of them would wrap.
pub const MAX_SIZE: u64 = 1 << 62;

/// Why a catalog is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CatalogError {
    /// It is no gzip stream, or a broken one.
    #[error("{0}")]
    NotGzip(String),
    /// It is no JSON of a catalog, or holds an entry that is refused.
    #[error("{0}")]
    Refused(String),
    /// It lacks what a catalog must say about itself.
    #[error("{0}")]
    BadHeader(String),
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
    /// Offsets of relocations.
    pub relocations: Vec<u64>,
    /// What the catalog says about itself.
    pub info: CatalogInfo,
}

/// A piece of [`Tree::strings`].
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
}

/// Unpacks and parses a catalog file.
///
/// # Errors
/// See [`CatalogError`].
pub fn parse_file(bytes: &[u8]) -> Result<Tree, CatalogError> {
    let (text, broken) = unpack(bytes)?;
    match (parse(&text), broken) {
        // Real rcc does not look at the checksum once the document is complete, so neither do we.
        (Ok(tree), _) => Ok(tree),
        (Err(_), Some(broken)) => Err(CatalogError::NotGzip(broken)),
        (Err(error), None) => Err(error),
    }
}

/// The text of a catalog file, and what broke the stream if it broke.
fn unpack(bytes: &[u8]) -> Result<(Vec<u8>, Option<String>), CatalogError> {
    if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(CatalogError::NotGzip("it is zstd, from a newer or experimental rcc".into()));
    }
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Err(CatalogError::NotGzip("it is not a gzip stream".into()));
    }
    let mut text = Vec::with_capacity(bytes.len().saturating_mul(10).min(1 << 28));
    let mut reader = flate2::bufread::MultiGzDecoder::new(bytes).take(MAX_TEXT + 1);
    let broken =
        reader.read_to_end(&mut text).err().map(|error| format!("the gzip stream is broken: {error}"));
    if text.len() as u64 > MAX_TEXT {
        return Err(CatalogError::Refused(format!("its text is larger than {MAX_TEXT} bytes")));
    }
    Ok((text, broken))
}

/// Parses the text of a catalog.
///
/// # Errors
/// See [`CatalogError`].
pub fn parse(text: &[u8]) -> Result<Tree, CatalogError> {
    let mut builder = Builder::default();
    let mut json = serde_json::Deserializer::from_slice(text);
    // Our own limit is lower than what the stack holds, and says which entry it was.
    json.disable_recursion_limit();
    visit::Catalog(&mut builder).deserialize(&mut json).map_err(|error| {
        // A refusal says which entry it was; where in the text is of no use to anybody.
        let refused = builder.refusal.take();
        CatalogError::Refused(refused.unwrap_or_else(|| format!("it is no catalog: {error}")))
    })?;
    check_header(&builder.tree.info)?;
    if builder.tree.entries.is_empty() {
        return Err(CatalogError::BadHeader("it has no tree".into()));
    }
    Ok(builder.tree)
}

fn check_header(info: &CatalogInfo) -> Result<(), CatalogError> {
    let bad = |why: String| Err(CatalogError::BadHeader(why));
    if info.identity.len() != NAME_LEN || info.identity.contains('/') {
        return bad(format!("its identity {:?} is not a name of {NAME_LEN} bytes", info.identity));
    }
    let Some((base, name)) = info.path.rsplit_once('/') else {
        return bad(format!("its path {:?} is not absolute", info.path));
    };
    if !info.path.starts_with('/') || base.split('/').any(|part| matches!(part, "." | "..")) {
        return bad(format!("its path {:?} is not an absolute, plain path", info.path));
    }
    if name != info.identity || info.path.contains('\0') {
        return bad(format!("its path {:?} does not end in its identity {:?}", info.path, info.identity));
    }
    if info.blueprint.len() != 16 || !info.blueprint.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return bad(format!("its blueprint {:?} is not a hash of 16 digits", info.blueprint));
    }
    Ok(())
}

/// What the visitors fill.
#[derive(Default)]
struct Builder {
    tree: Tree,
    known_digests: HashMap<Digest, u32>,
    /// The names that lead to where the visitors are.
    path: Vec<String>,
    /// Why an entry is refused: kept aside, since an error of serde would only have a string as well.
    refusal: Option<String>,
}

impl Builder {
    /// Refuses the entry `name` of the current directory.
    fn refuse<E: serde::de::Error>(&mut self, name: &str, why: impl std::fmt::Display) -> E {
        let mut path = self.path.join("/");
        if !path.is_empty() {
            path.push('/');
        }
        self.refusal = Some(format!("entry {:?}: {why}", format!("{path}{name}")));
        E::custom("refused")
    }

    fn text(&mut self, text: &str) -> Option<Text> {
        let offset = u32::try_from(self.tree.strings.len()).ok()?;
        let len = u32::try_from(text.len()).ok()?;
        offset.checked_add(len)?;
        self.tree.strings.extend_from_slice(text.as_bytes());
        Some((offset, len))
    }

    fn digest(&mut self, digest: Digest) -> u32 {
        let next = self.tree.digests.len() as u32;
        *self.known_digests.entry(digest).or_insert_with(|| {
            self.tree.digests.push(digest);
            next
        })
    }
}

/// The st_mode permission bits (07777) of a Go FileMode, which has setuid, setgid and sticky elsewhere.
#[must_use]
pub fn perm_of_go_mode(mode: u32) -> u16 {
    let mut perm = (mode & 0o777) as u16;
    for (bit, st_mode) in [(23, 0o4000), (22, 0o2000), (20, 0o1000)] {
        if mode & (1 << bit) != 0 {
            perm |= st_mode;
        }
    }
    perm
}

/// Why a name cannot be the name of an entry; None when it can.
fn bad_name(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("an empty name"),
        "." | ".." => Some("a name that leads elsewhere"),
        _ if name.contains('/') => Some("a name with a slash"),
        _ if name.contains('\0') => Some("a name with a NUL byte"),
        _ if name.len() > 255 => Some("a name longer than 255 bytes"),
        _ => None,
    }
}
