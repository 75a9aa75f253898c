//! `holofs delete`.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::as_user::holofs_binary;
use crate::common::rcc::{beside, restore};
use crate::common::world::finish;
use crate::common::{Library, World, apart, files_below};

/// The directory of a space.
fn place(world: &World, space: &str) -> PathBuf {
    let done = world.json(["mount", "auto", space]);
    let path = PathBuf::from(done["path"].as_str().unwrap());
    assert_eq!(world.run(["unmount", space]).code, 0);
    path
}

fn identity(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// What is in a directory, by name, without the lock of the whole holotree.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| name != "global.lck");
    names.sort();
    names
}

for_both_users! {
    fn a_mounted_space_is_unmounted_and_nothing_of_it_is_left() {
        let world = World::sample();
        let mounted = world.mount("demo");
        std::fs::write(mounted.at("new"), "mine").unwrap();
        std::fs::write(mounted.at("readme.txt"), "changed").unwrap();
        let path = mounted.at("").to_owned();
        let library = files_below(&world.hololib().join("library"));
        let done = world.run(["delete", "demo"]);
        let path = path.components().as_path().to_owned();
        assert_eq!((done.code, done.stdout), (0, format!("Removing {}\n", identity(&path))));
        assert!(world.mounts().is_empty());
        assert_eq!((names(&world.base()), names(&world.state().join("spaces"))), (Vec::new(), Vec::new()));
        assert_eq!(files_below(&world.hololib().join("library")), library);
        assert_eq!(world.json(["list"]).as_object().unwrap().len(), 0);
        let again = world.json(["mount", "auto", "demo"]);
        let again = Path::new(again["path"].as_str().unwrap());
        assert_eq!(std::fs::read(again.join("readme.txt")).unwrap(), b"hello, space\n");
        assert_eq!(world.run(["delete", "demo"]).code, 0);
    }

    fn a_restored_space_is_removed_and_links_are_not_followed() {
        let world = World::new();
        let library = Library::sample();
        world.add(&library);
        let path = place(&world, "demo");
        assert_eq!(world.run(["delete", "demo"]).code, 0);
        restore(&world, &library, &path);
        std::fs::write(beside(&path, ".use"), "..").unwrap();
        let outside = world.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "precious").unwrap();
        symlink(&outside, path.join("lib/link")).unwrap();
        // By a part of the identity, as in rcc.
        let part = &identity(&path)[10..20];
        let dry = world.run(["del", part, "-d"]);
        assert_eq!((dry.code, dry.stdout), (0, format!("[dry run] Removing {}\n", identity(&path))));
        assert!(path.join("readme.txt").exists() && beside(&path, ".meta").exists());
        let done = world.json(["delete", part]);
        assert_eq!(done[0]["removed"].as_bool(), Some(true), "{done}");
        assert_eq!(names(&world.base()), Vec::<String>::new());
        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"precious");
    }

    fn a_space_in_use_stays_with_its_changes() {
        let world = World::sample();
        let mounted = world.mount("demo");
        std::fs::write(mounted.at("new"), "mine").unwrap();
        let mut user = Command::new("sleep").arg("60").current_dir(mounted.at("lib")).stdin(Stdio::null()).spawn().unwrap();
        let done = world.run(["delete", "demo", "--timeout", "1"]);
        user.kill().unwrap();
        user.wait().unwrap();
        assert_eq!((done.code, done.stdout.as_str()), (12, ""), "{done:?}");
        assert!(done.stderr.contains(&user.id().to_string()), "{done:?}");
        assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"mine");
        mounted.unmount();
        assert_eq!(world.run(["delete", "-s", "demo"]).code, 0);
    }
}

#[test]
fn bad_names_delete_nothing() {
    let world = World::sample();
    let path = place(&world, "demo");
    for (args, code, word) in [
        (&["delete"][..], 1, "no space was named"),
        (&["delete", "demo", "missing"], 6, "missing"),
        (&["delete", "demo", "ffffffff"], 6, "ffffffff"),
        (&["delete", "demo", "_"], 6, "_"),
        (&["delete", "-s", &identity(&path)[10..20]], 6, ""),
        (&["delete", "demo", "--unused", "x"], 2, "--unused"),
    ] {
        let done = world.run(args);
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{args:?}: {done:?}");
        assert!(done.stderr.contains(word), "{args:?}: {done:?}");
        assert!(beside(&path, ".meta").exists());
    }
    let done = world.run(["delete", "--unused", "1"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3 * 86_400);
    std::fs::File::options().append(true).open(beside(&path, ".use")).unwrap().set_modified(old).unwrap();
    assert_eq!(world.run(["delete", "--unused", "4"]).stdout, "");
    let done = world.run(["delete", "--unused", "3"]);
    assert_eq!(done.stdout, format!("Removing {}\n", identity(&path)), "{done:?}");
}

#[test]
fn files_that_are_not_a_spaces_stay() {
    let world = World::sample();
    let path = place(&world, "demo");
    // The user's own files in the empty directory, and none of rcc's beside it.
    std::fs::write(path.join("mine"), "precious").unwrap();
    std::fs::remove_file(beside(&path, ".meta")).unwrap();
    let done = world.run(["delete", "demo"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("stays"), "{done:?}");
    assert_eq!(std::fs::read(path.join("mine")).unwrap(), b"precious");
    // A filesystem that is mounted somewhere in a restored tree.
    std::fs::remove_dir_all(&path).unwrap();
    restore(&world, &Library::sample(), &path);
    let precious = world.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("file"), "precious").unwrap();
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let script = r#"mount --bind "$1" "$2" && exec "$3" delete demo"#;
    let mut command = world.command("unshare");
    apart(&mut command, world.path()).args(["sh", "-c", script, "sh"]);
    let done = finish(command.arg(&precious).arg(path.join("lib/deep")).arg(holofs_binary()));
    assert_eq!((done.code, done.stdout.as_str()), (7, ""), "{done:?}");
    assert!(precious.join("file").exists() && path.join("readme.txt").exists());
    // A tree of another user.
    std::os::unix::fs::lchown(&path, Some(12345), None).unwrap();
    let done = world.run(["delete", "demo"]);
    assert_eq!(done.code, 7, "{done:?}");
    assert!(done.stderr.contains("user 12345") && path.join("readme.txt").exists(), "{done:?}");
}

#[test]
fn an_interrupted_deletion_is_completed_by_the_next() {
    let library = Library::sample();
    for n in [1, 4, 12, 20, 24, 27, 30, 33] {
        let world = World::with(&library);
        let path = place(&world, "demo");
        assert_eq!(world.run(["delete", "demo"]).code, 0);
        restore(&world, &library, &path);
        std::fs::create_dir_all(world.state().join("spaces")).unwrap();
        let inject = format!("inject=unlink,unlinkat,rename,renameat:signal=KILL:when={n}");
        let mut command = world.command("strace");
        command
            .args(["-f", "-qq", "-o", "/dev/null", "-e", &inject])
            .arg(holofs_binary())
            .args(["delete", "demo"]);
        let killed = finish(&mut command).code != 0;
        let done = world.run(["delete", "demo"]);
        assert!(
            done.code == 0 || (done.code == 6 && !killed) || !beside(&path, ".meta").exists(),
            "{n}: {done:?}"
        );
        let left = names(&world.base());
        assert!(left.iter().all(|name| name.ends_with(".lck")), "{n}: {left:?}");
    }
}

/// Works that may be long show how far they are, on a terminal only.
#[test]
fn long_works_show_progress_on_a_terminal() {
    let world = World::sample();
    let mounted = world.mount("s");
    std::fs::write(mounted.at("made"), b"x").unwrap();
    mounted.unmount();
    let binary = crate::common::as_user::holofs_binary();
    for (words, shown) in [("fork s t", "copying changes"), ("delete t", "deleting"), ("gc", "cleaning up")] {
        let line = format!("{} {words}", binary.display());
        let done = crate::common::world::finish(
            world.command("script").args(["-qec", &line, "/dev/null"]).env("TERM", "xterm"),
        );
        assert!(done.code == 0 && done.stdout.contains(shown), "{words}: {done:?}");
    }
    let done = world.run(["delete", "s"]);
    assert!(done.code == 0 && done.stderr.is_empty(), "{done:?}");
}
