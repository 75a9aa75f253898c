//! Removed names: both kinds of whiteouts, where one is needed and where a crash has left one.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::io::Errno;

use super::super::Make;
use super::world::{World, caller, refused};
use crate::namespace::rename::RenameMode;
use crate::namespace::types::Ino;

/// A whiteout without a lower entry, as a crash between two steps leaves one, has no effect: its name can be used.
#[test]
fn whiteout_without_a_lower_entry_has_no_effect() {
    let stray = |world: &World, path: &str| {
        let dir = std::fs::File::open(world.upper(path).parent().unwrap()).unwrap();
        let name = path.rsplit('/').next().unwrap();
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(&dir, name, kind, rustix::fs::Mode::empty(), 0).unwrap();
    };
    let world = World::usual();
    let names = world.fs.namespace();
    let lib = world.ino("lib");
    names.make(lib, b"born", Make::Dir(0o755), caller()).unwrap();
    for name in ["file", "dir", "moved-file", "moved-dir", "hard", "idle", "born/left"] {
        stray(&world, &format!("lib/{name}"));
    }
    let world = world.remount();
    let names = world.fs.namespace();
    let lib = world.ino("lib");
    assert_eq!(world.list("lib"), ["a.txt", "b.txt", "born", "large.bin", "link", "sub"]);
    assert_eq!(refused(world.find("lib/idle")), Errno::NOENT);
    names.make(lib, b"file", Make::File(0o644), caller()).unwrap();
    names.make(lib, b"dir", Make::Dir(0o755), caller()).unwrap();
    names.link(world.ino("lib/a.txt"), lib, b"hard").unwrap();
    names.rename(lib, b"b.txt", lib, b"moved-file", RenameMode::Replace).unwrap();
    names.rename(lib, b"dir", lib, b"moved-dir", RenameMode::Replace).unwrap();
    names.rmdir(lib, b"born").unwrap();
    let wanted = ["a.txt", "file", "hard", "large.bin", "link", "moved-dir", "moved-file", "sub"];
    assert_eq!(world.list("lib"), wanted);
    let world = world.remount();
    assert_eq!(world.list("lib"), wanted);
}

#[test]
fn a_directory_is_removed_in_which_a_crash_left_a_whiteout() {
    let world = World::usual();
    let names = world.fs.namespace();
    names.make(Ino::ROOT, b"target", Make::Dir(0o755), caller()).unwrap();
    names.make(Ino::ROOT, b"source", Make::Dir(0o755), caller()).unwrap();
    let dir = std::fs::File::open(world.upper("target")).unwrap();
    rustix::fs::mknodat(&dir, "x", rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty(), 0)
        .unwrap();
    let world = world.remount();
    world.fs.namespace().rename(Ino::ROOT, b"source", Ino::ROOT, b"target", RenameMode::Replace).unwrap();
    assert_eq!(world.list("target"), [""; 0]);
    assert_eq!(refused(world.find("source")), Errno::NOENT);
}

/// Without device whiteouts (as on overlayfs), all operations that remove names work.
#[test]
fn names_are_removed_without_device_whiteouts() {
    let world = World::marking();
    let names = world.fs.namespace();
    let (root, lib, bin) = (Ino::ROOT, world.ino("lib"), world.ino("bin"));
    let replace = RenameMode::Replace;
    // A library file, a changed file, a directory.
    names.unlink(lib, b"link").unwrap();
    world.fs.write(world.ino("lib/b.txt"), 0, b"W").unwrap();
    names.unlink(lib, b"b.txt").unwrap();
    names.unlink(world.ino("lib/sub"), b"deep.txt").unwrap();
    names.rmdir(lib, b"sub").unwrap();
    names.rmdir(root, b"empty").unwrap();
    // Targets of the rename of a library file: no entry, another file, a removed name. Of a directory: no entry, a removed name.
    names.rename(lib, b"a.txt", lib, b"moved", replace).unwrap();
    names.rename(bin, b"tool", bin, b"large-tool", replace).unwrap();
    names.rename(root, b"identity.yaml", lib, b"link", replace).unwrap();
    names.rename(root, b"bin", root, b"empty", replace).unwrap();
    names.make(lib, b"sub", Make::Dir(0o755), caller()).unwrap();
    names.make(lib, b"b.txt", Make::File(0o644), caller()).unwrap();
    let shown =
        |world: &World| [world.list(""), world.list("lib"), world.list("empty"), world.list("lib/sub")];
    let wanted = shown(&world);
    assert_eq!(wanted[0], ["empty", "lib"]);
    assert_eq!(wanted[1], ["b.txt", "large.bin", "link", "moved", "sub"]);
    assert_eq!(wanted[2], ["large-tool"]);
    assert_eq!(world.read("lib/link"), b"channels: []");
    assert!(
        world.upper_files().iter().all(|path| !path.symlink_metadata().unwrap().file_type().is_char_device())
    );
    let world = world.remount();
    assert_eq!(shown(&world), wanted);
    assert_eq!(world.read("lib/moved"), b"hello\n");
    assert_eq!(
        std::fs::read_dir(world.dir.path().join("state/work")).unwrap().count(),
        0,
        "nothing is left there"
    );
}

/// Without device whiteouts a rename takes two steps. The next mount finishes what a crash between them has left.
#[test]
fn a_rename_that_a_crash_cut_short_is_finished() {
    let world = World::marking();
    let lib = world.ino("lib");
    world.fs.namespace().rename(lib, b"a.txt", lib, b"b.txt", RenameMode::Replace).unwrap();
    let number = |path: &str| world.upper(path).symlink_metadata().unwrap().ino();
    let note = world.dir.path().join("state/work/moved.1");
    let dir = number("lib");
    let text = format!("{}/{dir}/a.txt/{dir}/b.txt", number("lib/b.txt"));
    std::os::unix::fs::symlink(&text, &note).unwrap();
    std::fs::remove_file(world.upper("lib/a.txt")).unwrap();
    let world = world.remount();
    assert_eq!(refused(world.find("lib/a.txt")), Errno::NOENT);
    assert_eq!(world.read("lib/b.txt"), b"hello\n");
    // A note of a rename that was not done, or was undone, has no effect.
    let number = |path: &str| world.upper(path).symlink_metadata().unwrap().ino();
    std::os::unix::fs::symlink(format!("{}/{dir}/large.bin/{dir}/c", number("lib/b.txt")), &note).unwrap();
    let world = world.remount();
    assert_eq!(world.list("lib"), ["b.txt", "large.bin", "link", "sub"]);
    assert!(note.symlink_metadata().is_err());
}
