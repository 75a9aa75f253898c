//! The keeper: the process that outlives the one that serves the mount.
//!
//! The daemon of a mount is two processes. The *keeper* has mounted, holds the locks of the space, and waits. The *worker*
//! serves: everything that can fail happens there. When a worker dies, the keeper forks the next one from what it had
//! prepared before the first. Programs in the space wait meanwhile, and the kernel sends their unanswered requests again.
//!
//! Both processes share one table of descriptors. So `/dev/fuse`, the locks and the descriptors in [`Handoff`] stay open
//! when a worker dies. The next worker first takes over ([`take_over`]): it closes what only its predecessor knew.
//!
//! A worker that hangs is killed, and replaced like any other ([`hang`]).
//!
//! Limits: five crashes in ten seconds, or five workers in a row that did not come to answer, end the mount. SIGKILL, which
//! may also be the kernel's when memory is short, is no crash: of such deaths, only a hundred in a row end the mount.
//!
//! A worker that finds that its keeper was killed becomes the keeper ([`Worker::become_keeper`]). So whoever ends a daemon by
//! force must leave neither the time to replace the other: [`process::kill_with_children`]. A worker that makes room
//! for another program ends with the exit code [`UPGRADE`], and the keeper goes on in that program ([`super::resume`]).
//!
//! Invariants: the keeper has one thread, reads no request, and neither opens nor closes a descriptor while a worker starts
//! or ends.
//! What it owns is dropped in no process but the last worker. A worker that ends by itself ends the mount.

mod hang;

use std::ffi::c_int;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::{SIGCHLD, SIGUSR1, SIGUSR2};

use super::passing::Passing;
use crate::handoff::{Handoff, Phase};
use crate::namespace::Namespace;
use crate::sys::process::{self, Alone};
use crate::sys::signals::Signals;
use crate::sys::{fuse_message, service};

/// As many crashes in this time end the mount.
const CRASHES: usize = 5;
const CRASHES_IN: Duration = Duration::from_secs(10);

/// As many workers in a row that did not come to answer the kernel end the mount: after a crash, and after SIGKILL, with
/// which somebody may just have been quick.
const SILENT: u32 = 5;
const KILLED: u32 = 100;

/// The pause before a further worker, after one that did not answer.
const PAUSE: Duration = Duration::from_millis(100);

pub(in crate::session) use hang::Watch;

/// How long changes that are in progress may take when a worker becomes the keeper, and when it tries again after that.
const CHANGES_END_WITHIN: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(1);

/// The exit code of a worker that makes room for another program.
pub(super) const UPGRADE: c_int = 75;

/// What a new worker is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::session) enum Task {
    /// Serves the mount.
    Serve,
    /// Ends the mount, which cannot be served any more.
    GiveUp(Why),
    /// Does what is left to do after the mount has ended.
    Finish,
}

/// Why a mount is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::session) enum Why {
    /// Its first worker died before it answered.
    NeverAnswered,
    /// Too many crashes.
    Crashes,
    /// Too many workers that did not answer.
    Silent,
    /// A worker died while the mount was to end.
    AskedToEnd,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NeverAnswered => "its process died before it answered",
            Self::Crashes => "its process crashed five times in ten seconds",
            Self::Silent => "too many processes in a row died before they answered",
            Self::AskedToEnd => "its process died while the mount was ending",
        })
    }
}

/// This process as a worker.
#[derive(Debug)]
pub(in crate::session) struct Worker {
    pub(in crate::session) task: Task,
    /// The keeper's process id and start time.
    pub(in crate::session) keeper: (u32, u64),
    /// The first worker of a program that goes on with the mount of an earlier one.
    pub(in crate::session) resumes: bool,
    /// What another program of the mount gets. None where nothing can be passed on.
    pub(in crate::session) passing: Option<Passing>,
    /// Blocked until [`Worker::unblock`].
    signals: Signals,
}

impl Worker {
    /// Becomes the keeper, by running this program from its beginning. Returns only when that is not possible: also where
    /// the kernel cannot send requests again.
    pub(super) fn become_keeper(&self, namespace: &Namespace) {
        let handoff = namespace.handoff();
        // Otherwise requests that are under way would fail, of a mount that works.
        let Some(passing) = self.passing.as_ref().filter(|_| handoff.can_resend()) else { return };
        // Changes note descriptors in `handoff`, which must be passed on.
        let Some(_frozen) = namespace.freeze(CHANGES_END_WITHIN) else {
            tracing::warn!("a change of the space is in progress and does not end");
            return self.try_again();
        };
        // They stay pending until the program that begins waits for them.
        self.signals.block_again();
        let error = passing.begin_again(handoff);
        self.signals.unblock();
        tracing::error!(%error, "cannot become the keeper");
    }

    /// Has the signal come again by which a worker notices that the keeper was killed.
    fn try_again(&self) {
        std::thread::sleep(AGAIN);
        rustix::process::kill_process(rustix::process::getpid(), Signal::USR1).unwrap_or_default();
    }

    /// The program before this one is not needed any more: this worker answers.
    pub(super) fn forget_earlier(&self) {
        self.passing.iter().for_each(Passing::forget_earlier);
    }

    /// Lets the signals through that end the mount. Called when they are handled.
    pub(in crate::session) fn unblock(&self) {
        self.signals.unblock();
    }

    /// Has the kernel send SIGUSR1 when the keeper dies.
    pub(in crate::session) fn notice_death_of_keeper(&self) {
        if let Err(errno) = rustix::process::set_parent_process_death_signal(Some(Signal::USR1)) {
            tracing::debug!(%errno, "the death of the keeper will not be noticed");
        }
        if !self.has_keeper() {
            // It died before. The signal goes to this process.
            rustix::process::kill_process(rustix::process::getpid(), Signal::USR1).unwrap_or_default();
        }
    }

    /// Whether the keeper lives.
    pub(in crate::session) fn has_keeper(&self) -> bool {
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        parent == Some(self.keeper.0)
    }

    /// Tells the keeper that the mount answers.
    pub(in crate::session) fn tell_ready(&self) {
        let keeper = i32::try_from(self.keeper.0).ok().and_then(Pid::from_raw);
        let told = keeper.ok_or(Errno::SRCH).and_then(|pid| rustix::process::kill_process(pid, Signal::USR1));
        if let Err(errno) = told {
            tracing::debug!(%errno, "the keeper does not know that the mount answers");
        }
    }
}

/// What a worker has taken over.
#[derive(Debug)]
pub(in crate::session) struct Taken {
    /// The descriptors of the keeper that are still what they were, sorted. A predecessor may have closed others.
    pub(in crate::session) open: Vec<RawFd>,
    /// The kernel sends unanswered requests again.
    pub(in crate::session) resent: bool,
}

/// What the keeper tells a service manager.
#[derive(Debug)]
pub(in crate::session) struct Service {
    /// The status of a mount that answers.
    pub(in crate::session) ready: String,
}

/// Makes this process the keeper, and returns in each worker. The keeper ends with its last worker, with its exit code.
/// `ending` are the signals that end the mount. `service` is None for a daemon, `passing` where the mount cannot go on in
/// another program, and `watch` if a worker that hangs is not to be replaced.
///
/// # Errors
/// When the first worker cannot be started.
pub(in crate::session) fn split(
    handoff: &Handoff,
    ending: &[c_int],
    service: Option<Service>,
    watch: Option<Watch<'_>>,
    passing: Option<Passing>,
) -> Result<Worker, Errno> {
    let begun = begin(handoff, passing.as_ref());
    let (keeper, alone) =
        begun.inspect_err(|_| passing.iter().for_each(|passing| passing.go_back(handoff)))?;
    let signals: Vec<c_int> = ending.iter().copied().chain([SIGCHLD, SIGUSR1, SIGUSR2]).collect();
    let signals = Signals::block(&signals);
    let mut keeper_of = Keeper {
        handoff,
        service,
        passing,
        signals,
        watch,
        asked: None,
        hung: false,
        crashes: [None; CRASHES],
        silent: 0,
    };
    follow_parent_until_served();
    let mut task = Task::Serve;
    let mut resumes = handoff.phase() == Phase::Serving;
    loop {
        handoff.begin();
        let worker = loop {
            match alone.fork_sharing_descriptors() {
                Ok(None) => return Ok(Worker { task, keeper, resumes, passing: keeper_of.passing, signals }),
                Ok(Some(worker)) => break worker,
                Err(errno) if !handoff.is_takeover() => {
                    signals.unblock();
                    return Err(errno);
                }
                // Without memory or processes, wait and try again. Programs in the space wait, too.
                Err(_) => std::thread::sleep(PAUSE),
            }
        };
        resumes = false;
        let status = keeper_of.wait_for(worker);
        match keeper_of.next(task, status) {
            Next::Start(next) => task = next,
            Next::Upgrade => keeper_of.upgrade(),
            Next::GoBack => keeper_of.go_back(),
            Next::Exit(code) => std::process::exit(code),
        }
    }
}

/// Notes what is open before the first worker. Returns this process: its id and its start time.
fn begin(handoff: &Handoff, passing: Option<&Passing>) -> Result<((u32, u64), Alone), Errno> {
    let start_time = process::start_time(rustix::process::getpid().as_raw_nonzero().get());
    let keeper = (std::process::id(), start_time.ok_or(Errno::NODATA)?);
    let alone = Alone::check()?;
    // What an earlier program passed on is not the keeper's.
    let held: Vec<RawFd> = handoff.held().fds().into_iter().map(|(fd, _)| fd).collect();
    let clones = passing.map(|passing| &*passing.clones).unwrap_or_default();
    for (fd, dev, ino) in process::open_descriptors()? {
        let is_own = !held.contains(&fd) && !clones.contains(&fd) && !handoff.keeps_fd(fd);
        if is_own && !handoff.note_first(fd, dev, ino) {
            return Err(Errno::MFILE);
        }
    }
    Ok((keeper, alone))
}

#[derive(Debug)]
struct Keeper<'h> {
    handoff: &'h Handoff,
    service: Option<Service>,
    passing: Option<Passing>,
    signals: Signals,
    watch: Option<Watch<'h>>,
    /// The worker was killed because it hung.
    hung: bool,
    /// The signal with which somebody asked for the end of the mount.
    asked: Option<Signal>,
    crashes: [Option<Instant>; CRASHES],
    silent: u32,
}

/// What follows the death of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Start(Task),
    /// Go on in the program that the worker has noted, if that is possible.
    Upgrade,
    /// Go on in the earlier program, if that is possible.
    GoBack,
    Exit(i32),
}

impl Keeper<'_> {
    /// Waits for the end of a worker, and passes on the signals that end the mount.
    fn wait_for(&mut self, worker: Pid) -> WaitStatus {
        if let Some(signal) = self.asked {
            pass_on(worker, signal);
        }
        loop {
            if let Some(status) = reap(worker) {
                return status;
            }
            let came = match self.signals.wait(self.watch.as_ref().map(Watch::every)) {
                Ok(Some(came)) => came,
                Ok(None) => {
                    self.look(worker);
                    continue;
                }
                // The only error is a set of signals that is none.
                Err(_) => continue,
            };
            match came.signal {
                SIGCHLD => {}
                // The command that waited for the mount has ended. Before the mount answers, this ends the mount.
                SIGUSR2 if self.handoff.phase() == Phase::Starting => pass_on(worker, Signal::TERM),
                SIGUSR2 => {}
                SIGUSR1 => {
                    if let Some(service) =
                        self.service.as_ref().filter(|_| self.handoff.phase() == Phase::Serving)
                    {
                        service::ready(&service.ready);
                    }
                }
                signal => {
                    if self.service.is_some() {
                        service::stopping();
                    }
                    self.asked = Signal::from_named_raw(signal);
                    // A worker ends the mount at each of them. This one it handles in every mode.
                    pass_on(worker, Signal::TERM);
                }
            }
        }
    }

    /// Kills the worker if it hangs.
    fn look(&mut self, worker: Pid) {
        let Some(watch) = &mut self.watch else { return };
        if watch.look(self.handoff, worker.as_raw_nonzero().get().unsigned_abs()) {
            watch.reset();
            self.hung = true;
            pass_on(worker, Signal::KILL);
        }
    }

    fn upgrade(&self) {
        if let (Some(passing), Some(program)) = (&self.passing, self.handoff.take_upgrade()) {
            let error = passing.upgrade(self.handoff, program);
            tracing::error!(%error, "cannot go on in another program");
        }
    }

    fn go_back(&mut self) {
        if let Some(passing) = &mut self.passing {
            passing.go_back(self.handoff);
            passing.earlier = None;
        }
    }

    /// Decides what follows.
    fn next(&mut self, task: Task, status: WaitStatus) -> Next {
        let phase = self.handoff.phase();
        let code = status.exit_status();
        let has_failed = code.unwrap_or(libc::EXIT_FAILURE);
        match (task, phase, code) {
            // It has said why.
            (Task::Serve, Phase::Starting, Some(code)) => return Next::Exit(code),
            (_, _, Some(0)) => return Next::Exit(0),
            (Task::Serve, Phase::Serving, Some(UPGRADE)) if self.asked.is_none() => return Next::Upgrade,
            (Task::GiveUp(_) | Task::Finish, _, _) => return Next::Exit(has_failed),
            _ => {}
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let hung = std::mem::take(&mut self.hung);
        let hung_flag = if hung { HUNG } else { 0 };
        self.handoff.note_death(u32::try_from(status.as_raw()).unwrap_or_default() | hung_flag, now);
        // A worker that ends by itself with an error has crashed. One that hung did so in the requests that it had.
        let signal = status.terminating_signal().filter(|_| !hung).unwrap_or(libc::SIGABRT);
        self.handoff.requests().worker_died(self.handoff.restarts(), signal);
        if phase == Phase::Starting {
            return Next::Start(Task::GiveUp(Why::NeverAnswered));
        }
        if phase == Phase::Ending {
            return Next::Start(Task::Finish);
        }
        // A worker that had no handler yet.
        let ends = |signal| [Signal::TERM, Signal::INT, Signal::HUP].map(Signal::as_raw).contains(&signal);
        if self.asked.is_some() || status.terminating_signal().is_some_and(ends) {
            return Next::Start(Task::GiveUp(Why::AskedToEnd));
        }
        let killed = status.terminating_signal() == Some(Signal::KILL.as_raw());
        if !killed {
            self.crashes.rotate_left(1);
            let now = Instant::now();
            if let Some(last) = self.crashes.last_mut() {
                *last = Some(now);
            }
            let first = self.crashes.first().copied().flatten();
            if first.is_some_and(|first| now.duration_since(first) < CRASHES_IN) {
                return Next::Start(Task::GiveUp(Why::Crashes));
            }
        }
        let has_earlier = self.passing.as_ref().is_some_and(|passing| passing.earlier.is_some());
        if self.handoff.is_answering() {
            // The worker has closed it.
            self.passing.iter_mut().for_each(|passing| passing.earlier = None);
        } else if has_earlier {
            // No worker of this program has answered.
            return Next::GoBack;
        }
        if self.handoff.is_answering() {
            self.silent = 0;
            return Next::Start(Task::Serve);
        }
        self.silent += 1;
        if self.silent >= if killed { KILLED } else { SILENT } {
            return Next::Start(Task::GiveUp(Why::Silent));
        }
        if !killed || self.silent > SILENT {
            std::thread::sleep(PAUSE);
        }
        Next::Start(Task::Serve)
    }
}

/// The kernel then sends another signal when the parent ends, which has no effect once the mount answers. The answer makes
/// the parent end, and the keeper could not be quicker.
fn follow_parent_until_served() {
    let followed = rustix::process::parent_process_death_signal();
    let changed = match followed {
        Ok(Some(_)) => rustix::process::set_parent_process_death_signal(Some(Signal::USR2)),
        other => other.map(drop),
    };
    if let Err(errno) = changed {
        tracing::debug!(%errno, "the mount will not end with its parent");
    }
}

fn pass_on(worker: Pid, signal: Signal) {
    // It fails only when the worker has just died, which the next wait tells.
    rustix::process::kill_process(worker, signal).unwrap_or_default();
}

/// How the worker died, if it has. Reaps other children too: the mount helper, and programs that mounted.
fn reap(worker: Pid) -> Option<WaitStatus> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == worker => return Some(status),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            // ECHILD cannot come while the worker is a child.
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Closes what only the predecessor knew, and has the kernel send the unanswered requests again. The first step of a
/// worker that takes the place of another one. Without `device`, the kernel is asked nothing. Where it cannot send requests
/// again, or without `resends`, they get an error: EINTR those that the predecessor is known to have worked on, and
/// ECONNABORTED the others, from the kernel.
///
/// # Errors
/// The errno of close_range(2), which needs Linux 5.9.
pub(in crate::session) fn take_over(
    handoff: &Handoff,
    device: Option<BorrowedFd<'_>>,
    resends: bool,
) -> Result<Taken, Errno> {
    // Before the others are closed: the kernel ends the requests that were read from a closed one.
    let resent = device.is_none_or(|device| {
        handoff.opens().settle(|open| waits(open.unique));
        resends && fuse_message::resend(device)
    });
    if !resent && let Err(errno) = fuse_message::interrupt_anywhere(&handoff.requests().left()) {
        tracing::warn!(%errno, "requests that were under way get no answer");
    }
    let mut open: Vec<RawFd> = handoff
        .first()
        .filter(|(fd, dev, ino)| process::file_of(*fd) == Some((*dev, *ino)))
        .map(|(fd, ..)| fd)
        .collect();
    open.sort_unstable();
    let held = handoff.held().fds().into_iter().map(|(fd, _)| fd);
    let mut kept: Vec<RawFd> = open.iter().copied().chain(handoff.kept_fds()).chain(held).collect();
    kept.sort_unstable();
    process::close_all_but(&kept)?;
    Ok(Taken { open, resent })
}

/// Whether a request waits for its answer. If that cannot be found out, it does not: a file counts as open then.
fn waits(unique: u64) -> bool {
    fuse_message::is_in_flight_anywhere(unique).unwrap_or_else(|errno| {
        tracing::warn!(%errno, "cannot find out which requests wait");
        false
    })
}

/// In the noted status of a worker: it was killed because it hung.
const HUNG: u32 = 1 << 16;

/// The name of what ended a worker: a signal, or an exit code.
pub(in crate::session) fn cause_of(status: u32) -> String {
    if status & HUNG != 0 {
        return "no answer".to_owned();
    }
    let status = c_int::try_from(status).unwrap_or_default();
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        return signal_hook::low_level::signal_name(signal)
            .map_or_else(|| format!("signal {signal}"), str::to_owned);
    }
    format!("exit code {}", libc::WEXITSTATUS(status))
}

#[cfg(test)]
mod tests;
