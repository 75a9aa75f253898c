//! The death of a worker: what the kernel knows by number is the same for the next worker.

mod random;

use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::io::Errno;

use super::world::{World, caller, refused};
use super::{MOTHER, MOTHER_TIME, Make};
use crate::fs::error::errno;
use crate::handoff::held::DirTimes;
use crate::namespace::read::Taken;
use crate::namespace::rename::RenameMode;
use crate::namespace::types::{Attr, Ino, Kind, Result, SetAttr};

fn read(world: &World, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let n = world.read_start(ino, &mut bytes).unwrap();
    bytes.truncate(n);
    bytes
}

fn make(world: &World, dir: Ino, name: &str, what: Make<'_>) -> Ino {
    world.fs.namespace().make(dir, name.as_bytes(), what, caller()).unwrap().ino
}

fn rename(world: &World, from: &str, to: &str) {
    let (dir, name) = from.rsplit_once('/').unwrap_or(("", from));
    let (new_dir, new_name) = to.rsplit_once('/').unwrap_or(("", to));
    let (dir, new_dir) = (world.ino(dir), world.ino(new_dir));
    let names = world.fs.namespace();
    names.rename(dir, name.as_bytes(), new_dir, new_name.as_bytes(), RenameMode::Replace).unwrap();
}

/// The cookies and names of a listing after a cookie, at most `most`.
fn listed(world: &World, dir: Ino, after: u64, most: usize) -> Vec<(u64, String)> {
    let mut out = Vec::new();
    let mut take = |entry: crate::namespace::read::DirEntry<'_>| {
        if out.len() == most {
            return Taken::Full;
        }
        out.push((entry.cookie, String::from_utf8_lossy(entry.name).into_owned()));
        Taken::Yes
    };
    world.fs.namespace().readdir(dir, after, true, &mut take).unwrap();
    out
}

#[test]
fn created_changed_and_moved_entries_keep_their_numbers() {
    for background in [false, true] {
        let world = World::usual();
        let dir = make(&world, Ino::ROOT, "dir", Make::Dir(0o755));
        let sub = make(&world, dir, "sub", Make::Dir(0o700));
        let file = make(&world, sub, "file", Make::File(0o600));
        world.fs.write(file, 0, b"created").unwrap();
        let (changed, moved, meta) = (world.ino("lib/a.txt"), world.ino("lib/b.txt"), world.ino("bin/tool"));
        world.fs.write(changed, 0, b"HELLO").unwrap();
        rename(&world, "lib/b.txt", "dir/sub/b");
        let mode = SetAttr { mode: Some(0o640), ..SetAttr::default() };
        world.fs.namespace().setattr(meta, &mode).unwrap();
        let (lower_dir, deep) = (world.ino("lib/sub"), world.ino("lib/sub/deep.txt"));
        rename(&world, "lib/sub", "dir/sub/moved");
        let (untouched, large) = (world.ino("identity.yaml"), world.ino("lib/large.bin"));

        let world = world.takeover();
        std::thread::scope(|scope| {
            if background {
                scope.spawn(|| world.fs.namespace().adopt());
            }
            assert_eq!(read(&world, file), b"created");
            assert_eq!(read(&world, changed), b"HELLO\n");
            assert_eq!(read(&world, moved), b"world\n");
            assert_eq!(world.fs.namespace().attr(meta).unwrap().mode, 0o640);
            assert_eq!(read(&world, deep), b"deep");
            assert_eq!(read(&world, untouched), b"channels: []");
            assert_eq!(world.fs.namespace().attr(large).unwrap().size, 300_000);
        });
        let parent = |ino: Ino| {
            let mut parent = Ino(0);
            let mut take = |entry: crate::namespace::read::DirEntry<'_>| {
                parent = if entry.name == b".." { entry.ino } else { parent };
                Taken::Yes
            };
            world.fs.namespace().readdir(ino, 0, false, &mut take).unwrap();
            parent
        };
        assert_eq!((parent(lower_dir), parent(sub), parent(dir)), (sub, dir, Ino::ROOT));
        // By path, everything has the number that it had.
        for (path, ino) in [
            ("dir/sub/file", file),
            ("dir/sub/b", moved),
            ("lib/a.txt", changed),
            ("bin/tool", meta),
            ("dir/sub/moved/deep.txt", deep),
        ] {
            assert_eq!(world.ino(path), ino, "{path}");
        }
        assert_eq!(refused(world.fs.namespace().attr(Ino(1 << 60))), Errno::STALE);
    }
}

/// An entry that the kernel knows keeps its node, although its lookups were counted by another worker.
#[test]
fn a_forgotten_lookup_does_not_drop_what_an_earlier_worker_told_the_kernel() {
    let world = World::usual();
    let ino = make(&world, Ino::ROOT, "file", Make::File(0o644));
    let changed = world.ino("lib/a.txt");
    world.fs.write(changed, 0, b"HELLO").unwrap();
    let world = world.takeover();
    for (path, ino) in [("file", ino), ("lib/a.txt", changed)] {
        assert_eq!(world.ino(path), ino);
        world.fs.namespace().forget(ino, 1);
    }
    assert_eq!(read(&world, changed), b"HELLO\n");
    world.fs.write(ino, 0, b"here").unwrap();
    // It is still kept when it loses its name.
    world.fs.namespace().unlink(Ino::ROOT, b"file").unwrap();
    assert_eq!(read(&world, ino), b"here");
    let world = world.takeover();
    assert_eq!(read(&world, ino), b"here");
}

#[test]
fn files_without_a_name_live_on_until_the_kernel_forgets_them() {
    let world = World::usual();
    let names = world.fs.namespace();
    let (lib, bin) = (world.ino("lib"), world.ino("bin"));
    let made = make(&world, Ino::ROOT, "made", Make::File(0o644));
    let replaced = make(&world, Ino::ROOT, "replaced", Make::File(0o644));
    make(&world, Ino::ROOT, "over", Make::File(0o644));
    let (changed, pure, meta) = (world.ino("lib/a.txt"), world.ino("lib/b.txt"), world.ino("bin/tool"));
    let covered = world.ino("identity.yaml");
    for ino in [made, replaced, changed] {
        world.fs.write(ino, 0, b"MINE").unwrap();
    }
    names.setattr(meta, &SetAttr { mode: Some(0o400), ..SetAttr::default() }).unwrap();
    let tool = read(&world, meta);
    names.unlink(Ino::ROOT, b"made").unwrap();
    names.rename(Ino::ROOT, b"over", Ino::ROOT, b"replaced", RenameMode::Replace).unwrap();
    names.rename(Ino::ROOT, b"replaced", Ino::ROOT, b"identity.yaml", RenameMode::Replace).unwrap();
    names.unlink(lib, b"a.txt").unwrap();
    names.unlink(lib, b"b.txt").unwrap();
    names.unlink(bin, b"tool").unwrap();

    let mut world = world;
    for round in 0..3 {
        world = world.takeover();
        for (ino, bytes) in [
            (made, &b"MINE"[..]),
            (replaced, b"MINE"),
            (changed, b"MINEo\n"),
            (pure, b"world\n"),
            (covered, b"channels: []"),
            (meta, &tool),
        ] {
            assert_eq!(read(&world, ino), bytes, "{ino:?} in round {round}");
            assert_eq!(world.fs.namespace().attr(ino).unwrap().nlink, 0, "{ino:?}");
        }
        assert_eq!(world.fs.namespace().attr(meta).unwrap().mode, 0o400);
        world.fs.namespace().adopt();
    }
    // A write to a library file without a name stays without one.
    world.fs.write(pure, 0, b"W").unwrap();
    world.fs.write(meta, 0, b"#").unwrap();
    let mut world = world.takeover();
    assert_eq!(read(&world, pure), b"World\n");
    assert_eq!(read(&world, meta), tool);
    assert_eq!(refused(world.find("lib/b.txt")), Errno::NOENT);

    // The kernel forgets some of them. The others stay.
    let all = [made, replaced, changed, pure, covered, meta];
    let known: Arc<Mutex<HashSet<Ino>>> = Arc::new(Mutex::new(all.into_iter().collect()));
    for _ in 0..2 {
        let asked = Arc::clone(&known);
        world.fs.namespace().ask_kernel_by(move |ino| asked.lock().unwrap().contains(&ino));
        for ino in all {
            known.lock().unwrap().remove(&ino);
            world.fs.namespace().forget(ino, 1);
            for other in known.lock().unwrap().iter() {
                world.fs.namespace().attr(*other).unwrap();
            }
        }
        assert_eq!(world.fs.namespace().handoff().held().fds(), []);
        assert_eq!(world.fs.namespace().handoff().held().gone(1000), [0; 0]);
        world = world.takeover();
    }
}

/// What the kernel forgot while no worker was there is dropped after the takeover.
#[test]
fn what_nobody_knows_is_dropped_after_a_takeover() {
    let world = World::usual();
    let made = make(&world, Ino::ROOT, "made", Make::File(0o644));
    let pure = world.ino("lib/b.txt");
    world.fs.namespace().unlink(Ino::ROOT, b"made").unwrap();
    world.fs.namespace().unlink(world.ino("lib"), b"b.txt").unwrap();
    assert_eq!(world.fs.namespace().handoff().held().fds().len(), 1);
    let world = world.takeover();
    world.fs.namespace().ask_kernel_by(move |ino| ino != made && ino != pure);
    world.fs.namespace().adopt();
    assert_eq!(world.fs.namespace().handoff().held().fds(), []);
    assert_eq!(world.fs.namespace().handoff().held().gone(1000), [0; 0]);
    assert_eq!(refused(world.fs.namespace().attr(made)), Errno::STALE);
}

#[test]
fn a_note_of_a_removal_that_did_not_happen_is_no_removal() {
    let world = World::usual();
    let (pure, changed) = (world.ino("lib/b.txt"), world.ino("lib/a.txt"));
    world.fs.write(changed, 0, b"x").unwrap();
    world.fs.namespace().handoff().held().set_gone(pure.lower().unwrap().0);
    let file = std::fs::File::open(world.upper("lib/a.txt")).unwrap();
    let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
    assert!(world.fs.namespace().handoff().held().hold_fd(fd, changed.0));
    // This one was closed.
    assert!(world.fs.namespace().handoff().held().hold_fd(60_000, made_up().0));
    let world = world.takeover();
    assert_eq!(world.fs.namespace().attr(pure).unwrap().nlink, 1);
    rename(&world, "lib/a.txt", "moved");
    world.fs.namespace().adopt();
    assert_eq!(world.fs.namespace().handoff().held().fds(), []);
    let world = world.takeover();
    assert_eq!(read(&world, pure), b"world\n");
    assert_eq!(read(&world, changed), b"xello\n");
    assert_eq!(world.fs.namespace().attr(changed).unwrap().nlink, 1);
    assert_eq!(world.ino("lib/b.txt"), pure);
}

fn made_up() -> Ino {
    Ino::of_created(4711)
}

#[test]
fn removed_directories_stay_what_they_are_to_who_is_in_them() {
    let world = World::usual();
    let names = world.fs.namespace();
    let (made, pure) = (make(&world, Ino::ROOT, "made", Make::Dir(0o755)), world.ino("empty"));
    let (sub, replaced) = (world.ino("lib/sub"), make(&world, Ino::ROOT, "replaced", Make::Dir(0o755)));
    names.rmdir(Ino::ROOT, b"made").unwrap();
    names.rmdir(Ino::ROOT, b"empty").unwrap();
    names.unlink(sub, b"deep.txt").unwrap();
    names.rmdir(world.ino("lib"), b"sub").unwrap();
    make(&world, Ino::ROOT, "other", Make::Dir(0o755));
    rename(&world, "other", "replaced");
    let mut world = world;
    for _ in 0..2 {
        world = world.takeover();
        for ino in [made, pure, sub, replaced] {
            let attr = world.fs.namespace().attr(ino).unwrap();
            assert_eq!((attr.kind, attr.nlink), (Kind::Dir, 0), "{ino:?}");
            assert_eq!(listed(&world, ino, 0, 10), [], "{ino:?}");
            let refused = refused(world.fs.namespace().make(ino, b"x", Make::File(0o644), caller()));
            assert_eq!(refused, Errno::NOENT, "{ino:?}");
        }
    }
    assert_eq!(world.list(""), ["bin", "identity.yaml", "lib", "replaced"]);
}

#[test]
fn a_listing_goes_on_where_it_was() {
    let world = World::usual();
    let lib = world.ino("lib");
    for n in 0..700 {
        make(&world, lib, &format!("new-{n}"), Make::File(0o644));
    }
    world.fs.namespace().unlink(lib, b"a.txt").unwrap();
    let whole = listed(&world, lib, 0, usize::MAX);
    let mut world = world;
    let mut got = Vec::new();
    while let Some(more) = Some(listed(&world, lib, got.last().map_or(0, |(at, _)| *at), 100)) {
        if more.is_empty() {
            break;
        }
        got.extend(more);
        world = world.takeover();
    }
    assert_eq!(got, whole);
}

#[test]
fn a_directory_gets_its_times_back_if_the_worker_died_in_a_copy_up() {
    let world = World::usual();
    world.fs.write(world.ino("lib/a.txt"), 0, b"x").unwrap();
    let lib = world.ino("lib");
    let mother = (MOTHER_TIME, 0);
    let times = DirTimes { atime: mother, mtime: mother, ctime: mother };
    world.fs.namespace().handoff().held().keep_times(lib.0, times).unwrap();
    std::fs::write(world.upper("lib/unnoticed"), "").unwrap();
    std::fs::remove_file(world.upper("lib/unnoticed")).unwrap();
    let world = world.takeover();
    let attr = world.fs.namespace().attr(lib).unwrap();
    assert_eq!((attr.atime.sec, attr.mtime.sec, attr.ctime.sec), (MOTHER_TIME, MOTHER_TIME, MOTHER_TIME));
    assert_eq!(world.fs.namespace().handoff().held().take_times(), []);
    make(&world, lib, "new", Make::File(0o644));
    assert_ne!(world.fs.namespace().attr(lib).unwrap().mtime.sec, MOTHER_TIME);
}

/// After each kind of change the memory holds no times, so that no later takeover sets them.
#[test]
fn times_are_noted_during_a_copy_up_only() {
    let world = World::usual();
    world.fs.write(world.ino("lib/a.txt"), 0, b"x").unwrap();
    rename(&world, "lib/sub", "sub");
    world
        .fs
        .namespace()
        .setattr(world.ino("bin"), &SetAttr { mtime: Some(MOTHER), ..SetAttr::default() })
        .unwrap();
    assert_eq!(world.fs.namespace().handoff().held().take_times(), []);
}

#[test]
fn a_file_that_was_emptied_is_still_written_out() {
    let world = World::usual();
    let (own, lower) = (make(&world, Ino::ROOT, "own", Make::File(0o644)), world.ino("lib/a.txt"));
    world.fs.write(own, 0, b"old").unwrap();
    for ino in [own, lower] {
        world.fs.namespace().setattr(ino, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    }
    let waiting = |world: &World| {
        world.fs.namespace().handoff().held().emptied().into_iter().map(Ino).collect::<HashSet<_>>()
    };
    let mut world = world;
    for _ in 0..2 {
        world = world.takeover();
        world.fs.namespace().adopt();
        assert_eq!(waiting(&world), HashSet::from([own, lower]));
    }
    world.fs.write(own, 0, b"new").unwrap();
    world.fs.namespace().settle(Duration::ZERO);
    assert_eq!(waiting(&world), HashSet::new());
    let mut mark = [0; 32];
    let n = rustix::fs::getxattr(world.upper("lib/a.txt"), "user.holofs.entry", &mut mark[..]).unwrap();
    assert_eq!(mark[..n], *format!("data:{}", lower.lower().unwrap().0).as_bytes());
}

#[test]
fn an_alias_of_a_reset_keeps_its_number() {
    let world = World::usual();
    let (open, below) = (world.ino("lib/a.txt"), world.ino("lib/b.txt"));
    for ino in [open, below] {
        world.fs.write(ino, 0, b"mine").unwrap();
        assert!(
            world
                .fs
                .namespace()
                .revert(Path::new(if ino == open { "lib/a.txt" } else { "lib/b.txt" }))
                .unwrap()
                .is_some()
        );
    }
    let (a, b) = (world.ino("lib/a.txt"), world.ino("lib/b.txt"));
    assert!(a != open && b != below);
    let check = |world: &World, a_bytes: &[u8]| {
        assert_eq!((read(world, open), read(world, a)), (b"mineo\n".to_vec(), a_bytes.to_vec()));
        assert_eq!((read(world, below), read(world, b)), (b"mined\n".to_vec(), b"world\n".to_vec()));
        assert_eq!(
            (world.fs.namespace().attr(open).unwrap().nlink, world.fs.namespace().attr(a).unwrap().nlink),
            (0, 1)
        );
    };
    let world = world.takeover();
    check(&world, b"hello\n");
    assert_eq!((world.ino("lib/a.txt"), world.ino("lib/b.txt")), (a, b));
    world.fs.write(a, 0, b"HE").unwrap();
    rename(&world, "lib/a.txt", "bin/a");
    let world = world.takeover();
    check(&world, b"HEllo\n");
    assert_eq!(world.ino("bin/a"), a);
    // The alias itself is removed, with and without a file in the upper.
    world.fs.namespace().unlink(world.ino("bin"), b"a").unwrap();
    world.fs.namespace().unlink(world.ino("lib"), b"b.txt").unwrap();
    let world = world.takeover();
    assert_eq!((read(&world, a), read(&world, b)), (b"HEllo\n".to_vec(), b"world\n".to_vec()));
    for ino in [open, below, a, b] {
        assert_eq!(world.fs.namespace().attr(ino).unwrap().nlink, 0);
    }
}

/// A request looks whether the search is over, and into the table. The search may end between both looks.
#[test]
fn an_entry_is_known_while_the_search_ends() {
    let mut world = World::usual();
    let dir = make(&world, Ino::ROOT, "dir", Make::Dir(0o755));
    let files: Vec<Ino> =
        (0..20).map(|n| make(&world, dir, &format!("file{n}"), Make::File(0o600))).collect();
    // So many, because few threads come to look at just this time.
    for _ in 0..2000 {
        world = world.takeover();
        let names = world.fs.namespace();
        let begin = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begin.wait();
                names.adopt();
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    begin.wait();
                    files.iter().rev().for_each(|file| assert_eq!(names.attr(*file).unwrap().ino, *file));
                });
            }
        });
    }
}

/// The worker may ask the kernel about an entry before it gets the kernel's notice that the entry is forgotten. Meanwhile a
/// new file can get the number.
#[test]
fn a_late_forget_does_not_drop_a_new_entry_with_the_same_number() {
    let world = World::usual();
    let old = make(&world, Ino::ROOT, "file", Make::File(0o600));
    world.fs.namespace().unlink(Ino::ROOT, b"file").unwrap();
    let world = world.takeover();
    let names = world.fs.namespace();
    names.ask_kernel_by(move |ino| ino != old);
    names.adopt();
    assert_eq!(refused(names.attr(old)), Errno::STALE);
    let new = make(&world, Ino::ROOT, "file", Make::File(0o600));
    // Not every filesystem uses the number again at once. It makes no difference to the table.
    names.forget(new, 1);
    world.fs.write(new, 0, b"bytes").unwrap();
    assert_eq!(read(&world, new), b"bytes");
}

/// The search puts an entry into the table. A request that finds it there at once can use it.
#[test]
fn an_entry_can_be_used_as_soon_as_it_is_in_the_table() {
    let mut world = World::usual();
    let file = make(&world, Ino::ROOT, "file", Make::File(0o600));
    for _ in 0..1000 {
        world = world.takeover();
        let names = world.fs.namespace();
        let before = names.table_len();
        std::thread::scope(|scope| {
            scope.spawn(|| names.adopt());
            while names.table_len() == before {
                std::hint::spin_loop();
            }
            assert_eq!(names.attr(file).unwrap().ino, file);
        });
    }
}
