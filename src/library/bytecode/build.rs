//! Writes the bytecode of an environment.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use zerocopy::{FromZeros, IntoBytes};

use super::{Entry, HEADER_SIZE, Header, MAGIC, VERSION, dir, file_name};
use crate::library::LibraryError;
use crate::library::cache_dir::cached;
use crate::library::digest::{Digest, DigestKind, Hasher, Hex};
use crate::library::index::{Index, IndexError, NodeId, NodeKind};
use crate::sys::guarded::{Dir, Durability};

/// The sources of an environment that Python can compile for all spaces, by node.
///
/// A source that names its space differs from space to space. A name with a further dot cannot be imported, and its
/// bytecode would be in another order than the sources.
///
/// # Errors
/// When the index is damaged.
pub fn sources(index: &Index) -> Result<Vec<NodeId>, IndexError> {
    let mut found = Vec::new();
    for id in (0..index.len()).map(NodeId) {
        let node = index.node(id)?;
        if let NodeKind::File { relocations: [], .. } = node.kind
            && is_source(node.name)
        {
            found.push(id);
        }
    }
    Ok(found)
}

fn is_source(name: &[u8]) -> bool {
    name.strip_suffix(b".py").is_some_and(|stem| !stem.is_empty() && !stem.iter().any(|b| b".\n".contains(b)))
}

/// The name of the bytecode of a source. `tag` is Python's `sys.implementation.cache_tag`.
fn name_of(source: &[u8], tag: &str) -> Vec<u8> {
    let stem = source.strip_suffix(b".py").unwrap_or(source);
    [stem, b".", tag.as_bytes(), b".pyc"].concat()
}

/// What was written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// The number of files.
    pub files: u32,
    /// The sum of their sizes in bytes.
    pub bytes: u64,
}

/// Takes the bytecode of sources in any order.
#[derive(Debug)]
pub struct Builder<'f> {
    out: BufWriter<&'f mut File>,
    at: u64,
    /// The largest `at`.
    most: u64,
    entries: Vec<(Entry, Vec<u8>)>,
}

impl Builder<'_> {
    /// Adds the bytecode of a source.
    ///
    /// # Errors
    /// When it cannot be written, or there is too much bytecode.
    pub fn add(&mut self, source: NodeId, source_name: &[u8], tag: &str, content: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::other("more than 4 GiB of bytecode of one source");
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let Digest::Sip128(digest) = Hasher::digest(DigestKind::Sip128, content) else {
            return Err(io::Error::other("a digest of another kind"));
        };
        let mut entry = Entry::new_zeroed();
        entry.source.set(source.0);
        entry.size.set(size);
        entry.at.set(self.at);
        entry.digest = digest;
        if self.at + u64::from(size) > self.most {
            return Err(io::Error::other(format!("the bytecode is larger than {} bytes", self.most)));
        }
        self.out.write_all(content)?;
        self.at += u64::from(size);
        self.entries.push((entry, name_of(source_name, tag)));
        Ok(())
    }

    fn finish(mut self, catalog_sha256: &[u8; 32]) -> io::Result<Written> {
        self.entries.sort_unstable_by_key(|(entry, _)| entry.source.get());
        let mut names = Vec::new();
        for (entry, name) in &mut self.entries {
            let too_long = |_| io::Error::other("more than 4 GiB of names");
            entry.name_offset.set(u32::try_from(names.len()).map_err(too_long)?);
            entry.name_len.set(u32::try_from(name.len()).map_err(too_long)?);
            names.extend_from_slice(name);
        }
        let mut order: Vec<u32> = (0..self.entries.len() as u32).collect();
        let digest = |number: &u32| self.entries.get(*number as usize).map(|(entry, _)| entry.digest);
        order.sort_unstable_by_key(digest);
        let mut header = Header::new_zeroed();
        (header.magic, header.catalog_sha256) = (MAGIC, *catalog_sha256);
        header.version.set(VERSION);
        header.count.set(self.entries.len() as u32);
        header.entries.set(self.at);
        for (entry, _) in &self.entries {
            self.out.write_all(entry.as_bytes())?;
        }
        let entries = (self.entries.len() * size_of::<Entry>()) as u64;
        header.by_digest.set(self.at + entries);
        for number in &order {
            self.out.write_all(&number.to_le_bytes())?;
        }
        header.names.set(self.at + entries + 4 * self.entries.len() as u64);
        header.names_len.set(names.len() as u64);
        self.out.write_all(&names)?;
        self.out.flush()?;
        let bytes = self.at - HEADER_SIZE as u64;
        let crc = header.own_crc();
        header.crc.set(crc);
        self.out.get_ref().write_all_at(header.as_bytes(), 0)?;
        Ok(Written { files: self.entries.len() as u32, bytes })
    }
}

/// The most bytecode of sources of so many bytes: the compiler is a program of the environment, which must not fill the
/// disk. CPython's bytecode is about as large as its source.
fn most_of(sources: u64) -> u64 {
    sources.saturating_mul(8).saturating_add(64 << 20)
}

/// Replaces the bytecode of a catalog by what `fill` adds, in one step. `sources` is the sum of the sizes of the sources.
///
/// # Errors
/// That of `fill`, and when the cache cannot be written. The old bytecode stays.
pub fn write<E: From<LibraryError>>(
    cache_dir: &Path,
    catalog_sha256: &[u8; 32],
    sources: u64,
    fill: impl FnOnce(&mut Builder<'_>) -> Result<(), E>,
) -> Result<Written, E> {
    let (dir, name) = (dir(cache_dir), file_name(Hex(catalog_sha256)));
    let path = dir.join(&name);
    let failed = |error: io::Error| E::from(LibraryError::io(&path)(error));
    let dir = Dir::make_ours(&dir).map_err(|error| failed(error.into()))?;
    let mut done = None;
    let replaced = dir.replace(name.as_ref(), cached(Durability::Data), |file| {
        let filled = || -> Result<Written, E> {
            file.write_all(&[0; HEADER_SIZE]).map_err(failed)?;
            let out = BufWriter::with_capacity(1 << 20, file);
            let mut builder =
                Builder { out, at: HEADER_SIZE as u64, most: most_of(sources), entries: Vec::new() };
            fill(&mut builder)?;
            builder.finish(catalog_sha256).map_err(failed)
        };
        let filled = filled();
        let is_filled = filled.is_ok();
        done = Some(filled);
        if is_filled { Ok(()) } else { Err(io::Error::other("not filled")) }
    });
    match (done, replaced) {
        (Some(Err(error)), _) => Err(error),
        (Some(done), Ok(())) => done,
        (_, Err(error)) => Err(failed(error)),
        (None, Ok(())) => Err(failed(io::Error::other("the bytecode was not written"))),
    }
}
