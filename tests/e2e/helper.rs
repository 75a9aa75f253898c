//! Attacks the privileged mount helper as a malicious ordinary user.
//!
//! Each `by_mount_helper` run of the other tests shows that the helper works.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use holofs_mount_helper::policy::{FILES_PER_SLOT, SLOTS_PER_USER, fuse_mounts};
use holofs_mount_helper::proto::{MountSource, Reply, Request};
use holofs_mount_helper::vocabulary::{BackingId, Deny, MountFlags, VERSION};
use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;

use crate::common::as_user::mount_helper;
use crate::common::world::reachable_tempdir;
use crate::common::{World, apart, sh, wait_until};
use raw::{Helper, SEQUENCE, directory, hello, line_of, mount};

mod raw;

/// Defines tests that run as an ordinary user only.
macro_rules! as_ordinary_user {
    ($(fn $name:ident() $body:block)+) => {$(
        #[test]
        fn $name() {
            use $crate::common::as_user::{Who, again, is_root};
            fn body() $body
            let who = if is_root() { Who::OrdinaryUser } else { Who::Us };
            again(concat!(module_path!(), "::", stringify!($name)), who, true, body);
        }
    )+};
}

/// A directory of the user's own, and one in it to mount on.
fn place() -> (TempDir, PathBuf) {
    let dir = reachable_tempdir("holofs-helper-");
    let on = dir.path().join("on");
    std::fs::create_dir(&on).unwrap();
    (dir, on)
}

fn opened(path: impl AsRef<Path>, flags: OFlags) -> OwnedFd {
    rustix::fs::open(path.as_ref(), flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// The mountinfo line and the credentials of a helper that has started.
#[track_caller]
fn has_one_capability(helper: &Helper) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", helper.pid())).unwrap();
    let uid = rustix::process::getuid().as_raw();
    for line in [
        "CapPrm:\t0000000000200000",
        "CapEff:\t0000000000000000",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        &format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
    ] {
        assert!(status.lines().any(|is| is == line), "{line}\n{status}");
    }
}

as_ordinary_user! {
    fn mounts_registers_and_unregisters() {
        let (dir, on) = place();
        let helper = Helper::greeted();
        let mounted = helper.mount(&on);
        let line = mounted.line().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        assert!(line.contains(" rw,nosuid,nodev,relatime "), "{line}");
        let rest = format!(
            " - fuse.holofs holofs:test@1.2 rw,user_id={uid},group_id={gid},default_permissions"
        );
        assert!(line.ends_with(&rest), "{line}");
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let read = helper.register(&opened(&file, OFlags::RDONLY));
        let write = helper.register(&opened(&file, OFlags::RDWR));
        assert_ne!(read, write);
        assert_eq!(helper.ask(Request::BackingClose { id: read }, &[]), Reply::BackingClosed);
        assert_eq!(helper.denied(Request::BackingClose { id: read }, &[]), Deny::UnknownBacking);
        assert_eq!(helper.end().code(), Some(0));
        mounted.unmount();
    }

    fn mount_options_take_effect() {
        let (_dir, on) = place();
        let flags = MountFlags {
            read_only: true, no_exec: true, no_atime: true, sync: true, dir_sync: true, allow_other: false,
        };
        let source = MountSource::new("holofs:a b@1").unwrap();
        let helper = Helper::greeted();
        let (reply, fuse) = helper.ask_fd(Request::Mount { flags, source }, &[directory(&on).as_fd()]);
        assert_eq!(reply, Reply::Mounted);
        let line = line_of(&on).unwrap();
        drop(fuse);
        helper.end();
        sh(Command::new("fusermount3").arg("-u").arg(&on));
        assert!(line.contains(" ro,nosuid,nodev,noexec,noatime "), "{line}");
        assert!(line.contains(" holofs:a\\040b@1 ro,sync,dirsync,user_id="), "{line}");
    }

    fn holds_one_capability_that_is_not_effective() {
        has_one_capability(&Helper::greeted());
    }

    fn setuid_root_helper_runs_as_the_caller() {
        use crate::common::as_user::SETUID_MOUNT_HELPER;
        // Only root can make one. It does not exist if an ordinary user runs the tests.
        let Some(tools) = std::env::var_os("HOLOFS_TEST_TOOLS") else { return };
        let program = Path::new(&tools).join(SETUID_MOUNT_HELPER);
        if !program.exists() {
            return;
        }
        let (dir, on) = place();
        let helper = Helper::start(&mut Command::new(program));
        assert_eq!(helper.ask(hello(), &[]), Reply::Hello { version: VERSION });
        has_one_capability(&helper);
        assert_eq!(helper.denied(mount(), &[directory(Path::new("/etc")).as_fd()]), Deny::NotTheOwner);
        let mounted = helper.mount(&on);
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        helper.register(&opened(&file, OFlags::RDWR));
        mounted.unmount();
    }

    fn cannot_be_traced_or_read() {
        let helper = Helper::greeted();
        let proc = PathBuf::from(format!("/proc/{}", helper.pid()));
        for name in ["mem", "maps", "environ", "auxv"] {
            let read = File::open(proc.join(name)).and_then(|mut file| file.read(&mut [0; 16]));
            assert!(read.is_err(), "{name}: {read:?}");
        }
        assert!(std::fs::read_dir(proc.join("fd")).is_err());
        assert!(rustix::process::pidfd_open(
            rustix::process::Pid::from_raw(helper.pid() as i32).unwrap(),
            rustix::process::PidfdFlags::empty(),
        )
        .and_then(|pidfd| rustix::process::pidfd_getfd(pidfd, 0, rustix::process::PidfdGetfdFlags::empty()))
        .is_err());
    }

    fn refuses_directories_that_are_not_the_callers() {
        let (dir, on) = place();
        let helper = Helper::greeted();
        let refuses = |what: BorrowedFd<'_>, why: Deny| {
            assert_eq!(helper.denied(mount(), &[what]), why);
        };
        for foreign in ["/", "/etc", "/var/tmp", "/root"] {
            refuses(directory(Path::new(foreign)).as_fd(), Deny::NotTheOwner);
            assert!(line_of(Path::new(foreign)).is_none_or(|line| !line.contains("fuse.holofs")));
        }
        let link = dir.path().join("link");
        symlink(&on, &link).unwrap();
        refuses(directory(&link).as_fd(), Deny::NotADirectory);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        refuses(opened(&file, OFlags::RDWR).as_fd(), Deny::NotADirectory);
        refuses(opened("/dev/null", OFlags::RDWR).as_fd(), Deny::NotADirectory);
        refuses(rustix::pipe::pipe().unwrap().0.as_fd(), Deny::NotADirectory);
        refuses(opened("/proc/self", OFlags::PATH).as_fd(), Deny::Filesystem);
        let removed = dir.path().join("removed");
        std::fs::create_dir(&removed).unwrap();
        let fd = directory(&removed);
        std::fs::remove_dir(&removed).unwrap();
        refuses(fd.as_fd(), Deny::NotWhereItSays);
        let fd = directory(&on);
        std::fs::set_permissions(&on, Permissions::from_mode(0o555)).unwrap();
        refuses(fd.as_fd(), Deny::NotWritable);
        std::fs::set_permissions(&on, Permissions::from_mode(0o755)).unwrap();
        // The caller can no longer reach the directory by its path, although it was opened earlier.
        let below = on.join("below");
        std::fs::create_dir(&below).unwrap();
        let fd = directory(&below);
        std::fs::set_permissions(&on, Permissions::from_mode(0o000)).unwrap();
        refuses(fd.as_fd(), Deny::NotWhereItSays);
        std::fs::set_permissions(&on, Permissions::from_mode(0o755)).unwrap();
        // The directory is below a mount. A mount on it would cover what another user put there.
        let fd = directory(&on);
        let other = Helper::greeted();
        let mounted = other.mount(&on);
        refuses(fd.as_fd(), Deny::NotWhereItSays);
        drop(mounted);
    }

    fn allow_other_needs_user_allow_other() {
        let (_dir, on) = place();
        let allowed = std::fs::read_to_string("/etc/fuse.conf")
            .is_ok_and(|conf| conf.lines().any(|line| line.trim() == "user_allow_other"));
        let flags = MountFlags { allow_other: true, ..MountFlags::default() };
        let source = MountSource::new("holofs:x").unwrap();
        let helper = Helper::greeted();
        let reply = helper.ask(Request::Mount { flags, source }, &[directory(&on).as_fd()]);
        if allowed {
            assert_eq!(reply, Reply::Mounted);
            helper.end();
            sh(Command::new("fusermount3").arg("-u").arg(&on));
        } else {
            assert!(matches!(reply, Reply::Denied { reason: Deny::AllowOther, .. }), "{reply:?}");
        }
    }

    fn mounts_on_the_opened_directory_after_a_swap() {
        let (dir, on) = place();
        let helper = Helper::greeted();
        let fd = directory(&on);
        let moved = dir.path().join("moved");
        std::fs::rename(&on, &moved).unwrap();
        symlink("/etc", &on).unwrap();
        let (reply, fuse) = helper.ask_fd(mount(), &[fd.as_fd()]);
        assert_eq!(reply, Reply::Mounted);
        let lines = (line_of(&moved), line_of(&on), line_of(Path::new("/etc")));
        drop((fd, fuse));
        helper.end();
        sh(Command::new("fusermount3").arg("-u").arg(&moved));
        assert!(lines.0.is_some());
        assert_eq!((lines.1, lines.2), (None, None));
    }

    fn wins_every_race_for_the_mountpoint() {
        let (dir, on) = place();
        let link = dir.path().join("link");
        symlink("/var/tmp", &link).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use rustix::fs::{CWD, RenameFlags, renameat_with};
                while !over.load(Ordering::Relaxed) {
                    // The kernel refuses this while the directory is mounted on.
                    let swapped = renameat_with(CWD, &on, CWD, &link, RenameFlags::EXCHANGE);
                    assert!(matches!(swapped, Ok(()) | Err(rustix::io::Errno::BUSY)), "{swapped:?}");
                }
            });
            let mut made = 0;
            for _ in 0..200 {
                let Ok(fd) = rustix::fs::open(&on, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else { continue };
                let helper = Helper::greeted();
                let reply = helper.ask(mount(), &[fd.as_fd()]);
                drop(fd);
                helper.end();
                assert_eq!(line_of(Path::new("/var/tmp")), None);
                match reply {
                    Reply::Mounted => {
                        made += 1;
                        // Looks under both names, because the mount moves with its directory.
                        while line_of(&on).or_else(|| line_of(&link)).is_some() {
                            for name in [&on, &link] {
                                drop(Command::new("fusermount3").arg("-uzq").arg(name).output());
                            }
                        }
                    }
                    Reply::Denied { reason: Deny::NotTheOwner | Deny::NotWhereItSays, .. } => {}
                    other => panic!("{other:?}"),
                }
                if made >= 10 {
                    break;
                }
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    fn refuses_files_that_are_not_the_callers() {
        let (dir, on) = place();
        let helper = Helper::greeted();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let own = opened(&file, OFlags::RDONLY);
        assert_eq!(helper.denied(Request::BackingOpen, &[own.as_fd()]), Deny::NotMounted);
        let mounted = helper.mount(&on);
        let refuses = |what: BorrowedFd<'_>, why: Deny| {
            assert_eq!(helper.denied(Request::BackingOpen, &[what]), why);
        };
        // Everybody may read these files. If they were registered, the user could write to them.
        for foreign in ["/etc/passwd", "/bin/sh"] {
            refuses(opened(foreign, OFlags::RDONLY).as_fd(), Deny::NotTheCallersFile);
        }
        refuses(opened("/etc/shadow", OFlags::PATH).as_fd(), Deny::NotReadable);
        refuses(opened(&file, OFlags::WRONLY).as_fd(), Deny::NotReadable);
        refuses(opened(&file, OFlags::PATH).as_fd(), Deny::NotReadable);
        refuses(opened(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY).as_fd(), Deny::NotARegularFile);
        refuses(opened("/dev/null", OFlags::RDWR).as_fd(), Deny::NotARegularFile);
        refuses(opened("/dev/fuse", OFlags::RDWR).as_fd(), Deny::NotARegularFile);
        refuses(rustix::pipe::pipe().unwrap().0.as_fd(), Deny::NotARegularFile);
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        refuses(socket.as_fd(), Deny::NotARegularFile);
        refuses(opened("/proc/self/status", OFlags::RDONLY).as_fd(), Deny::Filesystem);
        let memfd = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        refuses(memfd.as_fd(), Deny::Unlinked);
        std::fs::remove_file(&file).unwrap();
        refuses(own.as_fd(), Deny::Unlinked);
        drop(mounted);
    }

    fn backing_ids_belong_to_one_session() {
        let (dir, on) = place();
        let second = dir.path().join("second");
        std::fs::create_dir(&second).unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let file = opened(dir.path().join("file"), OFlags::RDONLY);
        let (one, other) = (Helper::greeted(), Helper::greeted());
        let (first, second) = (one.mount(&on), other.mount(&second));
        let id = one.register(&file);
        assert_eq!(other.denied(Request::BackingClose { id }, &[]), Deny::UnknownBacking);
        assert_eq!(one.denied(mount(), &[directory(dir.path()).as_fd()]), Deny::AlreadyMounted);
        drop((first, second));
    }

    // Holds for every access mode and every later owner, because the kernel does not look at permission bits.
    fn file_registered_read_only_is_never_written() {
        let (dir, on) = place();
        let file = dir.path().join("file");
        for (flags, may_write) in [(OFlags::RDONLY, false), (OFlags::RDWR, true)] {
            std::fs::write(&file, "bytes").unwrap();
            let helper = Helper::greeted();
            let mounted = helper.mount(&on);
            let daemon = mounted.serve(helper.register(&opened(&file, flags)));
            let shown = on.join("shown");
            assert_eq!(std::fs::read_to_string(&shown).unwrap(), "bytes");
            for write in [OpenOptions::new().write(true), OpenOptions::new().read(true).write(true)] {
                let written = write.open(&shown).and_then(|file| file.write_all_at(b"B", 0));
                assert_eq!(written.is_ok(), may_write, "{written:?}");
            }
            assert_eq!(std::fs::read_to_string(&file).unwrap(), if may_write { "Bytes" } else { "bytes" });
            mounted.unmount();
            daemon.join().unwrap();
        }
    }

    // The limit counts what the kernel holds, not the helpers that live or the mounts that exist.
    fn sessions_of_a_user_share_one_limit() {
        use crate::common::as_user::EMPTIED_MOUNT_HELPER;
        // Only root can make one.
        let Some(tools) = std::env::var_os("HOLOFS_TEST_TOOLS") else { return };
        let program = Path::new(&tools).join(EMPTIED_MOUNT_HELPER);
        let greeted = || {
            let helper = Helper::start(&mut Command::new(&program));
            assert_eq!(helper.ask(hello(), &[]), Reply::Hello { version: VERSION });
            helper
        };
        let (dir, on) = place();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let file = opened(dir.path().join("file"), OFlags::RDWR);
        let mut kept = Vec::new();
        let all = FILES_PER_SLOT * SLOTS_PER_USER as usize;
        for share in [all / 2, all - all / 2] {
            let mut helper = greeted();
            let mounted = helper.mount(&on);
            let mut last = helper.register(&file);
            for _ in 1..share {
                last = helper.register(&file);
            }
            if kept.len() == 1 {
                assert_eq!(helper.denied(Request::BackingOpen, &[file.as_fd()]), Deny::TooMany);
                assert_eq!(helper.ask(Request::BackingClose { id: last }, &[]), Reply::BackingClosed);
                helper.register(&file);
            }
            for _ in 0..1000 {
                let id = BackingId::new(i32::MAX as u32).unwrap();
                assert_eq!(helper.denied(Request::BackingClose { id }, &[]), Deny::UnknownBacking);
            }
            kept.push(mounted.connection());
            helper.kill();
            mounted.unmount();
        }
        let helper = greeted();
        let mounted = helper.mount(&on);
        assert_eq!(helper.denied(Request::BackingOpen, &[file.as_fd()]), Deny::TooMany);
        kept.pop();
        wait_until("the kernel to release the files", || {
            !matches!(helper.ask(Request::BackingOpen, &[file.as_fd()]), Reply::Denied { .. })
        });
        drop(mounted);
        assert_eq!(helper.end().code(), Some(0));
    }

    fn malformed_request_ends_the_session() {
        let file = opened("/etc/passwd", OFlags::RDONLY);
        let good = hello().encode(SEQUENCE);
        let longer = [&good[..], &[0]].concat();
        let mut other_version = good;
        other_version[4] = 1;
        let mut other_opcode = good;
        other_opcode[6] = 5;
        let fds = |n| vec![file.as_fd(); n];
        for (bytes, fds) in [
            (&good[..1], fds(0)),
            (&good[..good.len() - 1], fds(0)),
            (&longer[..], fds(0)),
            (&[0xff; 328][..], fds(0)),
            (&[0; 100_000][..], fds(0)),
            (&other_version[..], fds(0)),
            (&other_opcode[..], fds(0)),
            (&good[..], fds(1)),
            (&good[..], fds(250)),
            (&mount().encode(SEQUENCE)[..], fds(0)),
            (&mount().encode(SEQUENCE)[..], fds(2)),
            (&Request::BackingOpen.encode(SEQUENCE)[..], fds(0)),
            (&Request::BackingOpen.encode(SEQUENCE)[..], fds(5)),
        ] {
            let mut helper = Helper::start(&mut Command::new(mount_helper()));
            assert!(helper.send(bytes, &fds));
            let reply = helper.receive().map(|(reply, _)| reply);
            assert_eq!(reply, Some(Reply::NotUnderstood), "{} bytes, {} fds", bytes.len(), fds.len());
            assert_eq!(helper.wait().code(), Some(1));
            assert!(!helper.send(&good, &[]));
        }
    }

    fn requests_out_of_order_are_refused() {
        let (dir, on) = place();
        let helper = Helper::start(&mut Command::new(mount_helper()));
        assert_eq!(helper.denied(mount(), &[directory(&on).as_fd()]), Deny::NotGreeted);
        let file = opened("/etc/passwd", OFlags::RDONLY);
        assert_eq!(helper.denied(Request::BackingOpen, &[file.as_fd()]), Deny::NotGreeted);
        assert_eq!(helper.ask(Request::Hello { version: VERSION + 7 }, &[]), Reply::Hello { version: VERSION });
        assert_eq!(helper.denied(hello(), &[]), Deny::NotGreeted);
        drop(dir);
    }

    fn closes_descriptors_it_was_given() {
        let gone = |mut read: File| {
            wait_until("the other end to be closed", || matches!(read.read(&mut [0; 1]), Ok(0)));
        };
        // Descriptors that were sent with a refused request.
        let (dir, on) = place();
        let helper = Helper::greeted();
        let mounted = helper.mount(&on);
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert_eq!(helper.denied(Request::BackingOpen, &[write.as_fd()]), Deny::NotARegularFile);
        drop(write);
        gone(File::from(read));
        drop(mounted);
        // Descriptors that were inherited.
        let (read, write) = rustix::pipe::pipe().unwrap();
        let helper = Helper::start(&mut Command::new(mount_helper()));
        drop(write);
        assert_eq!(helper.ask(hello(), &[]), Reply::Hello { version: VERSION });
        gone(File::from(read));
        drop(dir);
    }

    fn environment_and_arguments_are_ignored() {
        let (dir, _) = place();
        let trace = dir.path().join("trace");
        let mut command = Command::new(mount_helper());
        command.args(["--help", "-o", "allow_other", "/etc"]);
        command.env("LD_DEBUG", "all").env("LD_DEBUG_OUTPUT", &trace).env("LD_PRELOAD", dir.path().join("evil.so"));
        command.env("LD_LIBRARY_PATH", dir.path()).env("GLIBC_TUNABLES", "glibc.malloc.check=3");
        command.env("RUST_BACKTRACE", "full").env("_FUSE_COMMFD", "0").env("PATH", dir.path());
        let out = dir.path().join("out");
        let output = OpenOptions::new().create(true).append(true).open(&out).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let helper = Helper::start(&mut command);
        assert_eq!(helper.ask(hello(), &[]), Reply::Hello { version: VERSION });
        let foreign = directory(Path::new("/etc"));
        assert_eq!(helper.denied(mount(), &[foreign.as_fd()]), Deny::NotTheOwner);
        helper.end();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "");
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name.to_string_lossy().starts_with("trace")), "{names:?}");
    }

    fn closed_and_wrong_standard_streams_are_handled() {
        let program = mount_helper();
        let closing = |which: &str| {
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("exec \"$0\" {which}")).arg(&program);
            command
        };
        let helper = Helper::start(&mut closing(">&- 2>&-"));
        assert_eq!(helper.ask(hello(), &[]), Reply::Hello { version: VERSION });
        helper.end();
        for stdin in ["<&-", "</dev/null", "</etc/passwd"] {
            let status = closing(stdin).stdin(Stdio::null()).status().unwrap();
            assert_eq!(status.code(), Some(2), "{stdin}");
        }
        // A stream socket does not carry packets, and a pipe is not a socket.
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let status = Command::new(&program).stdin(OwnedFd::from(theirs)).status().unwrap();
        assert_eq!(status.code(), Some(2));
    }

    fn missing_capability_is_reported() {
        let (dir, _) = place();
        let plain = dir.path().join("plain");
        std::fs::copy(mount_helper(), &plain).unwrap();
        let mut no_new_privs = Command::new("setpriv");
        no_new_privs.args(["--no-new-privs", "--"]).arg(mount_helper());
        for command in [&mut Command::new(plain), &mut no_new_privs] {
            let helper = Helper::start(command);
            assert_eq!(helper.denied(hello(), &[]), Deny::NoPrivilege);
            assert_eq!(helper.denied(mount(), &[directory(dir.path()).as_fd()]), Deny::NotGreeted);
        }
    }

    fn user_namespace_gives_no_privilege() {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--"]).arg(mount_helper());
        let able = Command::new("unshare").args(["--user", "--map-root-user", "true"]).output().unwrap();
        if able.status.success() {
            let helper = Helper::start(&mut command);
            // In the namespace, the caller is not the user who made the socket, or is that user but has no capability.
            if helper.send(&hello().encode(SEQUENCE), &[])
                && let Some((reply, _)) = helper.receive()
            {
                let no = [Deny::NoPrivilege, Deny::UserNamespace];
                assert!(matches!(reply, Reply::Denied { reason, .. } if no.contains(&reason)), "{reply:?}");
            }
        }
    }

    fn helper_ends_with_its_caller_and_leaves_a_dead_mount() {
        let (_dir, on) = place();
        let mut helper = Helper::greeted();
        let mut mounted = helper.mount(&on);
        mounted.abandon();
        helper.hang_up();
        assert_eq!(helper.wait().code(), Some(0));
        // Nobody holds the connection any more, so the kernel itself answers.
        assert_eq!(rustix::fs::statfs(&on).unwrap_err(), rustix::io::Errno::NOTCONN);
        mounted.unmount();
    }

    fn only_passthrough_is_refused_without_the_helper() {
        let world = World::sample();
        let run = |io: &str| {
            let mut command = world.holofs();
            command.env("HOLOFS_MOUNT_HELPER", "").arg("mount").arg(world.home()).args(["s", "--io", io]);
            crate::common::world::finish(&mut command)
        };
        let done = run("passthrough");
        assert_eq!(done.code, 8, "{done:?}");
        assert!(done.stderr.contains("no passthrough here (the mount helper is not installed"), "{done:?}");
        assert_eq!(world.mounts(), Vec::<PathBuf>::new());
        assert_eq!(run("cached").code, 0);
        assert_eq!(world.run(["unmount", "s"]).code, 0);
    }
}

/// Helpers that count at the same time see the same number. Runs in a mount namespace with its own `fuse.conf`.
#[test]
fn concurrent_mounts_respect_mount_max() {
    use crate::common::as_user::{as_user_args, kernel_has_passthrough, root_or_skip, tools};
    if !root_or_skip() || !kernel_has_passthrough() {
        return;
    }
    let tools = tools();
    let conf = tools.path().join("fuse.conf");
    std::fs::write(&conf, "").unwrap();
    std::fs::set_permissions(&conf, Permissions::from_mode(0o666)).unwrap();
    let mut body = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/fuse.conf && exec setpriv \"$@\"";
    apart(&mut body, tools.path()).args(["sh", "-c", script]).arg(&conf);
    body.args(as_user_args()).arg("--").arg(tools.path().join("e2e"));
    body.args(["helper::mounts_at_once", "--exact", "--ignored", "--nocapture"]);
    body.env("HOLOFS_TEST_TOOLS", tools.path()).current_dir("/");
    assert!(sh(&mut body).contains("1 passed"));
}

#[test]
#[ignore = "run by the test above"]
fn mounts_at_once() {
    const FREE: usize = 2;
    // Only if the file is not the one of the machine.
    if crate::common::as_user::is_root() {
        return;
    }
    let count = || fuse_mounts(&std::fs::read_to_string("/proc/self/mounts").unwrap());
    let most = count() + FREE;
    std::fs::write("/etc/fuse.conf", format!("mount_max = {most}\n")).unwrap();
    for _ in 0..20 {
        let places: Vec<_> = (0..8).map(|_| (place(), Helper::greeted())).collect();
        let start = std::sync::Barrier::new(places.len());
        std::thread::scope(|scope| {
            for ((_, on), helper) in &places {
                let start = &start;
                scope.spawn(move || {
                    let on = directory(on);
                    start.wait();
                    match helper.ask(mount(), &[on.as_fd()]) {
                        Reply::Mounted | Reply::Denied { reason: Deny::TooManyMounts, .. } => {}
                        other => panic!("{other:?}"),
                    }
                });
            }
        });
        assert!(count() <= most, "{} mounts, and {most} are allowed", count());
        for ((_, on), helper) in places {
            helper.end();
            drop(Command::new("fusermount3").arg("-uzq").arg(on).output());
        }
    }
}
