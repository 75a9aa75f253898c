//! The index of an environment at another path than the one in which it was built.
//!
//! A text names the new path, which may have another length, so the sizes of files differ. Whoever asks for a size must not
//! wait for anything. Therefore each path gets an index of its own, with the sizes, and with the steps that make each file
//! of its blob. It is derived from the index of the catalog and from what was found in the files (`find`), which takes a few
//! milliseconds, and it is kept for later mounts. From then on nothing differs from any other mount.
//!
//! In a binary nothing may move. The path and what follows it in the same string is moved to the front, and the string is
//! filled with NUL bytes, as conda does. If the path is longer there, the file is *unpatched*: it names the directory of the
//! space beside the path in which it was built, as it does with rcc. So is a link that would be too long, and a script
//! whose first line would be longer than the kernel reads.
//!
//! Invariants: nodes have the same ids as in the index of the catalog. A file that is not unpatched names its own path only.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::cache::open_checked;
use super::compile::assemble;
use super::find::{Content, Finds};
use super::format::{self, HEADER_SIZE, RawNode, VERSION};
use super::{Index, IndexError, NodeId};
use crate::library::cache_dir::cached;
use crate::library::catalog::{CatalogInfo, Placed};
use crate::library::digest::Hex;
use crate::library::{LibraryError, NAME_LEN};
use crate::sys::guarded::{self, Durability};

/// How the name of an index for another path ends.
const ENDING: &str = ".placed";

/// How many of them are kept for each catalog.
const KEPT: usize = 16;

/// How many unpatched files are named.
const NAMED: usize = 200;

/// The longest first line of a script, in bytes. A longer one is cut off by the kernel.
const LINE_MAX: u64 = 255;

/// The longest text of a link, in bytes.
const LINK_MAX: usize = 4095;

/// A step on the way from a blob to the file, in the order of the bytes of the blob. What is between two steps is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The name of the stage becomes the name of the space.
    Name,
    /// The path of the stage becomes the path of the space.
    Path,
    /// NUL bytes, until the file is as long as the blob was up to here.
    Nul,
    /// Spaces, likewise: in the first line of a script.
    Blank,
}

impl Step {
    /// Where the step is, and what it is.
    #[must_use]
    pub fn decode(word: u64) -> (u64, Step) {
        let step = match word >> 62 {
            0 => Step::Name,
            1 => Step::Path,
            2 => Step::Nul,
            _ => Step::Blank,
        };
        (word & (u64::MAX >> 2), step)
    }

    fn at(self, offset: u64) -> Result<u64, IndexError> {
        let step = match self {
            Step::Name => 0,
            Step::Path => 1,
            Step::Nul => 2,
            Step::Blank => 3,
        };
        // No file is that long.
        if offset >> 62 == 0 { Ok(offset | step << 62) } else { Err(IndexError("an offset is too large")) }
    }
}

/// Where names and paths stand in a file, from its words and the lengths of the two paths.
#[must_use]
pub fn places(words: &[U64], from: usize, to: usize) -> Vec<(u64, Step)> {
    // The place in the file is that in the blob, as far as nothing has moved.
    let mut moved = 0i64;
    let mut places = Vec::new();
    for (at, step) in words.iter().map(|word| Step::decode(word.get())) {
        match step {
            Step::Name | Step::Path => places.extend(at.checked_add_signed(moved).map(|at| (at, step))),
            Step::Nul | Step::Blank => moved = 0,
        }
        if step == Step::Path {
            moved += to as i64 - from as i64;
        }
    }
    places
}

/// Why an environment cannot be shown at a path: what would not work there.
#[must_use]
pub fn unusable(path: &Path) -> Option<&'static str> {
    let Some(text) = path.to_str() else { return Some("its path is not UTF-8") };
    if !path.is_absolute() || path.file_name().is_none() {
        return Some("it is not the path of a directory");
    }
    // Others have a meaning in shells, in the first lines of scripts, in search paths, or in the strings of programs.
    let fits = |c: char| c.is_alphanumeric() || "/._-+@,=~".contains(c);
    if text.chars().all(fits) {
        return None;
    }
    Some("its path has a character other than letters, digits, and / . _ - + @ , = ~, which breaks scripts")
}

/// Opens the index of the environment at `to`. Derives it if it is not there: `found` tells what is in the files.
///
/// # Errors
/// When the index is damaged, or the cache cannot be written, and those of `found`.
pub fn open<E: From<LibraryError>>(
    index: &Index,
    to: &str,
    cache_dir: &Path,
    found: impl FnOnce() -> Result<Finds, E>,
) -> Result<Index, E> {
    let sum = Hex(&index.catalog_sha256()).to_string();
    let path = path_of(&sum, to, cache_dir);
    let fits = |placed: &Index| placed.info.placed.as_ref().is_some_and(|placed| placed.path == to);
    if let Some(mut placed) = open_checked(&path, &sum, true).filter(fits) {
        placed.blobs_seen = index.blobs_seen;
        return Ok(placed);
    }
    let derived = derive(index, &found()?, to).map_err(LibraryError::from)?;
    guarded::replace(&path, cached(Durability::CacheOnly), &derived).map_err(LibraryError::io(&path))?;
    drop_old(&sum, cache_dir, &path);
    let mut placed = Index::open(&path).map_err(LibraryError::io(&path))?;
    placed.blobs_seen = index.blobs_seen;
    Ok(placed)
}

fn path_of(sum: &str, to: &str, cache_dir: &Path) -> PathBuf {
    let key: [u8; 32] = Sha256::digest(to).into();
    let (key, _) = key.split_at(8);
    cache_dir.join(format!("{sum}.{}.v{VERSION}{ENDING}", Hex(key)))
}

/// The SHA-256 of the catalog of the index for another path that has this name. None for other files.
pub(in crate::library) fn catalog_of(name: &str) -> Option<&str> {
    name.strip_suffix(&format!(".v{VERSION}{ENDING}"))?.split_once('.').map(|(sum, _)| sum)
}

/// Removes all but the newest indexes of a catalog for other paths. A mount that uses one has it mapped.
fn drop_old(sum: &str, cache_dir: &Path, newest: &Path) {
    let entries = std::fs::read_dir(cache_dir).into_iter().flatten().flatten();
    let is_one = |name: &str| name.starts_with(sum) && name.ends_with(ENDING);
    let mut all: Vec<(SystemTime, PathBuf)> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_one) && entry.path() != newest)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    all.sort_unstable_by(|one, other| other.cmp(one));
    for (_, old) in all.iter().skip(KEPT - 1) {
        if let Err(error) = std::fs::remove_file(old) {
            tracing::debug!(path = %old.display(), %error, "cannot remove an index for another path");
        }
    }
}

/// The bytes of the index of the environment at `to`.
fn derive(index: &Index, found: &Finds, to: &str) -> Result<Vec<u8>, IndexError> {
    let mut header = index.header.clone();
    let mut file = vec![0; HEADER_SIZE];
    let mut making = Making {
        index,
        found,
        to,
        words: Vec::new(),
        strings: index.header.strings.of(&index.map)?.to_vec(),
        placed: Placed { path: to.to_owned(), ..Placed::default() },
    };
    let (mut relocated, mut total) = (0u32, 0u64);
    for id in (0..index.len()).map(NodeId) {
        let raw = making.node(id)?;
        if matches!(raw.kind.get(), format::FILE | format::PLACED) {
            total = total.saturating_add(raw.a.get());
            relocated += u32::from(raw.kind.get() == format::PLACED);
        }
        file.extend_from_slice(raw.as_bytes());
    }
    header.total_bytes = total.into();
    header.relocated = relocated.into();
    let digests = index.header.digests.of(&index.map)?;
    let info = CatalogInfo { placed: Some(making.placed), ..index.info.clone() };
    let Making { words, strings, .. } = making;
    assemble(header, file, &|file| file.extend_from_slice(digests), &words, &strings, &info)
        .ok_or(IndexError("its header cannot be written"))
}

struct Making<'a> {
    index: &'a Index,
    found: &'a Finds,
    to: &'a str,
    words: Vec<u64>,
    strings: Vec<u8>,
    placed: Placed,
}

impl Making<'_> {
    fn from(&self) -> &str {
        &self.index.info.path
    }

    fn unpatched(&mut self, id: NodeId) {
        self.placed.unpatched += 1;
        if self.placed.named.len() < NAMED {
            self.placed.named.push(self.index.path_of(id));
        }
    }

    fn node(&mut self, id: NodeId) -> Result<RawNode, IndexError> {
        let mut raw = *self.index.raw(id)?;
        match raw.kind.get() {
            format::FILE => {
                let (digest, count) = (raw.b.get() as u32, (raw.b.get() >> 32) as u32);
                let found = self.found.of(digest);
                if found.is_none() && count == 0 {
                    return Ok(raw);
                }
                let names = self.index.relocations(raw.c.get(), count)?;
                let names: Vec<u64> = names.iter().map(|at| at.get()).collect();
                let first = self.words.len();
                self.words.push(raw.a.get());
                let executable = raw.perm.get() & 0o111 != 0;
                raw.a = self.file(id, &names, found, raw.a.get(), executable)?.into();
                let count = u32::try_from(self.words.len() - first);
                let count = count.map_err(|_| IndexError("a file has too many relocations"))?;
                raw.kind = format::PLACED.into();
                raw.b = (u64::from(digest) | u64::from(count) << 32).into();
                raw.c = (first as u64).into();
            }
            format::SYMLINK => {
                let (offset, len) = (raw.a.get() as u32, (raw.a.get() >> 32) as u32);
                let text = self.index.string(offset, len)?;
                let from = self.from().as_bytes();
                let rest =
                    text.strip_prefix(from).filter(|rest| rest.first().is_none_or(|next| *next == b'/'));
                let Some(rest) = rest else { return Ok(raw) };
                if self.to.len() + rest.len() > LINK_MAX {
                    self.unpatched(id);
                    return Ok(raw);
                }
                let at =
                    u32::try_from(self.strings.len()).map_err(|_| IndexError("its links are too long"))?;
                let text = [self.to.as_bytes(), rest].concat();
                self.strings.extend_from_slice(&text);
                raw.a = (u64::from(at) | (text.len() as u64) << 32).into();
            }
            _ => {}
        }
        Ok(raw)
    }

    /// Appends the steps of a file. Returns its size.
    fn file(
        &mut self,
        id: NodeId,
        names: &[u64],
        found: Option<&Content>,
        stored: u64,
        executable: bool,
    ) -> Result<u64, IndexError> {
        let (from, to) = (self.from().len() as u64, self.to.len() as u64);
        let none = Content::default();
        let mut content = found.unwrap_or(&none);
        if content.binary && to > from {
            self.unpatched(id);
            content = &none;
        }
        // Paths, names that are no part of one, and what fills up, by their places.
        let last = from.saturating_sub(NAME_LEN as u64);
        let mut steps: Vec<(u64, Step)> = content.paths.iter().map(|at| (*at, Step::Path)).collect();
        let in_path =
            |name: u64| name.checked_sub(last).is_some_and(|path| content.paths.binary_search(&path).is_ok());
        steps.extend(names.iter().filter(|name| !in_path(**name)).map(|name| (*name, Step::Name)));
        let mut in_line = 0;
        if let Some(line) = content.line {
            in_line = content.paths.iter().filter(|at| at.saturating_add(from) <= line).count() as u64;
        }
        if content.binary {
            if let Some(line) = content.line.filter(|_| in_line > 0) {
                steps.push((line, Step::Blank));
            }
            let mut ends: Vec<u64> = content.ends.iter().skip(in_line as usize).copied().collect();
            ends.dedup();
            steps.extend(ends.into_iter().map(|end| (end, Step::Nul)));
        }
        // What fills up comes before a path or name at the same place.
        steps.sort_unstable_by_key(|(at, step)| (*at, matches!(step, Step::Name | Step::Path)));
        for (at, step) in steps {
            self.words.push(step.at(at)?);
        }
        if content.binary {
            return Ok(stored);
        }
        let shown = |len: u64, count: u64| (len + count * to).checked_sub(count * from);
        let damaged = IndexError("a file is shorter than the paths in it");
        if let Some(line) = content.line.filter(|line| in_line > 0 && executable && *line <= LINE_MAX)
            && shown(line, in_line).is_some_and(|line| line > LINE_MAX)
        {
            self.unpatched(id);
        }
        shown(stored, content.paths.len() as u64).ok_or(damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_where_and_what() {
        for (bits, step) in [Step::Name, Step::Path, Step::Nul, Step::Blank].into_iter().enumerate() {
            assert_eq!(Step::decode(step.at(77).unwrap()), (77, step));
            assert_eq!(step.at(77).unwrap() >> 62, bits as u64);
        }
        assert!(Step::Path.at(1 << 62).is_err());
    }

    #[test]
    fn places_in_a_text_move_and_in_a_binary_return() {
        let words = |steps: &[(u64, Step)]| -> Vec<U64> {
            steps.iter().map(|(at, step)| step.at(*at).unwrap().into()).collect()
        };
        let text = words(&[(2, Step::Path), (50, Step::Name), (80, Step::Path)]);
        assert_eq!(places(&text, 30, 10), [(2, Step::Path), (30, Step::Name), (60, Step::Path)]);
        assert_eq!(places(&text, 30, 40), [(2, Step::Path), (60, Step::Name), (90, Step::Path)]);
        let binary = words(&[(2, Step::Path), (40, Step::Path), (75, Step::Nul), (80, Step::Path)]);
        assert_eq!(places(&binary, 30, 10), [(2, Step::Path), (20, Step::Path), (80, Step::Path)]);
    }

    #[test]
    fn paths_that_scripts_cannot_name() {
        for good in ["/a", "/srv/env-1.2_x", "/häuser/ü", "/a+b@c,d=e~f"] {
            assert_eq!(unusable(Path::new(good)), None, "{good}");
        }
        for bad in
            ["/", "a", "/a b", "/a:b", "/a'b", "/a\"b", "/a$b", "/a\nb", "/a\\b", "/a;b", "/a%b", "/a#b"]
        {
            assert!(unusable(Path::new(bad)).is_some(), "{bad}");
        }
    }

    #[test]
    fn names_of_indexes_tell_their_catalog() {
        let path = path_of("abc", "/srv/env", Path::new("/cache"));
        assert_eq!(catalog_of(path.file_name().unwrap().to_str().unwrap()), Some("abc"));
        for other in ["abc.v1.idx", "abc.found", "x.stamp", ".placed"] {
            assert_eq!(catalog_of(other), None, "{other}");
        }
    }
}
