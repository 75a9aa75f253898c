//! Describes what a program can see of a tree, as text that can be compared with the text of another tree.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Result;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::MOTHER_TIME;

/// Everything visible of a tree, one line for each path. `content` describes the bytes of a regular file.
pub fn tree(root: &Path, content: &dyn Fn(&[u8]) -> String) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut first_name: BTreeMap<u64, String> = BTreeMap::new();
    visit(root, "", &mut |path, stat| {
        let line = match stat {
            Err(error) => format!("{:?}", error.kind()),
            Ok(stat) => {
                let at = join(root, path);
                let content = if stat.is_file() {
                    std::fs::read(&at)
                        .map_or_else(|error| format!("{:?}", error.kind()), |bytes| content(&bytes))
                } else if stat.is_symlink() {
                    std::fs::read_link(&at).unwrap().display().to_string()
                } else {
                    String::new()
                };
                let same_as = first_name.entry(stat.ino()).or_insert_with(|| path.to_owned());
                let xattrs = xattrs(&at).unwrap_or_default();
                format!("{} {content} {xattrs:?} same as {same_as}", describe(&stat))
            }
        };
        out.insert(path.to_owned(), line);
    });
    out
}

/// Calls `see` for `path` below `root` and for every path below it, in order. The root itself is "".
pub fn visit(root: &Path, path: &str, see: &mut dyn FnMut(&str, Result<std::fs::Metadata>)) {
    let at = join(root, path);
    let stat = std::fs::symlink_metadata(&at);
    let is_dir = stat.as_ref().is_ok_and(std::fs::Metadata::is_dir);
    see(path, stat);
    if !is_dir {
        return;
    }
    let Ok(entries) = std::fs::read_dir(&at) else { return };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in names {
        let below = if path.is_empty() { name } else { format!("{path}/{name}") };
        visit(root, &below, see);
    }
}

/// How two trees differ, with the name of the tree before each line; `None` if they do not differ.
pub fn differences(
    (left_name, left): (&str, &BTreeMap<String, String>),
    (right_name, right): (&str, &BTreeMap<String, String>),
) -> Option<String> {
    let mut text = String::new();
    for path in left.keys().chain(right.keys()).collect::<BTreeSet<_>>() {
        let (left, right) = (left.get(path), right.get(path));
        if left != right {
            text.push_str(&format!("\n{path}\n  {left_name}: {left:?}\n  {right_name}: {right:?}"));
        }
    }
    (!text.is_empty()).then_some(text)
}

fn join(root: &Path, path: &str) -> std::path::PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(path) }
}

pub fn kind(kind: &std::fs::FileType) -> char {
    match kind {
        kind if kind.is_dir() => '/',
        kind if kind.is_symlink() => '@',
        kind if kind.is_fifo() => '|',
        kind if kind.is_socket() => '=',
        kind if kind.is_file() => ' ',
        _ => '?',
    }
}

/// What stat returns, without what may differ between two filesystems: the size of a directory, and the exact current
/// time.
pub fn describe(stat: &std::fs::Metadata) -> String {
    let size = if stat.is_dir() { 0 } else { stat.len() };
    let mtime = if stat.mtime() <= MOTHER_TIME {
        format!("{}.{}", stat.mtime(), stat.mtime_nsec())
    } else {
        "now".to_owned()
    };
    format!(
        "{}{:o} size {size} links {} owner {}:{} mtime {mtime}",
        kind(&stat.file_type()),
        stat.permissions().mode() & 0o7777,
        stat.nlink(),
        stat.uid(),
        stat.gid()
    )
}

/// The names of all `user.` attributes.
pub fn xattrs(path: &Path) -> Result<Vec<String>> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..])?;
    let names = names[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    let mut names: Vec<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}

pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
