//! Where a space is mounted, and where its changes and its cache are kept.

use std::path::Path;

use crate::common::world::Done;
use crate::common::{Mounted, World, files_below, wait_until};

fn arguments<'a>(world: &'a World, home: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    assert_eq!(world.home(), Path::new(home));
    [&["mount", home], rest].concat()
}

/// Runs `holofs mount HOME REST`.
fn mount(world: &World, rest: &[&str]) -> Done {
    let home = world.home();
    world.run(arguments(world, home.to_str().unwrap(), rest))
}

fn mounted<'w>(world: &'w World, space: &str, rest: &[&str]) -> Mounted<'w> {
    let home = world.home();
    let args = arguments(world, home.to_str().unwrap(), &[&[space], rest].concat());
    Mounted::by(world, space, world.holofs().args(args).arg("--json"))
}

fn below(world: &World, name: &str) -> String {
    world.path().join(name).to_str().unwrap().to_owned()
}

/// Whether a repeated mount found the space mounted.
fn mounted_again(world: &World, rest: &[&str]) -> Option<bool> {
    let home = world.home();
    world.json(arguments(world, home.to_str().unwrap(), rest))["reused"].as_bool()
}

#[track_caller]
fn refused(done: &Done, code: i32, what: &str) {
    assert_eq!(done.code, code, "{done:?}");
    assert!(done.stdout.is_empty() && done.stderr.contains(what), "{done:?}");
}

for_both_users! {
    fn unmanaged_space_has_rccs_name_and_is_found_by_its_own() {
        let world = World::sample();
        let mounted = mounted(&world, "s", &["--unmanaged"]);
        // The name of rcc's vectors, for the controller `user`.
        assert!(mounted.identity().starts_with("UNMNGED_5a1fac3_"), "{mounted:?}");
        std::fs::write(mounted.at("new"), "new").unwrap();
        assert_eq!(world.json(["status", "s"])["state"], "mounted");
        assert_eq!(world.run(["path", "s"]).stdout.trim_end(), mounted.path().to_str().unwrap());
        assert_eq!(world.run(["unmount", "s"]).code, 0);
        mounted.has_ended();
        let again = self::mounted(&world, "s", &["--unmanaged"]);
        assert_eq!(std::fs::read(again.at("new")).unwrap(), b"new");
    }

    fn mount_is_anywhere() {
        let world = World::sample();
        let place = below(&world, "env");
        let done = mount(&world, &[&place]);
        assert_eq!((done.code, done.stdout.trim_end(), done.stderr.as_str()), (0, place.as_str(), ""), "{done:?}");
        let space = self::mounted(&world, &place, &["--foreign"]);
        assert_eq!(space.output["reused"], true);
        let script = std::fs::read_to_string(space.at("bin/tool")).unwrap();
        let named = space.output["identity"].as_str().unwrap();
        assert!(script.contains(&format!("/somewhere/{named}/bin/tool")), "{script}");
        std::fs::write(space.at("new"), "new").unwrap();
        // rcc has no files beside it.
        assert!(files_below(&world.base()).is_empty());
        let here = std::fs::read_dir(world.path()).unwrap().filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().contains("meta"));
        assert_eq!(here.count(), 0);
        assert_eq!(world.json(["status", &place])["state"], "mounted");
        assert_eq!(world.run(["path", &place]).stdout.trim_end(), place);
        assert_eq!(world.run(["unmount", &place]).code, 0);
        space.has_ended();
        assert_eq!(world.json(["status", &place])["state"], "unmounted");
        let again = self::mounted(&world, &place, &["--foreign"]);
        assert_eq!(std::fs::read(again.at("new")).unwrap(), b"new");
    }

    fn foreign_mount_is_no_mount_on_the_spaces_own_directory() {
        let world = World::sample();
        let (name, place) = ("a-name-of-24-bytes-here!", below(&world, "a-name-of-24-bytes-here!"));
        let foreign = self::mounted(&world, &place, &["--foreign"]);
        assert_eq!(foreign.output["identity"], name);
        let own = world.base().join(name);
        refused(&mount(&world, &[own.to_str().unwrap()]), 7, "no --foreign");
        drop(foreign);
        assert_eq!(self::mounted(&world, own.to_str().unwrap(), &[]).path(), own);
    }

    fn link_leads_to_the_mountpoint() {
        let world = World::sample();
        let link = below(&world, "link");
        let space = mounted(&world, "s", &["--link", &link]);
        assert_eq!(std::fs::read_link(&link).unwrap(), space.path());
        assert_eq!(std::fs::read(Path::new(&link).join("readme.txt")).unwrap(), b"hello, space\n");
        let other = mounted(&world, "t", &["--link", &link]);
        assert_eq!(std::fs::read_link(&link).unwrap(), other.path());
    }

    fn changes_can_be_kept_elsewhere() {
        let world = World::sample();
        let dir = below(&world, "changes");
        let space = mounted(&world, "s", &["--upper-dir", &dir]);
        std::fs::write(space.at("new"), "new").unwrap();
        let identity = space.identity().to_owned();
        let upper = Path::new(&dir).join(&identity).join("upper");
        assert!(upper.join("new").is_file());
        refused(&mount(&world, &["s", "--upper-dir", &below(&world, "other")]), 7, "--upper-dir");
        assert_eq!(world.json(["status", "s"])["state"], "mounted");
        drop(space);
        // The place is remembered.
        let space = mounted(&world, "s", &[]);
        assert_eq!(std::fs::read(space.at("new")).unwrap(), b"new");
        drop(space);
        refused(&mount(&world, &["s", "--upper-dir", &below(&world, "other")]), 7, "its changes are kept in");
        assert!(upper.join("new").is_file());
        drop(mounted(&world, "s", &["--upper-dir", &dir]));
    }

    fn killed_daemon_leaves_no_mount_with_auto_unmount() {
        let world = World::sample();
        let mut space = mounted(&world, "s", &["-o", "auto_unmount"]);
        assert_eq!(mounted_again(&world, &["s", "--auto-unmount"]), Some(true));
        // A mount that goes on in another process is watched, too.
        (0..2).for_each(|_| space.kill_keeper());
        assert!(space.at("readme.txt").is_file());
        space.kill();
        wait_until("the dead mount to be unmounted", || world.mounts().is_empty());
        assert_eq!(world.json(["status", "s"])["state"], "unmounted");
        let plain = mounted(&world, "s", &[]);
        refused(&mount(&world, &["s", "--auto-unmount"]), 7, "--auto-unmount");
        drop(plain);
    }

    fn cache_can_be_elsewhere() {
        let world = World::sample();
        let dir = below(&world, "cache");
        let space = mounted(&world, "s", &["--cache-dir", &dir]);
        assert_eq!(std::fs::read(space.at("lib/data.bin")).unwrap().len(), 300_000);
        std::fs::write(space.at("lib/data.bin"), "x").unwrap();
        assert!(Path::new(&dir).join("blobs").is_dir() && !world.state().join("cache").exists());
        refused(&mount(&world, &["s", "--cache-dir", &below(&world, "other")]), 7, "--cache-dir");
        drop(space);
        let by_variable = world.holofs().args(["config", "--json"]).env("HOLOFS_CACHE_DIR", &dir).output().unwrap();
        let config: serde_json::Value = serde_json::from_slice(&by_variable.stdout).unwrap();
        assert_eq!((&config["cache-dir"]["value"], &config["cache-dir"]["name"]), (&dir.into(), &"HOLOFS_CACHE_DIR".into()));
    }
}

#[test]
fn link_replaces_nothing_but_a_link() {
    let world = World::sample();
    let file = below(&world, "file");
    std::fs::write(&file, "mine").unwrap();
    for (link, why) in [
        (file.clone(), "is not a symbolic link"),
        (below(&world, "none/link"), "its directory does not exist"),
        (world.path().to_str().unwrap().to_owned(), "is not a symbolic link"),
    ] {
        refused(&mount(&world, &["s", "--link", &link]), 7, why);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    assert!(world.mounts().is_empty());
}

#[test]
fn changes_are_not_kept_in_the_library_or_where_others_may_write() {
    let world = World::sample();
    let inside = world.hololib().join("upper");
    refused(&mount(&world, &["s", "--upper-dir", inside.to_str().unwrap()]), 2, "is inside the library");
    let open = world.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    for flag in ["--upper-dir", "--cache-dir"] {
        refused(&mount(&world, &["s", flag, open.to_str().unwrap()]), 4, "open");
    }
    assert!(world.mounts().is_empty());
}
