//! Chooses the catalog and the space that the user means.
//!
//! This module reads the headers of catalogs and the records of earlier mounts. It writes nothing. Invariant: if several
//! catalogs fit, the result is an error that lists them, and never a guess.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::library::LibraryError;
use crate::library::catalog::header::read_header;
use crate::library::catalogs::{self, CatalogName, this_platform};
use crate::library::index::Index;
use crate::library::index::cache::open_known;
use crate::library::index::place;
use crate::library::locate::Location;
use crate::library::name::{self, Identity};
use crate::settings::absolute;
use crate::space::held::{Held, Kept};
use crate::space::home::Env;
use crate::space::path::SpacePath;
use crate::space::record::SpaceRecord;
use crate::space::{SpaceError, meta};
use crate::sys::lexically_clean;

/// The argument SPACE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SpaceArg {
    /// A mountpoint. It has a `/`.
    Path(PathBuf),
    /// The name of a space's directory.
    Identity(Identity),
    /// The name by which its user knows it.
    Name(String),
}

impl SpaceArg {
    /// The identity of an existing space. A name means an unmanaged space if there is no other of this name, and a path can
    /// be any directory on which a space was mounted.
    ///
    /// # Errors
    /// As [`SpaceArg::identity`].
    pub fn existing(&self, env: &Env, controller: &str) -> Result<Identity, SpaceError> {
        let identity = self.identity(env, controller);
        if identity.as_ref().is_ok_and(|identity| env.state_dir(identity).is_dir()) {
            return identity;
        }
        let other = match self {
            SpaceArg::Name(name) => name::unmanaged_identity(controller, name),
            SpaceArg::Path(path) => foreign_identity(path, env, controller),
            SpaceArg::Identity(identity) => identity.clone(),
        };
        if env.state_dir(&other).is_dir() { Ok(other) } else { identity }
    }

    /// The identity of a space on any directory.
    ///
    /// # Errors
    /// When the path is not that of a directory in another one.
    pub fn anywhere(&self, env: &Env, controller: &str) -> Result<Identity, SpaceError> {
        match self {
            // The name of the directory decides only if it can be the name of a space.
            SpaceArg::Path(path) if path.file_name().is_some() => Ok(foreign_identity(path, env, controller)),
            _ => self.identity(env, controller),
        }
    }

    /// Parses the argument.
    ///
    /// # Errors
    /// When a name is not UTF-8, which rcc requires, or empty.
    pub fn parse(given: &OsStr) -> Result<SpaceArg, SpaceError> {
        let bad = |source| SpaceError::Name { given: given.to_string_lossy().into_owned(), source };
        if given.is_empty() {
            return Err(SpaceError::Name { given: "SPACE".to_owned(), source: name::NameError::Empty });
        }
        if given.as_bytes().contains(&b'/') {
            let path = absolute(Path::new(given));
            let path = path.map_err(|error| bad(name::NameError::NoDirectory(error.to_string())))?;
            return Ok(SpaceArg::Path(path));
        }
        let text = given.to_str().ok_or_else(|| bad(name::NameError::NotUtf8))?;
        Ok(match Identity::parse(text) {
            Some(identity) => SpaceArg::Identity(identity),
            None => SpaceArg::Name(text.to_owned()),
        })
    }

    /// The directory to which the typed path leads if it is a link, as `mount --link` makes it. The directory itself, which a
    /// hanging daemon may serve, is not accessed.
    #[must_use]
    pub fn behind_link(self) -> SpaceArg {
        match self {
            SpaceArg::Path(path) => match std::fs::read_link(&path) {
                Ok(target) if target.is_absolute() => SpaceArg::Path(lexically_clean(&target)),
                // It is no link, or not one of ours.
                Ok(_) | Err(_) => SpaceArg::Path(path),
            },
            other => other,
        }
    }

    /// The name of the space's directory.
    ///
    /// # Errors
    /// When the last part of a path cannot be the name of a space's directory.
    pub fn identity(&self, env: &Env, controller: &str) -> Result<Identity, SpaceError> {
        match self {
            SpaceArg::Identity(identity) => Ok(identity.clone()),
            SpaceArg::Name(name) => Ok(name::identity(env.home_bytes(), controller, name)),
            SpaceArg::Path(path) => {
                let last = path.file_name().unwrap_or_default();
                Identity::from_name(last.as_bytes())
                    .map_err(|source| SpaceError::Name { given: path.display().to_string(), source })
            }
        }
    }
}

/// What the user typed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// SPACE: a path, an identity, or a name.
    pub space: &'a OsStr,
    /// The controller's plain name (`user`).
    pub controller: &'a str,
    /// `--blueprint`: the first digits of a hash.
    pub blueprint: Option<&'a str>,
    /// `--fresh`: ignore the changes of earlier mounts.
    pub fresh: bool,
    /// `--unmanaged`: a name means the unmanaged space of this name.
    pub unmanaged: bool,
    /// `--foreign`: what does not fit the typed path may stay as it is.
    pub foreign: bool,
    /// The name of the space at a typed path.
    pub called: Option<&'a str>,
}

/// What the user means.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The catalog.
    pub catalog: CatalogName,
    /// The catalog's index, if it is compiled already.
    pub index: Option<Arc<Index>>,
    /// The blueprint of what the space holds. It differs from the catalog's if rcc converted the space.
    pub holds: String,
    /// The space.
    pub space: SpacePath,
}

/// Chooses the catalog and the directory of a space. The catalog is the one with the typed blueprint, else the one that the
/// space has, else the only one for this platform.
///
/// # Errors
/// [`SpaceError::NoCatalog`] with the candidates, and the errors of a typed path.
pub fn select(library: &Location, wanted: &Wanted<'_>, env: &Env) -> Result<Selected, SpaceError> {
    let search = Search::new(library, wanted, env)?;
    let (catalog, holds) = search.choose()?;
    let Base { path: base, index, is_ours } = search.base_for(&catalog)?;
    let own = base.join(search.identity.as_str());
    let (label, controller) = search.called(&own);
    let (mountpoint, own) = match &search.given {
        SpaceArg::Path(path) if *path != own && !is_same_dir_of(path, &own) => (path.clone(), Some(own)),
        SpaceArg::Path(_) => (own, None),
        _ if is_ours => (own, None),
        _ => (env.robocorp_home.join("holotree").join(search.identity.as_str()), Some(own)),
    };
    let placed = own.is_some() && search.is_placed(&mountpoint)?;
    let Search { identity, .. } = search;
    tracing::debug!(%identity, blueprint = catalog.blueprint, placed, "selected");
    let space = SpacePath { identity, mountpoint, own, placed, label, controller };
    Ok(Selected { catalog, index, holds, space })
}

/// Chooses the catalog alone. The argument is four or more first digits of a blueprint in the library, or else a space.
///
/// # Errors
/// As [`select`].
pub fn select_environment(
    library: &Location,
    given: &OsStr,
    controller: &str,
    env: &Env,
) -> Result<CatalogName, SpaceError> {
    let prefix = given.to_str().map(str::to_lowercase).filter(|text| text.len() >= 4);
    let known = list(library)?;
    let prefix = prefix.filter(|prefix| known.iter().any(|catalog| catalog.blueprint.starts_with(prefix)));
    let fresh = prefix.is_some();
    let wanted = Wanted {
        // With a blueprint and `fresh`, the name of the space has no effect.
        space: if fresh { OsStr::new("any") } else { given },
        controller,
        blueprint: prefix.as_deref(),
        fresh,
        ..Wanted::default()
    };
    Search::new(library, &wanted, env)?.choose().map(|(catalog, _)| catalog)
}

fn list(library: &Location) -> Result<Vec<CatalogName>, SpaceError> {
    Ok(catalogs::list(&*library.library)?.into_iter().map(|entry| entry.name).collect())
}

/// The directories in which spaces are created without being named by the user: the holotree of the library, that of rcc's
/// home, and rcc's shared one. A hostile catalog can name any directory, and a mount creates files beside its space.
#[must_use]
pub fn own_bases(library: &Location, env: &Env) -> Vec<PathBuf> {
    let own = library.holotree().map(|own| absolute(&own).unwrap_or(own));
    own.into_iter().chain([env.robocorp_home.join("holotree"), env.shared_root.clone()]).collect()
}

/// The directory above a space.
struct Base {
    path: PathBuf,
    index: Option<Arc<Index>>,
    /// It is one of [`own_bases`].
    is_ours: bool,
}

/// What the user typed, and where it is looked up.
struct Search<'a> {
    library: &'a Location,
    wanted: &'a Wanted<'a>,
    env: &'a Env,
    given: SpaceArg,
    identity: Identity,
}

impl<'a> Search<'a> {
    fn new(library: &'a Location, wanted: &'a Wanted<'a>, env: &'a Env) -> Result<Self, SpaceError> {
        let given = SpaceArg::parse(wanted.space)?;
        let identity = match &given {
            SpaceArg::Name(name) if wanted.unmanaged => name::unmanaged_identity(wanted.controller, name),
            SpaceArg::Path(_) if wanted.foreign => match wanted.called {
                Some(name) => name::identity(env.home_bytes(), wanted.controller, name),
                None => given.anywhere(env, wanted.controller)?,
            },
            _ => given.anywhere(env, wanted.controller)?,
        };
        Ok(Self { library, wanted, env, given, identity })
    }

    /// The directory above a space of a catalog: the one that the catalog names. If it has several paths, the result is the
    /// one that the user typed or that is in [`own_bases`], since the catalog's could lead to another directory a moment later.
    fn base_for(&self, catalog: &CatalogName) -> Result<Base, SpaceError> {
        let (path, index) = self.base_of(catalog)?;
        let known = own_bases(self.library, self.env);
        let known = known.iter().find(|known| **known == path).or_else(|| {
            let above = match &self.given {
                SpaceArg::Path(given) => given.parent(),
                _ => None,
            };
            let same = |known: &&PathBuf| above.is_none() && is_same_dir(known, &path);
            known.iter().find(same)
        });
        if let Some(known) = known {
            return Ok(Base { path: known.clone(), index, is_ours: true });
        }
        let typed = match &self.given {
            SpaceArg::Path(given) => given.parent().filter(|above| is_same_dir(above, &path)),
            _ => None,
        };
        let path = typed.map_or(path, Path::to_owned);
        Ok(Base { path, index, is_ours: false })
    }

    /// Whether the files of the space name its mountpoint, which is not the directory that the catalog names.
    ///
    /// # Errors
    /// When an environment cannot be shown there.
    fn is_placed(&self, mountpoint: &Path) -> Result<bool, SpaceError> {
        if let Some(kept) = Kept::of(&self.env.state_dir(&self.identity))?.filter(|_| !self.wanted.fresh) {
            // An earlier version has mounted it, whose changes would not fit.
            if kept.record.basis.foreign.is_some() && !kept.record.basis.placed {
                return Ok(false);
            }
        }
        match place::unusable(mountpoint) {
            None => Ok(true),
            Some(_) if self.wanted.foreign => Ok(false),
            Some(why) => Err(SpaceError::Unusable { path: mountpoint.to_owned(), why }),
        }
    }

    /// The directory that the catalog names for its spaces, and the catalog's index if it is compiled. The `.info` file beside
    /// the catalog is not used, because other users may be able to write it.
    fn base_of(&self, catalog: &CatalogName) -> Result<(PathBuf, Option<Arc<Index>>), SpaceError> {
        let library = &*self.library.library;
        let bad = |why| SpaceError::BadCatalog { path: library.catalog_place(catalog).into(), why };
        let refused = |error: LibraryError| bad(error.to_string());
        let (path, index) = match open_known(library, catalog, &self.env.cache_dir().join("index")) {
            Some(index) => {
                let index = index.map_err(refused)?;
                (index.info().path.clone(), Some(Arc::new(index)))
            }
            None => {
                let (_, bytes) = library.catalog(catalog).map_err(refused)?;
                let header =
                    read_header(&*bytes, bytes.len() as u64).map_err(|error| bad(error.to_string()))?;
                (header.path, None)
            }
        };
        match Path::new(&path).parent() {
            Some(base) if absolute(base).is_ok_and(|clean| clean == base) => Ok((base.to_owned(), index)),
            _ => Err(bad(format!("its path {path:?} is not in an absolute directory"))),
        }
    }

    /// The space's name and controller: as typed, else as an earlier mount or rcc recorded them.
    fn called(&self, mountpoint: &Path) -> (String, String) {
        let controller = name::controller_identity(self.wanted.controller);
        match (&self.given, self.wanted.called) {
            (SpaceArg::Name(name), _) => return (name.clone(), controller),
            (_, Some(name)) => return (name.to_owned(), controller),
            _ => {}
        }
        if let Ok(Some(record)) = SpaceRecord::read(&self.env.state_dir(&self.identity)) {
            return (record.basis.space, record.basis.controller);
        }
        match meta::recorded(mountpoint) {
            Some(recorded) => (recorded.space, recorded.controller),
            None => (self.identity.to_string(), controller),
        }
    }

    /// The catalog, and the blueprint of what the space holds with it.
    fn choose(&self) -> Result<(CatalogName, String), SpaceError> {
        let Self { library, wanted, env, given, identity } = self;
        let platform = this_platform();
        // A store is asked for the one that was typed: a plain web server has no lists.
        let typed = wanted.blueprint.and_then(|typed| CatalogName::parse(&format!("{typed}v12.{platform}")));
        let catalogs = match typed.filter(|typed| library.library.has_catalog(typed) == Some(true)) {
            Some(typed) => vec![typed],
            None => list(library)?,
        };
        let here: Vec<&CatalogName> = catalogs.iter().filter(|c| c.platform == platform).collect();
        let unchanged = |catalog: &CatalogName| Ok((catalog.clone(), catalog.blueprint.clone()));
        let find = |blueprint: &str| here.iter().copied().find(|c| c.blueprint == blueprint);
        let dir = env.state_dir(identity);
        // Report a damaged record before a catalog is chosen that may not fit the changes.
        let kept = if wanted.fresh { None } else { Kept::of(&dir)? };
        let kept = kept.filter(|kept| kept.held != Held::Deleted);
        let with_changes = |kept: &Kept| {
            let blueprint = &kept.record.basis.blueprint;
            let catalog = find(blueprint).ok_or_else(|| {
                let why = format!(
                    "the space's changes belong to blueprint {blueprint}, which is not in this library"
                );
                no_catalog(&why, &here)
            })?;
            Ok((catalog.clone(), kept.blueprint().to_owned()))
        };
        if let Some(prefix) = wanted.blueprint {
            let prefix = prefix.to_lowercase();
            let fits: Vec<&CatalogName> =
                here.iter().copied().filter(|c| c.blueprint.starts_with(&prefix)).collect();
            return match (fits.as_slice(), prefix.is_empty()) {
                (_, true) => Err(no_catalog("the typed blueprint is empty", &here)),
                // A space that rcc converted to this blueprint is kept as changes of another catalog.
                ([one], _) => match kept.filter(|kept| kept.blueprint() == one.blueprint) {
                    Some(kept) => with_changes(&kept),
                    None => unchanged(one),
                },
                ([], _) if catalogs.iter().any(|c| c.blueprint.starts_with(&prefix)) => {
                    Err(no_catalog(&format!("blueprint {prefix} is not for {platform}"), &here))
                }
                ([], _) => Err(no_catalog(&format!("no catalog of blueprint {prefix}"), &here)),
                (several, _) => Err(no_catalog(&format!("several blueprints begin with {prefix}"), several)),
            };
        }
        // In the order of reliability: the changes of earlier mounts, rcc's files beside the space, the record of an earlier
        // mount without changes.
        if let Some(kept) = kept {
            return with_changes(&kept);
        }
        let mut bases = own_bases(library, env);
        if let SpaceArg::Path(given) = given {
            bases.extend(given.parent().map(Path::to_owned));
        }
        for base in bases {
            let found = meta::recorded(&base.join(identity.as_str())).and_then(|r| find(&r.blueprint));
            if let Some(found) = found {
                return unchanged(found);
            }
        }
        let earlier = SpaceRecord::read(&dir).ok().flatten();
        if let Some(found) = earlier.and_then(|record| find(&record.basis.blueprint)) {
            return unchanged(found);
        }
        match here.as_slice() {
            [one] => unchanged(one),
            [] if catalogs.is_empty() => Err(no_catalog("the library has no catalogs", &here)),
            [] => {
                let others: Vec<&CatalogName> = catalogs.iter().collect();
                Err(no_catalog(&format!("the library has no catalog for {platform}"), &others))
            }
            several => Err(no_catalog("the library has several catalogs", several)),
        }
    }
}

fn no_catalog(why: &str, candidates: &[&CatalogName]) -> SpaceError {
    let candidates = candidates.iter().map(|catalog| ((*catalog).clone(), String::new())).collect();
    SpaceError::NoCatalog { why: why.to_owned(), candidates }
}

/// The identity of a space on any directory: the name of the directory, if it can be one, else a name that is made of the
/// path.
fn foreign_identity(path: &Path, env: &Env, controller: &str) -> Identity {
    let name = path.file_name().unwrap_or_default();
    Identity::from_name(name.as_bytes())
        .unwrap_or_else(|_| name::identity(env.home_bytes(), controller, &path.to_string_lossy()))
}

/// Whether two paths end in the same name in the same directory.
fn is_same_dir_of(a: &Path, b: &Path) -> bool {
    match (a.parent(), b.parent()) {
        (Some(above_a), Some(above_b)) => a.file_name() == b.file_name() && is_same_dir(above_a, above_b),
        _ => false,
    }
}

/// Whether two paths lead to the same directory.
fn is_same_dir(a: &Path, b: &Path) -> bool {
    if a == b {
        return true;
    }
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
