//! What is special about `--io passthrough`; everything else about it is the `by_passthrough` run of every other test.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::common::as_user::{is_root, kernel_has_passthrough};
use crate::common::library::pattern;
use crate::common::{Library, World, sh, wait_until};

fn read_all(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The number of an entry in its directory's listing.
fn listed_number(path: &Path) -> u64 {
    use std::os::unix::fs::DirEntryExt;
    let entries = std::fs::read_dir(path.parent().unwrap()).unwrap().map(Result::unwrap);
    entries.into_iter().find(|entry| Some(entry.file_name().as_ref()) == path.file_name()).unwrap().ino()
}

fn library() -> Library {
    Library::new().file("lib/large.bin", &pattern(400_000)).file("lib/small.txt", b"as it was recorded\n")
}

/// Whoever opened the lower file keeps it; everybody else sees one file that is written to, of the same number.
#[test]
fn a_writer_beside_readers_of_the_lower() {
    if !is_root() || !kernel_has_passthrough() {
        return;
    }
    let world = World::with(&library());
    let mounted = world.mount_with("s", &["--io", "passthrough"]);
    assert_eq!(mounted.said["io"], "passthrough");
    for (name, size) in [("lib/large.bin", 400_000), ("lib/small.txt", 19)] {
        let path = mounted.at(name);
        let number = path.metadata().unwrap().ino();
        let mut old = File::open(&path).unwrap();
        let before = read_all(&mut old);
        for round in 0..3 {
            let mut writer = File::options().read(true).write(true).open(&path).unwrap();
            writer.seek(SeekFrom::End(0)).unwrap();
            writer.write_all(b"appended").unwrap();
            let now = size + (round + 1) * 8;
            // By the open file, by name, and in the listing: one file.
            assert_eq!((writer.metadata().unwrap().ino(), writer.metadata().unwrap().len()), (number, now));
            assert_eq!((path.metadata().unwrap().ino(), path.metadata().unwrap().len()), (number, now));
            assert_eq!(listed_number(&path), number);
            assert_eq!(path.metadata().unwrap().len(), now, "after a listing");
            let mut new = File::open(&path).unwrap();
            assert_eq!(read_all(&mut new).len() as u64, now);
            writer.write_all_at(b"!", 0).unwrap();
            assert_eq!(read_all(&mut new)[0], b'!');
            assert_eq!(read_all(&mut old), before, "round {round}");
        }
        // Reading from both at once, and closing in either order.
        drop(old);
        assert_eq!(read_all(&mut File::open(&path).unwrap())[0], b'!');
        std::fs::rename(&path, mounted.at("moved")).unwrap();
        assert_eq!(mounted.at("moved").metadata().unwrap().ino(), number);
        std::fs::remove_file(mounted.at("moved")).unwrap();
    }
    let mounted = mounted.remount();
    assert!(!mounted.at("lib/large.bin").exists());
}

/// Truncating by name does not wait for readers either.
#[test]
fn a_truncation_beside_readers_of_the_lower() {
    if !is_root() || !kernel_has_passthrough() {
        return;
    }
    let world = World::with(&library());
    let mounted = world.mount_with("s", &["--io", "passthrough"]);
    let path = mounted.at("lib/large.bin");
    let reader = File::open(&path).unwrap();
    // By truncate(2), which opens nothing.
    sh(Command::new("python3").args(["-c", "import os, sys; os.truncate(sys.argv[1], 100)"]).arg(&path));
    assert_eq!(std::fs::read(&path).unwrap(), pattern(100));
    File::create(&path).unwrap();
    assert_eq!(path.metadata().unwrap().len(), 0);
    drop(reader);
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}

/// The kernel needs no daemon for a file that is open: what is written to it after the daemon's death is there.
#[test]
fn an_open_file_outlives_the_daemon() {
    if !is_root() || !kernel_has_passthrough() {
        return;
    }
    let world = World::with(&library());
    let mounted = world.mount_with("s", &["--io", "passthrough"]);
    let mut log = File::create(mounted.at("log")).unwrap();
    let reader = File::open(mounted.at("lib/large.bin")).unwrap();
    log.write_all(b"before\n").unwrap();
    let dead = mounted.at("lib/small.txt");
    mounted.signal(Signal::KILL);
    wait_until("the daemon to be gone", || std::fs::metadata(&dead).is_err());
    log.write_all(b"after\n").unwrap();
    let mut bytes = vec![0; 1000];
    reader.read_exact_at(&mut bytes, 300_000).unwrap();
    assert_eq!(bytes, pattern(301_000)[300_000..]);
    drop((log, reader));
    mounted.kill();
    let mounted = world.mount("s");
    assert_eq!(std::fs::read(mounted.at("log")).unwrap(), b"before\nafter\n");
}
