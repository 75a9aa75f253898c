//! Writing to lower files, new files, open and unlinked files, through maps, and by calls that copy ranges.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom as Whence};
use rustix::io::Errno;

use super::{ino, set_mtime};
use crate::common::library::pattern;
use crate::common::{MOTHER_TIME, World, assert_errno};

fn read_write(path: impl AsRef<std::path::Path>) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

for_both_users! {
    fn in_the_middle_of_a_lower_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/data.bin");
        let before = ino(&path);
        read_write(&path).write_all_at(b"HERE", 150_000).unwrap();
        let mut want = pattern(300_000);
        want[150_000..150_004].copy_from_slice(b"HERE");
        assert_eq!(std::fs::read(&path).unwrap(), want);
        assert_eq!(ino(&path), before);
        assert!(std::fs::metadata(&path).unwrap().mtime() > MOTHER_TIME);
        assert_eq!(std::fs::read(mounted.upper("lib/data.bin")).unwrap(), want);
    }

    /// Writes to a file whose copy in the upper has other bytes than the blob, namely the patched ones.
    fn into_a_relocated_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("etc/prefix.conf");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"more=1\n").unwrap();
        let want = format!("prefix=/x/{}/lib\nmore=1\n", mounted.identity());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), want);
    }

    /// The same for a file that was read before, and so has a patched copy already.
    fn into_a_relocated_file_that_was_read() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("etc/prefix.conf");
        let mut text = std::fs::read_to_string(&path).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more=1\n").unwrap();
        text.push_str("more=1\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(std::fs::read_to_string(mounted.remount().at("etc/prefix.conf")).unwrap(), text);
    }

    fn new_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/deep/new.txt");
        std::fs::write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let stat = std::fs::metadata(&path).unwrap();
        assert_eq!((stat.len(), stat.nlink(), stat.uid()), (3, 1, rustix::process::geteuid().as_raw()));
        assert_eq!(stat.mode() & 0o777, 0o666 & !crate::common::library::umask());
    }

    fn o_trunc() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/data.bin");
        drop(OpenOptions::new().write(true).truncate(true).open(&path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
    }

    fn o_append_by_two_writers() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("readme.txt");
        let open = || OpenOptions::new().append(true).open(&path).unwrap();
        let (mut one, mut two) = (open(), open());
        for _ in 0..3 {
            one.write_all(b"one\n").unwrap();
            two.write_all(b"two\n").unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("hello, space\n{}", "one\ntwo\n".repeat(3)));
    }

    fn o_excl() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_errno(File::create_new(mounted.at("readme.txt")), Errno::EXIST);
        assert_errno(File::create_new(mounted.at("link-to-file")), Errno::EXIST);
        drop(File::create_new(mounted.at("fresh")).unwrap());
        assert_errno(File::create_new(mounted.at("fresh")), Errno::EXIST);
        std::fs::remove_file(mounted.at("readme.txt")).unwrap();
        drop(File::create_new(mounted.at("readme.txt")).unwrap());
        assert_eq!(std::fs::metadata(mounted.at("readme.txt")).unwrap().len(), 0);
    }

    fn o_excl_has_one_winner() {
        let world = World::sample();
        let mounted = world.mount("s");
        for round in 0..20 {
            let path = mounted.at(format!("contended-{round}"));
            let made: usize = std::thread::scope(|scope| {
                let tries: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| usize::from(File::create_new(&path).is_ok()))).collect();
                tries.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(made, 1);
        }
    }

    fn truncate_shorter_and_longer() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/data.bin");
        let file = read_write(&path);
        file.set_len(10).unwrap();
        file.set_len(20).unwrap();
        let mut want = pattern(10);
        want.resize(20, 0);
        assert_eq!(std::fs::read(&path).unwrap(), want);
        // By path, without an open file.
        let other = mounted.at("readme.txt");
        rustix::fs::ftruncate(read_write(&other), 5).unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"hello");
    }

    /// rcc detects a change by size, mode and name; tools also use the mtime.
    fn writing_updates_the_mtime() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("readme.txt");
        read_write(&path).write_all_at(b"J", 0).unwrap();
        let first = std::fs::metadata(&path).unwrap();
        assert!(first.mtime() > MOTHER_TIME && first.ctime() > MOTHER_TIME);
        set_mtime(&path, 1_000_000_000);
        assert_eq!(std::fs::metadata(&path).unwrap().mtime(), 1_000_000_000);
        read_write(&path).write_all_at(b"H", 0).unwrap();
        assert!(std::fs::metadata(&path).unwrap().mtime() > MOTHER_TIME);
    }

    fn unlinked_lower_file_stays_readable_and_writable() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/data.bin");
        let file = read_write(&path);
        std::fs::remove_file(&path).unwrap();
        assert_errno(std::fs::metadata(&path), Errno::NOENT);
        let mut got = vec![0; 100];
        file.read_exact_at(&mut got, 1000).unwrap();
        assert_eq!(got, pattern(1100)[1000..]);
        file.write_all_at(b"still here", 1000).unwrap();
        file.read_exact_at(&mut got[..10], 1000).unwrap();
        assert_eq!(&got[..10], b"still here");
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert_eq!(file.metadata().unwrap().len(), 300_000);
    }

    fn unlinked_lower_file_that_was_only_read() {
        let world = World::sample();
        let mounted = world.mount("s");
        for path in ["lib/data.bin", "etc/prefix.conf", "readme.txt"] {
            let want = std::fs::read(mounted.at(path)).unwrap();
            let mut file = File::open(mounted.at(path)).unwrap();
            std::fs::remove_file(mounted.at(path)).unwrap();
            // Another file may take the name meanwhile.
            std::fs::write(mounted.at(path), b"a successor").unwrap();
            let mut got = Vec::new();
            file.read_to_end(&mut got).unwrap();
            assert!(got == want, "{path}");
            assert_eq!(file.metadata().unwrap().nlink(), 0, "{path}");
            assert_eq!(std::fs::read(mounted.at(path)).unwrap(), b"a successor", "{path}");
        }
    }

    fn unlinked_new_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mounted.at("temporary"))
            .unwrap();
        std::fs::remove_file(mounted.at("temporary")).unwrap();
        file.write_all(b"nameless").unwrap();
        file.set_len(4).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut got = String::new();
        file.read_to_string(&mut got).unwrap();
        assert_eq!(got, "name");
        drop(file);
        assert_eq!(mounted.upper_entries(), Vec::<std::path::PathBuf>::new());
    }

    fn shared_map() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/data.bin");
        {
            let file = read_write(&path);
            let mut map = map_shared(&file);
            map[100_000..100_006].copy_from_slice(b"mapped");
            map.flush().unwrap();
        }
        assert_eq!(&std::fs::read(&path).unwrap()[100_000..100_006], b"mapped");
        let mounted = mounted.remount();
        let mut want = pattern(300_000);
        want[100_000..100_006].copy_from_slice(b"mapped");
        assert!(std::fs::read(mounted.at("lib/data.bin")).unwrap() == want);
    }

    /// Without msync: the kernel writes back the pages on its own.
    fn shared_map_without_msync() {
        let world = World::sample();
        let mounted = world.mount("s");
        {
            let file = read_write(mounted.at("etc/prefix.conf"));
            let mut map = map_shared(&file);
            map[0..6].copy_from_slice(b"PREFIX");
        }
        let mounted = mounted.remount();
        let want = format!("PREFIX=/x/{}/lib\n", mounted.identity());
        assert_eq!(std::fs::read_to_string(mounted.at("etc/prefix.conf")).unwrap(), want);
    }

    fn fallocate() {
        let world = World::sample();
        let mounted = world.mount("s");
        let file = read_write(mounted.at("readme.txt"));
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 100_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 13);
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 100).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100);
        let mut want = b"hello, space\n".to_vec();
        want.resize(100, 0);
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), want);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 0, 5).unwrap();
        want[..5].fill(0);
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), want);
    }

    fn seek_data_and_hole() {
        let world = World::sample();
        let mounted = world.mount("s");
        let file = File::create_new(mounted.at("sparse")).unwrap();
        file.set_len(1024 * 1024).unwrap();
        file.write_all_at(&[1; 4096], 512 * 1024).unwrap();
        file.sync_all().unwrap();
        let seek = |whence| rustix::fs::seek(&file, whence);
        assert_eq!(seek(Whence::Data(0)).unwrap(), 512 * 1024);
        assert_eq!(seek(Whence::Hole(512 * 1024)).unwrap(), 516 * 1024);
        assert_eq!(seek(Whence::Data(600 * 1024)), Err(Errno::NXIO));
        // holofs does not know of holes in a lower file.
        let lower = File::open(mounted.at("lib/data.bin")).unwrap();
        assert_eq!(rustix::fs::seek(&lower, Whence::Data(10)).unwrap(), 10);
        assert_eq!(rustix::fs::seek(&lower, Whence::Hole(10)).unwrap(), 300_000);
        assert_eq!(rustix::fs::seek(&lower, Whence::Data(300_000)), Err(Errno::NXIO));
    }

    fn copy_file_range_within_the_mount() {
        let world = World::sample();
        let mounted = world.mount("s");
        let from = File::open(mounted.at("lib/data.bin")).unwrap();
        let to = read_write(mounted.at("readme.txt"));
        let (mut at, mut put) = (1000_u64, 13_u64);
        let copied = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut put), 5000).unwrap();
        assert_eq!((copied, at, put), (5000, 6000, 5013));
        let mut want = b"hello, space\n".to_vec();
        want.extend_from_slice(&pattern(6000)[1000..]);
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), want);
        // There is nothing to copy beyond the end.
        let mut at = 300_000_u64;
        assert_eq!(rustix::fs::copy_file_range(&from, Some(&mut at), &to, None, 5000).unwrap(), 0);
    }

    fn read_only_file_refuses_writers() {
        let world = World::sample();
        let mounted = world.mount("s");
        let open = OpenOptions::new().write(true).open(mounted.at("readonly"));
        if crate::common::as_user::is_root() {
            open.unwrap().write_all_at(b"LOOK", 0).unwrap();
            assert_eq!(std::fs::read(mounted.at("readonly")).unwrap(), b"LOOK, do not touch\n");
        } else {
            assert_errno(open, Errno::ACCESS);
        }
    }

    /// A descriptor that was opened for writing can still write after the mode was changed.
    fn open_writer_survives_chmod() {
        use std::os::unix::fs::PermissionsExt;
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("readme.txt");
        let file = read_write(&path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
        file.write_all_at(b"HELLO", 0).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"HELLO, space\n");
    }

    /// A file may be created without write permission; the process that created it can write to it.
    fn created_read_only() {
        use std::os::unix::fs::OpenOptionsExt;
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("made-read-only");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path).unwrap();
        file.write_all(b"mine").unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o400);
    }

    fn fsync_of_file_and_directory() {
        let world = World::sample();
        let mounted = world.mount("s");
        let file = read_write(mounted.at("readme.txt"));
        file.write_all_at(b"X", 0).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        File::open(mounted.at("lib")).unwrap().sync_all().unwrap();
        File::open(mounted.at("lib/data.bin")).unwrap().sync_all().unwrap();
        File::open(mounted.path()).unwrap().sync_all().unwrap();
    }

    fn many_writers_of_one_lower_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/data.bin");
        std::thread::scope(|scope| {
            for writer in 0..8_u8 {
                let path = &path;
                scope.spawn(move || {
                    let file = read_write(path);
                    for round in 0..20_u64 {
                        file.write_all_at(&[writer; 64], (round * 8 + u64::from(writer)) * 64).unwrap();
                    }
                });
            }
        });
        let got = std::fs::read(&path).unwrap();
        for slot in 0..160_usize {
            let want = [u8::try_from(slot % 8).unwrap(); 64];
            assert_eq!(got[slot * 64..(slot + 1) * 64], want, "slot {slot}");
        }
        assert_eq!(got[160 * 64..], pattern(300_000)[160 * 64..]);
    }

    /// More open files than a shell allows by default.
    fn thousands_of_open_files() {
        let world = World::sample();
        let mounted = world.mount("s");
        let mut open = Vec::new();
        for number in 0..900 {
            let mut file = read_write_new(&mounted.at(format!("many/{number}")));
            file.write_all(b"open").unwrap();
            open.push(file);
        }
        for (number, file) in open.iter().enumerate() {
            std::fs::remove_file(mounted.at(format!("many/{number}"))).unwrap();
            file.write_all_at(b"O", 0).unwrap();
        }
        let mut got = [0; 4];
        open[450].read_exact_at(&mut got, 0).unwrap();
        assert_eq!(&got, b"Open");
    }
}

fn read_write_new(path: &std::path::Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

#[allow(unsafe_code)]
fn map_shared(file: &File) -> memmap2::MmapMut {
    // SAFETY: only this test uses the file, and nothing truncates it while it is mapped.
    unsafe { memmap2::MmapMut::map_mut(file).unwrap() }
}
