//! Directories: made, listed, changed while they are listed, removed.

use std::collections::BTreeSet;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::process::Command;

use rustix::io::Errno;

use super::names;
use crate::common::{Library, World, assert_errno, sh};

for_both_users! {
    fn listing_merges_lower_and_upper() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("many/e"), b"").unwrap();
        std::fs::write(mounted.at("many/b"), b"changed").unwrap();
        std::fs::remove_file(mounted.at("many/a")).unwrap();
        std::fs::remove_file(mounted.at("many/c")).unwrap();
        std::fs::write(mounted.at("many/c"), b"again").unwrap();
        assert_eq!(names(&mounted.at("many")), ["b", "c", "d", "e"]);
        assert_eq!(names(&mounted.remount().at("many")), ["b", "c", "d", "e"]);
    }

    fn listed_numbers_and_types_match_stat() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("lib/new"), b"").unwrap();
        std::fs::write(mounted.at("lib/module.py"), b"changed").unwrap();
        std::os::unix::fs::symlink("x", mounted.at("lib/link")).unwrap();
        for dir in ["", "lib", "lib/deep", "bin"] {
            for entry in std::fs::read_dir(mounted.at(dir)).unwrap().map(Result::unwrap) {
                let stat = std::fs::symlink_metadata(entry.path()).unwrap();
                assert_eq!(entry.ino(), stat.ino(), "{:?}", entry.path());
                assert_eq!(entry.file_type().unwrap(), stat.file_type(), "{:?}", entry.path());
            }
        }
    }

    /// Entries that exist during the whole listing are listed once, whatever else is created and removed meanwhile.
    fn listing_while_the_directory_changes() {
        let library = (0..3000).fold(Library::new(), |library, n| library.file(&format!("d/keep-{n:04}"), b""));
        let world = World::with(&library);
        let mounted = world.mount("s");
        let mut seen = BTreeSet::new();
        for (count, entry) in std::fs::read_dir(mounted.at("d")).unwrap().enumerate() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if count % 100 == 0 && count < 3000 {
                std::fs::write(mounted.at(format!("d/new-{count}")), b"").unwrap();
                std::fs::write(mounted.at(format!("d/keep-{count:04}")), b"changed").unwrap();
                if count > 0 {
                    std::fs::remove_file(mounted.at(format!("d/new-{}", count - 100))).unwrap();
                }
            }
            if name.starts_with("keep-") {
                assert!(seen.insert(name.clone()), "{name} was listed twice");
            }
        }
        assert_eq!(seen.len(), 3000);
        assert_eq!(names(&mounted.at("d")).len(), 3001, "the last new entry is missing");
    }

    fn emptied_while_it_is_listed() {
        let library = (0..2000).fold(Library::new(), |library, n| library.file(&format!("d/{n}"), b""));
        let world = World::with(&library);
        let mounted = world.mount("s");
        let mut removed = 0;
        for entry in std::fs::read_dir(mounted.at("d")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
            removed += 1;
        }
        assert_eq!(removed, 2000);
        std::fs::remove_dir(mounted.at("d")).unwrap();
    }

    fn rewinding_lists_again() {
        use rustix::fs::{Dir, Mode, OFlags};
        let world = World::sample();
        let mounted = world.mount("s");
        let fd = rustix::fs::open(mounted.at("many"), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut dir = Dir::read_from(&fd).unwrap();
        let count = |dir: &mut Dir| dir.by_ref().map(Result::unwrap).count();
        assert_eq!(count(&mut dir), 6);
        std::fs::write(mounted.at("many/later"), b"").unwrap();
        dir.rewind();
        assert_eq!(count(&mut dir), 7);
    }

    fn rm_rf_of_a_lower_directory() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("lib/deep/new"), b"").unwrap();
        sh(Command::new("rm").arg("-rf").arg(mounted.at("lib")));
        assert_errno(std::fs::metadata(mounted.at("lib")), Errno::NOENT);
        assert!(!names(mounted.path()).contains(&"lib".to_owned()));
        let mounted = mounted.remount();
        assert_errno(std::fs::metadata(mounted.at("lib/module.py")), Errno::NOENT);
        // A directory of the same name is new and empty: no entry of the old directory appears in it.
        std::fs::create_dir(mounted.at("lib")).unwrap();
        assert_eq!(names(&mounted.at("lib")), Vec::<String>::new());
        std::fs::write(mounted.at("lib/only"), b"").unwrap();
        assert_eq!(names(&mounted.remount().at("lib")), ["only"]);
    }

    fn rm_rf_of_everything() {
        let world = World::sample();
        let mounted = world.mount("s");
        sh(Command::new("sh").arg("-c").arg(format!("rm -rf '{0}'/* '{0}'/.[!.]*", mounted.path().display())));
        assert_eq!(names(mounted.path()), Vec::<String>::new());
        assert_eq!(names(mounted.remount().path()), Vec::<String>::new());
    }

    fn mkdir_and_rmdir() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_errno(std::fs::create_dir(mounted.at("lib")), Errno::EXIST);
        assert_errno(std::fs::create_dir(mounted.at("readme.txt")), Errno::EXIST);
        assert_errno(std::fs::create_dir(mounted.at("no/parent")), Errno::NOENT);
        assert_errno(std::fs::remove_dir(mounted.at("lib")), Errno::NOTEMPTY);
        assert_errno(std::fs::remove_dir(mounted.at("readme.txt")), Errno::NOTDIR);
        assert_errno(std::fs::remove_file(mounted.at("lib")), Errno::ISDIR);
        assert_errno(std::fs::remove_dir(mounted.at("nothing")), Errno::NOENT);
        std::fs::create_dir_all(mounted.at("new/one/two")).unwrap();
        assert_eq!(std::fs::metadata(mounted.at("new")).unwrap().nlink(), 3);
        std::fs::remove_dir(mounted.at("new/one/two")).unwrap();
        assert_eq!(std::fs::metadata(mounted.at("new/one")).unwrap().nlink(), 2);
        std::fs::remove_dir(mounted.at("hollow/inner")).unwrap();
        std::fs::remove_dir(mounted.at("hollow")).unwrap();
        assert!(!mounted.remount().at("hollow").exists());
    }

    fn removed_directory_that_is_still_open() {
        let world = World::sample();
        let mounted = world.mount("s");
        let open = std::fs::File::open(mounted.at("hollow/inner")).unwrap();
        std::fs::remove_dir(mounted.at("hollow/inner")).unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        let made = rustix::fs::openat(
            &open,
            "file",
            rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
            rustix::fs::Mode::RUSR,
        );
        assert_eq!(made.map(|_| ()), Err(Errno::NOENT));
    }

    /// A name that is renamed away and back after it was listed is not listed again.
    fn listing_that_renames_entries_ends() {
        let library = (0..500).fold(Library::new(), |library, n| library.file(&format!("d/lower-{n}"), b""));
        let world = World::with(&library);
        let mounted = world.mount("s");
        let dir = mounted.at("d");
        for n in 0..1500 {
            std::fs::write(dir.join(format!("new-{n}")), b"").unwrap();
        }
        let mut met = BTreeSet::new();
        for (count, entry) in std::fs::read_dir(&dir).unwrap().enumerate() {
            assert!(count < 6000, "the listing does not end after three times the number of names");
            let path = entry.unwrap().path();
            std::fs::rename(&path, dir.join("aside")).unwrap();
            std::fs::rename(dir.join("aside"), &path).unwrap();
            met.insert(path);
        }
        met.remove(&dir.join("aside"));
        assert_eq!(met.len(), 2000, "a name was never listed");
        // As on ext4, a renamed entry may be listed again, but the listing must end.
        let renamed = std::fs::read_dir(&dir).unwrap().take(100_000).map(Result::unwrap).map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            std::fs::rename(entry.path(), dir.join(format!("x{}", name.trim_start_matches('x')))).unwrap();
        });
        assert!(renamed.count() < 10_000);
        assert_eq!(names(&dir).len(), 2000);
        assert!(names(&dir).iter().all(|name| name.starts_with('x')));
    }

    /// What `tar` sees: a change deeper in the tree does not change the times of a directory, neither immediately nor
    /// later.
    fn change_below_keeps_directory_times() {
        let world = World::sample();
        let mounted = world.mount("s");
        let times = |mounted: &crate::common::Mounted<'_>, path: &str| {
            let stat = std::fs::metadata(mounted.at(path)).unwrap();
            (stat.ctime(), stat.ctime_nsec(), stat.mtime(), stat.mtime_nsec())
        };
        std::fs::write(mounted.at("new"), b"").unwrap();
        std::fs::write(mounted.at("lib/new"), b"").unwrap();
        let before = [times(&mounted, ""), times(&mounted, "lib"), times(&mounted, "lib/deep")];
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(mounted.at("lib/deep/other.txt"), b"changed").unwrap();
        std::fs::write(mounted.at("lib/module.py"), b"changed").unwrap();
        let after = |mounted: &crate::common::Mounted<'_>| {
            drop((names(mounted.path()), names(&mounted.at("lib")), names(&mounted.at("lib/deep"))));
            [times(mounted, ""), times(mounted, "lib"), times(mounted, "lib/deep")]
        };
        assert_eq!(after(&mounted), before);
        let mounted = mounted.remount();
        assert_eq!(after(&mounted), before);
        // A change of the directory itself is visible.
        std::fs::set_permissions(mounted.at("lib/deep"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(mounted.at("lib/newer"), b"").unwrap();
        std::fs::create_dir(mounted.at("lib/deep/er/made")).unwrap();
        std::fs::rename(mounted.at("lib/deep/er"), mounted.at("lib/deep/re")).unwrap();
        for path in ["lib/deep", "lib", "lib/deep/re"] {
            assert!(times(&mounted, path) > before[0], "{path}");
        }
        assert_eq!(times(&mounted, ""), before[0]);
    }

    /// A directory with the setgid bit gives its group to new entries.
    fn setgid_directory_is_inherited() {
        use std::os::unix::fs::PermissionsExt;
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::create_dir(mounted.at("shared")).unwrap();
        std::fs::set_permissions(mounted.at("shared"), std::fs::Permissions::from_mode(0o2775)).unwrap();
        std::fs::create_dir(mounted.at("shared/below")).unwrap();
        assert_eq!(std::fs::metadata(mounted.at("shared/below")).unwrap().mode() & 0o2000, 0o2000);
        if crate::common::as_user::is_root() {
            std::os::unix::fs::chown(mounted.at("shared"), None, Some(4321)).unwrap();
            std::fs::set_permissions(mounted.at("shared"), std::fs::Permissions::from_mode(0o2775)).unwrap();
            std::fs::write(mounted.at("shared/file"), b"").unwrap();
            assert_eq!(std::fs::metadata(mounted.at("shared/file")).unwrap().gid(), 4321);
        }
    }

    fn odd_names() {
        let world = World::sample();
        let mounted = world.mount("s");
        use std::os::unix::ffi::OsStrExt;
        for name in [&b"new\nline"[..], b"\xff\xfe not utf-8", b"-dash", b"..dots", b" ", b"back\\slash", b"*?"] {
            let path = mounted.at(std::ffi::OsStr::from_bytes(name));
            std::fs::write(&path, name).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), name);
        }
        assert_eq!(std::fs::read_dir(mounted.remount().path()).unwrap().count(), 7 + 12);
    }
}
