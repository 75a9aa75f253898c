//! The end of a mount from outside: unmount, and wait until its daemon has let go of the space.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Error;
use crate::space::live;
use crate::space::state::read_run;
use crate::sys::fuse_mount::{self, MountError};
use crate::sys::mountinfo::MountEntry;
use crate::sys::process;

/// How long a mount may be in use before that is said: a process that ends, or one between fork and exec, holds what
/// it had open for a moment longer.
const PATIENCE: Duration = Duration::from_millis(500);

/// What ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Where it was mounted.
    pub mountpoint: PathBuf,
    /// The space.
    pub identity: String,
}

/// Unmounts a live mount and waits up to `timeout` for its daemon, so that the next mount finds the space free.
///
/// # Errors
/// [`Error::InUse`] with the processes that use it, unless `lazy`; and what unmounting may answer.
pub fn unmount(live: &MountEntry, state_dir: &Path, lazy: bool, timeout: Duration) -> Result<Ended, Error> {
    // Read first: the daemon removes it when it ends.
    let daemon = read_run(state_dir);
    let path = live.mountpoint.clone();
    // One whose daemon lives is not asked: should it hang, there would be no answer.
    let lazily = lazy || (!daemon.as_ref().is_some_and(live::is_running) && fuse_mount::is_dead(&path));
    let patience = Instant::now() + PATIENCE;
    loop {
        match fuse_mount::unmount(&path, lazily) {
            Ok(()) => break,
            Err(MountError::Os { source: Errno::BUSY, .. }) if Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(MountError::Os { source: Errno::BUSY, .. }) => {
                return Err(Error::InUse { pids: users_of(&path), path });
            }
            Err(source) => return Err(Error::Mount { path, source }),
        }
    }
    if let Some(daemon) = daemon.filter(|_| !lazy) {
        let pid = i32::try_from(daemon.pid).unwrap_or(0);
        let deadline = Instant::now() + timeout;
        while process::start_time(pid) == Some(daemon.start_time) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(Ended { mountpoint: path, identity: live.identity().unwrap_or_default().to_owned() })
}

/// The processes that have their directory, program or an open file below a path, as far as we may look.
fn users_of(mountpoint: &Path) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| uses(*pid, mountpoint))
        .collect()
}

fn uses(pid: u32, mountpoint: &Path) -> bool {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let below = |link: &Path| std::fs::read_link(link).is_ok_and(|target| target.starts_with(mountpoint));
    if ["cwd", "root", "exe"].iter().any(|name| below(&base.join(name))) {
        return true;
    }
    std::fs::read_dir(base.join("fd")).is_ok_and(|fds| fds.flatten().any(|fd| below(&fd.path())))
}
