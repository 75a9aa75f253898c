//! What a process inherits from whoever started it and a daemon must not live by: signal dispositions, the signal
//! mask, and resource limits.
//!
//! Invariant: after [`reset`] and [`serve_on`] no signal ends the process but those that are meant to, and no limit
//! that may be raised is left.
#![allow(unsafe_code)]

use std::ffi::c_int;

use rustix::process::{Resource, Rlimit};

/// For every command: signals arrive, and a child's end is told to whoever waits for it.
pub fn reset() {
    // With SIGCHLD ignored the kernel reaps children by itself, and waiting for one fails.
    dispose(libc::SIGCHLD, libc::SIG_DFL);
    // SAFETY: `set` is made before it is used, and the calls touch this thread's mask only.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// For a process that serves a mount: signals that end a process by default and are not meant to end a mount are
/// ignored, and limits are raised as far as they can be.
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
        // Of limits: a write beyond the one of file sizes fails with EFBIG then.
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
    // SAFETY: `how` is one of the two dispositions that run no code of ours.
    unsafe { libc::signal(signal, how) };
}

/// Takes a limit away where we may, else raises it to the hard one.
fn raise(resource: Resource) {
    let now = rustix::process::getrlimit(resource);
    if now.current.is_none() {
        return;
    }
    // Meant for the programs of a shell, not for a service that all programs in a space use. Root may say so.
    if rustix::process::setrlimit(resource, Rlimit { current: None, maximum: None }).is_err() {
        set(resource, Rlimit { current: now.maximum, maximum: now.maximum });
    }
}

fn set(resource: Resource, limit: Rlimit) {
    if let Err(errno) = rustix::process::setrlimit(resource, limit) {
        tracing::debug!(?resource, %errno, "a limit stays");
    }
}

/// How many more bytes of memory the limits let this process map; None when there is no limit.
#[must_use]
pub fn memory_room() -> Option<u64> {
    let limits = [(Resource::As, 0), (Resource::Data, 5)];
    let limited = limits.map(|(resource, field)| (rustix::process::getrlimit(resource).current, field));
    if limited.iter().all(|(limit, _)| limit.is_none()) {
        return None;
    }
    // In pages: all of it, resident, shared, text, 0, data and stack.
    let told = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let page = rustix::param::page_size() as u64;
    let used = |field| told.split_whitespace().nth(field).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let rooms =
        limited.iter().filter_map(|(limit, field)| Some((*limit)?.saturating_sub(used(*field) * page)));
    rooms.min()
}

/// Has all threads allocate from one place: each would else reserve 64 MB of addresses of its own.
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
        // Nothing is changed here: other tests share the process.
        let limit = rustix::process::getrlimit(Resource::As).current;
        assert!(memory_room().is_none_or(|room| limit.is_none_or(|limit| room <= limit)));
    }
}
