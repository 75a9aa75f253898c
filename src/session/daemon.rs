//! The daemon: a child process that serves the mount, and the pipe by which it says how the start went.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use serde::{Deserialize, Serialize};

use super::serve::Prepared;
use super::{Describe, Error, Mounted, Report as Failure};
use crate::space::plan::MountPlan;
use crate::space::state::log_of;
use crate::sys::process::{self, Forked};

/// The one line that the child sends.
#[derive(Serialize, Deserialize)]
enum Report {
    Ready(Box<Mounted>),
    Failed(Failure),
}

/// Forks, serves in the child, and returns in the parent when the child answers or has failed.
pub(super) fn start(prepared: Prepared<'_>, plan: &MountPlan, describe: Describe) -> Result<Mounted, Error> {
    let os = |call| move |source| Error::Os { path: plan.state_dir.clone(), call, source };
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(os("pipe"))?;
    let forked = process::fork().map_err(|errno| match errno {
        Errno::AGAIN => {
            Error::Limits("no process can be started: ulimit -u, or a container's limit of processes".into())
        }
        errno => os("fork")(errno),
    })?;
    match forked {
        Forked::Parent(_) => {
            drop(write);
            // Closing our copies of the locks leaves them with the child: a flock belongs to the open file.
            drop(prepared);
            wait(read, plan)
        }
        Forked::Child => {
            drop(read);
            // Nothing returns from here: the child must not run on as if it were the caller.
            std::process::exit(i32::from(child(prepared, plan, describe, write)));
        }
    }
}

fn wait(read: OwnedFd, plan: &MountPlan) -> Result<Mounted, Error> {
    let mut text = String::new();
    let received = std::fs::File::from(read).read_to_string(&mut text);
    match received.ok().and_then(|_| serde_json::from_str(&text).ok()) {
        Some(Report::Ready(mounted)) => Ok(*mounted),
        Some(Report::Failed(failure)) => Err(Error::Daemon(failure)),
        None => Err(Error::DaemonDied(log_of(&plan.state_dir))),
    }
}

fn child(prepared: Prepared<'_>, plan: &MountPlan, describe: Describe, pipe: OwnedFd) -> u8 {
    let mut pipe = Some(std::fs::File::from(pipe));
    let mut send = |report: &Report| {
        let Some(mut pipe) = pipe.take() else { return };
        let sent =
            serde_json::to_vec(report).map_err(std::io::Error::other).and_then(|text| pipe.write_all(&text));
        if let Err(error) = sent {
            tracing::error!(%error, "the one who mounted could not be told");
        }
    };
    let log = log_of(&plan.state_dir);
    let served = open_log(&log)
        .and_then(process::detach)
        .map_err(|source| Error::Os { path: log, call: "open", source })
        .and_then(|()| prepared.serve(&mut |mounted| send(&Report::Ready(Box::new(mounted.clone())))));
    match served {
        Ok(_) => 0,
        Err(error) => {
            tracing::error!(%error, "the mount failed");
            let failure = describe(&error);
            let code = failure.code;
            send(&Report::Failed(failure));
            code
        }
    }
}

fn open_log(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
}
