//! Starts the daemon: a child process that takes the space and serves the mount.
//!
//! The child sends its log lines, and then one answer, through a pipe. Invariant: the parent waits only until its deadline,
//! so everything that may block (the disk, the daemon of an existing mount) happens in the child.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use indicatif::ProgressStyle;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};

use super::begin::begin;
use super::mounted::Mounted;
use super::scope;
use crate::session::error::{Describe, Error, Failure};
use crate::session::request::MountPlan;
use crate::space::state::log_of;
use crate::sys::fuse_mount;
use crate::sys::guarded::{Dir, Trust};
use crate::sys::{log_file, process, surroundings};

/// How long a start may take, if the lock timeout is not longer. A start takes milliseconds, or seconds if a large catalog
/// has to be compiled.
const STARTING: Duration = Duration::from_secs(20);

/// A start that takes longer is shown on a terminal: a large catalog is compiled, or a lock is waited for.
const UNUSUAL: Duration = Duration::from_millis(400);

/// How often that changes.
const TICK: Duration = Duration::from_millis(100);

/// How long to wait for a killed child.
const DYING: Duration = Duration::from_secs(1);

/// The last message of the child, after [`MARK`].
type Answer = Result<Mounted, Failure>;

/// Separates the child's log lines from its answer.
const MARK: u8 = 0;

/// Forks. The child serves the mount. The parent returns when the child has answered, has failed, or has taken too long.
pub(in crate::session) fn start(
    plan: &MountPlan,
    started: Instant,
    describe: Describe,
) -> Result<Mounted, Error> {
    let os = |call| Error::os(plan.state_dir(), call);
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(os("pipe"))?;
    let forked = process::fork().map_err(|errno| match errno {
        Errno::AGAIN => {
            Error::Limits("no process can be started: ulimit -u, or a container's limit of processes".into())
        }
        errno => os("fork")(errno),
    })?;
    match forked {
        Some(child) => {
            drop(write);
            wait(read, plan, child)
        }
        None => {
            drop(read);
            // The child must not return to the caller's code.
            std::process::exit(i32::from(child(plan, started, describe, write)));
        }
    }
}

fn wait(read: OwnedFd, plan: &MountPlan, child: Pid) -> Result<Mounted, Error> {
    // Longer than the lock timeout, so that the child can report which lock it did not get.
    let deadline = Instant::now() + plan.lock_timeout.max(STARTING) + DYING;
    // There is no thread for the bar, because the caller may fork again.
    let mut bar = None;
    let received = process::read_waiting(read, deadline, UNUSUAL, &mut || {
        let Some(show) = plan.request.show else { return Duration::MAX };
        let bar = bar.get_or_insert_with(|| {
            let bar = show("mounting");
            bar.set_style(ProgressStyle::default_spinner());
            bar
        });
        bar.set_message(format!("mounting, {} s", bar.elapsed().as_secs()));
        bar.tick();
        TICK
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let received = received.map_err(Error::os(plan.state_dir(), "read"))?;
    let Some(received) = received else {
        let error = Error::no_answer(
            plan.space.mountpoint.clone(),
            Some(child.as_raw_nonzero().get().unsigned_abs()),
        );
        clear_away(plan, child);
        return Err(error);
    };
    let mut parts = received.splitn(2, |byte| *byte == MARK);
    let said = parts.next().unwrap_or_default();
    if !said.is_empty() {
        log_file::write(said);
    }
    let answer: Option<Answer> = parts.next().and_then(|answer| serde_json::from_slice(answer).ok());
    answer.map(|answer| answer.map_err(Error::Daemon)).unwrap_or_else(|| {
        clear_away(plan, child);
        Err(Error::DaemonDied(log_of(&plan.state_dir())))
    })
}

/// Kills a child that did not answer and its worker, and unmounts what it may have mounted.
fn clear_away(plan: &MountPlan, child: Pid) {
    // They are a process group, unless the child has not come to make it.
    let group = rustix::process::kill_process_group(child, Signal::KILL);
    // A child that waits for a disk ends only when the disk answers.
    if let Err(errno) = group.or_else(|_| rustix::process::kill_process(child, Signal::KILL)) {
        tracing::debug!(?child, %errno, "cannot kill the child");
    }
    let deadline = Instant::now() + DYING;
    while matches!(rustix::process::waitpid(Some(child), WaitOptions::NOHANG), Ok(None)) {
        if Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    match crate::session::registry::find(&plan.state_dir()) {
        Ok(Some(live)) if fuse_mount::is_dead(&live.mountpoint) => crate::session::end::undo_mount(&live),
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "the child may have left a dead mount"),
    }
}

fn child(plan: &MountPlan, started: Instant, describe: Describe, pipe: OwnedFd) -> u8 {
    // The caller may have blocked signals, and its limits are for the programs that it starts.
    surroundings::reset();
    surroundings::serve_on();
    process::close_noted();
    let mut pipe = Some(std::fs::File::from(pipe));
    let open_log = || {
        let log = Dir::open(&plan.state_dir(), Trust::Owned).and_then(log_file::open);
        log.map_err(Error::os(log_of(&plan.state_dir()), "open"))
    };
    let served = leave(pipe.as_ref(), plan).and_then(|()| {
        if plan.settings.scope.value
            && let Err(why) = scope::enter(plan.settings.runtime_dir.as_deref(), plan.space.identity.as_str())
        {
            tracing::warn!("the daemon gets no scope of its own: {why}");
        }
        begin(plan, started, &open_log, &mut |mounted| {
            send(&mut pipe, &Ok(mounted.clone()));
        })
    });
    let Err(error) = served else { return 0 };
    // The user gets the answer. This is for the log.
    if log_file::is_open() {
        tracing::error!(%error, "the mount failed");
    }
    let failure = Failure { restorable: error.restorable(), ..describe(&error) };
    let code = failure.code;
    send(&mut pipe, &Err(failure));
    code
}

/// Leaves the terminal and the standard streams. Log lines go to the parent until the log file is open.
fn leave(pipe: Option<&std::fs::File>, plan: &MountPlan) -> Result<(), Error> {
    // The keeper sees to it that a mount that answers does not end with its parent.
    if let Err(errno) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
        tracing::debug!(%errno, "the mount will not end with its parent");
    }
    let pipe = pipe.ok_or(Errno::BADF);
    let left = process::detach().and_then(|()| rustix::stdio::dup2_stderr(pipe?));
    left.map_err(Error::os(plan.state_dir(), "detach"))
}

/// Sends the answer, once.
fn send(pipe: &mut Option<std::fs::File>, report: &Answer) {
    let Some(mut pipe) = pipe.take() else { return };
    let sent = serde_json::to_vec(report).map_err(std::io::Error::other).and_then(|mut text| {
        text.insert(0, MARK);
        pipe.write_all(&text)
    });
    if let Err(error) = sent {
        tracing::error!(%error, "cannot send the answer to the parent");
    }
}
