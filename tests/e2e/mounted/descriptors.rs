//! Two descriptors of one file, as two processes have them, show the same file, in whatever order and mode they were
//! opened.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, inotify};
use rustix::io::Errno;

use super::set_mtime;
use crate::common::library::{STAGE, pattern};
use crate::common::{Library, World, python};

fn reader(path: &Path) -> File {
    File::open(path).unwrap()
}

fn read_write(path: impl AsRef<Path>) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A small and a large file, one with relocations of each size, and one that looks like a program.
fn library() -> Library {
    let named = |size: usize| [STAGE.as_bytes(), b" ", &pattern(size)].concat();
    Library::new()
        .file("small", &pattern(5_000))
        .file("large", &pattern(300_000))
        .file("script", b"#!/bin/sh\necho hello\n")
        .file("moved", &named(5_000))
        .file("large-moved", &named(300_000))
}

const FILES: [&str; 5] = ["small", "large", "script", "moved", "large-moved"];

for_both_users! {
    fn reader_sees_later_writes() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        for name in FILES {
            let path = mounted.at(name);
            let mut want = std::fs::read(&path).unwrap();
            let old = reader(&path);
            let writer = read_write(&path);
            writer.write_all_at(b"WRITTEN", 3).unwrap();
            want[3..10].copy_from_slice(b"WRITTEN");
            for (file, which) in [(&old, "old"), (&writer, "writer"), (&reader(&path), "new")] {
                assert_eq!(all(file), want, "{name}, {which}");
            }
            writer.write_all_at(b"more", want.len() as u64).unwrap();
            want.extend(b"more");
            assert_eq!(old.metadata().unwrap().len(), want.len() as u64, "{name}");
            assert_eq!(all(&old), want, "{name}");
            writer.set_len(9).unwrap();
            assert_eq!(all(&old), want[..9], "{name}");
            drop((old, writer));
            assert_eq!(std::fs::read(&path).unwrap(), want[..9], "{name}");
        }
    }

    fn reader_sees_a_truncation() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        for name in FILES {
            let path = mounted.at(name);
            let want = std::fs::read(&path).unwrap();
            let old = reader(&path);
            python("import os, sys; os.truncate(sys.argv[1], 10)", &path);
            assert_eq!(old.metadata().unwrap().len(), 10, "{name}");
            assert_eq!(all(&old), want[..10], "{name}");
            File::create(&path).unwrap();
            assert_eq!(all(&old), b"", "{name}");
        }
    }

    /// A store to a map is visible through every other descriptor, map and later open of the file, and nowhere else.
    fn maps_of_two_descriptors_are_one_file() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        let neighbour = world.mount("neighbour");
        for name in FILES {
            let before = std::fs::read(neighbour.at(name)).unwrap();
            python(
                "import mmap, os, sys
p = sys.argv[1]
r = os.open(p, os.O_RDONLY)
old = mmap.mmap(r, 0, prot=mmap.PROT_READ)
assert old[:4] != b'MMAP'
w = os.open(p, os.O_RDWR)
m = mmap.mmap(w, 0)
m[:4] = b'MMAP'
os.pwrite(w, b'PWRITE', 8)
for fd in r, w, os.open(p, os.O_RDONLY):
    assert os.pread(fd, 14, 0)[:4] == b'MMAP', (fd, os.pread(fd, 14, 0))
    assert os.pread(fd, 6, 8) == b'PWRITE', (fd, os.pread(fd, 14, 0))
    shown = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    assert shown[:4] == b'MMAP' and shown[8:14] == b'PWRITE', (fd, shown[:14])
assert old[:4] == b'MMAP' and old[8:14] == b'PWRITE', old[:14]
",
                &mounted.at(name),
            );
            assert_eq!(std::fs::read(neighbour.at(name)).unwrap(), before, "{name}");
            assert_eq!(std::fs::read(mounted.at(name)).unwrap()[..4], *b"MMAP", "{name}");
        }
        let (mounted, neighbour) = (mounted.remount(), neighbour.remount());
        for name in FILES {
            assert_eq!(std::fs::read(mounted.at(name)).unwrap()[..4], *b"MMAP", "{name}");
            assert_ne!(std::fs::read(neighbour.at(name)).unwrap()[..4], *b"MMAP", "{name}");
        }
    }

    fn locks_of_a_reader_and_a_writer_exclude_each_other() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        for name in FILES {
            let (old, writer) = (reader(&mounted.at(name)), read_write(mounted.at(name)));
            flock(&old, FlockOperation::NonBlockingLockExclusive).unwrap();
            assert_eq!(flock(&writer, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK), "{name}");
            flock(&old, FlockOperation::Unlock).unwrap();
            flock(&writer, FlockOperation::NonBlockingLockExclusive).unwrap();
        }
    }

    fn mode_set_through_one_descriptor_holds_for_all() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        for name in FILES {
            let path = mounted.at(name);
            let (old, writer) = (reader(&path), read_write(&path));
            for (by, mode) in [(&old, 0o600), (&writer, 0o604), (&old, 0o640)] {
                by.set_permissions(PermissionsExt::from_mode(mode)).unwrap();
                for shown in [old.metadata().unwrap(), writer.metadata().unwrap(), path.metadata().unwrap()] {
                    assert_eq!(shown.mode() & 0o7777, mode, "{name}");
                }
            }
            // The kernel checks the mode that it knows.
            old.set_permissions(PermissionsExt::from_mode(0o000)).unwrap();
            let opened = File::open(&path);
            assert_eq!(opened.is_ok(), crate::common::as_user::is_root(), "{name}: {opened:?}");
        }
    }

    fn open_file_can_be_reopened_for_writing() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        for name in FILES {
            let old = reader(&mounted.at(name));
            use std::os::fd::AsRawFd;
            let writer = read_write(format!("/proc/self/fd/{}", old.as_raw_fd()));
            writer.write_all_at(b"!", 0).unwrap();
            assert_eq!(all(&old)[0], b'!', "{name}");
        }
    }

    fn inotify_reports_writes_by_a_later_descriptor() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        for name in FILES {
            let path = mounted.at(name);
            let _old = reader(&path);
            let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
            inotify::add_watch(&watch, &path, inotify::WatchFlags::MODIFY).unwrap();
            read_write(&path).write_all_at(b"x", 0).unwrap();
            let mut buffer = [0; 64];
            assert!(rustix::io::read(&watch, &mut buffer).is_ok_and(|n| n > 0), "{name}");
        }
    }

    /// Also if the descriptor is closed while the map exists, and if the attributes were read before.
    fn store_to_a_map_updates_the_times() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), pattern(5_000)).unwrap();
        for name in FILES.into_iter().chain(["new"]) {
            let path = mounted.at(name);
            read_write(&path).write_all_at(b"x", 0).unwrap();
            set_mtime(&path, 1_700_000_000);
            assert_eq!(path.metadata().unwrap().mtime(), 1_700_000_000);
            python(
                "import mmap, os, sys, time
p = sys.argv[1]
w = os.open(p, os.O_RDWR)
m = mmap.mmap(w, 0)
before = os.fstat(w)
m[4:8] = b'MMAP'
m.flush()
assert os.fstat(w).st_mtime_ns > before.st_mtime_ns, 'open'
os.close(w)
os.utime(p, (1700000000, 1700000000))
assert os.stat(p).st_mtime == 1700000000
m.flush()
m[8:12] = b'MAPS'
m.flush()
assert os.stat(p).st_mtime > 1700000000, 'closed'
",
                &path,
            );
            assert!(path.metadata().unwrap().mtime() > 1_700_000_000, "{name}");
        }
    }

    /// root may keep the bits. For some modes, the upper stores the bits in an attribute.
    fn setid_bits_of_a_created_file_are_cleared_by_a_write() {
        let world = World::sample();
        let mounted = world.mount("s");
        for mode in [0o4755, 0o2775, 0o4555, 0o6111] {
            let path = mounted.at(format!("{mode:o}"));
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::open(&path, flags, Mode::from_raw_mode(mode)).unwrap());
            assert_eq!(file.metadata().unwrap().mode() & 0o7000, mode & 0o7000);
            file.write_all_at(b"text", 0).unwrap();
            let kept = if crate::common::as_user::is_root() { mode & 0o7000 } else { 0 };
            assert_eq!(file.metadata().unwrap().mode() & 0o7000, kept, "{mode:o}");
            assert_eq!(path.metadata().unwrap().mode() & 0o7000, kept, "{mode:o}");
        }
    }
}
