//! A space's own directory: what belongs to it while it is not mounted, and who has it while it is.
//!
//! ```text
//! $HOLOFS_HOME/spaces/<identity>/
//!   lock        flock, held for the life of a mount
//!   state.json  which catalog the changes were made over
//!   run.json    the running daemon; true only while `lock` is held
//!   log         the daemon's log, and log.old the one before it
//!   upper/      the user's changes
//!   work/       staging
//!   reloc/      relocated files that were only read
//!   trash.N/    dropped, being removed
//! ```
//!
//! It does not know what the upper holds. Invariants: `state.json` and `upper/` always belong together, whatever
//! instant a crash comes at; an upper that is not empty is dropped only by [`StateDir::adopt`] with `fresh`, by
//! [`StateDir::discard_changes`], or when it was made by an ephemeral mount.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::library::look::Look;
use crate::space::run::{self, RunInfo, read_run};
use crate::space::{SpaceError, lock};
use crate::sys::guarded::{self, Access, Dir, Durability, Problem, Replace, Trust, Writers};
use crate::sys::tree;

/// No record of ours is longer.
pub(crate) const MAX_RECORD: u64 = 1 << 20;

/// The format of `state.json`.
const VERSION: u32 = 1;
/// The features this version writes or understands; none so far.
const KNOWN_INCOMPAT: &[&str] = &[];
const KNOWN_RO_COMPAT: &[&str] = &[];

/// Longer than a look at the lock by `holofs list` takes, shorter than a user notices.
const PROBE_GRACE: Duration = Duration::from_millis(200);

/// What a space's changes are changes of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Content {
    /// The space's directory name.
    pub identity: String,
    /// SHA-256 of the catalog file, hex.
    pub catalog_sha256: String,
    /// The catalog's blueprint hash.
    pub blueprint: String,
    /// The directory the space's directory is in.
    pub base: String,
    /// The library the catalog is from (its hololib).
    pub library: String,
    /// As rcc records it: `rcc.user`.
    pub controller: String,
    /// The name its user knows the space by.
    pub space: String,
    /// The changes are to be dropped when the mount ends, or was ended.
    #[serde(default)]
    pub ephemeral: bool,
}

impl Content {
    /// The space's directory, where its changes belong.
    #[must_use]
    pub fn place(&self) -> PathBuf {
        Path::new(&self.base).join(&self.identity)
    }
}

/// `state.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// The format; this is version 1.
    pub version: u32,
    /// Features that a version which does not know them may ignore.
    #[serde(default)]
    pub compat: Vec<String>,
    /// Features that such a version may read past, but not write.
    #[serde(default)]
    pub ro_compat: Vec<String>,
    /// Features that such a version must not touch at all.
    #[serde(default)]
    pub incompat: Vec<String>,
    /// What the upper was made over.
    #[serde(flatten)]
    pub content: Content,
    /// The catalog for which the files beside the mountpoint were written last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
    /// How `.meta` looked when it was written; a record without this is of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) described: Option<Look>,
    /// What a newer version keeps here and this one may ignore: it is written back as it was.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

impl State {
    fn new(content: Content) -> State {
        State {
            version: VERSION,
            compat: Vec::new(),
            ro_compat: Vec::new(),
            incompat: Vec::new(),
            content,
            published: None,
            described: None,
            rest: serde_json::Map::new(),
        }
    }

    /// Whether the files beside the mountpoint were written for this catalog.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.published.as_ref() == Some(&self.content.catalog_sha256)
    }

    /// The feature for which a mount by this version must not write.
    #[must_use]
    pub fn unknown_ro_feature(&self) -> Option<&str> {
        unknown(&self.ro_compat, KNOWN_RO_COMPAT)
    }
}

fn unknown<'a>(listed: &'a [String], known: &[&str]) -> Option<&'a str> {
    listed.iter().map(String::as_str).find(|f| !known.contains(f))
}

/// A space's own directory, locked.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Shared with forked children: the lock goes when the last of them ends.
    lock: File,
    /// The upper was made just now: there is nothing in it to drop, not even attributes of its own.
    is_new: bool,
}

impl StateDir {
    /// Takes the directory, making it when it is new.
    ///
    /// # Errors
    /// [`SpaceError::Busy`] when another process has it, and what keeps it from being made.
    pub fn open_locked(path: &Path) -> Result<StateDir, SpaceError> {
        let spaces = Dir::make_ours(path.parent().unwrap_or(path))?;
        let opened = spaces.make_dir(path.file_name().unwrap_or_default(), Trust::Ours)?;
        let lock = take_lock(&opened)?;
        let is_new = opened.stat(OsStr::new("upper")).is_err_and(|error| error.is_not_found());
        for sub in ["upper", "work", "reloc"] {
            opened.make_dir(OsStr::new(sub), Trust::Owned)?;
        }
        let dir = StateDir { path: path.to_owned(), lock, is_new };
        dir.sweep();
        Ok(dir)
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The user's changes.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    /// Staging, on the same filesystem.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Relocated files that were only read.
    #[must_use]
    pub fn reloc(&self) -> PathBuf {
        self.path.join("reloc")
    }

    /// The daemon's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        log_of(&self.path)
    }

    /// The locked file; whoever inherits it keeps the space taken.
    #[must_use]
    pub fn lock_file(&self) -> &File {
        &self.lock
    }

    /// Makes the directory fit `content`: keeps the changes when they were made over it, else drops them when
    /// `fresh` says so or there are none. Returns what is recorded now.
    ///
    /// # Errors
    /// When there are changes that belong to something else or that cannot be told; nothing was dropped then.
    pub fn adopt(&self, content: &Content, fresh: bool) -> Result<State, SpaceError> {
        let recorded = match read_state(&self.path) {
            // Dropping what a newer version keeps needs no understanding of it.
            Ok(recorded) => recorded,
            Err(error) if fresh => {
                tracing::warn!(%error, "dropped with the changes");
                None
            }
            Err(error) if has_changes(&self.path)? => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "written anew: there are no changes");
                None
            }
        };
        let Some(recorded) = recorded else {
            if !fresh && has_changes(&self.path)? {
                return Err(SpaceError::DamagedState {
                    path: self.path.join("state.json"),
                    why: "it is missing, and there are changes beside it".to_owned(),
                });
            }
            return self.start_over(content);
        };
        if fresh || recorded.content.ephemeral || !has_changes(&self.path)? {
            if same_content(&recorded.content, content) && !fresh && !recorded.content.ephemeral {
                return self.keep(recorded, content);
            }
            return self.start_over(content);
        }
        if !same_content(&recorded.content, content) {
            return Err(other_content(&recorded.content, content));
        }
        if content.ephemeral {
            return Err(SpaceError::EphemeralOverChanges { identity: content.identity.clone() });
        }
        self.keep(recorded, content)
    }

    /// Drops the user's changes, at once for a reader and for whatever comes after a crash.
    ///
    /// # Errors
    /// When the directory cannot be written. The changes are there as before, or gone.
    pub fn discard_changes(&self) -> Result<(), SpaceError> {
        self.trash("upper")?;
        self.sweep();
        Ok(())
    }

    /// Notes for which catalog the files beside the mountpoint were written, and how `.meta` looks now.
    ///
    /// # Errors
    /// When `state.json` cannot be written.
    pub(crate) fn note_published(&self, state: &State, described: Option<Look>) -> Result<State, SpaceError> {
        let mut state = state.clone();
        state.published = Some(state.content.catalog_sha256.clone());
        state.described = described;
        self.write_state(&state)?;
        Ok(state)
    }

    /// Records the running daemon.
    ///
    /// # Errors
    /// When `run.json` cannot be written.
    pub fn write_run(&self, run: &RunInfo) -> Result<(), SpaceError> {
        write_json(&self.path.join(run::FILE), run, Durability::CacheOnly)
    }

    /// Forgets the running daemon.
    ///
    /// # Errors
    /// When `run.json` is there and cannot be removed.
    pub fn remove_run(&self) -> Result<(), SpaceError> {
        tracing::info!(pid = std::process::id(), "the mount has ended");
        let path = self.path.join(run::FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SpaceError::io(&path)(error)),
            _ => Ok(()),
        }
    }

    fn keep(&self, mut recorded: State, content: &Content) -> Result<State, SpaceError> {
        if recorded.content != *content {
            // The library may have moved, or the space be called by its path now.
            recorded.content = content.clone();
            self.write_state(&recorded)?;
        }
        Ok(recorded)
    }

    /// Empties the directory, then records `content`: between the two the old record describes an empty upper. The
    /// record of a new space is not waited for: see [`StateDir::settle`].
    fn start_over(&self, content: &Content) -> Result<State, SpaceError> {
        // Each costs a wait for the disk, which a new space need not pay.
        for sub in ["upper", "reloc", "work"] {
            if !(self.is_new && is_empty(&self.path.join(sub))?) {
                self.trash(sub)?;
            }
        }
        let state = State::new(content.clone());
        let durability = if self.is_new { Durability::CacheOnly } else { Durability::DataAndName };
        write_json(&self.record(), &state, durability)?;
        self.sweep();
        Ok(state)
    }

    fn record(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// Has the space survive a loss of power; to be called before anything in it is said to. An old one may need it
    /// too: whoever made it may have been killed before he could.
    ///
    /// # Errors
    /// Those of open(2) and fsync(2).
    pub fn settle(&self) -> Result<(), SpaceError> {
        let record = self.record();
        // Guarded: the open of a FIFO would wait, and with it every change in the space.
        let file = guarded::open_file(&record, Access::Read).map_err(std::io::Error::from);
        file.and_then(|file| file.sync_all()).map_err(SpaceError::io(&record))?;
        sync_dir(&self.path)
    }

    fn write_state(&self, state: &State) -> Result<(), SpaceError> {
        write_json(&self.record(), state, Durability::DataAndName)
    }

    /// Puts an empty directory in the place of `sub`.
    fn trash(&self, sub: &str) -> Result<(), SpaceError> {
        let path = self.path.join(sub);
        let mut n = 0;
        let trash = loop {
            let trash = self.path.join(format!("trash.{n}"));
            if std::fs::symlink_metadata(&trash).is_err() {
                break trash;
            }
            n += 1;
        };
        match std::fs::rename(&path, &trash) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SpaceError::io(&path)(error))?,
            _ => {}
        }
        make_private_dir(&path)?;
        sync_dir(&self.path)
    }

    /// Removes what was dropped. What resists is left for the next time: nobody reads it.
    fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return };
        for entry in entries.flatten() {
            let is_trash = entry.file_name().to_string_lossy().starts_with("trash.");
            if is_trash && let Err(error) = tree::remove(rustix::fs::CWD, entry.path().as_path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove");
            }
        }
    }
}

/// Reads `state.json` of a space's directory; None when the space has none.
///
/// # Errors
/// When it is damaged or of another version.
pub fn read_state(dir: &Path) -> Result<Option<State>, SpaceError> {
    let path = dir.join("state.json");
    let bytes = match guarded::read(&path, MAX_RECORD) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) if matches!(error.problem, Problem::Os(_)) => return Err(error.into()),
        Err(error) => return Err(SpaceError::DamagedState { path, why: error.problem.to_string() }),
    };
    // The version first: another one may have other fields.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
        #[serde(default)]
        incompat: Vec<String>,
    }
    let damaged = |error: serde_json::Error| SpaceError::DamagedState {
        path: path.clone(),
        why: format!("not what holofs writes: {error}"),
    };
    let versioned: Versioned = serde_json::from_slice(&bytes).map_err(damaged)?;
    let needs = |feature: String| SpaceError::UnknownFeature { path: path.clone(), feature };
    if versioned.version != VERSION {
        return Err(needs(format!("format version {}", versioned.version)));
    }
    if let Some(feature) = unknown(&versioned.incompat, KNOWN_INCOMPAT) {
        return Err(needs(feature.to_owned()));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// The directory of a space, at which it is mounted unless a directory above was renamed.
#[must_use]
pub fn recorded_place(state_dir: &Path, run: Option<&RunInfo>) -> Option<PathBuf> {
    match read_state(state_dir) {
        Ok(Some(state)) => Some(state.content.place()),
        _ => run.map(|run| run.mountpoint.clone()),
    }
}

/// The log of a space.
#[must_use]
pub fn log_of(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// Whether the space has changes of its user's: anything at all in the upper.
///
/// # Errors
/// When the upper is there and cannot be read.
pub fn has_changes(dir: &Path) -> Result<bool, SpaceError> {
    let upper = dir.join("upper");
    match std::fs::read_dir(&upper) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(SpaceError::io(&upper)(error)),
    }
}

/// Whether a process holds the space. Does not make anything.
#[must_use]
pub fn is_locked(dir: &Path) -> bool {
    let Ok(file) = guarded::open_file(&dir.join("lock"), Access::Read) else { return false };
    matches!(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

/// Refuses a state directory inside of the library: the library is never written.
///
/// # Errors
/// [`SpaceError::StateInsideLibrary`].
pub fn check_outside(state_dir: &Path, library: &Path) -> Result<(), SpaceError> {
    // Through links: the part that exists decides.
    let real = |path: &Path| {
        let mut existing = path;
        let mut rest = Vec::new();
        loop {
            if let Ok(found) = existing.canonicalize() {
                return rest.iter().rev().fold(found, |at: PathBuf, name| at.join(name));
            }
            match (existing.parent(), existing.file_name()) {
                (Some(parent), Some(name)) => {
                    rest.push(name.to_owned());
                    existing = parent;
                }
                _ => return path.to_owned(),
            }
        }
    };
    if real(state_dir).starts_with(real(library)) {
        let (state, library) = (state_dir.to_owned(), library.to_owned());
        return Err(SpaceError::StateInsideLibrary { state, library });
    }
    Ok(())
}

fn same_content(kept: &Content, wanted: &Content) -> bool {
    kept.catalog_sha256 == wanted.catalog_sha256 && kept.base == wanted.base
}

fn other_content(kept: &Content, wanted: &Content) -> SpaceError {
    let same_blueprint = kept.blueprint == wanted.blueprint;
    let (kept_text, wanted_text) = if kept.base != wanted.base {
        (format!("the holotree {}", kept.base), wanted.base.clone())
    } else if same_blueprint {
        let text = |c: &Content| format!("catalog {:.12} of blueprint {}", c.catalog_sha256, c.blueprint);
        (format!("an earlier {}", text(kept)), format!("the {} that is there now", text(wanted)))
    } else {
        (format!("blueprint {}", kept.blueprint), wanted.blueprint.clone())
    };
    SpaceError::OtherContent {
        identity: wanted.identity.clone(),
        kept: kept_text,
        wanted: wanted_text,
        blueprint: (!same_blueprint && kept.base == wanted.base).then(|| kept.blueprint.clone()),
    }
}

fn take_lock(dir: &Dir) -> Result<File, SpaceError> {
    let name = OsStr::new("lock");
    let start = Instant::now();
    loop {
        let (file, _) = dir.open_or_create(name, Access::Write, 0o600)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // The directory may have been removed, and made anew, while we waited.
            Ok(()) if lock::is_still_at(&file, dir, name) => return Ok(file),
            Ok(()) => {}
            // A look by `list` holds the lock for an instant.
            Err(Errno::WOULDBLOCK) if start.elapsed() < PROBE_GRACE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::WOULDBLOCK) => {
                let identity = dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
                let pid = read_run(dir.path()).map(|run| run.pid).or_else(|| lock::holder(&file));
                return Err(SpaceError::Busy { identity, pid });
            }
            Err(errno) => return Err(SpaceError::io(&dir.path().join(name))(errno.into())),
        }
    }
}

fn is_empty(dir: &Path) -> Result<bool, SpaceError> {
    std::fs::read_dir(dir).map(|mut entries| entries.next().is_none()).map_err(SpaceError::io(dir))
}

pub(crate) fn make_private_dir(path: &Path) -> Result<(), SpaceError> {
    DirBuilder::new().mode(0o700).create(path).map_err(SpaceError::io(path))
}

fn write_json<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), SpaceError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| SpaceError::io(path)(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    bytes.push(b'\n');
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let how = Replace { mode: 0o600, writers: Writers::One, durability };
    Dir::open(dir, Trust::Owned)?
        .replace(name, how, |file| file.write_all(&bytes))
        .map_err(SpaceError::io(path))
}

pub(crate) fn sync_dir(path: &Path) -> Result<(), SpaceError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(SpaceError::io(path))
}

#[cfg(test)]
mod tests;
