//! Resets what a process inherits from its parent and a daemon should not depend on: signal dispositions, the signal mask,
//! and resource limits.
//!
//! Invariant: after [`reset`] and [`serve_on`], only SIGTERM, SIGINT, SIGHUP and the signals of a crash end the process, and
//! every limit is raised as far as possible.
#![allow(unsafe_code)]

use std::ffi::c_int;

use rustix::process::{Resource, Rlimit};

/// Unblocks all signals, and resets SIGCHLD, so that child processes can be waited for. For every command.
pub fn reset() {
    // While SIGCHLD is ignored, the kernel reaps children itself and waitpid(2) fails.
    dispose(libc::SIGCHLD, libc::SIG_DFL);
    // SAFETY: `set` is initialized before it is used, and the calls only change the mask of this thread.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Ignores signals that end a process by default and should not end a mount, and raises the limits. For a process that
/// serves a mount.
pub fn serve_on() {
    let ignored = [
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGPIPE,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
        libc::SIGQUIT,
        // A write beyond the file size limit then fails with EFBIG.
        libc::SIGXFSZ,
        libc::SIGXCPU,
    ];
    for signal in ignored.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        dispose(signal, libc::SIG_IGN);
    }
    for resource in [Resource::Cpu, Resource::Fsize, Resource::As, Resource::Data, Resource::Nproc] {
        raise(resource);
    }
    let files = rustix::process::getrlimit(Resource::Nofile);
    set(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
    if let Some(seconds) = rustix::process::getrlimit(Resource::Cpu).current {
        tracing::warn!(seconds, "the hard limit of processor time (ulimit -t) will end this mount");
    }
}

fn dispose(signal: c_int, how: libc::sighandler_t) {
    // SAFETY: `how` is SIG_DFL or SIG_IGN, so no handler of this program runs.
    unsafe { libc::signal(signal, how) };
}

/// Removes a limit if possible, and otherwise raises it to the hard limit.
fn raise(resource: Resource) {
    let now = rustix::process::getrlimit(resource);
    if now.current.is_none() {
        return;
    }
    // The limit was meant for the programs of a shell, not for a daemon that serves all programs in a space. Only root can
    // remove it.
    if rustix::process::setrlimit(resource, Rlimit { current: None, maximum: None }).is_err() {
        set(resource, Rlimit { current: now.maximum, maximum: now.maximum });
    }
}

fn set(resource: Resource, limit: Rlimit) {
    if let Err(errno) = rustix::process::setrlimit(resource, limit) {
        tracing::debug!(?resource, %errno, "cannot raise a limit");
    }
}

/// How many more bytes of memory the limits let this process map. None without a limit, 0 if the use is not known.
#[must_use]
pub fn memory_room() -> Option<u64> {
    let limits = [(Resource::As, 0), (Resource::Data, 5)];
    let limited = limits.map(|(resource, field)| (rustix::process::getrlimit(resource).current, field));
    if limited.iter().all(|(limit, _)| limit.is_none()) {
        return None;
    }
    // The fields are numbers of pages: total, resident, shared, text, 0, data and stack.
    let statm = std::fs::read_to_string("/proc/self/statm").ok();
    let page = rustix::param::page_size() as u64;
    let used = |field| statm.as_deref()?.split_whitespace().nth(field)?.parse::<u64>().ok();
    let room = |limit: u64, field| used(field).map_or(0, |pages| limit.saturating_sub(pages * page));
    limited.into_iter().filter_map(|(limit, field)| Some(room(limit?, field))).min()
}

/// Makes all threads use one malloc arena. Each further arena reserves 64 MB of address space.
pub fn spare_addresses() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes two numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_by_its_limit() {
        // The test sets no limit, because other tests share the process.
        let limit = rustix::process::getrlimit(Resource::As).current;
        assert!(memory_room().is_none_or(|room| limit.is_none_or(|limit| room <= limit)));
    }
}
