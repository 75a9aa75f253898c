//! holofs and rcc on one machine: each must notice what the other did to a space.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Library, World, rcc, wait_until};

/// Two environments whose `module.py` has the same size and mode, so only rcc's record of what it restored
/// distinguishes them.
fn one() -> Library {
    Library::new().named("the one").file("lib/module.py", b"VALUE = 1\n").file("only-in-one", b"1")
}

fn two() -> Library {
    Library::new().named("the two").file("lib/module.py", b"VALUE = 2\n").file("only-in-two", b"22")
}

/// A world with both environments in its library.
fn both() -> World {
    let world = World::with(&one());
    world.add(&two());
    world
}

fn try_mount(world: &World, args: &[&str]) -> crate::common::world::Done {
    world.run(
        [OsStr::new("mount"), world.home().as_os_str(), "s".as_ref()]
            .into_iter()
            .chain(args.iter().map(OsStr::new)),
    )
}

fn row(world: &World, identity: &str) -> Value {
    world.json(["list"])[identity].clone()
}

fn module(space: &Path) -> String {
    std::fs::read_to_string(space.join("lib/module.py")).unwrap()
}

/// Waits for the list of files, which the daemon writes after `mount` has returned.
fn described(space: &Path) {
    wait_until("the list of files in .meta", || {
        rcc::beside(space, ".meta").exists()
            && rcc::read(&rcc::beside(space, ".meta"))["tree"]["subdirs"]
                .as_object()
                .is_some_and(|dirs| !dirs.is_empty())
    });
    // The mount releases this lock when the space's record says so, too.
    drop(rcc::lock(&rcc::beside(space, ".lck")));
}

for_both_users! {
    /// rcc converts the space to another environment through the mount. After a remount, rcc's record still names that
    /// environment, and rcc can convert the space back.
    fn conversion_survives_a_remount() {
        let world = both();
        let mounted = world.mount_with("s", &["--blueprint", &one().hash()]);
        let space = mounted.path().to_owned();
        assert!(rcc::restore(&world, &two(), &space) > 0);
        assert_eq!(module(&space), "VALUE = 2\n");
        let mounted = mounted.remount();
        assert_eq!(module(&space), "VALUE = 2\n");
        described(&space);
        assert_eq!(rcc::list(&world)[mounted.identity()], two().hash());
        assert!(rcc::restore(&world, &one(), &space) > 0);
        assert_eq!(module(&space), "VALUE = 1\n", "1 was requested");
        assert!(space.join("only-in-one").exists() && !space.join("only-in-two").exists());
        // Now rcc and holofs both report the first environment, mounted and unmounted.
        assert_eq!(rcc::restore(&world, &one(), &space), 0);
        assert_eq!(row(&world, mounted.identity())["blueprint"], one().hash());
        let mounted = mounted.remount();
        assert_eq!(rcc::list(&world)[mounted.identity()], one().hash());
        assert_eq!(mounted.output["blueprint"], one().hash());
    }

    /// After a conversion, everything that names the environment of the space names the new one.
    fn converted_space_reports_its_new_blueprint() {
        let world = both();
        let mounted = world.mount_with("s", &["--blueprint", &one().hash()]);
        let (space, identity) = (mounted.path().to_owned(), mounted.identity().to_owned());
        rcc::restore(&world, &two(), &space);
        for state in ["mounted", "unmounted"] {
            assert_eq!(row(&world, &identity)["blueprint"], two().hash(), "{state}");
            assert_eq!(row(&world, &identity)["state"], state);
            assert_eq!(world.json(["status", "s"])["blueprint"], two().hash(), "{state}");
            // The former environment is refused, and the message names both.
            let refused = try_mount(&world, &["--blueprint", &one().hash()]);
            assert_eq!(refused.code, 7, "{state}: {refused:?}");
            assert!(refused.stderr.contains(&one().hash()) && refused.stderr.contains(&two().hash()), "{refused:?}");
            if state == "mounted" {
                let again = try_mount(&world, &["--blueprint", &two().hash(), "--json"]);
                assert_eq!(again.code, 0, "{again:?}");
                assert!(again.stdout.contains(&two().hash()), "{again:?}");
                assert_eq!(world.run(["unmount", "s"]).code, 0);
            }
        }
        mounted.has_ended();
        let mounted = world.mount_with("s", &["--blueprint", &two().hash()]);
        assert_eq!(mounted.output["blueprint"], two().hash());
        assert_eq!(module(&space), "VALUE = 2\n");
        mounted.unmount();
        let mounted = world.mount("s");
        assert_eq!(mounted.output["blueprint"], two().hash());
        mounted.unmount();
        // With its changes dropped, the space holds the catalog's environment again, and rcc's record says so.
        let mounted = world.mount_with("s", &["--blueprint", &one().hash(), "--fresh"]);
        assert_eq!(module(&space), "VALUE = 1\n");
        described(&space);
        assert_eq!(rcc::list(&world)[mounted.identity()], one().hash());
    }

    /// Files that rcc restored into the directory while nothing was mounted there are no changes of the space.
    fn meta_file_that_does_not_match_the_space_is_replaced() {
        let world = both();
        let mounted = world.mount_with("s", &["--blueprint", &one().hash()]);
        let space = mounted.path().to_owned();
        std::fs::write(mounted.at("mine"), "mine").unwrap();
        mounted.unmount();
        rcc::restore(&world, &two(), &space);
        assert_eq!(try_mount(&world, &[]).code, 7);
        std::fs::remove_dir_all(&space).unwrap();
        let mounted = world.mount("s");
        assert_eq!((module(&space).as_str(), mounted.output["blueprint"].as_str()), ("VALUE = 1\n", Some(one().hash().as_str())));
        described(&space);
        rcc::restore(&world, &two(), &space);
        assert_eq!(module(&space), "VALUE = 2\n");
    }

    /// The daemon is killed after a conversion, so it could record nothing at the end of the mount.
    fn conversion_survives_the_death_of_the_daemon() {
        let world = both();
        let mounted = world.mount_with("s", &["--blueprint", &one().hash()]);
        let space = mounted.path().to_owned();
        described(&space);
        rcc::restore(&world, &two(), &space);
        mounted.kill();
        let mounted = world.mount("s");
        assert_eq!(mounted.output["blueprint"], two().hash());
        assert_eq!(rcc::list(&world)[mounted.identity()], two().hash());
        rcc::restore(&world, &one(), &space);
        assert_eq!(module(&space), "VALUE = 1\n");
    }

    /// rcc removed everything in the mounted space. The next mount starts with an empty space.
    fn deleted_space_starts_empty() {
        let world = World::sample();
        for live in [true, false] {
            let mounted = world.mount("s");
            let space = mounted.path().to_owned();
            described(&space);
            std::fs::write(mounted.at("mine"), "mine").unwrap();
            rcc::delete(&space);
            assert_eq!(std::fs::read_dir(&space).unwrap().count(), 0);
            let identity = mounted.identity().to_owned();
            assert_eq!(row(&world, &identity)["state"], "deleted");
            if !live {
                assert_eq!(world.run(["unmount", "s"]).code, 0);
            }
            let again = world.mount("s");
            mounted.has_ended_as(&again);
            assert_eq!(again.output["reused"], false);
            assert!(again.output.get("set_aside").is_none(), "{}", again.output);
            assert_eq!(std::fs::read(again.at("readme.txt")).unwrap(), b"hello, space\n");
            assert!(!again.at("mine").exists());
            assert_eq!(again.upper_entries(), Vec::<PathBuf>::new());
            described(&space);
            assert!(rcc::list(&world).contains_key(&identity));
            again.unmount();
        }
    }

    /// rcc deleted an unmounted space. Its changes are not shown again, but they are kept.
    fn changes_of_a_deleted_space_are_kept_aside() {
        let world = World::sample();
        for round in 1..=2 {
            let mounted = world.mount("s");
            let space = mounted.path().to_owned();
            described(&space);
            let state = mounted.state();
            std::fs::write(mounted.at("mine"), format!("mine {round}")).unwrap();
            mounted.unmount();
            rcc::delete(&space);
            assert!(!space.exists());
            let told = try_mount(&world, &[]);
            assert_eq!(told.code, 0, "{told:?}");
            let aside = state.join(format!("aside.{round}"));
            assert!(told.stderr.contains(aside.to_str().unwrap()), "{told:?}");
            assert!(!space.join("mine").exists());
            assert_eq!(std::fs::read_to_string(aside.join("upper/mine")).unwrap(), format!("mine {round}"));
            let status = world.json(["status", "s"]);
            assert_eq!(status["set_aside"].as_array().unwrap().len(), round, "{status}");
            assert!(status["set_aside"].to_string().contains(aside.to_str().unwrap()));
            assert!(world.run(["status", "s"]).stdout.contains(aside.to_str().unwrap()));
            assert_eq!(world.run(["unmount", "s"]).code, 0);
            // The message appears only once.
            assert!(!try_mount(&world, &[]).stderr.contains("aside"));
            assert_eq!(world.run(["unmount", "s"]).code, 0);
        }
    }

    /// A mount that is in use cannot be replaced, and the message says so.
    fn deleted_space_in_use_is_refused() {
        let world = World::sample();
        let mounted = world.mount("s");
        described(mounted.path());
        std::fs::write(mounted.at("held"), "").unwrap();
        let held = std::fs::File::open(mounted.at("held")).unwrap();
        rcc::delete(mounted.path());
        let refused = try_mount(&world, &[]);
        assert_eq!(refused.code, 12, "{refused:?}");
        assert!(refused.stderr.contains("deleted"), "{refused:?}");
        drop(held);
        let again = world.mount("s");
        mounted.has_ended_as(&again);
        assert!(again.at("readme.txt").exists());
    }

    /// `rcc configuration cleanup` renames the holotree together with the mount in it.
    fn spaces_start_empty_after_the_holotree_was_removed() {
        let world = World::sample();
        let mounted = world.mount("s");
        described(mounted.path());
        let other = world.mount("other");
        std::fs::write(other.at("mine"), "mine").unwrap();
        let kept = other.state();
        other.unmount();
        let renamed = rcc::cleanup(&world);
        assert!(renamed.join(mounted.identity()).exists(), "the mount moved");
        let again = world.mount("s");
        assert_eq!(again.path(), mounted.path());
        mounted.has_ended_as(&again);
        assert!(again.at("readme.txt").exists());
        let other = world.mount("other");
        assert!(!other.at("mine").exists());
        assert_eq!(std::fs::read_to_string(kept.join("aside.1/upper/mine")).unwrap(), "mine");
    }

    /// rcc writes a catalog seconds before its blobs. A mount waits for the blobs.
    fn mount_waits_for_an_unfinished_recording() {
        let world = World::new();
        let recording = rcc::Recording::begin(&world, &one());
        let mut mount = world.holofs().arg("mount").arg(world.home()).arg("s").spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(mount.try_wait().unwrap().is_none(), "it did not wait");
        assert_eq!(world.mounts(), Vec::<PathBuf>::new());
        recording.finish();
        assert_eq!(crate::common::world::wait(&mut mount, "the mount"), 0);
        let space = world.mounts().remove(0);
        assert_eq!(module(&space), "VALUE = 1\n");
        assert_eq!(world.run(["unmount", "s"]).code, 0);
    }

    /// A mount waits only up to its limit. It also waits for a catalog that is incomplete.
    fn recording_that_takes_too_long_is_reported() {
        let world = World::new();
        let recording = rcc::Recording::begin(&world, &one());
        let refused = try_mount(&world, &["--lock-timeout", "0.2"]);
        assert_eq!(refused.code, 12, "{refused:?}");
        assert!(refused.stderr.contains("being recorded") && refused.stderr.contains("missing"), "{refused:?}");
        recording.finish();
        let mounted = world.mount("s");
        assert!(mounted.output.get("missing_blobs").is_none(), "{}", mounted.output);
        mounted.unmount();
        // Written in place: for a moment the old name has half a catalog.
        let catalog = one().catalog(&world.hololib());
        let whole = std::fs::read(&catalog).unwrap();
        for length in [whole.len() - 40, 0] {
            let lock = rcc::lock(&world.base().join("global.lck"));
            std::fs::write(&catalog, &whole[..length]).unwrap();
            let mut mount = world.holofs().arg("mount").arg(world.home()).arg("s").spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(300));
            assert!(mount.try_wait().unwrap().is_none(), "it did not wait");
            std::fs::write(&catalog, &whole).unwrap();
            drop(lock);
            assert_eq!(crate::common::world::wait(&mut mount, "the mount"), 0);
            assert_eq!(world.run(["unmount", "s"]).code, 0);
        }
    }

    /// Missing blobs are reported if nobody is about to write them, and the mount works without them.
    fn missing_blobs_are_reported() {
        let world = World::with(&one());
        std::fs::remove_file(one().blob(&world.hololib(), "lib/module.py")).unwrap();
        let told = try_mount(&world, &[]);
        assert_eq!(told.code, 0, "{told:?}");
        assert!(told.stderr.contains("lacks 1 of the environment's blobs"), "{told:?}");
        assert_eq!(world.run(["unmount", "s"]).code, 0);
        // The report repeats at each mount until the blobs exist.
        let mounted = world.mount("s");
        assert_eq!(mounted.output["missing_blobs"], 1);
        mounted.unmount();
        world.add(&one());
        assert!(world.mount("s").output.get("missing_blobs").is_none());
    }

    /// For a known catalog, a mount looks neither at rcc's lock nor at any blob.
    fn known_environment_mounts_without_waiting() {
        let world = World::with(&one());
        world.mount("s").unmount();
        let _lock = rcc::lock(&world.base().join("global.lck"));
        std::fs::remove_file(one().blob(&world.hololib(), "lib/module.py")).unwrap();
        let mounted = world.mount("s");
        assert!(mounted.output.get("missing_blobs").is_none(), "{}", mounted.output);
    }
}
