//! The bytes of an index file. Little-endian throughout; every offset is from the start of its section.
//!
//! ```text
//! header       256 bytes: see `Header`; its last four are the CRC-32 of those before
//! nodes        40 bytes each, breadth first
//! digests      40 bytes each: kind (1 = SHA-256, 2 = SipHash-128), 7 zero bytes, 32 bytes
//! relocations  8 bytes each: offsets, per file rising
//! strings      names and link texts
//! info         JSON: what the catalog says about itself
//! ```

use super::IndexError;
use crate::library::digest::Digest;

/// Changed whenever an old index could be misread.
pub const VERSION: u32 = 1;
/// What an index file begins with.
pub const MAGIC: [u8; 8] = *b"holofsix";
/// Bytes of the header.
pub const HEADER_SIZE: usize = 256;
/// Bytes of a node.
pub const NODE_SIZE: usize = 40;
/// Bytes of a digest.
pub const DIGEST_SIZE: usize = 40;

/// Node kinds.
pub const DIR: u8 = 0;
/// A regular file.
pub const FILE: u8 = 1;
/// A symbolic link.
pub const SYMLINK: u8 = 2;

/// Offset in the file, and length, of a section.
pub type Section = (u64, u64);

/// The header.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Nodes.
    pub node_count: u32,
    /// Regular files.
    pub files: u32,
    /// Regular files with relocations.
    pub relocated: u32,
    /// CRC-32 of everything behind the header.
    pub body_crc: u32,
    /// Bytes of all regular files.
    pub total_bytes: u64,
    /// SHA-256 of the catalog file.
    pub catalog_sha256: [u8; 32],
    /// The sections.
    pub nodes: Section,
    /// Digests.
    pub digests: Section,
    /// Relocations.
    pub relocations: Section,
    /// Strings.
    pub strings: Section,
    /// Description.
    pub info: Section,
}

impl Header {
    fn sections(&self) -> [Section; 5] {
        [self.nodes, self.digests, self.relocations, self.strings, self.info]
    }

    /// Its bytes.
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
    /// When it is no index of this version, or its sections do not lie within the file.
    pub fn decode(file: &[u8]) -> Result<Self, IndexError> {
        let mut bytes = Reader(file.get(..HEADER_SIZE).ok_or(IndexError("it is shorter than a header"))?);
        let (body, crc) = bytes.0.split_at(HEADER_SIZE - 4);
        if bytes.take::<8>()? != MAGIC {
            return Err(IndexError("it does not begin like an index"));
        }
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(IndexError("the header's checksum differs"));
        }
        if bytes.u32()? != VERSION {
            return Err(IndexError("it is of another version"));
        }
        let (node_count, files, relocated, body_crc) =
            (bytes.u32()?, bytes.u32()?, bytes.u32()?, bytes.u32()?);
        bytes.u32()?;
        let total_bytes = bytes.u64()?;
        let catalog_sha256 = bytes.take::<32>()?;
        let mut section = || Ok::<Section, IndexError>((bytes.u64()?, bytes.u64()?));
        let header = Self {
            node_count,
            files,
            relocated,
            body_crc,
            total_bytes,
            catalog_sha256,
            nodes: section()?,
            digests: section()?,
            relocations: section()?,
            strings: section()?,
            info: section()?,
        };
        for (offset, len) in header.sections() {
            let end = offset.checked_add(len).ok_or(IndexError("a section has no end"))?;
            if end > file.len() as u64 {
                return Err(IndexError("a section lies beyond the end of the file"));
            }
        }
        if header.nodes.1 != u64::from(node_count) * NODE_SIZE as u64 || node_count == 0 {
            return Err(IndexError("the number of nodes"));
        }
        Ok(header)
    }

    /// The bytes of a section.
    ///
    /// # Errors
    /// When it does not lie within the file.
    pub fn section<'a>(&self, file: &'a [u8], (offset, len): Section) -> Result<&'a [u8], IndexError> {
        file.get(offset as usize..(offset + len) as usize).ok_or(IndexError("a section"))
    }
}

/// A node's fields; what `a`, `b` and `c` hold depends on its kind.
///
/// | kind | a | b | c |
/// |---|---|---|---|
/// | directory | first child, and how many << 32 | subdirectories | |
/// | file | size | digest, and relocations << 32 | first relocation |
/// | link | text offset, and length << 32 | | |
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawNode {
    /// Where its name begins.
    pub name_offset: u32,
    /// Bytes of its name.
    pub name_len: u16,
    /// Its kind.
    pub kind: u8,
    /// Permission bits (07777) of a file.
    pub perm: u16,
    /// Its directory.
    pub parent: u32,
    /// See above.
    pub a: u64,
    /// See above.
    pub b: u64,
    /// See above.
    pub c: u64,
}

impl RawNode {
    /// Appends its bytes.
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

    /// Reads one.
    ///
    /// # Errors
    /// When there are fewer bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let mut bytes = Reader(bytes);
        Ok(Self {
            name_offset: bytes.u32()?,
            name_len: u16::from_le_bytes(bytes.take()?),
            perm: u16::from_le_bytes(bytes.take()?),
            parent: bytes.u32()?,
            kind: u8::try_from(bytes.u32()?).map_err(|_| IndexError("a node of no known kind"))?,
            a: bytes.u64()?,
            b: bytes.u64()?,
            c: bytes.u64()?,
        })
    }
}

/// Appends a digest.
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
/// When it is of no known kind.
pub fn decode_digest(entry: &[u8]) -> Result<Digest, IndexError> {
    let mut bytes = Reader(entry);
    match bytes.take::<8>()? {
        [1, ..] => Ok(Digest::Sha256(bytes.take()?)),
        [2, ..] => Ok(Digest::Sip128(bytes.take()?)),
        _ => Err(IndexError("a digest of no known kind")),
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(IndexError("it ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, IndexError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, IndexError> {
        self.take().map(u64::from_le_bytes)
    }
}
