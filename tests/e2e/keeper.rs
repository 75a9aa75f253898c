//! A mount outlives the process that serves it: that process is killed, and no program in the space notices.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::mount::is_running;
use crate::common::{Mounted, World, files_below, sh, wait_until};

/// What `holofs status` says.
pub fn status(world: &World, space: &str) -> Value {
    world.json(["--json", "status", space])
}

/// Reads everything below a directory again and again, past the kernel's cache of pages, until `stop`. Each error and each
/// difference to the first time fails the test. Returns how often.
pub fn read_again_and_again(root: &Path, stop: &AtomicBool, rounds: &AtomicU64) {
    let first = everything(root);
    assert!(first.len() > 2);
    while !stop.load(Ordering::Relaxed) {
        assert!(everything(root) == first, "other bytes than before");
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

fn everything(root: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for relative in files_below(root) {
        let path = root.join(&relative);
        let mut file =
            std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        found.push((relative, bytes));
    }
    found
}

/// Kills the worker `times` while programs read.
fn kill_under_readers(mounted: &Mounted<'_>, times: u64) {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let readers: Vec<_> =
            (0..2).map(|_| scope.spawn(|| read_again_and_again(mounted.path(), &stop, &rounds))).collect();
        for n in 0..times {
            std::thread::sleep(Duration::from_millis(3 + 7 * (n % 5)));
            mounted.kill_worker();
        }
        let before = rounds.load(Ordering::Relaxed);
        wait_until("the readers to go on", || {
            rounds.load(Ordering::Relaxed) > before + 1 || readers.iter().any(|r| r.is_finished())
        });
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// Makes, changes, moves and removes entries of its own directory until `stop`. Each error fails the test, and so does each
/// difference to what it has done. Returns how often.
pub fn change_again_and_again(dir: &Path, stop: &AtomicBool) -> u64 {
    std::fs::create_dir(dir).unwrap();
    let (log, mut logged) = (dir.join("log"), 0);
    while !stop.load(Ordering::Relaxed) {
        let [sub, file, moved] = [dir.join("sub"), dir.join("sub/file"), dir.join("moved")];
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(&file, logged.to_string()).unwrap();
        std::fs::rename(&file, &moved).unwrap();
        std::fs::hard_link(&moved, &file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), logged.to_string());
        let mut open = std::fs::File::options().append(true).create(true).open(&log).unwrap();
        writeln!(open, "{logged:08}").unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::remove_dir(&sub).unwrap();
        std::fs::remove_file(&moved).unwrap();
        logged += 1;
    }
    let lines: Vec<String> = (0..logged).map(|n| format!("{n:08}\n")).collect();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), lines.concat());
    logged
}

/// Makes files and removes them while they are open, until `stop`, and checks that the last ones have their bytes.
fn unlink_again_and_again(dir: &Path, stop: &AtomicBool) {
    std::fs::create_dir(dir).unwrap();
    let mut open = std::collections::VecDeque::new();
    for n in 0_u32.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let path = dir.join("unlinked");
        let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.write_all(&n.to_ne_bytes()).unwrap();
        std::fs::remove_file(&path).unwrap();
        open.push_back((n, file));
        if open.len() > 20 {
            let (n, mut file) = open.pop_front().unwrap();
            file.rewind().unwrap();
            let mut bytes = [0; 4];
            file.read_exact(&mut bytes).unwrap();
            assert_eq!(u32::from_ne_bytes(bytes), n);
        }
    }
}

/// The descriptors that the keeper and its worker share.
pub fn descriptors(mounted: &Mounted<'_>) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", mounted.pid())).unwrap().count()
}

/// As [`descriptors`], of a worker that has opened what it needs. On a busy machine it takes a while until the last of it, the
/// control socket, is there.
fn settled(mounted: &Mounted<'_>) -> usize {
    let (mut last, mut since) = (descriptors(mounted), Instant::now());
    wait_until("the descriptors to stay the same", || {
        let now = descriptors(mounted);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(500)
    });
    last
}

/// The processes that were started for a world and still run.
fn processes_of(world: &World) -> Vec<i32> {
    let home = format!("ROBOCORP_HOME={}", world.home().display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let Ok(pid) = entry.unwrap().file_name().to_string_lossy().parse::<i32>() else { continue };
        let read = |name| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let environment = read("environ");
        let mut variables = environment.split(|byte| *byte == 0);
        if variables.any(|variable| variable == home.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

/// The last lines of the log of a space.
pub fn log_of(mounted: &Mounted<'_>) -> String {
    std::fs::read_to_string(mounted.state().join("log")).unwrap()
}

fn send(pid: i32, signal: Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Whether a signal waits at a process.
fn has_pending(pid: i32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << (signal.as_raw() - 1)) != 0
}

/// Checks that `status` and `list` say why the mount was given up.
#[track_caller]
fn gave_up(world: &World, why: &str, cause: &str) {
    let said = status(world, "s");
    let given_up = &said["given_up"];
    assert_eq!((&given_up["why"], &given_up["cause"]), (&why.into(), &cause.into()), "{said}");
    assert!(given_up["at"].as_u64().is_some_and(|at| at > 1_600_000_000), "{said}");
    let listed = world.json(["--json", "list"]);
    assert_eq!(listed.as_object().unwrap().values().next().unwrap()["given_up"], *given_up, "{listed}");
    let text = world.run(["status", "s"]).stdout;
    assert!(text.lines().any(|line| line.starts_with("Given up") && line.contains(why)), "{text}");
    let text = world.run(["list"]).stdout;
    assert!(text.contains("unmounted, given up"), "{text}");
}

#[track_caller]
fn has_not_given_up(world: &World) {
    let said = status(world, "s");
    assert_eq!(said.get("given_up"), None, "{said}");
}

for_both_users! {
    fn a_file_without_a_name_stays_open() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.path().join("unlinked");
        let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.write_all(b"before").unwrap();
        std::fs::remove_file(&path).unwrap();
        for round in 0..3_u8 {
            mounted.kill_worker();
            file.write_all(&[b'0' + round]).unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 0);
        }
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before012");
        drop(file);
        mounted.unmount();
    }

    fn readers_do_not_notice_the_death_of_the_worker() {
        let world = World::sample();
        let mounted = world.mount("s");
        kill_under_readers(&mounted, 10);
        let said = status(&world, "s");
        assert_eq!(said["version"], env!("CARGO_PKG_VERSION"), "{said}");
        assert_eq!(said["restarts"], 10, "{said}");
        assert_eq!(said["last_death"]["cause"], "SIGKILL", "{said}");
        assert_eq!(said["pid"], mounted.pid(), "{said}");
        assert_eq!(said["worker"].as_i64().map(|pid| pid as i32), mounted.worker(), "{said}");
        mounted.unmount();
    }

    fn writers_do_not_notice_the_death_of_the_worker() {
        let world = World::sample();
        let mounted = world.mount("s");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|n| {
                    let (dir, stop) = (mounted.at(format!("dir{n}")), &stop);
                    scope.spawn(move || change_again_and_again(&dir, stop))
                })
                .collect();
            for n in 0..10 {
                std::thread::sleep(Duration::from_millis(3 + 7 * (n % 5)));
                mounted.kill_worker();
            }
            std::thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
            writers.into_iter().for_each(|writer| assert!(writer.join().unwrap() > 0));
        });
        mounted.unmount();
    }

    fn every_end_is_an_end_after_a_death() {
        let ways = ["unmount", "unmount --lazy", "unmount --force", "TERM to the keeper", "TERM to the worker", "fusermount3", "umount"];
        for way in ways {
            if way == "umount" && !crate::common::as_user::is_root() {
                continue;
            }
            let world = World::sample();
            let mounted = world.mount_with("s", &["--ephemeral"]);
            std::fs::write(mounted.at("new"), "new").unwrap();
            mounted.kill_worker();
            assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"new");
            mounted.kill_worker();
            assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"new");
            let pids = [mounted.pid(), mounted.server()];
            assert!(pids.iter().all(|pid| processes_of(&world).contains(pid)));
            match way {
                "unmount" => assert_eq!(world.run(["unmount", "s"]).code, 0),
                "unmount --lazy" => assert_eq!(world.run(["unmount", "s", "--lazy"]).code, 0),
                "unmount --force" => assert_eq!(world.run(["unmount", "s", "--force"]).code, 0),
                "TERM to the keeper" => send(mounted.pid(), Signal::TERM),
                "TERM to the worker" => send(mounted.server(), Signal::TERM),
                "fusermount3" => drop(sh(Command::new("fusermount3").arg("-u").arg(mounted.path()))),
                _ => drop(sh(Command::new("umount").arg(mounted.path()))),
            }
            let (record, upper) = (mounted.state().join("run.json"), mounted.upper("new"));
            mounted.has_ended();
            assert!(!record.exists() && !upper.exists(), "{way}");
            wait_until(way, || processes_of(&world).is_empty());
        }
    }

    fn nothing_is_left_of_dead_workers() {
        let world = World::sample();
        let mounted = world.mount("s");
        let serves = || {
            assert!(std::fs::read(mounted.at("readme.txt")).is_ok());
            wait_until("the new worker's record", || {
                status(&world, "s")["worker"].as_i64().map(|pid| pid as i32) == mounted.worker()
            });
        };
        mounted.kill_worker();
        serves();
        let before = settled(&mounted);
        for _ in 0..25 {
            mounted.kill_worker();
            assert!(std::fs::read(mounted.at("readme.txt")).is_ok());
        }
        serves();
        wait_until("the descriptors of dead workers to be closed", || descriptors(&mounted) <= before);
        let children = format!("/proc/{0}/task/{0}/children", mounted.pid());
        for child in std::fs::read_to_string(children).unwrap().split_whitespace() {
            assert!(is_running(child.parse().unwrap()), "{child} is a zombie");
        }
        mounted.unmount();
    }

    fn mount_that_crashes_again_and_again_is_given_up() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), "new").unwrap();
        for n in 0..5 {
            if n > 0 {
                assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"new");
            }
            mounted.end_worker(Signal::ABORT);
        }
        wait_until("the daemon to end", || !is_running(mounted.pid()));
        let log = log_of(&mounted);
        assert!(log.contains("given up") && log.contains("SIGABRT"), "{log}");
        mounted.has_ended();
        gave_up(&world, "its process crashed five times in ten seconds", "SIGABRT");
        let again = world.mount("s");
        assert_eq!(std::fs::read(again.at("new")).unwrap(), b"new");
        has_not_given_up(&world);
        again.unmount();
        has_not_given_up(&world);
    }

    fn worker_that_dies_while_it_ends_the_mount_is_named() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), "new").unwrap();
        mounted.kill_worker();
        assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"new");
        mounted.stop();
        let worker = mounted.server();
        send(mounted.pid(), Signal::TERM);
        // The signal is pending at the stopped worker when the keeper has passed it on.
        wait_until("the keeper to pass it on", || has_pending(worker, Signal::TERM));
        send(worker, Signal::KILL);
        mounted.has_ended();
        gave_up(&world, "its process died while the mount was ending", "SIGKILL");
        assert_eq!(std::fs::read(world.mount("s").at("new")).unwrap(), b"new");
        has_not_given_up(&world);
    }

    fn worker_takes_the_place_of_a_killed_keeper() {
        let world = World::sample();
        let mut mounted = world.mount("s");
        let (path, stop) = (mounted.path().to_owned(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            let reader = scope.spawn(|| read_again_and_again(&path.join("lib"), &stop, &AtomicU64::new(0)));
            let writer = scope.spawn(|| change_again_and_again(&path.join("dir"), &stop));
            let unlinker = scope.spawn(|| unlink_again_and_again(&path.join("unlinked"), &stop));
            for _ in 0..3 {
                mounted.kill_keeper();
                mounted.kill_worker();
                std::thread::sleep(Duration::from_millis(50));
            }
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap();
            unlinker.join().unwrap();
            assert!(writer.join().unwrap() > 0);
        });
        let before = settled(&mounted);
        (0..3).for_each(|_| mounted.kill_keeper());
        wait_until("the descriptors of dead workers to be closed", || descriptors(&mounted) <= before);
        let said = status(&world, "s");
        assert_eq!((&said["kept"], &said["restarts"]), (&true.into(), &3.into()), "{said}");
        assert_eq!(said["pid"], mounted.pid(), "{said}");
        assert!(log_of(&mounted).contains("was killed"));
        mounted.unmount();
    }

    fn foreground_mount_outlives_its_worker() {
        let world = World::sample();
        let mut command = world.holofs();
        command.arg("mount").arg(world.home()).args(["s", "--foreground"]);
        let mut keeper = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the mount", || status_if_any(&world).is_some_and(|said| said["state"] == "mounted"));
        let said = status(&world, "s");
        let file = Path::new(said["path"].as_str().unwrap()).join("readme.txt");
        let first = std::fs::read(&file).unwrap();
        assert_eq!(said["pid"], keeper.id());
        send(said["worker"].as_i64().unwrap() as i32, Signal::KILL);
        assert_eq!(std::fs::read(&file).unwrap(), first);
        wait_until("the next worker", || status(&world, "s")["restarts"] == 1);
        send(keeper.id() as i32, Signal::INT);
        assert_eq!(crate::common::world::wait(&mut keeper, "the foreground mount"), 0);
        assert!(world.mounts().is_empty());
    }
}

/// Ends the threads of a test also when the test fails.
pub struct StopOnDrop<'s>(pub &'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What `holofs status` says, if there is such a space.
fn status_if_any(world: &World) -> Option<Value> {
    serde_json::from_str(&world.run(["--json", "status", "s"]).stdout).ok()
}
