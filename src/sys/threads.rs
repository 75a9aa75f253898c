//! What the threads of another process are doing, as `/proc` tells.

use std::ffi::c_long;
use std::fs;
use std::io;
use std::os::fd::RawFd;

/// A thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Thread {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The letter of its state: see proc_pid_stat(5).
    pub state: char,
    /// The processor time that it took so far, in clock ticks.
    pub ticks: u64,
    /// The bytes that it read and wrote, and the calls that did so. None if the kernel does not tell.
    pub io: Option<u64>,
    /// The system call in which it waits.
    pub call: Call,
}

/// The system call in which a thread waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// It waits for another thread.
    Lock,
    /// read(2) of this descriptor.
    Read(RawFd),
    /// For something to happen: poll(2), accept(2), recvmsg(2) and their like.
    Event,
    /// Another call.
    Other,
    /// None: it runs.
    None,
    /// The kernel does not tell.
    Unknown,
}

/// The threads of a process.
///
/// # Errors
/// When there is no such process, or `/proc` does not show it.
pub fn of(pid: u32) -> io::Result<Vec<Thread>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let dir = entry?.path();
        // A thread that has ended meanwhile has no files.
        let Ok(stat) = fs::read_to_string(dir.join("stat")) else { continue };
        let Some(mut thread) = parse_stat(&stat) else { continue };
        thread.io = fs::read_to_string(dir.join("io")).ok().map(|text| sum(&text));
        thread.call = fs::read_to_string(dir.join("syscall")).map_or(Call::Unknown, |text| parse_call(&text));
        found.push(thread);
    }
    Ok(found)
}

/// Whether a debugger or tracer is attached to a process.
///
/// # Errors
/// As [`of`].
pub fn is_traced(pid: u32) -> io::Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    Ok(tracer.is_none_or(|tracer| tracer.trim() != "0"))
}

fn parse_stat(stat: &str) -> Option<Thread> {
    // The name is in parentheses, and can itself contain parentheses and spaces.
    let (head, rest) = stat.rsplit_once(')')?;
    let (id, name) = head.split_once('(')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let (user, system) = (fields.nth(10)?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?);
    Some(Thread {
        id: id.trim().parse().ok()?,
        name: name.to_owned(),
        state,
        ticks: user.saturating_add(system),
        io: None,
        call: Call::Unknown,
    })
}

/// The sum of all numbers in `/proc/PID/task/TID/io`.
fn sum(text: &str) -> u64 {
    let numbers = text.lines().filter_map(|line| line.split_once(':')?.1.trim().parse::<u64>().ok());
    numbers.fold(0, u64::wrapping_add)
}

fn parse_call(text: &str) -> Call {
    let mut words = text.split_whitespace();
    let number = match words.next() {
        Some("running") => return Call::None,
        Some(number) => number.parse::<c_long>().unwrap_or(-1),
        None => -1,
    };
    const EVENTS: &[c_long] = &[
        libc::SYS_ppoll,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_epoll_pwait,
        libc::SYS_wait4,
        libc::SYS_waitid,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
    ];
    match number {
        // In no system call, and not running: a page fault, or the thread was stopped.
        -1 => Call::Unknown,
        libc::SYS_futex => Call::Lock,
        libc::SYS_read => {
            let fd = words.next().and_then(|fd| u64::from_str_radix(fd.trim_start_matches("0x"), 16).ok());
            fd.and_then(|fd| RawFd::try_from(fd).ok()).map_or(Call::Unknown, Call::Read)
        }
        number if EVENTS.contains(&number) => Call::Event,
        _ => Call::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_is_found_with_what_it_waits_for() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (send, receive) = channel();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&read);
        let waits = std::thread::Builder::new().name("wait (a) pipe".into()).spawn(move || {
            send.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            rustix::io::read(&read, &mut [0; 1]).unwrap();
        });
        let id = receive.recv().unwrap().unsigned_abs();
        let thread = || of(std::process::id()).unwrap().into_iter().find(|thread| thread.id == id).unwrap();
        let mut seen = thread();
        for _ in 0..1000 {
            // Both are not read at one instant.
            if seen.call == Call::Read(fd) && seen.state == 'S' {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
            seen = thread();
        }
        assert_eq!((seen.call, seen.state, seen.name.as_str()), (Call::Read(fd), 'S', "wait (a) pipe"));
        rustix::io::write(&write, &[1]).unwrap();
        waits.unwrap().join().unwrap();
    }

    #[test]
    fn calls_are_told_apart() {
        let futex = format!("{} 0x7f 0x80 0x1 0x0 0x0 0x0 0x7ffd 0x7f\n", libc::SYS_futex);
        let read = format!("{} 0x5 0x7f 0x1 0x0 0x0 0x0 0x7ffd 0x7f\n", libc::SYS_read);
        let open = format!("{} 0x5 0x7f 0x1 0x0 0x0 0x0 0x7ffd 0x7f\n", libc::SYS_openat);
        for (text, call) in [
            ("running\n", Call::None),
            ("-1 0x7ffd 0x7f\n", Call::Unknown),
            ("", Call::Unknown),
            (futex.as_str(), Call::Lock),
            (read.as_str(), Call::Read(5)),
            (open.as_str(), Call::Other),
        ] {
            assert_eq!(parse_call(text), call, "{text}");
        }
        assert_eq!(sum("rchar: 5\nwchar: 7\n"), 12);
    }

    #[test]
    fn this_process_is_not_traced() {
        assert!(!is_traced(std::process::id()).unwrap());
        assert!(of(u32::MAX).is_err());
    }
}
