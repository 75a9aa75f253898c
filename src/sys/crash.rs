//! Runs a function in the thread that is about to crash.
//!
//! The process then dies of the same signal as without it, so that whoever waits for it learns the cause.
//!
//! Limit: a thread whose stack has overflowed needs an alternate stack for this. Threads of the standard library have one.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use rustix::io::Errno;

use super::last_errno;

/// The signals by which a process dies of its own fault.
const CRASHES: [c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGILL, libc::SIGFPE, libc::SIGSYS];

/// Whether a signal says that the process itself went wrong.
#[must_use]
pub fn is_crash(signal: c_int) -> bool {
    CRASHES.contains(&signal)
}

/// `SI_KERNEL` of `asm-generic/siginfo.h`.
const SI_KERNEL: c_int = 0x80;

static NOTE: OnceLock<fn()> = OnceLock::new();

/// Has `note` called by a thread that crashes. It must not allocate, lock or wait. Only the first call has an effect.
///
/// # Errors
/// Those of sigaction(2).
pub fn before(note: fn()) -> Result<(), Errno> {
    NOTE.get_or_init(|| note);
    CRASHES.iter().try_for_each(|signal| {
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: a zeroed `sigaction` is a valid one: the default action, no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_flags = flags;
        action.sa_sigaction = on_crash as *const () as usize;
        // SAFETY: `action` is initialised. The handler calls only functions that a handler may call.
        match unsafe { libc::sigaction(*signal, &raw const action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(last_errno()),
        }
    })
}

extern "C" fn on_crash(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    if let Some(note) = NOTE.get() {
        note();
    }
    // SAFETY: a zeroed `sigaction` is the default action. Both calls may be made by a handler. With SA_SIGINFO the kernel
    // passes a valid `info`.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        // A fault of the processor happens again when this returns. A signal that was sent (by a process, or by the kernel
        // in the name of a tracer) does not, so it is sent again: it waits until this returns.
        if !(1..SI_KERNEL).contains(&(*info).si_code) {
            libc::raise(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    /// What a child does that is to crash: the test program itself, with this variable.
    const HOW: &str = "HOLOFS_TEST_CRASH";

    fn noted() {
        // SAFETY: write(2) may be called by a handler, with a buffer that lives long enough.
        unsafe { libc::write(2, c"noted".as_ptr().cast(), 5) };
    }

    #[test]
    fn a_crash_is_noted_and_keeps_its_signal() {
        if let Ok(how) = std::env::var(HOW) {
            super::before(noted).unwrap();
            match how.as_str() {
                "abort" => std::process::abort(),
                "sent" => {
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::SEGV)
                        .unwrap();
                    std::thread::sleep(std::time::Duration::from_secs(10));
                }
                _ => {
                    let page = memmap2::MmapMut::map_anon(4096).unwrap();
                    let gone = page.as_ptr();
                    drop(page);
                    // SAFETY: none; this is to crash.
                    unsafe { std::ptr::read_volatile(gone) };
                }
            }
            unreachable!("it has crashed");
        }
        for (how, signal) in [("abort", libc::SIGABRT), ("sent", libc::SIGSEGV), ("fault", libc::SIGSEGV)] {
            let name = std::thread::current().name().unwrap().to_owned();
            let done = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", &name, "--nocapture"])
                .env(HOW, how)
                .output()
                .unwrap();
            assert_eq!(done.status.signal(), Some(signal), "{how}: {done:?}");
            assert!(String::from_utf8_lossy(&done.stderr).contains("noted"), "{how}: {done:?}");
        }
    }
}
