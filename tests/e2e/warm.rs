//! Unpacking before the first use, by `holofs warm` and by `holofs mount --prefetch`.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use crate::common::as_user::{is_root, root_or_skip};
use crate::common::image::Image;
use crate::common::library::pattern;
use crate::common::world::finish;
use crate::common::{Library, World, assert_errno, files_below, wait_until};

fn library() -> Library {
    Library::new()
        .file("lib/large.so", &pattern(2_000_000))
        .file("lib/other.so", &pattern(700_001))
        .file("lib/again.so", &pattern(700_001))
        .file("lib/small.py", b"VALUE = 1\n")
}

for_both_users! {
    fn warm_unpacks_every_large_blob_once() {
        let world = World::with(&library());
        let output = world.json(["warm", world.home().to_str().unwrap(), "s"]);
        assert_eq!((output["blobs"].as_u64(), output["fetched"].as_u64()), (Some(2), Some(2)), "{output}");
        assert_eq!(output["bytes_fetched"], 2_700_001, "{output}");
        assert_eq!(world.raw_copies().len(), 2);
        let blueprint = output["blueprint"].as_str().unwrap().to_owned();
        let output = world.json(["warm", world.home().to_str().unwrap(), &blueprint[..8]]);
        assert_eq!((output["blobs"].as_u64(), output["fetched"].as_u64()), (Some(2), Some(0)), "{output}");
        let mounted = world.mount("s");
        assert_eq!(std::fs::read(mounted.at("lib/large.so")).unwrap(), pattern(2_000_000));
    }

    fn warm_reports_bad_blobs_and_unpacks_the_rest() {
        let world = World::with(&library());
        let bad = files_below(&world.hololib().join("library"))
            .into_iter()
            .map(|path| world.hololib().join("library").join(path))
            .max_by_key(|path| path.metadata().unwrap().len())
            .unwrap();
        std::fs::write(&bad, b"\x1f\x8bnothing").unwrap();
        let done = world.run(["warm", world.home().to_str().unwrap(), "s"]);
        assert_eq!(done.code, 11, "{done:?}");
        assert!(done.stderr.contains("lib/") && done.stderr.contains("corrupt"), "{done:?}");
        assert_eq!(world.raw_copies().len(), 1);
    }

    fn warm_refuses_missing_libraries_and_profiles() {
        let world = World::with(&library());
        let home = world.home();
        let home = home.to_str().unwrap();
        assert_eq!(world.run(["warm", "/nonexistent", "s"]).code, 3);
        assert_eq!(world.run(["warm", home, "s", "--profile"]).code, 6, "nothing was mounted yet");
        assert_eq!(world.run(["mount", home, "s", "--prefetch=/nonexistent"]).code, 6);
    }

    fn library_whose_catalogs_cannot_be_listed_is_a_failure_of_the_library() {
        if is_root() {
            return; // Root can list any directory.
        }
        let world = World::with(&library());
        let catalogs = world.hololib().join("catalog");
        let allow = |mode| std::fs::set_permissions(&catalogs, Permissions::from_mode(mode)).unwrap();
        allow(0o000);
        for command in ["warm", "mount"] {
            let done = world.run([command, world.home().to_str().unwrap(), "s"]);
            assert_eq!(done.code, 3, "{done:?}");
            assert_eq!(done.stderr.matches("hololib/catalog").count(), 1, "{done:?}");
        }
        allow(0o755);
    }

    /// A mount unpacks what the previous mount read, and nothing else.
    fn prefetch_unpacks_what_was_read_before() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        std::fs::read(mounted.at("lib/large.so")).unwrap();
        mounted.unmount();
        std::fs::remove_dir_all(world.state().join("cache/blobs")).unwrap();
        let mounted = world.mount_with("s", &["--prefetch"]);
        wait_until("the prefetch", || world.raw_copies().len() == 1);
        mounted.unmount();
        // A damaged profile is ignored, and the mount works.
        for entry in std::fs::read_dir(world.state().join("cache/profiles")).unwrap() {
            std::fs::write(entry.unwrap().path(), "nonsense").unwrap();
        }
        let mounted = world.mount_with("t", &["--prefetch"]);
        assert_eq!(std::fs::read(mounted.at("lib/other.so")).unwrap(), pattern(700_001));
    }

    /// A large blob is read while it is unpacked. If it turns out to be bad, none of its bytes stay readable.
    fn bad_large_blob_leaves_no_readable_bytes() {
        let mut content = pattern(3_000_000);
        let library = Library::new().file("lib/large.so", &content);
        let world = World::with(&library);
        content[2_999_999] ^= 1;
        let blobs = files_below(&world.hololib().join("library"));
        let blob = blobs.into_iter().map(|path| world.hololib().join("library").join(path));
        let blob = blob.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        std::fs::write(&blob, crate::common::library::gzip(&content)).unwrap();
        let mounted = world.mount("s");
        assert_errno(std::fs::read(mounted.at("lib/large.so")).map(drop), rustix::io::Errno::IO);
        let begin = || {
            use std::io::Read;
            let mut bytes = [0; 10];
            std::fs::File::open(mounted.at("lib/large.so")).and_then(|mut file| file.read_exact(&mut bytes))
        };
        wait_until("the first bytes to become unreadable", || begin().is_err());
        assert!(begin().is_err(), "the first bytes became readable again");
        let log = std::fs::read_to_string(mounted.state().join("log")).unwrap();
        assert!(log.contains("lib/large.so") && log.contains("corrupt"), "{log}");
    }
}

/// What does not fit on the disk is not said to be unpacked.
#[test]
fn warm_fails_when_the_disk_is_full() {
    if !root_or_skip() {
        return;
    }
    let parts = pattern(12_000_000);
    let library = parts.chunks(4_000_000).zip(["a", "b", "c"]);
    let library = library.fold(Library::new(), |library, (bytes, name)| library.file(name, bytes));
    let (world, disk) = (World::with(&library), Image::new("ext4", 10));
    let mut command = world.holofs();
    command.env("HOLOFS_HOME", disk.path().join("holofs")).args(["warm", "auto", "s"]);
    let done = finish(&mut command);
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{done:?}");
    assert!(
        done.stderr.contains("No space left") && done.stderr.contains("try: free some space"),
        "{done:?}"
    );
}
