//! An environment of a library: counts, blueprint, largest files and last use, and the files to unpack.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::compose;
use super::error::Error;
use super::spaces::Survey;
use crate::library::LibraryError;
use crate::library::blob::Blobs;
use crate::library::catalogs::{CatalogName, this_platform};
use crate::library::digest::Digest;
use crate::library::index::cache::open_or_compile;
use crate::library::index::{Index, IndexError, NodeId, NodeKind};
use crate::library::locate::{Kind, Location};
use crate::library::profile;
use crate::library::warm::Warming;
use crate::materialize::SMALL_FILE;
use crate::space::home::Env;
use crate::space::record::SpaceRecord;

/// The largest blueprint that is read, in bytes.
const MAX_IDENTITY: u64 = 1 << 20;

/// An environment with an open index.
#[derive(Debug)]
pub struct Environment<'l> {
    location: &'l Location,
    /// The index of its catalog.
    pub index: Index,
    cache_dir: PathBuf,
}

impl<'l> Environment<'l> {
    /// Opens the index of a catalog. Compiles it first if necessary.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn open(location: &'l Location, catalog: &CatalogName, env: &Env) -> Result<Self, Error> {
        let cache_dir = env.cache_dir();
        let index = open_or_compile(&*location.library, catalog, &cache_dir.join("index"))?;
        Ok(Self { location, index, cache_dir })
    }

    /// The place in the library of `identity.yaml`, the file with the blueprint's text.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn identity_place(&self) -> Result<String, Error> {
        let library = &self.location.library;
        Ok(match self.identity_file()? {
            Some((digest, _)) => library.blob_place(&digest),
            None => format!("{}/library/identity.yaml", library.name()),
        })
    }

    /// The text of `identity.yaml`, or the reason in brackets when the text cannot be read. None when the environment does
    /// not have the file.
    ///
    /// # Errors
    /// When the index is damaged, or the blob cache cannot be opened.
    pub fn identity_text(&self) -> Result<Option<String>, Error> {
        let Some((digest, size)) = self.identity_file()? else { return Ok(None) };
        if size > MAX_IDENTITY {
            return Ok(Some(format!("(it is longer than {MAX_IDENTITY} bytes)")));
        }
        let blobs = self.blobs()?;
        Ok(Some(match blobs.read_all(&digest, size) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("({error})"),
        }))
    }

    /// The large files to unpack: all, or those that earlier mounts read.
    ///
    /// # Errors
    /// When the index is damaged, or no earlier mount has recorded what it read.
    pub fn warming(&self, only_touched: bool) -> Result<Warming<'_>, Error> {
        let catalog = self.index.catalog_sha256();
        let files = if only_touched {
            let path = profile::place(&self.cache_dir, &catalog);
            let touched = profile::read(&path, &catalog, self.index.len());
            touched.map_err(|source| Error::NeverRead { path, source })?.order().to_vec()
        } else {
            (0..self.index.len()).map(NodeId).collect()
        };
        // Small files of a library on this machine are unpacked as fast as they are read from a cache.
        let small = (self.location.kind != Kind::Remote).then_some(SMALL_FILE);
        Ok(Warming::new(&self.index, files, small).map_err(LibraryError::from)?)
    }

    /// The blobs of the library, unpacked in the blob cache.
    ///
    /// # Errors
    /// When the blob cache cannot be opened.
    pub fn blobs(&self) -> Result<Blobs, Error> {
        Ok(compose::blobs(self.location, compose::blob_cache(&self.cache_dir)?))
    }

    /// The blueprint in one short line. Users tell environments apart by it.
    ///
    /// # Errors
    /// As [`Environment::identity_text`].
    pub fn in_short(&self) -> Result<String, Error> {
        Ok(in_short(&self.identity_text()?.unwrap_or_default()))
    }

    /// The paths and sizes of the `n` largest files.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn largest(&self, n: usize) -> Result<Vec<(String, u64)>, Error> {
        let mut files = Vec::new();
        for id in (0..self.index.len()).map(NodeId) {
            if let NodeKind::File { size, .. } = self.index.node(id).map_err(LibraryError::from)?.kind {
                files.push((size, id));
            }
        }
        files.sort_unstable_by(|a, b| b.cmp(a));
        files.truncate(n);
        Ok(files.into_iter().map(|(size, id)| (self.index.path_of(id), size)).collect())
    }

    /// The time of the last use of the environment on this machine, from the usage marks of the library.
    #[must_use]
    pub fn last_use(&self) -> Option<SystemTime> {
        let dir = self.location.hololib()?.join("used");
        let marks = || -> std::io::Result<Option<SystemTime>> {
            let mut last = None;
            for entry in std::fs::read_dir(&dir)? {
                let entry = entry?;
                let name = entry.file_name();
                let blueprint = name.to_str().and_then(|name| name.split_once('.')).map(|(hash, _)| hash);
                if blueprint == Some(self.index.info().blueprint.as_str()) {
                    last = last.max(Some(entry.metadata()?.modified()?));
                }
            }
            Ok(last)
        };
        marks().unwrap_or_else(|error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(path = %dir.display(), %error, "cannot read the usage marks of the library");
            }
            None
        })
    }

    fn identity_file(&self) -> Result<Option<(Digest, u64)>, Error> {
        let find = || -> Result<_, IndexError> {
            let Some(id) = self.index.lookup(NodeId(0), b"identity.yaml")? else { return Ok(None) };
            Ok(match self.index.node(id)?.kind {
                NodeKind::File { digest, size, .. } => Some((digest, size)),
                NodeKind::Dir { .. } | NodeKind::Symlink { .. } => None,
            })
        };
        Ok(find().map_err(LibraryError::from)?)
    }
}

/// The library and the catalog of a space.
///
/// # Errors
/// When there is no such space, or it has no library.
pub fn of_space(given: &OsStr, controller: &str, env: &Env) -> Result<(Location, CatalogName), Error> {
    let space = Survey::new(env)?.find(given, controller, 0)?;
    let record = SpaceRecord::read(&env.spaces_dir().join(&space.identity))?;
    let no_space = || Error::NoSpace {
        given: given.to_string_lossy().into_owned(),
        identity: Some(space.identity.clone()),
    };
    let basis = record.ok_or_else(no_space)?.basis;
    let location = Location::recorded(Path::new(&basis.library), &env.access())?;
    Ok((location, CatalogName { blueprint: basis.blueprint, platform: this_platform() }))
}

/// The first and the last dependencies of a blueprint, or the first lines of a text that has none.
fn in_short(text: &str) -> String {
    /// The number of characters of each part, if the whole is longer than both.
    const PART: usize = 40;
    let below = text.lines().skip_while(|line| line.trim_end() != "dependencies:").skip(1);
    let items = below.map_while(|line| line.trim_start().strip_prefix("- "));
    let mut parts: Vec<&str> = items.map(str::trim).filter(|item| *item != "pip:").collect();
    let separator = if parts.is_empty() {
        parts = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(6).collect();
        " "
    } else {
        ", "
    };
    let all: Vec<char> = parts.join(separator).chars().collect();
    match (all.first_chunk::<PART>(), all.last_chunk::<PART>()) {
        // What was added is most often at the end.
        (Some(first), Some(last)) if all.len() > 2 * PART => {
            first.iter().chain(&[' ', '.', '.', '.', ' ']).chain(last).collect()
        }
        _ => all.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_tell_environments_apart() {
        let text = "channels:\n- conda-forge\ndependencies:\n- python=3.11\n- pip=23.2\n- pip:\n  - numpy==1.26.4\nrccPostInstall:\n- x";
        assert_eq!(in_short(text), "python=3.11, pip=23.2, numpy==1.26.4");
        assert_eq!(in_short("packages: numpy\nother: x\n"), "packages: numpy other: x");
        assert_eq!(in_short(""), "");
        let long = format!("dependencies:\n- {}{}", "ä".repeat(100), "ö".repeat(40));
        assert_eq!(in_short(&long), format!("{} ... {}", "ä".repeat(40), "ö".repeat(40)));
    }
}
