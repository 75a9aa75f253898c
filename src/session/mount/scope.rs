//! `HOLOFS_SCOPE`: a daemon in a scope of its own of the user's service manager.
//!
//! A service manager, or a login manager with KillUserProcesses, ends all processes of a cgroup when a service or session
//! ends. A daemon that was started there would end with them, both of its processes. In a scope it is a unit of its own:
//! `holofs-SPACE-PID.scope` of `systemctl --user`, which lasts until the mount or the user manager ends.
//!
//! The keeper asks for the scope before it does anything else, so all later processes of the mount are in it. The request
//! is made by busctl(1), a part of systemd: the one call that `systemd-run --user --scope` makes, too. That program itself
//! would have to start the daemon anew.
//!
//! Limits: only if it is asked for. Whoever sets KillUserProcesses wants processes ended that did not ask to stay, and a
//! service that mounts a space may count on its end when the service is stopped. Without lingering (`loginctl
//! enable-linger`), the user manager itself ends with the last session, and the scope with it.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::Access;

use crate::sys::{plain, signals};

/// How long the service manager may take to answer, and then to move the process.
const PATIENCE: Duration = Duration::from_secs(5);

/// Moves this process into a scope of its own.
///
/// # Errors
/// Why it stays where it is, for the user.
pub(super) fn enter(runtime_dir: Option<&Path>, space: &str) -> Result<(), String> {
    let dir = runtime_dir.ok_or("XDG_RUNTIME_DIR is not set")?;
    let manager = dir.join("systemd/private");
    rustix::fs::access(&manager, Access::EXISTS).map_err(|errno| {
        format!("no service manager of this user: {}: {}", manager.display(), plain(&errno))
    })?;
    let own_cgroup = || std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let before = own_cgroup();
    ask(space).map_err(|error| format!("busctl: {error}"))?;
    // The answer comes before the move.
    let deadline = Instant::now() + PATIENCE;
    while own_cgroup() == before {
        if Instant::now() > deadline {
            return Err("the service manager has not moved the daemon".to_owned());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn ask(space: &str) -> Result<(), String> {
    let pid = std::process::id().to_string();
    let unit = format!("holofs-{space}-{pid}.scope");
    let description = format!("the holofs space {space}");
    let mut command = Command::new("busctl");
    command
        .args(["--user", "--timeout=5", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"])
        .args(["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"])
        .args([unit.as_str(), "fail", "3", "Description", "s", description.as_str()])
        .args(["CollectMode", "s", "inactive-or-failed", "PIDs", "au", "1", pid.as_str(), "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let done = signals::start(&mut command).and_then(std::process::Child::wait_with_output);
    match done {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr);
            Err(said.lines().next().unwrap_or("it failed and said nothing").to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("not installed".to_owned()),
        Err(error) => Err(plain(&error)),
    }
}
