//! Makes a system call of the daemon fail: the caller gets the error, and nothing has changed.
//!
//! strace makes the n-th call of a kind fail, for each kind that changes the disk and each n that an operation reaches.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use rustix::process::{Pid, Signal};

use crate::common::{Library, Mounted, World};

/// The calls that fail, one kind at a time.
const CALLS: [&str; 14] = [
    "renameat2",
    "unlinkat",
    "fchmod",
    "chmod",
    "fsetxattr",
    "setxattr",
    "fremovexattr",
    "fchownat",
    "utimensat",
    "ftruncate",
    "mknodat",
    "mkdirat",
    "linkat",
    "fstat",
];

/// An operation in a directory of its own: prepared without failures, run with one.
struct Operation {
    name: &'static str,
    prepare: fn(&Path),
    act: fn(&Path) -> std::io::Result<()>,
}

/// Checks that after a failure every name that does not exist in the directory can be used.
fn use_names(dir: &Path) -> std::io::Result<()> {
    for name in ["a", "b", "new", "sub", "sub/x", "sub2"] {
        let path = dir.join(name);
        if path.symlink_metadata().is_err() && path.parent().unwrap().is_dir() {
            std::fs::create_dir(&path)?;
            std::fs::remove_dir(&path)?;
            std::fs::File::create_new(&path)?;
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn chown(path: &Path, uid: u32) -> std::io::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid))
}

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn touch(path: &Path) -> std::io::Result<()> {
    let time = Timespec { tv_sec: 1000, tv_nsec: 5 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn nothing(_: &Path) {}

fn operations() -> Vec<Operation> {
    let changed = |d: &Path| std::fs::write(d.join("a"), b"changed").unwrap();
    vec![
        Operation {
            name: "rename of a new directory to a removed name",
            prepare: |d| {
                std::fs::remove_file(d.join("a")).unwrap();
                std::fs::create_dir(d.join("new")).unwrap();
            },
            act: |d| std::fs::rename(d.join("new"), d.join("a")),
        },
        Operation {
            name: "rename of a new directory over an emptied one",
            prepare: |d| {
                std::fs::remove_file(d.join("sub/x")).unwrap();
                std::fs::create_dir(d.join("new")).unwrap();
            },
            act: |d| std::fs::rename(d.join("new"), d.join("sub")),
        },
        Operation {
            name: "chown of a changed setuid file",
            prepare: |d| {
                std::fs::write(d.join("a"), b"changed").unwrap();
                set_mode(&d.join("a"), 0o4755).unwrap();
            },
            act: |d| chown(&d.join("a"), 7),
        },
        Operation { name: "chown of a library file", prepare: nothing, act: |d| chown(&d.join("a"), 7) },
        Operation { name: "chmod 0", prepare: changed, act: |d| set_mode(&d.join("a"), 0) },
        Operation {
            name: "chmod from 0",
            prepare: |d| {
                std::fs::write(d.join("a"), b"changed").unwrap();
                set_mode(&d.join("a"), 0).unwrap();
            },
            act: |d| set_mode(&d.join("a"), 0o644),
        },
        Operation {
            name: "chmod of a library file",
            prepare: nothing,
            act: |d| set_mode(&d.join("a"), 0o700),
        },
        Operation { name: "chmod of a library directory", prepare: nothing, act: |d| set_mode(d, 0o700) },
        Operation { name: "times of a library file", prepare: nothing, act: |d| touch(&d.join("a")) },
        Operation {
            name: "truncation",
            prepare: changed,
            act: |d| std::fs::File::options().write(true).open(d.join("a"))?.set_len(2),
        },
        Operation {
            name: "removal of a library file",
            prepare: nothing,
            act: |d| std::fs::remove_file(d.join("a")),
        },
        Operation {
            name: "removal of a changed file",
            prepare: changed,
            act: |d| std::fs::remove_file(d.join("a")),
        },
        Operation {
            name: "removal of an emptied directory",
            prepare: |d| std::fs::remove_file(d.join("sub/x")).unwrap(),
            act: |d| std::fs::remove_dir(d.join("sub")),
        },
        Operation { name: "rename", prepare: nothing, act: |d| std::fs::rename(d.join("a"), d.join("b")) },
        Operation {
            name: "rename over a changed file",
            prepare: changed,
            act: |d| std::fs::rename(d.join("c"), d.join("a")),
        },
        Operation {
            name: "rename of a library directory",
            prepare: nothing,
            act: |d| std::fs::rename(d.join("sub"), d.join("sub2")),
        },
        Operation {
            name: "create where a name was removed",
            prepare: |d| std::fs::remove_file(d.join("a")).unwrap(),
            act: |d| std::fs::File::create_new(d.join("a")).map(|_| ()),
        },
        Operation {
            name: "create",
            prepare: nothing,
            act: |d| std::fs::File::create_new(d.join("new")).map(|_| ()),
        },
        Operation { name: "mkdir", prepare: nothing, act: |d| std::fs::create_dir(d.join("new")) },
        Operation {
            name: "symlink",
            prepare: nothing,
            act: |d| std::os::unix::fs::symlink("to", d.join("new")),
        },
        Operation {
            name: "hard link",
            prepare: nothing,
            act: |d| std::fs::hard_link(d.join("a"), d.join("new")),
        },
    ]
}

/// What a directory shows, without the times that a read or a copy-up may change.
fn shown(dir: &Path) -> String {
    let mut out = String::new();
    let mut entries: Vec<_> = walk(dir);
    entries.sort();
    for path in entries {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        let content = if stat.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        let name = path.strip_prefix(dir).unwrap();
        writeln!(
            out,
            "{name:?} {:o} {}:{} {} {} {:?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.nlink(),
            stat.mtime(),
            String::from_utf8_lossy(&content)
        )
        .unwrap();
    }
    out
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut out = vec![dir.to_owned()];
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            out.extend(walk(&entry.path()));
        } else {
            out.push(entry.path());
        }
    }
    out
}

/// Between the change on disk and the daemon's record of it, other processes see the old entry.
#[test]
fn entry_is_found_while_its_change_is_recorded() {
    let world = World::with(&Library::new().file("a", b"library").file("b", b"b").file("d/x", b""));
    let mounted = world.mount("s");
    let log = world.path().join("strace.log");
    set_mode(&mounted.at("a"), 0o600).unwrap();
    set_mode(&mounted.at("b"), 0o600).unwrap();
    set_mode(&mounted.at("d"), 0o700).unwrap();
    let (a, b) =
        (std::fs::File::open(mounted.at("a")).unwrap(), std::fs::File::open(mounted.at("b")).unwrap());
    let d = std::fs::File::open(mounted.at("d")).unwrap();
    // The daemon's rename returns a second late.
    let slow = Injector::with(&mounted, &log, "renameat2", "renameat2:delay_exit=1000000");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ask = scope.spawn(|| {
            let mut asked = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for file in [&a, &b, &d] {
                    let found = rustix::fs::fgetxattr(file, "user.none", &mut [0_u8; 8][..]);
                    assert_eq!(found, Err(rustix::io::Errno::NODATA));
                    asked += 1;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            asked
        });
        std::fs::write(mounted.at("a"), b"changed").unwrap();
        std::fs::rename(mounted.at("b"), mounted.at("c")).unwrap();
        std::fs::rename(mounted.at("d"), mounted.at("e")).unwrap();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(ask.join().unwrap() > 100);
    });
    slow.end();
}

/// Freeing a large unlinked file takes the disk long. Nothing may wait for that except the last close itself.
#[test]
fn last_close_of_a_large_unlinked_file_blocks_nobody() {
    let library = (0..200).fold(Library::new(), |library, n| library.file(&format!("d/{n}"), b""));
    let world = World::with(&library);
    let mounted = world.mount("s");
    let path = mounted.at("large");
    let file = std::fs::File::create(&path).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 300 << 20).unwrap();
    let log = world.path().join("strace.log");
    // From now on, every close of the daemon takes three seconds.
    let slow = Injector::with(&mounted, &log, "close", "close:delay_enter=3000000");
    std::fs::remove_file(&path).unwrap();
    drop(file);
    let started = std::time::Instant::now();
    let mut longest = std::time::Duration::ZERO;
    // New names, so the kernel has to ask the daemon. This goes on for four seconds, during which the file is closed.
    for n in 0..200 {
        let asked = std::time::Instant::now();
        std::fs::metadata(mounted.at(format!("d/{n}"))).unwrap();
        longest = longest.max(asked.elapsed());
        std::thread::sleep(std::time::Duration::from_millis(20));
        if started.elapsed() > std::time::Duration::from_secs(8) {
            break;
        }
    }
    slow.end();
    let output = std::fs::read_to_string(&log).unwrap();
    assert!(output.contains("close("), "no close was delayed: {output}");
    assert!(longest < std::time::Duration::from_millis(2500), "a lookup waited for a close: {longest:?}");
}

/// strace, attached to the daemon until it is dropped.
struct Injector {
    strace: Child,
    log: std::path::PathBuf,
    /// Kept open, because strace writes a line there for each new thread.
    _stderr: BufReader<std::process::ChildStderr>,
}

impl Injector {
    fn new(mounted: &Mounted<'_>, log: &Path, call: &str, nth: usize) -> Self {
        Self::with(mounted, log, call, &format!("{call}:error=ENOSPC:when={nth}"))
    }

    fn with(mounted: &Mounted<'_>, log: &Path, call: &str, what: &str) -> Self {
        let mut strace = Command::new("strace")
            .args(["-f", "-p", &mounted.server().to_string(), "-e", &format!("trace={call}"), "-o"])
            .arg(log)
            .args(["-e", &format!("inject={what}")])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        let mut line = String::new();
        let mut output = BufReader::new(strace.stderr.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "{line}");
        Self { strace, log: log.to_owned(), _stderr: output }
    }

    /// Whether a call was made to fail.
    fn end(mut self) -> bool {
        let pid = Pid::from_raw(i32::try_from(self.strace.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        self.strace.wait().unwrap();
        std::fs::read_to_string(&self.log).unwrap().contains("INJECTED")
    }
}

/// Adds to `wrong` the directories that changed although an operation failed. `failed` has the operation, the directory
/// and what it showed before.
fn compare(mounted: &Mounted<'_>, when: &str, failed: &[(String, String, String)], wrong: &mut Vec<String>) {
    for (what, dir, before) in failed {
        let after = shown(&mounted.at(dir));
        if after != *before {
            wrong.push(format!("{when}: {what}\n{before}became\n{after}"));
        }
    }
}

#[test]
fn failed_operation_changes_nothing() {
    const TRIALS: usize = 700;
    let library = (0..TRIALS).fold(Library::new(), |library, n| {
        library
            .file(&format!("{n}/a"), b"library a\n")
            .file(&format!("{n}/c"), b"library c\n")
            .file(&format!("{n}/sub/x"), b"library x\n")
    });
    let world = World::with(&library);
    let mounted = world.mount("s");
    let log = world.path().join("strace.log");
    let mut next = 0..TRIALS;
    let mut failed = Vec::new();
    let mut wrong = Vec::new();
    for operation in operations() {
        for call in CALLS {
            for nth in 1..4 {
                let dir = next.next().expect("more directories are needed").to_string();
                let path = mounted.at(&dir);
                (operation.prepare)(&path);
                let before = shown(&path);
                let injector = Injector::new(&mounted, &log, call, nth);
                let done = (operation.act)(&path);
                if !injector.end() {
                    break;
                }
                let what = format!("{}: {call} {nth}: {done:?}", operation.name);
                match done {
                    Err(_) => failed.push((what, dir, before)),
                    Ok(()) if shown(&path) == before => wrong.push(what),
                    Ok(()) => {}
                }
            }
        }
    }
    assert!(failed.len() > 40, "only {} failures were answered", failed.len());
    compare(&mounted, "at once", &failed, &mut wrong);
    for (what, dir, before) in &mut failed {
        let path = mounted.at(&dir);
        if let Err(error) = use_names(&path) {
            wrong.push(format!("{what}: afterwards {error}"));
        }
        *before = shown(&path);
    }
    compare(&mounted.remount(), "after a remount", &failed, &mut wrong);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), failed.len(), wrong.join("\n"));
}
