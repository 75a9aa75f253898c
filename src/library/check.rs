//! The integrity of a library: every catalog parsed, every blob there and, unless `fast`, verified.
//!
//! It reports and never deletes: rcc's own check throws away whole environments, and healthy ones in some libraries.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::blob::{Fault, read_through};
use super::catalog::{EntryKind, Tree, parse_file};
use super::catalogs::{CatalogFile, CatalogName, list_with_others};
use super::digest::Digest;
use super::index::cache::read_whole;
use super::{LibraryError, NAME_LEN, index};

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

/// A blob that is there.
struct Blob {
    digest: Digest,
    path: PathBuf,
    /// Bytes as they are stored.
    stored: u64,
}

/// Checks a hololib.
///
/// # Errors
/// When its directories cannot be read.
pub fn check(hololib: &Path, options: &CheckOptions) -> Result<CheckReport, LibraryError> {
    let mut report = CheckReport::default();
    let mut catalogs = Vec::new();
    let name_of = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (files, others) = list_with_others(hololib)?;
    for path in others {
        report.catalogs += 1;
        report.bad_catalogs.insert(name_of(&path), "it is not a regular file".into());
    }
    for file in files.into_iter().filter(|file| file.blueprint.starts_with(&options.blueprint)) {
        report.catalogs += 1;
        match read(&file) {
            Ok(tree) => catalogs.push(Catalog { blueprint: file.blueprint, tree }),
            Err(why) => {
                report.bad_catalogs.insert(name_of(&file.path), why);
            }
        }
    }
    let users = users(&catalogs);
    let (mut blobs, strays) = blobs(&hololib.join("library"))?;
    // With a choice of catalogs, the blobs of the others are neither wanted nor superfluous, and so they are while a
    // catalog cannot be read.
    let all_known = options.blueprint.is_empty() && report.bad_catalogs.is_empty();
    if all_known {
        let unused = blobs.iter().filter(|blob| !users.contains_key(&blob.digest)).map(|blob| blob.stored);
        report.unreferenced_bytes = strays + unused.sum::<u64>();
    }
    if !options.blueprint.is_empty() {
        blobs.retain(|blob| users.contains_key(&blob.digest));
    }
    report.blobs = blobs.len();
    let there: BTreeSet<Digest> = blobs.iter().map(|blob| blob.digest).collect();
    let mut bad: BTreeSet<Digest> = users.keys().filter(|digest| !there.contains(*digest)).copied().collect();
    report.missing = bad.iter().map(Digest::to_string).collect();
    let look = |blob: &Blob| {
        let users = users.get(&blob.digest).map(Vec::as_slice).unwrap_or_default();
        if options.fast { sizes(blob, users, &catalogs) } else { contents(blob, users, &catalogs) }
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

fn read(file: &CatalogFile) -> Result<Tree, String> {
    let (_, bytes) = read_whole(&file.path).map_err(|error| error.to_string())?;
    let mut tree = parse_file(&bytes).map_err(|error| error.to_string())?;
    // What only a whole directory shows: a name twice.
    index::compile::compile(&tree, [0; 32]).map_err(|error| error.to_string())?;
    let name = CatalogName { blueprint: file.blueprint.clone(), platform: file.platform.clone() };
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

/// The blobs of a library, and the bytes of what lies between them and is none.
fn blobs(library: &Path) -> Result<(Vec<Blob>, u64), LibraryError> {
    let (mut blobs, mut strays) = (Vec::new(), 0);
    let mut dirs = vec![library.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match std::fs::read_dir(&dir) {
            // A library of no blobs may have no directory for them.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(LibraryError::io(&dir))?,
        };
        for entry in entries {
            let path = entry.map_err(LibraryError::io(&dir))?.path();
            // Followed: a link in the place of a blob is as good to rcc. One that leads nowhere is no blob.
            let Ok(found) = std::fs::metadata(&path) else { continue };
            let is_link = std::fs::symlink_metadata(&path).is_ok_and(|entry| entry.is_symlink());
            if found.is_dir() {
                if !is_link {
                    dirs.push(path);
                }
                continue;
            }
            let named: Option<Digest> =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            match named.filter(|digest| library.join(digest.fan_out()) == path) {
                Some(digest) => blobs.push(Blob { digest, path, stored: found.len() }),
                None => strays += found.len(),
            }
        }
    }
    blobs.sort_unstable_by_key(|blob| blob.digest);
    Ok((blobs, strays))
}

/// What is wrong with a blob as far as its size tells.
fn sizes(blob: &Blob, users: &[User], catalogs: &[Catalog]) -> Option<String> {
    if !blob.digest.is_raw() {
        // Not even the empty file takes no bytes: rcc packs it into 23. Under its own digest it could be plain.
        return (blob.stored == 0 && files(users, catalogs).any(|file| file.size > 0))
            .then(|| "it is empty".into());
    }
    let wrong = files(users, catalogs).find(|file| file.size != blob.stored)?;
    Some(format!("it has {} bytes, the catalog says {}", blob.stored, wrong.size))
}

/// What is wrong with a blob's content.
fn contents(blob: &Blob, users: &[User], catalogs: &[Catalog]) -> Option<String> {
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
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let opened = rustix::fs::open(&blob.path, flags, rustix::fs::Mode::empty());
    let read = opened.map_err(|errno| Fault::Read(errno.into())).and_then(|fd| {
        // What unpacks to more than any catalog says is stopped there.
        let most = files(users, catalogs).map(|file| file.size).max();
        read_through(fd.into(), &blob.digest, most, &mut |bytes| {
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
    blobs: &[Blob],
    jobs: usize,
    look: impl Fn(&Blob) -> Option<String> + Sync,
) -> Vec<(Digest, String)> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(why) = look(blob) {
                found.lock().push((blob.digest, why));
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
