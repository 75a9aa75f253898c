//! Mode, owner and times: changing them copies no bytes, and setting the same value changes nothing.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::Path;

use rustix::io::Errno;

use super::{ino, set_mtime};
use crate::common::as_user::is_root;
use crate::common::library::pattern;
use crate::common::{Library, MOTHER_TIME, World, assert_errno, sh};

/// The size of a file of the upper on disk.
fn stored(path: &std::path::Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |stat| stat.blocks() * 512)
}

for_both_users! {
    /// The setuid and setgid bits are cleared when the owner of a file changes, and when a user writes who may not keep
    /// them.
    fn setid_bits_are_cleared_as_on_a_plain_directory() {
        let modes = [0o4755, 0o2755, 0o6755, 0o2745, 0o4644];
        let library = modes.iter().fold(Library::new(), |library, mode| {
            let named = |kind: &str| format!("{kind}{mode:o}");
            library.file_mode(&named("give"), *mode, b"lower").file_mode(&named("write"), *mode, b"lower")
        });
        let world = World::with(&library);
        let mounted = world.mount("s");
        let plain = world.path().join("plain");
        std::fs::create_dir(&plain).unwrap();
        for mode in modes {
            for kind in ["give", "write"] {
                let copy = plain.join(format!("{kind}{mode:o}"));
                std::fs::write(&copy, "lower").unwrap();
                std::fs::set_permissions(&copy, Permissions::from_mode(mode)).unwrap();
            }
        }
        let change = |dir: &Path, kind: &str, mode: u32| {
            let path = dir.join(format!("{kind}{mode:o}"));
            match kind {
                "give" => chown(&path, Some(path.metadata().unwrap().uid()), None).unwrap(),
                _ => std::fs::write(&path, "upper").unwrap(),
            }
            path.metadata().unwrap().mode()
        };
        for (kind, mode) in ["give", "write"].into_iter().flat_map(|kind| modes.map(|mode| (kind, mode))) {
            let (ours, theirs) = (change(mounted.path(), kind, mode), change(&plain, kind, mode));
            assert_eq!(ours, theirs, "{kind} {mode:o}: {ours:o} and {theirs:o}");
        }
    }

    /// For root, access fails only for executing a file that nobody may execute. For others, the permission bits
    /// decide.
    fn access_tells_the_truth() {
        use rustix::fs::{Access, access};
        let world = World::sample();
        let mounted = world.mount("s");
        let plain = world.path().join("plain");
        std::fs::create_dir(&plain).unwrap();
        for mode in [0o000, 0o100, 0o200, 0o400, 0o444, 0o644, 0o755, 0o001] {
            for dir in [mounted.path(), &plain] {
                let file = dir.join(format!("f{mode:o}"));
                std::fs::write(&file, "x").unwrap();
                std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
                std::fs::create_dir(dir.join(format!("d{mode:o}"))).unwrap();
                std::fs::set_permissions(dir.join(format!("d{mode:o}")), Permissions::from_mode(mode)).unwrap();
            }
            for (kind, mask) in ["f", "d"].into_iter().flat_map(|kind| (0..8).map(move |mask| (kind, mask))) {
                let ask = |dir: &Path| access(dir.join(format!("{kind}{mode:o}")), Access::from_bits_truncate(mask));
                assert_eq!(ask(mounted.path()), ask(&plain), "{kind}{mode:o}, access {mask}");
            }
        }
    }

    fn chmod_copies_nothing() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/data.bin");
        let before = ino(&path);
        std::fs::set_permissions(&path, Permissions::from_mode(0o741)).unwrap();
        let stat = std::fs::metadata(&path).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.ino(), stat.mtime()), (0o741, before, MOTHER_TIME));
        assert!(stored(&mounted.upper("lib/data.bin")) <= 4096);
        assert!(std::fs::read(&path).unwrap() == pattern(300_000));
        let mounted = mounted.remount();
        let stat = std::fs::metadata(mounted.at("lib/data.bin")).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.ino(), stat.mtime()), (0o741, before, MOTHER_TIME));
        assert!(std::fs::read(mounted.at("lib/data.bin")).unwrap() == pattern(300_000));
    }

    fn times_copy_nothing() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/data.bin");
        set_mtime(&path, 1_234_567_890);
        assert!(stored(&mounted.upper("lib/data.bin")) <= 4096);
        let mounted = mounted.remount();
        assert_eq!(std::fs::metadata(mounted.at("lib/data.bin")).unwrap().mtime(), 1_234_567_890);
        assert!(std::fs::read(mounted.at("lib/data.bin")).unwrap() == pattern(300_000));
    }

    fn chmod_then_write_then_remount() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("bin/tool");
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        let before = ino(&path);
        std::fs::write(&path, "#!/bin/sh\necho replaced\n").unwrap();
        let mounted = mounted.remount();
        assert_eq!(ino(mounted.at("bin/tool")), before);
        assert_eq!(sh(&mut std::process::Command::new(mounted.at("bin/tool"))), "replaced\n");
    }

    /// rcc sets the time of every directory and file on each run.
    fn setting_the_same_time_leaves_the_upper_empty() {
        let world = World::sample();
        let mounted = world.mount("s");
        for path in ["", "lib", "lib/deep", "hollow/inner", "readme.txt", "etc/prefix.conf"] {
            set_mtime(&mounted.at(path), MOTHER_TIME);
        }
        for (path, mode) in [("readme.txt", 0o644), ("bin/tool", 0o755), ("lib", 0o750)] {
            std::fs::set_permissions(mounted.at(path), Permissions::from_mode(mode)).unwrap();
        }
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        chown(mounted.at("readme.txt"), Some(uid), Some(gid)).unwrap();
        assert_eq!(mounted.upper_entries(), Vec::<std::path::PathBuf>::new());
    }

    fn modes_without_owner_permissions() {
        let world = World::sample();
        let mounted = world.mount("s");
        for mode in [0o000, 0o111, 0o222, 0o444] {
            for path in ["readme.txt", "lib/deep", "new"] {
                if path == "new" && !mounted.at("new").exists() {
                    std::fs::write(mounted.at("new"), b"n").unwrap();
                }
                std::fs::set_permissions(mounted.at(path), Permissions::from_mode(mode)).unwrap();
                let stat = std::fs::metadata(mounted.at(path)).unwrap();
                assert_eq!(stat.mode() & 0o7777, mode, "{path}");
            }
        }
        let mounted = mounted.remount();
        for path in ["readme.txt", "lib/deep", "new"] {
            assert_eq!(std::fs::metadata(mounted.at(path)).unwrap().mode() & 0o7777, 0o444, "{path}");
            std::fs::set_permissions(mounted.at(path), Permissions::from_mode(0o700)).unwrap();
        }
        assert_eq!(std::fs::read(mounted.at("lib/deep/other.txt")).unwrap(), b"other\n");
    }

    fn eacces_without_permission() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::set_permissions(mounted.at("lib/deep"), Permissions::from_mode(0o000)).unwrap();
        let read = std::fs::read(mounted.at("lib/deep/other.txt"));
        if is_root() {
            assert_eq!(read.unwrap(), b"other\n");
        } else {
            assert_errno(read, Errno::ACCESS);
        }
        std::fs::set_permissions(mounted.at("lib/deep"), Permissions::from_mode(0o750)).unwrap();
    }

    fn special_bits() {
        let world = World::sample();
        let mounted = world.mount("s");
        for (path, mode) in [("bin/tool", 0o4755), ("lib", 0o2750), ("many", 0o1777)] {
            std::fs::set_permissions(mounted.at(path), Permissions::from_mode(mode)).unwrap();
            assert_eq!(std::fs::metadata(mounted.at(path)).unwrap().mode() & 0o7777, mode, "{path}");
        }
    }

    fn chown_follows_the_rules() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/data.bin");
        let before = ino(&path);
        if is_root() {
            chown(&path, Some(1234), Some(4321)).unwrap();
            lchown(mounted.at("link-to-file"), Some(77), Some(88)).unwrap();
            chown(mounted.at("lib/deep"), Some(5), None).unwrap();
            let mounted = mounted.remount();
            let owner = |path: &str| {
                let stat = std::fs::symlink_metadata(mounted.at(path)).unwrap();
                (stat.uid(), stat.gid())
            };
            assert_eq!(owner("lib/data.bin"), (1234, 4321));
            assert_eq!(owner("link-to-file"), (77, 88));
            assert_eq!(owner("readme.txt"), (0, 0));
            assert_eq!(owner("lib/deep").0, 5);
            assert_eq!(ino(mounted.at("lib/data.bin")), before);
            assert!(stored(&mounted.upper("lib/data.bin")) <= 4096);
        } else {
            assert_errno(chown(&path, Some(0), None), Errno::PERM);
        }
    }

    fn link_times_are_their_own() {
        let world = World::sample();
        let mounted = world.mount("s");
        set_mtime(&mounted.at("link-to-file"), 1_111_111_111);
        let mounted = mounted.remount();
        assert_eq!(std::fs::symlink_metadata(mounted.at("link-to-file")).unwrap().mtime(), 1_111_111_111);
        assert_eq!(std::fs::metadata(mounted.at("link-to-file")).unwrap().mtime(), MOTHER_TIME);
        assert_eq!(std::fs::read(mounted.at("link-to-file")).unwrap(), b"hello, space\n");
    }

    fn nanoseconds_are_kept() {
        let world = World::sample();
        let mounted = world.mount("s");
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 7 },
            last_modification: rustix::fs::Timespec { tv_sec: 1_500_000_000, tv_nsec: 123_456_789 },
        };
        let path = mounted.at("readme.txt");
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
        let stat = std::fs::metadata(&path).unwrap();
        assert_eq!((stat.atime(), stat.atime_nsec()), (5, 7));
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (1_500_000_000, 123_456_789));
    }

    /// A new entry also changes its directory.
    fn directory_times_change_with_their_entries() {
        let world = World::sample();
        let mounted = world.mount("s");
        let mtime = |path: &str| std::fs::metadata(mounted.at(path)).unwrap().mtime();
        std::fs::write(mounted.at("lib/new"), b"").unwrap();
        assert!(mtime("lib") > MOTHER_TIME);
        std::fs::remove_file(mounted.at("many/a")).unwrap();
        assert!(mtime("many") > MOTHER_TIME);
        std::fs::rename(mounted.at("hollow/inner"), mounted.at("etc/inner")).unwrap();
        assert!(mtime("hollow") > MOTHER_TIME && mtime("etc") > MOTHER_TIME);
        assert_eq!(mtime("lib/deep"), MOTHER_TIME);
    }

    fn times_before_the_epoch_keep_nanoseconds() {
        let world = World::sample();
        let mounted = world.mount("s");
        for (sec, nsec) in [(-1, 999_999_999), (-2, 500_000_000), (-86_400, 1), (-5, 0), (0, 1)] {
            let time = rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let path = mounted.at("readme.txt");
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
            let stat = std::fs::metadata(&path).unwrap();
            assert_eq!((stat.mtime(), stat.mtime_nsec()), (sec, nsec));
            assert_eq!((stat.atime(), stat.atime_nsec()), (sec, nsec));
        }
    }

    /// A 32-bit program without large file support gets EOVERFLOW for inode numbers of 2^32 and more.
    fn new_inode_numbers_fit_32_bits() {
        use std::os::unix::fs::DirEntryExt;
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), b"").unwrap();
        std::fs::create_dir(mounted.at("made")).unwrap();
        let numbers = |mounted: &crate::common::Mounted<'_>| [ino(mounted.at("new")), ino(mounted.at("made"))];
        let before = numbers(&mounted);
        assert!(before.iter().all(|number| *number < 1 << 32), "{before:?}");
        for entry in std::fs::read_dir(mounted.path()).unwrap().map(Result::unwrap) {
            assert_eq!(entry.ino(), ino(entry.path()));
        }
        assert_eq!(numbers(&mounted.remount()), before);
    }

    fn noatime_keeps_the_access_time() {
        let world = World::sample();
        let mounted = world.mount_with("s", &["-o", "noatime"]);
        let path = mounted.at("readme.txt");
        std::fs::write(&path, b"changed").unwrap();
        std::fs::create_dir(mounted.at("made")).unwrap();
        std::fs::write(mounted.at("new"), b"new").unwrap();
        for path in [&path, &mounted.at("made"), &mounted.at("new")] {
            let time = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
        }
        let read = || {
            assert_eq!(std::fs::read(&path).unwrap(), b"changed");
            assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"new");
            assert_eq!(std::fs::read_dir(mounted.at("made")).unwrap().count(), 0);
        };
        read();
        assert_eq!(std::fs::metadata(&path).unwrap().atime(), 1);
        assert_eq!(std::fs::metadata(mounted.at("new")).unwrap().atime(), 1);
        let upper = [mounted.upper("readme.txt"), mounted.upper("made"), mounted.upper("new")];
        mounted.unmount();
        let mounted = world.mount_with("s", &["--read-only"]);
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"changed");
        assert_eq!(std::fs::read_dir(mounted.at("made")).unwrap().count(), 0);
        mounted.unmount();
        for path in upper {
            assert_eq!(std::fs::metadata(&path).unwrap().atime(), 1, "{}", path.display());
        }
    }

    fn block_counts_are_reported() {
        let world = World::sample();
        let mounted = world.mount("s");
        let lower = std::fs::metadata(mounted.at("lib/data.bin")).unwrap();
        assert!(lower.blocks() * 512 >= 300_000 && lower.blocks() * 512 < 310_000, "{}", lower.blocks());
        std::fs::write(mounted.at("new"), vec![1; 50_000]).unwrap();
        std::fs::File::open(mounted.at("new")).unwrap().sync_all().unwrap();
        let new = std::fs::metadata(mounted.at("new")).unwrap();
        assert!(new.blocks() * 512 >= 49_152, "{}", new.blocks());
    }

    fn access_agrees_with_open() {
        let world = World::sample();
        let mounted = world.mount("s");
        let access = |path: &str, how| rustix::fs::access(mounted.at(path), how);
        use rustix::fs::Access;
        assert_eq!(access("readme.txt", Access::READ_OK | Access::WRITE_OK), Ok(()));
        assert_eq!(access("readme.txt", Access::EXEC_OK), Err(Errno::ACCESS));
        assert_eq!(access("bin/tool", Access::EXEC_OK), Ok(()));
        assert_eq!(access("nothing", Access::EXISTS), Err(Errno::NOENT));
        if !is_root() {
            assert_eq!(access("readonly", Access::WRITE_OK), Err(Errno::ACCESS));
        }
    }
}
