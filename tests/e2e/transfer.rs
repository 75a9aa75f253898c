//! `holofs export` and `holofs import`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::as_user::fixtures;
use crate::common::library::pattern;
use crate::common::rcc::lock;
use crate::common::see::tree;
use crate::common::world::finish;
use crate::common::zip::{ZipEntry, entries, zip};
use crate::common::{Library, World, files_below, sh};

/// An environment with a large blob, so that both ways of exporting are taken.
fn library() -> Library {
    Library::sample().file("lib/large.so", &random(5 << 20))
}

/// Bytes that cannot be compressed.
fn random(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(step).collect()
}

/// Exports all environments of a world, and returns the path of the archive.
#[track_caller]
fn exported(world: &World, name: &str) -> PathBuf {
    let archive = world.path().join(name);
    let done = world.run(["export", "auto", "--all", "-z", archive.to_str().unwrap()]);
    assert_eq!((done.code, done.stdout.trim()), (0, archive.to_str().unwrap()), "{done:?}");
    archive
}

/// The inode and the time of each file below a directory.
fn looks(dir: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let look = |path: &PathBuf| {
        let found = std::fs::metadata(dir.join(path)).unwrap();
        (path.clone(), (found.ino(), found.ctime(), found.ctime_nsec()))
    };
    files_below(dir).iter().map(look).collect()
}

/// Asserts that a library is intact and holds so many catalogs.
#[track_caller]
fn assert_clean(world: &World, library: &Path, catalogs: usize) {
    let report = world.json(["check", library.to_str().unwrap()]);
    assert_eq!(report["catalogs"].as_u64(), Some(catalogs as u64), "{report}");
}

for_both_users! {
    fn an_export_is_imported_and_mounted() {
        let world = World::with(&library());
        let archive = exported(&world, "a.zip");
        let again = exported(&world, "b.zip");
        assert!(std::fs::read(&archive).unwrap() == std::fs::read(again).unwrap(), "not reproducible");
        // Both mounts show the same.
        let direct = world.mount("direct");
        let zipped = world.json(["mount", archive.to_str().unwrap(), "zipped"]);
        // The name of the space stands in some files, and has the same length everywhere.
        let shown = tree(&direct.at(""), &|bytes| bytes.len().to_string());
        let zipped = Path::new(zipped["path"].as_str().unwrap());
        assert_eq!(tree(zipped, &|bytes| bytes.len().to_string()), shown);
        assert!(std::fs::read(zipped.join("lib/large.so")).unwrap() == random(5 << 20));
        assert_eq!(world.run(["unmount", "zipped"]).code, 0);
        direct.unmount();
        // The library comes back whole.
        let blobs = || files_below(&world.hololib().join("library"));
        let before = blobs();
        std::fs::rename(world.hololib(), world.path().join("old")).unwrap();
        let done = world.json(["import", "auto", archive.to_str().unwrap()]);
        assert_eq!(done["catalogs"][0]["outcome"], "new", "{done}");
        assert_eq!((done["catalogs"][0]["is_at_home"].as_bool(), done["blobs_new"].as_u64()), (Some(true), done["blobs_total"].as_u64()));
        assert_clean(&world, &world.hololib(), 1);
        assert_eq!(blobs(), before);
        assert!(Path::new(&format!("{}.info", library().catalog(&world.hololib()).display())).is_file());
        assert_eq!(tree(&world.mount("direct").at(""), &|bytes| bytes.len().to_string()), shown);
        // A second import writes nothing.
        let before = looks(&world.hololib().join("library"));
        let done = world.json(["import", "auto", archive.to_str().unwrap()]);
        assert_eq!((done["catalogs"][0]["outcome"].as_str(), done["blobs_new"].as_u64()), (Some("unchanged"), Some(0)));
        assert_eq!(looks(&world.hololib().join("library")), before);
    }
}

#[test]
fn rccs_exports_are_imported() {
    let world = World::new();
    std::fs::create_dir_all(world.home()).unwrap();
    let at = |name: &str| fixtures().join("hololib-zip").join(name).display().to_string();
    // The second archive lacks what the first one has.
    let done = world.run(["import", "auto", &at("hololib-b-without-a.zip")]);
    assert_eq!((done.code, done.stdout.as_str()), (11, ""), "{done:?}");
    assert!(done.stderr.contains("neither in the archive nor in the library"), "{done:?}");
    assert_eq!(files_below(&world.hololib().join("library")).len(), 0);
    let done = world.run(["import", "auto", &at("hololib-both.zip")]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "4ef4502d7023d413\nadb8c26db4d86a93\n"), "{done:?}");
    assert!(done.stderr.contains("works in /tmp/rcchome/two-catalogs/holotree only"), "{done:?}");
    assert_clean(&world, &world.hololib(), 2);
    // A raw library is another kind.
    let done = world.run(["import", "auto", &at("hololib-raw.zip")]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{done:?}");
    let raw = world.path().join("raw");
    assert_eq!(world.run(["import", raw.to_str().unwrap(), &at("hololib-raw.zip")]).code, 0);
    assert_clean(&world, &raw, 1);
    assert!(raw.join("hololib/catalog/compress.no").is_file());
    // Several archives in one import.
    let both = world.path().join("both");
    let done = world.run(["import", both.to_str().unwrap(), &at("hololib.zip"), &at("hololib-both.zip")]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_clean(&world, &both, 2);
}

#[test]
fn a_bundle_is_imported_stored_or_compressed() {
    let world = World::with(&library());
    let inner = std::fs::read(exported(&world, "a.zip")).unwrap();
    let script = b"#!/usr/bin/env python3\nprint('a robot')\n";
    let bundle = world.path().join("robot.py");
    for entry in
        [ZipEntry::stored("hololib/hololib.zip", &inner), ZipEntry::deflated("hololib/hololib.zip", &inner)]
    {
        let to = world.path().join(format!("to-{}", entry.method));
        std::fs::write(&bundle, zip(script, &[ZipEntry::deflated("robot/robot.yaml", b"tasks:"), entry]))
            .unwrap();
        let done = world.run([Path::new("import"), &to, &bundle]);
        assert_eq!((done.code, done.stdout.trim()), (0, library().hash().as_str()), "{done:?}");
        assert_clean(&world, &to, 1);
        assert!(files_below(&to).iter().all(|path| !path.to_str().unwrap().contains(".part#")));
    }
    // A small member that claims to be huge.
    let mut bomb = ZipEntry::deflated("hololib/hololib.zip", &vec![0; 64 << 20]);
    let to = world.path().join("to-bomb");
    let import = |entry: &ZipEntry, word: &str| {
        std::fs::write(&bundle, zip(script, std::slice::from_ref(entry))).unwrap();
        let done = world.run([Path::new("import"), &to, &bundle]);
        assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{done:?}");
        assert!(done.stderr.contains(word), "{done:?}");
        assert_eq!(files_below(&to).len(), 0);
    };
    import(&bomb, "more than any library");
    bomb.size = bomb.packed_size;
    import(&bomb, "longer than the archive says");
}

#[test]
fn hostile_archives_write_nothing() {
    let world = World::with(&library());
    let good = entries(&std::fs::read(exported(&world, "a.zip")).unwrap());
    let to = world.path().join("to");
    let archive = world.path().join("bad.zip");
    let refused = |bytes: &[u8], code: i32, word: &str| {
        std::fs::write(&archive, bytes).unwrap();
        let done = world.run([Path::new("import"), &to, &archive]);
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{word}: {done:?}");
        assert!(done.stderr.contains(word) && done.stderr.starts_with("holofs: "), "{word}: {done:?}");
        assert_eq!(files_below(&to.join("hololib/catalog")).len(), 0, "{word}");
    };
    let whole = zip(b"", &good);
    refused(&whole[..whole.len() / 2], 3, "it is truncated");
    let with = |entry: ZipEntry| zip(b"", &[good.clone(), vec![entry]].concat());
    for name in ["library/../../evil", "/etc/evil", "catalog/../evil"] {
        refused(&with(ZipEntry::stored(name, b"x")), 3, "leads out");
    }
    refused(&with(good[0].clone()), 3, "two entries");
    let position =
        good.iter().position(|entry| entry.name.starts_with("library/") && entry.size > 4000).unwrap();
    let changed = |edit: &dyn Fn(&mut ZipEntry)| {
        let mut all = good.clone();
        edit(&mut all[position]);
        zip(b"", &all)
    };
    let other = |content: &[u8]| {
        let content = crate::common::library::gzip(content);
        changed(&|entry| *entry = ZipEntry::stored(&entry.name, &content))
    };
    refused(&other(b"other"), 11, "bytes, the catalog says");
    refused(&other(&vec![0; 300 << 20]), 11, "larger than the");
    refused(&changed(&|entry| *entry = ZipEntry::stored(&entry.name, b"plain")), 11, "");
    refused(
        &changed(&|entry| *entry = ZipEntry::stored("library/readme", b"x")),
        11,
        "neither in the archive",
    );
    let broken = good.iter().map(|entry| match entry.name.starts_with("catalog/") {
        true => ZipEntry::stored(&entry.name, b"no catalog"),
        false => entry.clone(),
    });
    refused(&zip(b"", &broken.collect::<Vec<_>>()), 3, "catalog");
    // Nothing was written outside, and what was written is whole.
    assert!(!world.path().join("evil").exists() && !to.join("evil").exists());
    assert!(files_below(&to).iter().all(|path| !path.to_str().unwrap().contains(".part#")));
    std::fs::write(&archive, &whole).unwrap();
    assert_eq!(world.run([Path::new("import"), &to, &archive]).code, 0);
    assert_clean(&world, &to, 1);
}

#[test]
fn existing_blobs_stay_and_broken_ones_are_replaced() {
    let world = World::with(&library());
    let archive = exported(&world, "a.zip");
    let blob = library().blob(&world.hololib(), "lib/data.bin");
    let good = std::fs::read(&blob).unwrap();
    let before = looks(&world.hololib().join("library"));
    std::fs::write(&blob, &good[..100]).unwrap();
    let done = world.json(["import", "auto", archive.to_str().unwrap()]);
    assert_eq!(done["blobs_new"].as_u64(), Some(1), "{done}");
    assert!(std::fs::read(&blob).unwrap() == good);
    let after = looks(&world.hololib().join("library"));
    let changed: Vec<_> = after.iter().filter(|(path, look)| before[*path] != **look).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    // Another catalog of the same name replaces it.
    let other = Library::new().file("lib/new", &pattern(1000));
    let second = World::with(&other);
    let archive = exported(&second, "b.zip");
    let done = world.json(["import", "auto", archive.to_str().unwrap()]);
    assert_eq!(done["catalogs"][0]["outcome"], "replaced", "{done}");
    assert_clean(&world, &world.hololib(), 1);
}

#[test]
fn an_import_waits_for_rccs_lock_and_names_its_holder() {
    let world = World::with(&library());
    let archive = exported(&world, "a.zip");
    std::fs::create_dir_all(world.base()).unwrap();
    let held = lock(&world.base().join("global.lck"));
    let done = world.run(["import", "auto", archive.to_str().unwrap(), "--lock-timeout", "0.2"]);
    assert_eq!((done.code, done.stdout.as_str()), (12, ""), "{done:?}");
    assert!(done.stderr.contains(&format!("by process {}", std::process::id())), "{done:?}");
    drop(held);
    assert_eq!(world.run(["import", "auto", archive.to_str().unwrap()]).code, 0);
}

#[test]
fn a_killed_import_leaves_a_clean_library() {
    let world =
        World::with(&(0..40).fold(library(), |library, n| {
            library.file(&format!("many/{n}"), format!("content {n}").as_bytes())
        }));
    let archive = exported(&world, "a.zip");
    let to = world.path().join("to");
    let mut killed = 0;
    for n in [1, 2, 3, 5, 8, 13, 21, 34, 55] {
        // A number for each thread. The last thread also renames the catalog.
        let inject = format!("inject=rename,renameat,renameat2:signal=KILL:when={n}");
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qq", "-o", "/dev/null", "-e", &inject])
            .arg(crate::common::as_user::holofs_binary());
        command.arg("import").args([&to, &archive]).env_clear();
        command.env("HOME", "/nonexistent").env("PATH", std::env::var_os("PATH").unwrap());
        let done = finish(&mut command);
        killed += usize::from(done.code != 0);
        let catalogs = files_below(&to.join("hololib/catalog"));
        let whole = catalogs.iter().filter(|path| CATALOG(path)).count();
        let done = world.run([Path::new("check"), &to.join("hololib")]);
        assert_eq!(done.code, 0, "{n}: {done:?}");
        assert!(whole <= 1);
    }
    assert!(killed >= 3, "{killed}");
    assert_eq!(world.run([Path::new("import"), &to, &archive]).code, 0);
    assert_clean(&world, &to, 1);
}

/// Whether this is the name of a catalog.
const CATALOG: fn(&Path) -> bool = |path| {
    let name = path.to_str().unwrap();
    name.contains("v12.") && !name.starts_with('.') && !name.ends_with(".info")
};

#[test]
fn bad_input_of_an_export_leaves_the_archive_as_it_was() {
    let world = World::with(&library());
    let archive = exported(&world, "a.zip");
    let before = std::fs::read(&archive).unwrap();
    let zip = archive.to_str().unwrap();
    let hash = library().hash();
    let refused = |args: &[&str], code: i32, word: &str| {
        let done = world.run(args);
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{args:?}: {done:?}");
        assert!(done.stderr.contains(word), "{args:?}: {done:?}");
        assert!(std::fs::read(&archive).unwrap() == before);
    };
    refused(&["export", "/nowhere", "-z", zip], 3, "no such file");
    refused(&["export", "auto", "ffff", "-z", zip], 6, &hash);
    refused(&["export", "auto", &hash, "-z", "/dev/null"], 2, "a device");
    refused(&["export", "auto", &hash, "-z", "/nowhere/x.zip"], 1, "/nowhere");
    refused(&["export", "auto", &hash, "--all"], 2, "--all");
    refused(&["export", "auto", "-r", "/nowhere/robot.yaml", "-z", zip], 5, "robot.yaml");
    refused(&["import", "auto"], 2, "FILE");
    refused(&["import", "auto", "/nowhere/x.zip"], 3, "no such file");
    refused(&["import", "/etc", zip], 3, "/etc");
    let blob = library().blob(&world.hololib(), "lib/large.so");
    std::fs::write(&blob, crate::common::library::gzip(b"other")).unwrap();
    refused(&["export", "auto", &hash[..6], "-z", zip], 11, &hash);
    std::fs::remove_file(&blob).unwrap();
    refused(&["export", "auto", &hash, "-z", zip], 11, "is missing");
    assert_eq!(std::fs::read_dir(world.path()).unwrap().count(), 2, "a temporary file is left");
    // Without a catalog the command lists them, as rcc does.
    let done = world.run(["export", "auto"]);
    assert!(done.code == 0 && done.stdout.starts_with(&hash), "{done:?}");
}

/// With the real rcc, if `HOLOFS_TEST_RCC` names one.
#[test]
fn the_real_rcc_reads_an_export_and_exports_the_same() {
    let Some(rcc) = std::env::var_os("HOLOFS_TEST_RCC") else { return };
    let world = World::with(&library());
    let archive = exported(&world, "a.zip");
    let home = world.path().join("rcc");
    let rcc =
        |args: &[&str]| sh(world.command(&rcc).args(["holotree"]).args(args).env("ROBOCORP_HOME", &home));
    rcc(&["import", archive.to_str().unwrap()]);
    let hololib = home.join("hololib");
    assert_clean(&world, &hololib, 1);
    let back = world.path().join("back.zip");
    let name = library().catalog(Path::new(""));
    rcc(&["export", name.file_name().unwrap().to_str().unwrap(), "-z", back.to_str().unwrap()]);
    let to = world.path().join("to");
    let done = world.run([Path::new("import"), &to, &back]);
    assert_eq!(done.code, 0, "{done:?}");
    let again = world.path().join("again.zip");
    assert_eq!(world.run([Path::new("export"), &to, Path::new("--all"), Path::new("-z"), &again]).code, 0);
    assert!(std::fs::read(archive).unwrap() == std::fs::read(again).unwrap());
}
