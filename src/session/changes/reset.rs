//! Resets paths of a space to what the catalog has, mounted or not.
//!
//! The daemon resets a mounted space. An unmounted one is locked, and its namespace is opened without FUSE, so the same
//! code runs. All changes of an unmounted space are dropped in one step.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::namespace::Owner;
use crate::session::changes::Changed;
use crate::session::compose;
use crate::session::control::{Client, Request};
use crate::session::end::write_out;
use crate::session::error::{Error, Refused};
use crate::session::mount::answers::{ResetError, reset_in};
use crate::space::diff::Pristine;
use crate::space::record::Basis;
use crate::space::reset::{PlanError, Refusal};
use crate::space::run::read_run;
use crate::space::state::StateDir;

/// How long the daemon may take. A reset takes one rename for each path.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Resets paths, or with none the whole space. Returns those that were reset, or with `dry_run` would be.
///
/// # Errors
/// See [`Error`]. Each path is then as it was, or reset.
pub fn reset(space: &Changed, paths: &[PathBuf], dry_run: bool) -> Result<Vec<PathBuf>, Error> {
    let paths = paths.iter().map(|path| below(space, path)).collect::<Result<Vec<_>, _>>()?;
    match &space.mounted {
        Some(mountpoint) => live(space, mountpoint, &paths, dry_run),
        None => unmounted(space, &paths, dry_run),
    }
}

fn live(space: &Changed, mountpoint: &Path, paths: &[PathBuf], dry_run: bool) -> Result<Vec<PathBuf>, Error> {
    if read_run(&space.state_dir).is_some_and(|run| run.read_only) && !dry_run {
        return Err(Error::MountedReadOnly(mountpoint.to_owned()));
    }
    // A store to a map that is written back later would be a change after the reset.
    if !write_out(mountpoint, read_run(&space.state_dir).as_ref()) {
        tracing::debug!("the mount does not write back mapped files");
    }
    let paths = paths.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
    let answer = Client::connect(&space.state_dir)?.ask(&Request::Reset { paths, dry_run }, ANSWER_WITHIN)?;
    let done: Vec<Vec<u8>> = serde_json::from_value(answer)
        .map_err(|error| Error::Refused(Refused::NotUnderstood(error.to_string())))?;
    Ok(done.into_iter().map(|path| OsString::from_vec(path).into()).collect())
}

fn unmounted(space: &Changed, paths: &[PathBuf], dry_run: bool) -> Result<Vec<PathBuf>, Error> {
    let state = StateDir::open_locked(&space.state_dir)?;
    let Basis { library, blueprint, .. } = space.record.basis.clone();
    let source = space.source()?.ok_or(Error::CatalogGone { library, blueprint })?;
    let Pristine { uid, gid, dir_mode } = space.pristine()?;
    let owner = Owner { uid, gid, dir_mode };
    let namespace = compose::unmounted(&space.state_dir, &space.index, source, owner)?;
    let is_whole = paths.is_empty();
    let done =
        reset_in(&namespace, paths, dry_run || is_whole, &mut Vec::new()).map_err(|error| match error {
            ResetError::Plan(PlanError::Refused(refusal)) => Error::Refused(Refused::Reset(refusal)),
            ResetError::Plan(PlanError::Upper(source)) => Error::Changes { path: state.upper(), source },
            ResetError::Step { path, source } => Error::Upper { path, source },
        })?;
    if is_whole && !dry_run {
        drop(namespace);
        state.discard_changes()?;
        return Ok(done);
    }
    if !dry_run {
        // What was reported as done survives a loss of power.
        rustix::fs::syncfs(
            Arc::new(std::fs::File::open(state.upper()).map_err(Error::os(state.upper(), "open"))?).as_fd(),
        )
        .map_err(Error::os(state.upper(), "sync"))?;
    }
    Ok(done)
}

/// The path below the root of the space: as typed, or below the space's directory.
fn below(space: &Changed, path: &Path) -> Result<PathBuf, Error> {
    let place = space.record.basis.place();
    let inner = path.strip_prefix(&place).ok().or_else(|| {
        let mounted = space.mounted.as_ref()?;
        path.strip_prefix(mounted).ok()
    });
    let not_there = || Error::Refused(Refused::Reset(Refusal::NotThere(path.to_string_lossy().into_owned())));
    let mut out = PathBuf::new();
    for part in inner.unwrap_or(path).components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return Err(not_there()),
        }
    }
    Ok(out)
}
