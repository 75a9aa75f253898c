//! `holofs warm --pycache` and `holofs mount --pycache`: Python finds bytecode in every space, and nobody else does.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::common::library::STAGE;
use crate::common::rcc;
use crate::common::world::{Done, finish};
use crate::common::{Library, Mounted, World, files_below};

pub const MODULE: &str = "def place():\n    return place.__code__.co_filename\n\nVALUE = 41\n";

/// An environment whose Python is that of the machine.
pub fn library() -> Library {
    Library::new()
        .named("python")
        .file_mode("bin/python3", 0o755, b"#!/bin/sh\nexec python3 \"$@\"\n")
        .file("lib/package/__init__.py", b"")
        .file("lib/package/module.py", MODULE.as_bytes())
        .file("lib/package/module_two.py", b"VALUE = 2\n")
        .file("lib/package/old.py", b"print 'Python 2'\n")
        .file("lib/package/data.txt", b"data\n")
        .file("lib/relocated.py", format!("PREFIX = '/x/{STAGE}'\n").as_bytes())
        .file("lib/a.b.py", b"VALUE = 1\n")
}

pub fn warm(world: &World) -> serde_json::Value {
    world.json(["warm", world.home().to_str().unwrap(), &library().hash(), "--pycache"])
}

/// Imports a module, and returns its value, its place, and whether Python used bytecode.
#[track_caller]
pub fn import(world: &World, mounted: &Mounted<'_>) -> (String, String, bool) {
    let program = "import sys; sys.path.insert(0, sys.argv[1]); \
                   from package import module; print(module.VALUE, module.place())";
    let mut command = world.command(mounted.at("bin/python3"));
    let done = finish(command.args(["-v", "-B", "-c", program]).arg(mounted.at("lib")));
    assert_eq!(done.code, 0, "{done:?}");
    let is_compiled = done.stderr.lines().any(|line| {
        line.starts_with("# code object from") && line.contains("__pycache__/module.")
            || line.contains("package/__pycache__/module.") && line.contains(" matches ")
    });
    let (value, place) = done.stdout.trim().split_once(' ').unwrap();
    (value.to_owned(), place.to_owned(), is_compiled)
}

#[track_caller]
pub fn expect(world: &World, mounted: &Mounted<'_>, value: &str, is_compiled: bool) {
    let place = mounted.at("lib/package/module.py");
    let wanted = (value.to_owned(), place.to_str().unwrap().to_owned(), is_compiled);
    assert_eq!(import(world, mounted), wanted);
}

/// The inode number of every entry that is listed.
fn inodes(root: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    fn walk(dir: &Path, root: &Path, out: &mut BTreeMap<PathBuf, (u64, u64)>) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let found = entry.path().symlink_metadata().unwrap();
            out.insert(entry.path().strip_prefix(root).unwrap().to_owned(), (found.ino(), found.nlink()));
            if found.is_dir() {
                walk(&entry.path(), root, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

/// The bytecode of a module in a space.
pub fn compiled(world: &World, mounted: &Mounted<'_>) -> PathBuf {
    let program = "import sys, importlib.util; print(importlib.util.cache_from_source(sys.argv[1]))";
    let mut command = world.command(mounted.at("bin/python3"));
    let done = finish(command.args(["-c", program]).arg(mounted.at("lib/package/module.py")));
    done.stdout.trim().into()
}

/// The file with all bytecode of the environment.
fn cached(world: &World) -> PathBuf {
    let dir = world.state().join("cache/pycache");
    dir.join(&files_below(&dir)[0])
}

fn mount_again(world: &World, space: &str) -> Done {
    world.run(["mount", world.home().to_str().unwrap(), space, "--pycache"])
}

for_both_users! {
    fn every_space_shows_the_bytecode_and_lists_nothing() {
        let world = World::with(&library());
        let output = warm(&world);
        let bytecode = &output["bytecode"];
        assert_eq!((bytecode["files"].as_u64(), bytecode["failed"].as_u64()), (Some(3), Some(1)), "{output}");
        assert_eq!(bytecode["python"].as_str().unwrap().get(..8), Some("cpython-"), "{output}");
        // Nothing is left of the space in which it was compiled.
        assert_eq!(world.mounts(), Vec::<PathBuf>::new());
        assert_eq!(std::fs::read_dir(world.state().join("spaces")).unwrap().count(), 0);
        let left = files_below(&world.base());
        assert!(left.iter().all(|file| file == Path::new("global.lck")), "{left:?}");

        let plain = world.mount("plain");
        expect(&world, &plain, "41", false);
        let wanted = inodes(plain.path());
        plain.unmount();
        let one = world.mount_with("plain", &["--pycache"]);
        let two = world.mount_with("two", &["--pycache"]);
        assert_eq!(one.output["bytecode"], true);
        for mounted in [&one, &two] {
            expect(&world, mounted, "41", true);
            assert_eq!(inodes(mounted.path()), wanted);
            let done = world.run(["diff", &mounted.space]);
            assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
            assert_eq!(mounted.upper_entries(), Vec::<PathBuf>::new());
        }
        // rcc finds nothing that it would remove.
        assert_eq!(rcc::restore(&world, &library(), two.path()), 0);
        expect(&world, &two, "41", true);
        // Python is told to look into the space.
        let prefix = |space: &str| {
            let done = world.run(["variables", "-s", space, "--no-mount", "--format", "dotenv"]);
            assert_eq!(done.code, 0, "{done:?}");
            (done.stdout.contains("PYTHONDONTWRITEBYTECODE=x"), done.stdout.contains("PYTHONPYCACHEPREFIX"))
        };
        assert_eq!(prefix("two"), (true, false));
        drop(world.mount("three"));
    }

    /// Size and time stay, as after an edit that keeps them, or when rcc converts the space.
    fn changed_source_outdates_its_bytecode() {
        let world = World::with(&library());
        warm(&world);
        let mounted = world.mount_with("s", &["--pycache"]);
        expect(&world, &mounted, "41", true);
        let source = mounted.at("lib/package/module.py");
        let time = std::fs::metadata(&source).unwrap().modified().unwrap();
        std::fs::write(&source, MODULE.replace("41", "42")).unwrap();
        std::fs::File::options().append(true).open(&source).unwrap().set_modified(time).unwrap();
        let (value, ..) = import(&world, &mounted);
        assert_eq!(value, "42");
        // The other spaces keep the library's.
        expect(&world, &world.mount_with("t", &["--pycache"]), "41", true);
    }

    /// A space can change and remove what it is shown, and other spaces do not see that.
    fn bytecode_of_a_space_is_its_own() {
        let world = World::with(&library());
        warm(&world);
        let mounted = world.mount_with("s", &["--pycache"]);
        let file = compiled(&world, &mounted);
        // Python may write its own bytecode.
        let mut command = world.command(mounted.at("bin/python3"));
        let program = "import sys, py_compile; py_compile.compile(sys.argv[1], doraise=True)";
        let done = finish(command.args(["-c", program]).arg(mounted.at("lib/package/module.py")));
        assert_eq!(done.code, 0, "{done:?}");
        let own = std::fs::read(&file).unwrap();
        assert!(mounted.upper("lib/package/__pycache__").exists());
        let other = file.with_file_name("other.txt");
        std::fs::write(&other, "x").unwrap();
        let mounted = mounted.remount();
        assert_eq!(std::fs::read(&file).unwrap(), own, "without --pycache, too");
        assert_eq!(std::fs::read(&other).unwrap(), b"x");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        mounted.unmount();
        let mounted = world.mount_with("s", &["--pycache"]);
        assert_eq!(std::fs::read(&file).unwrap(), own);
        expect(&world, &mounted, "41", true);
        std::fs::remove_file(&file).unwrap();
        expect(&world, &mounted, "41", false);
        // A package is removed as if nothing hidden was in it.
        for entry in std::fs::read_dir(mounted.at("lib/package")).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                std::fs::remove_dir_all(entry.path()).unwrap();
            } else {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        std::fs::remove_dir(mounted.at("lib/package")).unwrap();
        expect(&world, &world.mount_with("t", &["--pycache"]), "41", true);
    }

    fn damaged_bytecode_is_not_used() {
        let world = World::with(&library());
        warm(&world);
        let cached = cached(&world);
        let good = std::fs::read(&cached).unwrap();
        assert_eq!(std::fs::metadata(&cached).unwrap().mode() & 0o7777, 0o600);
        // A content that is not that of its digest: Python gets an error, and compiles the source.
        let at = good.windows(4).position(|found| found == b"VALU").unwrap();
        let mut bad = good.clone();
        (128..good.len() / 2).chain([at]).for_each(|at| bad[at] ^= 0x55);
        std::fs::write(&cached, &bad).unwrap();
        expect(&world, &world.mount_with("s", &["--pycache"]), "41", false);
        // A damaged header, and a file that others may write to: the mount works without bytecode.
        bad = good.clone();
        bad[9] ^= 1;
        std::fs::write(&cached, &bad).unwrap();
        for writable in [false, true] {
            if writable {
                std::fs::write(&cached, &good).unwrap();
                std::fs::set_permissions(&cached, PermissionsExt::from_mode(0o666)).unwrap();
            }
            let mounted = world.mount_with("s", &["--pycache"]);
            assert_eq!(mounted.output["bytecode"], false);
            expect(&world, &mounted, "41", false);
        }
        // Compiling it again replaces it.
        warm(&world);
        expect(&world, &world.mount_with("s", &["--pycache"]), "41", true);
    }
}

#[test]
fn mount_without_bytecode_says_so() {
    let world = World::with(&library());
    let done = mount_again(&world, "s");
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("holofs warm --pycache"), "{done:?}");
    let mounted = Mounted::adopt(&world, "s");
    mounted.unmount();
    let plain = world.mount("s");
    let done = mount_again(&world, "s");
    assert!(done.code == 7 && done.stderr.contains("--pycache"), "{done:?}");
    plain.unmount();
    let mut command = world.holofs();
    let args = ["mount", world.home().to_str().unwrap(), "s"].map(str::to_owned);
    let done = finish(command.args(args).env("HOLOFS_PYCACHE", "perhaps"));
    assert!(done.code == 4 && done.stderr.contains("HOLOFS_PYCACHE"), "{done:?}");
}

#[test]
fn environment_without_python_cannot_be_compiled() {
    let world = World::sample();
    let done = world.run(["warm", world.home().to_str().unwrap(), "s", "--pycache"]);
    assert!(done.code == 5 && done.stderr.contains("no Python"), "{done:?}");
    assert_eq!(world.mounts(), Vec::<PathBuf>::new());
    // A Python that dies at once.
    let world = World::with(&library().file_mode("bin/python3", 0o755, b"#!/bin/sh\nexit 1\n"));
    let done = world.run(["warm", world.home().to_str().unwrap(), "s", "--pycache"]);
    assert!(done.code == 1 && done.stderr.contains("cannot compile"), "{done:?}");
    assert_eq!(world.mounts(), Vec::<PathBuf>::new());
}
