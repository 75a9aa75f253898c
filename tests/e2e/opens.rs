//! Open files outlive the process that serves them, in particular those that the kernel reads and writes itself.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use holofs::handoff::Handoff;
use holofs_mount_helper::passthrough::backing_close;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::common::as_user::{is_root, passthrough};
use crate::common::library::pattern;
use crate::common::{Library, Mounted, World, wait_until};

/// Opens, reads, writes, maps and closes files without end. An error or a wrong byte ends it. No fsync: on a slow disk, one
/// can be under work at five deaths, and is refused then.
const PROGRAM: &str = r#"
import mmap, os, sys
root, seed = sys.argv[1], int(sys.argv[2])
data, lib = os.path.join(root, f"data{seed}"), os.path.join(root, "lib/libx.so")
wanted = open(lib, "rb").read()
with open(data, "wb") as f: f.write(bytes(8192))
held = os.open(data, os.O_RDWR)
view = mmap.mmap(held, 8192)
rounds = 0
while True:
    mark = b"%08d" % rounds
    fd = os.open(data, os.O_RDWR)
    assert os.pwrite(fd, mark, 0) == 8
    view[4096:4104] = mark
    assert view[:8] == mark, (view[:8], mark)
    other = os.open(data, os.O_RDONLY)
    assert os.pread(other, 8, 0) == mark and os.pread(other, 8, 4096) == mark
    os.close(fd); os.close(other)
    a = os.open(lib, os.O_RDONLY); b = os.open(lib, os.O_RDONLY)
    assert os.pread(a, len(wanted) + 1, 0) == wanted
    os.close(a)
    assert os.pread(b, 100, 5000) == wanted[5000:5100]
    os.close(b)
    fresh = os.path.join(root, f"fresh{seed}")
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(fd, mark); os.unlink(fresh)
    assert os.pread(fd, 8, 0) == mark and os.fstat(fd).st_size == 8
    os.close(fd)
    rounds += 1
    print(rounds, flush=True)
"#;

/// As the library's file begins, it is one that the kernel reads itself.
fn library() -> Library {
    let program = [b"\x7fELF", &pattern(300_000)[4..]].concat();
    Library::new().file("lib/libx.so", &program).file("lib/data.bin", &pattern(100_000))
}

/// What the mount's processes share.
fn shared_memory(mounted: &Mounted<'_>) -> Handoff {
    let dir = format!("/proc/{}/fd", mounted.pid());
    let found = std::fs::read_dir(dir).unwrap().flatten().find(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().contains("holofs-handoff"))
    });
    let memory = File::options().read(true).write(true).open(found.expect("the memory").path()).unwrap();
    Handoff::of(memory.into()).unwrap()
}

/// A duplicate of the mount's device.
fn device(mounted: &Mounted<'_>) -> OwnedFd {
    let process = pidfd_open(Pid::from_raw(mounted.pid()).unwrap(), PidfdFlags::empty()).unwrap();
    let found = std::fs::read_dir(format!("/proc/{}/fd", mounted.pid()))
        .unwrap()
        .flatten()
        .find(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == "/dev/fuse"));
    let number = found.expect("a device").file_name().to_str().unwrap().parse().unwrap();
    pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap()
}

/// The kernel knows exactly the backing numbers that are noted. Closes them.
fn assert_no_number_is_lost(mounted: &Mounted<'_>) {
    let memory = shared_memory(mounted);
    wait_until("all files to be released", || memory.opens().opens().count() == 0);
    // What takes over may still be giving numbers back.
    std::thread::sleep(Duration::from_millis(200));
    let mut noted: Vec<u32> = memory.opens().backings().map(|backing| backing.id).collect();
    noted.sort_unstable();
    assert!(noted.len() < 20, "{} numbers", noted.len());
    // Only root may ask the kernel.
    if is_root() {
        let device = device(mounted);
        let newest = noted.last().copied().unwrap_or(0) + 2000;
        let known: Vec<u32> =
            (1..newest).filter(|id| backing_close(device.as_fd(), *id) != Err(Errno::NOENT)).collect();
        assert_eq!(known, noted);
    }
}

for_both_users! {
    fn files_stay_open_when_the_worker_dies() {
        const KILLS: u64 = 50;
        let world = World::with(&library());
        let mounted = world.mount("s");
        let mut programs: Vec<_> = (0..2)
            .map(|seed| {
                let mut command = Command::new("python3");
                command.args(["-c", PROGRAM]).arg(mounted.path()).arg(seed.to_string());
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        let mut said: Vec<_> =
            programs.iter_mut().map(|program| BufReader::new(program.stdout.take().unwrap())).collect();
        let mut next = |n: usize| {
            let mut line = String::new();
            said[n].read_line(&mut line).unwrap();
            line.trim().parse::<u64>().ok()
        };
        let held = File::open(mounted.at("lib/libx.so")).unwrap();
        let mut written = File::options().create(true).append(true).open(mounted.at("written")).unwrap();
        for n in 0..2 {
            next(n);
        }
        let mut failed = false;
        for n in 0..KILLS {
            written.write_all(b"line\n").unwrap();
            mounted.kill_worker();
            std::thread::sleep(Duration::from_millis(2 + n % 7));
            // Most of them come to answer; the mount would be given up otherwise.
            if n % 3 != 0 {
                assert!(!mounted.at(format!("absent{n}")).exists());
            }
            let mut four = [0; 4];
            held.read_exact_at(&mut four, 0).unwrap();
            assert_eq!(four, *b"\x7fELF");
            // Both programs go on between two deaths now and then.
            if n % 10 == 9 && (0..2).any(|n| next(n).is_none()) {
                failed = true;
                break;
            }
        }
        for program in &mut programs {
            if !failed {
                program.kill().unwrap();
            }
            let mut errors = String::new();
            program.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            program.wait().unwrap();
            assert_eq!(errors, "");
        }
        assert!(!failed);
        assert_eq!(std::fs::read(mounted.at("written")).unwrap().len() as u64, 5 * KILLS);
        drop((held, written));
        // Every reader has closed it, so it can be written to.
        let writer = File::options().write(true).open(mounted.at("lib/libx.so")).unwrap();
        writer.write_all_at(b"WRITTEN", 0).unwrap();
        drop(writer);
        assert_eq!(std::fs::read(mounted.at("lib/libx.so")).unwrap()[..7], *b"WRITTEN");
        if passthrough() {
            assert_no_number_is_lost(&mounted);
        }
        mounted.unmount();
    }
}
