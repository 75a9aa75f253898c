//! Imports environments from zip archives that rcc or holofs exported, from robot bundles, and from any other library.
//!
//! Everything that can be known beforehand is checked before anything is written: the archives, their catalogs, the kind
//! of the library, that each blob of a catalog is in an archive or in the library, and the space on the disk. Then blobs
//! are stored in parallel, and catalogs last, under rcc's lock. Blobs that no catalog names are left out.
//!
//! An archive is hostile. Names in it are compared and never used as paths, every blob is compared with its digest before
//! it gets its name, and no more bytes are taken than its central directory and its catalogs declare.
//!
//! rcc truncates existing blobs when it imports, which breaks every mount that reads them. Here an existing blob stays as it
//! is, unless it is obviously broken, and then it is replaced in one step.
//!
//! Invariant: as for the recorder. If the import dies at any moment, the library has no catalog that lacks a blob, and no
//! partial file under a name that readers use.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;
use serde::Serialize;

use super::Target;
use super::error::RecordError;
use super::place::{self, Opened, Place};
use super::store::{Store, Written, replace_synced};
use super::unfinished::Mark;
use crate::library::blob::{BlobError, copy_stored};
use crate::library::cancellable::Cancellable;
use crate::library::catalog::limits::MAX_FILE;
use crate::library::catalog::{CatalogError, EntryKind, Header, Tree, parse_whole, write};
use crate::library::catalogs::{CatalogName, Outcome};
use crate::library::digest::{Digest, DigestKind};
use crate::library::zip::ZipLibrary;
use crate::library::{Latency, Library, LibraryError};
use crate::sys::guarded::{Access, Dir, GuardedError, PART, Problem};
use crate::sys::{process, thread};

/// How often blobs are stored if another process removes what was stored.
const ATTEMPTS: u32 = 3;
/// How many groups of blobs are fetched at once from a library that is not on this machine.
const FETCHES: usize = 8;
/// How many bytes are written at once.
const PIECE: usize = 256 << 10;

/// What is imported, and where.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The library.
    pub target: Target,
    /// The archives.
    pub archives: Vec<PathBuf>,
}

/// What was imported, with the keys of `holofs import --json`. Sizes are in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Imported {
    /// The library.
    pub library: PathBuf,
    /// The catalogs of the archives, each once.
    pub catalogs: Vec<ImportedCatalog>,
    /// The number of blobs that were written.
    pub blobs_new: u64,
    /// The number of distinct blobs that the catalogs name.
    pub blobs_total: usize,
    /// The sum of the stored sizes of the blobs that were written.
    pub bytes_stored: u64,
}

/// An imported environment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ImportedCatalog {
    /// The name of the catalog.
    pub catalog: String,
    /// The hash of the blueprint, 16 hexadecimal digits.
    pub blueprint: String,
    /// What became of the catalog.
    pub outcome: Outcome,
    /// The only directory in which spaces of the environment work.
    pub holotree: PathBuf,
    /// Whether that is the directory of the library's spaces.
    pub is_at_home: bool,
}

/// A catalog of an archive.
struct Catalog {
    bytes: Vec<u8>,
    tree: Tree,
}

/// Imports all environments of the archives.
///
/// # Errors
/// See [`RecordError`]. Then no catalog of the library has changed. It may have new blobs that no catalog names.
pub fn import(options: &ImportOptions) -> Result<Imported, RecordError> {
    let place = place::find(&options.target)?;
    let archives = options.archives.iter().map(|path| open(path, &place)).collect::<Result<Vec<_>, _>>()?;
    let sources: Vec<&dyn Library> = archives.iter().map(|archive| archive as &dyn Library).collect();
    import_from(&options.target, place, &sources, None)
}

/// Imports these environments of a library.
///
/// # Errors
/// As [`import`].
pub fn pull(
    target: &Target,
    source: &dyn Library,
    chosen: &BTreeSet<CatalogName>,
) -> Result<Imported, RecordError> {
    import_from(target, place::find(target)?, &[source], Some(chosen))
}

/// Imports the chosen environments of all sources, or all of them.
pub(super) fn import_from(
    target: &Target,
    place: Place,
    sources: &[&dyn Library],
    chosen: Option<&BTreeSet<CatalogName>>,
) -> Result<Imported, RecordError> {
    let catalogs = catalogs(sources, chosen)?;
    let kind = kind(&catalogs);
    let opened = place.open()?;
    let lock = opened.lock(target.lock_timeout, &target.cancel)?;
    // An existing library of the other kind is refused before anything is made.
    let kind = opened.digest_kind(kind.map(|kind| kind == DigestKind::Sha256))?;
    let _mark = Mark::make(&opened.catalog)?;
    let written = Written::default();
    let store = Store::new(&opened.library, kind, opened.shared, &written);
    let importing = Importing { target, opened: &opened, store: &store, sources };
    let mut done = importing.run(&catalogs)?;
    drop(lock);
    done.library = place.hololib;
    (done.blobs_new, done.bytes_stored) =
        (written.blobs.load(Ordering::Relaxed), written.bytes.load(Ordering::Relaxed));
    Ok(done)
}

/// Opens an archive. A compressed one in a bundle is unpacked beside the blobs.
fn open(path: &Path, place: &Place) -> Result<ZipLibrary, RecordError> {
    let failed = RefCell::new(None);
    let unpack = |size: u64| {
        let made = place.open().and_then(|opened| {
            has_room(&opened.library, size)?;
            nameless(&opened.library).map_err(RecordError::io(opened.library.path()))
        });
        made.map_err(|error| {
            failed.replace(Some(error));
            io::Error::other("it cannot be unpacked")
        })
    };
    if !path.exists() {
        let why = "there is no such file or directory";
        return Err(LibraryError::NotALibrary { path: path.to_owned(), why }.into());
    }
    let opened = ZipLibrary::open_or_unpack(path, Some(&unpack));
    match failed.into_inner() {
        Some(error) => Err(error),
        None => Ok(opened?),
    }
}

/// The catalogs of all sources. Of two with the same name the last counts, as in rcc.
fn catalogs(
    sources: &[&dyn Library],
    chosen: Option<&BTreeSet<CatalogName>>,
) -> Result<BTreeMap<CatalogName, Catalog>, RecordError> {
    let mut catalogs = BTreeMap::new();
    for source in sources {
        let names: Vec<CatalogName> = match chosen {
            Some(chosen) => chosen.iter().cloned().collect(),
            None => source.catalogs()?.entries.into_iter().map(|entry| entry.name).collect(),
        };
        for name in names {
            let (_, bytes) = source.catalog(&name)?;
            let refused =
                |reason| LibraryError::Catalog { place: source.catalog_place(&name), source: reason };
            let mut tree = parse_whole(&bytes).map_err(refused)?;
            name.complete(&mut tree.info).map_err(|why| refused(CatalogError::BadHeader(why)))?;
            catalogs.insert(name, Catalog { bytes, tree });
        }
    }
    Ok(catalogs)
}

/// The kind of the blobs, if there are any. A mixture is found by the store: one kind is missing there.
fn kind(catalogs: &BTreeMap<CatalogName, Catalog>) -> Option<DigestKind> {
    catalogs.values().find_map(|catalog| catalog.tree.digests.first().map(Digest::kind))
}

/// A file that has no name, so that nothing is left of it, in a directory of the library.
pub(super) fn nameless(dir: &Dir) -> io::Result<File> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = OsString::from(format!(".hololib.zip{PART}{}.{number}", std::process::id()));
        match dir.create_new(&name, Access::ReadWrite, 0o600) {
            Err(GuardedError { problem: Problem::Os(Errno::EXIST), .. }) => {}
            Err(error) => return Err(error.into()),
            Ok(file) => {
                dir.remove_file(&name)?;
                return Ok(file);
            }
        }
    }
}

/// Checks that a number of bytes fits on the filesystem of a directory.
fn has_room(dir: &Dir, needed: u64) -> Result<(), RecordError> {
    let failed = |errno: rustix::io::Errno| RecordError::io(dir.path())(errno.into());
    let found = rustix::fs::fstatvfs(dir).map_err(failed)?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if needed > free {
        return Err(RecordError::NoRoom { path: dir.path().to_owned(), needed, free });
    }
    Ok(())
}

/// A blob of a source.
struct Packed<'a> {
    digest: Digest,
    /// The size of its content in bytes.
    size: u64,
    /// Its stored size in bytes.
    stored: u64,
    source: &'a dyn Library,
}

/// What the steps under the lock share.
struct Importing<'a> {
    target: &'a Target,
    opened: &'a Opened,
    store: &'a Store<'a>,
    sources: &'a [&'a dyn Library],
}

impl Importing<'_> {
    fn run(&self, catalogs: &BTreeMap<CatalogName, Catalog>) -> Result<Imported, RecordError> {
        let wanted = self.wanted(catalogs)?;
        let mut done = Imported { blobs_total: wanted.total, ..Imported::default() };
        let mut outcomes = None;
        for attempt in 1.. {
            self.store_all(&wanted.packed)?;
            // The blobs reach the disk, all at once, before the catalogs that name them.
            self.opened.library.sync_filesystem()?;
            let written = self.catalogs(catalogs)?;
            self.opened.library.sync_filesystem()?;
            let outcomes = outcomes.get_or_insert(written);
            // `rcc holotree check` takes no lock: it removes blobs that no catalog named when it began.
            let removed = self.missing(&wanted.packed)?;
            if removed.is_empty() {
                done.catalogs = std::mem::take(outcomes);
                break;
            }
            if attempt == ATTEMPTS {
                return Err(RecordError::NotWhole { catalog: self.opened.catalog.path().to_owned() });
            }
            tracing::warn!(
                blobs = removed.len(),
                "another process removed imported blobs; storing them again"
            );
        }
        Ok(done)
    }

    /// The blobs of the archives that the catalogs name.
    ///
    /// # Errors
    /// [`RecordError::Lacks`] when a file of a catalog has its blob neither in an archive nor in the library.
    fn wanted(&self, catalogs: &BTreeMap<CatalogName, Catalog>) -> Result<Wanted<'_>, RecordError> {
        let mut stored = BTreeMap::new();
        for source in self.sources.iter().filter(|source| source.latency() == Latency::Disk) {
            for (digest, size) in source.blobs()?.blobs {
                stored.entry(digest).or_insert((*source, size));
            }
        }
        // To list all blobs of a distant library would take a request for each of its catalogs.
        let distant: Vec<_> =
            self.sources.iter().filter(|source| source.latency() == Latency::Network).collect();
        let find = |digest: &Digest| {
            let known = stored.get(digest).copied();
            known.or_else(|| distant.iter().find_map(|source| Some((**source, source.stored_size(digest)?))))
        };
        let mut packed = BTreeMap::new();
        let mut total = 0;
        for (name, Catalog { tree, .. }) in catalogs {
            let mut lacking = BTreeMap::new();
            let files = tree.entries.iter().filter_map(|entry| match entry.kind {
                EntryKind::File { size, digest, .. } => Some((*tree.digests.get(digest as usize)?, size)),
                EntryKind::Dir | EntryKind::Symlink { .. } => None,
            });
            let linked = tree.linked.iter().map(|(digest, size)| (*digest, *size));
            for (is_file, (digest, size)) in
                files.map(|file| (true, file)).chain(linked.map(|link| (false, link)))
            {
                match find(&digest) {
                    Some((source, stored)) => {
                        packed.entry(digest).or_insert(Packed { digest, size, stored, source });
                    }
                    None if is_file => {
                        lacking.insert(digest, size);
                    }
                    // The blob of a link outside of the environment. No library has it.
                    None => {}
                }
            }
            total += lacking.len();
            let mut absent = Vec::new();
            for (digest, size) in lacking {
                if digest.kind() != self.store.kind || !self.store.has(&digest, size)? {
                    absent.push(digest);
                }
            }
            if let Some(first) = absent.first() {
                return Err(RecordError::Lacks { catalog: name.clone(), count: absent.len(), first: *first });
            }
        }
        total += packed.len();
        if let Some(digest) = packed.keys().find(|digest| digest.kind() != self.store.kind) {
            let why = "the catalogs name blobs of both kinds".to_owned();
            let place = digest.fan_out().display().to_string();
            return Err(BlobError::Corrupt { digest: *digest, place, why }.into());
        }
        Ok(Wanted { packed: packed.into_values().collect(), total })
    }

    /// Those blobs that the library does not have.
    fn missing<'p>(&self, packed: &'p [Packed<'p>]) -> Result<Vec<&'p Packed<'p>>, RecordError> {
        let (all, missing) = (packed.iter().collect::<Vec<_>>(), Mutex::new(Vec::new()));
        thread::for_each(
            &all,
            process::processors(),
            || (),
            |(), blob| {
                if !self.store.has(&blob.digest, blob.size)? {
                    missing.lock().push(*blob);
                }
                Ok::<(), RecordError>(())
            },
        )?;
        Ok(missing.into_inner())
    }

    fn store_all(&self, packed: &[Packed<'_>]) -> Result<(), RecordError> {
        let mut missing = self.missing(packed)?;
        let bytes = missing.iter().map(|blob| blob.stored).sum();
        has_room(&self.opened.library, bytes)?;
        let progress = (self.target.progress)(bytes);
        let (groups, jobs) = if self.sources.iter().any(|source| source.latency() == Latency::Network) {
            (by_group(missing), process::processors().max(FETCHES))
        } else {
            missing.sort_by_key(|blob| std::cmp::Reverse(blob.stored));
            (missing.into_iter().map(|blob| vec![blob]).collect(), process::processors())
        };
        let done = thread::for_each(
            &groups,
            jobs,
            || (),
            |(), group| {
                for blob in group {
                    self.store_one(blob)?;
                    progress.inc(blob.stored);
                }
                Ok(())
            },
        );
        progress.finish_and_clear();
        done
    }

    fn store_one(&self, blob: &Packed<'_>) -> Result<(), RecordError> {
        let mut refused = None;
        let stored = self.store.put(&blob.digest, blob.size, &mut |file| {
            let mut out =
                Cancellable { inner: BufWriter::with_capacity(PIECE, file), cancel: &self.target.cancel };
            match copy_stored(blob.source, &blob.digest, blob.size, &mut out) {
                Ok(written) => written.and_then(|()| out.flush()),
                Err(error) => {
                    refused = Some(error);
                    Err(io::Error::other("it is not what its digest says"))
                }
            }
        });
        if self.target.cancel.load(Ordering::Relaxed) {
            return Err(RecordError::Interrupted);
        }
        match refused {
            Some(error) => Err(error.into()),
            None => stored,
        }
    }

    /// Writes the catalogs that the library does not have.
    fn catalogs(
        &self,
        catalogs: &BTreeMap<CatalogName, Catalog>,
    ) -> Result<Vec<ImportedCatalog>, RecordError> {
        let (dir, shared) = (&self.opened.catalog, self.opened.shared);
        let mut written = Vec::new();
        for (name, Catalog { bytes, tree }) in catalogs {
            let file = name.to_string();
            let outcome = match self.opened.catalog.read(file.as_ref(), MAX_FILE) {
                Ok(known) if known == *bytes => Outcome::Unchanged,
                Err(error) if error.is_not_found() => Outcome::New,
                // Whatever it is, it is replaced.
                Ok(_) | Err(_) => Outcome::Replaced,
            };
            let info = &tree.info;
            if outcome != Outcome::Unchanged {
                let header = Header {
                    rcc: info.rcc.clone(),
                    identity: info.identity.clone(),
                    path: info.path.clone(),
                    platform: info.platform.clone(),
                    blueprint: info.blueprint.clone(),
                    ..Header::default()
                };
                replace_synced(dir, &format!("{file}.info"), shared, |file| {
                    write::write_info(&header, file)
                })?;
                replace_synced(dir, &file, shared, |file| file.write_all(bytes))?;
            }
            let holotree = Path::new(&info.path).parent().unwrap_or(Path::new("/")).to_owned();
            written.push(ImportedCatalog {
                catalog: file,
                blueprint: name.blueprint.clone(),
                outcome,
                is_at_home: holotree == self.opened.holotree.path(),
                holotree,
            });
        }
        Ok(written)
    }
}

/// Blobs that are fetched together, one after the other, so that each group is fetched once. Blobs that are fetched alone, which
/// are large, come first.
fn by_group<'p, 'a>(blobs: Vec<&'p Packed<'a>>) -> Vec<Vec<&'p Packed<'a>>> {
    let mut groups: BTreeMap<u64, Vec<&Packed<'_>>> = BTreeMap::new();
    let mut alone = Vec::new();
    for blob in blobs {
        match blob.source.group_of(&blob.digest) {
            Some(group) => groups.entry(group).or_default().push(blob),
            None => alone.push(vec![blob]),
        }
    }
    alone.sort_by_key(|blobs| std::cmp::Reverse(blobs.iter().map(|blob| blob.stored).sum::<u64>()));
    for group in groups.values_mut() {
        group.sort_by_key(|blob| blob.source.position(&blob.digest));
    }
    alone.extend(groups.into_values());
    alone
}

/// The blobs to import, and how many the catalogs name in all.
struct Wanted<'a> {
    packed: Vec<Packed<'a>>,
    total: usize,
}
