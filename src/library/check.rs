//! Checks the integrity of a library: parses every catalog, looks for every blob, and verifies the blobs' contents.
//!
//! It reports problems and changes nothing. rcc's own check removes whole environments, in some libraries also intact
//! ones.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;

use indicatif::ProgressBar;
use parking_lot::Mutex;
use serde::Serialize;

use super::blob::{Fault, not_opened, read_through};
use super::catalog::{EntryKind, Tree, parse_file};
use super::catalogs::CatalogName;
use super::digest::Digest;
use super::stored::StoredBlobs;
use super::{Latency, Library, LibraryError, NAME_LEN, index};
use crate::sys::thread;

/// The result of a check, with the keys of `holofs check --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// The number of catalogs that were checked.
    pub catalogs: usize,
    /// The number of blobs that were checked.
    pub blobs: usize,
    /// The invalid catalogs by file name, with the reason.
    pub bad_catalogs: BTreeMap<String, String>,
    /// The digests of blobs that a catalog names and the library lacks.
    pub missing: BTreeSet<String>,
    /// The blobs whose content is wrong.
    pub corrupt: Vec<Corrupt>,
    /// The size of all files in the library that no catalog refers to.
    pub unreferenced_bytes: u64,
    /// By blueprint, the paths of the files that cannot be read.
    pub affected: BTreeMap<String, BTreeSet<String>>,
    /// With `--repair`: where the corrupt blobs are now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set_aside: Vec<PathBuf>,
}

/// A blob whose content does not match its digest or a catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Corrupt {
    pub digest: String,
    pub why: String,
}

impl CheckReport {
    /// Whether there are no problems. Unreferenced blobs are not a problem.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bad_catalogs.is_empty() && self.missing.is_empty() && self.corrupt.is_empty()
    }
}

/// A file that has the content of a blob: its catalog, and the position of its entry there.
type User<'t> = (&'t Tree, usize);

/// Checks the catalogs whose blueprint begins with `blueprint`, and their blobs, in `jobs` threads. With `fast` only that
/// the blobs exist, and their sizes. `progress` makes the progress bar for a number of bytes.
///
/// # Errors
/// When its catalogs or blobs cannot be listed.
pub fn check(
    library: &dyn Library,
    blueprint: &str,
    fast: bool,
    jobs: usize,
    progress: impl FnOnce(u64) -> ProgressBar,
) -> Result<CheckReport, LibraryError> {
    let mut report = CheckReport::default();
    let mut catalogs = Vec::new();
    let listed = library.catalogs()?;
    for name in listed.not_files {
        report.catalogs += 1;
        report.bad_catalogs.insert(name.to_string(), "not a regular file".into());
    }
    for entry in listed.entries {
        let name = entry.name;
        if !name.blueprint.starts_with(blueprint) {
            continue;
        }
        report.catalogs += 1;
        match read(library, &name) {
            Ok(tree) => catalogs.push(tree),
            Err(why) => {
                report.bad_catalogs.insert(name.to_string(), why);
            }
        }
    }
    let users = users(&catalogs);
    let StoredBlobs { mut blobs, strays } = library.blobs()?;
    // If only some catalogs are checked, or a catalog cannot be read, nobody knows which blobs are unreferenced.
    let all_known = blueprint.is_empty() && report.bad_catalogs.is_empty();
    if all_known {
        let unused = blobs.iter().filter(|(digest, _)| !users.contains_key(digest)).map(|(_, stored)| stored);
        report.unreferenced_bytes = strays + unused.sum::<u64>();
    }
    if !blueprint.is_empty() {
        blobs.retain(|(digest, _)| users.contains_key(digest));
    }
    report.blobs = blobs.len();
    let there: BTreeSet<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
    let mut bad: BTreeSet<Digest> = users.keys().filter(|digest| !there.contains(*digest)).copied().collect();
    report.missing = bad.iter().map(Digest::to_string).collect();
    if library.latency() == Latency::Network {
        // Those that are fetched together, one after the other.
        blobs.sort_by_cached_key(|(digest, _)| library.position(digest));
    }
    let corrupt = Mutex::new(Vec::new());
    let bar = progress(blobs.iter().map(|(_, stored)| stored).sum());
    let check_blob = |(): &mut (), (digest, stored): &(Digest, u64)| {
        let users = users.get(digest).map(Vec::as_slice).unwrap_or_default();
        let wrong = if fast { sizes(digest, *stored, users) } else { contents(library, digest, users) };
        corrupt.lock().extend(wrong.map(|why| (*digest, why)));
        bar.inc(*stored);
        Ok::<(), LibraryError>(())
    };
    thread::for_each(&blobs, jobs.clamp(1, 256), || (), check_blob)?;
    bar.finish_and_clear();
    for (digest, why) in corrupt.into_inner() {
        bad.insert(digest);
        report.corrupt.push(Corrupt { digest: digest.to_string(), why });
    }
    report.corrupt.sort();
    for (catalog, entry) in bad.iter().filter_map(|digest| users.get(digest)).flatten() {
        let paths = report.affected.entry(catalog.info.blueprint.clone()).or_default();
        paths.insert(catalog.path_of(*entry));
    }
    Ok(report)
}

fn read(library: &dyn Library, name: &CatalogName) -> Result<Tree, String> {
    let (_, bytes) = library.catalog(name).map_err(|error| error.to_string())?;
    let mut tree = parse_file(&bytes).map_err(|error| error.to_string())?;
    // Compiling finds duplicate names in a directory.
    index::compile::compile(&tree, [0; 32]).map_err(|error| error.to_string())?;
    name.complete(&mut tree.info)?;
    Ok(tree)
}

/// The files of each blob.
fn users(catalogs: &[Tree]) -> HashMap<Digest, Vec<User<'_>>> {
    let mut users: HashMap<Digest, Vec<User<'_>>> = HashMap::new();
    for catalog in catalogs {
        for (position, entry) in catalog.entries.iter().enumerate() {
            if let EntryKind::File { digest, .. } = entry.kind
                && let Some(digest) = catalog.digests.get(digest as usize)
            {
                users.entry(*digest).or_default().push((catalog, position));
            }
        }
    }
    users
}

/// What is wrong with a blob, judged by its size.
fn sizes(digest: &Digest, stored: u64, users: &[User<'_>]) -> Option<String> {
    if !digest.is_raw() {
        // rcc compresses the empty file to 23 bytes. But in the place of the empty file's blob, an empty file is not
        // wrong.
        return (stored == 0 && files(users).any(|file| file.size > 0)).then(|| "the blob is empty".into());
    }
    let wrong = files(users).find(|file| file.size != stored)?;
    Some(format!("{stored} bytes, but the catalog says {}", wrong.size))
}

/// What is wrong with a blob's content.
fn contents(library: &dyn Library, digest: &Digest, users: &[User<'_>]) -> Option<String> {
    // Files with the same content can have different offsets in one catalog. All offsets of one stage's name are
    // checked together.
    let mut offsets: BTreeMap<&[u8], Vec<u64>> = BTreeMap::new();
    for file in files(users).filter(|file| !file.relocations.is_empty()) {
        offsets.entry(file.identity).or_default().extend_from_slice(file.relocations);
    }
    let mut searches: Vec<Search<'_>> = Vec::new();
    for (name, offsets) in &mut offsets {
        offsets.sort_unstable();
        offsets.dedup();
        searches.push(Search { name, offsets, at: 0, missed: None });
    }
    let read = library.blob(digest).map_err(not_opened).and_then(|mut stored| {
        // Unpacking stops at the largest size that any catalog gives.
        let most = files(users).map(|file| file.size).max();
        read_through(&mut stored, digest, most, &mut |bytes| {
            searches.iter_mut().for_each(|search| search.pass(bytes));
            Ok(())
        })
    });
    let size = match read {
        Ok(size) => size,
        Err(Fault::Corrupt(why)) => return Some(why),
        Err(Fault::Read(error) | Fault::Taken(error)) => return Some(format!("cannot be read: {error}")),
    };
    if let Some(wrong) = files(users).find(|file| file.size != size) {
        return Some(format!("{size} bytes, but the catalog says {}", wrong.size));
    }
    let missed = searches.iter().find_map(|search| search.missed)?;
    Some(format!("a relocation at {missed}, but the stage's name is not there"))
}

/// Whether a blob does not have the content that its digest names, whatever the catalogs say about it.
///
/// # Errors
/// When it cannot be read.
pub fn is_damaged(library: &dyn Library, digest: &Digest) -> io::Result<bool> {
    let read = library.blob(digest).map_err(not_opened);
    match read.and_then(|mut stored| read_through(&mut stored, digest, None, &mut |_| Ok(()))) {
        Ok(_) => Ok(false),
        Err(Fault::Corrupt(_)) => Ok(true),
        Err(Fault::Read(error) | Fault::Taken(error)) => Err(error),
    }
}

/// What a catalog says about a file.
struct File<'a> {
    size: u64,
    identity: &'a [u8],
    relocations: &'a [u64],
}

fn files<'a>(users: &'a [User<'a>]) -> impl Iterator<Item = File<'a>> {
    users.iter().filter_map(|(tree, entry)| {
        let EntryKind::File { size, relocations: (first, count), .. } = tree.entries.get(*entry)?.kind else {
            return None;
        };
        let first = usize::try_from(first).ok()?;
        let relocations = tree.relocations.get(first..first + count as usize)?;
        Some(File { size, identity: tree.info.identity.as_bytes(), relocations })
    })
}

/// Checks that a name stands at each of some offsets, in bytes that arrive in pieces.
struct Search<'a> {
    name: &'a [u8],
    /// Ascending. Offsets are removed when the search has passed them.
    offsets: &'a [u64],
    /// The number of bytes that were searched.
    at: u64,
    /// The first offset at which the name does not stand.
    missed: Option<u64>,
}

impl Search<'_> {
    fn pass(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len() as u64;
        for offset in self.offsets.iter().take_while(|offset| **offset < end) {
            // The part of the name that lies in this piece.
            let (from, to) = (self.at.max(*offset), end.min(offset + NAME_LEN as u64));
            let there = bytes.get((from - self.at) as usize..(to - self.at) as usize);
            let expected = self.name.get((from - offset) as usize..(to - offset) as usize);
            if there != expected && self.missed.is_none() {
                self.missed = Some(*offset);
            }
        }
        let passed = self.offsets.partition_point(|offset| offset + NAME_LEN as u64 <= end);
        self.offsets = self.offsets.get(passed..).unwrap_or_default();
        self.at = end;
    }
}
