//! What the daemon of a mount does when a command asks it through the control channel.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use serde_json::Value;

use super::passing::Passing;
use super::upgrade;
use crate::fs::Fs;
use crate::namespace::revert::Stale;
use crate::namespace::{self, Namespace, Owner};
use crate::session::control::{Line, Request};
use crate::session::error::Refused;
use crate::session::statistics;
use crate::space::diff::{Pristine, Scan};
use crate::space::reset::{self, PlanError, Step};

/// How long a request waits for changes that are in progress.
const CHANGES_END_WITHIN: Duration = Duration::from_secs(5);

/// Answers one request.
pub(in crate::session) fn answer(
    fs: &Fs,
    state_dir: &Path,
    notifier: &Notifier,
    passing: Option<&Passing>,
    request: Request,
    line: &mut Line,
) -> Result<Value, Refused> {
    match request {
        Request::Ping => Ok(Value::from(std::process::id())),
        Request::Statistics => statistics::answer(fs),
        Request::ResetStatistics => {
            fs.metrics().reset();
            statistics::save(fs, state_dir, &mut None);
            Ok(Value::Null)
        }
        Request::Freeze { ms } => {
            let _held = fs.namespace().handoff().hold_changes();
            let frozen = fs.namespace().freeze(CHANGES_END_WITHIN).ok_or(Refused::Changing)?;
            line.say(Ok(Value::Null)).map_err(|error| Refused::Failed(error.to_string()))?;
            let held = line.wait(Duration::from_millis(ms));
            drop(frozen);
            Ok(Value::from(held))
        }
        Request::Upgrade { program } => {
            let program = PathBuf::from(OsString::from_vec(program));
            let _frozen = upgrade::prepare(fs.namespace(), passing, &program)?;
            statistics::save(fs, state_dir, &mut None);
            line.say(Ok(Value::Null)).map_err(|error| Refused::Failed(error.to_string()))?;
            tracing::info!(program = %program.display(), "the mount goes on with another program");
            upgrade::leave()
        }
        Request::Reset { paths, dry_run } => {
            let paths: Vec<PathBuf> = paths.into_iter().map(|path| OsString::from_vec(path).into()).collect();
            let done = reset(fs, notifier, &paths, dry_run)?;
            let done: Vec<&[u8]> = done.iter().map(|path| path.as_os_str().as_bytes()).collect();
            serde_json::to_value(done).map_err(|error| Refused::Failed(error.to_string()))
        }
    }
}

/// Resets paths of a mounted space, and has the kernel look them up again.
fn reset(fs: &Fs, notifier: &Notifier, paths: &[PathBuf], dry_run: bool) -> Result<Vec<PathBuf>, Refused> {
    let _held = fs.namespace().handoff().hold_changes();
    let frozen = fs.namespace().freeze(CHANGES_END_WITHIN).ok_or(Refused::Changing)?;
    let mut stale = Vec::new();
    let done = reset_in(fs.namespace(), paths, dry_run, &mut stale);
    // The kernel waits for requests of the directories in question, which may wait for the end of this.
    drop(frozen);
    for stale in stale {
        let told = match &stale {
            Stale::Name(dir, name) => {
                let told = notifier.inval_entry(INodeNo(dir.0), OsStr::from_bytes(name.to_bytes()));
                // The kernel also keeps listings, and drops them by itself only if it knows the name.
                told.and(notifier.inval_inode(INodeNo(dir.0), 0, 0))
            }
            Stale::Attributes(ino) => notifier.inval_inode(INodeNo(ino.0), -1, 0),
        };
        if let Err(error) = told {
            tracing::debug!(?stale, %error, "the kernel does not know it");
        }
    }
    done.map_err(|error| match error {
        ResetError::Plan(PlanError::Refused(refusal)) => Refused::Reset(refusal),
        error => Refused::Failed(error.to_string()),
    })
}

/// Why a reset did not reach its end. Each path is as it was, or reset.
#[derive(Debug, thiserror::Error)]
pub(in crate::session) enum ResetError {
    #[error(transparent)]
    Plan(PlanError),
    #[error("{path}: {source}")]
    Step { path: PathBuf, source: namespace::types::Error },
}

/// Resets paths of a namespace that nobody changes, and returns those that were reset. Adds to `stale` what the kernel has
/// to ask for again, also after an error.
pub(in crate::session) fn reset_in(
    namespace: &Namespace,
    paths: &[PathBuf],
    dry_run: bool,
    stale: &mut Vec<Stale>,
) -> Result<Vec<PathBuf>, ResetError> {
    let Owner { uid, gid, dir_mode } = namespace.owner();
    let pristine = Pristine { uid, gid, dir_mode };
    let steps = Scan::new(namespace.upper_root(), namespace.index(), pristine, &|_, _| false)
        .map_err(PlanError::from)
        .and_then(|scan| reset::plan(&scan, paths))
        .map_err(ResetError::Plan)?;
    for step in steps.iter().filter(|_| !dry_run) {
        let done = match step {
            Step::Entry(path) => namespace.revert(path),
            Step::Dir { path, .. } => namespace.revert_dir(path).map(Some),
        };
        let failed = |source| ResetError::Step { path: step.path().to_owned(), source };
        stale.extend(done.map_err(failed)?);
    }
    Ok(steps.iter().filter(|step| step.is_shown()).map(|step| step.path().to_owned()).collect())
}
