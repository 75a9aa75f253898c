//! The first write to a large file shares extents with the blob where the disk can; elsewhere it copies, and `status`
//! says so. Also tests a full disk.
//!
//! The disks are images, so these tests need root. root also starts the ordinary user's daemon.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;

use crate::common::as_user::root_or_skip;
use crate::common::image::Image;
use crate::common::library::pattern;
use crate::common::world::finish;
use crate::common::{Library, World, assert_errno, sh, wait_until};

const SIZE: usize = 30 * 1024 * 1024;

/// The physical blocks of a file that FIEMAP reports as shared.
fn shared_blocks(path: &Path) -> BTreeSet<u64> {
    sh(Command::new("sync").arg("-f").arg(path));
    let map = sh(Command::new("filefrag").args(["-v", "-b4096", "-s"]).arg(path));
    let mut blocks = BTreeSet::new();
    // "   0:        0..    7679:      34816..     42495:   7680:             last,shared,eof"
    for line in map.lines().filter(|line| line.contains("shared")) {
        let fields: Vec<&str> = line.split(':').collect();
        let (from, to) = fields[2].split_once("..").unwrap();
        blocks.extend(from.trim().parse::<u64>().unwrap()..=to.trim().parse::<u64>().unwrap());
    }
    blocks
}

/// Writes one byte into a large file of a raw library and checks where its bytes are on the disk.
fn first_write(kind: &str, ordinary_user: bool) {
    if !root_or_skip() {
        return;
    }
    let library = Library::new().raw().file("lib/big.so", &pattern(SIZE));
    let image = Image::new(kind, 400);
    let world = World::at(image.path());
    world.add(&library);
    let world = if ordinary_user { world.by_ordinary_user() } else { world };
    let mounted = world.mount("s");
    let status = world.json(["status", "s"]);
    // Through a child process, because root may not enter another user's mount.
    let write = format!(
        "printf CHANGED | dd of='{}' bs=1 seek=1000 conv=notrunc",
        mounted.at("lib/big.so").display()
    );
    let done = finish(world.command("sh").args(["-c", &write]));
    assert_eq!(done.code, 0, "{done:?}");

    let (blob, upper) = (library.blob(&world.hololib(), "lib/big.so"), mounted.upper("lib/big.so"));
    let mut want = pattern(SIZE);
    want[1000..1007].copy_from_slice(b"CHANGED");
    assert!(std::fs::read(&upper).unwrap() == want);
    assert!(std::fs::read(&blob).unwrap() == pattern(SIZE), "the blob was changed");
    let common = shared_blocks(&blob).intersection(&shared_blocks(&upper)).count() * 4096;
    let reflink = &status["reflink"];
    if kind == "ext4" {
        assert_eq!(common, 0);
        assert_eq!(reflink["supported"], false, "{status}");
        let why = reflink["reason"].as_str().unwrap();
        assert!(why.contains("FICLONE") && why.contains("not supported"), "{why}");
    } else {
        assert!(common > SIZE - 1024 * 1024, "{common} of {SIZE} bytes are shared");
        assert_eq!(reflink["supported"], true, "{status}");
    }
}

#[test]
fn btrfs_shares_extents() {
    first_write("btrfs", false);
}

#[test]
fn btrfs_shares_extents_as_ordinary_user() {
    first_write("btrfs", true);
}

#[test]
fn xfs_shares_extents() {
    first_write("xfs", false);
}

#[test]
fn xfs_shares_extents_as_ordinary_user() {
    first_write("xfs", true);
}

#[test]
fn ext4_copies() {
    first_write("ext4", false);
}

#[test]
fn ext4_copies_as_ordinary_user() {
    first_write("ext4", true);
}

/// Forks a space with a changed and a new file, while it is mounted and afterwards, and checks where their bytes are.
fn fork(kind: &str, ordinary_user: bool) {
    if !root_or_skip() {
        return;
    }
    let image = Image::new(kind, 400);
    let world = World::at(image.path());
    world.add(&Library::new().raw().file("lib/big.so", &pattern(SIZE)));
    let world = if ordinary_user { world.by_ordinary_user() } else { world };
    let mounted = world.mount("s");
    let (changed, new) = (mounted.at("lib/big.so"), mounted.at("new"));
    let write = format!(
        "printf CHANGED | dd of='{0}' bs=1 seek=1000 conv=notrunc && cp '{0}' '{1}'",
        changed.display(),
        new.display()
    );
    let done = finish(world.command("sh").args(["-c", &write]));
    assert_eq!(done.code, 0, "{done:?}");
    let mut want = pattern(SIZE);
    want[1000..1007].copy_from_slice(b"CHANGED");
    let originals = ["lib/big.so", "new"].map(|name| mounted.upper(name));
    let check = |name: &str| {
        let forked = world.json(["fork", "s", name]);
        let identity = forked["identity"].as_str().unwrap();
        let upper = world.state().join("spaces").join(identity).join("upper");
        for (original, name) in originals.iter().zip(["lib/big.so", "new"]) {
            let copy = upper.join(name);
            assert!(std::fs::read(&copy).unwrap() == want, "{name}");
            let common = shared_blocks(original).intersection(&shared_blocks(&copy)).count() * 4096;
            if kind == "ext4" {
                assert_eq!(common, 0, "{name}");
            } else {
                assert!(common > SIZE - 1024 * 1024, "{name}: {common} of {SIZE} bytes are shared");
            }
        }
        let (reflinked, copied) = (&forked["reflinked"], &forked["copied"]);
        let wanted = if kind == "ext4" { (0, 2) } else { (2, 0) };
        assert_eq!((reflinked.as_u64(), copied.as_u64()), (Some(wanted.0), Some(wanted.1)), "{forked}");
    };
    check("live");
    mounted.unmount();
    check("dead");
    // A space of its own: a write to it leaves the other one.
    let fork = world.mount("live");
    let write = format!("printf OTHER | dd of='{}' bs=1 conv=notrunc", fork.at("new").display());
    let done = finish(world.command("sh").args(["-c", &write]));
    assert_eq!(done.code, 0, "{done:?}");
    fork.unmount();
    assert!(std::fs::read(&originals[1]).unwrap() == want);
}

#[test]
fn fork_shares_extents_on_btrfs() {
    fork("btrfs", false);
}

#[test]
fn fork_shares_extents_on_xfs() {
    fork("xfs", false);
}

#[test]
fn fork_shares_extents_on_xfs_as_ordinary_user() {
    fork("xfs", true);
}

#[test]
fn fork_copies_on_ext4() {
    fork("ext4", false);
}

/// A compressed blob is unpacked once into the cache that all spaces share. After that, it behaves like a raw blob.
#[test]
fn compressed_library_shares_with_the_cache() {
    if !root_or_skip() {
        return;
    }
    let image = Image::new("btrfs", 400);
    let world = World::at(image.path());
    world.add(&Library::new().file("lib/big.so", &pattern(SIZE)));
    let (one, two) = (world.mount("one"), world.mount("two"));
    for mounted in [&one, &two] {
        File::options().write(true).open(mounted.at("lib/big.so")).unwrap().write_all_at(b"x", 0).unwrap();
    }
    let (first, second) = (shared_blocks(&one.upper("lib/big.so")), shared_blocks(&two.upper("lib/big.so")));
    let common = first.intersection(&second).count() * 4096;
    assert!(common > SIZE - 1024 * 1024, "{common} of {SIZE} bytes are shared by two spaces");
}

#[test]
fn strategy_reflink_is_refused_without_reflink_support() {
    if !root_or_skip() {
        return;
    }
    let image = Image::new("ext4", 64);
    let world = World::at(image.path());
    world.add(&Library::sample().raw());
    let home = world.home();
    let args: [&std::ffi::OsStr; 5] =
        ["mount".as_ref(), home.as_os_str(), "s".as_ref(), "--strategy".as_ref(), "reflink".as_ref()];
    let done = world.run(args);
    assert_eq!((done.code, done.stdout.as_str()), (9, ""), "{done:?}");
    assert!(done.stderr.starts_with("holofs: ") && done.stderr.contains("reflink"), "{done:?}");
    assert!(world.mounts().is_empty());
}

#[test]
fn strategy_copy_copies_despite_reflink_support() {
    if !root_or_skip() {
        return;
    }
    let library = Library::new().raw().file("lib/big.so", &pattern(SIZE));
    let image = Image::new("btrfs", 400);
    let world = World::at(image.path());
    world.add(&library);
    let mounted = world.mount_with("s", &["--strategy", "copy"]);
    File::options().write(true).open(mounted.at("lib/big.so")).unwrap().write_all_at(b"x", 0).unwrap();
    assert_eq!(shared_blocks(&mounted.upper("lib/big.so")).len(), 0);
}

/// The writer gets ENOSPC, the mount stays, and earlier files are complete.
#[test]
fn full_disk_is_enospc_for_the_writer() {
    if !root_or_skip() {
        return;
    }
    for kind in ["ext4", "xfs"] {
        let library = Library::sample().raw().file("big", &pattern(8 * 1024 * 1024));
        let image = Image::new(kind, if kind == "xfs" { 310 } else { 40 });
        let world = World::at(image.path());
        world.add(&library);
        let mounted = world.mount_with("s", &["--strategy", "copy"]);
        std::fs::write(mounted.at("kept"), b"written before").unwrap();
        let mut filler = File::create(mounted.at("filler")).unwrap();
        let chunk = vec![7; 1024 * 1024];
        let full = (0..400).find_map(|_| filler.write_all(&chunk).err()).expect("the disk is full");
        assert_eq!(full.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{full}");
        // A first write that has to copy the file fails, and the file keeps its content.
        let open = File::options().write(true).open(mounted.at("big"));
        let written = open.and_then(|file| file.write_all_at(b"x", 0));
        assert_errno(written, Errno::NOSPC);
        assert!(std::fs::read(mounted.at("big")).unwrap() == pattern(8 * 1024 * 1024));
        assert_eq!(std::fs::read(mounted.at("kept")).unwrap(), b"written before");
        // With free space again, everything works.
        drop(filler);
        std::fs::remove_file(mounted.at("filler")).unwrap();
        // The kernel reports a moment later that the removed file is no longer open.
        wait_until("free space", || {
            let open = File::options().write(true).open(mounted.at("big"));
            open.and_then(|file| file.write_all_at(b"x", 0)).is_ok()
        });
        let mounted = mounted.remount();
        assert_eq!(std::fs::read(mounted.at("big")).unwrap()[0], b'x');
        assert_eq!(std::fs::read(mounted.at("kept")).unwrap(), b"written before");
    }
}

/// There is no space even for the state: one clear line, and nothing is mounted.
#[test]
fn mount_on_a_full_disk_is_refused() {
    if !root_or_skip() {
        return;
    }
    let image = Image::new("ext4", 40);
    let world = World::at(image.path());
    world.add(&Library::sample().raw());
    let mut filler = File::create(image.path().join("filler")).unwrap();
    while filler.write_all(&[7; 4096]).is_ok() {}
    drop(filler);
    let done = world.run([std::ffi::OsStr::new("mount"), world.home().as_os_str(), "s".as_ref()]);
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{done:?}");
    assert!(done.stderr.starts_with("holofs: ") && done.stderr.contains("No space left"), "{done:?}");
    assert!(world.mounts().is_empty());
    std::fs::remove_file(image.path().join("filler")).unwrap();
    drop(world.mount("s"));
}
