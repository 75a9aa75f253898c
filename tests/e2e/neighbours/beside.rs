//! Traps in the place of the files that rcc and holofs keep beside the directory of a space and in the library.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{SPACE, TRAPS, Trap, Victim, assert_refused, clear, mount, soon};
use crate::common::mount::is_running;
use crate::common::world::HOME;
use crate::common::{Library, Mounted, World};

/// A world whose space was mounted before, so that all files exist, and a function that returns their paths.
fn used() -> (World, impl Fn(&str) -> PathBuf) {
    let world = World::sample();
    let mounted = world.mount(SPACE);
    let path = mounted.path().to_owned();
    let beside = move |ending: &str| {
        let mut name = OsString::from(&path);
        name.push(ending);
        PathBuf::from(name)
    };
    mounted.unmount();
    (world, beside)
}

/// Mounts despite a trap, which must work, and unmounts, which must end the daemon.
#[track_caller]
fn assert_mounts_and_unmounts(world: &World) {
    let mounted: Mounted<'_> = world.mount(SPACE);
    let pid = mounted.pid();
    assert_eq!(std::fs::read(mounted.at("lib/module.py")).unwrap(), LOWER);
    mounted.unmount();
    assert!(!is_running(pid));
}

const LOWER: &[u8] = b"VALUE = 42\n";

for_both_users! {
    fn lock_that_is_not_a_file_is_refused() {
        let (world, beside) = used();
        let victim = Victim::in_world(&world);
        for trap in TRAPS.into_iter().filter(|trap| *trap != Trap::Huge) {
            victim.set(trap, &beside(".lck"));
            let done = mount(&world);
            assert_refused(&done, "not a regular file");
            victim.is_untouched();
            assert!(world.mounts().is_empty());
        }
        clear(&beside(".lck"));
        assert_mounts_and_unmounts(&world);
    }

    fn usage_mark_that_is_not_a_file_is_left_alone() {
        let (world, beside) = used();
        let victim = Victim::in_world(&world);
        for trap in TRAPS {
            victim.set(trap, &beside(".use"));
            assert_mounts_and_unmounts(&world);
            for command in ["list", "path", "status"] {
                let args = [command, SPACE];
                let done = soon(&world, if command == "list" { &args[..1] } else { &args });
                assert_eq!(done.code, 0, "{trap:?}: {done:?}");
            }
            victim.is_untouched();
        }
    }

    fn library_usage_mark_that_is_not_a_file_is_left_alone() {
        let (world, _) = used();
        let victim = Victim::in_world(&world);
        let user7 = &world.json(["list"]).as_object().unwrap().keys().next().unwrap()[..7].to_owned();
        let mark = world.hololib().join("used").join(format!("{}.{user7}", Library::sample().hash()));
        for trap in TRAPS {
            victim.set(trap, &mark);
            assert_mounts_and_unmounts(&world);
            victim.is_untouched();
        }
        // Here the directory itself is a link.
        let used = world.hololib().join("used");
        let elsewhere = world.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        clear(&used);
        std::os::unix::fs::symlink(&elsewhere, &used).unwrap();
        assert_mounts_and_unmounts(&world);
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "a mark was created through a link");
    }

    fn meta_file_that_is_not_a_file_is_ignored() {
        let (world, beside) = used();
        let victim = Victim::in_world(&world);
        for ending in [".meta", ".meta.info", ".meta.part#holofs", ".meta.info.part#holofs"] {
            for trap in TRAPS {
                victim.set(trap, &beside(ending));
                for command in [&["list"][..], &["path", SPACE], &["status", SPACE]] {
                    let done = soon(&world, command);
                    assert_eq!(done.code, 0, "{ending} {trap:?}: {done:?}");
                }
                let done = mount(&world);
                assert_eq!(done.code, 0, "{ending} {trap:?}: {done:?}");
                let done = soon(&world, &["unmount", SPACE]);
                assert_eq!(done.code, 0, "{ending} {trap:?}: {done:?}");
                victim.is_untouched();
                clear(&beside(ending));
            }
        }
    }
}

/// rcc's shared mode: a lock file that another user made and everybody may lock is usable.
#[test]
fn lock_file_of_another_user_is_used() {
    use std::os::unix::fs::PermissionsExt;
    if !crate::common::as_user::root_or_skip() {
        return;
    }
    let (world, beside) = used();
    let lock = beside(".lck");
    std::fs::write(&lock, "").unwrap();
    std::os::unix::fs::chown(&lock, Some(65534), Some(65534)).unwrap();
    std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o666)).unwrap();
    let held = std::fs::File::options().write(true).open(&lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let done = mount(&world);
    assert_eq!(done.code, 12, "{HOME}: {done:?}");
    drop(held);
    assert_mounts_and_unmounts(&world);
    let found = std::fs::metadata(&lock).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&found), 65534);
}
