//! Deletes spaces: unmounts them, and removes them from the disk.
//!
//! Nothing is deleted before all names were found. A space that is in use is not deleted.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::end::{How, Unmounting};
use super::error::Error;
use super::spaces::{Space, Survey};
use crate::library::name::Identity;
use crate::space::SpaceError;
use crate::space::home::Env;
use crate::space::meta::beside;
use crate::space::remove::Removal;

/// The shortest part of an identity that names spaces. A shorter one fits many.
const SHORTEST: usize = 4;

/// Which spaces are meant.
#[derive(Debug, Default)]
pub struct Meant {
    /// Names, identities, paths, or parts of identities.
    pub given: Vec<OsString>,
    /// Names only.
    pub names: Vec<OsString>,
    /// Only those that were not used for so many days; all of them if nothing is named.
    pub unused: Option<u64>,
}

/// A deleted space, with the keys of `holofs delete --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Deleted {
    /// The name of its directory.
    pub id: String,
    /// Its directory.
    pub path: PathBuf,
    /// Whether the directory is gone. It stays if it holds files that are not a space's.
    pub removed: bool,
}

impl Meant {
    /// The spaces, sorted, each once.
    ///
    /// # Errors
    /// [`Error::NoSpace`] for the first name that fits none.
    pub fn find(&self, env: &Env, controller: &str) -> Result<Vec<Space>, Error> {
        let survey = Survey::new(env)?;
        let mut found = BTreeMap::new();
        let mut add = |space: Space| found.insert(space.identity.clone(), space);
        for name in &self.names {
            add(survey.find(name, controller, 0)?);
        }
        for given in &self.given {
            match survey.find(given, controller, 0) {
                Ok(space) => {
                    add(space);
                }
                Err(error @ (Error::NoSpace { .. } | Error::Space(SpaceError::Name { .. }))) => {
                    let mut fitting = partial(given, &survey)?.peekable();
                    if fitting.peek().is_none() {
                        return Err(error);
                    }
                    fitting.for_each(|space| {
                        add(space);
                    });
                }
                Err(error) => return Err(error),
            }
        }
        let is_all = self.names.is_empty() && self.given.is_empty();
        if is_all && self.unused.is_some() {
            survey.all(0)?.into_iter().for_each(|space| {
                add(space);
            });
        }
        let is_unused = |space: &Space| match self.unused {
            Some(days) => !space.is_mounted && idle_days(space).is_some_and(|idle| idle >= days),
            None => true,
        };
        Ok(found.into_values().filter(is_unused).collect())
    }
}

/// The spaces whose identities contain a text, as rcc finds them.
fn partial(given: &OsStr, survey: &Survey<'_>) -> Result<impl Iterator<Item = Space>, Error> {
    let part = given.to_str().filter(|part| part.len() >= SHORTEST).map(str::to_owned);
    let all = if part.is_some() { survey.all(0)? } else { Vec::new() };
    Ok(all
        .into_iter()
        .filter(move |space| part.as_ref().is_some_and(|part| space.identity.contains(part.as_str()))))
}

/// The number of whole days since the space was last used. None if that is not known.
fn idle_days(space: &Space) -> Option<u64> {
    let last = match space.usage {
        Some((_, last)) => last,
        None => std::fs::symlink_metadata(beside(&space.path, ".meta")).ok()?.modified().ok()?,
    };
    Some(SystemTime::now().duration_since(last).unwrap_or_default().as_secs() / 86_400)
}

/// Deletes a space. Calls `each` after the removal of each entry, to show progress.
///
/// # Errors
/// When processes use it, it belongs to another user, or it cannot be removed.
pub fn delete(
    space: &Space,
    env: &Env,
    controller: &str,
    wait: Duration,
    each: &dyn Fn(),
) -> Result<Deleted, Error> {
    let identity = Identity::from_name(space.identity.as_bytes())
        .map_err(|source| SpaceError::Name { given: space.identity.clone(), source })?;
    let state_dir = env.state_dir(&identity);
    // What has no state here is no mount of this home. The removal refuses mounts.
    if state_dir.is_dir() {
        let how = How { lazy: false, force: false, timeout: wait };
        Unmounting::new(env, controller, how, false)?.one(space.path.as_os_str())?;
    }
    let removal =
        Removal { identity: &identity, place: &space.path, state_dir: &state_dir, lock_timeout: wait, each };
    let removed = removal.run()?;
    Ok(Deleted { id: space.identity.clone(), path: space.path.clone(), removed })
}
