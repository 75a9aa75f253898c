//! The changes of an upper, read without a mount, against what the namespace shows.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};

use super::super::Make;
use super::world::{World, caller};
use crate::library::index::{Index, NodeId, NodeKind};
use crate::namespace::rename::RenameMode;
use crate::namespace::types::{Attr, Ino, Kind, SetAttr, SetTime, Time};
use crate::space::upper::changes::{Change, Changes, What};

/// What a space shows under one path.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Shown {
    ino: Ino,
    kind: Kind,
    mode: u32,
    /// Not of a directory, whose count is that of its subdirectories.
    nlink: u32,
    /// Length and checksum of the bytes, or of the text of a link.
    content: (usize, u32),
}

/// The tree that the namespace shows.
fn shown(world: &World, path: &str, out: &mut BTreeMap<String, Shown>) {
    for name in world.list(path) {
        let path = join(path, &name);
        let attr = world.find(&path).unwrap();
        let Attr { ino, kind, mode, nlink, .. } = attr;
        let content = match kind {
            Kind::File => world.read(&path),
            Kind::Symlink => world.fs.namespace().readlink(ino).unwrap(),
            _ => Vec::new(),
        };
        let nlink = if kind == Kind::Dir { 0 } else { nlink };
        out.insert(path.clone(), Shown { ino, kind, mode, nlink, content: sum(&content) });
        if kind == Kind::Dir {
            shown(world, &path, out);
        }
    }
}

fn sum(content: &[u8]) -> (usize, u32) {
    (content.len(), crc32fast::hash(content))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

/// A change, with what it needs of the upper.
struct Applied {
    what: What,
    origin: Option<NodeId>,
    shown: Option<Shown>,
}

impl Applied {
    fn of(change: &Change<'_>) -> Self {
        let what = change.what();
        let shown = change.now.map(|now| {
            let kind = now.present.kind;
            let open =
                |flags| rustix::fs::openat(change.at.dir, change.at.listed.file_name(), flags, Mode::empty());
            let mut content = Vec::new();
            match (what, kind) {
                (What::Bytes | What::Created, Kind::File) => {
                    File::from(open(OFlags::RDONLY | OFlags::NOFOLLOW).unwrap())
                        .read_to_end(&mut content)
                        .unwrap();
                }
                (What::Created, Kind::Symlink) => {
                    let path = open(OFlags::PATH | OFlags::NOFOLLOW).unwrap();
                    content = rustix::fs::readlinkat(path, c"", Vec::new()).unwrap().into_bytes();
                }
                _ => {}
            }
            let mode = if kind == Kind::Symlink { 0o777 } else { change.mode().unwrap().unwrap() };
            let nlink = if kind == Kind::Dir { 0 } else { u32::try_from(now.stat.st_nlink).unwrap() };
            Shown { ino: now.present.ino, kind, mode, nlink, content: sum(&content) }
        });
        Self { what, origin: change.now.and_then(|now| now.present.origin), shown }
    }
}

/// What each lower node shows in a space without changes.
fn fresh(node: NodeId) -> Shown {
    static FRESH: LazyLock<BTreeMap<Ino, Shown>> = LazyLock::new(|| {
        let mut fresh = BTreeMap::new();
        shown(&World::usual(), "", &mut fresh);
        fresh.into_values().map(|shown| (shown.ino, shown)).collect()
    });
    FRESH[&Ino::of_lower(node)].clone()
}

/// The tree that the changes of the upper give, applied to the tree of the index.
struct Merge<'a> {
    index: &'a Index,
    changes: BTreeMap<String, Applied>,
    out: BTreeMap<String, Shown>,
}

impl Merge<'_> {
    fn tree(world: &World) -> BTreeMap<String, Shown> {
        let root = File::open(world.upper("")).unwrap();
        let index = world.fs.namespace().index();
        let mut changes = Changes::new(root.as_fd(), index).unwrap();
        let mut applied = BTreeMap::new();
        while let Some(change) = changes.advance() {
            let change = change.unwrap();
            let path = change.at.path.to_str().unwrap().to_owned();
            assert!(applied.insert(path, Applied::of(&change)).is_none());
        }
        let mut merge = Merge { index, changes: applied, out: BTreeMap::new() };
        merge.dir("", Some(NodeId(0)));
        assert!(merge.changes.is_empty(), "each change is of a directory that shows");
        merge.out
    }

    fn dir(&mut self, path: &str, lower: Option<NodeId>) {
        let names: Vec<String> = self.changes.keys().filter(|key| parent(key) == path).cloned().collect();
        let mut covered = Vec::new();
        for at in names {
            let Applied { what, origin, shown } = self.changes.remove(&at).unwrap();
            covered.push(at.clone());
            let Some(mut shown) = shown else {
                assert_eq!(what, What::Removed);
                continue;
            };
            if what == What::Metadata {
                shown.content = fresh(origin.unwrap()).content;
            }
            let is_dir = shown.kind == Kind::Dir;
            self.out.insert(at.clone(), shown);
            if is_dir {
                self.dir(&at, origin);
            }
        }
        let Some(lower) = lower else { return };
        let NodeKind::Dir { children, .. } = self.index.node(lower).unwrap().kind else { unreachable!() };
        for child in children.map(NodeId) {
            let at = join(path, std::str::from_utf8(self.index.node(child).unwrap().name).unwrap());
            if covered.contains(&at) {
                continue;
            }
            let shown = fresh(child);
            let is_dir = shown.kind == Kind::Dir;
            self.out.insert(at.clone(), shown);
            if is_dir {
                self.dir(&at, Some(child));
            }
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[derive(Clone, Debug)]
enum Op {
    Write(String),
    Truncate(String, u64),
    Chmod(String, u32),
    Touch(String),
    Make(String),
    Mkdir(String),
    Symlink(String),
    Remove(String),
    Rename(String, String, RenameMode),
    Link(String, String),
    Remount,
}

/// Does an operation. What it may not do is refused, which leaves nothing to compare.
fn apply(world: World, op: &Op) -> World {
    let names = world.fs.namespace();
    let place = |path: &str| {
        let dir = world.find(parent(path)).ok()?;
        Some((dir.ino, path.rsplit('/').next().unwrap().as_bytes().to_vec()))
    };
    let set = |path: &str, change: SetAttr| {
        if let Ok(attr) = world.find(path) {
            let _refused = names.setattr(attr.ino, &change);
        }
    };
    let make = |path: &str, what| {
        if let Some((dir, name)) = place(path) {
            let _refused = names.make(dir, &name, what, caller());
        }
    };
    match op {
        Op::Write(path) => {
            if let Ok(attr) = world.find(path) {
                let _refused = world.fs.write(attr.ino, 2, b"written");
            }
        }
        Op::Truncate(path, size) => set(path, SetAttr { size: Some(*size), ..SetAttr::default() }),
        Op::Chmod(path, mode) => set(path, SetAttr { mode: Some(*mode), ..SetAttr::default() }),
        Op::Touch(path) => {
            let mtime = Some(SetTime::At(Time { sec: 5, nsec: 6 }));
            set(path, SetAttr { mtime, ..SetAttr::default() });
        }
        Op::Make(path) => make(path, Make::File(0o604)),
        Op::Mkdir(path) => make(path, Make::Dir(0o751)),
        Op::Symlink(path) => make(path, Make::Symlink(c"somewhere")),
        Op::Remove(path) => {
            if let Some((dir, name)) = place(path)
                && names.unlink(dir, &name).is_err()
            {
                let _refused = names.rmdir(dir, &name);
            }
        }
        Op::Rename(from, to, mode) => {
            if let (Some((dir, name)), Some((new_dir, new_name))) = (place(from), place(to)) {
                let _refused = names.rename(dir, &name, new_dir, &new_name, *mode);
            }
        }
        Op::Link(from, to) => {
            if let (Ok(attr), Some((dir, name))) = (world.find(from), place(to)) {
                let _refused = names.link(attr.ino, dir, &name);
            }
        }
        Op::Remount => return world.remount(),
    }
    world
}

fn path() -> impl Strategy<Value = String> {
    let dir = prop::sample::select(vec!["", "lib", "lib", "lib/sub", "bin", "empty", "d", "lib/d"]);
    let name = prop::sample::select(vec![
        "a.txt", "b.txt", "link", "sub", "deep.txt", "lib", "bin", "tool", "empty", "d", "n",
    ]);
    (dir, name).prop_map(|(dir, name)| join(dir, name))
}

fn op() -> impl Strategy<Value = Op> {
    let mode = prop::sample::select(vec![RenameMode::Replace, RenameMode::Replace, RenameMode::Exchange]);
    prop_oneof![
        3 => path().prop_map(Op::Write),
        2 => (path(), prop::sample::select(vec![0, 3, 20])).prop_map(|(path, size)| Op::Truncate(path, size)),
        2 => (path(), prop::sample::select(vec![0o4, 0o644, 0o4755, 0o700]))
            .prop_map(|(path, mode)| Op::Chmod(path, mode)),
        1 => path().prop_map(Op::Touch),
        2 => path().prop_map(Op::Make),
        3 => path().prop_map(Op::Mkdir),
        1 => path().prop_map(Op::Symlink),
        4 => path().prop_map(Op::Remove),
        6 => (path(), path(), mode).prop_map(|(from, to, mode)| Op::Rename(from, to, mode)),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        1 => Just(Op::Remount),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    /// For every upper that operations can make, on filesystems with whiteout devices and without.
    #[test]
    fn changes_applied_to_the_catalog_give_what_the_namespace_shows(
        ops in prop::collection::vec(op(), 1..40),
        marking in any::<bool>(),
    ) {
        let mut world = if marking { World::marking() } else { World::usual() };
        for op in &ops {
            world = apply(world, op);
        }
        let mut wanted = BTreeMap::new();
        shown(&world, "", &mut wanted);
        prop_assert_eq!(Merge::tree(&world), wanted);
    }
}

/// Only a test, or a later caller without a kernel, renames an entry that the kernel has not looked up.
#[test]
fn a_renamed_file_is_exchanged_although_the_kernel_does_not_know_it() {
    let world = World::usual();
    let names = world.fs.namespace();
    let (lib, sub) = (world.ino("lib"), world.ino("lib/sub"));
    names.rename(lib, b"b.txt", sub, b"tool", RenameMode::Replace).unwrap();
    names.rename(lib, b"a.txt", sub, b"tool", RenameMode::Exchange).unwrap();
    names.setattr(world.ino("lib/a.txt"), &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    assert_eq!(world.list("lib"), ["a.txt", "large.bin", "link", "sub"]);
    assert_eq!(world.read("lib/sub/tool"), b"hello\n");
    assert_eq!(world.read("lib/a.txt"), b"");
}

/// The changes of a space, as text.
fn changes_of(world: &World) -> Vec<String> {
    let root = File::open(world.upper("")).unwrap();
    let index = world.fs.namespace().index();
    let mut changes = Changes::new(root.as_fd(), index).unwrap();
    let mut out = Vec::new();
    while let Some(change) = changes.advance() {
        out.push(match change {
            Ok(change) => {
                let from = change.renamed_from().map(|node| format!(" from {}", index.path_of(node)));
                format!("{} {:?}{}", change.at.path.display(), change.what(), from.unwrap_or_default())
            }
            Err(error) => error.to_string(),
        });
    }
    out
}

#[test]
fn each_change_says_what_it_does_and_where_it_came_from() {
    let world = World::usual();
    assert_eq!(changes_of(&world), [""; 0]);
    let names = world.fs.namespace();
    let (root, lib) = (Ino::ROOT, world.ino("lib"));
    world.fs.write(world.ino("lib/a.txt"), 0, b"J").unwrap();
    names.setattr(world.ino("lib/b.txt"), &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    names.unlink(lib, b"link").unwrap();
    names.rename(lib, b"large.bin", root, b"moved", RenameMode::Replace).unwrap();
    names.rename(lib, b"sub", root, b"sub", RenameMode::Replace).unwrap();
    names.unlink(world.ino("sub"), b"deep.txt").unwrap();
    names.rmdir(root, b"empty").unwrap();
    names.make(root, b"empty", Make::Dir(0o755), caller()).unwrap();
    names.link(world.ino("lib/a.txt"), world.ino("empty"), b"second").unwrap();
    assert_eq!(
        changes_of(&world),
        [
            "empty Created",
            "empty/second Bytes from lib/a.txt",
            "lib Merged",
            "lib/a.txt Bytes",
            "lib/b.txt Metadata",
            "lib/large.bin Removed",
            "lib/link Removed",
            "lib/sub Removed",
            "moved Metadata from lib/large.bin",
            "sub Merged from lib/sub",
            "sub/deep.txt Removed",
        ]
    );
}

#[test]
fn a_damaged_mark_hides_its_own_entry_and_what_is_below_only() {
    let world = World::usual();
    for path in ["lib/a.txt", "lib/sub/deep.txt", "bin/tool"] {
        world.fs.write(world.ino(path), 0, b"x").unwrap();
    }
    let mark = |path: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(world.upper(path), "user.holofs.entry", value, flags).unwrap();
    };
    mark("lib/sub", b"dir:9999");
    mark("lib/a.txt", b"data:99999999999999999999999999999999999");
    assert_eq!(
        changes_of(&world),
        [
            "bin Merged",
            "bin/tool Bytes",
            "lib Merged",
            "the upper entry \"lib/a.txt\" is damaged: its user.holofs.entry attribute is too long",
            "the upper entry \"lib/sub\" is damaged: its mark names a node that the catalog does not have",
        ]
    );
}

#[test]
fn a_file_emptied_before_a_loss_of_power_shows_the_librarys_bytes() {
    let world = World::usual();
    world
        .fs
        .namespace()
        .setattr(world.ino("lib/a.txt"), &SetAttr { size: Some(0), ..SetAttr::default() })
        .unwrap();
    assert_eq!(changes_of(&world), ["lib Merged", "lib/a.txt Bytes"]);
    let node = world.ino("lib/a.txt").lower().unwrap().0;
    let flags = rustix::fs::XattrFlags::empty();
    let earlier_boot = format!("data:{node}@00000001");
    rustix::fs::setxattr(world.upper("lib/a.txt"), "user.holofs.entry", earlier_boot.as_bytes(), flags)
        .unwrap();
    assert_eq!(changes_of(&world), ["lib Merged", "lib/a.txt Metadata"]);
    let world = world.remount();
    assert_eq!(world.read("lib/a.txt"), b"hello\n");
}

/// A look at the upper of a space that is in use: entries come, go and change places meanwhile, and none is an error.
#[test]
fn changes_are_read_while_the_space_is_in_use() {
    let world = World::usual();
    let (lib, bin) = (world.ino("lib"), world.ino("bin"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let names = world.fs.namespace();
            for _ in 0..100 {
                names.make(lib, b"d", Make::Dir(0o755), caller()).unwrap();
                names.make(world.ino("lib/d"), b"f", Make::File(0o644), caller()).unwrap();
                names.rename(lib, b"a.txt", bin, b"x", RenameMode::Replace).unwrap();
                names.rename(lib, b"d", bin, b"x", RenameMode::Exchange).unwrap();
                names.rename(lib, b"d", lib, b"a.txt", RenameMode::Replace).unwrap();
                names.unlink(world.ino("bin/x"), b"f").unwrap();
                names.rmdir(bin, b"x").unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        let root = File::open(world.upper("")).unwrap();
        while !done.load(Ordering::Relaxed) {
            let mut changes = Changes::new(root.as_fd(), world.fs.namespace().index()).unwrap();
            while let Some(change) = changes.advance() {
                change.unwrap();
            }
        }
    });
    assert_eq!(world.list("lib"), ["a.txt", "b.txt", "large.bin", "link", "sub"]);
}
