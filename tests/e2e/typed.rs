//! What people type wrongly: each kind of bad input ends with its exit code, one line with what failed and why, one line
//! with what to try, and nothing on standard output. The tables have a row for each kind and command.

use std::path::Path;

use crate::common::World;
use crate::common::as_user::root_or_skip;
use crate::common::library::gzip;
use crate::common::world::{Done, finish};

/// A command line, its exit code, and a word of what it says. `HOME` and `DIR` stand for the world's directories.
type Row = (&'static [&'static str], i32, &'static str);

/// Runs the rows in a directory with some files that are not what is expected.
fn refuse(world: &World, rows: &[Row]) {
    let dir = world.path();
    std::fs::write(dir.join("file"), "text").unwrap();
    std::fs::write(dir.join("broken.yaml"), "a: [\n").unwrap();
    std::fs::write(dir.join("list.json"), "[1]").unwrap();
    std::fs::write(dir.join("conda.yaml"), "dependencies:\n- python=3.11\n").unwrap();
    std::fs::create_dir_all(dir.join("robot")).unwrap();
    std::fs::write(
        dir.join("robot/robot.yaml"),
        "tasks:\n  A:\n    shell: true\ncondaConfigFile: conda.yaml\n",
    )
    .unwrap();
    std::fs::write(dir.join("cut.zip"), b"PK\x03\x04 and no more").unwrap();
    std::fs::create_dir_all(dir.join("empty")).unwrap();
    for (args, code, word) in rows {
        let home = world.home().into_os_string().into_string().unwrap();
        let args =
            args.iter().map(|arg| arg.replace("HOME", &home).replace("DIR", &dir.display().to_string()));
        assert_refused(&finish(world.holofs().args(args.clone()).current_dir(dir)), *code, word);
    }
    assert_eq!(world.mounts(), Vec::<std::path::PathBuf>::new());
}

#[track_caller]
fn assert_refused(done: &Done, code: i32, word: &str) {
    assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
    let lines: Vec<&str> = done.stderr.lines().collect();
    assert!(lines.first().is_some_and(|line| line.starts_with("holofs: ")), "{done:?}");
    assert!(lines.get(1).is_some_and(|line| line.starts_with("  try: ")), "{done:?}");
    assert!(lines.iter().skip(2).all(|line| line.starts_with("    ")), "{done:?}");
    assert!(done.stderr.contains(word), "{word:?} is missing in {done:?}");
}

for_both_users! {
    fn usage() {
        refuse(&World::sample(), &[
            (&["-j"], 2, "no command was given"),
            (&["moutn"], 2, "mount"),
            (&["mount", "--bogus"], 2, "`holofs mount --help`"),
            (&["mount", "demo"], 2, "`holofs mount auto demo`"),
            (&["mount"], 2, "-r robot.yaml"),
            (&["run", "auto", "demo", "python", "-V"], 125, "-- python -V"),
            (&["mount", "auto", "s", "--lock-timeout", "-1"], 2, "-1"),
            (&["mount", "auto", "s", "--lock-timeout", "soon"], 2, "seconds"),
            (&["mount", "auto", "s", "--cache-size", "10X"], 2, "10X"),
            (&["mount", "auto", "s", "--strategy", "copy", "--holotree-strategy", "smart"], 2, "multiple"),
            (&["mount", "auto", "s", "--fallback", "maybe"], 2, "none, restore"),
            (&["mount", "auto", "s", "--verify", "sometimes"], 2, "once, always, never"),
            (&["mount", "auto", "s", "--upper-dir", "DIR/file"], 2, "not a directory"),
            (&["mount", "auto", ""], 2, "SPACE: the name is empty"),
            (&["--product", "x", "list"], 2, "robocorp, sema4ai"),
            (&["unmount"], 2, "SPACE"),
            (&["unmount", "s", "-z", "--force"], 2, "--force"),
            (&["unmount", ""], 2, "empty"),
            (&["variables", "--format", "cmd"], 2, "powershell"),
            (&["variables", "--force", "--no-mount"], 2, "--no-mount"),
            (&["hash"], 2, "FILE"),
            (&["hash", "--stdin", "a.yaml", "b.yaml"], 2, "one FILE"),
            (&["catalogs", "-t", "x"], 2, "x"),
            (&["list", "x"], 2, "x"),
            (&["status"], 2, "SPACE"),
            (&["path", ""], 2, "empty"),
            (&["stats", "s", "--all"], 2, "--all"),
            (&["stats", "--watch=0"], 2, "at least 0.1"),
            (&["diff"], 2, "SPACE"),
            (&["fork", "s"], 2, "NEW"),
            (&["reset"], 2, "SPACE"),
            (&["commit", "s"], 2, "--blueprint"),
            (&["restore", "auto", "s", "--jobs", "0"], 2, "1 or more"),
            (&["restore", "auto", "s", "--strategy", "fast"], 2, "hardlink"),
            (&["check", "auto", "--jobs", "0"], 2, "1 or more"),
            (&["delete", "--unused", "x"], 2, "x"),
            (&["delete", ""], 2, "empty"),
            (&["gc", "--cache-size", "1x"], 2, "1x"),
            (&["doctor", "a", "b"], 2, "b"),
            (&["config", "x"], 2, "x"),
            (&["bench", "auto", "--runs", "0"], 2, "0"),
            (&["completions", "cmd"], 2, "bash"),
            (&["export", "auto", "--all", "-z", "DIR/empty"], 2, "directory"),
            (&["import", "auto"], 2, "FILE"),
            (&["run", "--bogus"], 125, "--bogus"),
            (&["shell", "--bogus"], 125, "--bogus"),
        ]);
    }

    fn libraries() {
        refuse(&World::sample(), &[
            (&["mount", "", "s"], 3, "LIBRARY: it is empty"),
            (&["mount", "DIR/nowhere", "s"], 3, "no such file"),
            (&["mount", "DIR/file/below", "s"], 3, "no such file"),
            (&["mount", "DIR/empty", "s"], 3, "not a library"),
            (&["mount", "DIR/file", "s"], 3, "no zip archive"),
            (&["mount", "DIR/cut.zip", "s"], 3, "truncated"),
            (&["mount", "/dev/null", "s"], 3, "not a library"),
            (&["--home", "DIR/nowhere", "mount", "auto", "s"], 3, "no library here"),
            (&["restore", "DIR/file", "s"], 3, "no zip archive"),
            (&["check", "DIR/nowhere"], 3, "no such file"),
            (&["catalogs", "DIR/empty"], 3, "not a library"),
            (&["blueprint", "--library", "DIR/empty", "conda.yaml"], 3, "not a library"),
            (&["export", "DIR/empty", "--all"], 3, "not a library"),
            (&["import", "DIR/new", "DIR/empty"], 3, "a directory, not an archive"),
            (&["import", "DIR/new", "DIR/cut.zip"], 3, "truncated"),
            (&["import", "DIR/file", "DIR/cut.zip"], 3, "no zip archive"),
            (&["bench", "DIR/empty"], 3, "not a library"),
            (&["doctor", "DIR/nowhere"], 3, "nowhere"),
            (&["run", "DIR/empty", "s", "--", "true"], 125, "not a library"),
        ]);
    }

    fn configuration() {
        let world = World::sample();
        refuse(&world, &[
            (&["--home", "DIR/file", "list"], 4, "not a directory"),
            (&["mount", "auto", "s", "--cache-dir", "DIR/file"], 4, "not a directory"),
            (&["list", "--log-file", "DIR/nowhere/log"], 4, "nowhere"),
        ]);
        for (name, value) in [("HOLOFS_IO", "fast"), ("RCC_HOLOTREE_STRATEGY", "bogus"), ("HOLOFS_LOG", "loud")] {
            let done = finish(world.holofs().env(name, value).arg("config"));
            assert_refused(&done, 4, &format!("{name}={value}"));
        }
        std::fs::write(world.home().join("settings.yaml"), "holotree:\n  restoration-strategy: fast\n").unwrap();
        assert_refused(&world.run(["config"]), 4, "settings.yaml:2");
    }

    fn environments() {
        refuse(&World::sample(), &[
            (&["mount", "auto", "s", "-r", "DIR/nowhere"], 5, "nowhere"),
            (&["mount", "auto", "s", "-r", "DIR"], 5, "directory"),
            (&["mount", "auto", "s", "--conda", "DIR/broken.yaml"], 5, "broken.yaml:1"),
            (&["mount", "auto", "s", "--devdeps"], 5, "no file describes"),
            (&["variables"], 5, "no file describes"),
            (&["variables", "DIR/nowhere"], 5, "nowhere"),
            (&["variables", "DIR/robot/robot.yaml"], 5, "conda.yaml that it names"),
            (&["variables", "-s", "s", "-e", "DIR/list.json"], 5, "list.json:1"),
            (&["hash", "DIR"], 5, "directory"),
            (&["hash", "/dev/zero"], 5, "device"),
            (&["hash", "conda.yaml", "--devdeps"], 5, "package.yaml"),
            (&["blueprint"], 5, "no file describes"),
            (&["blueprint", "-r", "conda.yaml"], 5, "condaConfigFile"),
        ]);
    }

    fn unknown() {
        let world = World::sample();
        refuse(&world, &[
            (&["mount", "auto", "s", "--blueprint", "0123"], 6, "0123"),
            (&["mount", "auto", "s", "--blueprint", ""], 6, "empty"),
            (&["restore", "auto", "s", "--blueprint", "0123"], 6, "0123"),
            (&["check", "auto", "--catalog", "0123"], 6, "0123"),
            (&["export", "auto", "0123", "-z", "DIR/x.zip"], 6, "0123"),
            (&["unmount", "nobody", "--strict"], 6, "not mounted"),
            (&["variables", "-s", "nobody", "--no-mount"], 6, "not mounted"),
            (&["status", "nobody"], 6, "nobody"),
            (&["status", "DIR/file"], 6, "no such space"),
            (&["status", "/proc"], 6, "no such space"),
            (&["path", "nobody", "--controller", "other"], 6, "nobody"),
            (&["path", "DIR/file"], 6, "no such space"),
            (&["stats", "nobody"], 6, "nobody"),
            (&["stats", "./file"], 6, "no such space"),
            (&["diff", "nobody"], 6, "nobody"),
            (&["diff", "./file"], 6, "no such space"),
            (&["reset", "nobody"], 6, "nobody"),
            (&["reset", "/"], 6, "no such space"),
            (&["fork", "nobody", "new"], 6, "nobody"),
            (&["fork", "./file", "new"], 6, "no such space"),
            (&["commit", "nobody", "--blueprint", "conda.yaml"], 6, "nobody"),
            (&["delete", "nobody"], 6, "nobody"),
            (&["delete", "/"], 6, "no such space"),
            (&["man", "nobody"], 6, "nobody"),
            (&["delete"], 1, "no space was named"),
        ]);
        // The mountpoint of a mount must be right, also when there is no such space yet.
        refuse(&world, &[
            (&["mount", "auto", "DIR/file"], 7, "not a directory"),
            (&["restore", "auto", "DIR/file"], 7, "not a directory"),
            (&["mount", "auto", "s", "--link", "DIR/file"], 7, "not a symbolic link"),
        ]);
    }

    fn unmounts_the_others_when_one_cannot_be_unmounted() {
        let world = World::sample();
        let (one, two) = (world.mount("one"), world.mount("two"));
        let mut user = world.command("sleep").arg("60").current_dir(one.path()).spawn().unwrap();
        let done = world.run(["unmount", "nobody", "one", "two", "--strict"]);
        assert_eq!(done.code, 6, "{done:?}");
        assert_eq!(done.stdout.trim_end(), two.path().to_str().unwrap());
        assert!(done.stderr.contains("nobody: not mounted") && done.stderr.contains("in use by"), "{done:?}");
        two.has_ended();
        assert_eq!(world.run(["unmount", "--all"]).code, 12);
        user.kill().unwrap();
        user.wait().unwrap();
    }

    fn a_link_to_a_space_means_the_space() {
        let world = World::sample();
        let link = world.path().join("link");
        let mounted = world.mount_with("s", &["--link", link.to_str().unwrap()]);
        let link = link.to_str().unwrap();
        assert_eq!(world.json(["path", link])["path"], mounted.path().to_str().unwrap());
        assert_eq!(world.json(["status", link])["space"], "s");
        let done = world.run(["unmount", link]);
        assert_eq!((done.code, done.stdout.trim_end()), (0, mounted.path().to_str().unwrap()), "{done:?}");
        mounted.has_ended();
    }

    /// Also a space that was mounted before.
    fn restored_space_is_listed_as_restored() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), "mine").unwrap();
        mounted.unmount();
        assert_eq!(world.run(["restore", "auto", "s"]).code, 0);
        assert_eq!(world.json(["status", "s"])["state"], "restored");
        let list = world.run(["list"]);
        assert!(list.stdout.contains("restored"), "{list:?}");
        // The changes of the earlier mount are still known.
        assert_eq!(world.run(["diff", "s"]).stdout, "A new\n");
        assert_refused(&world.run(["mount", "auto", "s"]), 7, "holofs delete");
    }

    fn hash_of_standard_input_needs_no_name() {
        let world = World::sample();
        let conda = world.path().join("conda.yaml");
        std::fs::write(&conda, "channels: [conda-forge]\ndependencies:\n- python=3.11\n").unwrap();
        let mut command = world.holofs();
        command.args(["hash", "--stdin"]).stdin(std::fs::File::open(&conda).unwrap());
        let by_input = finish(&mut command);
        assert_eq!((by_input.code, by_input.stdout), (0, world.run(["hash", conda.to_str().unwrap()]).stdout));
    }

    fn doctor_finds_a_robot_by_a_relative_path() {
        let world = World::sample();
        let text = "tasks:\n  A:\n    shell: true\ncondaConfigFile: conda.yaml\n";
        std::fs::write(world.path().join("robot.yaml"), text).unwrap();
        std::fs::write(world.path().join("conda.yaml"), "dependencies:\n- python=3.11\n").unwrap();
        let done = finish(world.holofs().args(["doctor", "-r", "robot.yaml"]).current_dir(world.path()));
        assert!(done.stdout.contains("the library does not have"), "{done:?}");
    }
}

/// A directory that may not be entered is not said to hold no library.
#[test]
fn unreadable_library() {
    if !root_or_skip() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let world = World::sample().by_ordinary_user();
    let closed = world.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let closed = closed.to_str().unwrap();
    let below = format!("{closed}/library");
    assert_refused(&world.run(["mount", closed, "s"]), 3, "ermission denied");
    assert_refused(&world.run(["mount", &below, "s"]), 3, "ermission denied");
    assert_refused(&world.run(["import", &below, "x.zip"]), 3, "ermission denied");
    assert_refused(&world.run(["mount", "auto", "s", "--cache-dir", &below]), 4, "ermission denied");
    assert_refused(&world.run(["mount", "auto", "s", "--upper-dir", &below]), 2, "ermission denied");
    assert_refused(&world.run(["mount", "auto", "s", "--log-file", &below]), 4, "ermission denied");
    assert_refused(&world.run(["hash", &below]), 5, "ermission denied");
    assert_refused(&world.run(["export", "auto", "--all", "-z", &below]), 1, "ermission denied");
    assert_refused(&world.run(["doctor", closed]), 3, "write");
}

/// A corrupt blob gets another name, and an import stores it again.
#[test]
fn check_repairs() {
    let world = World::sample();
    let library = crate::common::Library::sample();
    let (home, zip) = (world.home(), world.path().join("x.zip"));
    let (home, zip) = (home.to_str().unwrap(), zip.to_str().unwrap());
    assert_eq!(world.run(["export", home, "--all", "-z", zip]).code, 0);
    let blob = library.blob(&world.hololib(), "lib/data.bin");
    let good = std::fs::read(&blob).unwrap();
    std::fs::write(&blob, gzip(b"other")).unwrap();
    assert_eq!(world.run(["check", home]).code, 11);
    assert!(blob.exists(), "a check without --repair changes nothing");
    let done = world.run(["check", home, "--repair", "--json"]);
    let aside = blob.with_extension("corrupt");
    let report: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((done.code, &report["set_aside"][0]), (11, &aside.to_str().unwrap().into()), "{done:?}");
    assert!(!blob.exists() && aside.exists());
    let missing = world.run(["check", home]);
    assert!(missing.code == 11 && missing.stdout.contains("missing blob"), "{missing:?}");
    assert_eq!(world.run(["import", home, zip]).code, 0);
    assert_eq!(world.run(["check", home]).code, 0);
    assert_eq!(std::fs::read(&blob).unwrap(), good);
    assert_archive_is_not_repaired(&world, Path::new(zip));
}

fn assert_archive_is_not_repaired(world: &World, zip: &Path) {
    let clean = world.run([std::ffi::OsStr::new("check"), zip.as_os_str(), "--repair".as_ref()]);
    assert_eq!(clean.code, 0, "{clean:?}");
}

/// `gc` does not take a fork that was never mounted for what is left of a deleted space.
#[test]
fn gc_keeps_a_fork_that_was_never_mounted() {
    let world = World::sample();
    let mounted = world.mount("s");
    std::fs::write(mounted.at("new"), "mine").unwrap();
    assert_eq!(world.run(["fork", "s", "other"]).code, 0);
    mounted.unmount();
    let done = world.json(["gc", "--unused", "0"]);
    assert_eq!(done["kept"], serde_json::json!([]), "{done}");
    assert_eq!(world.run(["diff", "other"]).stdout, "A new\n");
}

/// Every command that can take long draws a bar on a terminal, and none elsewhere or with --silent.
#[test]
fn long_work_shows_its_progress_on_a_terminal() {
    const ON_A_TERMINAL: &str =
        "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let world = World::sample();
    let (home, zip) = (world.home(), world.path().join("x.zip"));
    let (home, zip) = (home.to_str().unwrap(), zip.to_str().unwrap());
    let new = world.path().join("new").display().to_string();
    let conda = world.path().join("conda.yaml");
    std::fs::write(&conda, "dependencies:\n- python=3.11\n").unwrap();
    let rows: [(&[&str], &str); 6] = [
        (&["check", home], "checking"),
        (&["export", home, "--all", "-z", zip], "exporting"),
        (&["import", &new, zip], "importing"),
        (&["restore", home, "s"], "restoring"),
        (&["warm", home, "s"], "warming"),
        (
            &[
                "record",
                &new,
                "--blueprint",
                conda.to_str().unwrap(),
                "--",
                "sh",
                "-c",
                "echo x > $HOLOFS_STAGE/x",
            ],
            "recording",
        ),
    ];
    for (args, word) in rows {
        // Each run has a library of its own to write to.
        let args =
            |run: &str| args.iter().map(|arg| arg.replace(&new, &format!("{new}-{run}"))).collect::<Vec<_>>();
        for (run, silent) in [("shown", false), ("silent", true)] {
            let mut command = world.command("python3");
            command.args(["-c", ON_A_TERMINAL]).arg(world.holofs().get_program());
            command.args(silent.then_some("-q")).args(args(run));
            let done = finish(command.env("TERM", "xterm"));
            assert_eq!(done.code, 0, "{done:?}");
            assert_eq!(done.stdout.contains(word), !silent, "{word}: {done:?}");
        }
        let plain = world.run(args("plain"));
        assert!(plain.code == 0 && !plain.stderr.contains(word), "{plain:?}");
    }
}
