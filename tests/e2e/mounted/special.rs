//! Fifos, sockets and devices.

use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use crate::common::{World, sh};

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

    /// A whiteout on disk is a device; no user may make one through the mount and hide a file so.
    fn device_nodes_are_refused() {
        let world = World::sample();
        let mounted = world.mount("s");
        for (kind, device) in [(FileType::CharacterDevice, 0), (FileType::CharacterDevice, 259), (FileType::BlockDevice, 0)] {
            let made = rustix::fs::mknodat(CWD, mounted.at("device"), kind, Mode::RUSR, device);
            assert!(matches!(made, Err(Errno::PERM | Errno::OPNOTSUPP)), "{kind:?} {device}: {made:?}");
        }
        assert!(!mounted.at("device").exists());
    }

    fn regular_file_by_mknod() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("by-mknod");
        rustix::fs::mknodat(CWD, &path, FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0).unwrap();
        std::fs::write(&path, b"works").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"works");
    }

    /// Locks between processes: as sqlite and pip use them.
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
