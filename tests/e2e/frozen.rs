//! A daemon is stopped, or its disk does not answer. Commands end within their time limit and name the process, and
//! what needs no disk goes on.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::as_user::{is_root, passthrough};
use crate::common::image::Image;
use crate::common::library::pattern;
use crate::common::{Library, Mounted, World, assert_errno, sh, wait_until};

/// More than any of these commands may take, and less than the time limit of a test's command.
const LIMIT: Duration = Duration::from_secs(30);

/// A filesystem that blocks all writes until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(at: &Path) -> Self {
        sh(Command::new("sync").arg("-f").arg(at));
        sh(Command::new("fsfreeze").arg("-f").arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let done = Command::new("fsfreeze").arg("-u").arg(&self.0).output();
        if !done.is_ok_and(|out| out.status.success()) {
            eprintln!("{} stays frozen", self.0.display());
        }
    }
}

/// Does something that must be quick, on a thread that can be left behind.
#[track_caller]
fn within<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = channel();
    std::thread::spawn(move || send.send(work()));
    receive.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{what}: no result within {LIMIT:?}"))
}

fn many_files() -> Library {
    (0..200).fold(Library::sample(), |library, n| library.file(&format!("pure/d{n}/f"), b"x"))
}

for_both_users! {
    /// Under SIGSTOP each command ends, and names the process if it needs an answer from it.
    fn commands_do_not_wait_for_a_stopped_daemon() {
        let world = World::sample();
        let mounted = world.mount("s");
        fs::write(mounted.at("made"), b"x").unwrap();
        mounted.stop();
        let started = Instant::now();
        let done = world.run(["mount", "auto", "s", "--lock-timeout", "1"]);
        assert_eq!(done.code, 12, "{done:?}");
        assert!(done.stderr.contains(&format!("process {}", mounted.server())), "{done:?}");
        assert!(done.stderr.contains("stopped"), "{done:?}");
        for args in [&["path", "s"][..], &["list"], &["status", "s"]] {
            let done = world.run(args);
            assert_eq!(done.code, 0, "{done:?}");
        }
        assert!(started.elapsed() < LIMIT);
        mounted.signal(Signal::CONT);
        assert_eq!(fs::read(mounted.at("made")).unwrap(), b"x");
    }

    /// A stopped daemon can be unmounted.
    fn a_stopped_daemon_is_unmounted() {
        let world = World::sample();
        let mounted = world.mount("s");
        mounted.stop();
        let started = Instant::now();
        let done = world.run(["unmount", "s", "--timeout", "1"]);
        assert!(started.elapsed() < LIMIT, "{done:?}");
        assert!(matches!(done.code, 0 | 12), "{done:?}");
        assert!(world.mounts().is_empty());
        mounted.signal(Signal::CONT);
        mounted.has_ended();
    }

    /// The next worker would wait for the disk, too.
    fn worker_that_waits_for_a_frozen_disk_is_not_replaced() {
        if !is_root() {
            return;
        }
        let image = Image::new("ext4", 64);
        let world = World::at(image.path());
        world.add(&Library::sample());
        let mut command = world.holofs();
        command.env("HOLOFS_HANG_TIMEOUT", "1").args(["--json", "mount"]).arg(world.home()).arg("s");
        let mounted = Mounted::by(&world, "s", &mut command);
        fs::write(mounted.at("new"), b"x").unwrap();
        let worker = mounted.server();
        let frozen = Frozen::new(image.path());
        let waiting: Vec<_> = (0..20)
            .map(|n| {
                let path = mounted.at(format!("dir{n}"));
                std::thread::spawn(move || fs::create_dir(path).unwrap())
            })
            .collect();
        std::thread::sleep(Duration::from_millis(2500));
        assert!(waiting.iter().all(|thread| !thread.is_finished()), "the disk is frozen");
        assert_eq!(mounted.worker(), Some(worker));
        drop(frozen);
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(mounted.worker(), Some(worker));
        mounted.unmount();
        fs::remove_dir_all(world.home()).unwrap();
    }

    /// Writers that wait for the disk do not block lookups of library entries.
    fn library_entries_are_found_while_the_disk_is_frozen() {
        if !is_root() {
            return;
        }
        let image = Image::new("ext4", 64);
        let world = World::at(image.path());
        world.add(&many_files());
        let mounted = world.mount("s");
        for n in 0..12 {
            fs::write(mounted.at(format!("many/{n}")), b"x").unwrap();
        }
        let (root, frozen) = (mounted.path().to_owned(), Frozen::new(image.path()));
        let mut waiting = Vec::new();
        for n in 0..12 {
            let path = root.join(format!("many/{n}"));
            waiting.push(std::thread::spawn(move || {
                let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all(b"yy").unwrap();
                file.sync_all().unwrap();
            }));
            let dir = root.join(format!("lib/new-{n}"));
            waiting.push(std::thread::spawn(move || fs::create_dir(dir).unwrap()));
            let moved = root.join("bin/tool");
            waiting.push(std::thread::spawn(move || {
                fs::set_permissions(moved, std::os::unix::fs::PermissionsExt::from_mode(0o700 + n)).unwrap();
            }));
        }
        std::thread::sleep(Duration::from_millis(500));
        assert!(waiting.iter().any(|thread| !thread.is_finished()), "the disk is frozen");
        let pure = root.join("pure");
        let seen = within("a lookup in the library", move || {
            let seen = fs::read_dir(&pure).unwrap().count();
            (0..200).for_each(|n| assert_eq!(fs::metadata(pure.join(format!("d{n}/f"))).unwrap().len(), 1));
            seen
        });
        assert_eq!(seen, 200);
        for args in [&["path", "s"][..], &["list"], &["status", "s"], &["mount", "auto", "s", "--lock-timeout", "1"]] {
            let started = Instant::now();
            let done = world.run(args);
            assert!(started.elapsed() < LIMIT && matches!(done.code, 0 | 12), "{args:?} {done:?}");
        }
        drop(frozen);
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
        for n in 0..12 {
            assert_eq!(fs::read(root.join(format!("many/{n}"))).unwrap(), b"yy");
        }
        mounted.unmount();
        fs::remove_dir_all(world.home()).unwrap();
    }

    /// Reads that wait for a blob to be unpacked hold no thread each, and all get its bytes or its error.
    fn reads_of_a_blob_that_is_unpacked_need_no_thread_each() {
        const PIECE: usize = 256 * 1024;
        const READERS: usize = 24;
        if !is_root() {
            return;
        }
        let image = Image::new("ext4", 128);
        let world = World::at(image.path());
        let library = Library::sample()
            .file("large.bin", &pattern(READERS * PIECE))
            .file("bad.bin", &pattern(READERS * PIECE + 1));
        world.add(&library);
        let mounted = world.mount("s");
        fs::write(library.blob(&world.hololib(), "bad.bin"), b"no blob").unwrap();
        let threads = || {
            let tasks = fs::read_dir(format!("/proc/{}/task", mounted.server())).unwrap();
            let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
            names.collect::<Vec<_>>()
        };
        for (name, is_good) in [("large.bin", true), ("bad.bin", false)] {
            let frozen = Frozen::new(image.path());
            let path = mounted.at(name);
            let read = |piece: usize| {
                let path = path.clone();
                std::thread::spawn(move || {
                    let mut bytes = vec![0; 4096];
                    let at = piece * PIECE;
                    fs::File::open(&path)?.read_exact_at(&mut bytes, at as u64)?;
                    assert!(bytes[..] == pattern(at + 4096)[at..], "piece {piece}");
                    Ok::<_, std::io::Error>(())
                })
            };
            let mut readers = vec![read(0)];
            wait_until("a thread unpacks", || threads().contains(&"unpack\n".to_owned()));
            std::thread::sleep(Duration::from_millis(200));
            let with_one = threads().len();
            readers.extend((1..READERS).map(read));
            std::thread::sleep(Duration::from_millis(500));
            assert!(readers.iter().all(|reader| !reader.is_finished()), "the disk is frozen");
            // In passthrough mode the open waits as well, and each open holds a thread. On a busy machine the requests may
            // have started threads that have no work now: these end after some seconds.
            if !passthrough() {
                wait_until("the readers hold no thread each", || threads().len() <= with_one + 2);
            }
            let other = mounted.at("lib/deep/er/leaf.txt");
            let other = within("a read of another file", move || fs::read(other).unwrap());
            assert_eq!(other, b"leaf\n");
            drop(frozen);
            for reader in readers {
                match (reader.join().unwrap(), is_good) {
                    (Ok(()), true) => {}
                    (done, false) => assert_errno(done, rustix::io::Errno::IO),
                    (Err(error), true) => panic!("{error}"),
                }
            }
        }
        mounted.unmount();
        fs::remove_dir_all(world.home()).unwrap();
    }

    /// A first mount on a disk that does not answer fails and leaves nothing behind.
    fn mount_on_a_frozen_disk_times_out() {
        if !is_root() {
            return;
        }
        let image = Image::new("ext4", 64);
        let world = World::at(image.path());
        world.add(&Library::sample());
        // This compiles the catalog and makes the state directories.
        world.mount("other").unmount();
        let frozen = Frozen::new(image.path());
        let started = Instant::now();
        let done = world.run(["mount", "auto", "s", "--lock-timeout", "1"]);
        assert!(started.elapsed() < LIMIT);
        assert_eq!(done.code, 12, "{done:?}");
        assert!(done.stderr.contains("waits for a disk") && done.stderr.contains("process "), "{done:?}");
        drop(frozen);
        let mounted = world.mount("s");
        assert_eq!(fs::read(mounted.at("lib/deep/er/leaf.txt")).unwrap(), b"leaf\n");
        mounted.unmount();
        fs::remove_dir_all(world.home()).unwrap();
    }
}
