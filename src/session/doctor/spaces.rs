//! The library, the environment of a robot, the spaces, and the directories that they lie in.

use std::path::{Path, PathBuf};

use super::report::{Report, Status, ask};
use super::shown;
use crate::library::catalogs;
use crate::library::locate::locate_here;
use crate::session::choice::Choice;
use crate::session::spaces::{SpaceState, Survey};
use crate::session::wanted;
use crate::space::home::Env;
use crate::space::run::Process;
use crate::sys::process::{self, Condition};

/// Finds rcc's library and the environment of a robot in it. Returns the library.
pub(super) fn library(report: &mut Report, robot: Option<&Path>, env: &Env) -> Option<PathBuf> {
    let kind = "library";
    type Found = Result<(PathBuf, usize), String>;
    let hololib = env.hololib();
    let found = ask(|| -> Found {
        let location = locate_here("auto".as_ref(), &hololib).map_err(|error| crate::sys::plain(&error))?;
        let catalogs = catalogs::list(&*location.library).map_err(|error| crate::sys::plain(&error))?;
        Ok((location.path, catalogs.len()))
    });
    let found = match found {
        Ok(Ok((path, catalogs))) => {
            report.detail("library", path.display());
            report.ok(kind, format!("{} with {catalogs} environments", shown(&path)));
            Some(path)
        }
        Ok(Err(why)) => {
            report.warn(
                kind,
                why,
                "build an environment with rcc, or `holofs record`, or name another library",
            );
            None
        }
        Err(why) => {
            report.fail(kind, format!("{}: {why}", shown(&hololib)), "look at this disk or server");
            None
        }
    };
    if let Some(robot) = robot {
        environment(report, robot, &hololib, env);
    }
    found
}

fn environment(report: &mut Report, robot: &Path, hololib: &Path, env: &Env) {
    let kind = "environment";
    let choice = Choice { robot: Some(robot.to_owned()), ..Choice::default() };
    let found = ask(|| -> Result<(String, bool), String> {
        let composed = choice.compose(env).map_err(|error| crate::sys::plain(&error))?;
        let Some(composed) = composed else { return Err("it names no environment".to_owned()) };
        let hash = composed.blueprint.hash.clone();
        let location = locate_here("auto".as_ref(), hololib);
        let has =
            location.is_ok_and(|at| wanted::look(&at, &composed, env).is_ok_and(|found| found.is_some()));
        Ok((hash, has))
    });
    match found.and_then(|found| found) {
        Ok((hash, true)) => {
            report.ok(kind, format!("the library has {hash}, the environment of {}", shown(robot)))
        }
        Ok((hash, false)) => {
            let message = format!("the library does not have {hash}, the environment of {}", shown(robot));
            report.warn(kind, message, "`holofs mount --build`, with which rcc builds it");
        }
        Err(why) => report.warn(kind, why, "correct the robot.yaml"),
    }
}

/// Examines the directories of holofs, the shared holotree, and the mounts.
pub(super) fn examine(report: &mut Report, env: &Env) {
    own_dirs(report, env);
    shared(report, env);
    mounts(report, env);
}

fn own_dirs(report: &mut Report, env: &Env) {
    let kind = "holofs-home";
    let checked = ask(|| env.check_own_dirs().map_err(|error| crate::sys::plain(&error)));
    match checked.and_then(|checked| checked) {
        Ok(()) => report.ok(kind, format!("{} is private", shown(&env.holofs_home))),
        Err(why) => {
            report.fail(kind, why, "a directory of your own that nobody else may write to, by HOLOFS_HOME")
        }
    }
}

fn shared(report: &mut Report, env: &Env) {
    let kind = "shared";
    if !env.is_shared() {
        report.detail("holotree-shared", false);
        report.ok(kind, "private holotree");
        return;
    }
    report.detail("holotree-shared", true);
    let root = &env.shared_root;
    let writable =
        ask(|| crate::sys::probe::place(root).is_ok_and(|place| place.is_writable && place.path == *root));
    match writable {
        Ok(true) => report.ok(kind, format!("shared holotree {}", shown(root))),
        Ok(false) => {
            let message = format!("shared holotree {}: you may not create spaces there", shown(root));
            report.warn(kind, message, "`rcc holotree shared --enable` as root, or a mountpoint that exists");
        }
        Err(why) => report.fail(kind, format!("{}: {why}", shown(root)), "look at this disk or server"),
    }
}

fn mounts(report: &mut Report, env: &Env) {
    let kind = "mounts";
    type Row = (String, String, Status);
    let found = ask(|| -> Result<Vec<Row>, String> {
        let survey = Survey::new(env).map_err(|error| crate::sys::plain(&error))?;
        let all = survey.all(0).map_err(|error| crate::sys::plain(&error))?;
        let row = |space: crate::session::spaces::Space| {
            let is_stopped = |process: &Process| process::condition(process.pid) == Condition::Stopped;
            let stopped = space.run.as_ref().and_then(|run| run.processes().find(is_stopped));
            let name = space.identity;
            match (space.state, stopped) {
                (SpaceState::Stale, _) => (
                    name,
                    "its daemon has died; mount it again, or `holofs unmount`".to_owned(),
                    Status::Warning,
                ),
                (SpaceState::Moved, _) => (
                    name,
                    "it was moved with a directory above it; `holofs unmount`".to_owned(),
                    Status::Warning,
                ),
                (SpaceState::Damaged, _) => {
                    (name, "its record is damaged; `holofs status` tells more".to_owned(), Status::Warning)
                }
                (_, Some(stopped)) => {
                    (name, format!("its daemon is stopped; kill -CONT {}", stopped.pid), Status::Warning)
                }
                (SpaceState::Mounted, None) => (name, String::new(), Status::Ok),
                _ => (String::new(), String::new(), Status::Ok),
            }
        };
        Ok(all.into_iter().map(row).filter(|(name, ..)| !name.is_empty()).collect())
    });
    match found.and_then(|found| found) {
        Ok(rows) => {
            let live = rows.iter().filter(|(.., status)| *status == Status::Ok).count();
            for (name, what, _) in rows.iter().filter(|(.., status)| *status != Status::Ok) {
                let (message, fix) = what.split_once("; ").unwrap_or((what, "`holofs status`"));
                report.warn(kind, format!("{name}: {message}"), fix);
            }
            if live == rows.len() {
                report.ok(kind, format!("{live} mounted, none stale"));
            }
        }
        Err(why) => report.warn(kind, format!("the spaces cannot be examined: {why}"), "look at this disk"),
    }
}
