//! Random operations that are likely to mean something: on paths that exist, or once did.

use rustix::fs::{FallocateFlags, RenameFlags};

use super::op::{How, Op};
use super::side::{SLOTS, Side};
use crate::common::MOTHER_TIME;
use crate::common::random::Random;

/// Names of lower entries, to be taken again after they were removed, and a few new ones.
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

/// A source of operations. What comes depends on the seed and on the plain tree alone.
pub struct Generator {
    random: Random,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed) }
    }

    pub fn next(&mut self, plain: &Side) -> Op {
        let (mut all, mut dirs) = (Vec::new(), Vec::new());
        plain.visit("", &mut |path, stat| {
            if stat.is_ok_and(|stat| stat.is_dir()) {
                dirs.push(path.to_owned());
            }
            all.push(path.to_owned());
        });
        self.operation(&all, &dirs)
    }

    fn operation(&mut self, all: &[String], dirs: &[String]) -> Op {
        let some = self.existing(all);
        let any = self.path(all, dirs);
        let new = self.fresh(dirs);
        let random = &mut self.random;
        let slot = usize::try_from(random.below(SLOTS as u64)).unwrap();
        let fill = u8::try_from(random.below(256)).unwrap();
        let at = if random.once_in(3) { 0 } else { random.below(310_000) };
        let len = usize::try_from(if random.once_in(4) { random.below(200_000) } else { random.below(5000) })
            .unwrap();
        let how = *random.pick(HOWS);
        match random.below(100) {
            0..12 => Op::Write { path: any, how, at, len, fill },
            12..18 => Op::Read { path: any },
            18..22 => Op::Truncate { path: some, len: at },
            22..27 => Op::Mkdir { path: new, mode: *random.pick(&[0o777, 0o755, 0o700, 0o2775]) },
            27..31 => Op::Rmdir { path: self.existing(dirs) },
            31..38 => Op::Unlink { path: some },
            38..50 => {
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
            50..54 => Op::Link { from: some, to: new },
            54..57 => {
                let target = (*random.pick(&["readme.txt", "../lib", "nowhere", "lib/deep"])).to_owned();
                Op::Symlink { target, path: new }
            }
            57..59 => Op::Readlink { path: some },
            59..64 => Op::Chmod { path: some, mode: *random.pick(MODES) },
            64..67 => Op::SetTime { path: some, seconds: *random.pick(&[MOTHER_TIME, 0, 1_000_000_000]) },
            67..69 => Op::SetXattr { path: some, name: XATTRS[at as usize % XATTRS.len()], len: len % 100 },
            69..70 => Op::GetXattr { path: some, name: XATTRS[at as usize % XATTRS.len()] },
            70..71 => Op::RemoveXattr { path: some, name: XATTRS[at as usize % XATTRS.len()] },
            71..72 => Op::ListXattr { path: some },
            72..76 => Op::List { path: self.existing(dirs) },
            76..80 => Op::Stat { path: any },
            80..81 => Op::Mkfifo { path: new },
            81..83 => {
                let flags = *random.pick(&[
                    FallocateFlags::empty(),
                    FallocateFlags::KEEP_SIZE,
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    FallocateFlags::ZERO_RANGE,
                ]);
                Op::Fallocate { path: some, flags, at, len: len as u64 + 1 }
            }
            83..85 => Op::CopyRange { from: some, to: any, at: at / 3, put: at / 2, len: len + 1 },
            85..89 => Op::Open { slot, path: any, how },
            89..91 => Op::WriteOpen { slot, at, len, fill },
            91..93 => Op::ReadOpen { slot, at: at / 2, len },
            93..94 => Op::TruncateOpen { slot, len: at },
            94..95 => Op::StatOpen { slot },
            95..96 => Op::MapOpen { slot, at: usize::try_from(at).unwrap(), fill },
            96..97 => Op::Close { slot },
            97..99 => Op::Remount,
            _ => Op::Kill,
        }
    }

    fn existing(&mut self, paths: &[String]) -> String {
        // The root itself only now and then: little can be done to it.
        let path = self.random.pick(paths).clone();
        if path.is_empty() && !self.random.once_in(10) { self.random.pick(paths).clone() } else { path }
    }

    /// A name in some directory; it may be taken.
    fn fresh(&mut self, dirs: &[String]) -> String {
        let dir = self.random.pick(dirs).clone();
        let name = *self.random.pick(NAMES);
        if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
    }

    fn path(&mut self, all: &[String], dirs: &[String]) -> String {
        match self.random.below(10) {
            0..6 => self.existing(all),
            6..9 => self.fresh(dirs),
            // Below something that is no directory, or is not there.
            _ => format!("{}/{}", self.existing(all), self.random.pick(NAMES)),
        }
    }
}
