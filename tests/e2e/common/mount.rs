//! A mounted space that unmounts itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::world::{Done, World, finish};

/// A live mount. Dropping it unmounts and waits for the daemon; a daemon that does not end fails the test.
#[derive(Debug)]
pub struct Mounted<'w> {
    world: &'w World,
    /// The name of the space, as given on the command line.
    pub space: String,
    /// The output of `holofs mount --json`.
    pub output: Value,
    path: PathBuf,
    pid: i32,
    live: bool,
}

impl<'w> Mounted<'w> {
    #[track_caller]
    pub(super) fn new(world: &'w World, space: &str, args: &[&str]) -> Self {
        let mut command = world.holofs();
        command.args(["--json", "mount"]).arg(world.home()).arg(space).args(args);
        Self::by(world, space, &mut command)
    }

    /// Mounts with a command of the caller, which must print the output of `holofs mount --json`.
    #[track_caller]
    pub fn by(world: &'w World, space: &str, command: &mut Command) -> Self {
        let done = finish(command);
        assert_eq!(done.code, 0, "mount failed; /dev/fuse and fusermount3 are needed: {done:?}");
        let output: Value =
            serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"));
        let path = PathBuf::from(output["path"].as_str().expect("path"));
        let pid = i32::try_from(output["pid"].as_i64().expect("pid")).expect("pid");
        assert!(world.mounts().contains(&path), "not in mountinfo: {}", path.display());
        Self { world, space: space.to_owned(), output, path, pid, live: true }
    }

    /// Adopts a mount that another command made of a space of this world.
    #[track_caller]
    pub fn adopt(world: &'w World, space: &str) -> Self {
        Self::new(world, space, &[])
    }

    /// The mountpoint.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of an entry of the space.
    pub fn at(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative)
    }

    /// The space's name on disk.
    pub fn identity(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).expect("a name")
    }

    /// The space's state directory.
    pub fn state(&self) -> PathBuf {
        self.world.state().join("spaces").join(self.identity())
    }

    /// The path of an entry of the space's upper.
    pub fn upper(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.state().join("upper").join(relative)
    }

    /// All paths in the upper.
    pub fn upper_entries(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                out.push(entry.path());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    walk(&entry.path(), out);
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.upper(""), &mut out);
        out.sort();
        out
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Unmounts with `holofs unmount`, which must succeed.
    #[track_caller]
    pub fn unmount(mut self) {
        self.live = false;
        let done = self.end();
        assert_eq!(done.code, 0, "{done:?}");
        self.assert_gone();
    }

    /// Unmounts the space and mounts it again.
    #[track_caller]
    pub fn remount(self) -> Self {
        let (world, space) = (self.world, self.space.clone());
        self.unmount();
        world.mount(&space)
    }

    /// The process that answers the kernel, a child of the keeper. None while it is being replaced.
    pub fn worker(&self) -> Option<i32> {
        worker_of(self.pid)
    }

    /// As [`Mounted::worker`], for a test that does not kill it.
    #[track_caller]
    pub fn server(&self) -> i32 {
        self.worker().expect("a worker")
    }

    /// Kills the worker with SIGKILL, and waits until it is dead. Another one takes its place. Returns its number.
    #[track_caller]
    pub fn kill_worker(&self) -> i32 {
        self.end_worker(Signal::KILL)
    }

    /// As [`Mounted::kill_worker`], with another signal that ends it.
    #[track_caller]
    pub fn end_worker(&self, signal: Signal) -> i32 {
        let mut worker = None;
        super::wait_until("a worker", || {
            worker = self.worker();
            worker.is_some()
        });
        let worker = worker.expect("a worker");
        send(worker, signal);
        super::wait_until("the worker to die", || !is_running(worker));
        worker
    }

    /// Kills the keeper with SIGKILL, and waits until the worker has taken its place and has a worker itself.
    #[track_caller]
    pub fn kill_keeper(&mut self) {
        let keeper = self.pid;
        let mut worker = None;
        super::wait_until("a worker", || {
            worker = self.worker();
            worker.is_some()
        });
        let worker = worker.expect("a worker");
        send(keeper, Signal::KILL);
        super::wait_until("the keeper to die", || !is_running(keeper));
        self.pid = worker;
        super::wait_until("a new worker", || {
            let run = std::fs::read_to_string(self.state().join("run.json")).unwrap_or_default();
            let run: Value = serde_json::from_str(&run).unwrap_or_default();
            run["pid"] == worker && run["worker"]["pid"].as_i64() == self.worker().map(i64::from)
        });
    }

    /// Kills the daemon, both processes, with SIGKILL. The dead mount stays.
    #[track_caller]
    pub fn kill(mut self) {
        self.live = false;
        self.signal(Signal::KILL);
        self.wait_for_daemon();
    }

    /// Sends a signal to the daemon. SIGKILL and SIGCONT go to both processes.
    pub fn signal(&self, signal: Signal) {
        if signal == Signal::CONT {
            self.worker().into_iter().for_each(|worker| send(worker, signal));
        }
        if signal != Signal::KILL {
            return send(self.pid, signal);
        }
        // A stopped keeper starts no other worker. The worker dies first, because it would replace a killed keeper.
        if is_running(self.pid) {
            send(self.pid, Signal::STOP);
        }
        self.worker().into_iter().for_each(|worker| send(worker, Signal::KILL));
        send(self.pid, Signal::KILL);
    }

    /// Stops the worker with SIGSTOP, and waits until none of its threads can answer any more.
    #[track_caller]
    pub fn stop(&self) {
        let worker = self.server();
        send(worker, Signal::STOP);
        super::wait_until("the worker to stop", || {
            let threads = std::fs::read_dir(format!("/proc/{worker}/task")).expect("the worker's threads");
            threads
                .map(|thread| thread.expect("a thread").path().join("stat"))
                .all(|stat| state(&stat) == Some('T'))
        });
    }

    /// Checks that nothing is left of a mount that was ended by other means.
    #[track_caller]
    pub fn has_ended(mut self) {
        self.live = false;
        self.assert_gone();
    }

    /// Checks that the daemon has ended. Another mount of the same space may stand in its place.
    #[track_caller]
    pub fn has_ended_as(mut self, other: &Mounted<'_>) {
        self.live = false;
        assert_ne!(self.pid, other.pid);
        self.wait_for_daemon();
    }

    /// Unmounts, and retries while the mount is busy. Between its fork and its exec, a child of another test holds
    /// copies of our descriptors, including those that we have closed by now.
    fn end(&self) -> Done {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let done = self.world.run([std::ffi::OsStr::new("unmount"), self.path.as_os_str()]);
            if done.code != 12 || Instant::now() > deadline {
                return done;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn wait_for_daemon(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_running(self.pid) {
            assert!(Instant::now() < deadline, "daemon {} has not ended after ten seconds", self.pid);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    fn assert_gone(&self) {
        super::wait_until("the mount to go", || !self.world.mounts().contains(&self.path));
        self.wait_for_daemon();
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if !self.live {
            return;
        }
        if std::thread::panicking() {
            self.tell_log();
        }
        let done = self.end();
        let ended = done.code == 0 && {
            let deadline = Instant::now() + Duration::from_secs(10);
            while is_running(self.pid) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            !is_running(self.pid)
        };
        if !ended {
            // The world removes the mount.
            if is_running(self.pid) {
                eprintln!("the daemon did not end and is killed");
                self.signal(Signal::KILL);
            }
            if !std::thread::panicking() {
                panic!("the mount did not end: {done:?}");
            }
        }
    }
}

impl Mounted<'_> {
    /// Prints the end of the daemon's log, for the reader of the failure.
    fn tell_log(&self) {
        let log = std::fs::read_to_string(self.state().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("--- log of {}", self.identity());
        for line in lines.iter().skip(lines.len().saturating_sub(20)) {
            eprintln!("{line}");
        }
    }
}

#[track_caller]
fn send(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a pid");
    match rustix::process::kill_process(pid, signal) {
        Err(rustix::io::Errno::SRCH) if signal == Signal::KILL => {}
        sent => sent.expect("signal the daemon"),
    }
}

/// The worker of a keeper. None while it is being replaced.
pub fn worker_of(keeper: i32) -> Option<i32> {
    // The keeper's other child may be the mount helper.
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
    let program = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe"));
    let ours = program(&keeper).ok()?;
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .find(|pid| program(pid).ok().as_ref() == Some(&ours))
}

/// Whether a process exists and is not a zombie.
pub fn is_running(pid: i32) -> bool {
    !matches!(state(format!("/proc/{pid}/stat").as_ref()), Some('Z' | 'X') | None)
}

/// The state of a process or thread, from its `stat` file in /proc.
fn state(stat: &Path) -> Option<char> {
    std::fs::read_to_string(stat).ok()?.rsplit_once(") ")?.1.chars().next()
}
