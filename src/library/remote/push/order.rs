//! The order of an environment's blobs in packs: what programs read together side by side.
//!
//! An import reads most of a package's modules and native libraries, and hardly any of its other files. So code lies apart
//! from data, and is cut into units: directories whose code is small enough to be fetched for the sake of one file. A
//! directory with more is cut into its own files and its directories, and small neighbours are put together.
//!
//! Invariant: the order depends on the tree, the stored sizes and the profile alone.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::library::catalog::{EntryKind, Tree};
use crate::library::digest::Digest;

/// How soon a blob is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Class {
    /// Earlier mounts read it.
    Profile,
    /// Python reads it at each start, or whenever a program asks what is installed.
    Start,
    /// What programs import.
    Code,
    /// The rest.
    Data,
    /// Programs hardly ever read it.
    Rare,
}

/// A blob of a catalog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) digest: Digest,
    /// The size of its content in bytes.
    pub(super) size: u64,
    pub(super) class: Class,
    /// Blobs of different units are not put into one group.
    pub(super) unit: usize,
    /// A file of the environment has it. Otherwise, rcc lists it for a link.
    pub(super) is_file: bool,
}

/// Stored blobs that are larger are objects of their own, in bytes.
pub(super) const ALONE: u64 = 1 << 20;
/// The largest unit of more than one directory, in stored bytes.
const UNIT: u64 = 8 << 20;
/// Units that are smaller together, in stored bytes, become one.
const SMALL: u64 = 256 << 10;

/// Directories whose code programs hardly ever import.
const RARE_CODE: [&[u8]; 9] = [
    b"tests",
    b"test",
    b"examples",
    b"example",
    b"benchmarks",
    b"idlelib",
    b"lib2to3",
    b"ensurepip",
    b"turtledemo",
];
/// Directories whose other files programs hardly ever read, besides those.
const RARE_DATA: [&[u8]; 5] = [b"include", b"docs", b"doc", b"share", b"man"];
/// Files that programs hardly ever read.
const RARE_ENDS: [&[u8]; 5] = [b".pyi", b".h", b".c", b".a", b".hpp"];
/// Native libraries; also those with `.so.` in their names.
const NATIVE_ENDS: [&[u8]; 4] = [b".so", b".dylib", b".pyd", b".dll"];
/// What is read of a package's own description, and of Python's settings.
const START: [&[u8]; 3] = [b"METADATA", b"entry_points.txt", b"pyvenv.cfg"];

fn ends(name: &[u8], ends: &[&[u8]]) -> bool {
    ends.iter().any(|end| name.ends_with(end))
}

fn is_native(name: &[u8]) -> bool {
    ends(name, &NATIVE_ENDS) || name.windows(4).any(|part| part == b".so.")
}

/// Whether what is in a directory is hardly ever read: code, and other files.
#[derive(Clone, Copy, Default)]
struct Seldom {
    code: bool,
    data: bool,
}

impl Seldom {
    fn below(self, name: &[u8]) -> Self {
        let code = self.code || RARE_CODE.contains(&name);
        Self { code, data: self.data || code || RARE_DATA.contains(&name) }
    }

    fn class(self, dir: &[u8], name: &[u8]) -> Class {
        if name.ends_with(b".py") || is_native(name) {
            return if self.code { Class::Rare } else { Class::Code };
        }
        let is_start = START.contains(&name)
            || name.ends_with(b".pth")
            || (dir == b"bin" && name.starts_with(b"python"));
        match () {
            () if is_start && !self.code => Class::Start,
            () if self.data || ends(name, &RARE_ENDS) || dir.ends_with(b".dist-info") => Class::Rare,
            () => Class::Data,
        }
    }
}

/// A file, in the order of the tree.
struct File {
    digest: Digest,
    size: u64,
    class: Class,
    is_native: bool,
}

/// A directory, as ranges of files.
struct Dir {
    own: Range<usize>,
    /// With those of the directories below.
    all: Range<usize>,
    dirs: Vec<Dir>,
}

/// All blobs of a catalog, each once: those of the profile, and then class by class and unit by unit. `profile` has the
/// digests of the files that earlier mounts read, in that order, and `stored` the sizes of blobs as they are stored.
pub(super) fn order(tree: &Tree, profile: &[Digest], stored: &dyn Fn(&Digest) -> u64) -> Vec<Wanted> {
    let (root, files) = walk(tree);
    // Of a content that several files have, the one that is read soonest counts.
    let mut all: HashMap<Digest, Wanted> = HashMap::new();
    for File { digest, size, class, .. } in &files {
        let new = Wanted { digest: *digest, size: *size, class: *class, unit: 0, is_file: true };
        let known = all.entry(*digest).or_insert(new);
        known.class = known.class.min(*class);
    }
    let mut ordered = Vec::new();
    let mut taken = HashSet::new();
    for digest in profile {
        if let Some(wanted) = all.get(digest)
            && taken.insert(*digest)
        {
            ordered.push(Wanted { class: Class::Profile, ..*wanted });
        }
    }
    let mut unit = 0;
    for class in [Class::Start, Class::Code, Class::Data, Class::Rare] {
        let of_class = |file: &File| {
            all.get(&file.digest).copied().filter(|wanted| wanted.class == class && file.class == class)
        };
        let chosen: Vec<Option<Wanted>> =
            files.iter().map(|file| of_class(file).filter(|wanted| taken.insert(wanted.digest))).collect();
        let mut sums = vec![0];
        for wanted in &chosen {
            let bytes = wanted.map_or(0, |wanted| stored(&wanted.digest));
            sums.push(sums.last().unwrap_or(&0) + if bytes > ALONE { 0 } else { bytes });
        }
        let units = match class {
            Class::Code | Class::Data => units(&root, &Sums(sums)),
            Class::Profile | Class::Start | Class::Rare => vec![root.all.clone()],
        };
        for range in units {
            unit += 1;
            // Modules are read before the native libraries of their package.
            for native in [false, true] {
                let part = chosen.get(range.clone()).into_iter().flatten();
                let found = part.zip(files.get(range.clone()).into_iter().flatten());
                let found = found.filter(|(_, file)| (file.is_native && class == Class::Code) == native);
                ordered.extend(found.filter_map(|(wanted, _)| Some(Wanted { unit, ..(*wanted)? })));
            }
        }
    }
    for (digest, size) in &tree.linked {
        if taken.insert(*digest) {
            ordered.push(Wanted { digest: *digest, size: *size, class: Class::Rare, unit, is_file: false });
        }
    }
    ordered
}

/// The stored sizes of the files before each file.
struct Sums(Vec<u64>);

impl Sums {
    fn of(&self, range: &Range<usize>) -> u64 {
        let at = |position: usize| self.0.get(position).copied().unwrap_or_default();
        at(range.end).saturating_sub(at(range.start))
    }
}

/// The units of a tree, as ranges of files.
fn units(root: &Dir, sums: &Sums) -> Vec<Range<usize>> {
    fn cut(dir: &Dir, sums: &Sums, found: &mut Vec<Range<usize>>) {
        if sums.of(&dir.all) <= UNIT {
            found.push(dir.all.clone());
        } else {
            found.push(dir.own.clone());
            dir.dirs.iter().for_each(|dir| cut(dir, sums, found));
        }
    }
    let mut found = Vec::new();
    cut(root, sums, &mut found);
    let mut units: Vec<Range<usize>> = Vec::new();
    for next in found {
        match units.last_mut() {
            Some(last) if sums.of(last) + sums.of(&next) <= SMALL => last.end = next.end,
            _ => units.push(next),
        }
    }
    units
}

/// The files of a catalog: depth first, those of a directory before its directories, and in the order of names.
fn walk(tree: &Tree) -> (Dir, Vec<File>) {
    let mut children: Vec<Vec<u32>> = vec![Vec::new(); tree.entries.len()];
    for (position, entry) in tree.entries.iter().enumerate().skip(1) {
        if let Some(children) = children.get_mut(entry.parent as usize) {
            children.push(position as u32);
        }
    }
    let mut walk = Walk { tree, children, files: Vec::new() };
    let root = walk.dir(0, Seldom::default());
    (root, walk.files)
}

struct Walk<'t> {
    tree: &'t Tree,
    children: Vec<Vec<u32>>,
    files: Vec<File>,
}

impl Walk<'_> {
    fn name(&self, position: u32) -> &[u8] {
        let entry = self.tree.entries.get(position as usize);
        entry.map(|entry| self.tree.text(entry.name)).unwrap_or_default()
    }

    /// Goes through a directory. A catalog has few levels.
    fn dir(&mut self, position: u32, seldom: Seldom) -> Dir {
        let mut children = self.children.get_mut(position as usize).map(std::mem::take).unwrap_or_default();
        children.sort_by(|a, b| self.name(*a).cmp(self.name(*b)));
        let start = self.files.len();
        let mut below = Vec::new();
        for child in children {
            match self.tree.entries.get(child as usize).map(|entry| entry.kind) {
                Some(EntryKind::Dir) => below.push(child),
                Some(EntryKind::File { size, digest, .. }) => {
                    let (dir, name) = (self.name(position), self.name(child));
                    let (class, is_native) = (seldom.class(dir, name), is_native(name));
                    if let Some(digest) = self.tree.digests.get(digest as usize) {
                        self.files.push(File { digest: *digest, size, class, is_native });
                    }
                }
                Some(EntryKind::Symlink { .. }) | None => {}
            }
        }
        let own = start..self.files.len();
        let mut dirs = Vec::new();
        for child in below {
            let seldom = seldom.below(self.name(child));
            dirs.push(self.dir(child, seldom));
        }
        Dir { own, all: start..self.files.len(), dirs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::catalog::Entry;

    fn digest(n: u32) -> Digest {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        Digest::Sha256(bytes)
    }

    /// A tree of files; a number is the content.
    fn tree(files: &[(&str, u32)]) -> Tree {
        let mut tree = Tree::default();
        let mut known: HashMap<String, u32> = HashMap::from([(String::new(), 0)]);
        tree.entries.push(Entry { name: (0, 0), parent: 0, kind: EntryKind::Dir });
        for (path, content) in files {
            let mut parent = 0;
            let parts: Vec<&str> = path.split('/').collect();
            for (depth, part) in parts.iter().enumerate() {
                let is_file = depth + 1 == parts.len();
                let so_far = parts[..=depth].join("/");
                if let (false, Some(dir)) = (is_file, known.get(&so_far)) {
                    parent = *dir;
                    continue;
                }
                let name = (tree.strings.len() as u32, part.len() as u32);
                tree.strings.extend(part.bytes());
                let kind = if is_file {
                    tree.digests.push(digest(*content));
                    let digest = tree.digests.len() as u32 - 1;
                    EntryKind::File { size: 10, perm: 0o644, digest, relocations: (0, 0) }
                } else {
                    EntryKind::Dir
                };
                tree.entries.push(Entry { name, parent, kind });
                parent = tree.entries.len() as u32 - 1;
                known.insert(so_far, parent);
            }
        }
        tree
    }

    fn ordered(tree: &Tree, profile: &[u32]) -> Vec<(Digest, Class)> {
        let profile: Vec<Digest> = profile.iter().map(|n| digest(*n)).collect();
        order(tree, &profile, &|_| 10).iter().map(|wanted| (wanted.digest, wanted.class)).collect()
    }

    const P: Class = Class::Profile;
    const S: Class = Class::Start;
    const C: Class = Class::Code;
    const D: Class = Class::Data;
    const R: Class = Class::Rare;

    fn expected(classes: &[(u32, Class)]) -> Vec<(Digest, Class)> {
        classes.iter().map(|(n, class)| (digest(*n), *class)).collect()
    }

    #[test]
    fn the_profile_comes_first_and_what_is_hardly_read_last() {
        let mut tree = tree(&[
            ("bin/python3", 6),
            ("lib/z/b.py", 3),
            ("lib/z/a.so.2", 2),
            ("lib/z/a.json", 7),
            ("lib/z/tests/t.py", 10),
            ("lib/a.py", 1),
            ("include/x.txt", 11),
            ("lib/p.dist-info/METADATA", 4),
            ("lib/p.dist-info/RECORD", 12),
            ("lib/x.pyi", 13),
            ("lib/q.py", 5),
        ]);
        tree.linked.insert(digest(20), 7);
        assert_eq!(
            ordered(&tree, &[]),
            expected(&[
                (6, S),
                (4, S),
                (1, C),
                (5, C),
                (3, C),
                (2, C),
                (7, D),
                (11, R),
                (13, R),
                (12, R),
                (10, R),
                (20, R)
            ])
        );
        let found = ordered(&tree, &[10, 3, 99, 3]);
        assert_eq!(found[..3], expected(&[(10, P), (3, P), (6, S)]));
        assert_eq!(found.len(), 12);
    }

    #[test]
    fn a_content_is_there_once_and_as_soon_as_one_of_its_files() {
        let tree = tree(&[("a/tests/x.py", 1), ("b/x.py", 1), ("c/x.py", 1), ("b/a.py", 2)]);
        assert_eq!(ordered(&tree, &[]), expected(&[(2, C), (1, C)]));
    }

    #[test]
    fn units_are_directories_that_are_not_too_large() {
        const M: u64 = 1 << 20;
        let tree = tree(&[
            ("big/a/x.py", 5),
            ("big/a/y.py", 1),
            ("big/b/deep/x.py", 7),
            ("big/top.py", 2),
            ("mid/x.py", 3),
            ("mid/y/y.py", 4),
            ("s1/x.py", 101),
            ("s2/x.py", 102),
            ("s3/x.py", 103),
        ]);
        let (root, files) = walk(&tree);
        let number = |file: &File| u32::from_le_bytes(file.digest.bytes()[..4].try_into().unwrap());
        let mut sums = vec![0];
        for file in &files {
            let n = u64::from(number(file));
            // Of the small ones, two are put together.
            let bytes = if n > 100 { 110 << 10 } else { n * M };
            sums.push(sums.last().unwrap() + bytes);
        }
        let found: Vec<Vec<u32>> = units(&root, &Sums(sums))
            .into_iter()
            .map(|range| files[range].iter().map(number).collect::<Vec<_>>())
            .filter(|unit| !unit.is_empty())
            .collect();
        assert_eq!(found, [vec![2], vec![5, 1], vec![7], vec![3, 4], vec![101, 102], vec![103]]);
    }
}
