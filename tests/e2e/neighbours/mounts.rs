//! Mounts that do not belong to the space, and a mountpoint that is swapped.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::{SPACE, assert_refused, mount, soon};
use crate::common::as_user::root_or_skip;
use crate::common::{Mounted, World};

/// How many mounts race with somebody who swaps the mountpoint.
const RACES: usize = 25;

/// The source of the mount at a path, according to mountinfo.
fn source_at(path: &Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == path.to_str()).expect("mounted");
    line.split(" - ").nth(1).unwrap().split(' ').nth(1).unwrap().to_owned()
}

/// A FUSE mount of another user, as the kernel shows it. No daemon serves it.
struct Foreign<'p> {
    at: &'p Path,
    _device: OwnedFd,
}

impl<'p> Foreign<'p> {
    fn new(source: &str, at: &'p Path) -> Self {
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR, Mode::empty()).unwrap();
        let data =
            format!("fd={},rootmode=40000,user_id=65534,group_id=65534,allow_other", device.as_raw_fd());
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount(source, at, "fuse.holofs", MountFlags::NOSUID, Some(data.as_c_str())).unwrap();
        Self { at, _device: device }
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.at, UnmountFlags::DETACH).unwrap();
    }
}

/// A bind mount that is unmounted on drop.
struct Bound<'p>(&'p Path);

impl<'p> Bound<'p> {
    fn new(what: &Path, at: &'p Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        crate::common::sh(Command::new("mount").arg("--bind").arg(what).arg(at));
        Self(at)
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        // One of the tests has unmounted it already.
        rustix::mount::unmount(self.0, UnmountFlags::DETACH).ok();
    }
}

/// Asserts that `path`, `mount` and `status` all find this mount of the space.
#[track_caller]
fn assert_found(world: &World, mounted: &Mounted<'_>) {
    let path = mounted.path().to_str().unwrap();
    assert_eq!(soon(world, &["path", SPACE]).stdout.trim(), path);
    assert_eq!(mount(world).stdout.trim(), path);
    assert_eq!(world.json(["status", SPACE])["state"], "mounted");
}

/// Runs a function at the end of a scope, also on a panic.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

for_both_users! {
    fn swapped_mountpoint_is_never_followed() {
        let world = World::sample();
        let mounted = world.mount(SPACE);
        let path = mounted.path().to_owned();
        mounted.unmount();
        let (victim, trap) = (world.path().join("precious"), world.base().join("trap"));
        std::fs::create_dir(&victim).unwrap();
        std::os::unix::fs::symlink(&victim, &trap).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Also runs if an assertion fails.
            let _end = OnDrop(|| over.store(true, Ordering::Relaxed));
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // Fails while the directory is mounted on.
                    rustix::fs::renameat_with(CWD, &path, CWD, &trap, RenameFlags::EXCHANGE).ok();
                    std::thread::yield_now();
                }
            });
            for _ in 0..RACES {
                let done = mount(&world);
                let mounts = world.mounts();
                if done.code == 0 {
                    // A swap that started earlier can complete after the last check. The mount is then under the other
                    // name of its own directory.
                    assert!(mounts == [path.as_path()] || mounts == [trap.as_path()], "{mounts:?} {done:?}");
                    assert_eq!(done.stdout.trim(), path.to_str().unwrap());
                    assert_eq!(soon(&world, &["unmount", SPACE]).code, 0);
                } else {
                    assert!(mounts.is_empty(), "{mounts:?} {done:?}");
                    assert!(matches!(done.code, 7 | 8), "{done:?}");
                }
            }
        });
        assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
    }
}

/// Another user mounts a filesystem with the same source text.
#[test]
fn mount_of_another_user_with_our_source_is_not_ours() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let mounted = world.mount(SPACE);
    let (path, source) = (mounted.path().to_owned(), source_at(mounted.path()));
    let theirs = world.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    let foreign = Foreign::new(&source, &theirs);
    let shown = path.to_str().unwrap();
    assert_found(&world, &mounted);
    assert_eq!(world.json(["list"])[mounted.identity()]["path"], shown);
    assert_eq!(soon(&world, &["unmount", SPACE]).stdout.trim(), shown);
    assert_eq!(world.mounts(), [theirs.as_path()]);
    let identity = mounted.identity().to_owned();
    mounted.has_ended();
    assert_eq!(world.json(["list"])[&identity]["state"], "unmounted");
    assert_eq!(soon(&world, &["unmount", "--all"]).stdout, "");
    drop(foreign);
    // At the very place of the space.
    let foreign = Foreign::new(&source, &path);
    for command in [&["path", SPACE][..], &["mount", world.home().to_str().unwrap(), SPACE]] {
        let done = soon(&world, command);
        assert_eq!(done.code, 7, "{done:?}");
        assert_refused(&done, shown);
    }
    assert_eq!(soon(&world, &["list"]).code, 0);
    assert!(soon(&world, &["unmount", SPACE]).stderr.contains("not mounted"));
    drop(foreign);
    drop(world.mount(SPACE));
}

/// A bind mount of a directory of the space is not the space, and keeps it busy.
#[test]
fn bind_mount_of_a_part_is_not_the_space() {
    if !root_or_skip() {
        return;
    }
    for io in ["cached", "passthrough"] {
        let world = World::sample();
        let mounted = world.mount_with(SPACE, &["--io", io]);
        let at = world.path().join("bound");
        let bound = Bound::new(&mounted.at("lib"), &at);
        assert_found(&world, &mounted);
        let done = soon(&world, &["unmount", SPACE]);
        assert_eq!(done.code, 12, "{done:?}");
        assert_refused(&done, at.to_str().unwrap());
        assert!(at.join("module.py").exists() && mounted.at("readme.txt").exists());
        drop(bound);
        mounted.unmount();
    }
}

/// The recorded place decides which of the mounts is the space; `--force` ends all of them.
#[test]
fn bind_mount_of_the_whole_is_not_the_space() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let mounted = world.mount(SPACE);
    let at = world.path().join("bound");
    let bound = Bound::new(mounted.path(), &at);
    assert_found(&world, &mounted);
    assert_eq!(soon(&world, &["unmount", SPACE]).code, 12);
    // Unmounting by the path of the bind mount fails too.
    assert_eq!(soon(&world, &["unmount", at.to_str().unwrap()]).code, 12);
    let done = soon(&world, &["unmount", SPACE, "--force"]);
    assert_eq!((done.code, done.stdout.trim()), (0, mounted.path().to_str().unwrap()), "{done:?}");
    assert_eq!(world.mounts(), Vec::<std::path::PathBuf>::new());
    drop(bound);
    mounted.has_ended();
}

/// `path` reads one space only: another space may have a hundred thousand changes, or a mount that never answers.
#[test]
fn path_reads_no_other_space() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let mounted = world.mount("other");
    let hung = mounted.upper("hung");
    mounted.unmount();
    drop(world.mount(SPACE));
    std::fs::create_dir(&hung).unwrap();
    let foreign = Foreign::new("nobody answers", &hung);
    for command in ["path", "status"] {
        assert_eq!(soon(&world, &[command, SPACE]).code, 0);
    }
    drop(foreign);
}

for_both_users! {
    fn list_counts_a_bounded_number_of_changes() {
        let world = World::sample();
        let mounted = world.mount(SPACE);
        for n in 0..1_200 {
            std::fs::write(mounted.at(format!("many/{n}")), "changed").unwrap();
        }
        let row = &world.json(["list"])[mounted.identity()];
        assert_eq!(row["upper_bytes_at_least"], true);
        assert!(soon(&world, &["list"]).stdout.contains('>'));
        let status = world.json(["status", SPACE]);
        assert_eq!(status["upper_bytes_at_least"], false);
        assert!(status["upper_bytes"].as_u64() > row["upper_bytes"].as_u64());
    }
}
