//! Processes: becoming a daemon, limits, and who is alive.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Which side of a fork this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forked {
    /// The caller, with the child's process id.
    Parent(i32),
    /// The new process.
    Child,
}

/// Closes every descriptor but the standard three: what a daemon was started with and would keep open for ever, such
/// as a pipe on whose end its caller waits. To be called before anything of ours is open.
///
/// # Errors
/// The errno of close_range(2), which is as old as Linux 5.9.
pub fn close_inherited() -> Result<(), Errno> {
    // SAFETY: called first thing by a program of one thread that has opened nothing, so no descriptor that it closes
    // belongs to a value of ours. By number, since older C libraries have no function for it.
    match unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Forks. Only while the process has a single thread.
///
/// # Errors
/// EBUSY when there are more threads, and the errno of fork(2).
pub fn fork() -> Result<Forked, Errno> {
    // A thread that was joined a moment ago can still be listed.
    let deadline = Instant::now() + Duration::from_secs(1);
    while threads() > 1 {
        if Instant::now() > deadline {
            return Err(Errno::BUSY);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: there is one thread (checked above), so no lock can be held by a thread that the child does not
    // have, and the child may go on using everything.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => Ok(Forked::Child),
        child => Ok(Forked::Parent(child)),
    }
}

/// Threads of this process; one where `/proc` does not tell.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Whether permission bits stop this process from nothing (`CAP_DAC_OVERRIDE`).
#[must_use]
pub fn overrides_permissions() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::DAC_OVERRIDE))
}

/// Has large blocks of memory come from the system, zeroed and untouched, whatever was freed before.
///
/// The C library else raises the size from which it does so to that of the largest block that was freed, takes the FUSE
/// loops' buffers from its heaps, and clears a good part of them: a hundred page faults at every mount.
pub fn map_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes two numbers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
    }
}

/// Gives freed memory back to the system: what a catalog took to compile, a daemon would keep for ever. Where the C
/// library has no such call it does so by itself.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets everybody else go first from now on: the calling thread gets what is left of processor and disk.
///
/// # Errors
/// The errno of the calls.
pub fn be_idle() -> Result<(), Errno> {
    /// `IOPRIO_WHO_PROCESS`, and `IOPRIO_CLASS_IDLE` shifted by `IOPRIO_CLASS_SHIFT`, of `linux/ioprio.h`.
    const WHO_PROCESS: libc::c_long = 1;
    const IDLE: libc::c_long = 3 << 13;
    // To the kernel the thread is the process 0.
    rustix::process::setpriority_process(None, 19)?;
    // SAFETY: the call takes three numbers.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Leaves the terminal, the standard streams and the directory it was started from.
///
/// # Errors
/// The errno of the calls.
pub fn detach() -> Result<(), Errno> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    let null: OwnedFd = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)
}

/// Sets the umask and returns the old one.
#[must_use]
pub fn replace_umask(mask: u32) -> u32 {
    rustix::process::umask(Mode::from_raw_mode(mask)).bits()
}

/// The umask, without changing it even for an instant.
#[must_use]
pub fn umask() -> u32 {
    let told = std::fs::read_to_string("/proc/self/status").ok();
    let line = told.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("Umask:")));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

/// Processors that this process may use.
#[must_use]
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// When a process was started, in clock ticks since the machine's start: with the id it names one process for
/// good. None when there is no such process, or only its exit status is left: in a container whose first process
/// reaps late or never, the dead stay listed.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything, parentheses and blanks included.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Kills a process, which must be the one that was started then.
///
/// # Errors
/// ESRCH when it has ended, and EPERM.
pub fn kill(pid: u32, started: u64) -> Result<(), Errno> {
    let raw = i32::try_from(pid).map_err(|_| Errno::SRCH)?;
    let pid = rustix::process::Pid::from_raw(raw).ok_or(Errno::SRCH)?;
    // By a descriptor, so that it cannot become another process between the look and the signal.
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    if start_time(raw) != Some(started) {
        return Err(Errno::SRCH);
    }
    rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL)
}

/// Why a process may not answer, as far as it can be seen from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Somebody has stopped it, by SIGSTOP or a debugger.
    Stopped,
    /// It waits for a disk, or for another filesystem.
    WaitsForDisk,
    /// Nothing shows.
    Running,
    /// There is no such process.
    Gone,
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stopped => "it is stopped; kill -CONT lets it go on",
            Self::WaitsForDisk => "it waits for a disk",
            Self::Running => "it is running",
            Self::Gone => "it is gone",
        })
    }
}

/// What keeps a process from answering.
#[must_use]
pub fn condition(pid: u32) -> Condition {
    let state = |path: std::path::PathBuf| {
        let stat = std::fs::read_to_string(path).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    match state(format!("/proc/{pid}/stat").into()) {
        None | Some('Z' | 'X') => return Condition::Gone,
        Some('T' | 't') => return Condition::Stopped,
        Some(_) => {}
    }
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    if tasks.filter_map(|task| state(task.path().join("stat"))).any(|state| state == 'D') {
        return Condition::WaitsForDisk;
    }
    Condition::Running
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_start_time() {
        assert!(start_time(i32::try_from(std::process::id()).unwrap()).is_some());
        assert_eq!(start_time(i32::MAX), None);
    }

    #[test]
    fn dead_but_not_reaped_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while start_time(pid).is_some() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        child.wait().unwrap();
    }
}
