//! Random operations that are likely to have an effect: on paths that exist or once existed.

use rustix::fs::{FallocateFlags, RenameFlags};

use super::op::{How, Op};
use super::side::{SLOTS, Side};
use crate::common::MOTHER_TIME;
use crate::common::random::Random;

/// Names of lower entries, to be used again after a removal, and some new names.
const NAMES: &[&str] = &[
    "readme.txt",
    "lib",
    "data.bin",
    "deep",
    "er",
    "leaf.txt",
    "bin",
    "tool",
    "etc",
    "prefix.conf",
    "large.conf",
    "many",
    "a",
    "hollow",
    "inner",
    "lib64",
    "n0",
    "n1",
    "n2",
    "n3",
];
const XATTRS: &[&str] = &["user.one", "user.two"];
const MODES: &[u32] =
    &[0o644, 0o600, 0o755, 0o700, 0o444, 0o400, 0o000, 0o200, 0o777, 0o4755, 0o2755, 0o1777];
const HOWS: &[How] = &[
    How::Read,
    How::Write,
    How::ReadWrite,
    How::ReadWrite,
    How::Truncate,
    How::Append,
    How::Create,
    How::CreateNew,
];

/// The files that differ in each space.
const RELOCATED: &[&str] = &["etc/prefix.conf", "bin/tool", "lib/large.conf"];

/// The paths of a tree.
#[derive(Default)]
struct Tree {
    all: Vec<String>,
    dirs: Vec<String>,
    files: Vec<String>,
    open: Vec<usize>,
}

/// A source of operations. They depend only on the seed and on the plain tree.
pub struct Generator {
    random: Random,
    /// The path that was last opened in each slot, so that it can be opened again.
    opened: [Option<String>; SLOTS],
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), opened: [const { None }; SLOTS] }
    }

    pub fn next(&mut self, plain: &Side) -> Op {
        let mut tree = Tree::default();
        plain.visit(&mut |path, stat| {
            match stat {
                Ok(stat) if stat.is_dir() => tree.dirs.push(path.to_owned()),
                Ok(stat) if stat.is_file() => tree.files.push(path.to_owned()),
                _ => {}
            }
            tree.all.push(path.to_owned());
        });
        tree.open = (0..SLOTS).filter(|slot| plain.is_open(*slot)).collect();
        // Open files are lost at a remount, so remounts are rare.
        match self.random.below(200) {
            0..2 => Op::Remount,
            2 => Op::Kill,
            3..60 => self.on_open_file(&tree),
            60..120 => self.on_content(&tree),
            120..180 => self.on_names(&tree),
            _ => self.on_attributes(&tree),
        }
    }

    fn on_open_file(&mut self, tree: &Tree) -> Op {
        let mut path = self.file(tree);
        let again: Vec<&String> = self.opened.iter().flatten().collect();
        if !again.is_empty() && self.random.once_in(2) {
            // A second descriptor of a file that is open already.
            path = (*self.random.pick(&again)).clone();
        }
        let random = &mut self.random;
        let (at, len) = offset_and_len(random);
        let fill = u8::try_from(random.below(256)).unwrap();
        let some_slot = usize::try_from(random.below(SLOTS as u64)).unwrap();
        let slot = if tree.open.is_empty() { some_slot } else { *random.pick(&tree.open) };
        let at_byte = usize::try_from(at).unwrap();
        match random.below(26) {
            0..6 => {
                let how = *random.pick(HOWS);
                self.opened[some_slot] = Some(path.clone());
                Op::Open { slot: some_slot, path, how }
            }
            6..10 => Op::WriteOpen { slot, at, len, fill },
            10..14 => Op::ReadOpen { slot, at: at / 2, len },
            14 => Op::TruncateOpen { slot, len: at },
            15..17 => Op::StatOpen { slot },
            17..19 => Op::MapOpen { slot, at: at_byte, fill },
            19 => Op::KeepMap { slot },
            20..23 => Op::ReadMap { slot: some_slot },
            23..25 => Op::WriteMap { slot: some_slot, at: at_byte, fill },
            _ => Op::Close { slot },
        }
    }

    fn on_content(&mut self, tree: &Tree) -> Op {
        let (path, other) = (self.file(tree), self.file(tree));
        let random = &mut self.random;
        let (at, len) = offset_and_len(random);
        match random.below(20) {
            0..8 => {
                let fill = u8::try_from(random.below(256)).unwrap();
                Op::Write { path, how: *random.pick(HOWS), at, len, fill }
            }
            8..12 => Op::Read { path },
            12..15 => Op::Truncate { path, len: at },
            15..17 => {
                let flags = *random.pick(&[
                    FallocateFlags::empty(),
                    FallocateFlags::KEEP_SIZE,
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    FallocateFlags::ZERO_RANGE,
                ]);
                Op::Fallocate { path, flags, at, len: len as u64 + 1 }
            }
            _ => Op::CopyRange { from: path, to: other, at: at / 3, put: at / 2, len: len + 1 },
        }
    }

    fn on_names(&mut self, tree: &Tree) -> Op {
        let some = self.below(&tree.all);
        let any = self.path(tree);
        let new = self.fresh(&tree.dirs);
        let random = &mut self.random;
        match random.below(60) {
            0..8 => Op::Mkdir { path: new, mode: *random.pick(&[0o777, 0o755, 0o700, 0o2775]) },
            8..13 => Op::Rmdir { path: self.below(&tree.dirs) },
            13..20 => Op::Unlink { path: some },
            20..38 => {
                let flags = *random.pick(&[
                    RenameFlags::empty(),
                    RenameFlags::empty(),
                    RenameFlags::empty(),
                    RenameFlags::NOREPLACE,
                    RenameFlags::EXCHANGE,
                ]);
                let to = if random.once_in(2) { new } else { any };
                Op::Rename { from: some, to, flags }
            }
            38..45 => Op::Link { from: some, to: new },
            45..49 => {
                let target = (*random.pick(&["readme.txt", "../lib", "nowhere", "lib/deep"])).to_owned();
                Op::Symlink { target, path: new }
            }
            49..51 => Op::Readlink { path: some },
            51..58 => Op::List { path: random.pick(&tree.dirs).clone() },
            _ => Op::Mkfifo { path: new },
        }
    }

    fn on_attributes(&mut self, tree: &Tree) -> Op {
        let path = if self.random.once_in(8) { String::new() } else { self.path(tree) };
        let random = &mut self.random;
        let name = XATTRS[usize::try_from(random.below(XATTRS.len() as u64)).unwrap()];
        match random.below(20) {
            0..5 => Op::Chmod { path: self.below(&tree.all), mode: *self.random.pick(MODES) },
            5..9 => Op::SetTime { path, seconds: *random.pick(&[MOTHER_TIME, 0, 1_000_000_000]) },
            9..12 => Op::SetXattr { path, name, len: usize::try_from(random.below(100)).unwrap() },
            12..14 => Op::GetXattr { path, name },
            14 => Op::RemoveXattr { path, name },
            15 => Op::ListXattr { path },
            _ => Op::Stat { path },
        }
    }

    /// A path that exists and is not the root, because a mountpoint can be neither renamed nor removed.
    fn below(&mut self, paths: &[String]) -> String {
        let below = paths.iter().filter(|path| !path.is_empty()).count() as u64;
        if below == 0 {
            return "nothing".to_owned();
        }
        let at = usize::try_from(self.random.below(below)).unwrap();
        paths.iter().filter(|path| !path.is_empty()).nth(at).unwrap().clone()
    }

    /// A name in some directory; it may exist already.
    fn fresh(&mut self, dirs: &[String]) -> String {
        let dir = self.random.pick(dirs).clone();
        let name = *self.random.pick(NAMES);
        if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
    }

    /// A regular file in most cases.
    fn file(&mut self, tree: &Tree) -> String {
        if self.random.once_in(6) {
            (*self.random.pick(RELOCATED)).to_owned()
        } else if tree.files.is_empty() || self.random.once_in(4) {
            self.path(tree)
        } else {
            self.below(&tree.files)
        }
    }

    fn path(&mut self, tree: &Tree) -> String {
        match self.random.below(10) {
            0..6 => self.below(&tree.all),
            6..9 => self.fresh(&tree.dirs),
            // Below an entry that is not a directory or does not exist.
            _ => format!("{}/{}", self.below(&tree.all), self.random.pick(NAMES)),
        }
    }
}

fn offset_and_len(random: &mut Random) -> (u64, usize) {
    let at = if random.once_in(3) { 0 } else { random.below(310_000) };
    let len = if random.once_in(4) { random.below(200_000) } else { random.below(5000) };
    (at, usize::try_from(len).unwrap())
}
