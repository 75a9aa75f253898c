//! Libraries in zip archives: exports of rcc, robot bundles, and hostile archives.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::as_user::fixtures;
use crate::common::library::pattern;
use crate::common::zip::{ZipEntry, entries, zip};
use crate::common::{Library, Mounted, World, assert_errno, files_below, fixture};
use crate::parity::assert_golden;

/// A world without a library, and an export of rcc in it. Its catalogs name the base of this world.
fn exported(name: &str) -> (World, PathBuf) {
    let world = World::new();
    std::fs::create_dir_all(world.home()).unwrap();
    let mut entries = entries(&std::fs::read(fixtures().join("hololib-zip").join(name)).unwrap());
    for entry in &mut entries {
        if entry.name.starts_with("catalog/") {
            *entry = ZipEntry::deflated(&entry.name, &fixture::at_base(&entry.content(), &world.base()));
        }
    }
    let path = world.path().join(name);
    std::fs::write(&path, zip(b"", &entries)).unwrap();
    (world, path)
}

/// The files of a hololib as the entries of an archive.
fn exported_library(library: &Library, world: &World) -> Vec<ZipEntry> {
    let hololib = world.path().join("to-export");
    library.write(&hololib, &world.base());
    let mut files = files_below(&hololib);
    files.retain(|path| path.starts_with("library") || path.to_str().unwrap().contains("v12."));
    let entry = |path: &PathBuf| {
        ZipEntry::deflated(path.to_str().unwrap(), &std::fs::read(hololib.join(path)).unwrap())
    };
    let entries = files.iter().map(entry).collect();
    std::fs::remove_dir_all(&hololib).unwrap();
    entries
}

fn large_library() -> Library {
    Library::new().file("lib/large.so", &pattern(700_000)).file("lib/small.py", b"VALUE = 1\n")
}

/// A world and an archive of [`large_library`].
fn large() -> (World, PathBuf) {
    let world = World::new();
    std::fs::create_dir_all(world.home()).unwrap();
    let path = world.path().join("hololib.zip");
    std::fs::write(&path, zip(b"", &exported_library(&large_library(), &world))).unwrap();
    (world, path)
}

#[track_caller]
fn mount<'w>(world: &'w World, archive: &Path, space: &str, args: &[&str]) -> Mounted<'w> {
    Mounted::by(world, space, world.holofs().arg("mount").arg(archive).arg(space).args(args).arg("--json"))
}

for_both_users! {
    fn an_export_is_what_rcc_restores_from_it() {
        let (world, archive) = exported("hololib.zip");
        let mounted = mount(&world, &archive, "golden-zip", &[]);
        assert_golden(&mounted, "hololib-zip", "golden-zip");
        assert_golden(&mount(&world, &archive, "golden-imported", &[]), "hololib-zip", "golden-imported");
        assert_eq!(world.json(["list"]).as_object().unwrap().len(), 2);
    }

    fn an_export_of_a_raw_library() {
        let (world, archive) = exported("hololib-raw.zip");
        assert_golden(&mount(&world, &archive, "golden-one", &[]), "basic-raw", "golden-one");
    }

    fn an_export_of_two_environments() {
        let (world, archive) = exported("hololib-both.zip");
        let one = mount(&world, &archive, "golden-one", &["--blueprint", "adb8c26db4d86a93"]);
        let two = mount(&world, &archive, "golden-two", &["--blueprint", "4ef4"]);
        assert_golden(&one, "two-catalogs", "golden-one");
        assert_golden(&two, "two-catalogs", "golden-two");
    }

    fn only_what_is_read_is_unpacked() {
        let (world, archive) = large();
        let mounted = mount(&world, &archive, "s", &[]);
        assert_eq!(std::fs::metadata(mounted.at("lib/large.so")).unwrap().len(), 700_000);
        assert_eq!(world.raw_copies(), Vec::<PathBuf>::new());
        assert_eq!(std::fs::read(mounted.at("lib/small.py")).unwrap(), b"VALUE = 1\n");
        assert_eq!(std::fs::read(mounted.at("lib/large.so")).unwrap(), pattern(700_000));
        assert_eq!(world.raw_copies().len(), 1);
        // A change survives a remount, which maps the known index.
        std::fs::write(mounted.at("lib/new"), b"mine").unwrap();
        mounted.unmount();
        let mounted = mount(&world, &archive, "s", &[]);
        assert_eq!(std::fs::read(mounted.at("lib/new")).unwrap(), b"mine");
        // There is nothing new beside the archive: no usage mark and no lock.
        let beside: Vec<_> = std::fs::read_dir(world.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(beside.len(), 2, "{beside:?}");
        assert!(!world.hololib().exists() && !world.base().join("global.lck").exists());
    }

    fn a_bundle_is_mounted_in_place() {
        let world = World::new();
        std::fs::create_dir_all(world.home()).unwrap();
        let inner = zip(b"", &exported_library(&large_library(), &world));
        let script = b"#!/usr/bin/env python3\nprint('a robot')\n";
        let archive = world.path().join("robot.py");
        let outer = [ZipEntry::deflated("robot/robot.yaml", b"tasks:"), ZipEntry::stored("hololib/hololib.zip", &inner)];
        std::fs::write(&archive, zip(script, &outer)).unwrap();
        let mounted = mount(&world, &archive, "s", &[]);
        assert_eq!(std::fs::read(mounted.at("lib/large.so")).unwrap(), pattern(700_000));
        mounted.unmount();
        let outer = [ZipEntry::deflated("hololib/hololib.zip", &inner)];
        std::fs::write(&archive, zip(script, &outer)).unwrap();
        let done = world.run(["mount", archive.to_str().unwrap(), "s"]);
        assert_eq!(done.code, 3, "{done:?}");
        assert!(done.stderr.contains("extract"), "{done:?}");
    }

    fn catalogs_check_and_warm_read_archives() {
        let (world, archive) = large();
        let archive = archive.to_str().unwrap();
        let blueprint = large_library().hash();
        let row = &world.json(["catalogs", archive, "--identity"])[&blueprint];
        assert_eq!((row["files"].as_u64(), row["days_since_last_use"].as_i64()), (Some(3), Some(-1)), "{row}");
        assert!(row["identity.yaml"].as_str().unwrap().starts_with(&format!("{archive}/library/")), "{row}");
        let report = world.json(["check", archive]);
        assert_eq!((report["catalogs"].as_u64(), report["blobs"].as_u64()), (Some(1), Some(3)), "{report}");
        let warmed = world.json(["warm", archive, "s"]);
        assert_eq!((warmed["blobs"].as_u64(), warmed["fetched"].as_u64()), (Some(1), Some(1)), "{warmed}");
        assert_eq!(world.raw_copies().len(), 1);
        let done = world.run(["record", archive, "--blueprint", "/dev/null", "--", "true"]);
        assert_ne!(done.code, 0, "{done:?}");
    }

    fn eio_when_the_archive_changes_while_it_is_mounted() {
        let (world, archive) = large();
        let mounted = mount(&world, &archive, "s", &[]);
        // Overwritten in place, as `cp` does.
        let file = std::fs::File::options().write(true).open(&archive).unwrap();
        let len = file.metadata().unwrap().len();
        file.write_all_at(&vec![b'x'; usize::try_from(len).unwrap() - 200], 0).unwrap();
        assert_errno(std::fs::read(mounted.at("lib/small.py")), rustix::io::Errno::IO);
        assert_errno(std::fs::read(mounted.at("lib/large.so")), rustix::io::Errno::IO);
        assert!(std::fs::read_dir(mounted.at("lib")).unwrap().count() == 2);
    }

    fn a_mount_survives_that_its_archive_is_replaced_or_removed() {
        let (world, archive) = large();
        let mounted = mount(&world, &archive, "s", &[]);
        std::fs::write(world.path().join("new"), b"another file").unwrap();
        std::fs::rename(world.path().join("new"), &archive).unwrap();
        assert_eq!(std::fs::read(mounted.at("lib/small.py")).unwrap(), b"VALUE = 1\n");
        std::fs::remove_file(&archive).unwrap();
        assert_eq!(std::fs::read(mounted.at("lib/large.so")).unwrap(), pattern(700_000));
    }

    fn a_bad_blob_is_an_error_of_its_file() {
        let world = World::new();
        std::fs::create_dir_all(world.home()).unwrap();
        let library = large_library();
        let mut entries = exported_library(&library, &world);
        let bad = entries.iter_mut().filter(|entry| entry.name.starts_with("library/")).max_by_key(|e| e.size);
        let bad = bad.unwrap();
        *bad = ZipEntry::deflated(&bad.name, &vec![0; 30 << 20]);
        let archive = world.path().join("hololib.zip");
        std::fs::write(&archive, zip(b"", &entries)).unwrap();
        let started = Instant::now();
        let mounted = mount(&world, &archive, "s", &[]);
        assert_errno(std::fs::read(mounted.at("lib/large.so")), rustix::io::Errno::IO);
        assert_eq!(std::fs::read(mounted.at("lib/small.py")).unwrap(), b"VALUE = 1\n");
        assert!(started.elapsed() < Duration::from_secs(20));
        assert_eq!(world.run(["check", archive.to_str().unwrap()]).code, 11);
    }

    fn hostile_archives_are_refused() {
        let world = World::new();
        std::fs::create_dir_all(world.home()).unwrap();
        let good = exported_library(&large_library(), &world);
        let archive = world.path().join("hololib.zip");
        let refused = |bytes: &[u8], word: &str| {
            std::fs::write(&archive, bytes).unwrap();
            let started = Instant::now();
            for command in [&["mount", archive.to_str().unwrap(), "s"][..], &["check", archive.to_str().unwrap()]] {
                let done = world.run(command);
                assert_eq!(done.code, 3, "{word}: {done:?}");
                assert!(done.stderr.contains(word), "{word}: {done:?}");
            }
            assert!(started.elapsed() < Duration::from_secs(20));
        };
        let whole = zip(b"", &good);
        refused(&whole[..whole.len() / 2], "truncated");
        refused(&whole[..whole.len() - 10], "");
        let with = |entry: ZipEntry| zip(b"", &[good.clone(), vec![entry]].concat());
        refused(&with(good[0].clone()), "two entries");
        refused(&with(ZipEntry::stored("library/../../evil", b"x")), "leads out");
        refused(&with(ZipEntry { offset: Some(3), ..ZipEntry::stored("x", b"x") }), "overlap");
        let absurd = good.iter().map(|entry| ZipEntry { size: u32::MAX - 1, ..entry.clone() });
        refused(&zip(b"", &absurd.collect::<Vec<_>>()), "cannot have the size");
        refused(&zip(b"", &[ZipEntry::stored("evil\u{1b}[2J", b"")]), "neither catalog/");
        let mut counted = whole.clone();
        let at = counted.len() - 12;
        counted[at..at + 2].copy_from_slice(&u16::MAX.to_le_bytes());
        refused(&counted, "declares 65535");
        std::fs::remove_file(&archive).unwrap();
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mknodat(rustix::fs::CWD, &archive, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let done = world.run(["mount", archive.to_str().unwrap(), "s"]);
        assert_eq!(done.code, 3, "{done:?}");
    }
}
