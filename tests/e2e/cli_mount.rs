//! The life of a mount as a user sees it: start, queries, and every way to end it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::process::Signal;

use crate::common::world::wait;
use crate::common::{Library, World, assert_errno, fixture, wait_until};

/// Starts `holofs mount --foreground` and waits until it prints the mountpoint.
fn mount_in_foreground(world: &World) -> (Child, PathBuf) {
    let mut command = world.holofs();
    command.arg("mount").arg(world.home()).args(["s", "--foreground"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim_end().into())
}

for_both_users! {
    fn prints_the_mountpoint_when_ready() {
        let world = World::sample();
        let done = world.run([OsStr::new("mount"), world.home().as_os_str(), "s".as_ref()]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(done.stdout.lines().count(), 1);
        let path = std::path::Path::new(done.stdout.trim_end());
        assert_eq!(std::fs::read(path.join("readme.txt")).unwrap(), b"hello, space\n");
        let path_again = world.run(["path", "s"]);
        assert_eq!(path_again.stdout, done.stdout);
        let ended = world.run(["unmount", "s"]);
        assert_eq!((ended.code, ended.stdout), (0, done.stdout.clone()));
        // An unmounted space still has a path.
        assert_eq!(world.run(["path", "s"]).stdout, done.stdout);
    }

    fn json_of_mount() {
        let world = World::sample();
        let mounted = world.mount("s");
        let output = mounted.output.clone();
        assert_eq!(output["path"], mounted.path().to_str().unwrap());
        assert_eq!(output["identity"], mounted.identity());
        assert_eq!(output["blueprint"], Library::sample().hash());
        assert_eq!(output["library"], world.hololib().to_str().unwrap());
        assert_eq!(output["strategy"], "smart");
        assert_eq!(output["reused"], false);
        assert_eq!(output["relocated"], 2);
        assert!(output["entries"].as_u64().unwrap() > 15 && output["mounted_ms"].is_u64() && output["pid"].is_u64());
    }

    fn daemon_closes_inherited_descriptors() {
        let world = World::sample();
        // A test harness or a shell may wait for the end of a pipe on a higher descriptor.
        let held = world.path().join("held");
        std::fs::write(&held, b"").unwrap();
        let mut shell = world.command("sh");
        shell.args(["-c", "exec 7<\"$1\"; shift; exec \"$@\"", "sh"]).arg(&held);
        shell.arg(crate::common::as_user::holofs_binary()).args(["mount", "--json"]).arg(world.home()).arg("s");
        let mounted = crate::common::Mounted::by(&world, "s", &mut shell);
        let open = std::fs::read_dir(format!("/proc/{}/fd", mounted.pid())).unwrap();
        let open: Vec<_> = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
        assert!(!open.contains(&held), "{open:?}");
    }

    fn the_same_space_twice_is_success_and_says_so() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), b"new").unwrap();
        let again = world.json([OsStr::new("mount"), world.home().as_os_str(), "s".as_ref()]);
        assert_eq!(again["reused"], true);
        assert_eq!((&again["path"], &again["pid"]), (&mounted.output["path"], &mounted.output["pid"]));
        let spoken = world.run([OsStr::new("mount"), world.home().as_os_str(), "s".as_ref()]);
        assert_eq!((spoken.code, spoken.stdout.trim_end()), (0, mounted.path().to_str().unwrap()));
        assert!(spoken.stderr.contains("already mounted"), "{spoken:?}");
        assert_eq!(world.mounts().len(), 1);
    }

    fn concurrent_mounts_of_a_space_make_one() {
        let world = World::sample();
        let output: Vec<_> = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| world.run([OsStr::new("mount"), world.home().as_os_str(), "s".as_ref()])))
                .collect();
            tries.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(output.iter().all(|done| done.code == 0), "{output:?}");
        assert_eq!(world.mounts().len(), 1, "{output:?}");
        assert_eq!(world.run(["unmount", "s"]).code, 0);
        wait_until("the mount to disappear", || world.mounts().is_empty());
    }

    /// Its name, its identity and its path all name the same space.
    fn space_named_in_three_ways() {
        let world = World::sample();
        for by in ["name", "identity", "path"] {
            let mounted = world.mount("s");
            let name = match by {
                "name" => "s".to_owned(),
                "identity" => mounted.identity().to_owned(),
                _ => mounted.path().display().to_string(),
            };
            let again = world.json([OsStr::new("mount"), world.home().as_os_str(), name.as_ref()]);
            assert_eq!(again["reused"], true, "{by}");
            assert_eq!(world.json(["status", &name])["state"], "mounted", "{by}");
            assert_eq!(world.run(["unmount", &name]).code, 0, "{by}");
            mounted.has_ended();
        }
    }

    fn library_named_in_three_ways() {
        let world = World::sample();
        for library in [world.home().into_os_string(), world.hololib().into_os_string(), "auto".into()] {
            let done = world.run([OsStr::new("mount"), &library, "s".as_ref()]);
            assert_eq!(done.code, 0, "{library:?}: {done:?}");
            assert_eq!(world.run(["unmount", "s"]).code, 0);
        }
    }

    fn foreground_serves_until_it_is_ended() {
        let world = World::sample();
        let (mut child, path) = mount_in_foreground(&world);
        assert_eq!(std::fs::read(path.join("readme.txt")).unwrap(), b"hello, space\n");
        std::fs::write(path.join("kept"), b"kept").unwrap();
        assert!(child.try_wait().unwrap().is_none());
        assert_eq!(world.run(["unmount", "s"]).code, 0);
        assert_eq!(wait(&mut child, "the foreground mount"), 0);
        assert_eq!(std::fs::read(world.mount("s").at("kept")).unwrap(), b"kept");
    }

    fn every_way_to_end_it_keeps_the_changes() {
        let world = World::sample();
        let ways = ["unmount", "SIGTERM", "SIGINT", "fusermount3 -u", "umount"];
        for (count, way) in ways.into_iter().enumerate() {
            let mounted = world.mount("s");
            for earlier in 0..count {
                assert!(mounted.at(format!("file-{earlier}")).exists(), "the change was lost before {way}");
            }
            std::fs::write(mounted.at(format!("file-{count}")), way).unwrap();
            let run = |program: &str, args: &[&str]| {
                // Between its fork and its exec, a child of another test may keep the mount busy.
                wait_until(way, || {
                    let out = Command::new(program).args(args).arg(mounted.path()).output().unwrap();
                    out.status.success()
                });
            };
            match way {
                "unmount" => assert_eq!(world.run(["unmount", "s"]).code, 0),
                "SIGTERM" => mounted.signal(Signal::TERM),
                "SIGINT" => mounted.signal(Signal::INT),
                "fusermount3 -u" => run("fusermount3", &["-u"]),
                _ => run("umount", &[]),
            }
            let record = mounted.state().join("run.json");
            mounted.has_ended();
            assert!(!record.exists(), "run.json is left after {way}");
        }
    }

    fn sigint_ends_a_foreground_mount() {
        let world = World::sample();
        let (mut child, _) = mount_in_foreground(&world);
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::INT).unwrap();
        let code = wait(&mut child, "the foreground mount");
        assert!(code == 0 || code == 130, "{code}");
        assert!(world.mounts().is_empty());
    }

    fn busy_mount_is_not_unmounted() {
        let world = World::sample();
        let mounted = world.mount("s");
        let mut child = world.command("sleep").arg("60").current_dir(mounted.at("lib")).spawn().unwrap();
        let done = world.run(["unmount", "s"]);
        assert_eq!(done.code, 12, "{done:?}");
        assert!(done.stderr.contains(&child.id().to_string()), "does not name the process: {done:?}");
        assert!(mounted.at("readme.txt").exists());
        assert_eq!(world.run(["unmount", "s", "--lazy"]).code, 0);
        child.kill().unwrap();
        child.wait().unwrap();
        mounted.has_ended();
    }

    /// The second command finds the result of the first, which is not an error.
    fn concurrent_mounts_and_unmounts_succeed() {
        let world = World::sample();
        let home = world.home().into_os_string().into_string().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..15 {
                        let done = world.run(["mount", &home, "s"]);
                        assert_eq!(done.code, 0, "{done:?}");
                    }
                });
                scope.spawn(|| {
                    for _ in 0..30 {
                        let done = world.run(["unmount", "s"]);
                        // 12 means busy: a child of another test, or a `mount` that is checking whether the mount
                        // answers.
                        assert!(matches!(done.code, 0 | 12), "{done:?}");
                    }
                });
            }
        });
        let done = world.run(["mount", &home, "s"]);
        assert_eq!(done.code, 0, "{done:?}");
        crate::common::wait_until("the space to become free", || world.run(["unmount", "s"]).code == 0);
        crate::common::wait_until("the mount to disappear", || world.mounts().is_empty());
    }

    fn read_only() {
        let world = World::sample();
        {
            let mounted = world.mount("s");
            std::fs::write(mounted.at("new"), b"new").unwrap();
        }
        let mounted = world.mount_with("s", &["--read-only"]);
        assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"new");
        let conf = std::fs::read_to_string(mounted.at("etc/prefix.conf")).unwrap();
        assert!(conf.contains(mounted.identity()));
        assert_errno(std::fs::write(mounted.at("readme.txt"), b"x"), Errno::ROFS);
        assert_errno(std::fs::create_dir(mounted.at("d")), Errno::ROFS);
        assert_errno(std::fs::remove_file(mounted.at("new")), Errno::ROFS);
    }

    fn ephemeral_changes_are_gone() {
        let world = World::sample();
        let mounted = world.mount_with("s", &["--ephemeral"]);
        std::fs::write(mounted.at("new"), b"new").unwrap();
        std::fs::remove_file(mounted.at("readme.txt")).unwrap();
        mounted.unmount();
        let mounted = world.mount("s");
        assert!(!mounted.at("new").exists() && mounted.at("readme.txt").exists());
    }

    /// They are dropped even if the daemon was killed.
    fn ephemeral_changes_are_gone_after_a_kill() {
        let world = World::sample();
        let mounted = world.mount_with("s", &["--ephemeral"]);
        std::fs::write(mounted.at("new"), b"new").unwrap();
        mounted.kill();
        assert!(!world.mount("s").at("new").exists());
    }

    fn fresh_drops_what_was_changed() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), b"new").unwrap();
        std::fs::rename(mounted.at("lib"), mounted.at("moved")).unwrap();
        mounted.unmount();
        let mounted = world.mount_with("s", &["--fresh"]);
        assert!(!mounted.at("new").exists() && mounted.at("lib/module.py").exists());
        assert_eq!(mounted.upper_entries(), Vec::<std::path::PathBuf>::new());
    }

    fn list_and_status() {
        let world = World::sample();
        let mounted = world.mount("one");
        drop(world.mount("two"));
        std::fs::write(mounted.at("new"), vec![1; 100_000]).unwrap();
        let list = world.json(["list"]);
        let text = list.to_string();
        assert!(text.contains(mounted.identity()) && text.contains("\"two\""), "{text}");
        let status = world.json(["status", "one"]);
        assert_eq!(status["state"], "mounted");
        assert_eq!(status["pid"], mounted.output["pid"]);
        assert_eq!(world.json(["status", "two"])["state"], "unmounted");
        let spoken = world.run(["list"]);
        assert!(spoken.code == 0 && spoken.stdout.contains(mounted.identity()), "{spoken:?}");
        let spoken = world.run(["status", "one"]);
        assert!(spoken.code == 0 && spoken.stdout.contains("mounted"), "{spoken:?}");
        let unknown = world.run(["status", "never-seen"]);
        assert_eq!(unknown.code, 6, "{unknown:?}");
    }

    fn unmount_all() {
        let world = World::sample();
        let (one, two) = (world.mount("one"), world.mount("two"));
        let done = world.run(["unmount", "--all"]);
        assert_eq!((done.code, done.stdout.lines().count()), (0, 2), "{done:?}");
        one.has_ended();
        two.has_ended();
    }

    /// A mount moves with its directory (rcc renames `holotree` when it cleans up) and is still found.
    fn mount_that_was_moved() {
        let world = World::sample();
        let mounted = world.mount("s");
        let moved = world.home().join("renamed");
        if std::fs::rename(world.base(), &moved).is_err() {
            panic!("the directory above a mount can be renamed");
        }
        assert_eq!(std::fs::read(moved.join(mounted.identity()).join("readme.txt")).unwrap(), b"hello, space\n");
        let status = world.json(["status", "s"]);
        assert_eq!(status["state"], "moved", "{status}");
        let done = world.run(["unmount", "s"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(world.mounts().is_empty());
        std::fs::rename(&moved, world.base()).unwrap();
        mounted.has_ended();
    }

    fn other_controller_is_another_space() {
        let world = World::sample();
        let one = world.mount("s");
        let two = world.mount_with("s", &["--controller", "citest"]);
        assert_ne!(one.path(), two.path());
        assert!(two.identity().starts_with("ea7ce2c_b782dc4_"), "{}", two.identity());
    }

    fn home_can_be_chosen() {
        let world = World::sample();
        let mut command = world.holofs();
        command.env_remove("ROBOCORP_HOME").arg("--home").arg(world.home());
        command.args(["mount", "auto", "s", "--json"]);
        drop(crate::common::Mounted::by(&world, "s", &mut command));
    }

    fn state_can_be_elsewhere() {
        let world = World::sample();
        let elsewhere = world.path().join("elsewhere");
        let mut command = world.holofs();
        command.env("HOLOFS_HOME", &elsewhere).arg("mount").arg(world.home()).args(["s", "--json"]);
        let done = crate::common::world::finish(&mut command);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(elsewhere.join("spaces").is_dir() && !world.state().exists());
        let mut command = world.holofs();
        let done = crate::common::world::finish(command.env("HOLOFS_HOME", &elsewhere).args(["unmount", "s"]));
        assert_eq!(done.code, 0, "{done:?}");
        wait_until("the mount to disappear", || world.mounts().is_empty());
    }

    /// The daemon keeps nothing of its parent: no working directory and no output.
    fn daemon_detaches_from_its_parent() {
        let world = World::sample();
        let mounted = world.mount("s");
        let proc = std::path::PathBuf::from(format!("/proc/{}", mounted.pid()));
        assert_eq!(std::fs::read_link(proc.join("cwd")).unwrap(), std::path::Path::new("/"));
        let stdout = std::fs::read_link(proc.join("fd/1")).unwrap();
        assert!(stdout.starts_with("/dev/null") || stdout.starts_with(mounted.state()), "{stdout:?}");
    }

    fn options_are_passed_to_the_mount() {
        let world = World::sample();
        let mounted = world.mount_with("s", &["-o", "noexec"]);
        assert_errno(Command::new(mounted.at("bin/tool")).status(), Errno::ACCESS);
    }

    fn catalogs_and_check() {
        let world = fixture::world("two-catalogs");
        let catalogs = world.json([OsStr::new("catalogs"), world.home().as_os_str()]).to_string();
        assert!(catalogs.contains("adb8c26db4d86a93") && catalogs.contains("4ef4502d7023d413"), "{catalogs}");
        let clean = world.json([OsStr::new("check"), world.home().as_os_str()]);
        assert_eq!((&clean["catalogs"], &clean["blobs"]), (&2.into(), &78.into()), "{clean}");
        let library = world.hololib().join("library");
        let blob = library.join(&crate::common::files_below(&library)[0]);
        std::fs::write(&blob, b"damaged").unwrap();
        let done = world.run([OsStr::new("check"), world.home().as_os_str()]);
        assert_eq!(done.code, 11, "{done:?}");
        assert!(done.stdout.contains(blob.file_name().unwrap().to_str().unwrap()), "{done:?}");
    }
}

/// root can let other users in.
#[test]
fn allow_other() {
    use crate::common::as_user::{as_user_args, root_or_skip};
    if !root_or_skip() {
        return;
    }
    let world = World::with(&Library::sample().file_mode("open", 0o644, b"for all"));
    let look = |path: &std::path::Path| {
        Command::new("setpriv").args(as_user_args()).args(["--", "cat"]).arg(path).output().unwrap()
    };
    let mounted = world.mount("closed");
    assert!(!look(&mounted.at("open")).status.success());
    let mounted = world.mount_with("open", &["--allow-other"]);
    // As with rcc, only the owner may pass through these directories.
    for dir in [mounted.path(), &world.base()] {
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    assert_eq!(look(&mounted.at("open")).stdout, b"for all");
    // Permission bits still apply.
    assert!(!look(&mounted.at("secret")).status.success());
}
