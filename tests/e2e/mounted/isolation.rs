//! Spaces do not see each other's changes, and nothing changes the library.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::manifest::read_tree;
use crate::common::{Library, Mounted, World, files_below, sh};

/// Everything visible of the library's files, without the usage marks of rcc.
fn library_state(hololib: &Path) -> BTreeMap<PathBuf, (Vec<i64>, Vec<u8>)> {
    let files = files_below(hololib).into_iter().filter(|path| !path.starts_with("used"));
    files
        .map(|path| {
            let stat = std::fs::symlink_metadata(hololib.join(&path)).unwrap();
            let bytes = std::fs::read(hololib.join(&path)).unwrap();
            let times = [stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()];
            (path, ([&times[..], &[i64::from(stat.mode())]].concat(), bytes))
        })
        .collect()
}

fn change_everything(mounted: &Mounted<'_>) {
    let tree = read_tree(mounted.path());
    for path in tree.keys() {
        let path = mounted.at(path);
        let stat = std::fs::symlink_metadata(&path).unwrap();
        if stat.is_file() {
            if stat.mode() & 0o200 == 0 {
                sh(Command::new("chmod").arg("u+w").arg(&path));
            }
            std::fs::write(&path, format!("changed in {}", mounted.space)).unwrap();
        }
    }
    std::fs::rename(mounted.at("lib"), mounted.at("moved")).unwrap();
    std::fs::remove_file(mounted.at("many/a")).unwrap();
    std::fs::write(mounted.at("new"), "new").unwrap();
}

for_both_users! {
    fn a_change_stays_in_its_space() {
        for library in [Library::sample(), Library::sample().raw()] {
            let world = World::with(&library);
            let (one, two) = (world.mount("one"), world.mount("two"));
            let before = read_tree(two.path());
            change_everything(&one);
            assert_eq!(read_tree(two.path()), before);
            // A space that is mounted later, with warm caches, does not see it either.
            let three = world.mount("three");
            let plain = world.path().join(three.identity());
            library.restore(&plain);
            assert_eq!(read_tree(three.path()), read_tree(&plain));
            drop(three);
            assert_eq!(read_tree(two.remount().path()), before);
        }
    }

    fn the_library_is_never_written() {
        for library in [Library::sample(), Library::sample().raw()] {
            let world = World::with(&library);
            let before = library_state(&world.hololib());
            let mark = world.path().join("mark");
            std::thread::sleep(std::time::Duration::from_millis(20));
            std::fs::write(&mark, b"").unwrap();
            let mounted = world.mount("s");
            read_tree(mounted.path());
            change_everything(&mounted);
            sh(Command::new("rm").arg("-rf").arg(mounted.at("moved")));
            mounted.remount().unmount();
            assert!(library_state(&world.hololib()) == before);
            let newer = sh(Command::new("find").arg(world.hololib()).args(["-newer"]).arg(&mark));
            let used = world.hololib().join("used");
            let written: Vec<&str> = newer.lines().filter(|line| !Path::new(line).starts_with(&used)).collect();
            assert_eq!(written, Vec::<&str>::new());
        }
    }

    /// A library on which nothing can be written works too.
    fn read_only_library() {
        let world = World::sample();
        sh(Command::new("chmod").args(["-R", "a-w"]).arg(world.hololib()));
        {
            let mounted = world.mount("s");
            std::fs::write(mounted.at("readme.txt"), b"changed").unwrap();
            assert_eq!(std::fs::read(mounted.remount().at("readme.txt")).unwrap(), b"changed");
        }
        sh(Command::new("chmod").args(["-R", "u+w"]).arg(world.hololib()));
    }

    fn ten_spaces_at_once() {
        let world = World::sample();
        let mounts: Vec<Mounted<'_>> = (0..10).map(|n| world.mount(&format!("space-{n}"))).collect();
        for (n, mounted) in mounts.iter().enumerate() {
            std::fs::write(mounted.at("readme.txt"), format!("number {n}")).unwrap();
        }
        for (n, mounted) in mounts.iter().enumerate() {
            assert_eq!(std::fs::read_to_string(mounted.at("readme.txt")).unwrap(), format!("number {n}"));
        }
    }

    /// No other user can read what a user changed.
    fn state_is_private() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), b"mine").unwrap();
        assert_eq!(std::fs::metadata(mounted.state()).unwrap().mode() & 0o077, 0);
    }
}
