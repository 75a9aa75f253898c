//! A mount goes on with another program, and no program in the space notices.

use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::as_user::holofs_binary;
use crate::common::mount::{is_running, worker_of};
use crate::common::{Mounted, World, sh, wait_until};
use crate::keeper::{StopOnDrop, change_again_and_again, descriptors, log_of, read_again_and_again, status};

/// A second copy of the program, which everybody may run.
pub fn copy() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.path().join("holofs");
    std::fs::copy(holofs_binary(), &copy).unwrap();
    (dir, copy)
}

/// The program that serves a mount.
fn program_of(mounted: &Mounted<'_>) -> PathBuf {
    std::fs::read_link(format!("/proc/{}/exe", mounted.server())).unwrap()
}

pub fn upgrade(world: &World, program: &Path) {
    let done = world.run(["upgrade", "s", "--program", program.to_str().unwrap()]);
    let version = env!("CARGO_PKG_VERSION");
    assert!(done.code == 0 && done.stdout.ends_with(&format!(" {version} -> {version}\n")), "{done:?}");
}

for_both_users! {
    fn programs_do_not_notice_an_upgrade() {
        let world = World::sample();
        let mounted = world.mount("s");
        let (_dir, next) = copy();
        let (path, keeper) = (mounted.path(), mounted.pid());
        // A file without a name, which stays open.
        let mut open = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path.join("unlinked"))
            .unwrap();
        open.write_all(b"kept").unwrap();
        std::fs::remove_file(path.join("unlinked")).unwrap();
        let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            let reader = scope.spawn(|| read_again_and_again(&path.join("lib"), &stop, &rounds));
            let writers = [0, 1].map(|n| {
                let (dir, stop) = (path.join(format!("dir{n}")), &stop);
                scope.spawn(move || change_again_and_again(&dir, stop))
            });
            for n in 0..8 {
                let program = if n % 2 == 0 { next.clone() } else { holofs_binary() };
                upgrade(&world, &program);
                assert_eq!(program_of(&mounted), program.canonicalize().unwrap());
                // Programs that were open with the program before are open with the next one after that.
                let before = rounds.load(Ordering::Relaxed);
                wait_until("the reader to go on", || {
                    rounds.load(Ordering::Relaxed) > before || reader.is_finished()
                });
            }
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap();
            writers.into_iter().for_each(|writer| assert!(writer.join().unwrap() > 0));
        });
        let mut text = String::new();
        open.rewind().unwrap();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept");
        drop(open);
        let said = status(&world, "s");
        assert_eq!((&said["pid"], &said["restarts"]), (&keeper.into(), &0.into()), "{said}");
        // The worker of the program is replaced, too.
        mounted.kill_worker();
        std::fs::write(path.join("after"), "x").unwrap();
        wait_until("the new worker's record", || status(&world, "s")["restarts"] == 1);
        mounted.unmount();
    }

    fn nothing_is_left_of_earlier_programs() {
        let world = World::sample();
        let mounted = world.mount("s");
        let (_dir, next) = copy();
        let mut counts = Vec::new();
        for n in 0..8 {
            upgrade(&world, &if n % 2 == 0 { next.clone() } else { holofs_binary() });
            std::fs::write(mounted.at("new"), n.to_string()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(100));
            counts.push(descriptors(&mounted));
        }
        // One may be open for a moment, for a request or a line of the log.
        wait_until(&format!("descriptors of earlier programs are closed, {counts:?}"), || {
            descriptors(&mounted) <= counts[1]
        });
        // The same program again: there is nothing to do.
        let worker = mounted.server();
        upgrade(&world, &holofs_binary());
        assert_eq!(mounted.server(), worker);
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", mounted.pid())).unwrap();
        assert!(children.split_whitespace().all(|child| is_running(child.parse().unwrap())), "{children}");
        mounted.unmount();
    }

    fn every_end_is_an_end_after_an_upgrade() {
        for way in ["TERM to the keeper", "TERM to the worker", "fusermount3"] {
            let world = World::sample();
            let mounted = world.mount_with("s", &["--ephemeral"]);
            let (_dir, next) = copy();
            std::fs::write(mounted.at("new"), "new").unwrap();
            upgrade(&world, &next);
            assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"new");
            let term = |pid: i32| kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
            match way {
                "TERM to the keeper" => term(mounted.pid()),
                "TERM to the worker" => term(mounted.server()),
                _ => drop(sh(Command::new("fusermount3").arg("-u").arg(mounted.path()))),
            }
            let (record, upper) = (mounted.state().join("run.json"), mounted.upper("new"));
            mounted.has_ended();
            assert!(!record.exists() && !upper.exists(), "{way}");
        }
    }

    fn foreground_mount_goes_on_in_its_process() {
        let world = World::sample();
        let (_dir, next) = copy();
        let mut command = world.holofs();
        command.arg("mount").arg(world.home()).args(["s", "--foreground", "--auto-unmount"]);
        let mut keeper = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let said = || serde_json::from_str::<Value>(&world.run(["--json", "status", "s"]).stdout).unwrap_or_default();
        wait_until("the mount", || said()["state"] == "mounted");
        upgrade(&world, &next);
        assert_eq!(said()["pid"], keeper.id());
        let exe = std::fs::read_link(format!("/proc/{}/exe", keeper.id())).unwrap();
        assert_eq!(exe, next);
        kill_process(Pid::from_raw(keeper.id() as i32).unwrap(), Signal::INT).unwrap();
        assert_eq!(crate::common::world::wait(&mut keeper, "the foreground mount"), 0);
        assert!(world.mounts().is_empty());
    }

    fn run_that_is_upgraded_ends_its_mount() {
        let world = World::sample();
        let (_dir, next) = copy();
        let mut command = world.holofs();
        let file = world.path().join("runs");
        let wait = "echo x > $0; while [ -e $0 ]; do sleep 0.01; done; exit 9";
        command.arg("run").arg(world.home()).args(["s", "--", "sh", "-c", wait]).arg(&file);
        let mut run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the program", || file.exists());
        upgrade(&world, &next);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(crate::common::world::wait(&mut run, "the run"), 9);
        assert!(world.mounts().is_empty());
    }

    fn program_that_cannot_go_on_is_refused() {
        let world = World::sample();
        let mounted = world.mount("s");
        let before = mounted.worker();
        let (dir, _) = copy();
        let script = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let fails = script("fails", "exit 1");
        let lies = script("lies", "echo holofs can go on");
        let floods = PathBuf::from("/usr/bin/yes");
        let missing = dir.path().join("missing");
        let directory = dir.path().to_owned();
        for program in [Path::new("/bin/true"), &fails, &lies, &floods, &missing, &directory] {
            let done = world.run(["upgrade", "s", "--program", program.to_str().unwrap()]);
            assert_eq!((done.code, &*done.stdout), (12, ""), "{done:?}");
            let lines: Vec<&str> = done.stderr.lines().collect();
            assert!(lines.len() == 2 && lines[0].contains("not upgraded: "), "{done:?}");
        }
        assert_eq!(mounted.worker(), before);
        assert_eq!(world.run(["upgrade", "other"]).code, 6);
        assert_eq!(world.run(["upgrade", "--all", "--program", "/bin/true"]).code, 12);
        mounted.unmount();
        assert_eq!(world.run(["upgrade", "s"]).code, 6);
        assert_eq!(world.run(["upgrade", "--all"]).code, 0);
        assert_eq!(world.run(["upgrade"]).code, 2);
    }

    fn program_whose_worker_dies_at_once_is_replaced_by_the_earlier_one() {
        let world = World::sample();
        let mounted = world.mount("s");
        let (_dir, next) = copy();
        let ours = program_of(&mounted);
        let exe = |pid: i32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        // Mostly the first worker of the new program dies before it answers.
        let went_back = (0..30).any(|_| {
            let mut command = world.holofs();
            command.args(["upgrade", "s", "--program", next.to_str().unwrap()]);
            let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            wait_until("the new program", || exe(mounted.pid()).as_ref() == Some(&next));
            let mut worker = None;
            wait_until("its worker", || {
                worker = worker_of(mounted.pid());
                worker.is_some()
            });
            kill_process(Pid::from_raw(worker.unwrap()).unwrap(), Signal::KILL).unwrap();
            let code = command.wait().unwrap().code();
            std::fs::write(mounted.at("new"), "new").unwrap();
            wait_until("a worker", || mounted.worker().is_some());
            match program_of(&mounted) == ours {
                true => assert_eq!(code, Some(12)),
                false => upgrade(&world, &ours),
            }
            code == Some(12)
        });
        assert!(went_back, "{}", log_of(&mounted));
        mounted.unmount();
    }
}
