//! What is special about `--io passthrough`. The `by_passthrough` runs of all other tests cover the rest.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;

use crate::common::as_user::{as_user_args, kernel_has_passthrough, root_or_skip};
use crate::common::library::{STAGE, pattern};
use crate::common::{Library, World, assert_errno, python, sh, wait_until};

fn read_all(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Bytes that begin like an ELF program.
fn program(size: usize) -> Vec<u8> {
    [b"\x7fELF", &pattern(size)[4..]].concat()
}

fn library() -> Library {
    Library::new()
        .file("lib/large.bin", &pattern(400_000))
        .file("lib/small.txt", b"as it was recorded\n")
        .file("lib/libx.so", &program(400_000))
        .file_mode("bin/x", 0o755, &program(5_000))
        .file("lib/libmoved.so", &[&program(300_000), STAGE.as_bytes()].concat())
}

const PROGRAMS: [&str; 3] = ["lib/libx.so", "bin/x", "lib/libmoved.so"];

fn read_write(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// The kernel cannot replace the library's file by the private copy while a process has it open. So nobody can change
/// it meanwhile, just as nobody can write to a running program. A map does not count, and neither does a process that
/// closes the file soon.
#[test]
fn open_program_is_not_written_to() {
    if !root_or_skip() || !kernel_has_passthrough() {
        return;
    }
    let world = World::with(&library());
    let mounted = world.mount_with("s", &["--io", "passthrough"]);
    let neighbour = world.mount_with("neighbour", &["--io", "passthrough"]);
    for name in PROGRAMS {
        let path = mounted.at(name);
        let before = std::fs::read(&path).unwrap();
        let mut old = File::open(&path).unwrap();
        assert_errno(read_write(&path), Errno::TXTBSY);
        assert_errno(File::options().append(true).open(&path), Errno::TXTBSY);
        assert_errno(File::create(&path), Errno::TXTBSY);
        python(
            "import os, sys
try: os.truncate(sys.argv[1], 5)
except OSError as e: assert e.errno == 26, e
else: assert 0",
            &path,
        );
        // Everything else works: attributes, names, links, reading.
        path.metadata().unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::rename(&path, mounted.at("moved")).unwrap();
        std::fs::hard_link(mounted.at("moved"), &path).unwrap();
        std::fs::remove_file(mounted.at("moved")).unwrap();
        assert_eq!(read_all(&mut old), before, "{name}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "{name}");
        let closing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(old);
        });
        let writer = read_write(&path).unwrap();
        closing.join().unwrap();
        writer.write_all_at(b"WRITTEN", 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[..7], *b"WRITTEN", "{name}");
        assert_ne!(std::fs::read(neighbour.at(name)).unwrap()[..7], *b"WRITTEN", "{name}");
    }
    let mounted = mounted.remount();
    assert_eq!(std::fs::read(mounted.at("bin/x")).unwrap()[..7], *b"WRITTEN");
}

/// Also holds for a program that was patched for the space: its patched file must not become the writer's copy.
#[test]
fn map_of_a_program_keeps_its_bytes() {
    if !root_or_skip() || !kernel_has_passthrough() {
        return;
    }
    let world = World::with(&library());
    let mounted = world.mount_with("s", &["--io", "passthrough"]);
    for name in PROGRAMS {
        let path = mounted.at(name);
        // Python's mmap keeps the file open.
        python(
            "import ctypes, mmap, os, sys
r = os.open(sys.argv[1], os.O_RDONLY)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
old = (ctypes.c_char * 4096).from_address(libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, r, 0))
os.close(r)
w = os.open(sys.argv[1], os.O_RDWR)
new = mmap.mmap(w, 0)
os.pwrite(w, b'WRITTEN', 0)
new[8:12] = b'MMAP'
assert old[:4] == b'\x7fELF' and old[8:12] != b'MMAP', old[:12]
assert new[:12] == b'WRITTEN' + new[7:8] + b'MMAP', new[:12]
assert open(sys.argv[1], 'rb').read(7) == b'WRITTEN'
",
            &path,
        );
    }
}

/// root's daemon could keep the bits; the user who writes may not.
#[test]
fn setid_bits_are_cleared_by_another_users_write_to_an_open_file() {
    if !root_or_skip() || !kernel_has_passthrough() {
        return;
    }
    let world = World::with(&library());
    let mounted = world.mount_with("s", &["--io", "passthrough", "--allow-other"]);
    let path = mounted.at("setuid");
    let created = File::options().read(true).write(true).create_new(true).mode(0o4777).open(&path).unwrap();
    for dir in mounted.path().ancestors().take_while(|dir| dir.starts_with(world.path())) {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    assert_eq!(path.metadata().unwrap().mode() & 0o7000, 0o4000);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4777)).unwrap();
    let mut write = Command::new("setpriv");
    write.args(as_user_args()).args(["--", "sh", "-c", "echo more >> \"$0\""]).arg(&path);
    sh(&mut write);
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o777);
    assert_eq!(created.metadata().unwrap().mode() & 0o7777, 0o777);
}

/// The kernel opens a library file through a mount that cannot be written to.
#[test]
fn library_files_are_registered_read_only() {
    if !root_or_skip() || !kernel_has_passthrough() {
        return;
    }
    let world = World::with(&library());
    let mounted = world.mount_with("s", &["--io", "passthrough"]);
    let _open = File::open(mounted.at("lib/libx.so")).unwrap();
    let cache = world.state().join("cache/blobs");
    // Everything except the file with their total size.
    let cached = crate::common::files_below(&cache).into_iter().filter(|path| path.components().count() > 1);
    let cached = cached.map(|path| cache.join(path));
    let before: Vec<_> = cached.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    assert!(!before.is_empty());
    for name in PROGRAMS {
        let program = "import mmap, os, sys
r = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(r, 0, prot=mmap.PROT_READ)
os.close(r)
try: mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)[:4] = b'MMAP'
except OSError as e: assert e.errno == 26, e
";
        python(program, &mounted.at(name));
    }
    for (path, bytes) in before {
        assert!(std::fs::read(&path).unwrap() == bytes, "{} was changed", path.display());
    }
}

/// An open file needs no daemon: what is written to it after the daemon's death is there at the next mount.
#[test]
fn open_file_survives_the_daemon() {
    if !root_or_skip() || !kernel_has_passthrough() {
        return;
    }
    let world = World::with(&library());
    let mounted = world.mount_with("s", &["--io", "passthrough"]);
    let mut log = File::create(mounted.at("log")).unwrap();
    let reader = File::open(mounted.at("lib/libx.so")).unwrap();
    log.write_all(b"before\n").unwrap();
    let dead = mounted.at("lib/small.txt");
    mounted.signal(Signal::KILL);
    wait_until("the daemon to end", || std::fs::metadata(&dead).is_err());
    log.write_all(b"after\n").unwrap();
    let mut bytes = vec![0; 1000];
    reader.read_exact_at(&mut bytes, 300_000).unwrap();
    assert_eq!(bytes, pattern(301_000)[300_000..]);
    drop((log, reader));
    mounted.kill();
    let mounted = world.mount("s");
    assert_eq!(std::fs::read(mounted.at("log")).unwrap(), b"before\nafter\n");
}
