//! Changes are there at the next mount, with the same inode numbers.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::manifest::read_tree;
use crate::common::{Library, World};

/// The inode number of each path.
fn numbers(root: &Path) -> BTreeMap<String, u64> {
    let paths: Vec<String> = read_tree(root).into_keys().collect();
    paths
        .into_iter()
        .map(|path| {
            let number = std::fs::symlink_metadata(root.join(&path)).unwrap().ino();
            (path, number)
        })
        .collect()
}

for_both_users! {
    fn changes_survive_a_remount() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("readme.txt"), b"changed").unwrap();
        std::fs::write(mounted.at("lib/new"), b"new").unwrap();
        std::fs::remove_file(mounted.at("many/a")).unwrap();
        std::fs::create_dir(mounted.at("made")).unwrap();
        std::fs::rename(mounted.at("lib/deep"), mounted.at("made/deep")).unwrap();
        let before = read_tree(mounted.path());
        let mounted = mounted.remount();
        assert_eq!(read_tree(mounted.path()), before);
        assert_eq!(read_tree(mounted.remount().path()), before);
    }

    /// While holofs is not running, the user can read the changes with plain tools.
    fn changes_are_plain_files_when_unmounted() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("readme.txt"), b"changed").unwrap();
        std::fs::create_dir_all(mounted.at("made/below")).unwrap();
        std::fs::write(mounted.at("made/below/work.txt"), b"my work").unwrap();
        let upper = mounted.upper("");
        mounted.unmount();
        assert_eq!(std::fs::read(upper.join("readme.txt")).unwrap(), b"changed");
        assert_eq!(std::fs::read(upper.join("made/below/work.txt")).unwrap(), b"my work");
    }

    fn inode_numbers_stay() {
        let world = World::sample();
        let mounted = world.mount("s");
        let before = numbers(mounted.path());
        let mut distinct: Vec<u64> = before.values().copied().collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), before.len(), "two entries have the same number");
        for path in ["readme.txt", "etc/prefix.conf", "lib/data.bin"] {
            std::fs::write(mounted.at(path), b"changed").unwrap();
        }
        assert_eq!(numbers(mounted.path()), before);
        std::fs::write(mounted.at("new"), b"new").unwrap();
        std::fs::create_dir(mounted.at("lib/newdir")).unwrap();
        let with_new = numbers(mounted.path());
        assert_eq!(numbers(mounted.remount().path()), with_new);
    }

    /// The numbers come from the catalog, so they are the same in another space.
    fn inode_numbers_come_from_the_catalog() {
        let world = World::sample();
        let (one, two) = (world.mount("one"), world.mount("two"));
        assert_eq!(numbers(one.path()), numbers(two.path()));
    }

    fn numbers_of_new_files_are_not_reused_for_lower_ones() {
        let world = World::sample();
        let mounted = world.mount("s");
        let lower = numbers(mounted.path());
        for n in 0..50 {
            std::fs::write(mounted.at(format!("new-{n}")), b"").unwrap();
        }
        for n in 0..50 {
            let number = std::fs::metadata(mounted.at(format!("new-{n}"))).unwrap().ino();
            assert!(!lower.values().any(|other| *other == number));
        }
    }

    fn a_large_tree() {
        let library =
            (0..5000).fold(Library::new(), |library, n| library.file(&format!("d{}/f{n}", n % 50), b"same"));
        let world = World::with(&library);
        let mounted = world.mount("s");
        let before = read_tree(mounted.path());
        assert_eq!(before.len(), 5000 + 50 + 2);
        std::fs::write(mounted.at("d7/f7"), b"changed").unwrap();
        assert_eq!(mounted.upper_entries().len(), 2);
        assert_eq!(read_tree(mounted.remount().path()).len(), before.len());
    }
}
