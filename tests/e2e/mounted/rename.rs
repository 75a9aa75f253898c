//! Renaming files and directories, lower and upper, over others, exchanged, and refused.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::{ino, names};
use crate::common::library::pattern;
use crate::common::manifest::read_tree;
use crate::common::{World, assert_errno};

fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> std::io::Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags).map_err(std::io::Error::from)
}

for_both_users! {
    fn lower_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        let before = ino(mounted.at("lib/data.bin"));
        std::fs::rename(mounted.at("lib/data.bin"), mounted.at("etc/moved.bin")).unwrap();
        assert_errno(std::fs::metadata(mounted.at("lib/data.bin")), Errno::NOENT);
        assert_eq!(ino(mounted.at("etc/moved.bin")), before);
        let mounted = mounted.remount();
        assert_eq!(ino(mounted.at("etc/moved.bin")), before);
        assert!(std::fs::read(mounted.at("etc/moved.bin")).unwrap() == pattern(300_000));
        assert_errno(std::fs::metadata(mounted.at("lib/data.bin")), Errno::NOENT);
    }

    fn relocated_file_keeps_its_bytes() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::rename(mounted.at("etc/prefix.conf"), mounted.at("prefix.moved")).unwrap();
        let want = format!("prefix=/x/{}/lib\n", mounted.identity());
        assert_eq!(std::fs::read_to_string(mounted.at("prefix.moved")).unwrap(), want);
        assert_eq!(std::fs::read_to_string(mounted.remount().at("prefix.moved")).unwrap(), want);
    }

    fn upper_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), b"new").unwrap();
        let before = ino(mounted.at("new"));
        std::fs::rename(mounted.at("new"), mounted.at("lib/deep/newer")).unwrap();
        assert_eq!(ino(mounted.at("lib/deep/newer")), before);
        let mounted = mounted.remount();
        assert_eq!(std::fs::read(mounted.at("lib/deep/newer")).unwrap(), b"new");
        assert_eq!(ino(mounted.at("lib/deep/newer")), before);
        assert!(!mounted.at("new").exists());
    }

    /// Editors and pip save a file this way.
    fn new_file_over_a_lower_one_that_is_open() {
        let world = World::sample();
        let mounted = world.mount("s");
        let mut old = File::open(mounted.at("readme.txt")).unwrap();
        std::fs::write(mounted.at("readme.tmp"), b"the new text").unwrap();
        std::fs::rename(mounted.at("readme.tmp"), mounted.at("readme.txt")).unwrap();
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"the new text");
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello, space\n");
        drop(old);
        assert_eq!(std::fs::read(mounted.remount().at("readme.txt")).unwrap(), b"the new text");
    }

    fn lower_file_over_an_open_upper_one() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), b"to be replaced").unwrap();
        let old = File::options().read(true).write(true).open(mounted.at("new")).unwrap();
        std::fs::rename(mounted.at("readme.txt"), mounted.at("new")).unwrap();
        old.write_all_at(b"TO", 0).unwrap();
        let mut got = [0; 14];
        old.read_exact_at(&mut got, 0).unwrap();
        assert_eq!(&got, b"TO be replaced");
        assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"hello, space\n");
    }

    fn lower_directory() {
        let world = World::sample();
        let mounted = world.mount("s");
        let (dir, leaf) = (ino(mounted.at("lib")), ino(mounted.at("lib/deep/er/leaf.txt")));
        let mut want = read_tree(&mounted.at("lib"));
        std::fs::rename(mounted.at("lib"), mounted.at("etc/library")).unwrap();
        assert_errno(std::fs::metadata(mounted.at("lib")), Errno::NOENT);
        assert_eq!(ino(mounted.at("etc/library")), dir);
        assert_eq!(ino(mounted.at("etc/library/deep/er/leaf.txt")), leaf);
        let mounted = mounted.remount();
        assert_eq!(read_tree(&mounted.at("etc/library")), want);
        assert_eq!(ino(mounted.at("etc/library")), dir);
        assert_eq!(ino(mounted.at("etc/library/deep/er/leaf.txt")), leaf);

        // Then: a change inside, a second rename, and a lower directory moved out of it.
        std::fs::write(mounted.at("etc/library/module.py"), b"changed").unwrap();
        std::fs::rename(mounted.at("etc/library/deep/er"), mounted.at("er")).unwrap();
        std::fs::rename(mounted.at("etc/library"), mounted.at("third")).unwrap();
        let mounted = mounted.remount();
        assert_eq!(names(&mounted.at("third")), ["data.bin", "deep", "module.py"]);
        assert_eq!(names(&mounted.at("third/deep")), ["other.txt"]);
        assert_eq!(std::fs::read(mounted.at("er/leaf.txt")).unwrap(), b"leaf\n");
        assert_eq!(std::fs::read(mounted.at("third/module.py")).unwrap(), b"changed");
        assert_eq!(ino(mounted.at("er/leaf.txt")), leaf);
        want.clear();
    }

    fn lower_directory_costs_no_copy() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::rename(mounted.at("lib"), mounted.at("moved")).unwrap();
        let entries = mounted.upper_entries();
        assert!(entries.len() <= 2, "{entries:?}");
    }

    /// After a rename away and a new directory of the same name, neither shows entries of the other.
    fn old_name_is_free() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::rename(mounted.at("lib"), mounted.at("moved")).unwrap();
        std::fs::create_dir(mounted.at("lib")).unwrap();
        std::fs::write(mounted.at("lib/mine"), b"").unwrap();
        let mounted = mounted.remount();
        assert_eq!(names(&mounted.at("lib")), ["mine"]);
        assert_eq!(names(&mounted.at("moved")), ["data.bin", "deep", "module.py"]);
    }

    fn there_and_back_again() {
        let world = World::sample();
        let mounted = world.mount("s");
        let want = read_tree(mounted.path());
        for (one, other) in [("lib", "away"), ("readme.txt", "lib/r"), ("link-to-file", "l"), ("hollow", "lib/h")] {
            std::fs::rename(mounted.at(one), mounted.at(other)).unwrap();
            std::fs::rename(mounted.at(other), mounted.at(one)).unwrap();
        }
        assert_eq!(read_tree(mounted.path()), want);
        assert_eq!(read_tree(mounted.remount().path()), want);
    }

    fn directory_over_an_empty_one_only() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_errno(std::fs::rename(mounted.at("lib"), mounted.at("many")), Errno::NOTEMPTY);
        assert_errno(std::fs::rename(mounted.at("lib"), mounted.at("readme.txt")), Errno::NOTDIR);
        assert_errno(std::fs::rename(mounted.at("readme.txt"), mounted.at("lib")), Errno::ISDIR);
        assert_errno(std::fs::rename(mounted.at("lib"), mounted.at("lib/deep/self")), Errno::INVAL);
        std::fs::rename(mounted.at("lib"), mounted.at("hollow/inner")).unwrap();
        assert_eq!(names(&mounted.at("hollow/inner")), ["data.bin", "deep", "module.py"]);
        assert_eq!(names(&mounted.remount().at("hollow/inner")), ["data.bin", "deep", "module.py"]);
    }

    /// A lower directory whose entries were all removed is empty, whatever the lower has below it.
    fn directory_over_an_emptied_lower_one() {
        let world = World::sample();
        let mounted = world.mount("s");
        for name in names(&mounted.at("many")) {
            std::fs::remove_file(mounted.at("many").join(name)).unwrap();
        }
        std::fs::rename(mounted.at("etc"), mounted.at("many")).unwrap();
        assert_eq!(names(&mounted.at("many")), ["prefix.conf"]);
        assert_eq!(names(&mounted.remount().at("many")), ["prefix.conf"]);
    }

    fn noreplace() {
        let world = World::sample();
        let mounted = world.mount("s");
        let (lower, free) = (mounted.at("readme.txt"), mounted.at("free"));
        let flags = RenameFlags::NOREPLACE;
        assert_errno(rename_with(&lower, &mounted.at("secret"), flags), Errno::EXIST);
        assert_errno(rename_with(&lower, &mounted.at("lib"), flags), Errno::EXIST);
        rename_with(&lower, &free, flags).unwrap();
        assert_eq!(std::fs::read(&free).unwrap(), b"hello, space\n");
        // The old name is free again.
        rename_with(&mounted.at("secret"), &lower, flags).unwrap();
        assert_eq!(std::fs::read(&lower).unwrap(), b"private\n");
    }

    fn exchange() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), b"new").unwrap();
        std::fs::create_dir(mounted.at("newdir")).unwrap();
        let flags = RenameFlags::EXCHANGE;
        let pairs = [
            ("readme.txt", "lib/module.py"), // two lower files
            ("new", "secret"),               // upper and lower
            ("lib", "newdir"),               // a lower directory with a new one
            ("many", "bin"),                 // two lower directories
            ("empty", "hollow"),             // a file with a directory
        ];
        for (one, two) in pairs {
            let (one, two) = (mounted.at(one), mounted.at(two));
            let (first, second) = (ino(&one), ino(&two));
            rename_with(&one, &two, flags).unwrap();
            assert_eq!((ino(&two), ino(&one)), (first, second), "{one:?}");
        }
        let check = |at: &dyn Fn(&str) -> std::path::PathBuf| {
            assert_eq!(std::fs::read(at("readme.txt")).unwrap(), b"VALUE = 42\n");
            assert_eq!(std::fs::read(at("secret")).unwrap(), b"new");
            assert_eq!(std::fs::read(at("new")).unwrap(), b"private\n");
            assert_eq!(std::fs::read(at("newdir/module.py")).unwrap(), b"hello, space\n");
            assert_eq!(names(&at("lib")), Vec::<String>::new());
            assert_eq!(names(&at("bin")), ["a", "b", "c", "d"]);
            assert_eq!(names(&at("many")), ["tool"]);
            assert_eq!(names(&at("empty")), ["inner"]);
            assert_eq!(std::fs::metadata(at("hollow")).unwrap().len(), 0);
        };
        check(&|path| mounted.at(path));
        let mounted = mounted.remount();
        check(&|path| mounted.at(path));
        assert_errno(rename_with(&mounted.at("nothing"), &mounted.at("new"), flags), Errno::NOENT);
        assert_errno(rename_with(&mounted.at("new"), &mounted.at("nothing"), flags), Errno::NOENT);
    }

    /// While a file is renamed back and forth, one of the two names always exists.
    fn is_atomic_for_others() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("config.new"), b"x").unwrap();
        std::thread::scope(|scope| {
            let looker = scope.spawn(|| {
                for _ in 0..2000 {
                    std::fs::read(mounted.at("readme.txt")).unwrap();
                }
            });
            for round in 0..200 {
                std::fs::write(mounted.at("readme.tmp"), format!("version {round}")).unwrap();
                std::fs::rename(mounted.at("readme.tmp"), mounted.at("readme.txt")).unwrap();
            }
            looker.join().unwrap();
        });
    }

    fn out_of_the_mount_is_exdev() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_errno(std::fs::rename(mounted.at("readme.txt"), world.path().join("out")), Errno::XDEV);
    }
}
