//! Makes each system call that changes the disk fail, and kills the worker, or both processes of the daemon, at each of
//! them, in every operation.
//!
//! If only the worker dies, nobody notices: the operation succeeds, and the state is the one after it. Otherwise the
//! visible state afterwards is the one before the operation or after it. An error means before, success means after. The
//! same operation works when it is tried again, and the next mount shows the same state.
//!
//! One difference is allowed. After an entry was put into an upper directory, a further system call restores the time
//! of that directory. If the daemon dies before that call, or the call fails, the directory shows the current time.
//!
//! `HOLOFS_INJECT_SEED` chooses the points, `HOLOFS_INJECT_POINTS` sets their number (0: all), and `HOLOFS_INJECT_ONLY`
//! selects operations by a part of their name.

mod op;
mod trace;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use op::{OPS, Op, fixture, mark};
use rustix::process::Signal;
pub use trace::Trace;
use trace::{Point, is_answer, points, was_injected};

use crate::common::mount::is_running;
use crate::common::random::Random;
use crate::common::see::{differences, hash, tree, visit};
use crate::common::{Library, MOTHER_TIME, Mounted, World, assert_errno, setting, wait_until};

type Tree = BTreeMap<String, String>;

/// The number of points that are tried by default.
const POINTS: usize = 40;

/// More points than there are.
const ALL_POINTS: usize = 2000;

/// An operation that takes longer than this hangs.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The mtime of everything that was made before an operation, so that a change of it by the operation is visible.
const PREPARED_TIME: i64 = 1_500_000_000;

/// What an undisturbed run of an operation looks like.
struct Model {
    before: Tree,
    after: Tree,
    points: Vec<Point>,
}

/// Whether another worker takes the place of one that dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replaced {
    Yes,
    No,
}

/// A mount with fixtures. Each run of an operation uses up one fixture.
struct Lab<'w> {
    world: &'w World,
    mounted: Option<Mounted<'w>>,
    next: usize,
}

/// The number of points to try.
fn wanted_points() -> usize {
    match setting("HOLOFS_INJECT_POINTS") {
        None => POINTS,
        Some(0) => ALL_POINTS,
        Some(count) => usize::try_from(count).unwrap(),
    }
}

/// The number of fixtures in a mount: two for each operation's model and one for each point.
fn fixtures() -> usize {
    2 * OPS.len() + wanted_points()
}

impl<'w> Lab<'w> {
    fn new(world: &'w World) -> Self {
        let mounted = world.mount("s");
        // Fills the caches of the directory above the fixtures; otherwise its first change would be visible in the
        // first operation only.
        std::fs::create_dir(mounted.at("c/made")).unwrap();
        Self { world, mounted: Some(mounted), next: 0 }
    }

    fn mounted(&self) -> &Mounted<'w> {
        self.mounted.as_ref().expect("mounted")
    }

    fn dir(&self, number: usize) -> PathBuf {
        self.mounted().at(format!("c/{number}"))
    }

    /// Prepares an unused fixture. The returned files stay open until they are dropped.
    fn prepare(&mut self, op: &Op) -> (usize, Vec<std::fs::File>) {
        let number = self.next;
        self.next += 1;
        assert!(number < fixtures(), "more fixtures are needed");
        let dir = self.dir(number);
        let held = (op.prepare)(&dir).unwrap_or_else(|error| panic!("{}: cannot prepare: {error}", op.name));
        let mut late = Vec::new();
        visit(&dir, "", &mut |path, stat| {
            if stat.is_ok_and(|stat| std::os::unix::fs::MetadataExt::mtime(&stat) > MOTHER_TIME) {
                late.push(dir.join(path));
            }
        });
        for path in late {
            let time = rustix::fs::Timespec { tv_sec: PREPARED_TIME, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
        }
        (number, held)
    }

    /// Everything visible of a fixture, without what distinguishes it from other fixtures.
    fn see(&self, number: usize) -> Tree {
        let mark = mark(number);
        tree(&self.dir(number), &|bytes| match bytes.strip_prefix(mark.as_bytes()) {
            Some(rest) => format!("{} bytes {:x} after the mark", bytes.len(), hash(rest)),
            None => format!("{} bytes {:x}", bytes.len(), hash(bytes)),
        })
    }

    fn model(&mut self, op: &Op) -> Model {
        let (number, held) = self.prepare(op);
        let before = self.see(number);
        drop(held);
        let (number, held) = self.prepare(op);
        let trace = Trace::counting(self.mounted().server(), self.world.path());
        let answer = (op.run)(&self.dir(number));
        let seen = trace.end();
        let after = self.see(number);
        drop(held);
        answer.unwrap_or_else(|error| panic!("{}: {error}", op.name));
        Model { before, after, points: points(&seen) }
    }

    fn models(&mut self) -> Vec<(&'static Op, Model)> {
        wanted_ops().map(|op| (op, self.model(op))).collect()
    }

    /// Repeats an operation that was not done. Returns what is wrong then.
    fn retry(&self, op: &Op, number: usize, model: &Model, loose: bool) -> Option<String> {
        match (op.run)(&self.dir(number)) {
            Err(error) => Some(format!("; tried again: {error}")),
            Ok(()) => differs("after", &model.after, &self.see(number), loose)
                .map(|text| format!("; tried again, but: {text}")),
        }
    }

    /// Runs an operation while `inject` disturbs one system call of the daemon. Returns the result of the operation,
    /// and whether the call was disturbed.
    fn disturbed(
        &self,
        op: &Op,
        number: usize,
        inject: &str,
        replaced: Replaced,
    ) -> (std::io::Result<()>, bool) {
        let mounted = self.mounted();
        let mut worker = None;
        wait_until("a worker", || {
            worker = mounted.worker();
            worker.is_some()
        });
        let pid = worker.expect("a worker");
        let trace = Trace::injecting(pid, self.world.path(), inject);
        if replaced == Replaced::No {
            // The test is about what a dead daemon leaves, so no other worker takes the place of a dead one.
            mounted.signal(Signal::STOP);
        }
        let ended = AtomicBool::new(false);
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                let deadline = Instant::now() + WAIT_TIMEOUT;
                while !ended.load(Ordering::SeqCst) {
                    if replaced == Replaced::No && !is_running(pid) {
                        // The operation ends only when the keeper is dead, too.
                        return mounted.signal(Signal::KILL);
                    }
                    if Instant::now() > deadline {
                        // The check that follows reports the failure.
                        eprintln!("{} with {inject} has not ended: the daemon is killed", op.name);
                        return mounted.signal(Signal::KILL);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let answer = (op.run)(&self.dir(number));
            ended.store(true, Ordering::SeqCst);
            answer
        });
        if replaced == Replaced::No && is_running(pid) {
            mounted.signal(Signal::CONT);
        }
        (answer, was_injected(&trace.end()))
    }

    /// Whether the daemon of the mount is alive. Without it the kernel would still answer much from its caches.
    fn is_served(&self) -> bool {
        self.mounted().worker().is_some()
    }

    /// Mounts again after the death of the daemon.
    fn heal(&mut self) {
        self.mounted.take().expect("mounted").kill();
        self.mounted = Some(self.world.mount("s"));
    }
}

/// A world with many fixtures. Every other seed has raw blobs, which are cloned or copied instead of unpacked.
fn world(seed: u64) -> World {
    let library = (0..fixtures()).fold(Library::new(), |library, n| fixture(library, &format!("c/{n}"), n));
    World::with(&if seed.is_multiple_of(2) { library.raw() } else { library })
}

/// The same tree without the times of directories.
fn without_directory_times(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    for line in tree.values_mut().filter(|line| line.starts_with('/')) {
        if let Some((before, after)) = line.split_once(" mtime ") {
            let rest = after.split_once(' ').map_or("", |(_, rest)| rest);
            *line = format!("{before} {rest}");
        }
    }
    tree
}

/// How a tree differs from the expected one, if wanted without the times of directories.
fn differs(name: &str, want: &Tree, seen: &Tree, any_directory_times: bool) -> Option<String> {
    let strict = differences((name, want), ("seen", seen))?;
    if !any_directory_times {
        return Some(strict);
    }
    differences((name, &without_directory_times(want)), ("seen", &without_directory_times(seen)))
}

/// All points, or the wanted number of points chosen by the seed.
fn choose<T>(mut all: Vec<T>, random: &mut Random) -> Vec<T> {
    while all.len() > wanted_points() {
        let at = usize::try_from(random.below(all.len() as u64)).unwrap();
        all.swap_remove(at);
    }
    all
}

fn wanted_ops() -> impl Iterator<Item = &'static Op> {
    let only = std::env::var("HOLOFS_INJECT_ONLY").unwrap_or_default();
    OPS.iter().filter(move |op| op.name.contains(&only))
}

fn seed() -> u64 {
    setting("HOLOFS_INJECT_SEED").unwrap_or(1)
}

/// strace may trace processes of its own user, unless the kernel forbids it.
pub fn may_trace() -> bool {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let may = rustix::process::geteuid().is_root() || matches!(scope.trim(), "" | "0");
    if !may {
        eprintln!("not run: kernel.yama.ptrace_scope lets only root trace the daemon");
    }
    may
}

/// Checks the names of a fixture, especially the removed ones: each name can be used again, and the whole directory can
/// be removed. Returns what does not work.
fn unusable(dir: &Path, model: &Model, seen: &Tree) -> Option<String> {
    for path in model.before.keys().chain(model.after.keys()).filter(|path| !seen.contains_key(*path)) {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        if !seen.get(parent).is_some_and(|line| line.starts_with('/')) {
            continue;
        }
        let at = dir.join(path);
        if let Err(error) = std::fs::create_dir(&at).and_then(|()| std::fs::remove_dir(&at)) {
            return Some(format!("{path} does not exist and cannot be made: {error}"));
        }
    }
    let removed = std::fs::remove_dir_all(dir).and_then(|()| std::fs::create_dir(dir));
    removed.err().map(|error| format!("the directory cannot be removed and made again: {error}"))
}

#[track_caller]
fn report(what: &str, tried: usize, missed: usize, faults: &[String]) {
    println!("{what}: seed {}: {tried} injected, {missed} not reached, {} wrong", seed(), faults.len());
    let again = "to repeat: HOLOFS_INJECT_SEED=… HOLOFS_INJECT_ONLY='name' cargo test --test e2e inject::";
    assert!(faults.is_empty(), "{} of {tried} wrong\n{}\n{again}", faults.len(), faults.join("\n\n"));
    assert!(tried > 0, "nothing was injected");
}

/// Prepares a world and the model of each operation, and runs a test with them.
fn with_lab(test: impl FnOnce(&mut Lab<'_>, &[(&'static Op, Model)], &mut Random)) {
    if !may_trace() {
        return;
    }
    let world = world(seed());
    let mut lab = Lab::new(&world);
    let models = lab.models();
    test(&mut lab, &models, &mut Random::new(seed()));
}

fn fail_calls(lab: &mut Lab<'_>, models: &[(&'static Op, Model)], random: &mut Random) {
    let mut all = Vec::new();
    for (op, model) in models {
        for point in model.points.iter().filter(|point| !is_answer(point)) {
            all.extend(point.errors().iter().map(|error| (*op, model, point, *error)));
        }
    }
    let (mut tried, mut missed, mut faults) = (0, 0, Vec::new());
    let mut expected: Vec<(usize, String, &Model, Tree, bool)> = Vec::new();
    for (op, model, point, error) in choose(all, random) {
        let (number, held) = lab.prepare(op);
        let (answer, injected) = lab.disturbed(op, number, &point.failing(error), Replaced::No);
        let what = format!("{}: {error} at {} #{}: {}", op.name, point.call, point.nth, point.line);
        if !lab.is_served() {
            faults.push(format!("{what}\n  answered {answer:?}, and the daemon is dead"));
            drop(held);
            lab.heal();
            continue;
        }
        if !injected {
            missed += 1;
        } else {
            tried += 1;
        }
        let (name, want) = if answer.is_ok() { ("after", &model.after) } else { ("before", &model.before) };
        // An operation succeeds even if the time of a directory could not be restored.
        let loose = answer.is_ok() && point.call == "utimensat";
        if let Some(text) = differs(name, want, &lab.see(number), loose) {
            faults.push(format!("{what}\n  answered {answer:?}, but: {text}"));
        } else if answer.is_err()
            && random.once_in(2)
            && let Some(text) = lab.retry(op, number, model, false)
        {
            faults.push(format!("{what}\n  answered {answer:?}{text}"));
        }
        expected.push((number, what, model, lab.see(number), loose));
    }
    let mounted = lab.mounted.take().expect("mounted");
    lab.mounted = Some(mounted.remount());
    for (number, what, model, want, loose) in expected {
        let seen = lab.see(number);
        if let Some(text) = differs("state before the remount", &want, &seen, loose) {
            faults.push(format!("{what}\n  the next mount shows another state: {text}"));
        } else if let Some(text) = unusable(&lab.dir(number), model, &seen) {
            faults.push(format!("{what}\n  at the next mount {text}"));
        }
    }
    report("failures", tried, missed, &faults);
}

fn kill_at_calls(lab: &mut Lab<'_>, models: &[(&'static Op, Model)], random: &mut Random) {
    let all = models.iter().flat_map(|(op, model)| model.points.iter().map(move |point| (*op, model, point)));
    let all = all.collect();
    let (mut tried, mut missed, mut faults) = (0, 0, Vec::new());
    for (op, model, point) in choose(all, random) {
        let (number, held) = lab.prepare(op);
        let (answer, _) = lab.disturbed(op, number, &point.killing(), Replaced::No);
        let what = format!("{}: killed at {} #{}: {}", op.name, point.call, point.nth, point.line);
        drop(held);
        if lab.is_served() {
            missed += 1;
        } else {
            tried += 1;
            lab.heal();
        }
        let seen = lab.see(number);
        let after = differs("after", &model.after, &seen, true);
        let before = differs("before", &model.before, &seen, true);
        match (before, after) {
            (_, None) => {
                if let Some(text) = unusable(&lab.dir(number), model, &seen) {
                    faults.push(format!("{what}\n  was done, but {text}"));
                }
            }
            (None, Some(text)) if answer.is_ok() => {
                faults.push(format!("{what}\n  was acknowledged, but: {text}"))
            }
            (None, Some(_)) => {
                if let Some(text) = lab.retry(op, number, model, true) {
                    faults.push(format!("{what}\n  nothing was done{text}"));
                }
            }
            (Some(before), Some(after)) => {
                faults.push(format!(
                    "{what}\n  answered {answer:?}; neither before: {before}\n  nor after: {after}"
                ));
            }
        }
    }
    report("kills", tried, missed, &faults);
}

/// Kills the worker at each of its calls. The program that waits for the operation must not notice.
fn kill_worker_at_calls(lab: &mut Lab<'_>, models: &[(&'static Op, Model)], random: &mut Random) {
    let all = models.iter().flat_map(|(op, model)| model.points.iter().map(move |point| (*op, model, point)));
    let all = all.collect();
    let (mut tried, mut missed, mut faults) = (0, 0, Vec::new());
    let mut expected: Vec<(usize, String, Tree)> = Vec::new();
    for (op, model, point) in choose(all, random) {
        let (number, held) = lab.prepare(op);
        let worker = lab.mounted().worker();
        let (answer, _) = lab.disturbed(op, number, &point.killing(), Replaced::Yes);
        let what = format!("{}: worker killed at {} #{}: {}", op.name, point.call, point.nth, point.line);
        if worker.is_some_and(is_running) {
            missed += 1;
        } else {
            tried += 1;
        }
        let seen = lab.see(number);
        drop(held);
        if let Err(error) = answer {
            faults.push(format!("{what}\n  the program got {error}"));
        } else if let Some(text) = differs("after", &model.after, &seen, false) {
            faults.push(format!("{what}\n  {text}"));
        }
        expected.push((number, what, seen));
    }
    let mounted = lab.mounted.take().expect("mounted");
    lab.mounted = Some(mounted.remount());
    for (number, what, want) in expected {
        if let Some(text) = differs("state before the remount", &want, &lab.see(number), false) {
            faults.push(format!("{what}\n  the next mount shows another state: {text}"));
        }
    }
    report("kills of the worker", tried, missed, &faults);
}

for_both_users! {
    fn request_that_crashes_its_workers_gets_eio() {
        if !may_trace() {
            return;
        }
        let world = World::sample();
        let mounted = world.mount("s");
        // All workers that the keeper starts from now on are traced, too. Only a symlink makes them crash.
        let trace = Trace::injecting(mounted.pid(), world.path(), "inject=symlinkat:signal=SIGSEGV:when=1");
        mounted.kill_worker();
        let made = std::os::unix::fs::symlink("text", mounted.at("new"));
        std::fs::write(mounted.at("other"), b"other").unwrap();
        assert_eq!(std::fs::read(mounted.at("lib/data.bin")).unwrap().len(), 300_000);
        drop(trace);
        assert_errno(made, rustix::io::Errno::IO);
        let status = world.json(["--json", "status", "s"]);
        assert_eq!(status["restarts"], 3, "{status}");
        assert_eq!(status["last_death"]["cause"], "SIGSEGV", "{status}");
        std::os::unix::fs::symlink("text", mounted.at("new")).unwrap();
        mounted.unmount();
    }

    fn worker_that_dies_after_the_end_is_replaced_by_one_that_cleans_up() {
        // The call by which the changes are dropped, which is the last thing that a worker does.
        if !may_trace() || !cfg!(target_arch = "x86_64") {
            return;
        }
        let world = World::sample();
        let mounted = world.mount_with("s", &["--ephemeral"]);
        mounted.kill_worker();
        std::fs::write(mounted.at("new"), b"new").unwrap();
        let trace = Trace::injecting(mounted.server(), world.path(), "inject=rename:signal=SIGKILL:when=1");
        std::process::Command::new("fusermount3").arg("-u").arg(mounted.path()).status().unwrap();
        let log = mounted.state().join("log");
        let (record, upper) = (mounted.state().join("run.json"), mounted.upper("new"));
        mounted.has_ended();
        drop(trace);
        assert!(!record.exists() && !upper.exists());
        let log = std::fs::read_to_string(log).unwrap();
        assert_eq!(log.matches("this one takes its place").count(), 2, "{log}");
        assert_eq!(world.json(["--json", "status", "s"]).get("given_up"), None);
    }

    fn worker_killed_at_a_call_is_not_noticed() {
        with_lab(kill_worker_at_calls);
    }

    fn failed_call_leaves_before_or_after() {
        with_lab(fail_calls);
    }

    fn daemon_killed_at_a_call_leaves_before_or_after() {
        with_lab(kill_at_calls);
    }
}

#[test]
fn worker_that_dies_before_it_answers_is_named() {
    // Under strace, an ordinary user's fusermount3 is not setuid.
    if !crate::common::as_user::is_root() || !may_trace() {
        return;
    }
    let world = World::sample();
    let holofs = world.holofs();
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-e", "trace=socketpair"]);
    command.args(["-e", "inject=socketpair:signal=SIGSEGV:when=1"]).arg(holofs.get_program());
    command.arg("mount").arg(world.home()).arg("s");
    for (name, value) in holofs.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    let said = world.json(["--json", "status", "s"]);
    assert_eq!(said["given_up"]["why"], "its process died before it answered", "{said}");
    assert_eq!(said["given_up"]["cause"], "SIGSEGV", "{said}");
    assert!(world.mounts().is_empty());
    world.mount("s").unmount();
    assert_eq!(world.json(["--json", "status", "s"]).get("given_up"), None);
}
