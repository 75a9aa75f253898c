//! `holofs gc`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use crate::common::library::pattern;
use crate::common::rcc::{self, beside, delete};
use crate::common::{Library, World, files_below, wait_until};

/// An environment with two large files, which the blob cache keeps.
fn library() -> Library {
    Library::sample().file("lib/a.so", &pattern(700_000)).file("lib/b.so", &pattern(800_001))
}

/// The sum of the sizes of the files of holofs. The log of a live mount may grow, so only the cache counts then.
fn size(world: &World) -> u64 {
    let dir = if world.mounts().is_empty() { world.state() } else { world.state().join("cache") };
    files_below(&dir).iter().map(|path| dir.join(path).metadata().unwrap().len()).sum()
}

/// Makes a file look as if nobody had written to it for some days.
fn age(path: &Path, days: u64) {
    let time = SystemTime::now() - Duration::from_secs(days * 86_400);
    let file = std::fs::File::open(path).unwrap();
    file.set_modified(time).unwrap();
}

/// Runs gc, first dry, and returns what it printed. Checks that the dry run changes nothing, prints the same, and that the
/// files become smaller by as many bytes.
#[track_caller]
fn gc(world: &World, args: &[&str]) -> String {
    let before = size(world);
    let run = |more: &[&str]| world.run([&["gc"], args, more].concat());
    let dry = run(&["--dry-run"]);
    assert_eq!((dry.code, size(world)), (0, before), "{dry:?}");
    let done = run(&[]);
    assert_eq!((done.code, &done.stdout), (0, &dry.stdout), "{done:?}");
    let freed: u64 = done.stdout.lines().last().unwrap().strip_suffix(" bytes").unwrap().parse().unwrap();
    assert_eq!(before - size(world), freed, "{done:?}");
    let again = run(&[]);
    assert_eq!((again.code, again.stdout.as_str()), (0, "0 bytes\n"), "{again:?}");
    done.stdout + &done.stderr
}

/// Mounts a space, changes it if `change` is set, unmounts it, and returns its directory.
fn used(world: &World, space: &str, change: bool) -> PathBuf {
    let mounted = world.mount(space);
    if change {
        std::fs::write(mounted.at("new"), "mine").unwrap();
    }
    let path = mounted.path().to_owned();
    mounted.unmount();
    path
}

for_both_users! {
    fn the_state_of_deleted_spaces_goes_and_their_changes_stay() {
        let world = World::with(&library());
        let (kept, gone, changed) = (used(&world, "kept", true), used(&world, "gone", false), used(&world, "changed", true));
        let state = |path: &Path| world.state().join("spaces").join(path.file_name().unwrap());
        delete(&gone);
        delete(&changed);
        let printed = gc(&world, &[]);
        assert!(printed.contains(&format!("orphan-state {}\n", state(&gone).display())), "{printed}");
        assert!(printed.contains(&format!("kept changes: {}/upper (4 bytes)", state(&changed).display())), "{printed}");
        assert!(!state(&gone).exists() && state(&changed).join("upper/new").exists() && state(&kept).exists());
        // Nobody has used it for long.
        for name in ["state.json", "log", "upper", ""] {
            age(&state(&changed).join(name), 10);
        }
        let old = gc(&world, &["--unused", "10"]);
        assert!(old.contains("orphan-state") && !state(&changed).exists(), "{old}");
        assert!(state(&kept).join("upper/new").exists());
    }

    fn a_dead_mount_is_unmounted_and_its_changes_stay() {
        let world = World::with(&library());
        let mounted = world.mount("demo");
        std::fs::write(mounted.at("new"), "mine").unwrap();
        let path = mounted.path().to_owned();
        mounted.kill();
        let done = world.run(["gc"]);
        assert!(done.code == 0 && done.stdout.contains(&format!("0 stale-mount {}\n", path.display())), "{done:?}");
        assert!(world.mounts().is_empty());
        let mounted = world.mount("demo");
        assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"mine");
    }

    fn the_cache_is_bounded_under_a_live_mount() {
        let world = World::with(&library());
        let mounted = world.mount("demo");
        for name in ["lib/a.so", "lib/b.so"] {
            std::fs::read(mounted.at(name)).unwrap();
        }
        let copies = world.raw_copies().len();
        assert!(copies >= 2);
        let printed = gc(&world, &["--cache-size", "800001"]);
        assert!(printed.contains(" blobs "), "{printed}");
        assert!(world.raw_copies().len() < copies);
        gc(&world, &["--cache-size", "0"]);
        assert_eq!(world.raw_copies().len(), 0);
        assert!(std::fs::read(mounted.at("lib/a.so")).unwrap() == pattern(700_000));
        assert!(std::fs::read(mounted.at("lib/b.so")).unwrap() == pattern(800_001));
        assert!(beside(mounted.path(), ".meta").exists());
    }
}

#[test]
fn indexes_of_catalogs_that_are_gone_and_leftovers_go() {
    let world = World::with(&library());
    let other = Library::new().named("other");
    world.add(&other);
    for library in [&library(), &other] {
        let done = world.json(["mount", "auto", "demo", "--blueprint", &library.hash(), "--ephemeral"]);
        let path = PathBuf::from(done["path"].as_str().unwrap());
        assert_eq!(world.run(["delete", "demo"]).code, 0);
        assert!(!path.exists());
    }
    let index = world.state().join("cache/index");
    let count = || files_below(&index).len();
    assert_eq!(count(), 4);
    std::fs::remove_file(other.catalog(&world.hololib())).unwrap();
    // A young file may belong to a catalog that is not known yet.
    assert!(gc(&world, &[]).starts_with("0 bytes"));
    std::fs::write(index.join(".x.idx.part#1.2"), "half").unwrap();
    std::fs::create_dir_all(world.state().join("cache/blobs/tmp")).unwrap();
    std::fs::write(world.state().join("cache/blobs/tmp/copy.1.2"), "half").unwrap();
    std::fs::create_dir_all(world.state().join("spaces/.gone.x/upper")).unwrap();
    std::fs::write(world.state().join("spaces/.gone.x/upper/file"), "half").unwrap();
    for path in files_below(&world.state()) {
        age(&world.state().join(path), 1);
    }
    let printed = gc(&world, &[]);
    assert_eq!((count(), printed.matches(" index ").count()), (2, 3), "{printed}");
    assert_eq!(printed.matches("leftover").count(), 2, "{printed}");
    assert!(world.json(["gc"])["items"].as_array().unwrap().is_empty());
    // The index of the catalog that is there is used again.
    let look = || {
        let mut files = files_below(&index);
        files.retain(|path| path.extension().is_some_and(|ending| ending == "idx"));
        std::fs::metadata(index.join(&files[0])).unwrap().modified().unwrap()
    };
    let before = look();
    drop(world.mount_with("demo", &["--blueprint", &library().hash()]));
    assert_eq!(look(), before);
}

/// What `restore --strategy hardlink` keeps, and what killed restores and forks have left.
#[test]
fn what_restores_and_forks_have_left_goes() {
    let world = World::with(&library());
    let home = world.home();
    let restored = |space: &str| {
        let done = world.json(["restore", home.to_str().unwrap(), space, "--strategy", "hardlink"]);
        PathBuf::from(done["path"].as_str().unwrap())
    };
    let (kept, gone) = (restored("kept"), restored("gone"));
    let links = world.state().join("cache/links");
    let copies = files_below(&links).len();
    assert!(copies > 2);
    // Another space has links to all copies but one.
    std::fs::remove_file(kept.join("lib/b.so")).unwrap();
    std::fs::remove_dir_all(&gone).unwrap();
    let printed = gc(&world, &[]);
    assert!(printed.contains(&format!("800001 links {}\n", links.display())), "{printed}");
    assert_eq!(files_below(&links).len(), copies - 1);
    assert!(std::fs::read(kept.join("lib/a.so")).unwrap() == pattern(700_000));

    // Unfinished: a tree beside a space, a tree of a space that is being restored, and marks with and without a tree.
    let unfinished = |path: &Path| {
        std::fs::create_dir_all(beside(path, ".restoring").join("lib")).unwrap();
        std::fs::write(beside(path, ".restoring").join("lib/half"), "half").unwrap();
    };
    let other = |end: &str| {
        kept.with_file_name(format!("{}{end}", &kept.file_name().unwrap().to_str().unwrap()[..23]))
    };
    let (locked, marked) = (other("_"), other("-"));
    for path in [&kept, &locked] {
        unfinished(path);
    }
    let lock = std::fs::File::create(beside(&locked, ".lck")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::fs::write(beside(&gone, ".restoring"), "").unwrap();
    std::fs::create_dir(&marked).unwrap();
    std::fs::write(beside(&marked, ".restoring"), "").unwrap();
    std::fs::create_dir(kept.with_file_name("mine.restoring")).unwrap();
    // Forks.
    let spaces = world.state().join("spaces");
    let fork = |name: &str| spaces.join(format!("fork.{}", name));
    for name in ["busy", "dead"] {
        std::fs::create_dir_all(fork(name).join("upper")).unwrap();
        std::fs::write(fork(name).join("upper/new"), "new").unwrap();
        std::fs::set_permissions(fork(name), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    }
    let busy = std::fs::File::create(fork("busy").join("lock")).unwrap();
    rustix::fs::flock(&busy, rustix::fs::FlockOperation::LockExclusive).unwrap();

    let dry = world.run(["gc", "--dry-run"]);
    let left = [beside(&kept, ".restoring"), beside(&gone, ".restoring"), fork("dead")];
    assert!(
        left.iter()
            .all(|path| dry.stdout.contains(&format!("leftover {}\n", path.display())) && path.exists())
    );
    let done = world.run(["gc"]);
    assert_eq!((done.code, &done.stdout), (0, &dry.stdout), "{done:?}");
    assert_eq!(done.stdout.matches("leftover").count(), left.len(), "{done:?}");
    assert!(left.iter().all(|path| !path.exists()));
    assert!(
        beside(&locked, ".restoring").join("lib/half").exists() && beside(&marked, ".restoring").exists()
    );
    assert!(kept.with_file_name("mine.restoring").exists() && fork("busy").join("upper/new").exists());
    drop((lock, busy));
    let done = world.run(["gc"]);
    assert_eq!(done.stdout.matches("leftover").count(), 2, "{done:?}");
    assert!(!beside(&locked, ".restoring").exists() && !fork("busy").exists());
}

/// The spaces of a killed benchmark lie in the holotree, and its caches in a home of their own.
#[test]
fn what_a_killed_benchmark_has_left_goes() {
    let world = World::with(&library());
    let spaces = || -> Vec<PathBuf> {
        let mut found = files_below(&world.base());
        found.retain(|path| path.to_string_lossy() != "global.lck");
        found
    };
    let homes = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(world.state()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_string_lossy().contains("/bench.")).collect()
    };
    let mut command = world.holofs();
    command.args(["bench", world.home().to_str().unwrap(), "--runs", "50"]);
    let mut bench = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("a restore of the benchmark", || spaces().iter().any(|path| path.ends_with("lib/a.so")));
    // It is running: nothing of it goes.
    let meanwhile = world.run(["gc", "--dry-run"]);
    assert!(!meanwhile.stdout.contains("bench."), "{meanwhile:?}");
    bench.kill().unwrap();
    bench.wait().unwrap();
    assert_eq!(homes().len(), 1);
    // The command that it had started has the lock, too.
    wait_until("the end of that command", || world.run(["gc"]).code == 0 && homes().is_empty());
    assert_eq!(spaces(), Vec::<PathBuf>::new());
    assert!(world.mounts().is_empty());
}

/// The temporary files of a killed import, whose names no reader uses.
#[test]
fn what_a_killed_import_has_left_goes() {
    let library = Library::sample().file("lib/a.so", &pattern(30_000_000));
    let world = World::with(&library);
    let (zip, other) = (world.path().join("x.zip"), world.path().join("other"));
    let done = world.run(["export", "auto", "--all", "-z", zip.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{done:?}");
    let parts = || {
        let mut found = files_below(&other.join("hololib"));
        found.retain(|path| path.to_string_lossy().contains(".part#"));
        found
    };
    let other_home = || ["--home", other.to_str().unwrap()];
    // A kill may come between two files: the next attempt comes earlier or later.
    for round in 0.. {
        let mut command = world.holofs();
        command.args(other_home()).args(["import", other.to_str().unwrap(), zip.to_str().unwrap()]);
        let mut import = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("a partial blob", || parts().len() > 1 || import.try_wait().unwrap().is_some());
        import.kill().unwrap();
        let ended = import.wait().unwrap();
        if !ended.success() && parts().len() > 1 {
            break;
        }
        assert!(round < 50, "every import was faster than its kill");
        std::fs::remove_dir_all(&other).unwrap();
    }
    let lock = rcc::lock(&other.join("holotree/global.lck"));
    let run = |args: &[&str]| world.run([&other_home()[..], args].concat());
    assert_eq!(run(&["gc"]).stdout, "0 bytes\n", "somebody records");
    drop(lock);
    let bytes: u64 =
        parts().iter().map(|path| other.join("hololib").join(path).metadata().unwrap().len()).sum();
    let dry = run(&["gc", "--dry-run"]);
    assert!(dry.stdout.ends_with(&format!("{bytes} bytes\n")) && parts().len() > 1, "{dry:?}");
    assert_eq!(run(&["gc"]).stdout, dry.stdout);
    assert_eq!(parts(), Vec::<PathBuf>::new());
    assert_eq!(run(&["gc"]).stdout, "0 bytes\n");
    let again = run(&["import", other.to_str().unwrap(), zip.to_str().unwrap()]);
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(parts(), Vec::<PathBuf>::new());
}

#[test]
fn bad_options_and_an_unreadable_library_remove_nothing() {
    let world = World::with(&library());
    used(&world, "demo", false);
    for (args, word) in
        [(&["gc", "--cache-size", "x"][..], "--cache-size"), (&["gc", "--unused", "-1"], "-1")]
    {
        let done = world.run(args);
        assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{done:?}");
        assert!(done.stderr.contains(word), "{done:?}");
    }
    // Whether its catalogs are gone is not known.
    std::fs::rename(world.hololib().join("catalog"), world.hololib().join("moved")).unwrap();
    std::os::unix::fs::symlink("catalog", world.hololib().join("catalog")).unwrap();
    let count = files_below(&world.state().join("cache/index")).len();
    let done = world.run(["gc"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(files_below(&world.state().join("cache/index")).len(), count);
}
