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
//! Invariant: the recorder only adds to a library. If it dies at any moment, the library holds no partial file under a
//! name that readers use.

mod catalog;
mod error;
mod place;
mod search;
mod stage;
mod store;
#[cfg(test)]
mod tests;
mod walk;

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;

pub use self::error::RecordError;

use self::catalog::Facts;
use self::place::Opened;
use self::stage::Stage;
use self::store::{Store, replace};
use self::walk::{Kind, Tree};
use crate::library::catalog::{Header, write};
use crate::library::catalogs::this_platform;
use crate::library::name;

/// What is recorded, and where.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// LIBRARY as typed: a library in any of its forms, `auto`, or a directory to create.
    pub library: OsString,
    /// What `auto` means: rcc's own hololib.
    pub default_hololib: PathBuf,
    /// rcc's home, which may become a library no matter what it contains.
    pub robocorp_home: Option<PathBuf>,
    /// `$HOME`, from which the stage's name is made.
    pub home: Option<OsString>,
    /// The blueprint's text. It is trimmed, and its hash names the catalog.
    pub blueprint: String,
    /// The program that fills the stage, and its arguments.
    pub command: Vec<OsString>,
    /// Whether blobs are compressed. None means as in the library, and compressed in a new one.
    pub compress: Option<bool>,
    /// Whether to leave the stage in place, also after a failure.
    pub keep_stage: bool,
    /// How long to wait for rcc's lock.
    pub lock_timeout: Duration,
    /// Makes the progress bar for a number of bytes.
    pub progress: fn(u64) -> ProgressBar,
    /// Set by another thread to cancel the recording: the command is terminated and the stage removed.
    pub cancel: Arc<AtomicBool>,
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
    let place = place::find(options)?.open()?;
    let lock = place.lock(options.lock_timeout, &options.cancel)?;
    let kind = place.digest_kind(options.compress)?;
    let platform = this_platform();
    let home = options.home.as_deref().map(OsStrExt::as_bytes);
    let identity = name::stage_identity(home, &platform.replacen('_', " ", 1));
    let stage = Stage::make(&place.holotree, OsStr::new(identity.as_str()), options.keep_stage)?;
    stage.run(&options.command, &options.cancel)?;
    stage.put_blueprint(blueprint)?;

    let store = Store::new(&place.library, kind, place.shared);
    let recording = Recording { options, place: &place, store: &store, stage: stage.path() };
    let recorded = recording.record(identity.as_str(), &platform, blueprint)?;
    stage.finish()?;
    drop(lock);
    Ok(recorded)
}

/// How often an environment is stored if another process removes what was stored.
const ATTEMPTS: u32 = 3;

/// What the steps after the command share.
struct Recording<'a> {
    options: &'a RecordOptions,
    place: &'a Opened,
    store: &'a Store<'a>,
    stage: &'a Path,
}

impl Recording<'_> {
    fn record(&self, identity: &str, platform: &str, blueprint: &str) -> Result<Recorded, RecordError> {
        let tree = walk::walk(self.stage)?;
        let path = self.stage.to_str().ok_or_else(|| RecordError::NameNotUtf8 { path: self.stage.into() })?;
        let hash = name::sipit_hex(blueprint.as_bytes());
        let header = Header {
            rcc: concat!("holofs v", env!("CARGO_PKG_VERSION")).into(),
            identity: identity.into(),
            path: path.into(),
            platform: platform.into(),
            blueprint: hash.clone(),
            ..Header::default()
        };
        let name = format!("{hash}v12.{platform}");
        let catalog = self.place.catalog.path().join(&name);
        let replaced = self.place.catalog.stat(name.as_ref()).is_ok();
        let mut attempt = 1;
        let facts = loop {
            let facts = self.store(&tree, &header, &name)?;
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
        let mut recorded = Recorded {
            catalog,
            blueprint: hash,
            stage: self.stage.to_owned(),
            replaced,
            dirs: tree.dirs.len().saturating_sub(1) as u64,
            blobs_new: self.store.written.load(Ordering::Relaxed),
            blobs_total: self.store.distinct(),
            bytes_stored: self.store.written_bytes.load(Ordering::Relaxed),
            ..Recorded::default()
        };
        count(&tree, &facts, path, &mut recorded)?;
        Ok(recorded)
    }

    fn store(&self, tree: &Tree, header: &Header, name: &str) -> Result<Vec<Facts>, RecordError> {
        let progress = (self.options.progress)(tree.files.iter().map(|file| file.size).sum());
        let name_bytes = header.identity.as_bytes();
        let facts = self.store.store_all(&tree.files, name_bytes, &self.options.cancel, &|size| {
            progress.inc(size);
        });
        progress.finish_and_clear();
        let facts = facts?;
        let empty = self.store.store_empty()?;
        // The blobs reach the disk, all at once, before the catalog that names them.
        self.place.library.sync_filesystem()?;
        self.write(&format!("{name}.info"), |file| {
            let mut out = BufWriter::new(file);
            write::write_json(header, &mut out)?;
            out.flush()
        })?;
        self.write(name, |file| {
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

    /// Replaces a file of the catalog directory in one step.
    fn write(
        &self,
        name: &str,
        content: impl FnOnce(&mut std::fs::File) -> io::Result<()>,
    ) -> Result<(), RecordError> {
        let written = replace(&self.place.catalog, name.as_ref(), self.place.shared, |file| {
            content(file)?;
            file.sync_all()
        });
        written.map_err(RecordError::io(self.place.catalog.path().join(name)))
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
                let facts = facts.get(id.0).ok_or_else(|| store::not_hashed(stage))?;
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
