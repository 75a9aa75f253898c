//! strace beside the daemon: it counts the calls that change the disk, lets one of them fail, or kills the daemon there.
//!
//! The product has no hook for this. strace counts each call of each thread by itself, so a point is "the n-th call of
//! this name in one thread".

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Every call of the daemon by which something on the disk can change, and those that need a new descriptor.
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

/// The call by which the daemon answers the kernel.
const ANSWER: &str = "writev";

/// The n-th call of a name in one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub call: String,
    pub nth: usize,
    /// The call as strace printed it, for whoever reads a failure.
    pub line: String,
}

impl Point {
    /// The errors that this call can have on a disk that is full or broken, or without a free descriptor.
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

    /// What strace is told, to let this call fail.
    pub fn failing(&self, error: &str) -> String {
        format!("inject={}:error={error}:when={}", self.call, self.nth)
    }

    /// What strace is told, to kill the daemon instead of this call.
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
    /// Notes every changing call, and the answers.
    #[track_caller]
    pub fn counting(pid: i32, dir: &Path) -> Self {
        // An architecture need not have all of them, nor strace know the newest.
        let calls: Vec<String> = CHANGING.iter().chain([&ANSWER]).map(|call| format!("?{call}")).collect();
        Self::attach(pid, dir, &[format!("trace={}", calls.join(","))])
    }

    /// Does what `inject` says to one call.
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
        let mut said = BufReader::new(strace.stderr.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("strace's first line");
        assert!(line.contains(" attached"), "strace: {line}");
        // It must not wait for us to read the rest.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { strace, log }
    }

    /// Detaches, and returns what was seen.
    pub fn end(mut self) -> Vec<String> {
        self.stop();
        let log = std::fs::read(&self.log).expect("strace's log");
        String::from_utf8_lossy(&log).lines().map(str::to_owned).collect()
    }

    /// strace can wait for ever for a process that was killed while it let go of it.
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
        self.strace.wait().expect("strace ends");
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The points in what was seen, each once, in the order of their first appearance.
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

/// Whether a point is the answer to the kernel.
pub fn is_answer(point: &Point) -> bool {
    point.call == ANSWER
}

/// Whether what was to be done to a call was done.
pub fn was_injected(seen: &[String]) -> bool {
    seen.iter().any(|line| line.contains("(INJECTED)"))
}
