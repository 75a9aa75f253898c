//! A mount that another mount namespace holds, and daemons that do not end by themselves.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::{SPACE, assert_refused, mount, soon};
use crate::common::as_user::root_or_skip;
use crate::common::world::finish;
use crate::common::{Mounted, World, apart, wait_until};
use crate::inject::may_trace;

/// A process whose own mount namespace has a copy of one mount. Unmounting elsewhere does not reach that copy.
struct Elsewhere(Child);

impl Elsewhere {
    fn of(world: &World) -> Self {
        let mut command = Command::new("unshare");
        let command = apart(&mut command, world.path()).args(["sleep", "1000"]);
        let child = command.spawn().expect("unshare (util-linux) is installed");
        let (own, its) = ("/proc/self/ns/mnt", format!("/proc/{}/ns/mnt", child.id()));
        wait_until("another mount namespace", || {
            let comm = std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap_or_default();
            comm.trim() == "sleep" && std::fs::read_link(&its).ok() != std::fs::read_link(own).ok()
        });
        Self(child)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A process whose directory is in the mount.
struct Inside(Child);

impl Inside {
    fn of(mounted: &Mounted<'_>) -> Self {
        Self(Command::new("sleep").arg("1000").current_dir(mounted.at("lib")).spawn().unwrap())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn change(mounted: &Mounted<'_>) {
    std::fs::write(mounted.at("readme.txt"), "changed").unwrap();
}

/// The file by which the kernel lets a mount's connection be aborted. It exists where fusectl is mounted.
fn connection(mounted: &Mounted<'_>) -> PathBuf {
    let dev = std::fs::metadata(mounted.path()).unwrap().dev();
    PathBuf::from(format!("/sys/fs/fuse/connections/{}/abort", rustix::fs::minor(dev)))
}

#[track_caller]
fn is_kept(world: &World) {
    let mounted = world.mount(SPACE);
    assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"changed");
}

#[test]
fn unmount_names_processes_in_other_mount_namespaces() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let mounted = world.mount(SPACE);
    change(&mounted);
    let elsewhere = Elsewhere::of(&world);
    // The second time nothing is mounted here, but the space is still busy.
    for _ in 0..2 {
        let done = soon(&world, &["unmount", SPACE]);
        assert_eq!(done.code, 12, "{done:?}");
        assert_refused(&done, &format!("{} (sleep)", elsewhere.0.id()));
        assert!(done.stderr.contains("--force"), "{done:?}");
    }
    assert_eq!(mount(&world).code, 12);
    drop(elsewhere);
    mounted.has_ended();
    is_kept(&world);
}

#[test]
fn force_ends_mounts_in_other_mount_namespaces() {
    if !root_or_skip() {
        return;
    }
    for unmounted_before in [false, true] {
        let world = World::sample();
        let mounted = world.mount(SPACE);
        change(&mounted);
        let elsewhere = Elsewhere::of(&world);
        if unmounted_before {
            assert_eq!(soon(&world, &["unmount", SPACE]).code, 12);
        }
        let done = soon(&world, &["unmount", SPACE, "--force"]);
        assert_eq!((done.code, done.stdout.trim()), (0, mounted.path().to_str().unwrap()), "{done:?}");
        mounted.has_ended();
        is_kept(&world);
        drop(elsewhere);
    }
}

for_both_users! {
    fn stopped_daemon_is_named_and_ended_by_force() {
        let world = World::sample();
        let mounted = world.mount(SPACE);
        change(&mounted);
        mounted.stop();
        let done = soon(&world, &["unmount", SPACE, "--timeout", "1"]);
        assert_eq!(done.code, 12, "{done:?}");
        assert_refused(&done, &format!("process {}, which is stopped", mounted.server()));
        let done = soon(&world, &["unmount", SPACE, "--force"]);
        assert_eq!(done.code, 0, "{done:?}");
        mounted.has_ended();
        is_kept(&world);
    }

    fn force_ends_a_mount_that_is_in_use() {
        let world = World::sample();
        let mounted = world.mount(SPACE);
        change(&mounted);
        let inside = Inside::of(&mounted);
        assert_eq!(soon(&world, &["unmount", SPACE]).code, 12);
        let done = soon(&world, &["unmount", SPACE, "--force"]);
        assert_eq!(done.code, 0, "{done:?}");
        mounted.has_ended();
        is_kept(&world);
        drop(inside);
    }

    /// A worker takes the place of a keeper that was killed, and starts another one. The command must not leave it the time.
    fn force_leaves_no_worker_that_takes_the_place_of_its_keeper() {
        if !may_trace() {
            return;
        }
        let world = World::sample();
        let mounted = world.mount(SPACE);
        change(&mounted);
        let inside = Inside::of(&mounted);
        let log = world.path().join("strace");
        let mut command = world.command("strace");
        command.args(["-qq", "-e", "trace=pidfd_send_signal,write", "-o"]).arg(&log);
        command.args(["-e", "inject=pidfd_send_signal:delay_exit=1500000:when=1"]);
        // The connection cannot be aborted, so the daemon is killed.
        if connection(&mounted).exists() {
            command.args(["-e", "inject=write:error=EPERM:when=1"]);
        }
        command.arg(world.holofs().get_program()).args(["unmount", SPACE, "--force"]);
        let done = finish(&mut command);
        assert_eq!(done.code, 0, "{done:?}");
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains("pidfd_send_signal"), "nothing was killed: {log}");
        mounted.has_ended();
        is_kept(&world);
        drop(inside);
    }

    fn detached_mount_in_use_is_not_reported_as_ended() {
        let world = World::sample();
        let mounted = world.mount(SPACE);
        let inside = Inside::of(&mounted);
        assert_eq!(soon(&world, &["unmount", SPACE, "--lazy"]).code, 0);
        let done = soon(&world, &["unmount", SPACE, "--timeout", "0.2"]);
        assert_eq!(done.code, 12, "{done:?}");
        assert_refused(&done, &format!("process {}", mounted.server()));
        drop(inside);
        mounted.has_ended();
    }
}
