//! The recorder makes a library in rcc's format without rcc. rcc can restore environments from that library.
//!
//! A command installs an environment in the *stage*, a directory in the holotree whose name depends on the user. The
//! recorder then stores every file of the stage as a blob, and lists them in a catalog. It holds rcc's lock all the
//! time, so a command that runs rcc on the same holotree would wait for ever.
//!
//! The recorder differs from rcc in two ways that rcc does not notice. It writes the catalog last, so no reader sees a
//! catalog whose blobs are missing. And it stores a blob for every digest in the catalog, also for broken links.
//! `record/search.rs` and `record/catalog.rs` describe the two intended differences in the catalogs.
//!
//! `record/repair.rs` is the exception to the invariant: it renames blobs that are damaged.
//!
//! Invariant: the recorder only adds to a library. If it dies at any moment, the library holds no partial file under a
//! name that readers use.

mod catalog;
mod contents;
mod error;
pub mod import;
mod place;
#[cfg(feature = "remote")]
pub mod rccremote;
mod rename;
pub mod repair;
mod search;
mod stage;
mod store;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
pub(crate) mod unfinished;
mod unplace;
mod walk;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;

pub use self::error::RecordError;

pub(crate) use self::contents::Reading;
use self::contents::store_all;
use self::place::Opened;
use self::stage::Stage;
use self::store::{Store, Written, make_dir, replace_synced};
use self::tree::{Facts, Kind, Tree};
use self::unfinished::Mark;
pub(crate) use self::unplace::Paths;
use crate::library::catalog::limits::MAX_FILE;
use crate::library::catalog::{Header, write};
use crate::library::catalogs::this_platform;
use crate::library::digest::{Digest, DigestKind, Hasher};
use crate::library::name;
use crate::sys::guarded::Dir;

/// The library to record into, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// LIBRARY as typed: a library in any of its forms, `auto`, or a directory to create.
    pub library: OsString,
    /// What `auto` means: rcc's own hololib.
    pub default_hololib: PathBuf,
    /// rcc's home, which may become a library no matter what it contains.
    pub robocorp_home: Option<PathBuf>,
    /// Whether blobs are compressed. None means as in the library, and compressed in a new one.
    pub compress: Option<bool>,
    /// How long to wait for rcc's lock.
    pub lock_timeout: Duration,
    /// Makes the progress bar for a number of bytes.
    pub progress: fn(u64) -> ProgressBar,
    /// Set by another thread to cancel the recording: the command is terminated and the stage removed.
    pub cancel: Arc<AtomicBool>,
}

/// What is recorded, and where.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// Where to record.
    pub target: Target,
    /// `$HOME`, from which the stage's name is made.
    pub home: Option<OsString>,
    /// The blueprint's text. It is trimmed, and its hash names the catalog.
    pub blueprint: String,
    /// The program that fills the stage, and its arguments.
    pub command: Vec<OsString>,
    /// Whether to leave the stage in place, also after a failure.
    pub keep_stage: bool,
    /// Whether to replace an environment of this blueprint that the library has.
    pub replace: bool,
    /// Whether the path of the stage is long, so that binaries have room for other paths.
    pub portable: bool,
}

/// The length in bytes of the path of a portable stage. Whoever writes a script with the path of an interpreter in its first
/// line does it in another way for such a path, so that it works at any length.
const PORTABLE: usize = 200;

/// A directory in the holotree in which the path of the stage has [`PORTABLE`] bytes, or more if the holotree's has.
fn long_dir(place: &Opened, identity: &str) -> Result<Dir, RecordError> {
    const NAME: &str = "portable";
    const NAME_MAX: usize = 255;
    let others = place.holotree.path().as_os_str().len() + identity.len() + "//".len();
    let len = PORTABLE.saturating_sub(others).clamp(NAME.len(), NAME_MAX);
    let name = format!("{NAME:_<len$}");
    Ok(make_dir(&place.holotree, OsStr::new(&name), place.shared)?)
}

/// What was recorded. Sizes are in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Recorded {
    /// The path of the catalog file.
    pub catalog: PathBuf,
    /// The hash of the blueprint, 16 hexadecimal digits.
    pub blueprint: String,
    /// The path of the stage. Spaces of this catalog lie in the same directory.
    pub stage: PathBuf,
    /// Whether an older catalog of the same blueprint was replaced.
    pub replaced: bool,
    /// The number of regular files.
    pub files: u64,
    /// The number of directories, without the root.
    pub dirs: u64,
    /// The number of symbolic links.
    pub links: u64,
    /// The number of regular files that contain the stage's name.
    pub relocated: u64,
    /// The number of places in regular files at which the stage's name was found.
    pub relocations: u64,
    /// The number of blobs that were written.
    pub blobs_new: u64,
    /// The number of distinct blobs that the catalog names.
    pub blobs_total: u64,
    /// The sum of the sizes of the regular files.
    pub bytes: u64,
    /// The sum of the sizes of the blobs that were written.
    pub bytes_stored: u64,
    /// Messages for the user about entries that will not work in a space.
    pub warnings: Vec<String>,
}

/// Runs the command in a stage, and records the files that it leaves there.
///
/// # Errors
/// See [`RecordError`]. After an error, the library has no new catalog. It may have new blobs that no catalog names.
pub fn record(options: &RecordOptions) -> Result<Recorded, RecordError> {
    let blueprint = options.blueprint.trim();
    if blueprint.is_empty() {
        return Err(RecordError::NoBlueprint);
    }
    if options.command.is_empty() {
        return Err(RecordError::NoCommand);
    }
    let destination = Destination::open(&options.target)?;
    let platform = this_platform();
    let catalog = catalog_name(&name::sipit_hex(blueprint.as_bytes()), &platform);
    // Before the command, which may run for minutes.
    if !options.replace && destination.place.has_catalog(&catalog) {
        return Err(RecordError::Exists { catalog: destination.place.catalog.path().join(catalog) });
    }
    let home = options.home.as_deref().map(OsStrExt::as_bytes);
    let identity = name::stage_identity(home, &platform.replacen('_', " ", 1));
    let place = &destination.place;
    let portable = if options.portable { Some(long_dir(place, identity.as_str())?) } else { None };
    let holotree = portable.as_ref().unwrap_or(&place.holotree);
    let stage = Stage::make(holotree, OsStr::new(identity.as_str()), options.keep_stage)?;
    stage.run(&options.command, &options.target.cancel)?;
    stage.put_blueprint(blueprint)?;

    let path = stage.path().to_str();
    let path = path.ok_or_else(|| RecordError::NameNotUtf8 { path: stage.path().into() })?;
    let header = header(identity.as_str(), path, &platform, blueprint);
    let reading = Reading { stage: identity.as_str().as_bytes(), space: None, paths: None, origin: None };
    let tree = walk::walk(stage.path())?;
    let recorded = destination.record(&header, &tree, reading, &|| Ok(()), options.replace)?;
    stage.finish()?;
    Ok(recorded)
}

/// The header of a new catalog. `path` is that of the stage.
pub(crate) fn header(identity: &str, path: &str, platform: &str, blueprint: &str) -> Header {
    Header {
        rcc: concat!("holofs v", env!("CARGO_PKG_VERSION")).into(),
        identity: identity.into(),
        path: path.into(),
        platform: platform.into(),
        blueprint: name::sipit_hex(blueprint.as_bytes()),
        ..Header::default()
    }
}

/// The file name of a catalog.
fn catalog_name(blueprint: &str, platform: &str) -> String {
    format!("{blueprint}v12.{platform}")
}

/// How often an environment is stored if another process removes what was stored.
const ATTEMPTS: u32 = 3;

/// The library that is recorded into. It holds rcc's lock.
#[derive(Debug)]
pub(crate) struct Destination<'t> {
    target: &'t Target,
    place: Opened,
    /// How blobs are stored.
    pub(crate) kind: DigestKind,
    /// By all recordings into it.
    written: Written,
    _lock: File,
}

impl<'t> Destination<'t> {
    /// Finds or makes the library, and takes rcc's lock.
    ///
    /// # Errors
    /// When something other than a library is there, or the lock does not become free in time.
    pub(crate) fn open(target: &'t Target) -> Result<Self, RecordError> {
        let place = place::find(target)?.open()?;
        let lock = place.lock(target.lock_timeout, &target.cancel)?;
        let kind = place.digest_kind(target.compress)?;
        Ok(Self { target, place, kind, written: Written::default(), _lock: lock })
    }

    /// The library's directory.
    pub(crate) fn hololib(&self) -> &Path {
        self.place.catalog.path().parent().unwrap_or(self.place.catalog.path())
    }

    /// Stores what the library lacks of a tree, and then its catalog, unless `check` fails. Without `replace`, a catalog of
    /// the blueprint that lists something else is an error: the changes of spaces are based on what it lists.
    ///
    /// # Errors
    /// See [`RecordError`]. The library has no new catalog then, and perhaps new blobs that no catalog names.
    pub(crate) fn record(
        &self,
        header: &Header,
        tree: &Tree,
        reading: Reading<'_>,
        check: Check<'_>,
        replace: bool,
    ) -> Result<Recorded, RecordError> {
        let (store, written) = (&self.store(), &self.written);
        let Self { target, place, .. } = self;
        let _mark = Mark::make(&place.catalog)?;
        Recording { target, place, store, written, reading, check, replace }.record(header, tree)
    }

    /// Whether the library has a blob for a content of this size.
    ///
    /// # Errors
    /// When the blob cannot be opened.
    pub(crate) fn has(&self, digest: &Digest, size: u64) -> Result<bool, RecordError> {
        Ok(digest.kind() == self.kind && self.store().has(digest, size)?)
    }

    fn store(&self) -> Store<'_> {
        Store::new(&self.place.library, self.kind, self.place.shared, &self.written)
    }
}

/// What the steps of one recording share.
struct Recording<'a> {
    target: &'a Target,
    place: &'a Opened,
    store: &'a Store<'a>,
    written: &'a Written,
    reading: Reading<'a>,
    check: Check<'a>,
    replace: bool,
}

/// Called when all files were read. An error of it ends the recording.
pub(crate) type Check<'a> = &'a dyn Fn() -> Result<(), RecordError>;

impl Recording<'_> {
    fn record(&self, header: &Header, tree: &Tree) -> Result<Recorded, RecordError> {
        let name = catalog_name(&header.blueprint, &header.platform);
        let catalog = self.place.catalog.path().join(&name);
        let replaced = self.replace && self.place.has_catalog(&name);
        let mut attempt = 1;
        let facts = loop {
            let facts = self.store(tree, header, &name)?;
            if self.is_whole(&name)? {
                break facts;
            }
            if attempt == ATTEMPTS {
                return Err(RecordError::NotWhole { catalog });
            }
            attempt += 1;
            tracing::warn!(path = %catalog.display(), "another process removed recorded files; storing them again");
            self.store.forget();
        };
        let digests: HashSet<Digest> = facts.iter().map(|facts| facts.digest).collect();
        let empty = Hasher::digest(self.store.kind, b"");
        let mut recorded = Recorded {
            catalog,
            blueprint: header.blueprint.clone(),
            stage: header.path.clone().into(),
            replaced,
            dirs: tree.dirs.len().saturating_sub(1) as u64,
            blobs_new: self.written.blobs.load(Ordering::Relaxed),
            blobs_total: digests.len() as u64 + u64::from(!digests.contains(&empty)),
            bytes_stored: self.written.bytes.load(Ordering::Relaxed),
            ..Recorded::default()
        };
        count(tree, &facts, &header.path, &mut recorded)?;
        Ok(recorded)
    }

    fn store(&self, tree: &Tree, header: &Header, name: &str) -> Result<Vec<Facts>, RecordError> {
        let progress = (self.target.progress)(tree.files.iter().map(|file| file.content.to_read()).sum());
        let done = |size| progress.inc(size);
        let facts = store_all(self.store, &tree.files, self.reading, &self.target.cancel, &done);
        progress.finish_and_clear();
        let facts = facts?;
        (self.check)()?;
        let empty = self.store.store_empty()?;
        if !self.replace && self.place.has_catalog(name) {
            let mut new = write::gzip(Vec::new());
            let unpacked = RecordError::io(self.place.catalog.path());
            let done = catalog::write(header, tree, &facts, empty, &mut new).and_then(|()| new.finish());
            return if self.place.catalog.read(name.as_ref(), MAX_FILE)? == done.map_err(unpacked)? {
                Ok(facts)
            } else {
                Err(RecordError::Exists { catalog: self.place.catalog.path().join(name) })
            };
        }
        // The blobs reach the disk, all at once, before the catalog that names them.
        self.place.library.sync_filesystem()?;
        let (dir, shared) = (&self.place.catalog, self.place.shared);
        replace_synced(dir, &format!("{name}.info"), shared, |file| write::write_info(header, file))?;
        replace_synced(dir, name, shared, |file| {
            let mut out = write::gzip(BufWriter::new(file));
            catalog::write(header, tree, &facts, empty, &mut out)?;
            out.finish()?.flush()
        })?;
        self.place.library.sync_filesystem()?;
        Ok(facts)
    }

    /// Whether the catalog and all of its blobs exist. `rcc holotree check` takes no lock: it removes blobs that no
    /// catalog named when it began, and catalogs that lack a blob.
    fn is_whole(&self, catalog: &str) -> Result<bool, RecordError> {
        Ok(self.place.catalog.stat(catalog.as_ref()).is_ok() && self.store.is_whole()?)
    }
}

/// Counts the entries of the tree, and collects the warnings.
fn count(tree: &Tree, facts: &[Facts], stage: &str, recorded: &mut Recorded) -> Result<(), RecordError> {
    for entry in tree.dirs.iter().flat_map(|dir| &dir.entries) {
        if entry.name.len() > MAX_RESTORED_NAME {
            recorded.warnings.push(format!(
                "{:?}: the name is too long for rcc to restore; holofs can show it",
                entry.name
            ));
        }
        match &entry.kind {
            Kind::Dir(_) => {}
            Kind::Link { text, .. } => {
                recorded.links += 1;
                if Path::new(text).starts_with(stage) {
                    let name = &entry.name;
                    recorded.warnings.push(format!(
                        "{name:?} -> {text:?}: the link leads into the stage, and links are not relocated; make it relative"
                    ));
                }
            }
            Kind::File(id) => {
                let facts = facts.get(id.0).ok_or_else(contents::not_hashed)?;
                let mut offsets = facts.rewrite.clone();
                offsets.dedup();
                recorded.files += 1;
                recorded.bytes += facts.size;
                recorded.relocated += u64::from(!offsets.is_empty());
                recorded.relocations += offsets.len() as u64;
            }
        }
    }
    Ok(())
}

/// The longest name that rcc can restore: it appends `.part#` and a number.
const MAX_RESTORED_NAME: usize = 247;
