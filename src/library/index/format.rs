//! The bytes of an index file. Little-endian throughout; every offset is from the start of its section.
//!
//! ```text
//! header       256 bytes: see `Header`; its last 4 bytes are the CRC-32 of the others
//! nodes        40 bytes each, breadth first
//! digests      40 bytes each: kind (1 = SHA-256, 2 = SipHash-128), 7 zero bytes, 32 bytes
//! relocations  8 bytes each: offsets, ascending for each file
//! strings      names and link targets
//! info         JSON: the catalog's header
//! ```

use super::IndexError;
use crate::library::digest::Digest;

/// Raised with every change after which an old index could be misread.
pub const VERSION: u32 = 1;
/// The first bytes of an index file.
pub const MAGIC: [u8; 8] = *b"holofsix";
/// The size of the header in bytes.
pub const HEADER_SIZE: usize = 256;
/// The size of a node in bytes.
pub const NODE_SIZE: usize = 40;
/// The size of a digest in bytes.
pub const DIGEST_SIZE: usize = 40;

/// The kind of a directory's node.
pub const DIR: u8 = 0;
/// The kind of a regular file's node.
pub const FILE: u8 = 1;
/// The kind of a symbolic link's node.
pub const SYMLINK: u8 = 2;

/// The offset of a section in the file, and its length, in bytes.
pub type Section = (u64, u64);

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// The number of nodes.
    pub node_count: u32,
    /// The number of regular files.
    pub files: u32,
    /// The number of regular files with relocations.
    pub relocated: u32,
    /// The CRC-32 of everything after the header.
    pub body_crc: u32,
    /// The sum of the sizes of all regular files.
    pub total_bytes: u64,
    /// The SHA-256 of the catalog file.
    pub catalog_sha256: [u8; 32],
    pub nodes: Section,
    pub digests: Section,
    pub relocations: Section,
    pub strings: Section,
    /// The catalog's header, as JSON.
    pub info: Section,
}

impl Header {
    fn sections(&self) -> [Section; 5] {
        [self.nodes, self.digests, self.relocations, self.strings, self.info]
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_SIZE);
        out.extend_from_slice(&MAGIC);
        for number in [VERSION, self.node_count, self.files, self.relocated, self.body_crc, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.total_bytes.to_le_bytes());
        out.extend_from_slice(&self.catalog_sha256);
        for (offset, len) in self.sections() {
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
        out.resize(HEADER_SIZE - 4, 0);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks the header of a whole index file.
    ///
    /// # Errors
    /// When the file is not an index of this version, or a section does not lie within the file.
    pub fn decode(file: &[u8]) -> Result<Self, IndexError> {
        let mut bytes = Reader(file.get(..HEADER_SIZE).ok_or(IndexError("shorter than a header"))?);
        let (body, crc) = bytes.0.split_at(HEADER_SIZE - 4);
        if bytes.take::<8>()? != MAGIC {
            return Err(IndexError("not an index"));
        }
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(IndexError("wrong checksum of the header"));
        }
        if bytes.u32()? != VERSION {
            return Err(IndexError("another version of the format"));
        }
        // In the order of the bytes.
        let header = Self {
            node_count: bytes.u32()?,
            files: bytes.u32()?,
            relocated: bytes.u32()?,
            body_crc: bytes.u32()?,
            // After 4 bytes of padding.
            total_bytes: bytes.u32().and_then(|_| bytes.u64())?,
            catalog_sha256: bytes.take()?,
            nodes: bytes.section()?,
            digests: bytes.section()?,
            relocations: bytes.section()?,
            strings: bytes.section()?,
            info: bytes.section()?,
        };
        for (offset, len) in header.sections() {
            let end = offset.checked_add(len).ok_or(IndexError("a section is too long"))?;
            if end > file.len() as u64 {
                return Err(IndexError("a section lies beyond the end of the file"));
            }
        }
        if header.nodes.1 != u64::from(header.node_count) * NODE_SIZE as u64 || header.node_count == 0 {
            return Err(IndexError("wrong number of nodes"));
        }
        Ok(header)
    }

    /// Returns the bytes of a section.
    ///
    /// # Errors
    /// When the section does not lie within the file.
    pub fn section<'a>(&self, file: &'a [u8], (offset, len): Section) -> Result<&'a [u8], IndexError> {
        file.get(offset as usize..(offset + len) as usize)
            .ok_or(IndexError("a section lies beyond the end of the file"))
    }
}

/// The fields of a node. The meaning of `a`, `b` and `c` depends on the kind.
///
/// | kind | a | b | c |
/// |---|---|---|---|
/// | directory | first child, number of children << 32 | number of subdirectories | |
/// | file | size | digest, number of relocations << 32 | first relocation |
/// | link | offset of the target, length << 32 | | |
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawNode {
    /// The offset of the name in the strings.
    pub name_offset: u32,
    /// The length of the name in bytes.
    pub name_len: u16,
    pub kind: u8,
    /// Permission bits (07777) of a file.
    pub perm: u16,
    /// The id of the directory.
    pub parent: u32,
    pub a: u64,
    pub b: u64,
    pub c: u64,
}

impl RawNode {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.name_offset.to_le_bytes());
        out.extend_from_slice(&self.name_len.to_le_bytes());
        out.extend_from_slice(&self.perm.to_le_bytes());
        out.extend_from_slice(&self.parent.to_le_bytes());
        out.extend_from_slice(&u32::from(self.kind).to_le_bytes());
        for field in [self.a, self.b, self.c] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    /// Reads a node.
    ///
    /// # Errors
    /// When `bytes` is too short.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let mut bytes = Reader(bytes);
        Ok(Self {
            name_offset: bytes.u32()?,
            name_len: u16::from_le_bytes(bytes.take()?),
            perm: u16::from_le_bytes(bytes.take()?),
            parent: bytes.u32()?,
            kind: u8::try_from(bytes.u32()?).map_err(|_| IndexError("a node of unknown kind"))?,
            a: bytes.u64()?,
            b: bytes.u64()?,
            c: bytes.u64()?,
        })
    }
}

pub fn encode_digest(digest: &Digest, out: &mut Vec<u8>) {
    let end = out.len() + DIGEST_SIZE;
    out.push(if digest.is_raw() { 2 } else { 1 });
    out.extend_from_slice(&[0; 7]);
    out.extend_from_slice(digest.bytes());
    out.resize(end, 0);
}

/// Reads a digest.
///
/// # Errors
/// When its kind is unknown.
pub fn decode_digest(entry: &[u8]) -> Result<Digest, IndexError> {
    let mut bytes = Reader(entry);
    match bytes.take::<8>()? {
        [1, ..] => Ok(Digest::Sha256(bytes.take()?)),
        [2, ..] => Ok(Digest::Sip128(bytes.take()?)),
        _ => Err(IndexError("a digest of unknown kind")),
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(IndexError("the file ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, IndexError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, IndexError> {
        self.take().map(u64::from_le_bytes)
    }

    fn section(&mut self) -> Result<Section, IndexError> {
        Ok((self.u64()?, self.u64()?))
    }
}
