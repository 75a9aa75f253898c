//! Signals that a process waits for, instead of having handlers for them.
//!
//! Blocked signals stay pending until they are waited for, so none is lost before the wait begins, and none interrupts a
//! system call. This also works for process 1 of a container, for which the kernel drops a signal without a handler unless
//! the signal is blocked. Invariant: a program that [`start`] starts has no blocked signal.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::last_errno;

/// Blocked signals.
#[derive(Clone, Copy)]
pub struct Signals(libc::sigset_t);

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signals")
    }
}

/// A signal that came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Came {
    /// Its number.
    pub signal: c_int,
    /// A process sent it. Otherwise the kernel did, for example because a key was pressed: then it sent the signal to the
    /// whole process group.
    pub by_process: bool,
}

impl Signals {
    /// Blocks signals in the calling thread and the threads that it starts later.
    #[must_use]
    pub fn block(signals: &[c_int]) -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set before the other calls use it.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
            set
        };
        Self(set)
    }

    /// Unblocks the signals in the calling thread and the threads that it starts later. Those that are pending come at
    /// once.
    pub fn unblock(&self) {
        // SAFETY: the set is initialized, and the call only changes the mask of this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const self.0, ptr::null_mut()) };
    }

    /// Blocks them again, as [`Signals::block`] did.
    pub fn block_again(&self) {
        // SAFETY: the set is initialized, and the call only changes the mask of this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const self.0, ptr::null_mut()) };
    }

    /// Waits until one of the signals comes. None after `limit`.
    ///
    /// # Errors
    /// The errno of sigtimedwait(2), except EINTR and EAGAIN.
    pub fn wait(&self, limit: Option<Duration>) -> Result<Option<Came>, Errno> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| libc::timespec {
                tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
            let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
            // SAFETY: the set is initialized, `info` has room for the answer, and `timeout` is null or valid.
            let signal = unsafe { libc::sigtimedwait(&raw const self.0, info.as_mut_ptr(), timeout) };
            if signal >= 0 {
                // SAFETY: zeroes are a valid siginfo_t, and the call has filled it in.
                let by_process = unsafe { info.assume_init() }.si_code <= 0;
                return Ok(Some(Came { signal, by_process }));
            }
            match last_errno() {
                Errno::INTR => {}
                Errno::AGAIN => return Ok(None),
                errno => return Err(errno),
            }
        }
    }
}

/// Starts a program without blocked signals.
///
/// # Errors
/// As [`Command::spawn`].
pub fn start(command: &mut Command) -> io::Result<Child> {
    let unblock = || {
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set. Both calls are safe between fork and exec.
        match unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut())
        } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    };
    // SAFETY: `unblock` allocates nothing and takes no lock.
    unsafe { command.pre_exec(unblock) }.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sender_is_told_apart_and_nothing_is_no_error() {
        // In a thread, because the mask of the thread stays.
        let waited = std::thread::spawn(|| {
            let signals = Signals::block(&[libc::SIGURG]);
            assert_eq!(signals.wait(Some(Duration::ZERO)), Ok(None));
            let this = rustix::thread::gettid();
            // SAFETY: sends a signal that this thread blocks.
            unsafe { libc::syscall(libc::SYS_tkill, this.as_raw_nonzero().get(), libc::SIGURG) };
            signals.wait(Some(Duration::from_secs(5)))
        });
        let came = waited.join().unwrap().unwrap();
        assert_eq!(came, Some(Came { signal: libc::SIGURG, by_process: true }));
    }
}
