//! `--verify once|always|never`: which bytes a mount trusts.

use std::fs::FileTimes;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use rustix::io::Errno;

use crate::common::{Library, Mounted, World, assert_errno};

const FILE: &str = "lib/data.bin";

/// Changes the first byte of a file, and leaves its times and its mode as they were.
fn damage(path: &Path) {
    let before = std::fs::metadata(path).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    file.write_all_at(&[!byte[0]], 0).unwrap();
    let times =
        FileTimes::new().set_accessed(before.accessed().unwrap()).set_modified(before.modified().unwrap());
    file.set_times(times).unwrap();
    std::fs::set_permissions(path, before.permissions()).unwrap();
}

fn read(mounted: &Mounted<'_>) -> std::io::Result<u8> {
    std::fs::read(mounted.at(FILE)).map(|bytes| bytes[0])
}

for_both_users! {
    fn copy_in_the_cache_is_verified_again_with_always() {
        let world = World::sample();
        let right = read(&world.mount("s")).unwrap();
        let copies = world.raw_copies();
        let copy = copies.iter().find(|copy| world.state().join("cache/blobs").join(copy).metadata().unwrap().len() == 300_000);
        damage(&world.state().join("cache/blobs").join(copy.unwrap()));
        assert_ne!(read(&world.mount_with("s", &["--verify", "once"])).unwrap(), right);
        assert_eq!(read(&world.mount_with("s", &["--verify", "always"])).unwrap(), right);
        assert_eq!(read(&world.mount("s")).unwrap(), right);
    }

    fn never_trusts_the_library_and_nobody_trusts_its_copies() {
        let library = Library::sample().raw();
        let world = World::with(&library);
        damage(&library.blob(&world.hololib(), FILE));
        let mounted = world.mount_with("s", &["--verify", "never"]);
        read(&mounted).unwrap();
        drop(mounted);
        assert_errno(read(&world.mount("s")), Errno::IO);
        assert_errno(read(&world.mount_with("s", &["--verify", "always"])), Errno::IO);
    }

    fn never_needs_a_library_of_ones_own() {
        let world = World::sample();
        let home = world.home();
        for open in [world.hololib().join("catalog"), world.hololib().join("library"), world.hololib()] {
            let mode = |bits| std::fs::set_permissions(&open, std::fs::Permissions::from_mode(bits)).unwrap();
            mode(0o777);
            let done = world.run(["mount", home.to_str().unwrap(), "s", "--verify", "never"]);
            assert_eq!(done.code, 2, "{done:?}");
            assert!(done.stderr.contains("other users may write to this library"), "{done:?}");
            mode(0o755);
        }
        let mounted = world.mount_with("s", &["--verify", "always"]);
        let other = world.run(["mount", home.to_str().unwrap(), "s", "--verify", "once"]);
        assert!(other.code == 7 && other.stderr.contains("--verify once (in force: always)"), "{other:?}");
        drop(mounted);
        assert_eq!(world.run(["mount", home.to_str().unwrap(), "s", "--verify", "maybe"]).code, 2);
    }
}
