//! The daemon: a child process that takes the space and serves the mount, and the pipe by which it says how the start
//! went.
//!
//! Invariant: whoever waits here waits no longer than he was told to, whatever the child's disk or the daemon of a
//! mount that is there do. So everything that may wait for them happens in the child.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

use super::begin::Found;
use super::error::{Describe, Error, Failure};
use super::mounted::Mounted;
use super::plan::MountPlan;
use crate::space::state::log_of;
use crate::sys::fuse_mount;
use crate::sys::guarded::{Dir, Trust};
use crate::sys::process::{self, Forked};
use crate::sys::{log_file, probe};

/// How long a start may take at least, however short the wait for a lock. It takes milliseconds, or seconds where a
/// large catalog has to be compiled first.
const STARTING: Duration = Duration::from_secs(20);

/// How long a child that was killed is waited for.
const DYING: Duration = Duration::from_secs(1);

/// What the child sends last, after [`MARK`].
#[derive(Serialize, Deserialize)]
enum Answer {
    Ready(Box<Mounted>),
    Failed(Failure),
}

/// Ends what the child says on standard error, until it has a log, and begins its report.
const MARK: u8 = 0;

/// Forks, runs `begin` and serves what comes of it in the child, and returns in the parent when the child answers,
/// has failed, or has taken too long.
pub(super) fn start<'p>(
    plan: &'p MountPlan,
    begin: impl FnOnce() -> Result<Found<'p>, Error>,
    describe: Describe,
) -> Result<Mounted, Error> {
    let os = |call| move |source| Error::Os { path: plan.state_dir(), call, source };
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(os("pipe"))?;
    let forked = process::fork().map_err(|errno| match errno {
        Errno::AGAIN => {
            Error::Limits("no process can be started: ulimit -u, or a container's limit of processes".into())
        }
        errno => os("fork")(errno),
    })?;
    match forked {
        Forked::Parent(child) => {
            drop(write);
            wait(read, plan, child)
        }
        Forked::Child => {
            drop(read);
            // Nothing returns from here: the child must not run on as if it were the caller.
            std::process::exit(i32::from(child(plan, begin, describe, write)));
        }
    }
}

fn wait(read: OwnedFd, plan: &MountPlan, child: i32) -> Result<Mounted, Error> {
    // A moment longer, so that a child that waited in vain for a lock can say for which.
    let deadline = Instant::now() + plan.lock_timeout.max(STARTING) + DYING;
    let os = |call| move |source| Error::Os { path: plan.state_dir(), call, source };
    let received = probe::read_until(read, deadline)
        .map_err(|error| os("read")(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    let Some(received) = received else {
        let error = Error::no_answer(plan.space.mountpoint.clone(), Some(child.unsigned_abs()));
        clear_away(plan, child);
        return Err(error);
    };
    let mut parts = received.splitn(2, |byte| *byte == MARK);
    let said = parts.next().unwrap_or_default();
    if !said.is_empty() {
        log_file::write(said);
    }
    match parts.next().and_then(|report| serde_json::from_slice(report).ok()) {
        Some(Answer::Ready(mounted)) => Ok(*mounted),
        Some(Answer::Failed(failure)) => Err(Error::Daemon(failure)),
        None => {
            clear_away(plan, child);
            Err(Error::DaemonDied(log_of(&plan.state_dir())))
        }
    }
}

/// Ends a child that did not get so far as to answer, and takes away what it may have mounted.
fn clear_away(plan: &MountPlan, child: i32) {
    let Some(pid) = Pid::from_raw(child) else { return };
    // One that waits for a disk ends when it has its answer.
    if let Err(errno) = rustix::process::kill_process(pid, Signal::KILL) {
        tracing::debug!(child, %errno, "a child cannot be ended");
    }
    let deadline = Instant::now() + DYING;
    while matches!(rustix::process::waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
        if Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    match super::registry::find(&plan.state_dir()) {
        Ok(Some(live)) if fuse_mount::is_dead(&live.mountpoint) => super::undo::undo_mount(&live),
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "a dead mount may be left"),
    }
}

fn child<'p>(
    plan: &'p MountPlan,
    begin: impl FnOnce() -> Result<Found<'p>, Error>,
    describe: Describe,
    pipe: OwnedFd,
) -> u8 {
    let mut pipe = Some(std::fs::File::from(pipe));
    let served = leave(pipe.as_ref(), plan).and_then(|()| begin()).and_then(|found| match found {
        Found::Mounted(mounted) => Ok(*mounted),
        Found::Free(pending) => {
            let log = Dir::open(&plan.state_dir(), Trust::Owned).and_then(log_file::open);
            log.map_err(|error| {
                let source = std::io::Error::from(error);
                Error::Os {
                    path: log_of(&plan.state_dir()),
                    call: "open",
                    source: Errno::from_io_error(&source).unwrap_or(Errno::IO),
                }
            })?;
            pending.serve(&mut |mounted| {
                // From now on the mount lives on its own.
                follow_parent(None);
                send(&mut pipe, &Answer::Ready(Box::new(mounted.clone())));
            })
        }
    });
    match served {
        Ok(mounted) => {
            send(&mut pipe, &Answer::Ready(Box::new(mounted)));
            0
        }
        Err(error) => {
            // Who mounts is told by the report; this is for who reads the log.
            if log_file::is_open() {
                tracing::error!(%error, "the mount failed");
            }
            let failure = describe(&error);
            let code = failure.code;
            send(&mut pipe, &Answer::Failed(failure));
            code
        }
    }
}

/// Leaves the terminal and the standard streams; what is said until there is a log goes to who mounts.
fn leave(pipe: Option<&std::fs::File>, plan: &MountPlan) -> Result<(), Error> {
    follow_parent(Some(Signal::TERM));
    let pipe = pipe.ok_or(Errno::BADF);
    let left = process::detach().and_then(|()| rustix::stdio::dup2_stderr(pipe?));
    left.map_err(|source| Error::Os { path: plan.state_dir(), call: "detach", source })
}

/// Has this process told when its parent ends, or not any more.
fn follow_parent(signal: Option<Signal>) {
    if let Err(errno) = rustix::process::set_parent_process_death_signal(signal) {
        tracing::debug!(%errno, "a mount that is not waited for any more goes on");
    }
}

/// Sends the report, once.
fn send(pipe: &mut Option<std::fs::File>, report: &Answer) {
    let Some(mut pipe) = pipe.take() else { return };
    let sent = serde_json::to_vec(report).map_err(std::io::Error::other).and_then(|mut text| {
        text.insert(0, MARK);
        pipe.write_all(&text)
    });
    if let Err(error) = sent {
        tracing::error!(%error, "the one who mounted could not be told");
    }
}
