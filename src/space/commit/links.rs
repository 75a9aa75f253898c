//! Finds what the links of a tree lead to, by their texts.

use crate::record::tree::{Dir, DirId, Entry, Kind, Target, Tree};

/// How many links the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// Finds the target of every link. `stage` is the absolute path of the root. A link that leads out of the tree, to
/// nothing, or in a circle is foreign: its target stays `File(None)`.
pub(super) fn resolve_links(tree: &mut Tree, stage: &str) {
    let parents = &parents(tree);
    let mut found = Vec::new();
    for (id, dir) in tree.dirs.iter().enumerate() {
        for (position, entry) in dir.entries.iter().enumerate() {
            if let Kind::Link { text, .. } = &entry.kind {
                let search = Search { dirs: &tree.dirs, parents, stage };
                if let Some(target) = search.from(DirId(id), text) {
                    found.push((id, position, target));
                }
            }
        }
    }
    for (id, position, found) in found {
        let entry = tree.dirs.get_mut(id).and_then(|dir| dir.entries.get_mut(position));
        if let Some(Entry { kind: Kind::Link { target, .. }, .. }) = entry {
            *target = found;
        }
    }
}

/// The directory above each directory. The root's is the root.
fn parents(tree: &Tree) -> Vec<DirId> {
    let mut parents = vec![DirId(0); tree.dirs.len()];
    for (id, dir) in tree.dirs.iter().enumerate() {
        for entry in &dir.entries {
            if let Kind::Dir(child) = entry.kind
                && let Some(parent) = parents.get_mut(child.0)
            {
                *parent = DirId(id);
            }
        }
    }
    parents
}

struct Search<'t> {
    dirs: &'t [Dir],
    parents: &'t [DirId],
    stage: &'t str,
}

impl<'t> Search<'t> {
    fn from(&self, dir: DirId, text: &'t str) -> Option<Target> {
        let mut at = dir;
        // The parts that are still to be looked up, the next one last.
        let mut parts = Vec::new();
        let mut links = 0;
        at = self.start(at, text, &mut parts)?;
        while let Some(part) = parts.pop() {
            match part {
                "" | "." => {}
                // Above the root the path leaves the tree.
                ".." if at == DirId(0) => return None,
                ".." => at = *self.parents.get(at.0)?,
                name => {
                    let entries = &self.dirs.get(at.0)?.entries;
                    let place = entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()?;
                    match &entries.get(place)?.kind {
                        Kind::Dir(id) => at = *id,
                        Kind::File(id) => return parts.is_empty().then_some(Target::File(Some(*id))),
                        Kind::Link { text, .. } => {
                            links += 1;
                            if links > MAX_LINKS {
                                return None;
                            }
                            at = self.start(at, text, &mut parts)?;
                        }
                    }
                }
            }
        }
        Some(Target::Dir(Some(at)))
    }

    /// Where a link's text begins. Its parts are added to those that follow it.
    fn start(&self, at: DirId, text: &'t str, parts: &mut Vec<&'t str>) -> Option<DirId> {
        if !text.starts_with('/') {
            parts.extend(text.rsplit('/'));
            return Some(at);
        }
        let rest = text.strip_prefix(self.stage)?;
        if !(rest.is_empty() || rest.starts_with('/')) {
            return None;
        }
        parts.extend(rest.rsplit('/'));
        Some(DirId(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tree::FileId;

    const STAGE: &str = "/ht/stage";

    /// A tree with `d/e`, a file `d/e/f`, and the links.
    fn resolved(links: &[(&str, &str)]) -> Vec<Target> {
        let entry = |name: &str, kind| Entry { name: name.into(), kind };
        let dir = |entries| Dir { mode: 0o040_755, entries };
        let link = |text: &str| Kind::Link { text: text.into(), target: Target::File(None) };
        let mut root: Vec<Entry> = links.iter().map(|(name, text)| entry(name, link(text))).collect();
        root.push(entry("d", Kind::Dir(DirId(1))));
        root.sort_by(|one, two| one.name.cmp(&two.name));
        let below = vec![entry("e", Kind::Dir(DirId(2))), entry("up", link("../d/e/f"))];
        let leaf = vec![entry("f", Kind::File(FileId(7)))];
        let mut tree = Tree { dirs: vec![dir(root), dir(below), dir(leaf)], files: Vec::new() };
        resolve_links(&mut tree, STAGE);
        let of = |name: &str| {
            let found = tree.dirs[0].entries.iter().find(|entry| entry.name == name).unwrap();
            let Kind::Link { target, .. } = found.kind else { panic!("{name}") };
            target
        };
        links.iter().map(|(name, _)| of(name)).collect()
    }

    #[test]
    fn links_lead_to_entries_of_the_tree() {
        let file = Target::File(Some(FileId(7)));
        let dir = |id| Target::Dir(Some(DirId(id)));
        let links = [
            ("a", "d/e/f", file),
            ("b", "./d//e/../e/f", file),
            ("c", "d/e/", dir(2)),
            ("g", ".", dir(0)),
            ("h", "c/f", file),
            ("i", "d/up", file),
            ("j", "/ht/stage/d", dir(1)),
            ("k", "/ht/stage", dir(0)),
        ];
        let asked: Vec<_> = links.iter().map(|(name, text, _)| (*name, *text)).collect();
        let wanted: Vec<_> = links.iter().map(|(.., target)| *target).collect();
        assert_eq!(resolved(&asked), wanted);
    }

    #[test]
    fn other_links_are_foreign() {
        let links = [
            ("a", "/etc/passwd"),
            ("b", "../outside"),
            ("c", "d/../../stage/d"),
            ("e", "nothing"),
            ("f", "d/e/f/below"),
            ("g", "g"),
            ("h", "i"),
            ("i", "h"),
            ("j", "/ht/stage2/d"),
        ];
        assert!(resolved(&links).iter().all(|target| *target == Target::File(None)));
    }
}
