//! Which catalog and which directory are meant by what was typed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::document::{read_header, read_info};
use super::home::{Env, absolute};
use super::name::{self, Identity};
use super::plan::SpacePath;
use super::state::read_state;
use super::{Candidate, SpaceError, meta};
use crate::library::catalogs::{self, CatalogFile, this_platform};
use crate::library::locate::Location;

/// What was typed.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// SPACE: a path when it holds a slash, an identity, or a name.
    pub space: &'a OsStr,
    /// The controller's plain name (`user`).
    pub controller: &'a str,
    /// `--blueprint`: the beginning of a hash.
    pub blueprint: Option<&'a str>,
}

/// What is meant.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The catalog.
    pub catalog: CatalogFile,
    /// The space.
    pub space: SpacePath,
}

/// Chooses catalog and directory: the blueprint asked for, else the one that the space has, else the only one for
/// this platform.
///
/// # Errors
/// `NoCatalog` with the candidates, and `BaseMismatch` or `Name` for a path that does not fit.
pub fn select(library: &Location, wanted: &Wanted<'_>, env: &Env) -> Result<Selected, SpaceError> {
    let platform = this_platform();
    let dir = library.hololib.join("catalog");
    let all = catalogs::list(&library.hololib)
        .map_err(|error| SpaceError::Io { path: dir, source: std::io::Error::other(error) })?;
    let here: Vec<&CatalogFile> = all.iter().filter(|catalog| catalog.platform == platform).collect();
    let identity = identity(wanted, env)?;
    let catalog = match wanted.blueprint {
        Some(prefix) => only(
            here.iter().copied().filter(|catalog| catalog.blueprint.starts_with(prefix)),
            &here,
            &format!("no blueprint of this library begins with {prefix:?}"),
            &format!("several blueprints begin with {prefix:?}"),
        )?,
        None => match recorded(wanted, &identity, &here, env)? {
            Some(catalog) => catalog,
            None => only(
                here.iter().copied(),
                &here,
                &format!("the library has no environment for {platform}"),
                "the library has several environments, and none was chosen",
            )?,
        },
    };
    let header = read_catalog_header(catalog)?;
    let base = header.base().map(Path::to_owned).unwrap_or_default();
    let space = place(wanted, identity, &base, catalog, env)?;
    Ok(Selected { catalog: catalog.clone(), space })
}

/// Where the catalog says it lives. The `.info` beside it is quicker to read; a damaged one is no matter.
fn read_catalog_header(catalog: &CatalogFile) -> Result<super::document::Header, SpaceError> {
    let mut info = catalog.path.clone().into_os_string();
    info.push(".info");
    match read_info(Path::new(&info)) {
        Ok(header) if header.base().is_some() && header.blueprint == catalog.blueprint => Ok(header),
        _ => read_header(&catalog.path),
    }
}

fn only<'a>(
    found: impl Iterator<Item = &'a CatalogFile>,
    all: &[&CatalogFile],
    none: &str,
    several: &str,
) -> Result<&'a CatalogFile, SpaceError> {
    let found: Vec<&CatalogFile> = found.collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(no_catalog(none, all)),
        more => Err(no_catalog(several, more)),
    }
}

fn no_catalog(why: &str, candidates: &[&CatalogFile]) -> SpaceError {
    let candidate = |catalog: &&CatalogFile| Candidate {
        blueprint: catalog.blueprint.clone(),
        platform: catalog.platform.clone(),
    };
    SpaceError::NoCatalog { why: why.to_owned(), candidates: candidates.iter().map(candidate).collect() }
}

/// The catalog that the space has now: by holofs's own record, or by rcc's.
fn recorded<'a>(
    wanted: &Wanted<'_>,
    identity: &Identity,
    here: &[&'a CatalogFile],
    env: &Env,
) -> Result<Option<&'a CatalogFile>, SpaceError> {
    let state = read_state(&env.state_dir(identity))?;
    let mut known: Vec<String> = state.map(|state| state.content.blueprint).into_iter().collect();
    for mountpoint in possible_mountpoints(wanted, identity, here)? {
        known.extend(meta::recorded(&mountpoint).map(|header| header.blueprint));
    }
    Ok(known
        .iter()
        .find_map(|blueprint| here.iter().copied().find(|catalog| catalog.blueprint == *blueprint)))
}

fn possible_mountpoints(
    wanted: &Wanted<'_>,
    identity: &Identity,
    here: &[&CatalogFile],
) -> Result<Vec<PathBuf>, SpaceError> {
    if let Some(path) = as_path(wanted.space)? {
        return Ok(vec![path]);
    }
    let mut bases: Vec<PathBuf> = here
        .iter()
        .filter_map(|catalog| read_catalog_header(catalog).ok()?.base().map(Path::to_owned))
        .collect();
    bases.sort();
    bases.dedup();
    Ok(bases.into_iter().map(|base| base.join(identity.as_str())).collect())
}

/// The path, when SPACE is one.
fn as_path(space: &OsStr) -> Result<Option<PathBuf>, SpaceError> {
    if !space.as_bytes().contains(&b'/') {
        return Ok(None);
    }
    absolute(Path::new(space))
        .map(Some)
        .map_err(|error| SpaceError::Io { path: space.into(), source: std::io::Error::other(error) })
}

fn identity(wanted: &Wanted<'_>, env: &Env) -> Result<Identity, SpaceError> {
    if let Some(path) = as_path(wanted.space)? {
        let name = path.file_name().unwrap_or_default();
        return Identity::from_name(name.as_bytes())
            .map_err(|source| SpaceError::Name { given: path.display().to_string(), source });
    }
    let text = wanted.space.to_string_lossy();
    Ok(Identity::parse(&text).unwrap_or_else(|| name::identity(env.home_bytes(), wanted.controller, &text)))
}

fn place(
    wanted: &Wanted<'_>,
    identity: Identity,
    base: &Path,
    catalog: &CatalogFile,
    env: &Env,
) -> Result<SpacePath, SpaceError> {
    let mountpoint = base.join(identity.as_str());
    if let Some(given) = as_path(wanted.space)?
        && !same_directory(given.parent().unwrap_or(Path::new("/")), base)
    {
        return Err(SpaceError::BaseMismatch { given, base: base.to_owned() });
    }
    // A space that is called by its path or identity keeps the name it was given first.
    let named = !wanted.space.as_bytes().contains(&b'/')
        && Identity::parse(&wanted.space.to_string_lossy()).is_none();
    let kept =
        read_state(&env.state_dir(&identity))?.map(|state| (state.content.space, state.content.controller));
    let kept = kept.or_else(|| meta::recorded(&mountpoint).map(|header| (header.space, header.controller)));
    let (label, controller) = match kept.filter(|_| !named) {
        Some(kept) => kept,
        None => {
            let label =
                if named { wanted.space.to_string_lossy().into_owned() } else { identity.to_string() };
            (label, name::controller_identity(wanted.controller))
        }
    };
    tracing::debug!(%identity, blueprint = catalog.blueprint, "selected");
    Ok(SpacePath { identity, mountpoint, label, controller })
}

/// Whether two paths are one directory: by text, or by what they lead to where both exist.
fn same_directory(one: &Path, two: &Path) -> bool {
    one == two || matches!((one.canonicalize(), two.canonicalize()), (Ok(one), Ok(two)) if one == two)
}
