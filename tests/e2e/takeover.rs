//! What programs have open, changed or removed stays what it is when the worker of a mount dies.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::common::{Mounted, World, wait_until};

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Reads a file past the kernel's cache of pages.
fn read(file: &File) -> Vec<u8> {
    rustix::fs::fsync(file).unwrap();
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut bytes = vec![0; 1000];
    let n = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(n);
    bytes
}

/// The link count that the worker answers.
fn links(file: &File) -> u32 {
    let flags = rustix::fs::AtFlags::EMPTY_PATH | rustix::fs::AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(file.as_fd(), c"", flags, rustix::fs::StatxFlags::BASIC_STATS).unwrap().stx_nlink
}

/// How many descriptors of the upper's files without a name the worker has.
fn held(mounted: &Mounted<'_>) -> usize {
    let fds = mounted.worker().map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten());
    let state = mounted.state();
    let links = fds.into_iter().flatten().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links
        .filter(|path| path.starts_with(&state) && path.as_os_str().to_string_lossy().ends_with(" (deleted)"))
        .count()
}

for_both_users! {
    fn open_removed_and_moved_entries_outlive_the_worker() {
        let world = World::sample();
        let mounted = world.mount("s");
        let at = |path: &str| mounted.at(path);
        fs::write(at("made"), "made").unwrap();
        fs::write(at("replaced"), "replaced").unwrap();
        fs::write(at("readme.txt"), "changed").unwrap();
        let made = open(&at("made"));
        let replaced = open(&at("replaced"));
        let changed = open(&at("readme.txt"));
        let library = File::open(at("lib/deep/other.txt")).unwrap();
        let moved = File::open(at("lib/deep/er/leaf.txt")).unwrap();
        let dir = File::open(at("hollow/inner")).unwrap();
        fs::remove_file(at("made")).unwrap();
        fs::write(at("over"), "over").unwrap();
        fs::rename(at("over"), at("replaced")).unwrap();
        fs::remove_file(at("readme.txt")).unwrap();
        fs::remove_file(at("lib/deep/other.txt")).unwrap();
        fs::remove_dir(at("hollow/inner")).unwrap();
        fs::create_dir(at("new")).unwrap();
        fs::rename(at("lib/deep"), at("new/deep")).unwrap();
        fs::hard_link(at("lib/module.py"), at("new/link")).unwrap();
        let number = fs::metadata(at("new/link")).unwrap().ino();

        for round in 0..4_u8 {
            mounted.kill_worker();
            for (file, bytes) in [
                (&made, &b"made"[..]),
                (&replaced, b"replaced"),
                (&changed, b"changed"),
                (&library, b"other\n"),
            ] {
                let now = read(file);
                assert_eq!(now.get(..bytes.len()), Some(bytes), "round {round}");
                assert_eq!(links(file), 0, "{bytes:?} in round {round}");
            }
            assert_eq!(read(&moved), b"leaf\n");
            assert_eq!((links(&moved), links(&dir)), (1, 0));
            assert_eq!(fs::read(at("new/deep/er/leaf.txt")).unwrap(), b"leaf\n");
            assert_eq!(fs::read(at("replaced")).unwrap(), b"over");
            assert_eq!(fs::metadata(at("lib/module.py")).unwrap().ino(), number);
            assert!(!at("readme.txt").exists() && !at("lib/deep").exists() && !at("hollow/inner").exists());
            made.write_all_at(&[b'0' + round], 10).unwrap();
            assert_eq!(read(&made).last(), Some(&(b'0' + round)));
        }
        wait_until("the worker to hold the files", || held(&mounted) >= 3);
        drop((made, replaced, changed, library, moved, dir));
        wait_until("the files to be let go", || held(&mounted) == 0);
        mounted.unmount();
    }
}
