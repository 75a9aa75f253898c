//! What the mounts of a space have done: asked from the daemon of a live mount, or read from the space's state directory.
//!
//! A daemon saves the totals every ten minutes, if they changed, and at the end of the mount. So kill -9 loses what was
//! counted since the last save, and nothing of earlier mounts.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use super::control::{Client, Request};
use super::environment::Environment;
use super::error::{Error, Refused};
use super::spaces::Space;
use crate::fs::Fs;
use crate::library::catalogs;
use crate::library::locate::Location;
use crate::metrics::totals::Totals;
use crate::space::home::Env;
use crate::space::statistics;
use crate::sys::guarded::{Dir, Trust};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Saves the totals of a live mount, unless they are those that were saved last.
pub(super) fn save(fs: &Fs, state_dir: &Path, last: &mut Option<Totals>) {
    let totals = fs.metrics().totals();
    if last.as_ref() == Some(&totals) {
        return;
    }
    match statistics::write(state_dir, &totals) {
        Ok(()) => *last = Some(totals),
        Err(error) => tracing::warn!(%error, "the statistics of this mount are not saved"),
    }
}

/// The totals of a space. Those of its live mount if it answers.
///
/// # Errors
/// When the live mount refuses to tell.
pub fn of(space: &Space, env: &Env) -> Result<Totals, Error> {
    let state_dir = env.spaces_dir().join(&space.identity);
    if space.is_mounted && space.run.is_some() {
        match ask(&state_dir, &Request::Statistics) {
            Ok(totals) => return Ok(totals),
            Err(error @ Error::Refused(Refused::Peer)) => return Err(error),
            Err(error) => tracing::warn!(%error, "showing the statistics that were saved last"),
        }
    }
    Ok(statistics::read(&state_dir).unwrap_or_else(|| {
        of_space(space, env).unwrap_or_else(|error| {
            tracing::debug!(%error, "the environment of the space cannot be counted");
            Totals::default()
        })
    }))
}

/// The totals of a space that was never mounted.
fn of_space(space: &Space, env: &Env) -> Result<Totals, Error> {
    let Some(library) = &space.library else { return Ok(Totals::default()) };
    let location = Location::recorded(Path::new(library), &env.access())?;
    let all = catalogs::list(&*location.library)?;
    let Some(found) = all.into_iter().find(|catalog| catalog.name.blueprint == space.blueprint) else {
        return Ok(Totals::default());
    };
    Ok(statistics::of_index(&Environment::open(&location, &found.name, env)?.index))
}

fn ask(state_dir: &Path, request: &Request) -> Result<Totals, Error> {
    let answer = Client::connect(state_dir)?.ask(request, PATIENCE)?;
    serde_json::from_value(answer).map_err(|error| Error::Refused(Refused::NotUnderstood(error.to_string())))
}

/// Starts the statistics of a space anew.
///
/// # Errors
/// When its live mount does not answer, or the saved ones cannot be removed.
pub fn reset(space: &Space, env: &Env) -> Result<(), Error> {
    let state_dir = env.spaces_dir().join(&space.identity);
    if space.is_mounted && space.run.is_some() {
        // The daemon saves the new ones, so that the old ones do not come back after kill -9.
        Client::connect(&state_dir)?.ask(&Request::ResetStatistics, PATIENCE)?;
        return Ok(());
    }
    match Dir::open(&state_dir, Trust::Owned) {
        Err(error) if error.is_not_found() => Ok(()),
        found => {
            let removed = found.and_then(|dir| dir.remove_file(OsStr::new(statistics::FILE)));
            Ok(removed.map_err(crate::space::SpaceError::from)?)
        }
    }
}

/// The answer of a daemon.
pub(super) fn answer(fs: &Fs) -> Result<serde_json::Value, Refused> {
    serde_json::to_value(fs.metrics().totals()).map_err(|error| Refused::Failed(error.to_string()))
}
