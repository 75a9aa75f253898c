//! Reading by read, pread, mmap, exec, and with common commands.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;

use crate::common::library::{STAGE, pattern};
use crate::common::{Library, World, assert_errno, sh};

/// Maps a file for reading.
#[allow(unsafe_code)]
fn map(path: &Path) -> memmap2::Mmap {
    let file = File::open(path).unwrap();
    // SAFETY: tests that map a file know who changes it, and only read bytes.
    unsafe { memmap2::Mmap::map(&file).unwrap() }
}

for_both_users! {
    fn any_part_of_a_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        let want = pattern(300_000);
        let file = File::open(mounted.at("lib/data.bin")).unwrap();
        for (at, len) in [(0, 10), (4090, 20), (131_000, 5000), (299_990, 10), (1, 299_999)] {
            let mut got = vec![0; len];
            file.read_exact_at(&mut got, at as u64).unwrap();
            assert_eq!(got, want[at..at + len], "{len} bytes at {at}");
        }
        assert_eq!(file.read_at(&mut [0; 10], 300_000).unwrap(), 0);
        assert_eq!(file.read_at(&mut [0; 10], 10_000_000).unwrap(), 0);
    }

    fn mapped_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_eq!(&map(&mounted.at("lib/data.bin"))[..], &pattern(300_000)[..]);
        let conf = map(&mounted.at("etc/prefix.conf"));
        assert_eq!(std::str::from_utf8(&conf).unwrap(), format!("prefix=/x/{}/lib\n", mounted.identity()));
    }

    /// A map shows later writes, because a file has one page cache.
    fn mapped_file_sees_a_later_write() {
        let world = World::sample();
        let mounted = world.mount("s");
        let file = mounted.at("lib/data.bin");
        let view = map(&file);
        assert_eq!(view[5], pattern(6)[5]);
        let writer = File::options().write(true).open(&file).unwrap();
        writer.write_all_at(b"new bytes", 5).unwrap();
        assert_eq!(&view[5..14], b"new bytes");
        assert_eq!(&map(&file)[5..14], b"new bytes");
        assert_eq!(view[200_000], pattern(200_001)[200_000]);
    }

    fn open_reader_sees_a_later_write() {
        let world = World::sample();
        let mounted = world.mount("s");
        let reader = File::open(mounted.at("readme.txt")).unwrap();
        std::fs::write(mounted.at("readme.txt"), "rewritten").unwrap();
        let mut got = [0; 9];
        reader.read_exact_at(&mut got, 0).unwrap();
        assert_eq!(&got, b"rewritten");
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"rewritten");
        assert_eq!(std::fs::metadata(mounted.at("readme.txt")).unwrap().ino(), reader.metadata().unwrap().ino());
    }

    fn script_runs() {
        let world = World::sample();
        let mounted = world.mount("s");
        let output = sh(Command::new(mounted.at("bin/tool")).arg("works"));
        assert_eq!(output, format!("tool {} works\n", mounted.at("bin/tool").display()));
    }

    fn program_runs() {
        let bytes = std::fs::read("/bin/true").unwrap();
        let world = World::with(&Library::new().file_mode("bin/yes", 0o755, &bytes).file("bin/no", &bytes));
        let mounted = world.mount("s");
        sh(&mut Command::new(mounted.at("bin/yes")));
        let refused = Command::new(mounted.at("bin/no")).status();
        assert_errno(refused, Errno::ACCESS);
    }

    fn relocated_file_names_its_own_space() {
        let world = World::sample();
        let (one, two) = (world.mount("one"), world.mount("two"));
        for mounted in [&one, &two] {
            let text = std::fs::read_to_string(mounted.at("etc/prefix.conf")).unwrap();
            assert_eq!(text, format!("prefix=/x/{}/lib\n", mounted.identity()));
            assert!(!text.contains(STAGE));
        }
    }

    /// Reading a file changes nothing in the upper.
    fn reading_leaves_the_upper_empty() {
        let world = World::sample();
        let mounted = world.mount("s");
        sh(Command::new("cp").args(["-r"]).arg(mounted.path()).arg(world.path().join("copy")));
        assert_eq!(mounted.upper_entries(), Vec::<std::path::PathBuf>::new());
    }

    fn tar_reads_all_of_it() {
        let world = World::sample();
        let mounted = world.mount("s");
        let output = sh(Command::new("sh").arg("-c").arg(format!(
            "cd '{}' && tar cf - . 2>&1 | tar tf - | sort",
            mounted.path().display()
        )));
        assert_eq!(output.lines().count(), crate::common::manifest::read_tree(mounted.path()).len());
        assert!(output.contains("./lib/deep/er/leaf.txt"), "{output}");
    }

    fn enoent() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_errno(File::open(mounted.at("nothing")), Errno::NOENT);
        assert_errno(File::open(mounted.at("lib/nothing/at/all")), Errno::NOENT);
        assert_errno(File::open(mounted.at("lib64/nothing")), Errno::NOENT);
    }

    fn enotdir() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_errno(File::open(mounted.at("readme.txt/below")), Errno::NOTDIR);
    }

    fn name_too_long() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_errno(File::open(mounted.at("n".repeat(256))), Errno::NAMETOOLONG);
        std::fs::write(mounted.at("n".repeat(255)), "just fits").unwrap();
        assert_eq!(std::fs::read(mounted.at("n".repeat(255))).unwrap(), b"just fits");
    }

    fn statfs_matches_the_backing_disk() {
        let world = World::sample();
        let mounted = world.mount("s");
        let here = rustix::fs::statvfs(mounted.path()).unwrap();
        let below = rustix::fs::statvfs(world.path()).unwrap();
        assert_eq!(here.f_namemax, 255);
        assert_eq!(here.f_blocks * here.f_frsize, below.f_blocks * below.f_frsize);
        assert!(here.f_bavail > 0 && here.f_files > 0);
    }

    fn many_readers_at_once() {
        let world = World::sample();
        let mounted = world.mount("s");
        let want = pattern(300_000);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        assert_eq!(std::fs::read(mounted.at("lib/data.bin")).unwrap(), want);
                        let text = std::fs::read_to_string(mounted.at("etc/prefix.conf")).unwrap();
                        assert!(text.contains(mounted.identity()));
                    }
                });
            }
        });
    }
}
