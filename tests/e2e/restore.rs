//! `holofs restore` makes the tree that real rcc restores, completes it after any interruption, and shares no file that
//! must not be shared.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::as_user::{fixtures, holofs_binary, root_or_skip};
use crate::common::image::Image;
use crate::common::library::{pattern, umask};
use crate::common::manifest::{Line, Manifest, assert_same, read_golden, read_tree};
use crate::common::random::Random;
use crate::common::world::{Done, finish};
use crate::common::{Library, MOTHER_TIME, World, apart, files_below, fixture, rcc, sh};

/// The blueprints of `two-catalogs`.
const A: &str = "adb8c26db4d86a93";
const B: &str = "4ef4502d7023d413";

fn args<'a>(home: &'a Path, space: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["restore", home.to_str().unwrap(), space];
    all.extend(more);
    all
}

/// Restores a space, which must succeed, and returns its directory and the JSON.
#[track_caller]
fn restore(world: &World, space: &str, more: &[&str]) -> (PathBuf, Value) {
    let done = world.json(args(&world.home(), space, more));
    (PathBuf::from(done["path"].as_str().unwrap()), done)
}

/// Restores a space, which must fail in one line with advice, and print nothing.
#[track_caller]
fn refused(world: &World, space: &str, more: &[&str]) -> Done {
    let done = world.run(args(&world.home(), space, more));
    assert_ne!(done.code, 0, "{done:?}");
    assert_eq!(done.stdout, "", "{done:?}");
    assert!(done.stderr.contains("holofs: ") && done.stderr.contains("\n  try: "), "{done:?}");
    done
}

/// A golden manifest, adapted to the umask of this process.
fn golden(fixture: &str, space: &str) -> Manifest {
    let mut manifest = read_golden(&fixture::golden(fixture, space));
    for line in manifest.values_mut() {
        if let Line::Dir { mode } = line {
            *mode = 0o750 & !umask();
        }
    }
    manifest
}

/// What rcc would restore of a test library.
fn expected(world: &World, library: &Library, restored: &Path) -> Manifest {
    let plain = world.path().join("expected").join(restored.file_name().unwrap());
    if !plain.exists() {
        library.restore(&plain);
    }
    read_tree(&plain)
}

/// Asserts that nothing of a restore is left beside the space.
#[track_caller]
fn assert_nothing_left(path: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut beside: Vec<String> = std::fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|entry| entry.starts_with(&name))
        .collect();
    beside.sort();
    let endings = ["", ".lck", ".meta", ".meta.info", ".use"];
    assert_eq!(beside, endings.map(|ending| format!("{name}{ending}")));
}

by_both_users! {
    fn golden_trees_by_every_strategy() {
        for (library, space) in [("basic-gz", "golden-one"), ("basic-gz", "golden-two"), ("basic-raw", "golden-one")] {
            let world = fixture::world(library);
            for strategy in ["smart", "copy"] {
                let (path, done) = restore(&world, space, &["--strategy", strategy]);
                assert_same(&golden(library, space), &read_tree(&path));
                assert_eq!(done["strategy"], strategy);
                assert_nothing_left(&path);
                std::fs::remove_dir_all(&path).unwrap();
            }
        }
    }

    /// The files beside the space are those that rcc writes.
    fn files_beside_the_space_match_rcc() {
        let world = fixture::world("basic-gz");
        let (path, _) = restore(&world, "golden-one", &[]);
        let name = path.file_name().unwrap().to_str().unwrap();
        let golden = |ending: &str| {
            std::fs::read(fixtures().join(format!("basic-gz/golden/after-restores/holotree/{name}{ending}"))).unwrap()
        };
        let at_base = |bytes: &[u8]| {
            let mut json: Value = serde_json::from_slice(bytes).unwrap();
            json["path"] = json!(path);
            json
        };
        assert_eq!(rcc::read(&rcc::beside(&path, ".meta")), at_base(&fixture::gunzip(&golden(".meta"))));
        let info: Value = serde_json::from_slice(&std::fs::read(rcc::beside(&path, ".meta.info")).unwrap()).unwrap();
        assert_eq!(info, at_base(&golden(".meta.info")));
        assert_eq!(std::fs::read(rcc::beside(&path, ".use")).unwrap(), b".");
        assert_eq!(std::fs::read(rcc::beside(&path, ".lck")).unwrap(), b"");
        assert!(world.hololib().join(format!("used/{A}.ea7ce2c")).exists());
        restore(&world, "golden-one", &[]);
        assert_eq!(std::fs::read(rcc::beside(&path, ".use")).unwrap(), b"..");
        let mode = std::fs::metadata(rcc::beside(&path, ".meta")).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o666 & !umask());
    }

    /// One space becomes environment a, then b, then a again, as rcc converts it.
    fn a_space_changes_its_environment() {
        let world = fixture::world("two-catalogs");
        let space = "ea7ce2c_5a1fac3_85268366";
        for (golden_space, blueprint) in [("golden-conv-1-a", A), ("golden-conv-2-b", B), ("golden-conv-3-a-again", A)] {
            let (path, done) = restore(&world, space, &["--blueprint", blueprint]);
            assert_same(&golden("two-catalogs", golden_space), &read_tree(&path));
            assert_eq!(done["blueprint"], blueprint);
        }
    }

    /// A damaged tree becomes what rcc makes of it: an edit of the same size and a changed time stay, and so does the mode
    /// of a directory.
    fn a_damaged_tree_is_healed_as_by_rcc() {
        let library = Library::sample();
        let worlds = [World::with(&library), World::with(&library)];
        let paths = worlds.each_ref().map(|world| restore(world, "s", &[]).0);
        for path in &paths {
            let at = |name: &str| path.join(name);
            std::fs::remove_file(at("lib/module.py")).unwrap();
            std::fs::write(at("readme.txt"), "longer than it was before\n").unwrap();
            std::fs::write(at("many/a"), "A\n").unwrap();
            std::fs::File::options().write(true).open(at("many/a")).unwrap()
                .set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
            std::fs::set_permissions(at("secret"), Permissions::from_mode(0o644)).unwrap();
            std::fs::set_permissions(at("lib/deep"), Permissions::from_mode(0o700)).unwrap();
            std::fs::write(at("bin/tool"), "#!/bin/false\n").unwrap();
            std::fs::write(at("extra.pyc"), "x").unwrap();
            std::fs::create_dir_all(at("lib/extra/deep")).unwrap();
            std::fs::write(at("lib/extra/deep/file"), "x").unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0,
            ).unwrap();
            symlink("/nowhere", at("many/dangling")).unwrap();
            std::fs::remove_file(at("link-to-file")).unwrap();
            symlink("elsewhere", at("link-to-file")).unwrap();
            std::fs::remove_file(at("lib64")).unwrap();
            std::fs::create_dir(at("lib64")).unwrap();
            std::fs::write(at("lib64/file"), "x").unwrap();
            std::fs::remove_file(at("many/c")).unwrap();
            std::fs::create_dir(at("many/c")).unwrap();
        }
        rcc::restore(&worlds[0], &library, &paths[0]);
        let (_, done) = restore(&worlds[1], "s", &[]);
        assert_same(&read_tree(&paths[0]), &read_tree(&paths[1]));
        assert_eq!(std::fs::read(paths[1].join("many/a")).unwrap(), b"A\n");
        assert!(done["report"]["removed"].as_u64().unwrap() >= 5, "{done}");
        assert_nothing_left(&paths[1]);
        // rcc finds nothing to do, and nor does a second restore.
        assert_eq!(rcc::restore(&worlds[1], &library, &paths[1]), 0);
        let (_, again) = restore(&worlds[1], "s", &[]);
        assert_eq!((&again["report"]["copy"]["files"], &again["report"]["removed"]), (&json!(0), &json!(0)), "{again}");
    }

    /// rcc fails on a file in the place of a directory, and leaves a file in the place of a link.
    fn what_rcc_cannot_heal_is_healed() {
        let library = Library::sample();
        let world = World::with(&library);
        let (path, _) = restore(&world, "s", &[]);
        std::fs::remove_dir_all(path.join("lib/deep")).unwrap();
        std::fs::write(path.join("lib/deep"), "x").unwrap();
        std::fs::remove_file(path.join("link-to-file")).unwrap();
        std::fs::copy(path.join("readme.txt"), path.join("link-to-file")).unwrap();
        symlink("/etc", path.join("hollow-link")).unwrap();
        std::fs::remove_dir_all(path.join("hollow")).unwrap();
        std::fs::rename(path.join("hollow-link"), path.join("hollow")).unwrap();
        restore(&world, "s", &[]);
        assert_same(&expected(&world, &library, &path), &read_tree(&path));
        assert!(Path::new("/etc/passwd").exists());
    }

    /// Whenever it is killed, no file has its name without its content, and the next restore completes the tree.
    fn killed_at_any_instant() {
        let mut library = Library::sample().file("lib/large.bin", &pattern(3_000_000));
        for n in 0..150 {
            library = library.file(&format!("pkg{}/mod{n}.py", n % 7), format!("{n}\n").repeat(400).as_bytes());
        }
        let other = library.clone().file("lib/module.py", b"VALUE = 43\n").file("pkg1/new.py", b"new\n").named("other");
        let world = World::with(&library);
        world.add(&other);
        let blueprints = [library.hash(), other.hash()];
        let mut random = Random::new(7);
        let home = world.home();
        let (path, done) = restore(&world, "s", &["--blueprint", &blueprints[0]]);
        let longest = done["restored_ms"].as_u64().unwrap().max(5) * 1500;
        let name = path.file_name().unwrap();
        let both = [&library, &other].map(|library| {
            let plain = world.path().join(library.hash()).join(name);
            library.restore(&plain);
            read_tree(&plain)
        });
        for round in 0..12 {
            // Every second time into nothing.
            if round % 2 == 0 {
                std::fs::remove_dir_all(&path).unwrap();
            }
            let wanted = usize::from(round % 3 == 0);
            let mut child = world.holofs().args(args(&home, "s", &["--blueprint", &blueprints[wanted]]))
                .stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_micros(random.below(longest)));
            child.kill().unwrap();
            child.wait().unwrap();
            if path.exists() {
                for (name, line) in &read_tree(&path) {
                    // Temporary names are not names of the environment.
                    let known: Vec<&Line> = both.iter().filter_map(|tree| tree.get(name)).collect();
                    assert!(known.is_empty() || known.contains(&line), "{name}: {line:?} and not {known:?}");
                }
            }
            restore(&world, "s", &["--blueprint", &blueprints[wanted]]);
            assert_same(&both[wanted], &read_tree(&path));
            assert_nothing_left(&path);
        }
    }

    /// After an interrupted change of the environment, size and mode do not decide.
    fn half_converted_tree_is_made_anew() {
        let library = Library::new().file("same-size.txt", b"one\n");
        let other = Library::new().file("same-size.txt", b"two\n").named("other");
        let world = World::with(&library);
        world.add(&other);
        let (path, _) = restore(&world, "s", &["--blueprint", &library.hash()]);
        // As it is when the restore of the other one was killed.
        std::fs::write(path.join("same-size.txt"), "two\n").unwrap();
        std::fs::write(rcc::beside(&path, ".restoring"), "").unwrap();
        let (_, done) = restore(&world, "s", &["--blueprint", &library.hash()]);
        assert_eq!(std::fs::read(path.join("same-size.txt")).unwrap(), b"one\n");
        assert_eq!(done["report"]["resumed"], true);
        assert_nothing_left(&path);
    }

    /// A mount and a restore exclude each other, and each says what to do.
    fn a_mounted_space_is_refused() {
        let world = World::sample();
        let mounted = world.mount("s");
        let done = refused(&world, "s", &[]);
        assert_eq!(done.code, 12, "{done:?}");
        assert!(done.stderr.contains("holofs unmount s"), "{done:?}");
        std::fs::write(mounted.at("mine"), "x").unwrap();
        mounted.unmount();
        let done = world.run(args(&world.home(), "s", &[]));
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stderr.contains("changes of earlier mounts"), "{done:?}");
        let done = world.run(["mount", world.home().to_str().unwrap(), "s"]);
        assert_eq!(done.code, 7, "{done:?}");
    }

    fn hard_links_are_read_only_and_of_what_may_be_shared() {
        let library = Library::sample().file("lib/native.so", &pattern(200_000));
        let world = World::with(&library);
        std::fs::write(world.home().join("settings.yaml"), "holotree:\n  hardlink-excludes:\n    - '*.so'\n    - many/*\n").unwrap();
        let linked = ["--strategy", "hardlink"];
        let (one, done) = restore(&world, "one", &linked);
        let (two, _) = restore(&world, "two", &linked);
        let stat = |path: &Path, name: &str| std::fs::metadata(path.join(name)).unwrap();
        for name in ["readme.txt", "lib/data.bin", "lib/module.py", "secret"] {
            assert_eq!(stat(&one, name).ino(), stat(&two, name).ino(), "{name}");
            assert_eq!(stat(&one, name).mode() & 0o222, 0, "{name}");
            assert_eq!((stat(&one, name).nlink(), stat(&one, name).mtime()), (3, MOTHER_TIME), "{name}");
        }
        // Relocated, excluded by name, excluded by path, empty.
        for name in ["bin/tool", "etc/prefix.conf", "lib/native.so", "many/a", "empty"] {
            assert_eq!(stat(&one, name).nlink(), 1, "{name}");
            assert_ne!(stat(&one, name).ino(), stat(&two, name).ino(), "{name}");
        }
        for blob in files_below(&world.hololib().join("library")) {
            assert_eq!(stat(&world.hololib().join("library"), blob.to_str().unwrap()).nlink(), 1, "{}", blob.display());
        }
        assert!(done["report"]["hardlink"]["files"].as_u64().unwrap() >= 5, "{done}");
        // Nothing to do the second time; other bytes only when the copy itself was changed.
        let (_, again) = restore(&world, "one", &linked);
        assert_eq!(again["report"]["hardlink"]["files"], 0, "{again}");
        // The content is rcc's; only the write permission differs.
        let mut want = expected(&world, &library, &one);
        for (name, line) in &mut want {
            if let Line::File { mode, .. } = line && stat(&one, name).nlink() > 1 {
                *mode &= 0o7555;
            }
        }
        assert_same(&want, &read_tree(&one));
        // rcc breaks the links.
        rcc::restore(&world, &library, &one);
        assert_eq!(stat(&one, "readme.txt").nlink(), 1);
        assert_eq!(stat(&two, "readme.txt").nlink(), 2);
        assert_same(&expected(&world, &library, &one), &read_tree(&one));
    }

    fn bad_blobs_are_named_and_leave_no_tree() {
        let library = Library::sample();
        for (missing, word) in [(true, "missing"), (false, "corrupt")] {
            let world = World::with(&library);
            let blob = library.blob(&world.hololib(), "lib/data.bin");
            std::fs::remove_file(&blob).unwrap();
            if !missing {
                std::fs::write(&blob, "something else").unwrap();
            }
            let done = refused(&world, "s", &[]);
            assert_eq!(done.code, 11, "{done:?}");
            assert!(done.stderr.contains("lib/data.bin") && done.stderr.contains(word), "{done:?}");
            let left: Vec<_> = std::fs::read_dir(world.base()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".lck")), "{left:?}");
        }
    }

    fn bad_input() {
        let world = World::sample();
        let home = world.home().to_str().unwrap().to_owned();
        for (more, code, words) in [
            (&["--strategy", "fast"][..], 2, "possible values: smart, reflink, hardlink, copy"),
            (&["--blueprint", "ffff"], 6, "no catalog"),
            (&["--strategy", "reflink"], 9, "no reflink (FICLONE: "),
        ] {
            if code == 9 && World::new().path().starts_with("/nowhere") {
                continue;
            }
            let done = refused(&world, "s", more);
            assert_eq!(done.code, code, "{done:?}");
            assert!(done.stderr.contains(words), "{done:?}");
        }
        let done = world.run(["restore", "/nowhere", "s"]);
        assert_eq!(done.code, 3, "{done:?}");
        let file = world.path().join("file");
        std::fs::write(&file, "").unwrap();
        let done = world.run(["restore", &home, file.join("x").to_str().unwrap()]);
        assert_eq!(done.code, 7, "{done:?}");
        std::fs::create_dir_all(world.base()).unwrap();
        let (path, _) = restore(&world, "s", &[]);
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        let done = refused(&world, "s", &[]);
        assert_eq!(done.code, 7, "{done:?}");
    }
}

/// A filesystem with reflinks shares the extents of large files, or of all, from the second tree on. The first restore waits
/// for no disk: it unpacks all into the tree, and nothing into the cache.
#[test]
fn reflinks_share_extents() {
    if !root_or_skip() {
        return;
    }
    for kind in ["xfs", "btrfs"] {
        let mut library = Library::sample().file("lib/big.so", &pattern(4 << 20));
        for n in 0..10 {
            library = library.file(&format!("lib/part{n}"), format!("{n}\n").repeat(4000).as_bytes());
        }
        let image = Image::new(kind, 400);
        let world = World::at(image.path());
        world.add(&library);
        let restored = |space, strategy| {
            let (path, done) = restore(&world, space, &["--strategy", strategy]);
            assert_same(&expected(&world, &library, &path), &read_tree(&path));
            assert_eq!(done["reflink"], true, "{done}");
            // The kernel does this some seconds later.
            sh(Command::new("sync").arg("-f").arg(&path));
            let [reflink, cached] =
                ["reflink", "cached"].map(|row| done["report"][row]["files"].as_u64().unwrap());
            (path, done, reflink, cached)
        };
        let blobs = world.state().join("cache/blobs");
        let (first, done, reflink, cached) = restored("first", "reflink");
        assert_eq!((reflink, cached), (0, 0), "{done}");
        assert_eq!(files_below(&blobs), Vec::<PathBuf>::new());
        let (second, done, reflink, cached) = restored("second", "smart");
        assert!(reflink > 0 && reflink <= cached, "{done}");
        for tree in [&first, &second] {
            let map = sh(Command::new("filefrag").arg("-v").arg(tree.join("lib/big.so")));
            assert!(map.contains("shared"), "{map}");
        }
        let in_cache = cached;
        // A program has changed a file, and nothing shows it but its bytes.
        let changed = second.join("lib/part3");
        let bytes = std::fs::read(&changed).unwrap();
        std::fs::write(&changed, vec![b'x'; bytes.len()]).unwrap();
        let then = std::time::UNIX_EPOCH + Duration::from_secs(MOTHER_TIME as u64);
        std::fs::File::open(&changed).unwrap().set_modified(then).unwrap();
        sh(Command::new("sync").arg("-f").arg(&second));
        let (_, done, reflink, cached) = restored("third", "reflink");
        assert!(reflink >= 10, "{done}");
        let (_, done, all, cached_last) = restored("fourth", "reflink");
        assert!((all, cached_last) == (12, 1), "{reflink} {cached} {done}");
        assert_eq!(in_cache + cached + cached_last, 12, "{done}");
        // Files of less than a block have nothing to share.
        assert!(done["report"]["copy"]["bytes"].as_u64().unwrap() < 1000, "{done}");
    }
}

/// A full disk is an error, and what was there stays. With room again, the restore completes.
#[test]
fn full_disk() {
    if !root_or_skip() {
        return;
    }
    let mut library = Library::sample();
    for n in 0..24 {
        let mut bytes = pattern(1 << 20);
        bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
        library = library.file(&format!("data/{n}.bin"), &bytes);
    }
    let image = Image::new("ext4", 160);
    let world = World::at(image.path());
    world.add(&library);
    let filler = image.path().join("filler");
    let free = rustix::fs::statvfs(image.path()).map(|found| found.f_bavail * found.f_frsize).unwrap();
    sh(Command::new("fallocate").arg("-l").arg((free - (10 << 20)).to_string()).arg(&filler));
    let done = refused(&world, "s", &[]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.contains("No space left on device") && done.stderr.contains("free some space"),
        "{done:?}"
    );
    let left: Vec<_> =
        std::fs::read_dir(world.base()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".lck")), "{left:?}");
    std::fs::remove_file(&filler).unwrap();
    let (path, _) = restore(&world, "s", &[]);
    assert_same(&expected(&world, &library, &path), &read_tree(&path));
}

/// Without /dev/fuse, `mount --fallback restore` makes a real tree, and again when one is there; without the flag it says
/// what to do.
#[test]
fn mount_falls_back_to_a_restore() {
    if !root_or_skip() {
        return;
    }
    let library = Library::sample();
    let world = World::with(&library);
    let dev = world.path().join("dev");
    std::fs::create_dir(&dev).unwrap();
    let without_fuse = |args: &[&str]| {
        let script =
            "mount -t tmpfs none \"$1\" && touch \"$1/null\" && mount --bind /dev/null \"$1/null\" &&
            mount --move \"$1\" /dev && shift && exec \"$@\"";
        let mut command = world.command("unshare");
        apart(&mut command, world.path()).args(["sh", "-c", script, "sh"]).arg(&dev);
        finish(command.arg(holofs_binary()).args(args))
    };
    let home = world.home();
    let home = home.to_str().unwrap();
    let done = without_fuse(&["mount", home, "s"]);
    assert_eq!((done.code, done.stdout.as_str()), (8, ""), "{done:?}");
    for part in
        ["/dev/fuse: No such file or directory", "--cap-add SYS_ADMIN", "Kubernetes", "holofs restore"]
    {
        assert!(done.stderr.contains(part), "{part}: {done:?}");
    }
    for _ in 0..2 {
        let done = without_fuse(&["mount", home, "s", "--fallback", "restore"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stderr.contains("restored (no FUSE)"), "{done:?}");
        let path = PathBuf::from(done.stdout.trim_end());
        assert_same(&expected(&world, &library, &path), &read_tree(&path));
    }
    let done = without_fuse(&["run", home, "s", "--fallback", "restore", "--", "cat", "readme.txt"]);
    assert!(done.stderr.contains("restored (no FUSE)"), "{done:?}");
    let done = without_fuse(&[
        "run",
        home,
        "s",
        "--fallback",
        "restore",
        "--",
        "sh",
        "-c",
        "cat $HOLOFS_MOUNT/readme.txt; exit 7",
    ]);
    assert_eq!((done.code, done.stdout.as_str()), (7, "hello, space\n"), "{done:?}");
}

/// `bench` prints a row for each way, and leaves nothing: no space, no home, no mount.
#[test]
fn bench_leaves_nothing() {
    let world = World::sample();
    world.run(["catalogs", world.home().to_str().unwrap()]);
    let done = world.json(["bench", world.home().to_str().unwrap(), "--runs", "2"]);
    let rows: Vec<(&str, usize)> = done["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["how"].as_str().unwrap(), row["runs_ms"].as_array().unwrap().len()))
        .collect();
    for wanted in
        [("mount, with empty caches", 1), ("mount", 2), ("restore by copy", 2), ("restore by hardlink", 2)]
    {
        assert!(rows.contains(&wanted), "{wanted:?}: {done}");
    }
    assert_eq!(std::fs::read_dir(world.base()).unwrap().count(), 0);
    let left: Vec<_> =
        std::fs::read_dir(world.state()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "cache" || name == "spaces"), "{left:?}");
    let done =
        world.run(["bench", world.home().to_str().unwrap(), "--against", "/nowhere/rcc", "--runs", "1"]);
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{done:?}");
    assert!(
        done.stderr.contains("/nowhere/rcc: No such file") && done.stderr.contains("\n  try: "),
        "{done:?}"
    );
    assert_eq!(std::fs::read_dir(world.base()).unwrap().count(), 0);
}
