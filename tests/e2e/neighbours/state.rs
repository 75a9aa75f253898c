//! The owners of holofs's own directories, and traps in the place of the files in them.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use super::{SPACE, TRAPS, Trap, Victim, assert_refused, clear, mount, soon};
use crate::common::World;
use crate::common::as_user::root_or_skip;

const COMMANDS: [&[&str]; 4] = [&["list"], &["path", SPACE], &["status", SPACE], &["unmount", SPACE]];

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

for_both_users! {
    fn record_that_is_not_a_file_does_not_hang() {
        let world = World::sample();
        let mounted = world.mount(SPACE);
        let state = mounted.state();
        mounted.unmount();
        let victim = Victim::in_world(&world);
        for file in ["state.json", "state.json.part#holofs", "run.json", "run.json.part#holofs", "lock"] {
            for trap in TRAPS {
                victim.set(trap, &state.join(file));
                for command in COMMANDS {
                    let done = soon(&world, command);
                    assert!(matches!(done.code, 0 | 1 | 6 | 11), "{file} {trap:?} {command:?}: {done:?}");
                }
                let done = mount(&world);
                assert!(matches!(done.code, 0 | 1 | 11), "{file} {trap:?}: {done:?}");
                if done.code == 0 {
                    assert_eq!(soon(&world, &["unmount", SPACE]).code, 0, "{file} {trap:?}");
                } else {
                    assert!(done.stderr.contains("holofs: ") && done.stderr.contains(file.trim_end_matches(".part#holofs")), "{done:?}");
                }
                victim.is_untouched();
                clear(&state.join(file));
            }
        }
    }

    fn cache_entry_that_is_not_a_file_is_rebuilt() {
        let world = World::sample();
        drop(world.mount(SPACE));
        let victim = Victim::in_world(&world);
        let index = world.state().join("cache/index");
        let files: Vec<_> = std::fs::read_dir(&index).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 2, "{files:?}");
        for file in files {
            for trap in TRAPS.into_iter().filter(|trap| *trap != Trap::Directory) {
                victim.set(trap, &file);
                let done = mount(&world);
                assert_eq!(done.code, 0, "{trap:?} {}: {done:?}", file.display());
                assert_eq!(soon(&world, &["unmount", SPACE]).code, 0);
                victim.is_untouched();
            }
        }
    }

    fn directories_that_others_may_write_to_are_refused() {
        let world = World::sample();
        let mounted = world.mount(SPACE);
        let space = mounted.state();
        mounted.unmount();
        let state = world.state();
        let own = [state.clone(), state.join("cache"), state.join("cache/index"), state.join("spaces")];
        for dir in own.iter().chain([&space]) {
            for mode in [0o777, 0o1777, 0o770] {
                chmod(dir, mode);
                let done = mount(&world);
                assert_refused(&done, "other users may write to it");
                assert!(done.stderr.contains("chmod go-w"), "{done:?}");
                // Other commands do not read the space's own directory.
                if dir != &space {
                    assert_refused(&soon(&world, &["list"]), "other users may write to it");
                }
            }
            chmod(dir, 0o700);
        }
        // Everybody can swap entries in this home. With the sticky bit nobody can.
        chmod(&world.home(), 0o777);
        assert_refused(&mount(&world), "other users may write to it");
        chmod(&world.home(), 0o1777);
        drop(world.mount(SPACE));
    }

    fn first_mount_refuses_a_directory_that_others_may_replace() {
        let world = World::sample();
        chmod(&world.home(), 0o777);
        assert_refused(&mount(&world), "other users may write to it");
        assert!(!world.state().exists());
        // The advice of the error message works.
        let elsewhere = world.path().join("own");
        let mut command = world.holofs();
        command.env("HOLOFS_HOME", &elsewhere).arg("mount").arg(world.home()).arg(SPACE);
        assert_eq!(crate::common::world::finish(&mut command).code, 0);
        let mut command = world.holofs();
        command.env("HOLOFS_HOME", &elsewhere).arg("unmount").arg(SPACE);
        assert_eq!(crate::common::world::finish(&mut command).code, 0);
    }
}

/// The other user made the directories first, so the index, and with it the code that runs, could be theirs.
#[test]
fn directories_that_another_user_made_are_refused() {
    if !root_or_skip() {
        return;
    }
    for theirs in ["", "cache", "cache/index", "cache/blobs", "spaces", "spaces/ID", "spaces/ID/upper"] {
        let world = World::sample();
        let mounted = world.mount(SPACE);
        let identity = mounted.identity().to_owned();
        mounted.unmount();
        let dir = world.state().join(theirs.replace("ID", &identity));
        chown(&dir, Some(65534), Some(65534)).unwrap();
        let done = mount(&world);
        assert_refused(&done, "it belongs to user 65534");
        assert!(done.stderr.contains("HOLOFS_HOME"), "{done:?}");
        assert!(world.mounts().is_empty());
    }
}

/// A link of another user in a directory with the sticky bit leads to a directory of the victim. Its owner could
/// redirect it at any time.
#[test]
fn directory_behind_a_link_of_another_user_is_refused() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    drop(world.mount(SPACE));
    let real = world.path().join("real");
    std::fs::rename(world.state(), &real).unwrap();
    chmod(&world.home(), 0o1777);
    symlink(&real, world.state()).unwrap();
    drop(world.mount(SPACE));
    std::os::unix::fs::lchown(world.state(), Some(65534), Some(65534)).unwrap();
    assert_refused(&mount(&world), "it belongs to user 65534");
}

/// `sudo holofs mount` with the home of an ordinary user: that user could swap what root uses.
#[test]
fn root_refuses_an_ordinary_users_home() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    chown(world.home(), Some(65534), Some(65534)).unwrap();
    let done = mount(&world);
    assert_refused(&done, "it belongs to user 65534");
    assert!(done.stderr.contains("HOLOFS_HOME"), "{done:?}");
}
