//! The recorder: builds a library without rcc, in rcc's own format, so that real rcc restores what it holds.
//!
//! A command fills the stage, a directory whose name is the user's, in the holotree beside the library; everything it
//! left there becomes a catalog and blobs. rcc's lock is held for the whole of it, so a command that itself runs rcc on
//! the same holotree would wait for ever.
//!
//! It does two things better than rcc, and both are invisible to rcc: the catalog is written last, so that no reader
//! ever sees one with blobs missing; and every digest it names has a blob, also those of links that lead nowhere.
//! `record/search.rs` and `record/catalog.rs` tell the two intended differences in the catalogs themselves.
//!
//! Invariant: a library is only ever added to, and whatever instant the recorder dies, it holds nothing half made
//! under a name that anybody reads.

mod catalog;
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
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::catalog::Facts;
use self::place::Opened;
use self::stage::Stage;
use self::store::{Store, replace};
use self::walk::{Kind, Tree};
use crate::library::LibraryError;
use crate::library::catalog::{Header, write};
use crate::library::catalogs::this_platform;
use crate::library::name;
use crate::sys::guarded::GuardedError;

/// What to record, and where.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// LIBRARY as typed: a library in any of its shapes, `auto`, or a directory to be made.
    pub library: OsString,
    /// What `auto` means: rcc's own hololib.
    pub default_hololib: PathBuf,
    /// rcc's home in force: it may become a library whatever it holds. The default is none.
    pub robocorp_home: Option<PathBuf>,
    /// `$HOME`, after which the stage is named. The default is none.
    pub home: Option<OsString>,
    /// The blueprint's text; it is trimmed at both ends, and its hash names the catalog.
    pub blueprint: String,
    /// The program that fills the stage, and its arguments.
    pub command: Vec<OsString>,
    /// Compressed or raw blobs. The default, `None`, is what the library has, and compressed for a new one.
    pub compress: Option<bool>,
    /// Whether the stage stays, also after a failure. The default is false.
    pub keep_stage: bool,
    /// How long to wait for rcc's lock. The default is 30 seconds.
    pub lock_timeout: Duration,
    /// Whether to show progress when standard error is a terminal. The default is false.
    pub progress: bool,
    /// Set by whoever wants the recording to end early; the command is then told to end, and the stage removed. The
    /// default is one nobody sets.
    pub cancel: Arc<AtomicBool>,
}

impl RecordOptions {
    /// The options for what must be said, with the defaults for everything else.
    #[must_use]
    pub fn new(
        library: OsString,
        default_hololib: PathBuf,
        blueprint: String,
        command: Vec<OsString>,
    ) -> Self {
        Self {
            library,
            default_hololib,
            robocorp_home: None,
            home: None,
            blueprint,
            command,
            compress: None,
            keep_stage: false,
            lock_timeout: Duration::from_secs(30),
            progress: false,
            cancel: Arc::default(),
        }
    }
}

/// What was recorded. Sizes are in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Recorded {
    /// The catalog file.
    pub catalog: PathBuf,
    /// The blueprint's hash, 16 digits.
    pub blueprint: String,
    /// The stage; spaces of this catalog lie beside it.
    pub stage: PathBuf,
    /// Whether a catalog of the same blueprint was replaced.
    pub replaced: bool,
    /// Regular files.
    pub files: u64,
    /// Directories, without the root.
    pub dirs: u64,
    /// Symbolic links.
    pub links: u64,
    /// Regular files that hold the stage's name.
    pub relocated: u64,
    /// Places in regular files where the stage's name was found.
    pub relocations: u64,
    /// Blobs written.
    pub blobs_new: u64,
    /// Distinct blobs the catalog names.
    pub blobs_total: u64,
    /// The sum of the sizes of the regular files.
    pub bytes: u64,
    /// The size of the blobs written.
    pub bytes_stored: u64,
    /// What will not work in a space although it was recorded: sentences for the user.
    pub warnings: Vec<String>,
}

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// LIBRARY is something else.
    #[error(transparent)]
    Library(LibraryError),
    /// The library is of the other kind.
    #[error("the library {hololib} is {is}, and cannot take {asked} blobs: one library holds one kind")]
    Kind {
        /// The library.
        hololib: PathBuf,
        /// What it is.
        is: &'static str,
        /// What was asked for.
        asked: &'static str,
    },
    /// The blueprint has no text.
    #[error("the blueprint is empty")]
    NoBlueprint,
    /// No command was given.
    #[error("no command to fill the stage with")]
    NoCommand,
    /// The lock is held by rcc or another recorder.
    #[error("{path} is still locked after {seconds} s: rcc or another recording is at work there")]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// There is something in the stage.
    #[error("the stage {path} is not empty: an interrupted build left it; remove it when nothing uses it")]
    StageInUse {
        /// The stage.
        path: PathBuf,
    },
    /// The command could not be started.
    #[error("{}: {source}", program.display())]
    CommandStart {
        /// The program.
        program: OsString,
        /// Why.
        source: io::Error,
    },
    /// The command failed.
    #[error("{}: {status}", program.display())]
    CommandFailed {
        /// The program.
        program: OsString,
        /// How.
        status: ExitStatus,
    },
    /// [`RecordOptions::cancel`] was set.
    #[error("interrupted")]
    Interrupted,
    /// A catalog cannot say what this is.
    #[error("{path}: {what} cannot be recorded")]
    Special {
        /// Which entry.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A catalog is JSON.
    #[error("{path:?}: a name that is not UTF-8 cannot be recorded")]
    NameNotUtf8 {
        /// Which entry.
        path: PathBuf,
    },
    /// A catalog is JSON.
    #[error("{path}: a link whose text is not UTF-8 cannot be recorded")]
    LinkNotUtf8 {
        /// Which entry.
        path: PathBuf,
    },
    /// Deeper than a catalog may be.
    #[error("{path}: nested too deep to be recorded")]
    TooDeep {
        /// The directory that is too deep.
        path: PathBuf,
    },
    /// Something still works in the stage.
    #[error("{path}: changed while it was recorded")]
    Changed {
        /// Which entry.
        path: PathBuf,
    },
    /// Somebody removed what was recorded.
    #[error(
        "{catalog}: while it was recorded somebody removed it or some of its blobs, as `rcc holotree check` does"
    )]
    NotWhole {
        /// The catalog.
        catalog: PathBuf,
    },
    /// Something in the library or the holotree is not what it should be, or cannot be opened or made.
    #[error(transparent)]
    Guarded(#[from] GuardedError),
    /// A file or directory could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread ended that must not; a bug.
    #[error("internal error: a thread of the recorder died")]
    Panicked,
}

impl RecordError {
    /// For `map_err` on an I/O call about a path.
    fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// The exit status a shell would report for the command, when it is what failed.
    #[must_use]
    pub fn command_status(&self) -> Option<u8> {
        use std::os::unix::process::ExitStatusExt;
        let status = match self {
            Self::CommandStart { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::CommandStart { .. } => 126,
            Self::CommandFailed { status, .. } => {
                status.code().or_else(|| status.signal().map(|signal| signal + 128)).unwrap_or(1)
            }
            _ => return None,
        };
        Some(u8::try_from(status).unwrap_or(1))
    }
}

/// Runs the command in a stage, and records what it left there.
///
/// # Errors
/// See [`RecordError`]. The library then has no new catalog; it may have new blobs that no catalog names.
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

/// How often an environment is stored when somebody removes what was stored.
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
            tracing::warn!(path = %catalog.display(), "somebody removed what was recorded; it is stored again");
            self.store.forget();
        };
        let mut recorded = Recorded {
            catalog,
            blueprint: hash,
            stage: self.stage.to_owned(),
            replaced,
            dirs: tree.dirs.len().saturating_sub(1) as u64,
            blobs_new: self.store.written.load(std::sync::atomic::Ordering::Relaxed),
            blobs_total: self.store.distinct(),
            bytes_stored: self.store.written_bytes.load(std::sync::atomic::Ordering::Relaxed),
            ..Recorded::default()
        };
        count(&tree, &facts, path, &mut recorded)?;
        Ok(recorded)
    }

    /// Stores the blobs and then the catalog.
    fn store(&self, tree: &Tree, header: &Header, name: &str) -> Result<Vec<Facts>, RecordError> {
        let progress = self.progress(tree);
        let name_bytes = header.identity.as_bytes();
        let facts = self.store.store_all(&tree.files, name_bytes, &self.options.cancel, &|size| {
            progress.inc(size);
        });
        progress.finish_and_clear();
        let facts = facts?;
        let empty = self.store.store_empty()?;
        // All blobs at once, and on the disk before the catalog that names them.
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

    /// Whether the catalog and all of its blobs are there. rcc's check takes no lock: it removes blobs that no catalog named
    /// when it began, and catalogs that lack a blob.
    fn is_whole(&self, catalog: &str) -> Result<bool, RecordError> {
        Ok(self.place.catalog.stat(catalog.as_ref()).is_ok() && self.store.is_whole()?)
    }

    /// Writes a file of the catalog directory as a whole, or not at all.
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

    fn progress(&self, tree: &Tree) -> ProgressBar {
        if !self.options.progress {
            return ProgressBar::hidden();
        }
        let total = tree.files.iter().map(|content| content.size).sum();
        // Draws nothing where standard error is no terminal.
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        match ProgressStyle::with_template("recording {wide_bar} {bytes}/{total_bytes}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

/// Counts what is in the tree, and notes what will not work.
fn count(tree: &Tree, facts: &[Facts], stage: &str, recorded: &mut Recorded) -> Result<(), RecordError> {
    for entry in tree.dirs.iter().flat_map(|dir| &dir.entries) {
        if entry.name.len() > MAX_RESTORED_NAME {
            recorded
                .warnings
                .push(format!("{:?}: rcc cannot restore so long a name, holofs can", entry.name));
        }
        match &entry.kind {
            Kind::Dir(_) => {}
            Kind::Link { text, .. } => {
                recorded.links += 1;
                if Path::new(text).starts_with(stage) {
                    let name = &entry.name;
                    recorded.warnings.push(format!(
                        "{name:?} -> {text:?}: links are not relocated, and this one leads into the stage; make it relative"
                    ));
                }
            }
            Kind::File(id) => {
                let facts = facts.get(id.0).ok_or(RecordError::Panicked)?;
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

/// The longest name to which rcc can append what it appends while it restores (`.part#` and a number).
const MAX_RESTORED_NAME: usize = 247;
