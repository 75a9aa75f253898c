//! The bytes of an index file. Little-endian throughout; every offset is from the start of its section.
//!
//! ```text
//! header       256 bytes: see `Header`; its last 4 bytes are the CRC-32 of the others
//! nodes        40 bytes each, breadth first
//! digests      40 bytes each: kind (1 = SHA-256, 2 = SipHash-128), 7 zero bytes, 32 bytes
//! relocations  8 bytes each: offsets, ascending for each file; in an index for another path, words (see `place`)
//! strings      names and link targets
//! info         JSON: the catalog's header
//! ```

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::node::IndexError;
use crate::library::digest::Digest;

/// Raised with every change after which an old index could be misread.
pub const VERSION: u32 = 1;
/// The first bytes of an index file.
pub const MAGIC: [u8; 8] = *b"holofsix";
/// The size of the header in bytes.
pub const HEADER_SIZE: usize = size_of::<Header>();

/// The kind of a directory's node.
pub const DIR: u32 = 0;
/// The kind of a regular file's node.
pub const FILE: u32 = 1;
/// The kind of a symbolic link's node.
pub const SYMLINK: u32 = 2;
/// The kind of a regular file's node in an index for another path, if the file differs from its blob: see
/// [`super::place`].
pub const PLACED: u32 = 3;

/// The place of a section in the file, in bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Section {
    pub offset: U64,
    pub len: U64,
}

impl Section {
    /// Returns the bytes of this section of a file.
    ///
    /// # Errors
    /// When the section does not lie within the file.
    pub fn of(self, file: &[u8]) -> Result<&[u8], IndexError> {
        let (offset, len) = (self.offset.get(), self.len.get());
        let end = offset.checked_add(len).ok_or(IndexError("a section is too long"))?;
        file.get(offset as usize..end as usize).ok_or(IndexError("a section lies beyond the end of the file"))
    }
}

#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    magic: [u8; 8],
    version: U32,
    /// The number of nodes.
    pub node_count: U32,
    /// The number of regular files.
    pub files: U32,
    /// The number of regular files with relocations.
    pub relocated: U32,
    /// The CRC-32 of everything after the header.
    pub body_crc: U32,
    padding: U32,
    /// The sum of the sizes of all regular files.
    pub total_bytes: U64,
    /// The SHA-256 of the catalog file.
    pub catalog_sha256: [u8; 32],
    pub nodes: Section,
    pub digests: Section,
    pub relocations: Section,
    pub strings: Section,
    /// The catalog's header, as JSON.
    pub info: Section,
    reserved: [u8; 100],
    crc: U32,
}

impl Header {
    /// Adds what every index file begins with, and the checksum.
    pub fn seal(&mut self) {
        (self.magic, self.version) = (MAGIC, VERSION.into());
        self.crc = self.own_crc().into();
    }

    fn own_crc(&self) -> u32 {
        crc32fast::hash(self.as_bytes().split_at(offset_of!(Self, crc)).0)
    }

    /// Reads and checks the header of a whole index file.
    ///
    /// # Errors
    /// When the file is not an index of this version, or a section does not lie within the file.
    pub fn decode(file: &[u8]) -> Result<Self, IndexError> {
        let (header, _) = Self::read_from_prefix(file).map_err(|_| IndexError("shorter than a header"))?;
        if header.magic != MAGIC {
            return Err(IndexError("not an index"));
        }
        if header.own_crc() != header.crc.get() {
            return Err(IndexError("wrong checksum of the header"));
        }
        if header.version.get() != VERSION {
            return Err(IndexError("another version of the format"));
        }
        for section in [header.nodes, header.digests, header.relocations, header.strings, header.info] {
            section.of(file)?;
        }
        let nodes = u64::from(header.node_count.get());
        if header.nodes.len.get() != nodes * size_of::<RawNode>() as u64 || nodes == 0 {
            return Err(IndexError("wrong number of nodes"));
        }
        Ok(header)
    }
}

/// The fields of a node. The meaning of `a`, `b` and `c` depends on the kind.
///
/// | kind | a | b | c |
/// |---|---|---|---|
/// | directory | first child, number of children << 32 | number of subdirectories | |
/// | file | size | digest, number of relocations << 32 | first relocation |
/// | file of another path | size there | digest, number of words << 32 | the first word, which is the size of the blob |
/// | link | offset of the target, length << 32 | | |
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawNode {
    /// The offset of the name in the strings.
    pub name_offset: U32,
    /// The length of the name in bytes.
    pub name_len: U16,
    /// Permission bits (07777) of a file.
    pub perm: U16,
    /// The id of the directory.
    pub parent: U32,
    pub kind: U32,
    pub a: U64,
    pub b: U64,
    pub c: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDigest {
    kind: [u8; 8],
    bytes: [[u8; 16]; 2],
}

impl From<Digest> for RawDigest {
    fn from(digest: Digest) -> Self {
        let (kind, bytes) = match digest {
            Digest::Sha256(bytes) => (1, zerocopy::transmute!(bytes)),
            Digest::Sip128(bytes) => (2, [bytes, [0; 16]]),
        };
        Self { kind: [kind, 0, 0, 0, 0, 0, 0, 0], bytes }
    }
}

impl RawDigest {
    /// Reads a digest.
    ///
    /// # Errors
    /// When its kind is unknown.
    pub fn decode(&self) -> Result<Digest, IndexError> {
        let [first, _] = self.bytes;
        match self.kind {
            [1, ..] => Ok(Digest::Sha256(zerocopy::transmute!(self.bytes))),
            [2, ..] => Ok(Digest::Sip128(first)),
            _ => Err(IndexError("a digest of unknown kind")),
        }
    }
}
