//! Compiled Python of an environment, which all spaces of the environment can show in `__pycache__` directories.
//!
//! rcc records no bytecode, so each program compiles what it imports. `holofs warm --pycache` compiles the sources of an
//! environment once, and writes one file beside the compiled index. An [`Index`](super::index::Index) that was given the
//! file has further nodes: the bytecode of source N is node L + N, where L is the number of entries of the catalog, and
//! the `__pycache__` of directory N is node L + N. So these ids do not depend on which sources could be compiled, and the
//! ids of the catalog's own entries stay as they are.
//!
//! These entries are found by name and are not listed. Python opens bytecode by name. rcc lists directories, and removes
//! what its catalog does not have.
//!
//! The bytecode holds the hash of its source, and Python compares it with the source at each import. So bytecode is never
//! used for a source that a space has changed, whatever its size and time.
//!
//! ```text
//! header       128 bytes: see `Header`; its last 4 bytes are the CRC-32 of the others
//! data         the contents, one after another
//! entries      40 bytes each, by source
//! by digest    4 bytes each: the numbers of the entries, in the order of their digests
//! names        the names of the files
//! ```
//!
//! Invariants: the file is read only from a directory that nobody else can write to. Reading a damaged file returns an
//! error or finds nothing. A content is compared with its digest like every other blob.

pub mod build;
pub mod library;
#[cfg(test)]
mod tests;
pub mod travel;

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::digest::{Digest, Hex};
use super::index::node::{IndexError, NodeId};
use super::stored::{Section, StoredBlob};
use crate::sys::fd;
use crate::sys::guarded::{Access, Dir, Trust};

/// The name of the directories in which Python looks for bytecode.
pub const DIRECTORY: &[u8] = b"__pycache__";

/// Raised with every change after which an old file could be misread.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"holofspy";

#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    /// The number of files.
    count: U32,
    /// The SHA-256 of the catalog file.
    catalog_sha256: [u8; 32],
    entries: U64,
    by_digest: U64,
    names: U64,
    names_len: U64,
    reserved: [u8; 44],
    crc: U32,
}

const HEADER_SIZE: usize = size_of::<Header>();

impl Header {
    fn own_crc(&self) -> u32 {
        crc32fast::hash(self.as_bytes().split_at(offset_of!(Self, crc)).0)
    }
}

/// One file of bytecode.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    /// The node of its source.
    source: U32,
    /// In bytes.
    size: U32,
    name_offset: U32,
    name_len: U32,
    /// The offset of the content in the file.
    at: U64,
    digest: [u8; 16],
}

/// The bytecode of an environment.
#[derive(Debug)]
pub struct Bytecode {
    map: Mmap,
    file: Arc<File>,
    header: Header,
}

/// A file of bytecode, as an index shows it.
#[derive(Clone, Copy, Debug)]
pub struct Compiled<'b> {
    /// The node of its source.
    pub source: NodeId,
    /// Such as `os.cpython-311.pyc`.
    pub name: &'b [u8],
    /// In bytes.
    pub size: u64,
    pub digest: Digest,
}

/// The directory of all bytecode in holofs's cache.
#[must_use]
pub fn dir(cache_dir: &Path) -> PathBuf {
    cache_dir.join("pycache")
}

/// The name of the file of the catalog with this SHA-256.
#[must_use]
pub fn file_name(catalog_sha256: impl Display) -> String {
    format!("{catalog_sha256}.v{VERSION}.pyc")
}

impl Bytecode {
    /// Opens the bytecode of a catalog; None if it was not compiled. Does no work that grows with the environment.
    ///
    /// # Errors
    /// When the file is damaged, or somebody else could have written it.
    pub fn open(cache_dir: &Path, catalog_sha256: &[u8; 32]) -> io::Result<Option<Self>> {
        let opened = Dir::open(&dir(cache_dir), Trust::Private)
            .and_then(|dir| dir.open_file(file_name(Hex(catalog_sha256)).as_ref(), Access::Read));
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let found = file.metadata()?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(io::Error::other("the bytecode belongs to another user, or others may write to it"));
        }
        if found.len() < HEADER_SIZE as u64 {
            return Err(IndexError("the bytecode is shorter than its header").into());
        }
        let map = fd::map(&file)?;
        let damaged = |why| Err(IndexError(why).into());
        let Ok((header, _)) = Header::read_from_prefix(&map) else {
            return damaged("the bytecode has no header");
        };
        if header.magic != MAGIC || header.version.get() != VERSION || header.own_crc() != header.crc.get() {
            return damaged("the header of the bytecode is damaged");
        }
        if header.catalog_sha256 != *catalog_sha256 {
            return damaged("the bytecode is of another catalog");
        }
        let bytecode = Self { map, file: Arc::new(file), header };
        let names = bytecode.part(bytecode.header.names, bytecode.header.names_len.get());
        match (bytecode.entries(), bytecode.by_digest(), names) {
            (Some(_), Some(_), Some(_)) => Ok(Some(bytecode)),
            _ => damaged("the bytecode is truncated"),
        }
    }

    /// The bytecode of a source.
    #[must_use]
    pub fn of(&self, source: NodeId) -> Option<Compiled<'_>> {
        let entries = self.entries()?;
        let at = entries.binary_search_by_key(&source.0, |entry| entry.source.get()).ok()?;
        self.compiled(entries.get(at)?)
    }

    /// Whether any of these sources has bytecode.
    #[must_use]
    pub fn has_any(&self, sources: &std::ops::Range<u32>) -> bool {
        !self.among(sources).is_empty()
    }

    /// The bytecode with this name of one of these sources, which are the children of a directory.
    #[must_use]
    pub fn find(&self, sources: &std::ops::Range<u32>, name: &[u8]) -> Option<NodeId> {
        let entries = self.among(sources);
        // The sources of a directory are sorted by name, and so are their files: see `build::is_source`.
        let at = entries.binary_search_by(|entry| self.name(entry).unwrap_or_default().cmp(name)).ok()?;
        entries.get(at).map(|entry| NodeId(entry.source.get()))
    }

    /// The content with this digest.
    fn content(&self, digest: &Digest) -> Option<StoredBlob> {
        let Digest::Sip128(digest) = digest else { return None };
        let (entries, order) = (self.entries()?, self.by_digest()?);
        let entry = |number: &U32| entries.get(number.get() as usize);
        let at = order.binary_search_by(|number| entry(number).map(|entry| entry.digest).cmp(&Some(*digest)));
        let found = entry(order.get(at.ok()?)?)?;
        let (at, size) = (found.at.get(), u64::from(found.size.get()));
        let section = Section::part(Arc::clone(&self.file), at, at.checked_add(size)?);
        Some(StoredBlob::new(section.clone(), Some(section)))
    }

    /// All files, by source, each with its content. A damaged one has none.
    fn all(&self) -> impl Iterator<Item = (Compiled<'_>, Option<&[u8]>)> {
        self.entries().unwrap_or_default().iter().filter_map(|entry| {
            let content = self.part(entry.at, entry.size.get().into());
            Some((self.compiled(entry)?, content))
        })
    }

    fn among(&self, sources: &std::ops::Range<u32>) -> &[Entry] {
        let entries = self.entries().unwrap_or_default();
        let first = entries.partition_point(|entry| entry.source.get() < sources.start);
        let end = entries.partition_point(|entry| entry.source.get() < sources.end);
        entries.get(first..end).unwrap_or_default()
    }

    fn compiled(&self, entry: &Entry) -> Option<Compiled<'_>> {
        Some(Compiled {
            source: NodeId(entry.source.get()),
            name: self.name(entry)?,
            size: entry.size.get().into(),
            digest: Digest::Sip128(entry.digest),
        })
    }

    fn name(&self, entry: &Entry) -> Option<&[u8]> {
        let (start, len) = (entry.name_offset.get() as usize, entry.name_len.get() as usize);
        let name = self.part(self.header.names, self.header.names_len.get())?.get(start..start + len)?;
        (!name.is_empty() && !name.contains(&b'/') && !name.contains(&0)).then_some(name)
    }

    fn entries(&self) -> Option<&[Entry]> {
        self.table(self.header.entries)
    }

    fn by_digest(&self) -> Option<&[U32]> {
        self.table(self.header.by_digest)
    }

    fn table<T: FromBytes + Immutable + Unaligned>(&self, at: U64) -> Option<&[T]> {
        let count = u64::from(self.header.count.get());
        let bytes = self.part(at, count * size_of::<T>() as u64)?;
        <[T]>::ref_from_bytes(bytes).ok()
    }

    fn part(&self, at: U64, len: u64) -> Option<&[u8]> {
        let end = at.get().checked_add(len)?;
        self.map.get(usize::try_from(at.get()).ok()?..usize::try_from(end).ok()?)
    }
}
