//! An independent opinion on what `holofs diff` should print: its lines, applied to the tree that rcc would have restored,
//! must give the tree that the space shows; and what they say of an entry must be true.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::Value;

use crate::common::random::Random;
use crate::common::see;

/// What is compared of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    kind: char,
    /// The bytes, or the text of a link.
    bytes: Vec<u8>,
    /// Mode, times of a file, attributes.
    metadata: String,
}

pub type Tree = BTreeMap<String, Entry>;

/// Reads a tree. The root itself is left out.
pub fn tree(root: &Path) -> Tree {
    let mut out = Tree::new();
    see::visit(root, "", &mut |path, stat| {
        if path.is_empty() {
            return;
        }
        let (at, stat) = (root.join(path), stat.unwrap());
        let kind = see::kind(&stat.file_type());
        let bytes = match kind {
            ' ' => std::fs::read(&at).unwrap(),
            '@' => std::fs::read_link(&at).unwrap().into_os_string().into_encoded_bytes(),
            _ => Vec::new(),
        };
        let mode = if kind == '@' { 0 } else { stat.permissions().mode() & 0o7777 };
        // The links of a restore have the time of the restore.
        let mtime = if kind == ' ' { (stat.mtime(), stat.mtime_nsec()) } else { (0, 0) };
        let metadata = format!("{mode:o} {mtime:?} {:?}", see::xattrs(&at).unwrap_or_default());
        out.insert(path.to_owned(), Entry { kind, bytes, metadata });
    });
    out
}

/// Checks the rows of `holofs diff --json` against the tree before and after.
#[track_caller]
pub fn check(rows: &Value, before: &Tree, after: &Tree) {
    let rows = rows.as_array().unwrap();
    let text =
        |row: &Value, key: &str| row[key].as_str().unwrap_or_else(|| panic!("{key}: {row}")).to_owned();
    let mut tree = before.clone();
    // The paths of renamed entries are those of the catalog, so all are taken before any is put.
    let mut renamed: Vec<(String, String)> = rows
        .iter()
        .filter(|row| row["change"] == "R")
        .map(|row| (text(row, "from"), text(row, "path")))
        .collect();
    renamed.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
    let mut taken: Vec<(String, Tree)> =
        renamed.into_iter().map(|(from, to)| (to, take(&mut tree, &from))).collect();
    taken.sort_by_key(|(to, _)| to.len());
    for (to, below) in taken {
        take(&mut tree, &to);
        tree.extend(below.into_iter().map(|(path, entry)| (format!("{to}{path}"), entry)));
    }
    for row in rows {
        let path = text(row, "path");
        let now = after.get(&path);
        match text(row, "change").as_str() {
            "D" => {
                assert!(!take(&mut tree, &path).is_empty(), "nothing to delete: {row}");
                assert!(now.is_none(), "it is there: {row}");
            }
            "A" => {
                let had = tree.insert(path, now.unwrap_or_else(|| panic!("not there: {row}")).clone());
                assert!(had.is_none(), "it was there before: {row}");
            }
            "M" | "R" => {
                let now = now.unwrap_or_else(|| panic!("not there: {row}"));
                let old = tree.get(&path).unwrap_or_else(|| panic!("was not there before: {row}")).clone();
                let same = (old.kind, &old.bytes) == (now.kind, &now.bytes);
                assert_eq!(row["content"], !same, "{row}");
                // A link of the restore has no time to compare with.
                if now.kind != '@' && row["content"] == false {
                    assert_eq!(row["metadata"], old.metadata != now.metadata, "{row} {old:?} {now:?}");
                }
                if old.kind != now.kind {
                    take(&mut tree, &path);
                }
                tree.insert(path, now.clone());
            }
            other => panic!("{other}"),
        }
    }
    let not_shown = |entry: &Entry| Entry {
        metadata: if entry.kind == '@' { String::new() } else { entry.metadata.clone() },
        ..entry.clone()
    };
    for path in tree.keys().chain(after.keys()) {
        let (ours, theirs) = (tree.get(path).map(not_shown), after.get(path).map(not_shown));
        assert_eq!(ours, theirs, "{path} differs, and no line says so: {rows:#?}");
    }
}

/// Takes a path and everything below it out of a tree. The paths begin at it.
fn take(tree: &mut Tree, path: &str) -> Tree {
    let below = format!("{path}/");
    let keys: Vec<String> =
        tree.keys().filter(|key| *key == path || key.starts_with(&below)).cloned().collect();
    keys.into_iter().map(|key| (key[path.len()..].to_owned(), tree.remove(&key).unwrap())).collect()
}

/// Makes one random change. Most errors are those of a plain directory too.
pub fn change(root: &Path, random: &mut Random) {
    let tree: Vec<(String, char)> = tree(root).into_iter().map(|(path, entry)| (path, entry.kind)).collect();
    let pick = |random: &mut Random, kinds: &str| -> String {
        let fitting: Vec<&String> =
            tree.iter().filter(|(_, kind)| kinds.contains(*kind)).map(|(path, _)| path).collect();
        if fitting.is_empty() {
            return "none".into();
        }
        fitting[usize::try_from(random.below(fitting.len() as u64)).unwrap()].clone()
    };
    let names = ["a.py", "one", "two", "new1", "new2", "sub", "large.bin", "tool"];
    let dir = if random.below(4) == 0 { String::new() } else { pick(random, "/") + "/" };
    let name = names[usize::try_from(random.below(names.len() as u64)).unwrap()];
    let new = root.join(format!("{dir}{name}"));
    let file = root.join(pick(random, " "));
    let any = root.join(pick(random, " /@"));
    // Failures are results, too: a directory that is not empty, a directory below itself.
    match random.below(13) {
        0 => drop(std::fs::write(&new, b"written\n")),
        1 => drop(std::fs::create_dir(&new)),
        2 | 3 => drop(std::fs::rename(&any, &new)),
        4 => drop(std::fs::remove_file(&file)),
        5 => drop(std::fs::remove_dir_all(root.join(pick(random, "/")))),
        6 => drop(std::fs::set_permissions(&any, std::fs::Permissions::from_mode(0o755))),
        7 => drop(std::fs::hard_link(&file, &new)),
        8 => drop(std::os::unix::fs::symlink("somewhere", &new)),
        // The same bytes again: only the time differs.
        9 => drop(std::fs::read(&file).and_then(|bytes| std::fs::write(&file, bytes))),
        10 => {
            // As an editor saves.
            let temporary = root.join(".saved");
            drop(std::fs::write(&temporary, b"saved\n").and_then(|()| std::fs::rename(&temporary, &file)));
            drop(std::fs::remove_file(&temporary));
        }
        11 => drop(
            std::fs::OpenOptions::new()
                .append(true)
                .open(&file)
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"appended\n")),
        ),
        _ => drop(rustix::fs::setxattr(&any, "user.test", b"x", rustix::fs::XattrFlags::empty())),
    }
}
