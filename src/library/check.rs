//! The integrity of a library: every catalog parsed, every blob there and, unless `fast`, verified.
//!
//! It reports and never deletes: rcc's own check throws away whole environments, and healthy ones in some libraries.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::blob::{Fault, not_opened, read_through};
use super::catalog::{EntryKind, Tree, parse_file};
use super::catalogs::CatalogName;
use super::digest::Digest;
use super::stored::StoredBlobs;
use super::{Library, LibraryError, NAME_LEN, index};

/// What was found. The keys of `holofs check --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Catalogs looked at.
    pub catalogs: usize,
    /// Blobs looked at.
    pub blobs: usize,
    /// Catalogs that are refused, by file name, with the reason.
    pub bad_catalogs: BTreeMap<String, String>,
    /// Blobs that a catalog names and the library lacks.
    pub missing: BTreeSet<String>,
    /// Blobs that are not what their name or a catalog says.
    pub corrupt: Vec<Corrupt>,
    /// Bytes in the library that no catalog asks for.
    pub unreferenced_bytes: u64,
    /// By blueprint, the files that cannot be read for it.
    pub affected: BTreeMap<String, BTreeSet<String>>,
}

/// A blob that is not what its name or a catalog says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Corrupt {
    /// Its name.
    pub digest: String,
    /// In which way.
    pub why: String,
}

impl CheckReport {
    /// Whether nothing is wrong. Blobs that nobody names are no fault.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bad_catalogs.is_empty() && self.missing.is_empty() && self.corrupt.is_empty()
    }
}

/// What to check.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// Only the catalogs whose blueprint begins so; empty for all.
    pub blueprint: String,
    /// Existence and size only.
    pub fast: bool,
    /// Threads.
    pub jobs: usize,
}

/// A catalog that was read.
struct Catalog {
    blueprint: String,
    tree: Tree,
}

/// A file of a catalog: which catalog, which entry.
type User = (usize, usize);

/// Checks a library.
///
/// # Errors
/// When its catalogs or blobs cannot be listed.
pub fn check(library: &dyn Library, options: &CheckOptions) -> Result<CheckReport, LibraryError> {
    let mut report = CheckReport::default();
    let mut catalogs = Vec::new();
    let listed = library.catalogs()?;
    for name in listed.not_files {
        report.catalogs += 1;
        report.bad_catalogs.insert(name.to_string(), "it is not a regular file".into());
    }
    for entry in listed.entries {
        let name = entry.name;
        if !name.blueprint.starts_with(&options.blueprint) {
            continue;
        }
        report.catalogs += 1;
        match read(library, &name) {
            Ok(tree) => catalogs.push(Catalog { blueprint: name.blueprint, tree }),
            Err(why) => {
                report.bad_catalogs.insert(name.to_string(), why);
            }
        }
    }
    let users = users(&catalogs);
    let StoredBlobs { mut blobs, strays } = library.blobs()?;
    // With a choice of catalogs, the blobs of the others are neither wanted nor superfluous, and so they are while a
    // catalog cannot be read.
    let all_known = options.blueprint.is_empty() && report.bad_catalogs.is_empty();
    if all_known {
        let unused = blobs.iter().filter(|(digest, _)| !users.contains_key(digest)).map(|(_, stored)| stored);
        report.unreferenced_bytes = strays + unused.sum::<u64>();
    }
    if !options.blueprint.is_empty() {
        blobs.retain(|(digest, _)| users.contains_key(digest));
    }
    report.blobs = blobs.len();
    let there: BTreeSet<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
    let mut bad: BTreeSet<Digest> = users.keys().filter(|digest| !there.contains(*digest)).copied().collect();
    report.missing = bad.iter().map(Digest::to_string).collect();
    let look = |(digest, stored): &(Digest, u64)| {
        let users = users.get(digest).map(Vec::as_slice).unwrap_or_default();
        if options.fast {
            sizes(digest, *stored, users, &catalogs)
        } else {
            contents(library, digest, users, &catalogs)
        }
    };
    for (digest, why) in in_parallel(&blobs, options.jobs, look) {
        bad.insert(digest);
        report.corrupt.push(Corrupt { digest: digest.to_string(), why });
    }
    report.corrupt.sort();
    for (catalog, entry) in bad.iter().filter_map(|digest| users.get(digest)).flatten() {
        if let Some(catalog) = catalogs.get(*catalog) {
            let paths = report.affected.entry(catalog.blueprint.clone()).or_default();
            paths.insert(path_of(&catalog.tree, *entry));
        }
    }
    Ok(report)
}

fn read(library: &dyn Library, name: &CatalogName) -> Result<Tree, String> {
    let (_, bytes) = library.catalog(name).map_err(|error| error.to_string())?;
    let mut tree = parse_file(&bytes).map_err(|error| error.to_string())?;
    // What only a whole directory shows: a name twice.
    index::compile::compile(&tree, [0; 32]).map_err(|error| error.to_string())?;
    name.complete(&mut tree.info)?;
    Ok(tree)
}

/// Who needs each blob.
fn users(catalogs: &[Catalog]) -> HashMap<Digest, Vec<User>> {
    let mut users: HashMap<Digest, Vec<User>> = HashMap::new();
    for (number, catalog) in catalogs.iter().enumerate() {
        for (position, entry) in catalog.tree.entries.iter().enumerate() {
            if let EntryKind::File { digest, .. } = entry.kind
                && let Some(digest) = catalog.tree.digests.get(digest as usize)
            {
                users.entry(*digest).or_default().push((number, position));
            }
        }
    }
    users
}

fn path_of(tree: &Tree, mut position: usize) -> String {
    let mut names = Vec::new();
    while let Some(entry) = tree.entries.get(position).filter(|_| position > 0) {
        names.push(String::from_utf8_lossy(tree.text(entry.name)));
        position = entry.parent as usize;
    }
    names.reverse();
    names.join("/")
}

/// What is wrong with a blob as far as its size tells.
fn sizes(digest: &Digest, stored: u64, users: &[User], catalogs: &[Catalog]) -> Option<String> {
    if !digest.is_raw() {
        // Not even the empty file takes no bytes: rcc packs it into 23. Under its own digest it could be plain.
        return (stored == 0 && files(users, catalogs).any(|file| file.size > 0))
            .then(|| "it is empty".into());
    }
    let wrong = files(users, catalogs).find(|file| file.size != stored)?;
    Some(format!("it has {stored} bytes, the catalog says {}", wrong.size))
}

/// What is wrong with a blob's content.
fn contents(library: &dyn Library, digest: &Digest, users: &[User], catalogs: &[Catalog]) -> Option<String> {
    // All offsets of one name at once: many files of a catalog can share a content and differ in their offsets.
    let mut offsets: BTreeMap<&[u8], Vec<u64>> = BTreeMap::new();
    for file in files(users, catalogs).filter(|file| !file.relocations.is_empty()) {
        offsets.entry(file.identity).or_default().extend_from_slice(file.relocations);
    }
    let mut searches: Vec<Search<'_>> = Vec::new();
    for (name, offsets) in &mut offsets {
        offsets.sort_unstable();
        offsets.dedup();
        searches.push(Search { name, offsets, at: 0, missed: None });
    }
    let read = library.blob(digest).map_err(not_opened).and_then(|mut stored| {
        // What unpacks to more than any catalog says is stopped there.
        let most = files(users, catalogs).map(|file| file.size).max();
        read_through(&mut stored, digest, most, &mut |bytes| {
            searches.iter_mut().for_each(|search| search.pass(bytes));
            Ok(())
        })
    });
    let size = match read {
        Ok(size) => size,
        Err(Fault::Corrupt(why)) => return Some(why),
        Err(Fault::Read(error) | Fault::Taken(error)) => return Some(format!("it cannot be read: {error}")),
    };
    if let Some(wrong) = files(users, catalogs).find(|file| file.size != size) {
        return Some(format!("it has {size} bytes, the catalog says {}", wrong.size));
    }
    let missed = searches.iter().find_map(|search| search.missed)?;
    Some(format!("a relocation at {missed}, where the stage's name is not"))
}

/// What a catalog says of a file.
struct File<'a> {
    size: u64,
    identity: &'a [u8],
    relocations: &'a [u64],
}

fn files<'a>(users: &'a [User], catalogs: &'a [Catalog]) -> impl Iterator<Item = File<'a>> {
    users.iter().filter_map(|(catalog, entry)| {
        let tree = &catalogs.get(*catalog)?.tree;
        let EntryKind::File { size, relocations: (first, count), .. } = tree.entries.get(*entry)?.kind else {
            return None;
        };
        let first = usize::try_from(first).ok()?;
        let relocations = tree.relocations.get(first..first + count as usize)?;
        Some(File { size, identity: tree.info.identity.as_bytes(), relocations })
    })
}

/// Looks, in bytes that come in pieces, whether a name stands at each of some offsets.
struct Search<'a> {
    name: &'a [u8],
    /// Rising; those that were passed are taken off.
    offsets: &'a [u64],
    /// How many bytes came before.
    at: u64,
    /// The first offset where the name is not.
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

/// What `look` finds wrong with the blobs, looked at by some threads.
fn in_parallel(
    blobs: &[(Digest, u64)],
    jobs: usize,
    look: impl Fn(&(Digest, u64)) -> Option<String> + Sync,
) -> Vec<(Digest, String)> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(why) = look(blob) {
                found.lock().push((blob.0, why));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.clamp(1, 256) {
            // One thread fewer is only slower.
            drop(std::thread::Builder::new().spawn_scoped(scope, work));
        }
        work();
    });
    found.into_inner()
}
