//! `holofs doctor`: what it says is true, it changes nothing, and it ends whatever is broken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::as_user::{as_user_args, is_root, root_or_skip};
use crate::common::image::Image;
use crate::common::world::{Done, finish};
use crate::common::{World, apart, files_below, sh};

fn examine(command: &mut Command) -> (i32, Value) {
    let done = finish(command.arg("--json"));
    let report = serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    (done.code, report)
}

fn doctor(world: &World, args: &[&str]) -> (i32, Value) {
    examine(world.holofs().arg("doctor").args(args))
}

/// The findings of one type.
fn of<'r>(report: &'r Value, kind: &str) -> Vec<&'r Value> {
    report["checks"].as_array().unwrap().iter().filter(|check| check["type"] == kind).collect()
}

#[track_caller]
fn assert_found(report: &Value, kind: &str, status: &str, part: &str) {
    let found = of(report, kind);
    let is_there = |check: &&Value| check["status"] == status && check.to_string().contains(part);
    assert!(found.iter().any(is_there), "no {status} with {part:?} in {found:?}");
}

#[track_caller]
fn assert_refused(done: &Done, code: i32) {
    assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
    assert!(done.stderr.starts_with("holofs: ") && done.stderr.contains("\n  try: "), "{done:?}");
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn report_has_rccs_shape_and_changes_nothing() {
    let world = World::sample();
    let before = files_below(world.path());
    let (code, report) = doctor(&world, &[]);
    assert!(code <= 1, "{report}");
    for check in report["checks"].as_array().unwrap() {
        assert!(check["type"].is_string() && check["message"].is_string(), "{check}");
        let has_fix = check["fix"].is_string();
        assert_eq!(check["status"] != "ok", has_fix, "{check}");
    }
    assert!(report["details"].as_object().unwrap().values().all(Value::is_string));
    let has_warning = report["checks"].as_array().unwrap().iter().any(|check| check["status"] == "warning");
    assert_eq!(code == 1, has_warning);
    assert_found(&report, "library", "ok", "with 1 environments");
    assert_found(&report, "mounts", "ok", "0 mounted");
    assert_eq!(report["answers"].as_array().unwrap().len(), 3);
    assert_eq!(files_below(world.path()), before);
    assert!(!world.state().exists());
    let text = world.run(["probe"]);
    for part in ["Reflinks not supported?", "Performance not improved?", "df -T", "Fallbacks of this setup:"]
    {
        assert!(text.stdout.contains(part), "{part}: {text:?}");
    }
}

/// The result for a directory is what a mount there does.
#[test]
fn reflink_is_tried() {
    if !root_or_skip() {
        return;
    }
    for (kind, magic, reflink) in [("btrfs", "0x9123683e", true), ("ext4", "0xef53", false)] {
        let image = Image::new(kind, 200);
        let world = World::at(image.path());
        world.add(&crate::common::Library::sample());
        let path = world.home();
        let (_, report) = doctor(&world, &[path.to_str().unwrap()]);
        assert_eq!(report["path"], path.to_str().unwrap());
        assert_eq!((&report["fs"], &report["magic"]), (&kind.into(), &magic.into()));
        assert_eq!(report["reflink"], reflink, "{report}");
        assert_eq!(report["probe"] == "ok", reflink, "{report}");
        assert_eq!(report["same_fs_as_library"], true);
        assert_eq!(report["fallbacks"][0]["from"] == "reflink", !reflink, "{report}");
        let mounted = world.mount("s");
        assert_eq!(mounted.output["reflink"]["supported"], reflink);
        drop(mounted);
        let strict = world.run(["mount", world.home().to_str().unwrap(), "t", "--strategy", "reflink"]);
        assert_eq!(strict.code == 0, reflink, "{strict:?}");
        if reflink {
            assert_eq!(world.run(["unmount", "t"]).code, 0);
        }
        // Elsewhere nothing can be shared with this library.
        let (_, other) = doctor(&world, &["/dev/shm"]);
        assert_eq!((&other["same_fs_as_library"], &other["fs"]), (&false.into(), &"tmpfs".into()));
    }
}

#[test]
fn other_filesystem_and_few_descriptors_are_warnings() {
    let world = World::sample();
    let dir = tempfile::Builder::new().prefix("holofs-test-").tempdir_in("/dev/shm").unwrap();
    let binary = crate::common::as_user::holofs_binary();
    let script = format!("ulimit -n 256; exec {} doctor --json", binary.display());
    let mut command = world.command("sh");
    command.args(["-c", &script]).env("HOLOFS_HOME", dir.path().join("state"));
    let (code, report) = examine(&mut command);
    assert_eq!(code, 1, "{report}");
    assert_found(&report, "one-filesystem", "warning", "reflink impossible across filesystems");
    assert_found(&report, "limits", "warning", "256 files");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A mount fails where the disk keeps no user attributes, so `doctor` says so before.
#[test]
fn disk_without_user_attributes_cannot_hold_spaces() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let place = world.path().join("ramfs");
    fs::create_dir(&place).unwrap();
    let binary = crate::common::as_user::holofs_binary();
    let run = |args: &str| {
        let script = format!(
            "mount -t ramfs -o mode=700 none {} && exec {} {args}",
            place.display(),
            binary.display()
        );
        let mut command = world.command("unshare");
        apart(&mut command, world.path()).args(["sh", "-c", &script]);
        finish(command.env("HOLOFS_HOME", place.join("state")))
    };
    let done = run("doctor --json");
    let report = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(done.code, 8, "{done:?}");
    assert_found(&report, "user-attributes", "fail", "ramfs");
    let refused = run(&format!("mount {} s", world.home().display()));
    assert_refused(&refused, 1);
    assert!(refused.stderr.contains("user attributes"), "{refused:?}");
}

/// Where files without a name cannot be made, the probe file loses its name at once.
#[test]
fn mounted_space_can_be_probed() {
    let world = World::sample();
    let mounted = world.mount("s");
    let (_, report) = doctor(&world, &[mounted.path().to_str().unwrap()]);
    assert_eq!((&report["fs"], &report["reflink"]), (&"fuse.holofs".into(), &false.into()), "{report}");
    assert!(mounted.upper_entries().is_empty(), "{:?}", mounted.upper_entries());
}

#[test]
fn path_that_cannot_be_probed_is_refused() {
    let world = World::sample();
    assert_refused(&world.run(["doctor", "/nowhere/at/all"]), 3);
    assert_refused(&world.run(["doctor", "/proc"]), 3);
    if is_root() {
        let theirs = World::sample().by_ordinary_user();
        assert_refused(&theirs.run(["doctor", "/etc"]), 3);
    }
}

#[test]
fn bad_settings_are_a_finding() {
    let world = World::sample();
    fs::write(world.home().join("settings.yaml"), "holotree:\n  restoration-strategy: fast\n").unwrap();
    let (code, report) = doctor(&world, &[]);
    assert_eq!(code, 8);
    assert_found(&report, "settings", "fail", "settings.yaml:2");
    // And so is a home that others may write to.
    fs::remove_file(world.home().join("settings.yaml")).unwrap();
    fs::create_dir(world.state()).unwrap();
    fs::set_permissions(world.state(), fs::Permissions::from_mode(0o777)).unwrap();
    assert_found(&doctor(&world, &[]).1, "holofs-home", "fail", "other users may write");
}

for_both_users! {
    /// A daemon that does not answer, or has died, is named, and `doctor` does not wait for it.
    fn stopped_and_dead_daemons_are_named() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_found(&doctor(&world, &[]).1, "mounts", "ok", "1 mounted");
        mounted.stop();
        let fix = format!("kill -CONT {}", mounted.server());
        assert_found(&doctor(&world, &[]).1, "mounts", "warning", &fix);
        sh(Command::new("kill").args(["-CONT", &mounted.server().to_string()]));
        let identity = mounted.identity().to_owned();
        mounted.kill();
        assert_found(&doctor(&world, &[]).1, "mounts", "warning", &identity);
        assert_eq!(world.run(["unmount", "s"]).code, 0);
    }
}

#[test]
fn missing_fuse_is_said_with_the_way_out() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let run = |prepare: &str| {
        let binary = crate::common::as_user::holofs_binary();
        let binary = binary.display().to_string();
        let script = format!("{}; exec {binary} doctor --json", prepare.replace("BINARY", &binary));
        examine(apart(&mut world.command("unshare"), world.path()).args(["sh", "-c", &script, "sh"]))
    };
    let (code, report) = run("mount -t tmpfs none /dev");
    assert_eq!(code, 8);
    assert_found(&report, "fuse-device", "fail", "--device /dev/fuse");
    assert!(report["fallbacks"].to_string().contains(r#""from":"mount","to":"restore""#), "{report}");
    // A container's root without the capability to mount.
    let (code, report) =
        run("exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin BINARY doctor --json");
    assert_eq!(code, 8);
    assert_found(&report, "mount", "fail", "CAP_SYS_ADMIN");
}

/// An ordinary user mounts by fusermount3, unless setuid programs get no privilege.
#[test]
fn ordinary_user_without_new_privileges_cannot_mount() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample().by_ordinary_user();
    let (code, report) = doctor(&world, &[]);
    assert!(code <= 1, "{report}");
    assert_found(&report, "mount", "ok", "fusermount3");
    let tools = crate::common::as_user::tools();
    let mut command = Command::new("setpriv");
    command.args(as_user_args()).args(["--no-new-privs", "--"]).arg(tools.path().join("holofs"));
    let (code, report) = examine(command.arg("doctor").env("ROBOCORP_HOME", world.home()));
    assert_eq!(code, 8);
    assert_found(&report, "fusermount3", "fail", "no_new_privs");
}

/// A disk that does not take writes is a finding after a few seconds.
#[test]
fn frozen_disk_does_not_stop_it() {
    if !root_or_skip() {
        return;
    }
    let image = Image::new("ext4", 100);
    let world = World::at(image.path());
    world.add(&crate::common::Library::sample());
    let freeze = |how: &str| crate::common::sh(Command::new("fsfreeze").arg(how).arg(image.path()));
    freeze("-f");
    let done = std::panic::catch_unwind(|| doctor(&world, &[]));
    freeze("-u");
    let (code, report) = done.unwrap();
    assert_eq!(code, 1, "{report}");
    assert_found(&report, "reflink", "warning", "no answer");
    assert_eq!(files_below(&world.state()).len(), 0);
}

#[test]
fn rcc_is_asked_for_its_version_in_a_temporary_home() {
    let world = World::sample();
    let bin = world.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let note = world.path().join("note");
    let with = |text: &str| {
        executable(&bin.join("rcc"), text);
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        examine(world.holofs().arg("doctor").env("PATH", path)).1
    };
    let report = with(&format!(
        "#!/bin/sh\necho junk > $ROBOCORP_HOME/file\necho $ROBOCORP_HOME > {}\necho v1.2.3\n",
        note.display()
    ));
    assert_found(&report, "rcc", "ok", "v1.2.3");
    assert_eq!(report["details"]["rcc"], "v1.2.3");
    let home = fs::read_to_string(&note).unwrap();
    assert!(home.starts_with("/tmp/holofs-doctor.") && !Path::new(home.trim()).exists(), "{home}");
    assert_found(&with("#!/bin/sh\nexit 3\n"), "rcc", "warning", "no version");
}

#[test]
fn environment_of_a_robot_is_looked_for() {
    let world = World::sample();
    let dir = world.path().join("robot");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("robot.yaml"), "condaConfigFile: conda.yaml\n").unwrap();
    fs::write(dir.join("conda.yaml"), "channels: [conda-forge]\ndependencies: [python=3.1]\n").unwrap();
    let robot = dir.join("robot.yaml");
    let (_, report) = doctor(&world, &["-r", robot.to_str().unwrap()]);
    assert_found(&report, "environment", "warning", "does not have");
    fs::write(&robot, "condaConfigFile: [\n").unwrap();
    assert_found(&doctor(&world, &["-r", robot.to_str().unwrap()]).1, "environment", "warning", "robot.yaml");
}

/// rcc's home may lie on a network disk. Here a stopped daemon stands for it.
#[test]
fn settings_on_a_disk_that_hangs_do_not_stop_it() {
    let world = World::sample();
    let mounted = world.mount("s");
    let home = world.path().join("other-home");
    fs::create_dir(&home).unwrap();
    // Nobody has looked this name up, so the kernel has to ask.
    std::os::unix::fs::symlink(mounted.at("lib/settings.yaml"), home.join("settings.yaml")).unwrap();
    mounted.stop();
    let done = std::panic::catch_unwind(|| examine(world.holofs().arg("doctor").env("ROBOCORP_HOME", &home)));
    mounted.signal(rustix::process::Signal::CONT);
    let (code, report) = done.unwrap();
    assert_eq!(code, 8, "{report}");
    assert_found(&report, "settings", "fail", "no answer within 4 s");
    mounted.unmount();
}
