//! A mount survives what its daemon inherits from a shell (limits, signal dispositions, closed streams), signals, and a
//! lack of threads, descriptors or disk space.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::process::Signal;

use crate::common::as_user::{holofs_binary, is_root};
use crate::common::image::Image;
use crate::common::library::pattern;
use crate::common::world::{Done, finish};
use crate::common::{Library, Mounted, World, assert_errno, sh, wait_until};

/// Larger than the limits of the tests, and small enough to be unpacked without a thread of its own.
const LARGE: usize = 3 << 20;

fn world() -> World {
    let noise: Vec<u8> = (0..LARGE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    World::with(&Library::sample().file("large.bin", &noise).file("other/large.bin", &noise[1..]))
}

/// `holofs`, started by a shell that first changes what holofs inherits.
fn holofs_after(world: &World, shell: &str) -> Command {
    let mut command = world.command("bash");
    command.args(["-c", &format!("{shell} exec \"$0\" \"$@\"")]).arg(holofs_binary());
    command
}

fn mount_after<'w>(world: &'w World, shell: &str) -> Mounted<'w> {
    let mut command = holofs_after(world, shell);
    Mounted::by(world, "s", command.args(["--json", "mount"]).arg(world.home()).arg("s"))
}

/// Checks that the mount answers, for a library file and for a new file.
#[track_caller]
fn assert_works(mounted: &Mounted<'_>) {
    assert_eq!(fs::read(mounted.at("lib/deep/er/leaf.txt")).unwrap(), b"leaf\n");
    fs::write(mounted.at("lib/made"), b"made").unwrap();
    assert_eq!(fs::read(mounted.at("lib/made")).unwrap(), b"made");
    fs::remove_file(mounted.at("lib/made")).unwrap();
}

/// A write that the limit may forbid, without any other effect.
#[track_caller]
fn done_or_too_large(done: std::io::Result<()>) {
    if let Err(error) = done {
        assert_eq!(error.raw_os_error(), Some(Errno::FBIG.raw_os_error()), "{error}");
    }
}

for_both_users! {
    /// `ulimit -f`, soft and hard: at worst the write fails.
    fn file_size_limit_does_not_end_the_mount() {
        for limit in ["ulimit -f 1024;", "ulimit -S -f 1024;"] {
            let world = world();
            let mounted = mount_after(&world, limit);
            let append = OpenOptions::new().append(true).open(mounted.at("large.bin"));
            done_or_too_large(append.and_then(|mut file| file.write_all(b"more")));
            done_or_too_large(fs::write(mounted.at("new"), vec![7; LARGE]));
            if limit.contains("-S") {
                assert_eq!(fs::read(mounted.at("new")).unwrap().len(), LARGE, "the daemon raises a soft limit");
            }
            assert_works(&mounted);
        }
    }

    /// `ulimit -t`: the daemon raises the limit as far as it can.
    fn cpu_time_limit_is_raised() {
        let world = world();
        let mounted = mount_after(&world, "ulimit -S -t 1;");
        let limits = fs::read_to_string(format!("/proc/{}/limits", mounted.pid())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max cpu time")).unwrap();
        assert_ne!(line.split_whitespace().nth(3), Some("1"), "{line}");
        assert_works(&mounted);
    }

    /// `ulimit -v`: the mount works or is refused, and no dead mount is left.
    fn memory_limit_is_respected_or_refused() {
        for limit in ["ulimit -v 300000;", "ulimit -S -v 120000;", "ulimit -d 200000;", "ulimit -v 60000;"] {
            let world = world();
            let done = finish(holofs_after(&world, limit).args(["mount"]).arg(world.home()).arg("s"));
            if done.code == 0 {
                let mounted = Mounted::adopt(&world, "s");
                assert_works(&mounted);
                assert_eq!(fs::read(mounted.at("large.bin")).unwrap().len(), LARGE);
            } else {
                assert_ne!(limit, "ulimit -v 300000;", "enough for a mount: {done:?}");
                assert!(done.stderr.contains("limit"), "{limit} {done:?}");
                assert!(done.stderr.lines().count() <= 2, "{limit} {done:?}");
                assert!(world.mounts().is_empty());
            }
        }
    }

    /// `ulimit -v`: where there is no memory for large files as a whole, a restore unpacks them piece by piece.
    fn restore_within_a_memory_limit() {
        let file = |n: usize| pattern(15_000_000 + n);
        let library = (0..4).fold(Library::sample(), |library, n| library.file(&format!("large/{n}"), &file(n)));
        let world = World::with(&library);
        for limit in ["ulimit -v 250000;", "ulimit -v 200000;", "ulimit -v 160000;"] {
            let mut command = holofs_after(&world, limit);
            let restored = finish(command.args(["restore", "--strategy", "copy"]).arg(world.home()).arg("s"));
            assert_eq!(restored.code, 0, "{limit} {restored:?}");
            let root = std::path::PathBuf::from(restored.stdout.trim());
            (0..4).for_each(|n| assert!(fs::read(root.join(format!("large/{n}"))).unwrap() == file(n), "{n}"));
            fs::remove_dir_all(root.join("large")).unwrap();
        }
    }

    /// `ulimit -u`: without processes there is no mount, and the message says so.
    fn process_limit_is_reported() {
        if is_root() {
            return;
        }
        let world = world();
        let done: Done = finish(holofs_after(&world, "ulimit -u 1;").args(["mount"]).arg(world.home()).arg("s"));
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("ulimit -u"), "{done:?}");
        assert!(world.mounts().is_empty());
    }

    /// With SIGCHLD ignored, holofs can still wait for fusermount3 and for the mount helper.
    fn inherited_signal_dispositions_are_reset() {
        let world = world();
        let mounted =
            mount_after(&world, "exec env --ignore-signal=CHLD --block-signal=TERM,HUP,USR1 -- \"$0\" \"$@\";");
        assert_works(&mounted);
        let mut unmount = holofs_after(&world, "exec env --ignore-signal=CHLD -- \"$0\" \"$@\";");
        let done = finish(unmount.arg("unmount").arg(mounted.path()));
        assert_eq!(done.code, 0, "{done:?}");
        mounted.has_ended();
        let again = mount_after(&world, "exec env --block-signal=TERM -- \"$0\" \"$@\";");
        again.signal(Signal::TERM);
        again.has_ended();
    }

    /// Only TERM, INT and HUP end a mount.
    fn other_signals_do_not_end_the_mount() {
        let world = world();
        let mounted = world.mount("s");
        for name in ["USR1", "USR2", "ALRM", "VTALRM", "PROF", "PIPE", "IO", "PWR", "QUIT", "XFSZ", "XCPU", "34", "64"] {
            for process in [mounted.pid(), mounted.server()] {
                sh(Command::new("kill").args(["-s", name, &process.to_string()]));
            }
            assert_works(&mounted);
        }
        mounted.signal(Signal::INT);
        mounted.has_ended();
    }

    /// If no thread can be started, the work is done without one.
    fn works_without_extra_threads() {
        let world = world();
        let mounted = world.mount("s");
        // By now the permanent threads have started, and idle pool threads have ended.
        std::thread::sleep(std::time::Duration::from_secs(6));
        sh(Command::new("prlimit").args(["--nproc=1:1", "--pid", &mounted.server().to_string()]));
        assert_eq!(fs::read(mounted.at("large.bin")).unwrap().len(), LARGE);
        let mut file = OpenOptions::new().append(true).open(mounted.at("other/large.bin")).unwrap();
        file.write_all(b"x").unwrap();
        file.sync_all().unwrap();
        let to = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(mounted.at("n")).unwrap();
        let from = fs::File::open(mounted.at("lib/data.bin")).unwrap();
        let mut at = (0, 0);
        let copied =
            rustix::fs::copy_file_range(&from, Some(&mut at.0), to.as_fd(), Some(&mut at.1), 1).unwrap();
        assert_eq!(copied, 1);
        assert_works(&mounted);
    }

    /// So few descriptors that the caches alone would use all of them.
    fn works_with_few_descriptors() {
        let world = world();
        let mounted = mount_after(&world, "ulimit -n 256;");
        for n in 0..600 {
            fs::write(mounted.at(format!("many/{n}")), [1]).unwrap();
        }
        for n in 0..600 {
            let mut file = OpenOptions::new().read(true).write(true).open(mounted.at(format!("many/{n}"))).unwrap();
            file.write_all(&[2, 3]).unwrap();
            file.rewind().unwrap();
            let mut all = Vec::new();
            file.read_to_end(&mut all).unwrap();
            assert_eq!(all, [2, 3]);
        }
        assert_works(&mounted);
    }

    /// Removed files that are still open use all descriptors. What fails then works again after they are closed.
    fn recovers_from_exhausted_descriptors() {
        let world = world();
        let mounted = mount_after(&world, "ulimit -n 256;");
        let open: Vec<_> = (0..400)
            .map_while(|n| {
                let path = mounted.at(format!("gone-{n}"));
                let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).ok()?;
                fs::remove_file(&path).ok()?;
                Some(file)
            })
            .collect();
        assert!(open.len() > 100, "{}", open.len());
        drop(open);
        assert_works(&mounted);
    }

    /// A full disk is ENOSPC for the writer, also if the log cannot be written either.
    fn full_disk_does_not_end_the_mount() {
        if !is_root() {
            return;
        }
        let image = Image::new("ext4", 16);
        let world = World::at(image.path());
        world.add(&Library::sample());
        {
            let mounted = world.mount("s");
            fs::write(mounted.at("lib/small"), b"1").unwrap();
            fs::read(mounted.at("many/a")).unwrap();
            let mut ballast = fs::File::create(image.path().join("ballast")).unwrap();
            while ballast.write_all(&[7; 4096]).is_ok() {}
            while ballast.write_all(&[7; 1]).is_ok() {}
            for n in 0..300 {
                let done = fs::write(mounted.at(format!("many/{n}")), [3; 9000]);
                assert_errno(done, Errno::NOSPC);
                fs::read(mounted.at("many/a")).unwrap();
            }
            assert_eq!(fs::read(mounted.at("lib/small")).unwrap(), b"1");
            drop(ballast);
            fs::remove_file(image.path().join("ballast")).unwrap();
            // ext4 gives freed blocks to another file only after the journal has committed.
            rustix::fs::syncfs(fs::File::open(image.path()).unwrap()).unwrap();
            for n in 0..300 {
                if let Err(error) = fs::remove_file(mounted.at(format!("many/{n}"))) {
                    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "a file was not removed");
                }
            }
            assert_works(&mounted);
        }
        fs::remove_dir_all(world.home()).unwrap();
    }

    /// Standard error cannot be written to. Messages are lost, and nothing else happens.
    fn closed_standard_error_does_not_end_the_mount() {
        let library = Library::sample();
        let world = World::with(&library);
        for stderr in ["exec 2>/dev/full;", "exec 2>&-;", "exec 2> >(true); sleep 0.1;"] {
            let mut command = holofs_after(&world, stderr);
            let mut child =
                command.args(["mount", "-f"]).arg(world.home()).arg("s").stdout(Stdio::piped()).spawn().unwrap();
            wait_until("the mount", || !world.mounts().is_empty());
            let mounted = Mounted::adopt(&world, "s");
            let blob = library.blob(&world.hololib(), "readme.txt");
            let good = fs::read(&blob).unwrap();
            fs::write(&blob, b"bad").unwrap();
            for _ in 0..20 {
                assert_errno(fs::read(mounted.at("readme.txt")), Errno::IO);
            }
            fs::write(&blob, good).unwrap();
            assert_works(&mounted);
            mounted.unmount();
            assert!(child.wait().unwrap().success());
        }
    }

    /// Repeated errors do not fill the log, and the log says that lines were left out.
    fn the_log_stays_small() {
        let library = Library::sample();
        let world = World::with(&library);
        let mounted = world.mount("s");
        fs::write(library.blob(&world.hololib(), "readme.txt"), b"bad").unwrap();
        for _ in 0..3000 {
            assert_errno(fs::read(mounted.at("readme.txt")), Errno::IO);
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert_errno(fs::read(mounted.at("readme.txt")), Errno::IO);
        let log = fs::read_to_string(mounted.state().join("log")).unwrap();
        assert!(log.len() < 200_000, "{}", log.len());
        assert!(log.contains("dropped "), "{log}");
        assert!(log.contains("readme.txt"), "{log}");
    }

    /// A large log is renamed once, and a new one is started.
    fn large_log_is_rotated() {
        let world = World::sample();
        let state = {
            let mounted = world.mount("s");
            mounted.state()
        };
        fs::write(state.join("log"), "xxx\n".repeat(500_000)).unwrap();
        let mounted = world.mount("s");
        assert_works(&mounted);
        assert!(fs::metadata(state.join("log")).unwrap().len() < 100_000);
        assert_eq!(fs::metadata(state.join("log.old")).unwrap().len(), 2_000_000);
    }

    /// holofs does not write to a log that is not a regular file.
    fn log_that_is_not_a_file_is_refused() {
        let world = World::sample();
        let state = {
            let mounted = world.mount("s");
            mounted.state()
        };
        let victim = world.path().join("victim");
        fs::write(&victim, b"mine").unwrap();
        fs::remove_file(state.join("log")).unwrap();
        std::os::unix::fs::symlink(&victim, state.join("log")).unwrap();
        let done = world.run(["mount", "auto", "s"]);
        assert_eq!(done.code, 1, "{done:?}");
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert!(world.mounts().is_empty());
    }
}
