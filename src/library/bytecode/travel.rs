//! Bytecode on its way to another machine, by way of a library in an object store.
//!
//! ```text
//! gzip of:
//! header       64 bytes: `holofspb`; version, number of files, length of the tag (4 bytes each); zeros; SHA-256 of the catalog
//! tag          Python's `sys.implementation.cache_tag`, such as `cpython-311`
//! files        by source: the node of the source, size (4 bytes each), content
//! ```
//!
//! Numbers are little-endian. What arrives is not mapped as it is: its files are checked, and written as if they came from a
//! compiler ([`super::build`]).
//!
//! Limits: whoever writes to the store decides what the bytecode does, as with all that an environment runs. Bytecode that
//! Python would not compare with its source is refused, so a space that changes a source uses the changed one.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::build::{self, Written, sources};
use super::{Bytecode, dir, file_name};
use crate::library::LibraryError;
use crate::library::digest::Hex;
use crate::library::index::{Index, IndexError, NodeId, NodeKind};

const MAGIC: [u8; 8] = *b"holofspb";
const VERSION: u32 = 1;
/// The most bytecode that is unpacked, in bytes. It is in memory.
const MOST: u64 = 512 << 20;
/// The longest tag in bytes.
const LONGEST_TAG: usize = 64;
/// What bytecode begins with: Python's number, and flags that say that it is compared with the hash of its source.
const FLAGS: &[u8] = &[3, 0, 0, 0];

#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    count: U32,
    tag: U32,
    reserved: [u8; 12],
    catalog_sha256: [u8; 32],
}

/// Packs the bytecode of a catalog, or that of some sources only. None if there is none, or it is larger than `most` bytes.
///
/// # Errors
/// When the bytecode is damaged.
pub fn pack(bytecode: &Bytecode, only: Option<&[NodeId]>, most: u64) -> io::Result<Option<Vec<u8>>> {
    let only: Option<HashSet<NodeId>> = only.map(|only| only.iter().copied().collect());
    let damaged = || io::Error::from(IndexError("the bytecode is damaged"));
    let mut files = Vec::new();
    let mut tag: Option<&[u8]> = None;
    for (compiled, content) in bytecode.all() {
        let content = content.ok_or_else(damaged)?;
        if only.as_ref().is_some_and(|only| !only.contains(&compiled.source)) {
            continue;
        }
        let of_file = tag_of(compiled.name).ok_or_else(damaged)?;
        if *tag.get_or_insert(of_file) == of_file {
            files.push((compiled.source, content));
        }
    }
    let Some(tag) = tag else { return Ok(None) };
    let mut header = Header::new_zeroed();
    (header.magic, header.catalog_sha256) = (MAGIC, bytecode.header.catalog_sha256);
    header.version.set(VERSION);
    header.count.set(files.len() as u32);
    header.tag.set(tag.len() as u32);
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(header.as_bytes())?;
    out.write_all(tag)?;
    for (source, content) in files {
        out.write_all(&source.0.to_le_bytes())?;
        out.write_all(&(content.len() as u32).to_le_bytes())?;
        out.write_all(content)?;
        if out.get_ref().len() as u64 > most {
            return Ok(None);
        }
    }
    Ok(Some(out.finish()?).filter(|packed| packed.len() as u64 <= most))
}

/// The tag in the name of a file of bytecode.
fn tag_of(name: &[u8]) -> Option<&[u8]> {
    name.strip_suffix(b".pyc")?.rsplit(|byte| *byte == b'.').next()
}

/// Unpacks bytecode. It is not checked yet.
///
/// # Errors
/// When it cannot be unpacked, or is too large.
pub fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    GzDecoder::new(packed).take(MOST + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > MOST {
        return Err(refused("it is larger than bytecode that travels"));
    }
    Ok(unpacked)
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Writes unpacked bytecode where `holofs warm --pycache` would, in place of what is there.
///
/// # Errors
/// When it is not the bytecode of this environment, or the cache cannot be written. What is there stays.
pub fn keep(unpacked: &[u8], cache_dir: &Path, index: &Index) -> Result<Written, LibraryError> {
    let catalog = index.catalog_sha256();
    let path = dir(cache_dir).join(file_name(Hex(&catalog)));
    let failed = |error: io::Error| LibraryError::io(&path)(error);
    let mut rest = unpacked;
    let header: Header = next(&mut rest).map_err(failed)?;
    if header.magic != MAGIC || header.version.get() != VERSION {
        return Err(failed(refused("it is no bytecode, or of another version")));
    }
    if header.catalog_sha256 != catalog {
        return Err(failed(refused("it is the bytecode of another catalog")));
    }
    let tag = some(&mut rest, header.tag.get()).map_err(failed)?;
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    let tag = std::str::from_utf8(tag).ok();
    let tag = tag.filter(|tag| (1..=LONGEST_TAG).contains(&tag.len()) && tag.as_bytes().iter().all(is_word));
    let tag = tag.ok_or_else(|| failed(refused("its tag is none of Python's")))?;
    let can_be = sources(index)?;
    let mut bytes = 0;
    for source in &can_be {
        if let NodeKind::File { size, .. } = index.node(*source)?.kind {
            bytes += size;
        }
    }
    build::write(cache_dir, &catalog, bytes, |builder| {
        let mut before = None;
        for _ in 0..header.count.get() {
            let [source, size]: [U32; 2] = next(&mut rest).map_err(failed)?;
            let content = some(&mut rest, size.get()).map_err(failed)?;
            let source = NodeId(source.get());
            if before.replace(source).is_some_and(|before| before >= source)
                || can_be.binary_search(&source).is_err()
            {
                return Err(failed(refused("it has bytecode of a file that is no source")));
            }
            if content.get(4..8) != Some(FLAGS) {
                return Err(failed(refused("it has bytecode that is used for a changed source, too")));
            }
            builder.add(source, index.node(source)?.name, tag, content).map_err(failed)?;
        }
        Ok(())
    })
}

/// Takes a value from the beginning.
fn next<T: FromBytes>(rest: &mut &[u8]) -> io::Result<T> {
    let (value, after) = T::read_from_prefix(rest).map_err(|_| refused("it is truncated"))?;
    *rest = after;
    Ok(value)
}

/// Takes bytes from the beginning.
fn some<'r>(rest: &mut &'r [u8], len: u32) -> io::Result<&'r [u8]> {
    let parts = usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len));
    let (bytes, after) = parts.ok_or_else(|| refused("it is truncated"))?;
    *rest = after;
    Ok(bytes)
}
