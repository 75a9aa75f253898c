//! Hard and symbolic links.

use std::fs::{hard_link, remove_file};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use rustix::io::Errno;

use super::ino;
use crate::common::library::pattern;
use crate::common::{World, assert_errno};

for_both_users! {
    fn hard_link_to_a_new_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), b"one").unwrap();
        hard_link(mounted.at("new"), mounted.at("lib/same")).unwrap();
        let stat = |path: &str| std::fs::metadata(mounted.at(path)).unwrap();
        assert_eq!(stat("new").nlink(), 2);
        assert_eq!(stat("new").ino(), stat("lib/same").ino());
        std::fs::write(mounted.at("lib/same"), b"both").unwrap();
        assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"both");
        remove_file(mounted.at("new")).unwrap();
        assert_eq!(stat("lib/same").nlink(), 1);
        assert_eq!(std::fs::read(mounted.at("lib/same")).unwrap(), b"both");
    }

    fn hard_link_to_a_lower_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        let before = ino(mounted.at("lib/data.bin"));
        hard_link(mounted.at("lib/data.bin"), mounted.at("second")).unwrap();
        hard_link(mounted.at("second"), mounted.at("etc/third")).unwrap();
        for path in ["lib/data.bin", "second", "etc/third"] {
            let stat = std::fs::metadata(mounted.at(path)).unwrap();
            assert_eq!((stat.ino(), stat.nlink()), (before, 3), "{path}");
        }
        let mounted = mounted.remount();
        let numbers: Vec<u64> =
            ["lib/data.bin", "second", "etc/third"].iter().map(|path| ino(mounted.at(path))).collect();
        assert_eq!(numbers, [before; 3]);
        std::fs::write(mounted.at("second"), b"shared").unwrap();
        assert_eq!(std::fs::read(mounted.at("lib/data.bin")).unwrap(), b"shared");
        remove_file(mounted.at("lib/data.bin")).unwrap();
        let mounted = mounted.remount();
        assert_errno(std::fs::metadata(mounted.at("lib/data.bin")), Errno::NOENT);
        assert_eq!(std::fs::read(mounted.at("etc/third")).unwrap(), b"shared");
        assert_eq!(std::fs::metadata(mounted.at("etc/third")).unwrap().nlink(), 2);
    }

    fn hard_link_shares_bytes_before_any_write() {
        let world = World::sample();
        let mounted = world.mount("s");
        hard_link(mounted.at("lib/data.bin"), mounted.at("second")).unwrap();
        assert!(std::fs::read(mounted.at("second")).unwrap() == pattern(300_000));
        hard_link(mounted.at("etc/prefix.conf"), mounted.at("conf")).unwrap();
        let want = format!("prefix=/x/{}/lib\n", mounted.identity());
        assert_eq!(std::fs::read_to_string(mounted.at("conf")).unwrap(), want);
    }

    fn hard_link_refusals() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_errno(hard_link(mounted.at("readme.txt"), mounted.at("secret")), Errno::EXIST);
        assert_errno(hard_link(mounted.at("nothing"), mounted.at("x")), Errno::NOENT);
        assert_errno(hard_link(mounted.at("lib"), mounted.at("x")), Errno::PERM);
    }

    /// As with rename(2) of two names of one file (and `ln -f`), nothing happens.
    fn rename_between_two_names_of_one_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        hard_link(mounted.at("readme.txt"), mounted.at("second")).unwrap();
        std::fs::rename(mounted.at("second"), mounted.at("readme.txt")).unwrap();
        assert_eq!(std::fs::metadata(mounted.at("second")).unwrap().nlink(), 2);
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n");
    }

    fn symbolic_link() {
        let world = World::sample();
        let mounted = world.mount("s");
        symlink("../readme.txt", mounted.at("lib/up")).unwrap();
        symlink("nowhere/at all", mounted.at("broken")).unwrap();
        let check = |at: &dyn Fn(&str) -> PathBuf| {
            assert_eq!(std::fs::read_link(at("lib/up")).unwrap(), PathBuf::from("../readme.txt"));
            assert_eq!(std::fs::read(at("lib/up")).unwrap(), b"hello, space\n");
            assert_eq!(std::fs::read_link(at("broken")).unwrap(), PathBuf::from("nowhere/at all"));
            assert_eq!(std::fs::symlink_metadata(at("broken")).unwrap().len(), 14);
            assert_errno(std::fs::metadata(at("broken")), Errno::NOENT);
        };
        check(&|path| mounted.at(path));
        let mounted = mounted.remount();
        check(&|path| mounted.at(path));
    }

    fn symbolic_link_of_any_length() {
        let world = World::sample();
        let mounted = world.mount("s");
        for len in [1, 59, 60, 255, 1024, 4095] {
            let target = "t".repeat(len);
            symlink(&target, mounted.at(format!("link-{len}"))).unwrap();
            let read = std::fs::read_link(mounted.at(format!("link-{len}"))).unwrap();
            assert_eq!(read, PathBuf::from(target));
        }
    }

    fn lower_link_can_be_replaced() {
        let world = World::sample();
        let mounted = world.mount("s");
        let before = ino(mounted.at("link-to-file"));
        std::fs::rename(mounted.at("link-to-file"), mounted.at("moved-link")).unwrap();
        assert_eq!(ino(mounted.at("moved-link")), before);
        symlink("secret", mounted.at("link-to-file")).unwrap();
        remove_file(mounted.at("lib64")).unwrap();
        std::fs::create_dir(mounted.at("lib64")).unwrap();
        let mounted = mounted.remount();
        assert_eq!(std::fs::read_link(mounted.at("moved-link")).unwrap(), PathBuf::from("readme.txt"));
        assert_eq!(std::fs::read_link(mounted.at("link-to-file")).unwrap(), PathBuf::from("secret"));
        assert!(std::fs::symlink_metadata(mounted.at("lib64")).unwrap().is_dir());
        assert_eq!(ino(mounted.at("moved-link")), before);
    }

    fn hard_link_to_a_lower_symbolic_link() {
        let world = World::sample();
        let mounted = world.mount("s");
        let (from, to) = (mounted.at("link-to-file"), mounted.at("second-link"));
        rustix::fs::linkat(rustix::fs::CWD, &from, rustix::fs::CWD, &to, rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(ino(&from), ino(&to));
        assert_eq!(std::fs::symlink_metadata(&to).unwrap().nlink(), 2);
        assert_eq!(std::fs::read_link(&to).unwrap(), PathBuf::from("readme.txt"));
        assert_eq!(std::fs::read_link(mounted.remount().at("second-link")).unwrap(), PathBuf::from("readme.txt"));
    }
}
