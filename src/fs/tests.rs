//! File operations without FUSE: results, errors, the content of the upper afterwards, and what a remount shows.

mod changes;
mod once;
mod takeover;
mod whiteouts;
pub(crate) mod world;

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{DataLocation, Make};
use crate::materialize::{FileData, MOTHER_TIME};
use crate::metrics::Counter;
use crate::namespace::rename::RenameMode;
use crate::namespace::types::{Ino, Kind, SetAttr, SetTime, Time};
use world::{Item, SPACE, World, caller, refused};

const MOTHER: SetTime = SetTime::At(Time { sec: MOTHER_TIME, nsec: 0 });

fn is_whiteout(path: &std::path::Path) -> bool {
    let found = path.symlink_metadata().unwrap();
    found.file_type().is_char_device() && found.rdev() == 0
}

#[test]
fn a_fresh_space_shows_the_catalog_and_holds_nothing() {
    let world = World::usual();
    assert_eq!(world.list(""), ["bin", "empty", "identity.yaml", "lib"]);
    assert_eq!(world.read("lib/a.txt"), b"hello\n");
    let attr = world.find("lib/a.txt").unwrap();
    assert_eq!((attr.kind, attr.mode, attr.nlink, attr.mtime.sec), (Kind::File, 0o644, 1, MOTHER_TIME));
    assert_eq!(world.find("lib").unwrap().nlink, 3);
    assert_eq!(world.fs.namespace().readlink(world.ino("lib/link")).unwrap(), b"a.txt");
    assert!(world.upper_files().is_empty());
    assert_eq!(world.fs.namespace().table_len(), 1, "only the root is in the table");
}

#[test]
fn no_sync_succeeds_before_the_space_is_safe() {
    let world = World::usual();
    let made = world.fs.namespace().make(Ino::ROOT, b"new", Make::File(0o644), caller()).unwrap();
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| world.fs.sync(made.ino, false));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!sync.is_finished());
        world.fs.settled(Ok(()));
        sync.join().unwrap().unwrap();
    });
    let world = world.remount();
    world.fs.settled(Err(Errno::IO));
    assert_eq!(refused(world.fs.sync(made.ino, false)), Errno::IO);
}

#[test]
fn enoent_enotdir_enametoolong() {
    let world = World::usual();
    let names = world.fs.namespace();
    assert_eq!(refused(names.lookup(Ino::ROOT, b"nope")), Errno::NOENT);
    assert_eq!(refused(names.lookup(world.ino("lib/a.txt"), b"x")), Errno::NOTDIR);
    assert_eq!(refused(names.lookup(Ino::ROOT, &[b'x'; 256])), Errno::NAMETOOLONG);
    assert_eq!(refused(names.attr(Ino(1 << 60))), Errno::STALE);
    assert_eq!(refused(names.make(Ino::ROOT, b"a/b", Make::Dir(0o755), caller())), Errno::INVAL);
    assert_eq!(refused(world.fs.data(world.ino("lib"))), Errno::ISDIR);
}

#[test]
fn relocated_files_name_this_space_whatever_their_size() {
    let world = World::usual();
    let text = String::from_utf8(world.read("bin/tool")).unwrap();
    assert_eq!(text, format!("#!/base/{SPACE}/bin/python\nprint()\n"));
    assert_eq!(&world.read("bin/large-tool")[1000..1024], SPACE.as_bytes());
    assert!(world.upper_files().is_empty(), "reading is no change");
    assert_eq!(world.fs.metrics().get(Counter::Relocated), 1, "the large one got a backing file");
}

#[test]
fn a_kept_relocated_file_that_was_tampered_with_is_made_again() {
    let world = World::usual();
    let wanted = world.read("bin/large-tool");
    let kept =
        std::fs::read_dir(world.dir.path().join("state/reloc")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&kept, vec![b'x'; wanted.len()]).unwrap();
    let world = world.remount();
    assert_eq!(world.read("bin/large-tool"), wanted);
}

#[test]
fn writing_keeps_the_number_and_the_rest_of_the_bytes() {
    for raw in [false, true] {
        let world = World::new(&world::usual(), raw);
        for path in ["lib/a.txt", "lib/large.bin", "bin/tool", "bin/large-tool"] {
            let (before, ino) = (world.read(path), world.ino(path));
            assert_eq!(world.fs.write(ino, 1, b"XY").unwrap(), 2);
            let mut wanted = before;
            wanted[1..3].copy_from_slice(b"XY");
            assert_eq!(world.read(path), wanted, "{path}");
            assert_eq!(world.ino(path), ino);
            assert_eq!(std::fs::read(world.upper(path)).unwrap(), wanted, "plain tools read the upper");
        }
        let ino = world.ino("lib/a.txt");
        let world = world.remount();
        assert_eq!(world.ino("lib/a.txt"), ino);
        assert_eq!(world.read("lib/a.txt"), b"hXYlo\n");
        assert_eq!(world.read("lib/b.txt"), b"world\n");
    }
}

#[test]
fn a_copy_up_leaves_the_times_of_the_directory() {
    let world = World::usual();
    world.fs.write(world.ino("lib/a.txt"), 0, b"x").unwrap();
    for path in ["lib", ""] {
        let attr = world.find(path).unwrap();
        assert_eq!((attr.mtime.sec, attr.ctime.sec), (MOTHER_TIME, MOTHER_TIME), "{path}");
    }
    let names = world.fs.namespace();
    names.make(world.ino("lib"), b"new", Make::File(0o644), caller()).unwrap();
    assert_ne!(world.find("lib").unwrap().mtime.sec, MOTHER_TIME);
}

#[test]
fn what_changes_nothing_leaves_no_trace() {
    let world = World::usual();
    let names = world.fs.namespace();
    for path in ["", "lib", "lib/a.txt", "lib/link", "bin/tool"] {
        let attr = world.find(path).unwrap();
        let change = SetAttr {
            mode: Some(attr.mode),
            uid: Some(attr.uid),
            gid: Some(attr.gid),
            atime: Some(MOTHER),
            mtime: Some(MOTHER),
            size: None,
            drop_setid: false,
        };
        names.setattr(attr.ino, &change).unwrap();
    }
    assert_eq!(refused(names.rmdir(Ino::ROOT, b"lib")), Errno::NOTEMPTY);
    assert_eq!(refused(names.unlink(Ino::ROOT, b"nope")), Errno::NOENT);
    assert_eq!(
        refused(names.rename(Ino::ROOT, b"lib", Ino::ROOT, b"identity.yaml", RenameMode::Replace)),
        Errno::NOTDIR
    );
    assert!(world.upper_files().is_empty());
    assert!(std::fs::read_dir(world.upper("")).unwrap().next().is_none());
}

#[test]
fn chmod_and_touch_copy_no_bytes() {
    let world = World::usual();
    let ino = world.ino("lib/large.bin");
    world.fs.namespace().setattr(ino, &SetAttr { mode: Some(0o400), ..SetAttr::default() }).unwrap();
    let at = Time { sec: 5, nsec: 6 };
    world
        .fs
        .namespace()
        .setattr(ino, &SetAttr { mtime: Some(SetTime::At(at)), ..SetAttr::default() })
        .unwrap();
    assert_eq!(world.upper("lib/large.bin").metadata().unwrap().len(), 0);
    let world = world.remount();
    let attr = world.find("lib/large.bin").unwrap();
    assert_eq!((attr.ino, attr.mode, attr.size, attr.mtime), (ino, 0o400, 300_000, at));
    let before = world.read("lib/large.bin");
    world.fs.write(ino, 0, b"!").unwrap();
    let attr = world.find("lib/large.bin").unwrap();
    assert_eq!((attr.ino, attr.mode), (ino, 0o400));
    assert_eq!(world.read("lib/large.bin")[1..], before[1..]);
}

#[test]
fn truncating_copies_only_what_is_kept() {
    let world = World::usual();
    let names = world.fs.namespace();
    let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    names.setattr(world.ino("lib/large.bin"), &size(10)).unwrap();
    assert_eq!(world.read("lib/large.bin"), (0..10).collect::<Vec<u8>>());
    names.setattr(world.ino("lib/a.txt"), &size(8)).unwrap();
    assert_eq!(world.read("lib/a.txt"), b"hello\n\0\0");
    names.setattr(world.ino("bin/large-tool"), &size(1010)).unwrap();
    assert_eq!(&world.read("bin/large-tool")[1000..], &SPACE.as_bytes()[..10]);
    names.setattr(world.ino("lib/b.txt"), &size(0)).unwrap();
    assert_eq!(world.read("lib/b.txt"), b"");
    assert_eq!(refused(names.setattr(world.ino("lib"), &size(0))), Errno::ISDIR);
}

#[test]
fn unlink_leaves_a_whiteout_and_the_open_file_lives() {
    let world = World::usual();
    let (names, ino) = (world.fs.namespace(), world.ino("lib/a.txt"));
    names.unlink(world.ino("lib"), b"a.txt").unwrap();
    assert_eq!(refused(world.find("lib/a.txt")), Errno::NOENT);
    assert!(is_whiteout(&world.upper("lib/a.txt")));
    // The file is still open: it can be read and written, and has no name.
    let mut buffer = [0; 10];
    assert_eq!(world.read_start(ino, &mut buffer).unwrap(), 6);
    assert_eq!(names.attr(ino).unwrap().nlink, 0);
    world.fs.write(ino, 0, b"J").unwrap();
    assert_eq!(world.read_start(ino, &mut buffer).unwrap(), 6);
    assert_eq!(&buffer[..6], b"Jello\n");
    assert_eq!(refused(world.find("lib/a.txt")), Errno::NOENT, "writing does not bring the name back");
    names.forget(ino, 100);
    let world = world.remount();
    assert_eq!(world.list("lib"), ["b.txt", "large.bin", "link", "sub"]);
}

#[test]
fn a_name_comes_back_as_something_else() {
    let world = World::usual();
    let names = world.fs.namespace();
    let lib = world.ino("lib");
    for (name, make) in [
        (&b"a.txt"[..], Make::Dir(0o755)),
        (b"b.txt", Make::Symlink(c"elsewhere")),
        (b"link", Make::Node(rustix::fs::FileType::Fifo, 0o600, 0)),
        (b"large.bin", Make::File(0o640)),
    ] {
        names.unlink(lib, name).unwrap();
        names.make(lib, name, make, caller()).unwrap();
        assert_eq!(refused(names.make(lib, name, make, caller())), Errno::EXIST);
    }
    let world = world.remount();
    let kinds =
        ["a.txt", "b.txt", "link", "large.bin"].map(|name| world.find(&format!("lib/{name}")).unwrap().kind);
    assert_eq!(kinds, [Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::File]);
    assert_eq!(world.read("lib/large.bin"), b"");
    assert!(world.list("lib/a.txt").is_empty(), "a new directory is opaque");
}

#[test]
fn a_renamed_lower_directory_is_one_upper_directory() {
    let world = World::usual();
    let (names, lib, deep) = (world.fs.namespace(), world.ino("lib"), world.ino("lib/sub/deep.txt"));
    names.rename(Ino::ROOT, b"lib", world.ino("empty"), b"moved", RenameMode::Replace).unwrap();
    assert_eq!(refused(world.find("lib")), Errno::NOENT);
    assert!(is_whiteout(&world.upper("lib")));
    assert_eq!(std::fs::read_dir(world.upper("empty/moved")).unwrap().count(), 0, "nothing is copied");
    let world = world.remount();
    assert_eq!((world.ino("empty/moved"), world.ino("empty/moved/sub/deep.txt")), (lib, deep));
    assert_eq!(world.read("empty/moved/a.txt"), b"hello\n");
    world.fs.write(deep, 0, b"D").unwrap();
    let world = world.remount();
    assert_eq!(world.read("empty/moved/sub/deep.txt"), b"Deep");
}

#[test]
fn rename_replaces_refuses_and_exchanges() {
    let world = World::usual();
    let (names, lib) = (world.fs.namespace(), world.ino("lib"));
    let (a, b) = (world.ino("lib/a.txt"), world.ino("lib/b.txt"));
    assert_eq!(refused(names.rename(lib, b"a.txt", lib, b"b.txt", RenameMode::NoReplace)), Errno::EXIST);
    names.rename(lib, b"a.txt", lib, b"b.txt", RenameMode::Exchange).unwrap();
    assert_eq!((world.ino("lib/a.txt"), world.ino("lib/b.txt")), (b, a));
    names.rename(lib, b"a.txt", lib, b"b.txt", RenameMode::Replace).unwrap();
    assert_eq!(world.read("lib/b.txt"), b"world\n");
    assert_eq!(refused(world.find("lib/a.txt")), Errno::NOENT);
    assert_eq!(
        refused(names.rename(Ino::ROOT, b"lib", world.ino("lib/sub"), b"x", RenameMode::Replace)),
        Errno::INVAL
    );
    let world = world.remount();
    assert_eq!(world.read("lib/b.txt"), b"world\n");
    assert_eq!(world.list("lib"), ["b.txt", "large.bin", "link", "sub"]);
}

#[test]
fn a_directory_replaces_an_emptied_lower_directory() {
    let world = World::usual();
    let (names, sub) = (world.fs.namespace(), world.ino("lib/sub"));
    names.unlink(sub, b"deep.txt").unwrap();
    names.rename(Ino::ROOT, b"bin", world.ino("lib"), b"sub", RenameMode::Replace).unwrap();
    assert_eq!(world.list("lib/sub"), ["large-tool", "tool"]);
    let world = world.remount();
    assert_eq!(world.list("lib/sub"), ["large-tool", "tool"]);
    assert_eq!(world.list(""), ["empty", "identity.yaml", "lib"]);
}

#[test]
fn rmdir_of_a_lower_directory_with_whiteouts() {
    let world = World::usual();
    let names = world.fs.namespace();
    names.unlink(world.ino("lib/sub"), b"deep.txt").unwrap();
    names.rmdir(world.ino("lib"), b"sub").unwrap();
    assert!(is_whiteout(&world.upper("lib/sub")));
    assert_eq!(world.find("lib").unwrap().nlink, 2);
    names.make(world.ino("lib"), b"sub", Make::Dir(0o755), caller()).unwrap();
    let world = world.remount();
    assert!(world.list("lib/sub").is_empty());
    assert_eq!(world.find("lib").unwrap().nlink, 3);
}

#[test]
fn hard_links_share_number_count_and_bytes() {
    let world = World::usual();
    let (names, lib) = (world.fs.namespace(), world.ino("lib"));
    let linked = names.link(world.ino("lib/a.txt"), Ino::ROOT, b"second").unwrap();
    assert_eq!((linked.ino, linked.nlink), (world.ino("lib/a.txt"), 2));
    world.fs.write(linked.ino, 0, b"J").unwrap();
    let world = world.remount();
    assert_eq!(world.ino("second"), world.ino("lib/a.txt"));
    assert_eq!((world.read("second"), world.find("second").unwrap().nlink), (b"Jello\n".to_vec(), 2));
    let names_after = world.fs.namespace();
    names_after.unlink(lib, b"a.txt").unwrap();
    assert_eq!(world.find("second").unwrap().nlink, 1);
    assert_eq!(world.read("second"), b"Jello\n");
    assert_eq!(refused(names_after.link(world.ino("lib"), Ino::ROOT, b"x")), Errno::PERM);
}

#[test]
fn a_second_link_that_was_never_looked_up_keeps_the_file() {
    let world = World::usual();
    world.fs.namespace().link(world.ino("lib/a.txt"), Ino::ROOT, b"second").unwrap();
    let world = world.remount();
    let first = world.ino("lib/a.txt");
    world.fs.namespace().unlink(world.ino("lib"), b"a.txt").unwrap();
    assert_eq!(world.fs.namespace().attr(first).unwrap().nlink, 1);
    world.fs.write(first, 0, b"J").unwrap();
    assert_eq!(world.ino("second"), first);
    assert_eq!(world.read("second"), b"Jello\n");
}

#[test]
fn a_listing_goes_on_while_the_directory_is_emptied() {
    let items: Vec<(String, Item)> = (0..500).map(|n| (format!("d/f{n:03}"), Item::File(vec![]))).collect();
    let items: Vec<(&str, Item)> = items.iter().map(|(name, item)| (name.as_str(), item.clone())).collect();
    let world = World::new(&items, false);
    let (names, dir) = (world.fs.namespace(), world.ino("d"));
    for n in 0..200 {
        names.make(dir, format!("new{n:03}").as_bytes(), Make::File(0o644), caller()).unwrap();
    }
    let (mut cookie, mut seen) = (0, 0);
    loop {
        let mut batch = Vec::new();
        names
            .readdir(dir, cookie, false, &mut |entry| {
                if batch.len() == 7 {
                    return crate::namespace::read::Taken::Full;
                }
                batch.push((entry.name.to_vec(), entry.cookie));
                crate::namespace::read::Taken::Yes
            })
            .unwrap();
        let Some((_, last)) = batch.last() else { break };
        cookie = *last;
        for (name, _) in batch.iter().filter(|(name, _)| !name.starts_with(b".")) {
            names.unlink(dir, name).unwrap();
            seen += 1;
        }
    }
    assert_eq!(seen, 700);
    names.rmdir(Ino::ROOT, b"d").unwrap();
}

#[test]
fn eio_for_one_corrupt_or_missing_blob_and_the_rest_works() {
    let world = World::usual();
    for blob in world.blobs() {
        let bytes = std::fs::read(&blob).unwrap();
        if bytes == world::gzip(b"hello\n") {
            std::fs::write(&blob, world::gzip(b"jello\n")).unwrap();
        } else if bytes == world::gzip(b"world\n") {
            std::fs::remove_file(&blob).unwrap();
        }
    }
    for path in ["lib/a.txt", "lib/b.txt"] {
        let ino = world.ino(path);
        let answer = refused(world.read_start(ino, &mut [0; 10]));
        assert_eq!(answer, Errno::IO, "{path}");
        assert_eq!(refused(world.fs.write(ino, 0, b"x")), Errno::IO);
    }
    assert!(world.upper_files().is_empty(), "a failed write leaves nothing");
    assert_eq!(world.read("lib/sub/deep.txt"), b"deep");
    // Replacing all bytes does not read the old ones.
    let ino = world.ino("lib/a.txt");
    world.fs.namespace().setattr(ino, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    world.fs.write(ino, 0, b"new").unwrap();
    assert_eq!(world.read("lib/a.txt"), b"new");
}

#[test]
fn attributes_are_kept_and_ours_are_hidden() {
    let world = World::usual();
    let ino = world.ino("lib/a.txt");
    let fs = &world.fs;
    assert_eq!(refused(fs.get_xattr(ino, b"user.x")), Errno::NODATA);
    assert_eq!(refused(fs.remove_xattr(ino, b"user.x")), Errno::NODATA);
    assert_eq!(refused(fs.set_xattr(ino, b"user.holofs.entry", b"dir:0", 0)), Errno::PERM);
    assert!(world.upper_files().is_empty());
    fs.set_xattr(ino, b"user.x", b"value", 0).unwrap();
    assert_eq!(fs.list_xattrs(ino).unwrap(), b"user.x\0");
    assert_eq!(refused(fs.get_xattr(ino, b"user.holofs.entry")), Errno::NODATA);
    fs.write(ino, 0, b"J").unwrap();
    let world = world.remount();
    assert_eq!(world.fs.get_xattr(ino, b"user.x").map_err(|_| ()), Err(()), "not looked up yet");
    let ino = world.ino("lib/a.txt");
    assert_eq!(world.fs.get_xattr(ino, b"user.x").unwrap(), b"value", "also after the copy-up of the bytes");
}

#[test]
fn holes_and_ends() {
    let world = World::usual();
    let ino = world.ino("lib/a.txt");
    assert_eq!(world.fs.seek(ino, SeekFrom::Data(2)).unwrap(), 2);
    assert_eq!(world.fs.seek(ino, SeekFrom::Hole(2)).unwrap(), 6);
    assert_eq!(refused(world.fs.seek(ino, SeekFrom::Data(6))), Errno::NXIO);
}

#[test]
fn leftovers_of_a_crash_are_swept() {
    let world = World::usual();
    let work = world.dir.path().join("state/work");
    std::fs::write(work.join("0"), b"half").unwrap();
    std::fs::create_dir_all(work.join("1/x/y")).unwrap();
    let world = world.remount();
    assert_eq!(std::fs::read_dir(world.dir.path().join("state/work")).unwrap().count(), 0);
}

#[test]
fn a_damaged_mark_is_an_error_of_that_name_only() {
    let mut world = World::usual();
    world.fs.write(world.ino("lib/a.txt"), 0, b"J").unwrap();
    world.fs.write(world.ino("lib/b.txt"), 0, b"W").unwrap();
    for value in [&b"data:99999"[..], b"rubbish", b"dir:1", b"meta:0"] {
        let path = world.upper("lib/a.txt");
        rustix::fs::setxattr(&path, "user.holofs.entry", value, rustix::fs::XattrFlags::empty()).unwrap();
        world = world.remount();
        assert_eq!(refused(world.find("lib/a.txt")), Errno::IO);
        assert_eq!(world.read("lib/b.txt"), b"World\n");
    }
}

/// The mark of an upper entry.
fn mark_of(path: &std::path::Path) -> String {
    let mut text = [0u8; 64];
    let n = rustix::fs::lgetxattr(path, "user.holofs.entry", &mut text[..]).unwrap();
    String::from_utf8(text[..n].to_vec()).unwrap()
}

fn empty(world: &World, path: &str) {
    let change = SetAttr { size: Some(0), ..SetAttr::default() };
    world.fs.namespace().setattr(world.ino(path), &change).unwrap();
}

#[test]
fn an_emptied_file_records_its_boot_until_it_is_settled() {
    let world = World::usual();
    empty(&world, "lib/a.txt");
    let path = world.upper("lib/a.txt");
    let plain = mark_of(&path).split('@').next().unwrap().to_owned();
    assert!(mark_of(&path).contains('@'), "{}", mark_of(&path));
    assert_eq!(world.read("lib/a.txt"), b"");
    // The daemon was killed and the machine kept running, so the file stays empty.
    let world = world.remount();
    assert_eq!(world.read("lib/a.txt"), b"");
    world.fs.namespace().settle(std::time::Duration::ZERO);
    assert_eq!(mark_of(&path), plain);
    // A sync makes the file safe too.
    empty(&world, "lib/b.txt");
    assert!(mark_of(&world.upper("lib/b.txt")).contains('@'));
    world.fs.settled(Ok(()));
    world.fs.sync(world.ino("lib/b.txt"), true).unwrap();
    assert!(!mark_of(&world.upper("lib/b.txt")).contains('@'));
}

#[test]
fn an_emptied_file_of_an_earlier_boot_that_is_still_empty_has_its_old_bytes() {
    let world = World::usual();
    let another_run = |path: &std::path::Path| {
        let mark = mark_of(path);
        let (node, run) = mark.split_once('@').unwrap();
        let other = u32::from_str_radix(run, 16).unwrap().wrapping_add(1);
        let value = format!("{node}@{other:08x}");
        rustix::fs::setxattr(path, "user.holofs.entry", value.as_bytes(), rustix::fs::XattrFlags::empty())
            .unwrap();
    };
    empty(&world, "lib/a.txt");
    empty(&world, "lib/b.txt");
    let before = world.ino("lib/a.txt");
    world.fs.write(world.ino("lib/b.txt"), 0, b"new\n").unwrap();
    another_run(&world.upper("lib/a.txt"));
    another_run(&world.upper("lib/b.txt"));
    let world = world.remount();
    assert_eq!(world.read("lib/a.txt"), b"hello\n");
    assert_eq!(world.find("lib/a.txt").unwrap().mtime.sec, MOTHER_TIME);
    assert_eq!(world.ino("lib/a.txt"), before);
    assert_eq!(world.read("lib/b.txt"), b"new\n", "bytes that are there are believed");
    for path in ["lib/a.txt", "lib/b.txt"] {
        assert!(!mark_of(&world.upper(path)).contains('@'), "{path}");
        // From then on it is an ordinary entry.
        empty(&world, path);
        let world = &world;
        assert_eq!(world.read(path), b"");
    }
}

#[test]
fn a_read_finds_at_once_what_needs_no_long_wait() {
    let here = |world: &World, path: &str| match world.fs.find_data(world.ino(path)).unwrap() {
        DataLocation::Here(data) => Some(data),
        DataLocation::Fetch(_) => None,
    };
    let world = World::usual();
    assert!(matches!(here(&world, "lib/a.txt"), Some(FileData::Bytes(_))), "small, on a disk");
    for large in ["lib/large.bin", "bin/large-tool"] {
        assert!(here(&world, large).is_none(), "{large} is fetched first");
        // The first reads may come from a stream, which is not held any more once it is whole.
        while !matches!(here(&world, large), Some(FileData::File(_))) {
            world.read(large);
        }
    }
    world.fs.write(world.ino("lib/a.txt"), 0, b"J").unwrap();
    assert!(matches!(here(&world, "lib/a.txt"), Some(FileData::Upper(_))));
    let world = World::usual().far();
    assert!(here(&world, "lib/b.txt").is_none(), "small, but the library is slow");
    assert_eq!(world.read("lib/b.txt"), b"world\n");
    assert!(matches!(here(&world, "lib/b.txt"), Some(FileData::Bytes(_))), "in memory");
}

/// A reader of the failed stream, such as a readahead, may still hold it.
#[test]
fn a_read_after_a_failed_stream_tries_again() {
    let world = World::usual();
    let (library, aside) = (world.dir.path().join("hololib/library"), world.dir.path().join("aside"));
    std::fs::rename(&library, &aside).unwrap();
    let ino = world.ino("lib/large.bin");
    let DataLocation::Fetch(node) = world.fs.find_data(ino).unwrap() else { panic!("not fetched yet") };
    let held = world.fs.fetch_data(node).unwrap();
    assert!(matches!(&held, FileData::Stream(filling, _) if filling.wait(0, 1).is_err()));
    std::fs::rename(&aside, &library).unwrap();
    assert_eq!(world.read("lib/large.bin").len(), 300_000);
    drop(held);
}

#[test]
fn changes_wait_for_the_record_of_the_space() {
    let mut world = World::usual();
    world.fs.namespace = world.fs.namespace.until_recorded();
    std::thread::scope(|scope| {
        let made = scope.spawn(|| world.fs.namespace().make(Ino::ROOT, b"new", Make::File(0o644), caller()));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!made.is_finished() && world.upper_files().is_empty());
        assert_eq!(world.read("lib/a.txt"), b"hello\n", "reading waits for nothing");
        world.fs.settled(Ok(()));
        made.join().unwrap().unwrap();
    });
}
