//! Catalogs that are built to be expensive: the memory and time of a command are proportional to the size of the file.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::common::library::STAGE;
use crate::common::world::{Done, finish};
use crate::common::{Library, World};

/// A world whose only catalog has this text, which `fill` writes piece by piece.
fn catalog(fill: impl FnOnce(&World, &mut dyn Write)) -> (World, PathBuf) {
    let world = World::new();
    for dir in ["catalog", "library", "used", "pids"] {
        std::fs::create_dir_all(world.hololib().join(dir)).unwrap();
    }
    let path = Library::sample().catalog(&world.hololib());
    let mut out = GzEncoder::new(std::fs::File::create(&path).unwrap(), Compression::best());
    fill(&world, &mut out);
    out.finish().unwrap();
    (world, path)
}

/// The members of the catalog before its tree.
fn header(world: &World) -> String {
    format!(
        r#""identity":"{STAGE}","path":"{}/{STAGE}","platform":"linux_{}","blueprint":"{}""#,
        world.base().display(),
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        Library::sample().hash(),
    )
}

/// Runs `holofs ARGS` with a limit on the address space. Threads and programs use some of it as well.
#[track_caller]
fn within(world: &World, mebibytes: u64, args: &[&str]) -> Done {
    let holofs = world.holofs();
    let mut command: Command = world.command("prlimit");
    command.arg(format!("--as={}", mebibytes << 20)).arg("--").arg(holofs.get_program()).args(args);
    let done = finish(&mut command);
    assert!(!done.stderr.contains("memory allocation") && done.code < 128, "{args:?}: {done:?}");
    done
}

/// Asserts that every command that reads catalogs refuses this one within the memory limit, with one line that names
/// it.
#[track_caller]
fn assert_refused_within(world: &World, mebibytes: u64, words: &[&str]) {
    let home = world.home();
    let home = home.to_str().unwrap();
    let blueprint = Library::sample().hash();
    for args in
        [&["mount", home, "s"][..], &["catalogs", home], &["check", home], &["warm", home, &blueprint]]
    {
        let done = within(world, mebibytes, args);
        let output = format!("{}{}", done.stdout, done.stderr);
        assert!(output.contains(&blueprint), "the catalog is not named: {args:?}: {done:?}");
        for word in words {
            assert!(output.contains(word), "{word}: {args:?}: {done:?}");
        }
        assert!(done.code != 0 || args.contains(&"catalogs"), "{args:?}: {done:?}");
    }
    for args in [&["list"][..], &["path", "s"], &["status", "s"]] {
        within(world, mebibytes, args);
    }
    assert!(world.mounts().is_empty());
}

/// A catalog with one file, whose relocation at offset 0 is listed this many million times.
fn catalog_with_relocations(millions: usize) -> (World, PathBuf) {
    catalog(|world, out| {
        let digest = "0".repeat(64);
        write!(
            out,
            r#"{{{},"tree":{{"files":{{"f":{{"size":99,"mode":420,"digest":"{digest}","rewrite":["#,
            header(world)
        )
        .unwrap();
        let zeros = b"0,".repeat(1 << 20);
        for _ in 0..millions {
            out.write_all(&zeros).unwrap();
        }
        write!(out, r#"0]}}}}}}}}"#).unwrap();
    })
}

#[test]
fn repeated_relocations_take_no_memory() {
    let (world, path) = catalog_with_relocations(8);
    assert!(path.metadata().unwrap().len() < 200_000);
    let home = world.home();
    let done = within(&world, 300, &["catalogs", home.to_str().unwrap(), "--json"]);
    assert!(done.code == 0 && done.stdout.contains(r#""relocations": 1"#), "{done:?}");
}

#[test]
fn sixty_million_relocations_in_a_small_file_are_refused() {
    let (world, path) = catalog_with_relocations(60);
    assert!(path.metadata().unwrap().len() < 200_000);
    assert_refused_within(&world, 300, &["bytes of text"]);
}

#[test]
fn entries_are_bounded_by_the_size_of_the_file() {
    // 3,000 directories with 1,000 directories each.
    let (world, path) = catalog(|world, out| {
        let names: Vec<String> = (0..1000).map(|n| format!(r#""{n:03}":{{}}"#)).collect();
        let thousand = names.join(",");
        write!(out, r#"{{{},"tree":{{"subdirs":{{"#, header(world)).unwrap();
        for n in 0..3000 {
            let comma = if n == 0 { "" } else { "," };
            write!(out, r#"{comma}"d{n}":{{"subdirs":{{{thousand}}}}}"#).unwrap();
        }
        write!(out, "}}}}}}").unwrap();
    });
    assert!(path.metadata().unwrap().len() < 1_000_000);
    assert_refused_within(&world, 300, &["entries"]);
}

#[test]
fn text_before_the_header_is_bounded() {
    let (world, path) = catalog(|world, out| {
        write!(out, "{{").unwrap();
        let blank = [b' '; 1 << 20];
        for _ in 0..400 {
            out.write_all(&blank).unwrap();
        }
        write!(out, r#"{},"tree":{{}}}}"#, header(world)).unwrap();
    });
    assert!(path.metadata().unwrap().len() < 1_000_000);
    assert_refused_within(&world, 300, &["bytes of text"]);
}

/// Puts something in the place of a catalog file.
type Make = fn(&std::path::Path);

/// Anything but a regular file is skipped or refused with one line. No command waits for it or follows it.
#[test]
fn only_regular_files_are_catalogs() {
    let makers: [(&str, Make); 4] = [
        ("a FIFO", |path| {
            let mode = rustix::fs::Mode::from_bits_truncate(0o666);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }),
        ("a link to /dev/zero", |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap()),
        ("a link to a file", |path| std::os::unix::fs::symlink("/etc/passwd", path).unwrap()),
        ("a directory", |path| std::fs::create_dir(path).unwrap()),
    ];
    for (what, make) in makers {
        let world = World::sample();
        let bad = Library::sample().named("bad");
        let path = bad.catalog(&world.hololib());
        make(&path);
        let home = world.home();
        let home = home.to_str().unwrap();
        for args in [&["catalogs", home][..], &["list"], &["unmount", "s"]] {
            let done = within(&world, 300, args);
            assert!(done.code == 0, "{what}: {args:?}: {done:?}");
            assert!(done.stderr.lines().count() <= 2, "{what}: {args:?}: {done:?}");
        }
        let done = within(&world, 300, &["check", home]);
        let named = done.stdout.contains(path.file_name().unwrap().to_str().unwrap());
        assert!(done.code == 11 && named, "{what}: {done:?}");
        for args in [&["path", "s"][..], &["status", "s"], &["mount", home, "s", "--blueprint", &bad.hash()]]
        {
            let done = within(&world, 300, args);
            assert!(done.code == 6 && !done.stderr.contains("panicked"), "{what}: {args:?}: {done:?}");
        }
        drop(world.mount("s"));
    }
}
