//! Finds the environment that files describe in a library.
//!
//! The hash of rcc's text names it. If no catalog has this name, the texts of the catalogs are compared, since the hash of
//! an environment that another version of rcc recorded may differ. If none is the same, the user is told which ones are
//! near and what differs, or rcc builds the environment.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use super::choice::{Choice, Composed, Near};
use super::environment::Environment;
use super::error::Error;
use crate::library::LibraryError;
use crate::library::catalogs::{self, CatalogName, this_platform};
use crate::library::locate::Location;
use crate::library::name;
use crate::space::SpaceError;
use crate::space::home::Env;

/// How many of the nearest environments are named.
const NEAREST: usize = 3;

/// The controller and the space in which rcc builds.
const BUILDER: (&str, &str) = ("holofs", "build");

/// The blueprint under which the library has the environment. Builds it first if it is missing and the user asked for that.
///
/// # Errors
/// [`Error::NoEnvironment`], and when the library cannot be read.
pub(super) fn find(
    location: &Location,
    composed: &Composed,
    choice: &Choice,
    env: &Env,
) -> Result<String, Error> {
    if let Some(found) = look(location, composed, env)? {
        return Ok(found);
    }
    let mut notes = composed.notes.clone();
    if choice.build {
        build(home_of(location, env)?, choice, env)?;
        if let Some(found) = look(location, composed, env)? {
            return Ok(found);
        }
        notes.push("rcc built another one".to_owned());
    }
    Err(Error::NoEnvironment {
        blueprint: composed.blueprint.hash.clone(),
        library: location.path.clone(),
        notes,
        nearest: nearest(location, composed, env)?,
    })
}

/// The catalogs to export: those whose names begin with one of `names`, and that of the environment that files describe.
///
/// # Errors
/// When nothing fits one of them, and as [`Choice::compose`].
pub fn catalogs(
    location: &Location,
    names: &[String],
    choice: &Choice,
    env: &Env,
) -> Result<BTreeSet<CatalogName>, Error> {
    let all = catalogs::list(&*location.library)?;
    let mut chosen = BTreeSet::new();
    for given in names {
        let before = chosen.len();
        let fits = |name: &CatalogName| name.to_string().starts_with(given.as_str());
        chosen.extend(all.iter().map(|entry| entry.name.clone()).filter(fits));
        if chosen.len() == before && !chosen.iter().any(fits) {
            let candidates = all.iter().map(|entry| (entry.name.clone(), String::new())).collect();
            return Err(SpaceError::NoCatalog { why: format!("no catalog {given}"), candidates }.into());
        }
    }
    if let Some(composed) = choice.compose(env)? {
        let blueprint = find(location, &composed, choice, env)?;
        chosen.insert(CatalogName { blueprint, platform: this_platform() });
    }
    Ok(chosen)
}

/// The blueprint of the catalog with the same hash, or with the same text.
///
/// # Errors
/// When the library cannot be read.
pub fn look(location: &Location, composed: &Composed, env: &Env) -> Result<Option<String>, Error> {
    let blueprint = &composed.blueprint;
    let all = here(location)?;
    if all.iter().any(|catalog| catalog.blueprint == blueprint.hash) {
        return Ok(Some(blueprint.hash.clone()));
    }
    let same = all.into_iter().find(|catalog| text(location, catalog, env).as_ref() == Some(&blueprint.text));
    Ok(same.map(|catalog| catalog.blueprint))
}

/// The environments with the fewest differences.
fn nearest(location: &Location, composed: &Composed, env: &Env) -> Result<Vec<Near>, LibraryError> {
    let mut near = Vec::new();
    for catalog in here(location)? {
        let text = text(location, &catalog, env);
        if let Some(differences) = text.and_then(|text| composed.blueprint.differences(text.as_bytes())) {
            near.push(Near { catalog, differences });
        }
    }
    near.sort_by_key(|near| near.differences.missing.len() + near.differences.additional.len());
    near.truncate(NEAREST);
    Ok(near)
}

/// The catalogs for this platform.
fn here(location: &Location) -> Result<Vec<CatalogName>, LibraryError> {
    let platform = this_platform();
    let names = catalogs::list(&*location.library)?.into_iter().map(|entry| entry.name);
    Ok(names.filter(|name| name.platform == platform).collect())
}

/// The text of an environment. None when it cannot be read.
fn text(location: &Location, catalog: &CatalogName, env: &Env) -> Option<String> {
    let text = Environment::open(location, catalog, env).and_then(|found| found.identity_text());
    text.unwrap_or_else(|error| {
        tracing::debug!(%catalog, %error, "cannot read the text of the blueprint");
        None
    })
}

/// The home of rcc whose library this is.
fn home_of<'a>(location: &'a Location, env: &'a Env) -> Result<&'a Path, Error> {
    // A library in an archive or a store is nobody's.
    location.hololib().ok_or_else(|| Error::NotRccs(location.path.clone()))?;
    let is_it = |library: &Path| library.canonicalize().ok() == location.path.canonicalize().ok();
    let above = location.path.parent().filter(|home| is_it(&home.join("hololib")));
    if is_it(&env.hololib()) {
        return Ok(&env.robocorp_home);
    }
    above.ok_or_else(|| Error::NotRccs(location.path.clone()))
}

/// Lets rcc build the environment into the library of this home. rcc does so when it makes a space of it, so it makes one and
/// deletes it again. rcc gets the same files in the same directory, and so composes the same environment.
pub(super) fn build(home: &Path, choice: &Choice, env: &Env) -> Result<(), Error> {
    let (controller, space) = BUILDER;
    let rcc = || {
        let mut command = Command::new("rcc");
        command.arg("holotree").env("ROBOCORP_HOME", home).stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    let mut command = rcc();
    command.args(["variables", "--controller", controller, "--space", space]).args(&choice.conda);
    if let Some(robot) = &choice.robot {
        command.arg("--robot").arg(robot);
    }
    if choice.devdeps {
        command.arg("--devdeps");
    }
    tracing::info!(?command, "building");
    let status = command.status().map_err(Error::NoRcc)?;
    let identity = name::identity(env.home_bytes(), controller, space);
    match rcc().args(["delete", identity.as_str()]).stderr(Stdio::null()).status() {
        Ok(done) if done.success() => {}
        failed => tracing::warn!(%identity, ?failed, "rcc could not delete the space in which it built"),
    }
    if status.success() { Ok(()) } else { Err(Error::NotBuilt(status)) }
}
