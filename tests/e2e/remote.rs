//! Mounts of libraries in object stores. The store is a directory (`file://`), so that nothing else is needed.

use std::path::Path;
use std::process::Command;

use rustix::io::Errno;

use crate::common::library::pattern;
use crate::common::push::{FileStore, WebServer};
use crate::common::{Library, Mounted, World, assert_errno, fixture, wait_until};
use crate::parity::assert_golden;

/// Takes the library of a world away, and gives the store that it was put into.
pub fn pushed(world: &World) -> FileStore {
    let store = FileStore::push(&world.hololib(), &world.path().join("store"));
    std::fs::rename(world.hololib(), world.path().join("original")).unwrap();
    store
}

#[track_caller]
pub fn mount<'w>(world: &'w World, store: &FileStore, space: &str, args: &[&str]) -> Mounted<'w> {
    Mounted::by(
        world,
        space,
        world.holofs().arg("mount").arg(store.url()).arg(space).args(args).arg("--json"),
    )
}

pub fn sample() -> Library {
    Library::sample().file("lib/large.so", &pattern(700_000))
}

for_both_users! {
    fn a_remote_library_equals_the_local_one() {
        for (name, space) in [("basic-gz", "golden-one"), ("basic-raw", "golden-one")] {
            let world = fixture::world(name);
            let store = pushed(&world);
            let mounted = mount(&world, &store, space, &[]);
            assert_golden(&mounted, name, space);
        }
    }
}

for_both_users! {
    fn what_was_read_is_there_without_the_store() {
        let world = World::with(&sample());
        let store = pushed(&world);
        let mut mounted = mount(&world, &store, "s", &[]);
        assert_eq!(std::fs::read(mounted.at("lib/large.so")).unwrap(), pattern(700_000));
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n");
        let done = Command::new(mounted.at("bin/tool")).arg("x").output().unwrap();
        assert!(String::from_utf8_lossy(&done.stdout).contains(mounted.identity()), "{done:?}");
        std::fs::write(mounted.at("readme.txt"), "changed\n").unwrap();
        let url = store.url();
        let status = world.json(["status", "s"]);
        assert_eq!((status["library"].as_str(), status["state"].as_str()), (Some(&*url), Some("mounted")));
        assert!(status["metrics"]["remote_bytes"].as_u64().unwrap() > 0, "{status}");
        assert!(status["metrics"]["remote_requests"].as_u64().unwrap() > 0, "{status}");
        let gone = store.away();
        // The worker that comes next asks for nothing before it answers.
        mounted.kill_worker();
        mounted.kill_keeper();
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"changed\n");
        assert_eq!(std::fs::read(mounted.at("lib/large.so")).unwrap(), pattern(700_000));
        let changes = world.json(["diff", "s"]);
        assert!(changes.to_string().contains("readme.txt"), "{changes}");
        mounted.unmount();
        // Commands about the space do not need the store.
        for command in [&["list"][..], &["status", "s"], &["stats", "s"], &["diff", "s"], &["gc"], &["reset", "s"]] {
            let done = world.run(command);
            assert_eq!(done.code, 0, "{command:?}: {done:?}");
        }
        drop(gone);
        mount(&world, &store, "s", &[]);
    }

    fn a_forged_pack_is_an_error_of_its_files_only() {
        let world = World::with(&sample());
        let store = pushed(&world);
        let blob = |path: &str| sample().blob(&world.path().join("original"), path);
        let bad = std::fs::read(blob("lib/module.py")).unwrap();
        let pack = store.only("packs");
        let whole = std::fs::read(&pack).unwrap();
        let mut bytes = whole.clone();
        let at = bytes.windows(bad.len()).position(|window| window == bad).unwrap();
        bytes[at + 10] ^= 0xff;
        std::fs::write(&pack, bytes).unwrap();
        let large = blob("lib/large.so");
        let large = store.0.join("blobs").join(large.file_name().unwrap());
        let whole_large = std::fs::read(&large).unwrap();
        let file = std::fs::File::options().write(true).open(&large).unwrap();
        file.set_len(whole_large.len() as u64 / 2).unwrap();
        let mounted = mount(&world, &store, "s", &[]);
        assert_errno(std::fs::read(mounted.at("lib/module.py")), Errno::IO);
        assert_errno(std::fs::read(mounted.at("lib/large.so")), Errno::IO);
        for path in ["readme.txt", "lib/data.bin", "lib/deep/er/leaf.txt", "many/a", "many/b", "many/c", "empty"] {
            std::fs::read(mounted.at(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        // Whoever mends the store mends the mount.
        std::fs::write(&pack, whole).unwrap();
        std::fs::write(&large, whole_large).unwrap();
        assert_eq!(std::fs::read(mounted.at("lib/module.py")).unwrap(), b"VALUE = 42\n");
        assert_eq!(std::fs::read(mounted.at("lib/large.so")).unwrap(), pattern(700_000));
    }

    fn offline_mounts_what_is_in_the_cache_and_says_what_is_missing() {
        let world = World::with(&sample());
        let store = pushed(&world);
        let url = store.url();
        let unknown = world.run(["mount", &url, "s", "--offline"]);
        assert_eq!(unknown.code, 6, "{unknown:?}");
        mount(&world, &store, "s", &[]).unmount();
        let _gone = store.away();
        let done = world.run(["mount", &url, "s", "--offline", "--json"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(world.run(["unmount", "s"]).code, 0);
        let mounted = mount(&world, &store, "s", &["--offline"]);
        let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert!(said["missing_files"].as_u64().unwrap() > 5, "{said}");
        assert!(done.stderr.contains("not in the cache"), "{done:?}");
        assert_errno(std::fs::read(mounted.at("lib/large.so")), Errno::IO);
        assert!(std::fs::metadata(mounted.at("lib/large.so")).unwrap().len() == 700_000);
    }

    fn warm_makes_a_space_complete() {
        let world = World::with(&sample());
        let store = pushed(&world);
        let warmed = world.json(["warm", &store.url()]);
        assert_eq!(warmed["fetched"], warmed["blobs"], "{warmed}");
        let mounted = mount(&world, &store, "s", &[]);
        let again = world.json(["warm", "s"]);
        assert_eq!((again["fetched"].as_u64(), &again["blobs"]), (Some(0), &warmed["blobs"]), "{again}");
        let _gone = store.away();
        for path in ["readme.txt", "lib/large.so", "lib/data.bin", "lib/deep/er/leaf.txt", "many/d", "empty"] {
            std::fs::read(mounted.at(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
    }

    fn other_commands_read_a_remote_library() {
        let world = World::with(&sample());
        let store = pushed(&world);
        let url = store.url();
        let catalogs = world.json(["catalogs", &url]);
        assert!(catalogs.get(sample().hash()).is_some(), "{catalogs}");
        let checked = world.run(["check", &url]);
        assert_eq!(checked.code, 0, "{checked:?}");
        let zip = world.path().join("out.zip");
        let done = world.run(["export", &url, "-z", zip.to_str().unwrap(), &sample().hash()]);
        assert_eq!(done.code, 0, "{done:?}");
        let said = world.run(["run", &url, "r", "--", "sh", "-c", "cat $HOLOFS_MOUNT/readme.txt; exit 7"]);
        assert_eq!((said.code, said.stdout.as_str()), (7, "hello, space\n"), "{said:?}");
        let restored = world.run(["restore", &url, "plain"]);
        assert_eq!(restored.code, 0, "{restored:?}");
        let path = Path::new(restored.stdout.trim());
        assert_eq!(std::fs::read(path.join("lib/large.so")).unwrap(), pattern(700_000));
    }

    fn urls_that_cannot_be_used_are_refused() {
        let world = World::sample();
        for (url, code) in [
            ("file:///nonexistent/store", 6),
            ("ftp://host/x", 2),
            ("s3://user:secret@bucket/x", 2),
            ("://", 2),
        ] {
            let done = world.run(["mount", url, "s"]);
            assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{url}: {done:?}");
            assert!(!done.stderr.contains("secret") && done.stderr.contains("try:"), "{done:?}");
            assert!(!Path::new("/ftp:").exists() && !Path::new("/s3:").exists());
        }
        let done = world.run(["record", "file:///nonexistent/store", "-f", "/dev/null", "--", "true"]);
        assert_eq!(done.code, 2, "{done:?}");
    }
}

/// A mount from a web server, which has no lists, so the blueprint is typed.
#[track_caller]
pub fn mount_from<'w>(world: &'w World, server: &WebServer, space: &str, args: &[&str]) -> Mounted<'w> {
    let (url, hash) = (server.url(), many().hash());
    let mut command = world.holofs();
    command.args(["mount", &url, space, "--blueprint", &hash, "--json"]).args(args);
    Mounted::by(world, space, &mut command)
}

/// Many files in several groups.
pub fn many() -> Library {
    let base = Library::sample().file("lib/large.so", &pattern(700_000));
    (0..240).fold(base, |library, n| {
        library.file(&format!("site/{n:03}.py"), format!("VALUE = {n}\n").repeat(20).as_bytes())
    })
}

for_both_users! {
    fn a_store_that_is_silent_blocks_only_who_waits_for_it() {
        let world = World::with(&many());
        let store = pushed(&world);
        let server = WebServer::of(&store);
        let mounted = mount_from(&world, &server, "s", &["--remote-timeout", "3"]);
        let asked = server.asked();
        assert!(asked.len() <= 4, "{asked:?}");
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n");
        assert_eq!(std::fs::read(mounted.at("lib/large.so")).unwrap(), pattern(700_000));
        server.be_silent(true);
        let waiting: Vec<_> = (0..200)
            .map(|n| {
                let path = mounted.at(format!("site/{n:03}.py"));
                std::thread::spawn(move || std::fs::read(path))
            })
            .collect();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let started = std::time::Instant::now();
        // What is cached, and names and attributes, do not wait. The kernel's own cache is asked to forget.
        for path in ["readme.txt", "lib/large.so"] {
            let file = std::fs::File::open(mounted.at(path)).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            std::fs::read(mounted.at(path)).unwrap();
        }
        let listed = Command::new("ls").arg("-lR").arg(mounted.path()).output().unwrap();
        assert!(listed.status.success() && listed.stdout.len() > 10_000);
        std::fs::write(mounted.at("new"), "new").unwrap();
        assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
        assert!(waiting.iter().filter(|waiting| !waiting.is_finished()).count() > 100);
        for read in waiting {
            if let Err(error) = read.join().unwrap() {
                assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
            }
        }
        let status = world.json(["status", "s"]);
        assert!(status["metrics"]["remote_silent_since"].is_u64(), "{status}");
        assert!(status["restarts"] == 0, "{status}");
        let log = std::fs::read_to_string(mounted.state().join("log")).unwrap();
        assert_eq!(log.matches("failed: the object store does not answer").count(), 1, "{log}");
        server.be_silent(false);
        // The kernel asks twice for a read that failed, and the second request is not to wait as long again.
        std::thread::sleep(std::time::Duration::from_millis(300));
        for n in 0..200 {
            std::fs::read(mounted.at(format!("site/{n:03}.py"))).unwrap();
        }
    }

    fn several_mounts_fetch_a_group_once() {
        let world = World::with(&many());
        let store = pushed(&world);
        let server = WebServer::of(&store);
        let spaces: Vec<String> = (0..4).map(|n| format!("s{n}")).collect();
        let mounts: Vec<_> = spaces.iter().map(|space| mount_from(&world, &server, space, &[])).collect();
        server.asked();
        std::thread::scope(|scope| {
            for mounted in &mounts {
                scope.spawn(move || {
                    for n in 0..240 {
                        std::fs::read(mounted.at(format!("site/{n:03}.py"))).unwrap();
                    }
                });
            }
        });
        let asked = server.asked();
        // 240 files and some others, four in a group.
        assert!((60..=70).contains(&asked.len()), "{}", asked.len());
        assert!(asked.iter().all(|name| name.starts_with("packs/")), "{asked:?}");
    }

    fn a_space_at_another_path() {
        let world = World::with(&sample());
        let store = pushed(&world);
        let elsewhere = world.path().join("els/where");
        let done = world.run(["mount", &store.url(), elsewhere.to_str().unwrap()]);
        assert_eq!(done.code, 0, "{done:?}");
        let conf = std::fs::read_to_string(elsewhere.join("etc/prefix.conf"));
        let module = std::fs::read(elsewhere.join("lib/module.py"));
        assert_eq!(world.run(["unmount", elsewhere.to_str().unwrap()]).code, 0);
        assert!(conf.unwrap().starts_with("prefix=/"));
        assert_eq!(module.unwrap(), b"VALUE = 42\n");
    }

    fn what_a_profile_names_is_fetched_before_anybody_asks() {
        let world = World::with(&many());
        let store = pushed_with_profile(&world);
        let server = WebServer::of(&store);
        let mounted = mount_from(&world, &server, "s", &[]);
        wait_until("the profile is fetched", || server.asked().iter().any(|name| name.starts_with("packs/")));
        wait_until("it is kept", || world.raw_copies().len() >= 40);
        server.be_silent(true);
        for n in 0..40 {
            std::fs::read(mounted.at(format!("site/{n:03}.py"))).unwrap();
        }
        server.be_silent(false);
    }

    fn a_read_that_waits_survives_kill_9_of_the_worker() {
        let world = World::with(&many());
        let store = pushed(&world);
        let server = WebServer::of(&store);
        let mounted = mount_from(&world, &server, "s", &[]);
        server.be_silent_from("packs/");
        let path = mounted.at("site/007.py");
        let reader = std::thread::spawn(move || std::fs::read_to_string(path));
        wait_until("the read waits", || server.is_silent());
        mounted.kill_worker();
        assert!(!reader.is_finished());
        server.be_silent_from("nothing");
        server.be_silent(false);
        assert_eq!(reader.join().unwrap().unwrap(), "VALUE = 7\n".repeat(20));
        for n in 0..40 {
            std::fs::read(mounted.at(format!("site/{n:03}.py"))).unwrap();
        }
    }

    fn a_mount_ends_while_the_store_is_silent() {
        let world = World::with(&many());
        let store = pushed_with_profile(&world);
        let server = WebServer::of(&store);
        server.be_silent_from("packs/");
        let mounted = mount_from(&world, &server, "s", &[]);
        wait_until("the mount prefetches", || server.is_silent());
        let started = std::time::Instant::now();
        mounted.unmount();
        assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    }
}

/// Pushes the library of a world with a profile of forty files, and takes the library and the cache away.
pub fn pushed_with_profile(world: &World) -> FileStore {
    let mounted = world.mount("s");
    for n in 0..40 {
        std::fs::read(mounted.at(format!("site/{n:03}.py"))).unwrap();
    }
    mounted.unmount();
    let store = FileStore(world.path().join("store"));
    let done = world.run(["push", world.home().to_str().unwrap(), &store.url()]);
    assert_eq!(done.code, 0, "{done:?}");
    std::fs::remove_dir_all(world.state()).unwrap();
    std::fs::rename(world.hololib(), world.path().join("original")).unwrap();
    store
}
