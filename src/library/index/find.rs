//! Finds where an environment names the path in which it was built.
//!
//! A catalog lists where the last part of that path stands in each file: as much as rcc replaces. To show the environment
//! at any other path, the whole path has to be found, and also what the file is: a text, in which a path of another length
//! may stand, or a binary, in which nothing may move. So all files are read once for each catalog, and what was found is
//! kept beside its index.
//!
//! Limits: a path is found in its plain bytes only: not in UTF-16, with escapes, or inside compressed data.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};

use super::format::{self, RawDigest};
use super::{Index, IndexError, NodeId};
use crate::library::Latency;
use crate::library::blob::direct::{Room, Unpacked};
use crate::library::blob::{BlobError, Blobs};
use crate::library::cache_dir::cached;
use crate::library::digest::Hex;
use crate::sys::guarded::{self, Durability};
use crate::sys::thread::{self, Panicked};

/// Raised with every change of what is found, or of how it is written.
const VERSION: u32 = 1;

/// The largest file of finds that is read.
const MAX_LEN: u64 = 256 << 20;

/// How much of the beginning of a binary is searched for the line that names its interpreter. The kernel reads less.
const LINE: usize = 1024;

/// Why the files of an environment could not be searched.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Blobs are missing or bad.
    #[error("{path}: {source}{}", and_others(others))]
    Blob {
        /// The path of a file with this content, in the environment.
        path: String,
        /// What is wrong with it.
        source: BlobError,
        /// The same of other contents: `path: what is wrong`.
        others: Vec<String>,
    },
    /// The index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A thread panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

fn and_others(others: &[String]) -> String {
    if others.is_empty() { String::new() } else { format!("; and {} other files", others.len()) }
}

/// Where the path in which an environment was built stands in its files.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Finds {
    version: u32,
    /// The SHA-256 of the catalog.
    catalog: String,
    /// What is known of each content that names the path, in the order of the index's digests.
    contents: Vec<Content>,
}

/// A content that names the path.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Content {
    /// The position of its digest in the index.
    digest: u32,
    /// Where the path begins, in bytes: ascending, and nowhere one within another.
    pub paths: Vec<u64>,
    /// It has a NUL byte.
    pub binary: bool,
    /// For each path of a binary, where its string ends: the next NUL, or the end of the file.
    pub ends: Vec<u64>,
    /// The length of the first line without its end, if it names an interpreter (`#!`).
    pub line: Option<u64>,
}

impl Finds {
    /// What is known of the content with the digest at this position. None if it does not name the path.
    #[must_use]
    pub fn of(&self, digest: u32) -> Option<&Content> {
        let at = self.contents.binary_search_by_key(&digest, |content| content.digest).ok()?;
        self.contents.get(at)
    }

    /// Reads what an earlier search has found. None if there was none.
    #[must_use]
    pub fn read(index: &Index, cache_dir: &Path) -> Option<Self> {
        let path = path_of(index, cache_dir);
        let bytes = match guarded::read(&path, MAX_LEN) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "searching the environment again");
                return None;
            }
        };
        // A power cut may truncate the file. Then it cannot be parsed, and counts as missing.
        Self::parse(index, &bytes)
    }

    /// Reads what a search of this environment has found, on this machine or on another. None if it is anything else.
    #[must_use]
    pub fn parse(index: &Index, bytes: &[u8]) -> Option<Self> {
        let sum = Hex(&index.catalog_sha256()).to_string();
        let found: Self = serde_json::from_slice(bytes).ok()?;
        (found.version == VERSION && found.catalog == sum && found.fits()).then_some(found)
    }

    /// What [`Finds::parse`] reads.
    ///
    /// # Errors
    /// None is known: there are no maps and no floating-point numbers in it.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    /// Whether it has the order that its readers rely on.
    fn fits(&self) -> bool {
        let ascends = |list: &[u64]| list.is_sorted();
        self.contents.is_sorted_by(|one, other| one.digest < other.digest)
            && self.contents.iter().all(|content| {
                ascends(&content.paths)
                    && ascends(&content.ends)
                    && content.ends.len() == if content.binary { content.paths.len() } else { 0 }
            })
    }

    /// Keeps it for later mounts.
    pub fn write(&self, index: &Index, cache_dir: &Path) {
        let path = path_of(index, cache_dir);
        let written = self
            .to_bytes()
            .map_err(io::Error::from)
            .and_then(|bytes| guarded::replace(&path, cached(Durability::CacheOnly), &bytes));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "cannot record what was found in an environment");
        }
    }

    /// Searches all files of an environment for the path of its catalog. In a library on a network, only those with
    /// relocations. `read` is told of each content: its size in bytes.
    ///
    /// # Errors
    /// When blobs are missing or bad: then nobody knows what is in them. All of them are told.
    pub fn search(
        index: &Index,
        blobs: &Blobs,
        jobs: usize,
        read: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, FindError> {
        let wanted = contents(index, blobs.latency() == Latency::Disk)?;
        let path = index.info().path.as_bytes();
        let found = Mutex::new(Vec::new());
        let bad = Mutex::new(Vec::new());
        let worker = || (Room::default(), Finder::new(path));
        thread::for_each(
            &wanted,
            jobs,
            worker,
            |(room, finder), wanted: &Wanted| -> Result<(), FindError> {
                let digest = index.digest(wanted.digest)?;
                let mut scan = Scan::new(finder);
                let scanned = match blobs.is_read_at_once(wanted.size, room) {
                    true => blobs.read_into(&digest, wanted.size, room).map(|bytes| scan.update(bytes)),
                    false => blobs.unpack_to(&digest, wanted.size, &mut scan).map_err(|error| match error {
                        Unpacked::Blob(source) => source,
                        // A scan takes everything.
                        Unpacked::Write(source) => BlobError::Io { place: "memory".to_owned(), source },
                    }),
                };
                read(wanted.size);
                match scanned {
                    Ok(()) => {}
                    Err(source @ (BlobError::Missing { .. } | BlobError::Corrupt { .. })) => {
                        let mut bad = bad.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        bad.push((index.path_of(wanted.node), source));
                        return Ok(());
                    }
                    // That concerns the others, too.
                    Err(source) => {
                        let path = index.path_of(wanted.node);
                        return Err(FindError::Blob { path, source, others: Vec::new() });
                    }
                }
                if let Some(content) = scan.finish(wanted.digest) {
                    found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(content);
                }
                Ok(())
            },
        )?;
        let mut bad = bad.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        bad.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        let mut bad = bad.into_iter();
        if let Some((path, source)) = bad.next() {
            let others = bad.map(|(path, source)| format!("{path}: {source}")).collect();
            return Err(FindError::Blob { path, source, others });
        }
        let mut contents = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        contents.sort_unstable_by_key(|content| content.digest);
        let catalog = Hex(&index.catalog_sha256()).to_string();
        Ok(Self { version: VERSION, catalog, contents })
    }

    /// The bytes that a search reads.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn to_read(index: &Index, blobs: &Blobs) -> Result<u64, IndexError> {
        let wanted = contents(index, blobs.latency() == Latency::Disk)?;
        Ok(wanted.iter().map(|wanted| wanted.size).fold(0, u64::saturating_add))
    }
}

fn path_of(index: &Index, cache_dir: &Path) -> PathBuf {
    cache_dir.join(name_of(&Hex(&index.catalog_sha256()).to_string()))
}

/// The name of the file of finds of the catalog with this SHA-256.
pub(in crate::library) fn name_of(sum: &str) -> String {
    format!("{sum}.found")
}

/// A content to be searched.
struct Wanted {
    digest: u32,
    size: u64,
    /// A file with this content.
    node: NodeId,
}

/// Each content of the environment once, large ones first, so that no thread begins one when the others have ended.
fn contents(index: &Index, whole: bool) -> Result<Vec<Wanted>, IndexError> {
    let digests = index.table::<RawDigest>(index.header.digests)?.len();
    let mut seen = vec![false; digests];
    let mut wanted = Vec::new();
    for node in (0..index.len()).map(NodeId) {
        let raw = index.raw(node)?;
        let (digest, words) = (raw.b.get() as u32, raw.b.get() >> 32);
        if raw.kind.get() != format::FILE || !(whole || words > 0) {
            continue;
        }
        let seen = seen.get_mut(digest as usize).ok_or(IndexError("a digest that does not exist"))?;
        if !std::mem::replace(seen, true) {
            wanted.push(Wanted { digest, size: raw.a.get(), node });
        }
    }
    wanted.sort_by_key(|wanted| std::cmp::Reverse(wanted.size));
    Ok(wanted)
}

/// The search in one content, which comes in pieces of any size.
struct Scan<'f> {
    finder: &'f Finder<'f>,
    /// The first bytes of the content.
    head: Vec<u8>,
    /// The end of what was searched, in which a path can begin, and the current piece.
    view: Vec<u8>,
    /// Where the view begins in the content.
    view_at: u64,
    /// How much of the content was seen.
    len: u64,
    paths: Vec<u64>,
    ends: Vec<u64>,
    binary: bool,
}

impl<'f> Scan<'f> {
    fn new(finder: &'f Finder<'f>) -> Self {
        let (head, view, paths, ends) = Default::default();
        Self { finder, head, view, view_at: 0, len: 0, paths, ends, binary: false }
    }

    fn update(&mut self, piece: &[u8]) {
        let room = LINE.saturating_sub(self.head.len());
        self.head.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
        self.binary = self.binary || memchr::memchr(0, piece).is_some();
        let needle = self.finder.needle().len();
        // Nothing is copied if the content comes at once.
        let owned = if self.view.is_empty() {
            None
        } else {
            self.view.extend_from_slice(piece);
            Some(std::mem::take(&mut self.view))
        };
        let view = owned.as_deref().unwrap_or(piece);
        let mut from = 0;
        loop {
            let found = view.get(from..).and_then(|rest| self.finder.find(rest)).map(|at| from + at);
            self.close(view, found.unwrap_or(view.len()));
            let Some(at) = found else { break };
            self.paths.push(self.view_at + at as u64);
            from = at + needle;
        }
        let keep = view.len().saturating_sub(needle.saturating_sub(1)).max(from.min(view.len()));
        let kept = view.get(keep..).unwrap_or_default().to_vec();
        self.len += piece.len() as u64;
        (self.view, self.view_at) = (kept, self.view_at + keep as u64);
    }

    /// Ends the strings of the paths that were found, if there is a NUL before `to` in the view.
    fn close(&mut self, view: &[u8], to: usize) {
        let Some(last) = self.paths.last().filter(|_| self.ends.len() < self.paths.len()) else { return };
        let after = (last + self.finder.needle().len() as u64).saturating_sub(self.view_at);
        let from = usize::try_from(after).unwrap_or(usize::MAX).min(to);
        let nul = view.get(from..to).and_then(|rest| memchr::memchr(0, rest));
        if let Some(nul) = nul {
            self.ends.resize(self.paths.len(), self.view_at + (from + nul) as u64);
        }
    }

    /// None if the content does not name the path.
    fn finish(mut self, digest: u32) -> Option<Content> {
        if self.paths.is_empty() {
            return None;
        }
        let interpreted = self.head.starts_with(b"#!");
        let newline = self.head.iter().position(|byte| *byte == b'\n');
        let line = newline.filter(|_| interpreted).map(|newline| newline as u64);
        if self.binary {
            self.ends.resize(self.paths.len(), self.len);
        } else {
            self.ends.clear();
        }
        Some(Content { digest, paths: self.paths, binary: self.binary, ends: self.ends, line })
    }
}

impl Write for Scan<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &[u8] = b"/b/h720c7a8_493f813dad24d3t";

    fn scanned(content: &[u8], piece: usize) -> Option<Content> {
        let finder = Finder::new(PATH);
        let mut scan = Scan::new(&finder);
        content.chunks(piece).for_each(|piece| scan.update(piece));
        scan.finish(7)
    }

    fn in_any_pieces(content: &[u8]) -> Option<Content> {
        let whole = scanned(content, content.len().max(1));
        for piece in [1, 2, 3, 26, 27, 28, 40] {
            assert_eq!(scanned(content, piece), whole, "{piece}");
        }
        whole
    }

    #[test]
    fn paths_of_a_text() {
        let p = std::str::from_utf8(PATH).unwrap();
        let text = format!("#!{p}/bin/python\n{p}{p}\n x {p}");
        let found = in_any_pieces(text.as_bytes()).unwrap();
        assert_eq!(
            (found.paths, found.binary, found.ends, found.line),
            (vec![2, 41, 68, 99], false, vec![], Some(40))
        );
        assert_eq!(in_any_pieces(b"/b/h720c7a8_493f813dad24d3"), None);
        assert_eq!(in_any_pieces(b""), None);
    }

    #[test]
    fn strings_of_a_binary() {
        let p = std::str::from_utf8(PATH).unwrap();
        let text = format!("\0{p}/lib\0{p}:{p}\0\0x{p}");
        let found = in_any_pieces(text.as_bytes()).unwrap();
        assert_eq!(found.paths, [1, 33, 61, 91]);
        assert_eq!((found.binary, found.ends, found.line), (true, vec![32, 88, 88, 118], None));
    }
}
