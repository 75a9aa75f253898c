//! Runs one program in the foreground, as if it had been started in our place.
//!
//! The program stays in our process group, so that pipelines and job control work as without us: the terminal sends a key's
//! signal to both. What another process sends to us is passed on, and so is the end of the terminal. When the program is
//! stopped, we stop too, so that the shell notices; when we are continued, so is the program. As process 1 of a container
//! we also reap orphans.
//!
//! Invariant: a signal reaches the program once. Signals are blocked from before the mount to our end
//! ([`crate::sys::signals`]), so none is lost and none ends us before the space is unmounted.

use std::ffi::{OsStr, c_int};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH,
};

use crate::activate::Variable;
use crate::sys::process;
use crate::sys::signals::{self, Signals};

/// How long the other processes of a container may take to end after SIGTERM.
const ENDING: Duration = Duration::from_secs(3);

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With this exit status.
    Exit(u8),
    /// By this signal.
    Signal(u8),
}

impl Ended {
    /// The exit status that a shell shows.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// Blocks the signals that are passed on. The process must have a single thread.
pub(in crate::session) fn block_signals() -> Signals {
    Signals::block(&[
        SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH,
    ])
}

/// A signal that came while no program was running and asks us to end.
pub(in crate::session) fn asked_to_end(signals: &Signals) -> Result<Option<Ended>, Errno> {
    while let Some(came) = signals.wait(Some(Duration::ZERO))? {
        if [SIGHUP, SIGINT, SIGQUIT, SIGTERM].contains(&came.signal) {
            return Ok(Some(Ended::Signal(u8::try_from(came.signal).unwrap_or(u8::MAX))));
        }
    }
    Ok(None)
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started, or waited for.
pub(in crate::session) fn run(
    program: &Path,
    words: &[impl AsRef<OsStr>],
    variables: &[Variable],
    dir: &Path,
    signals: &Signals,
) -> std::io::Result<Ended> {
    use std::os::unix::process::CommandExt;
    let (name, args) = words.split_first().ok_or(Errno::INVAL)?;
    let mut command = Command::new(program);
    // rcc takes a virtual environment of the caller out, and this one has its own.
    command.arg0(name).args(args).current_dir(dir).env_remove("VIRTUAL_ENV");
    for Variable { name, value } in variables {
        command.env(name, value);
    }
    let child = signals::start(&mut command)?;
    let child = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    loop {
        if let Some(ended) = reap(Some(child))? {
            return Ok(ended);
        }
        let Some(came) = signals.wait(None)? else { continue };
        match came.signal {
            SIGCHLD => {}
            // When a terminal is closed, the kernel tells only the first process of the session, which we may be.
            signal if came.by_process || signal == SIGHUP => pass_on(child, signal),
            // A key: the program has it too.
            _ => {}
        }
    }
}

fn pass_on(child: Pid, signal: c_int) {
    let Some(signal) = Signal::from_named_raw(signal) else { return };
    if let Err(errno) = rustix::process::kill_process(child, signal) {
        tracing::debug!(?signal, %errno, "not passed on");
    }
}

/// Reaps every process that has ended, and returns how `child` ended. Stops us if `child` was stopped.
fn reap(child: Option<Pid>) -> Result<Option<Ended>, Errno> {
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            Ok(Some(changed)) => changed,
            Ok(None) | Err(Errno::CHILD) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        if Some(pid) != child {
            continue;
        }
        if let Some(ended) = ended(status) {
            return Ok(Some(ended));
        }
        if status.stopped() && !is_first() {
            // The shell that waits for us takes the terminal back, and continues us later.
            rustix::process::kill_process(rustix::process::getpid(), Signal::STOP)?;
        }
    }
}

fn ended(status: WaitStatus) -> Option<Ended> {
    let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Ended::Exit(byte(code))),
        (_, Some(signal)) => Some(Ended::Signal(byte(signal))),
        _ => None,
    }
}

/// Whether we are the first process of a container.
fn is_first() -> bool {
    std::process::id() == 1
}

/// As the first process of a container: ends the other processes, which the kernel would kill at our end, so that the
/// space can be unmounted. The processes that serve the mount stay: `daemon`, and those that it has started
/// (the worker, which the daemon replaces at any time, and the mount helper).
pub(in crate::session) fn end_others(daemon: u32, signals: &Signals) {
    if !is_first() {
        return;
    }
    let deadline = Instant::now() + ENDING;
    let mut how = Signal::TERM;
    loop {
        let others = others(daemon);
        if others.is_empty() || Instant::now() > deadline + ENDING {
            return;
        }
        if how == Signal::TERM || Instant::now() > deadline {
            for pid in others {
                if let Err(errno) = rustix::process::kill_process(pid, how) {
                    tracing::debug!(?pid, %errno, "cannot end a process that was left");
                }
            }
            how = Signal::KILL;
        }
        let waited = signals.wait(Some(Duration::from_millis(20)));
        if let Err(errno) = waited.map(drop).and_then(|()| reap(None).map(drop)) {
            tracing::debug!(%errno, "cannot wait for the processes that were left");
            return;
        }
    }
}

/// The other processes of the container that run, without the daemon and its children.
fn others(daemon: u32) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|pid| *pid != 1 && u32::try_from(*pid) != Ok(daemon))
        .filter(|pid| process::parent(*pid).is_some_and(|parent| parent != daemon))
        .filter_map(Pid::from_raw)
        .collect()
}
