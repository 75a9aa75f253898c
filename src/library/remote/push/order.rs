//! The order of an environment's blobs in packs: what programs read first, and neighbours in the tree side by side.

use std::collections::{HashMap, HashSet};

use crate::library::catalog::{EntryKind, Tree};
use crate::library::digest::Digest;

/// How soon a blob is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Class {
    /// Earlier mounts read it.
    Profile,
    /// The rest.
    Usual,
    /// Imports hardly ever read it.
    Rare,
}

/// A blob of a catalog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) digest: Digest,
    /// The size of its content in bytes.
    pub(super) size: u64,
    pub(super) class: Class,
    /// A file of the environment has it. Otherwise, rcc lists it for a link.
    pub(super) is_file: bool,
}

/// Directories whose files imports hardly ever read.
const RARE_DIRS: [&[u8]; 7] = [b"tests", b"test", b"include", b"docs", b"doc", b"share", b"man"];
/// Files that imports hardly ever read.
const RARE_ENDS: [&[u8]; 5] = [b".pyi", b".h", b".c", b".a", b".hpp"];
/// What is read of a package's own description.
const DIST_INFO: [&[u8]; 2] = [b"METADATA", b"entry_points.txt"];

fn is_rare_dir(name: &[u8]) -> bool {
    RARE_DIRS.contains(&name)
}

fn is_rare_file(dir: &[u8], name: &[u8]) -> bool {
    (dir.ends_with(b".dist-info") && !DIST_INFO.contains(&name))
        || RARE_ENDS.iter().any(|end| name.ends_with(end))
}

/// All blobs of a catalog, each once: those of the profile, the usual ones and the rare ones, each in the order of the tree.
/// `profile` has the digests of the files that earlier mounts read, in that order.
pub(super) fn order(tree: &Tree, profile: &[Digest]) -> Vec<Wanted> {
    let mut files = Vec::new();
    for_each_file(tree, &mut |digest, size, is_rare| {
        let class = if is_rare { Class::Rare } else { Class::Usual };
        files.push(Wanted { digest, size, class, is_file: true });
    });
    // Of a content that several files have, the one that is read soonest counts.
    let mut all: HashMap<Digest, Wanted> = HashMap::new();
    for file in &files {
        let known = all.entry(file.digest).or_insert(*file);
        known.class = known.class.min(file.class);
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
    for class in [Class::Usual, Class::Rare] {
        for file in &files {
            let wanted = all.get(&file.digest).copied().unwrap_or(*file);
            if wanted.class == class && file.class == class && taken.insert(file.digest) {
                ordered.push(wanted);
            }
        }
    }
    for (digest, size) in &tree.linked {
        if taken.insert(*digest) {
            ordered.push(Wanted { digest: *digest, size: *size, class: Class::Rare, is_file: false });
        }
    }
    ordered
}

/// Calls `found` with each file: depth first, and in the order of names.
fn for_each_file(tree: &Tree, found: &mut dyn FnMut(Digest, u64, bool)) {
    let mut children: Vec<Vec<u32>> = vec![Vec::new(); tree.entries.len()];
    for (position, entry) in tree.entries.iter().enumerate().skip(1) {
        if let Some(children) = children.get_mut(entry.parent as usize) {
            children.push(position as u32);
        }
    }
    let name = |position: u32| {
        tree.entries.get(position as usize).map(|entry| tree.text(entry.name)).unwrap_or_default()
    };
    children.iter_mut().for_each(|all| all.sort_by(|a, b| name(*b).cmp(name(*a))));
    let mut open = vec![(0, false)];
    while let Some((position, is_rare)) = open.pop() {
        let Some(entry) = tree.entries.get(position as usize) else { continue };
        match entry.kind {
            EntryKind::Dir => {
                let is_rare = is_rare || (position != 0 && is_rare_dir(name(position)));
                // The first is taken from the end.
                let inner = children.get(position as usize).into_iter().flatten();
                open.extend(inner.map(|child| (*child, is_rare)));
            }
            EntryKind::File { size, digest, .. } => {
                let is_rare = is_rare || is_rare_file(name(entry.parent), name(position));
                if let Some(digest) = tree.digests.get(digest as usize) {
                    found(*digest, size, is_rare);
                }
            }
            EntryKind::Symlink { .. } => {}
        }
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
        order(tree, &profile).iter().map(|wanted| (wanted.digest, wanted.class)).collect()
    }

    #[test]
    fn the_profile_comes_first_and_what_is_hardly_read_last() {
        let mut tree = tree(&[
            ("lib/z/b.py", 3),
            ("lib/z/a.py", 2),
            ("lib/z/tests/t.py", 10),
            ("lib/a.py", 1),
            ("include/x.py", 11),
            ("lib/p.dist-info/METADATA", 4),
            ("lib/p.dist-info/RECORD", 12),
            ("lib/x.pyi", 13),
            ("lib/q.py", 5),
        ]);
        tree.linked.insert(digest(20), 7);
        let expected = |classes: &[(u32, Class)]| {
            classes.iter().map(|(n, class)| (digest(*n), *class)).collect::<Vec<_>>()
        };
        let (p, u, r) = (Class::Profile, Class::Usual, Class::Rare);
        assert_eq!(
            ordered(&tree, &[]),
            expected(&[(1, u), (4, u), (5, u), (2, u), (3, u), (11, r), (12, r), (13, r), (10, r), (20, r)])
        );
        assert_eq!(
            ordered(&tree, &[10, 3, 99, 3]),
            expected(&[(10, p), (3, p), (1, u), (4, u), (5, u), (2, u), (11, r), (12, r), (13, r), (20, r)])
        );
    }

    #[test]
    fn a_content_is_there_once_and_as_soon_as_one_of_its_files() {
        let tree = tree(&[("a/tests/x.py", 1), ("b/x.py", 1), ("c/x.py", 1), ("b/a.py", 2)]);
        assert_eq!(ordered(&tree, &[]), [(digest(2), Class::Usual), (digest(1), Class::Usual)]);
    }
}
