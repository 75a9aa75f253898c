//! Attaches strace to the daemon. strace counts the system calls that change the disk, makes one of them fail, or kills
//! the daemon there.
//!
//! The product has no hook for this. strace counts each system call of each thread separately, so a point is "the n-th
//! call of this name in one thread".

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Every system call by which the daemon can change the disk, and those that need a new descriptor.
const CHANGING: &[&str] = &[
    "open",
    "openat",
    "openat2",
    "mkdirat",
    "mknodat",
    "unlinkat",
    "renameat",
    "renameat2",
    "linkat",
    "symlinkat",
    "ftruncate",
    "fallocate",
    "write",
    "pwrite64",
    "copy_file_range",
    "sendfile",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "utimensat",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "removexattr",
    "lremovexattr",
    "fremovexattr",
    "ioctl",
    "fsync",
    "fdatasync",
    "syncfs",
];

/// The system call by which the daemon replies to the kernel.
const ANSWER: &str = "writev";

/// The n-th call of this name in one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub call: String,
    pub nth: usize,
    /// The call as strace printed it, for the reader of a failure.
    pub line: String,
}

impl Point {
    /// The errors that this call can return on a full or broken disk, or without a free descriptor.
    pub fn errors(&self) -> &'static [&'static str] {
        match self.call.as_str() {
            "open" | "openat" | "openat2"
                if self.line.contains("O_CREAT") || self.line.contains("O_TMPFILE") =>
            {
                &["ENOSPC", "EMFILE"]
            }
            "open" | "openat" | "openat2" => &["EMFILE"],
            "unlinkat" | "fchmod" | "fchmodat" | "fchmodat2" | "fchown" | "fchownat" | "utimensat"
            | "fsync" | "fdatasync" | "syncfs" => &["EIO"],
            _ => &["ENOSPC", "EIO"],
        }
    }

    /// The strace option that makes this call fail.
    pub fn failing(&self, error: &str) -> String {
        format!("inject={}:error={error}:when={}", self.call, self.nth)
    }

    /// The strace option that kills the daemon instead of this call.
    pub fn killing(&self) -> String {
        format!("inject={}:signal=SIGKILL:when={}", self.call, self.nth)
    }
}

/// strace, attached to all threads of a process.
#[derive(Debug)]
pub struct Trace {
    strace: Child,
    log: PathBuf,
}

impl Trace {
    /// Records every call that changes the disk, and the replies.
    #[track_caller]
    pub fn counting(pid: i32, dir: &Path) -> Self {
        // "?" because an architecture may lack some of them, and strace may not know the newest.
        let calls: Vec<String> = CHANGING.iter().chain([&ANSWER]).map(|call| format!("?{call}")).collect();
        Self::attach(pid, dir, &[format!("trace={}", calls.join(","))])
    }

    /// Disturbs one call as `inject` says.
    #[track_caller]
    pub fn injecting(pid: i32, dir: &Path, inject: &str) -> Self {
        let call = inject.split(['=', ':']).nth(1).expect("inject=CALL:…");
        Self::attach(pid, dir, &[format!("trace={call}"), inject.to_owned()])
    }

    #[track_caller]
    fn attach(pid: i32, dir: &Path, expressions: &[String]) -> Self {
        let log = dir.join("strace.log");
        let mut command = Command::new("strace");
        command.args(["-f", "-s", "64", "-p", &pid.to_string(), "-o"]).arg(&log);
        for expression in expressions {
            command.arg("-e").arg(expression);
        }
        let mut strace = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("strace is needed: {error}"));
        let mut output = BufReader::new(strace.stderr.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("strace's first line");
        assert!(line.contains(" attached"), "strace: {line}");
        // strace must not block on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Self { strace, log }
    }

    /// Detaches, and returns the recorded lines.
    pub fn end(mut self) -> Vec<String> {
        self.stop();
        let log = std::fs::read(&self.log).expect("strace's log");
        String::from_utf8_lossy(&log).lines().map(str::to_owned).collect()
    }

    /// strace can hang when the process is killed while strace detaches from it.
    fn stop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.strace.id()).expect("a pid")).expect("a pid");
        let deadline = Instant::now() + Duration::from_secs(2);
        if let Ok(None) = self.strace.try_wait() {
            rustix::process::kill_process(pid, Signal::INT).expect("strace is ours");
        }
        while let Ok(None) = self.strace.try_wait() {
            if Instant::now() > deadline {
                self.strace.kill().expect("strace is ours");
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.strace.wait().expect("strace has ended");
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The points in the recorded lines, each once, in the order of their first appearance.
pub fn points(seen: &[String]) -> Vec<Point> {
    let mut counts = std::collections::HashMap::new();
    let mut out: Vec<Point> = Vec::new();
    for line in seen {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if !call.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
            continue;
        }
        let count = counts.entry((thread.to_owned(), call.to_owned())).or_insert(0);
        *count += 1;
        let point = Point { call: call.to_owned(), nth: *count, line: rest.trim().to_owned() };
        if !out.iter().any(|other| (&other.call, other.nth) == (&point.call, point.nth)) {
            out.push(point);
        }
    }
    out
}

/// Whether a point is the reply to the kernel.
pub fn is_answer(point: &Point) -> bool {
    point.call == ANSWER
}

/// Whether the call was disturbed.
pub fn was_injected(seen: &[String]) -> bool {
    seen.iter().any(|line| line.contains("(INJECTED)"))
}
