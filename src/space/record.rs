//! `state.json`: what the changes of a space are based on.
//!
//! The record has a version and three lists of features. A version of holofs that does not know a feature may ignore it
//! (`compat`), may only read the space (`ro_compat`), or must not touch the space (`incompat`). Keys that this version
//! does not know are written back as they were read.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SpaceError;
use super::run::RunInfo;
use crate::library::look::Look;
use crate::sys::guarded::{self, Dir, Durability, Problem, Replace, Trust, Writers};

/// The file's name in the space's state directory.
pub(crate) const FILE: &str = "state.json";

/// Longer than any `state.json` that holofs writes.
pub(super) const MAX_LEN: u64 = 1 << 20;

/// The version of the format.
const VERSION: u32 = 1;
/// The feature of a space whose files name another directory than the catalog says.
const PLACED: &str = "placed";

/// What the changes of a space are based on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Basis {
    /// The name of the space's directory.
    pub identity: String,
    /// SHA-256 of the catalog file, in hex.
    pub catalog_sha256: String,
    /// The catalog's blueprint hash.
    pub blueprint: String,
    /// The directory above the space's directory.
    pub base: String,
    /// The library of the catalog (its hololib).
    pub library: String,
    /// The controller as rcc records it: `rcc.user`.
    pub controller: String,
    /// The space's name as its user knows it.
    pub space: String,
    /// The directory on which the space is mounted, if it is not the one that its files name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign: Option<PathBuf>,
    /// Its files name that directory: the whole path is relocated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub placed: bool,
    /// The changes are dropped at the end of the mount, or by the next mount if the daemon was killed.
    #[serde(default)]
    pub ephemeral: bool,
}

impl Basis {
    /// The space's directory.
    #[must_use]
    pub fn place(&self) -> PathBuf {
        self.foreign.clone().unwrap_or_else(|| Path::new(&self.base).join(&self.identity))
    }

    /// The directory that its files name, if that is not the one that the catalog names.
    #[must_use]
    pub fn placed_at(&self) -> Option<&Path> {
        self.foreign.as_deref().filter(|_| self.placed)
    }

    /// Whether changes that were made over `other` are valid over this, too.
    pub(super) fn shows_the_same(&self, other: &Basis) -> bool {
        self.catalog_sha256 == other.catalog_sha256
            && self.base == other.base
            && self.placed_at() == other.placed_at()
    }

    /// Whether the files beside the mountpoint have the same names in their headers.
    pub(super) fn is_called_the_same(&self, other: &Basis) -> bool {
        self.place() == other.place() && self.controller == other.controller && self.space == other.space
    }
}

/// The content of `state.json`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SpaceRecord {
    /// The version of the format: 1.
    pub version: u32,
    /// Features that a version which does not know them may ignore.
    #[serde(default)]
    pub compat: Vec<String>,
    /// Features with which such a version may only read the space.
    #[serde(default)]
    pub ro_compat: Vec<String>,
    /// Features with which such a version must not touch the space.
    #[serde(default)]
    pub incompat: Vec<String>,
    /// What the changes are based on.
    #[serde(flatten)]
    pub basis: Basis,
    /// SHA-256 of the catalog from which the files beside the mountpoint were last written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
    /// What stat(2) said of `.meta` when it was written. None in the record of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) described: Option<Look>,
    /// Keys of a newer version.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

impl SpaceRecord {
    pub(super) fn new(basis: Basis) -> SpaceRecord {
        let incompat = basis.placed.then(|| PLACED.to_owned()).into_iter().collect();
        SpaceRecord { version: VERSION, basis, incompat, ..SpaceRecord::default() }
    }

    /// Whether the files beside the mountpoint were written from this catalog.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.published.as_ref() == Some(&self.basis.catalog_sha256)
    }

    /// Reads the record in a space's state directory. None if there is none.
    ///
    /// # Errors
    /// When it is damaged, or has a version or a feature that this version does not know.
    pub fn read(state_dir: &Path) -> Result<Option<SpaceRecord>, SpaceError> {
        let path = state_dir.join(FILE);
        let bytes = match guarded::read(&path, MAX_LEN) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if matches!(error.problem, Problem::Os(_)) => return Err(error.into()),
            Err(error) => return Err(SpaceError::DamagedState { path, why: error.problem.to_string() }),
        };
        // The version first: the fields of another version can be others.
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
        let needs =
            |feature: String| SpaceError::UnknownFeature { path: path.clone(), feature, may_read: false };
        if versioned.version != VERSION {
            return Err(needs(format!("format version {}", versioned.version)));
        }
        if let Some(feature) = versioned.incompat.into_iter().find(|feature| feature != PLACED) {
            return Err(needs(feature));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    pub(super) fn write(&self, state_dir: &Path, durability: Durability) -> Result<(), SpaceError> {
        write_json(state_dir, FILE, self, durability)
    }
}

/// The directory of a space, where it is mounted unless a directory above was renamed.
#[must_use]
pub fn recorded_place(state_dir: &Path, run: Option<&RunInfo>) -> Option<PathBuf> {
    match SpaceRecord::read(state_dir) {
        Ok(Some(record)) => Some(record.basis.place()),
        _ => run.map(|run| run.mountpoint.clone()),
    }
}

/// Replaces a file in a state directory.
pub(super) fn write_json<T: Serialize>(
    state_dir: &Path,
    name: &str,
    value: &T,
    durability: Durability,
) -> Result<(), SpaceError> {
    let path = state_dir.join(name);
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(io::Error::from).map_err(SpaceError::io(&path))?;
    bytes.push(b'\n');
    let how = Replace { mode: 0o600, writers: Writers::One, durability };
    Dir::open(state_dir, Trust::Owned)?
        .replace(name.as_ref(), how, |file| file.write_all(&bytes))
        .map_err(SpaceError::io(&path))
}
