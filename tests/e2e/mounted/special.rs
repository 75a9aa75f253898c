//! FIFOs, sockets and devices.

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use crate::common::as_user::is_root;
use crate::common::{World, assert_errno, sh};

for_both_users! {
    fn fifo() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/pipe");
        sh(Command::new("mkfifo").arg(&path));
        assert!(std::fs::metadata(&path).unwrap().file_type().is_fifo());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| std::fs::read(&path).unwrap());
            std::fs::write(&path, b"through the pipe").unwrap();
            assert_eq!(reader.join().unwrap(), b"through the pipe");
        });
        let mounted = mounted.remount();
        assert!(std::fs::metadata(mounted.at("lib/pipe")).unwrap().file_type().is_fifo());
        std::fs::rename(mounted.at("lib/pipe"), mounted.at("pipe")).unwrap();
        std::fs::remove_file(mounted.at("pipe")).unwrap();
    }

    fn socket() {
        let world = World::sample();
        let mounted = world.mount("s");
        let listener = UnixListener::bind(mounted.at("sock")).unwrap();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                text
            });
            let mut client = UnixStream::connect(mounted.at("sock")).unwrap();
            client.write_all(b"hello").unwrap();
            drop(client);
            assert_eq!(server.join().unwrap(), "hello");
        });
        assert!(std::fs::metadata(mounted.at("sock")).unwrap().file_type().is_socket());
        std::fs::remove_file(mounted.at("sock")).unwrap();
    }

    /// As on overlayfs, root can make them, and nobody can open them, because the mount is `nodev`.
    fn device_nodes() {
        let world = World::sample();
        let mounted = world.mount("s");
        let make = |name: &str, kind, device| {
            let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
            rustix::fs::mknodat(CWD, mounted.at(name), kind, mode, device)
        };
        let device = rustix::fs::makedev(259, 70_000);
        // A whiteout on disk is a device 0/0. A user who could make one through the mount could hide a file.
        assert_eq!(make("whiteout", FileType::CharacterDevice, 0), Err(Errno::PERM));
        if !is_root() {
            assert_eq!(make("char", FileType::CharacterDevice, device), Err(Errno::PERM));
            assert_eq!(make("block", FileType::BlockDevice, device), Err(Errno::PERM));
            assert!(!mounted.at("char").exists());
            return;
        }
        make("char", FileType::CharacterDevice, rustix::fs::makedev(1, 3)).unwrap();
        make("block", FileType::BlockDevice, device).unwrap();
        std::fs::hard_link(mounted.at("block"), mounted.at("lib/linked")).unwrap();
        std::fs::set_permissions(mounted.at("block"), std::fs::Permissions::from_mode(0o4604)).unwrap();
        std::os::unix::fs::chown(mounted.at("block"), Some(7), Some(8)).unwrap();
        std::fs::rename(mounted.at("block"), mounted.at("lib/block")).unwrap();
        let mounted = mounted.remount();
        let (char, block) = (mounted.at("char"), mounted.at("lib/block"));
        let stat = std::fs::metadata(&block).unwrap();
        assert!(stat.file_type().is_block_device());
        assert_eq!((stat.rdev(), stat.nlink(), stat.mode() & 0o777, stat.uid()), (device, 2, 0o604, 7));
        assert_eq!(std::fs::metadata(mounted.at("lib/linked")).unwrap().ino(), stat.ino());
        let listed = std::fs::read_dir(mounted.path()).unwrap().map(Result::unwrap);
        let listed = listed.filter(|entry| entry.file_type().unwrap().is_char_device());
        assert_eq!(listed.map(|entry| entry.file_name()).collect::<Vec<_>>(), ["char"]);
        assert_eq!(std::fs::metadata(&char).unwrap().rdev(), rustix::fs::makedev(1, 3));
        assert_errno(std::fs::read(&char), Errno::ACCESS);
        std::fs::remove_file(&block).unwrap();
        std::fs::remove_file(&char).unwrap();
        assert_eq!(std::fs::metadata(mounted.at("lib/linked")).unwrap().nlink(), 1);
    }

    fn regular_file_by_mknod() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("by-mknod");
        rustix::fs::mknodat(CWD, &path, FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0).unwrap();
        std::fs::write(&path, b"works").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"works");
    }

    /// Locks between processes, as SQLite and pip use them.
    fn locks() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("readme.txt");
        let held = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let other = Command::new("flock").arg("-n").arg(&path).arg("true").status().unwrap();
        assert!(!other.success());
        rustix::fs::flock(&held, rustix::fs::FlockOperation::Unlock).unwrap();
        sh(Command::new("flock").arg("-n").arg(&path).arg("true"));
    }
}
