//! Replaces the program that serves mounts by another one, while they are used.
//!
//! The worker has the new program rehearse ([`super::resume`]), lets no change begin, and ends. The keeper then becomes the
//! new program, whose worker gets the unanswered requests from the kernel again.

use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::keeper;
use super::passing::Passing;
use crate::namespace::Namespace;
use crate::namespace::freeze::Frozen;
use crate::session::control::{Client, Request};
use crate::session::error::{Error, Refused};
use crate::space::run::{Process, RunInfo, read_run};
use crate::sys::plain;

/// How long changes that are in progress may take.
const CHANGES_END_WITHIN: Duration = Duration::from_secs(5);

/// How often to look whether the new program serves.
const LOOK: Duration = Duration::from_millis(1);

/// A mount that was upgraded.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Upgraded {
    /// The version of the program that served it before. None if it did not say.
    pub from: Option<String>,
    /// The version of the program that serves it now.
    pub to: Option<String>,
    /// How long programs waited at most, in milliseconds. 0 if the program served the mount already.
    pub ms: u64,
}

/// Has the mount of a space go on with a program.
///
/// # Errors
/// When the mount refuses, or the new program does not serve in time. The old one then goes on.
pub fn upgrade(state_dir: &Path, program: &Path, limit: Duration) -> Result<Upgraded, Error> {
    let no = |why: String| Error::Refused(Refused::Program(why));
    let unreadable = |error| no(format!("{}: {}", program.display(), plain(&error)));
    let wanted = std::fs::metadata(program).map_err(unreadable)?;
    let runs_it = |run: &RunInfo| {
        let exe = run.worker.map(|worker| std::fs::metadata(format!("/proc/{}/exe", worker.pid)));
        exe.and_then(Result::ok).is_some_and(|exe| (exe.dev(), exe.ino()) == (wanted.dev(), wanted.ino()))
    };
    let deadline = Instant::now() + limit;
    let mut client = Client::connect(state_dir)?;
    let before = read_run(state_dir).ok_or_else(|| Error::NoControl(state_dir.to_owned()))?;
    if runs_it(&before) {
        return Ok(Upgraded { from: before.version.clone(), to: before.version, ms: 0 });
    }
    client.ask(&Request::Upgrade { program: program.as_os_str().as_bytes().to_vec() }, limit)?;
    let asked = Instant::now();
    let worker = |run: &RunInfo| run.worker.map(|worker| worker.pid);
    loop {
        let now = read_run(state_dir).filter(|now| worker(now) != worker(&before));
        match now.filter(|now| now.worker.as_ref().is_some_and(Process::is_running)) {
            Some(now) if runs_it(&now) => {
                return Ok(Upgraded {
                    from: before.version,
                    to: now.version,
                    ms: super::mounted::millis(asked),
                });
            }
            Some(_) => return Err(no("the new program ended at once".to_owned())),
            None if Instant::now() > deadline => {
                return Err(Error::no_answer(before.mountpoint.clone(), Some(before.pid)));
            }
            None => std::thread::sleep(LOOK),
        }
    }
}

/// Makes sure that the keeper can go on with a program, and lets no change begin.
pub(super) fn prepare<'n>(
    namespace: &'n Namespace,
    passing: Option<&Passing>,
    program: &Path,
) -> Result<Frozen<'n>, Refused> {
    let no = |why: &str| Refused::Program(why.to_owned());
    let handoff = namespace.handoff();
    let passing = passing.filter(|_| handoff.can_resend()).ok_or_else(|| no("this needs Linux 6.9"))?;
    let opened = rustix::fs::open(program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let failed =
        |error: std::io::Error| Refused::Program(format!("{}: {}", program.display(), plain(&error)));
    let opened = opened.map_err(|errno| failed(errno.into()))?;
    passing.rehearse(opened.as_raw_fd()).map_err(Refused::Program)?;
    let frozen = namespace.freeze(CHANGES_END_WITHIN).ok_or(Refused::Changing)?;
    // The keeper has the same table of descriptors, and nothing is closed before it looks.
    handoff.ask_for_upgrade(opened.into_raw_fd());
    Ok(frozen)
}

/// Ends this worker.
pub(super) fn leave() -> ! {
    std::process::exit(keeper::UPGRADE)
}
