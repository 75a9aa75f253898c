//! Examines whether holofs works on this machine, and what is slower or missing here: `holofs doctor`.
//!
//! A reflink, a FUSE mount and passthrough are tried, because names and versions do not tell whether they work. What holofs
//! would do instead is listed as a fallback.
//!
//! Invariants: nothing is written except temporary files without a name. What may wait for a disk, for a mount or for another
//! program runs in a process that is left behind after a time limit.

mod disks;
mod kernel;
mod report;
mod spaces;
mod tools;

use std::path::{Path, PathBuf};

use super::error::Error;
use crate::settings::Settings;
use crate::space::home::Env;
use crate::sys::confinement::Confinement;
pub use report::{Answer, Check, Fallback, PATIENCE, PathReport, Report, Status};

/// What to examine.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// A directory whose filesystem is examined too.
    pub path: Option<PathBuf>,
    /// A robot whose environment is looked for.
    pub robot: Option<PathBuf>,
}

/// Examines this machine.
///
/// # Errors
/// [`Error::NotProbed`] when the directory of the subject is missing, or this user may not write to it.
pub fn examine(subject: &Subject, settings: &Settings, env: &Env) -> Result<Report, Error> {
    let mut report = Report::default();
    let confinement = Confinement::read();
    report.detail("holofs", env!("CARGO_PKG_VERSION"));
    report.detail("executable", std::env::current_exe().unwrap_or_default().display());
    report.detail("uid:gid", format_args!("{}:{}", uid(), rustix::process::getegid().as_raw()));
    report.detail("home", env.robocorp_home.display());
    report.detail("holofs-home", env.holofs_home.display());
    report.detail("controller", &settings.controller.value);
    report.detail("cpus", crate::sys::process::processors());
    tools::settings(&mut report, settings);
    let library = spaces::library(&mut report, subject.robot.as_deref(), env);
    let disks = disks::examine(&mut report, library.as_deref(), settings, env);
    kernel::examine(&mut report, settings, &confinement);
    tools::container(&mut report, &confinement);
    spaces::examine(&mut report, env);
    tools::rcc(&mut report, settings);
    if let Some(path) = &subject.path {
        report.path = Some(disks::path(path, library.as_deref())?);
    }
    report.answer_questions(disks.table());
    Ok(report)
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A path for a message.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
