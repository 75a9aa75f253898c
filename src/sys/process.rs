//! Processes: forking and detaching, questions with a timeout, memory, priority, and the state of other processes.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use super::{errno_of, last_errno};

/// Closes all inherited descriptors except standard input, output and error. A daemon would keep them open for ever, for
/// example a pipe whose reader waits for EOF. Must be called before the program opens anything.
///
/// # Errors
/// The errno of close_range(2), which needs Linux 5.9.
pub fn close_inherited() -> Result<(), Errno> {
    // SAFETY: called at the start of the program, when no value owns a descriptor. By number, because older C libraries
    // have no function for it.
    match unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// The descriptors that were inherited, except standard input, output and error.
static INHERITED: OnceLock<Vec<RawFd>> = OnceLock::new();

/// Notes which descriptors were inherited, for [`close_noted`]. For a program that passes them on to another one, and also
/// starts a daemon, which must not keep them. Must be called before the program opens anything.
pub fn note_inherited() {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    // The descriptor of the listing itself is closed by now.
    // SAFETY: the call takes no pointers.
    let is_open = |fd: &RawFd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0;
    INHERITED.get_or_init(|| open.into_iter().filter(is_open).collect());
}

/// Closes the descriptors that [`note_inherited`] noted. For the daemon.
pub fn close_noted() {
    for fd in INHERITED.get().into_iter().flatten() {
        // SAFETY: it was open before the program opened anything, so no value owns it, and nothing else closes it.
        unsafe { libc::close(*fd) };
    }
}

/// Forks. The process must have a single thread. Returns the process id of the child to the parent, and None to the child.
///
/// # Errors
/// EBUSY when there are more threads, ENOENT without `/proc`, and the errno of fork(2).
pub fn fork() -> Result<Option<Pid>, Errno> {
    Alone::check()?;
    // SAFETY: there is one thread, so no other thread can hold a lock that the child would wait for.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// Proof that this process has a single thread. Whoever has one starts no thread.
#[derive(Debug)]
pub struct Alone(std::marker::PhantomData<*const ()>);

impl Alone {
    /// Checks it.
    ///
    /// # Errors
    /// EBUSY when there are more threads, ENOENT without `/proc`.
    pub fn check() -> Result<Self, Errno> {
        // A thread that was just joined can still be in the list.
        let deadline = Instant::now() + Duration::from_secs(1);
        let threads = || std::fs::read_dir("/proc/self/task").map(Iterator::count);
        while threads().map_err(|error| errno_of(&error))? > 1 {
            if Instant::now() > deadline {
                return Err(Errno::BUSY);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self(std::marker::PhantomData))
    }

    /// Forks a child that shares the table of descriptors with this process: what one opens or closes, the other has
    /// open or closed, and everything stays open when the child dies. Returns None to the child. The child's first
    /// thread has the C library's notes of its parent's, so it must only start a thread and wait for it.
    ///
    /// Invariant: neither process closes a descriptor that the other one uses.
    ///
    /// # Errors
    /// The errno of clone(2).
    pub fn fork_sharing_descriptors(&self) -> Result<Option<Pid>, Errno> {
        let flags = libc::CLONE_FILES | libc::SIGCHLD;
        // SAFETY: there is one thread, so no other thread can hold a lock that the child would wait for. Without
        // CLONE_VM and without a stack, clone(2) works as fork(2): the child has a copy of the memory and of the stack.
        match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
            -1 => Err(last_errno()),
            child => Ok(i32::try_from(child).ok().and_then(Pid::from_raw)),
        }
    }
}

/// Closes all descriptors but standard input, output and error and those in `kept`, which must be sorted. For a process
/// that takes the place of another one and has its table of descriptors. No value may own one of those that are closed.
///
/// # Errors
/// The errno of close_range(2), which needs Linux 5.9.
pub fn close_all_but(kept: &[RawFd]) -> Result<(), Errno> {
    let close = |from: RawFd, to: u32| {
        let from = u32::try_from(from).unwrap_or(3);
        if from > to {
            return Ok(());
        }
        // SAFETY: the caller promises that no value owns a descriptor of this range.
        match unsafe { libc::syscall(libc::SYS_close_range, from, to, 0u32) } {
            0 => Ok(()),
            _ => Err(last_errno()),
        }
    };
    let mut from = 3;
    for fd in kept.iter().copied().filter(|fd| *fd >= 3) {
        if let Some(before) = fd.checked_sub(1).and_then(|fd| u32::try_from(fd).ok()) {
            close(from, before)?;
        }
        from = fd.saturating_add(1);
    }
    close(from, u32::MAX)
}

/// Replaces this program by the one behind the descriptor `program`, and ends the other threads. The descriptors `passed`
/// stay open, and the others are closed. Returns only when that is not possible; nothing has changed then.
pub fn exec(program: RawFd, args: &[String], passed: &[RawFd]) -> io::Error {
    passed.iter().for_each(|fd| set_close_on_exec(*fd, false));
    let error = Command::new(format!("/proc/self/fd/{program}")).arg0("holofs").args(args).exec();
    passed.iter().for_each(|fd| set_close_on_exec(*fd, true));
    error
}

/// Starts a program that gets the descriptors `passed`. No other thread may start a program at the same time, which would
/// get them, too.
///
/// The memory of this process is not copied, as fork(2) does. After a fork, the first write to each page takes a copy, and
/// the kernel makes none for a process that is being killed: requests that it was just reading would get EIO.
///
/// # Errors
/// As [`Command::spawn`].
pub fn start_with(command: &mut Command, passed: &[RawFd]) -> io::Result<Child> {
    passed.iter().for_each(|fd| set_close_on_exec(*fd, false));
    // The library uses posix_spawn(3), because `command` asks for nothing that needs a fork.
    let started = command.spawn();
    passed.iter().for_each(|fd| set_close_on_exec(*fd, true));
    started
}

/// Closes all descriptors at the next exec, except standard input, output and error.
pub fn close_all_on_exec() {
    let open = open_descriptors().unwrap_or_default().into_iter().map(|(fd, ..)| fd);
    open.filter(|fd| *fd > 2).for_each(|fd| set_close_on_exec(fd, true));
}

fn set_close_on_exec(fd: RawFd, closes: bool) {
    // SAFETY: the call takes no pointers, and changes only what exec does with the descriptor, if it is open.
    unsafe { libc::fcntl(fd, libc::F_SETFD, if closes { libc::FD_CLOEXEC } else { 0 }) };
}

/// Owns a descriptor that an earlier program of this process left open. Called once for each.
#[must_use]
pub fn inherit(fd: RawFd) -> OwnedFd {
    // SAFETY: no value owns it, because this program did not open it. If it is not open, its uses fail.
    unsafe { OwnedFd::from_raw_fd(fd.max(3)) }
}

/// A further descriptor of the same file as the one with this number.
///
/// # Errors
/// Those of fcntl(2): EBADF if nothing is open under the number.
pub fn duplicate(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes no pointers.
    match unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) } {
        -1 => Err(last_errno()),
        // SAFETY: it was made just now, and no other value owns it.
        new => Ok(unsafe { OwnedFd::from_raw_fd(new) }),
    }
}

/// The numbers of all open descriptors, and the device and inode of each.
///
/// # Errors
/// ENOENT without `/proc`.
pub fn open_descriptors() -> Result<Vec<(RawFd, u64, u64)>, Errno> {
    let listing = std::fs::read_dir("/proc/self/fd").map_err(|error| errno_of(&error))?;
    let numbers: Vec<RawFd> =
        listing.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The descriptor of the listing itself is closed by now.
    Ok(numbers.into_iter().filter_map(|fd| file_of(fd).map(|(dev, ino)| (fd, dev, ino))).collect())
}

/// The device and inode of what is open under this number. None if nothing is.
#[must_use]
pub fn file_of(fd: RawFd) -> Option<(u64, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` has room for the answer, and is read only if the call has filled it in.
    unsafe {
        if libc::fstat(fd, stat.as_mut_ptr()) != 0 {
            return None;
        }
        let stat = stat.assume_init();
        Some((stat.st_dev, stat.st_ino))
    }
}

/// Runs `question` in a child process and returns its result; None after the timeout `limit`. The process must have a
/// single thread.
///
/// A system call on a mount whose daemon is stopped, or hangs on its disk, does not return. A process with a thread in such
/// a call possibly cannot exit. Therefore a child process makes the call, and is abandoned after the timeout. It has none of
/// the standard streams, so whoever reads our output until EOF does not wait for the child.
///
/// # Errors
/// When the child cannot be started.
pub fn ask(limit: Duration, question: impl FnOnce() -> Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    ask_child(limit, None, question)
}

/// As [`ask`], for a question that may take long: the child keeps only the descriptor `kept`, which is all that the question
/// may use. So it holds no lock of this process, which may be killed meanwhile.
///
/// # Errors
/// As [`ask`].
pub fn ask_apart(
    limit: Duration,
    kept: BorrowedFd<'_>,
    question: impl FnOnce() -> Vec<u8>,
) -> io::Result<Option<Vec<u8>>> {
    ask_child(limit, Some(kept), question)
}

fn ask_child(
    limit: Duration,
    kept: Option<BorrowedFd<'_>>,
    question: impl FnOnce() -> Vec<u8>,
) -> io::Result<Option<Vec<u8>>> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    match fork()? {
        Some(child) => {
            drop(write);
            let answer = read_until(read, Instant::now() + limit)?;
            // A child that has answered exits at once. Another one may be unable to, and init reaps it later.
            let how = if answer.is_some() { WaitOptions::empty() } else { WaitOptions::NOHANG };
            if answer.is_none() {
                rustix::process::kill_process(child, Signal::KILL)?;
            }
            rustix::process::waitpid(Some(child), how)?;
            Ok(answer)
        }
        None => {
            drop(read);
            if let Some(kept) = kept {
                let mut both = [kept.as_raw_fd(), write.as_raw_fd()];
                both.sort_unstable();
                // The child drops nothing of what it has from its parent. An old kernel cannot close all at once.
                if let Err(errno) = close_all_but(&both) {
                    tracing::debug!(%errno, "a child keeps the descriptors of its parent");
                }
            }
            let written =
                detach().map_err(io::Error::from).and_then(|()| File::from(write).write_all(&question()));
            // SAFETY: the call ends the process. It skips the exit handlers, which belong to the parent.
            unsafe { libc::_exit(i32::from(written.is_err())) }
        }
    }
}

/// Reads a pipe until EOF. None when `deadline` passes first.
///
/// # Errors
/// Those of poll(2) and read(2).
pub fn read_until(pipe: OwnedFd, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    read_waiting(pipe, deadline, Duration::MAX, &mut || Duration::MAX)
}

/// Reads a pipe until EOF, or `limit` has passed, or there are `most` bytes.
///
/// # Errors
/// Those of poll(2) and read(2).
pub fn read_some(pipe: OwnedFd, limit: Duration, most: usize) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + limit;
    let (mut pipe, mut all, mut piece) = (File::from(pipe), Vec::new(), [0; 512]);
    while all.len() < most {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => break,
            Err(Errno::INTR) => continue,
            ready => ready?,
        };
        match pipe.read(&mut piece)? {
            0 => break,
            n => all.extend_from_slice(piece.get(..n).unwrap_or_default()),
        }
    }
    Ok(all)
}

/// As [`read_until`]. Calls `waiting` when nothing has come for the time `first`, and then each time after what it returned.
///
/// # Errors
/// As [`read_until`].
pub fn read_waiting(
    pipe: OwnedFd,
    deadline: Instant,
    first: Duration,
    waiting: &mut dyn FnMut() -> Duration,
) -> io::Result<Option<Vec<u8>>> {
    let mut patience = first;
    let mut pipe = File::from(pipe);
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left.min(patience)).map_err(io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if patience < left => {
                patience = waiting();
                continue;
            }
            Ok(0) => return Ok(None),
            Err(Errno::INTR) => continue,
            ready => ready?,
        };
        match pipe.read(&mut piece)? {
            0 => return Ok(Some(all)),
            n => all.extend_from_slice(piece.get(..n).unwrap_or_default()),
        }
    }
}

/// Whether permission bits do not apply to this process (`CAP_DAC_OVERRIDE`).
#[must_use]
pub fn overrides_permissions() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::DAC_OVERRIDE))
}

/// Makes malloc map every block of 4 MiB or more. Mapped memory is zeroed by the kernel and takes no page before it is used.
///
/// By default glibc raises that threshold to the size of the largest block that was freed. It then takes the buffers of
/// the FUSE loops from its heap and clears a large part of them, which costs a hundred page faults for each mount.
pub fn map_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
    }
}

/// Returns freed memory to the system. A daemon would otherwise keep the memory that compiling a catalog took. Other C
/// libraries than glibc return it by themselves.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointers and releases free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives the calling thread the lowest priority for processor and disk.
///
/// # Errors
/// The errno of the calls.
pub fn be_idle() -> Result<(), Errno> {
    /// `IOPRIO_WHO_PROCESS`, and `IOPRIO_CLASS_IDLE` shifted by `IOPRIO_CLASS_SHIFT`, of `linux/ioprio.h`.
    const WHO_PROCESS: libc::c_long = 1;
    const IDLE: libc::c_long = 3 << 13;
    // Process 0 means the calling thread.
    rustix::process::setpriority_process(None, 19)?;
    // SAFETY: the call takes no pointers.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Detaches from the terminal, the standard streams and the current directory.
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

/// The umask, without changing it. 022 if `/proc` does not tell.
#[must_use]
pub fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").ok();
    let line = status.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("Umask:")));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

/// The number of processors that this process can use.
#[must_use]
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The start time of a process in clock ticks since boot. Together with the process id it identifies a process, because ids
/// are reused. None when there is no such process, or it is a zombie. Zombies can stay for long in a container whose init
/// does not reap them.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    stat(pid)?.split_whitespace().nth(19)?.parse().ok()
}

/// The parent of a process. None when there is no such process, or it is a zombie.
#[must_use]
pub fn parent(pid: i32) -> Option<u32> {
    stat(pid)?.split_whitespace().nth(1)?.parse().ok()
}

/// The fields of `/proc/PID/stat` from the state on. None when there is no such process, or it is a zombie.
fn stat(pid: i32) -> Option<String> {
    let file = File::open(format!("/proc/{pid}/stat")).ok()?;
    // With room from the start, it is read in one call. A line is shorter.
    let mut stat = String::with_capacity(2048);
    file.take(2048).read_to_string(&mut stat).ok()?;
    // The second field is the name in parentheses, which can itself contain parentheses and spaces.
    let (_, rest) = stat.rsplit_once(')')?;
    let rest = rest.trim_start();
    (!rest.starts_with(['Z', 'X'])).then(|| rest.to_owned())
}

/// How long a process may take to stop. It takes that long only on a machine where it gets no processor time.
const STOPS_WITHIN: Duration = Duration::from_secs(1);

/// Kills the process with this id and start time, and its children. It is stopped before the first of them dies, so it does
/// not replace that one. It dies last, so no child learns of its death and takes its place.
///
/// # Errors
/// ESRCH when that process has ended, and EPERM.
pub fn kill_with_children(pid: u32, started: u64) -> Result<(), Errno> {
    let process = open(pid, started)?;
    rustix::process::pidfd_send_signal(&process, Signal::STOP)?;
    // It may be about to start a child.
    let deadline = Instant::now() + STOPS_WITHIN;
    while !matches!(condition(pid), Condition::Stopped | Condition::Gone) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    for (child, started) in children(pid) {
        let killed = open(child, started)
            .and_then(|process| rustix::process::pidfd_send_signal(process, Signal::KILL));
        if let Err(errno) = killed {
            tracing::debug!(child, %errno, "the child of a process that is killed is not killed");
        }
    }
    rustix::process::pidfd_send_signal(process, Signal::KILL)
}

/// A pidfd of the process with this id and start time: the id cannot be reused between this check and a signal.
fn open(pid: u32, started: u64) -> Result<OwnedFd, Errno> {
    let raw = i32::try_from(pid).map_err(|_| Errno::SRCH)?;
    let process = rustix::process::pidfd_open(Pid::from_raw(raw).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    if start_time(raw) == Some(started) { Ok(process) } else { Err(Errno::SRCH) }
}

/// The children of a process, without zombies: the id and the start time of each. Not every kernel has a list of them, so
/// all processes are looked at.
fn children(pid: u32) -> Vec<(u32, u64)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let children = all.filter(|child| parent(*child) == Some(pid));
    children.filter_map(|child| Some((child.unsigned_abs(), start_time(child)?))).collect()
}

/// Why a process possibly does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// It was stopped by SIGSTOP or a debugger.
    Stopped,
    /// A thread is in uninterruptible sleep: it waits for a disk or another filesystem.
    WaitsForDisk,
    /// None of the other conditions.
    Running,
    /// There is no such process.
    Gone,
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stopped => "it is stopped; continue it with kill -CONT",
            Self::WaitsForDisk => "it waits for a disk",
            Self::Running => "it is running",
            Self::Gone => "it is gone",
        })
    }
}

/// Reads the condition of a process from `/proc`.
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
    fn children_are_killed_with_their_parent() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & sleep 1000 & echo; wait"]).stdout(std::process::Stdio::piped());
        let mut parent = command.spawn().unwrap();
        let mut line = [0];
        parent.stdout.take().unwrap().read_exact(&mut line).unwrap();
        let of = |pid: u32| start_time(i32::try_from(pid).unwrap());
        let (pid, started) = (parent.id(), of(parent.id()).unwrap());
        assert_eq!(kill_with_children(pid, started + 1), Err(Errno::SRCH));
        let children = children(pid);
        assert_eq!(children.len(), 2);
        kill_with_children(pid, started).unwrap();
        parent.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while children.iter().any(|(child, started)| of(*child) == Some(*started)) {
            assert!(Instant::now() < deadline, "a child lives on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_zombie_has_no_start_time() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while start_time(pid).is_some() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        child.wait().unwrap();
    }
}
