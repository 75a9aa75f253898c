//! `--auto-unmount`: a small process that unmounts a space when its daemon was killed.
//!
//! Without it the dead mount stays, and programs get errors from it, until the next `mount` of the space removes it. The
//! watcher sleeps until the daemon ends. A daemon that ends in good order leaves no mount behind, and the watcher then ends
//! without doing anything.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::session::error::Error;
use crate::session::{end, registry};
use crate::space::run::{Process, read_run};
use crate::sys::{fuse_mount, process};

/// How long the device may stay open after the daemon has ended.
const LAST_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// How often to look whether it still is.
const LOOK: Duration = Duration::from_millis(10);

/// Starts the watcher of a daemon. The process must have a single thread.
pub(in crate::session) fn start(daemon: u32, state_dir: &Path) -> Result<(), Error> {
    let failed = |call| Error::os(state_dir, call);
    let pid = i32::try_from(daemon).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH);
    let daemon = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty())).map_err(failed("pidfd_open"))?;
    match process::fork().map_err(failed("fork"))? {
        Some(_) => Ok(()),
        None => {
            process::close_noted();
            let code = match process::detach() {
                Ok(()) => wait(&daemon, state_dir),
                Err(_) => 1,
            };
            // The child must not return to the caller's code.
            std::process::exit(code);
        }
    }
}

fn wait(daemon: &OwnedFd, state_dir: &Path) -> i32 {
    let ends = |process: &OwnedFd| {
        while matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], None), Err(Errno::INTR)) {}
    };
    ends(daemon);
    // If only the keeper was killed, the worker goes on, and becomes the keeper.
    let worker = || {
        let worker = read_run(state_dir)?.worker.filter(Process::is_running)?;
        let pid = i32::try_from(worker.pid).ok().and_then(Pid::from_raw)?;
        pidfd_open(pid, PidfdFlags::empty()).ok()
    };
    while let Some(worker) = worker() {
        ends(&worker);
    }
    // The mount helper has the device open, and ends a moment after its client.
    let deadline = Instant::now() + LAST_ENDS_WITHIN;
    loop {
        match registry::find(state_dir) {
            Ok(Some(mount)) if fuse_mount::is_dead(&mount.mountpoint) => {
                end::undo_mount(&mount);
                return 0;
            }
            // Otherwise another daemon has taken the place of the dead mount.
            Ok(Some(_)) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Ok(_) => return 0,
            Err(_) => return 1,
        }
    }
}
