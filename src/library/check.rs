//! The integrity of a library: every catalog parsed, every blob there and, unless `fast`, verified.
//!
//! It reports and never deletes: rcc's own check throws away whole environments, and healthy ones in some libraries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::catalog::{EntryKind, Tree, parse_file};
use super::catalogs::{CatalogFile, list};
use super::digest::Digest;
use super::{LibraryError, blob};

/// What was found. The keys of `holofs check --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Catalogs looked at.
    pub catalogs: usize,
    /// Blobs looked at.
    pub blobs: usize,
    /// Catalogs that are refused, with the reason.
    pub bad_catalogs: BTreeMap<String, String>,
    /// Blobs that a catalog names and the library lacks.
    pub missing: BTreeSet<String>,
    /// Blobs that hold something else, with the reason.
    pub corrupt: BTreeMap<String, String>,
    /// Bytes of blobs that no catalog names.
    pub unreferenced_bytes: u64,
    /// By blueprint, the files that cannot be read for it.
    pub affected: BTreeMap<String, Vec<String>>,
}

impl Report {
    /// Whether nothing is wrong. Blobs that nobody names are no fault.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bad_catalogs.is_empty() && self.missing.is_empty() && self.corrupt.is_empty()
    }
}

/// What to check.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only the catalogs whose blueprint begins so; empty for all.
    pub blueprint: String,
    /// Existence only.
    pub fast: bool,
    /// Threads.
    pub jobs: usize,
}

/// Checks a hololib.
///
/// # Errors
/// When its directories cannot be read.
pub fn check(hololib: &Path, options: &Options) -> Result<Report, LibraryError> {
    let mut report = Report::default();
    let mut users: HashMap<Digest, Vec<(String, String)>> = HashMap::new();
    for file in list(hololib)?.iter().filter(|file| file.blueprint.starts_with(&options.blueprint)) {
        report.catalogs += 1;
        match read(file) {
            Ok(tree) => note_users(file, &tree, &mut users),
            Err(error) => {
                report.bad_catalogs.insert(file.blueprint.clone(), error.to_string());
            }
        }
    }
    let library = hololib.join("library");
    let mut present = Vec::new();
    collect(&library, &mut present)?;
    report.blobs = present.len();
    let there: BTreeSet<Digest> = present.iter().map(|(digest, ..)| *digest).collect();
    report.missing = users.keys().filter(|digest| !there.contains(digest)).map(Digest::to_string).collect();
    // With a choice of catalogs, the blobs of the others are neither wanted nor superfluous.
    if options.blueprint.is_empty() {
        let unused = present.iter().filter(|(digest, ..)| !users.contains_key(digest));
        report.unreferenced_bytes = unused.map(|(_, size, _)| size).sum();
    } else {
        present.retain(|(digest, ..)| users.contains_key(digest));
    }
    if !options.fast {
        report.corrupt = verify_all(&present, options.jobs)?;
    }
    for (digest, files) in users {
        let name = digest.to_string();
        if report.missing.contains(&name) || report.corrupt.contains_key(&name) {
            for (blueprint, path) in files {
                report.affected.entry(blueprint).or_default().push(path);
            }
        }
    }
    report.affected.values_mut().for_each(|paths| paths.sort());
    Ok(report)
}

fn read(file: &CatalogFile) -> Result<Tree, LibraryError> {
    let bytes = std::fs::read(&file.path).map_err(LibraryError::io(&file.path))?;
    parse_file(&bytes).map_err(|source| LibraryError::Catalog { path: file.path.clone(), source })
}

fn note_users(file: &CatalogFile, tree: &Tree, users: &mut HashMap<Digest, Vec<(String, String)>>) {
    let mut paths: Vec<String> = Vec::with_capacity(tree.entries.len());
    for (position, entry) in tree.entries.iter().enumerate() {
        let name = String::from_utf8_lossy(tree.text(entry.name));
        let path = match paths.get(entry.parent as usize).filter(|parent| position > 0 && !parent.is_empty())
        {
            Some(parent) => format!("{parent}/{name}"),
            None => name.into_owned(),
        };
        if let EntryKind::File { digest, .. } = entry.kind
            && let Some(digest) = tree.digests.get(digest as usize)
        {
            users.entry(*digest).or_default().push((file.blueprint.clone(), path.clone()));
        }
        paths.push(path);
    }
}

/// The blobs below a directory: digest, stored bytes, path.
fn collect(dir: &Path, out: &mut Vec<(Digest, u64, PathBuf)>) -> Result<(), LibraryError> {
    for entry in std::fs::read_dir(dir).map_err(LibraryError::io(dir))? {
        let entry = entry.map_err(LibraryError::io(dir))?;
        let path = entry.path();
        // Followed: a link in the place of a blob is as good to rcc.
        let found = std::fs::metadata(&path).map_err(LibraryError::io(&path))?;
        if found.is_dir() {
            collect(&path, out)?;
        } else if let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            out.push((digest, found.len(), path));
        }
    }
    Ok(())
}

fn verify_all(
    blobs: &[(Digest, u64, PathBuf)],
    jobs: usize,
) -> Result<BTreeMap<String, String>, LibraryError> {
    let (next, corrupt, failed) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some((digest, _, path)) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match std::fs::File::open(path).and_then(|file| blob::verify(file, digest)) {
                        Ok(Ok(_)) => {}
                        Ok(Err(why)) => {
                            corrupt.lock().insert(digest.to_string(), why);
                        }
                        Err(source) => {
                            *failed.lock() = Some(LibraryError::Io { path: path.clone(), source });
                            return;
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        Some(error) => Err(error),
        None => Ok(corrupt.into_inner()),
    }
}
