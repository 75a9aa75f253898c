//! Walks the stage: lists what is to be recorded, and finds the target of every link.
//!
//! The walk reads names, modes and links, but no contents. It skips what rcc skips. It refuses what a catalog cannot
//! express: names and link targets that are not UTF-8, and FIFOs, sockets and devices. (rcc blocks on a FIFO, and fails
//! on the others.)
//!
//! A link is followed only to find out what it leads to. If its target is recorded, the link refers to that entry. Any
//! other link is *foreign*: the target is outside the stage, skipped, missing, or a loop. A foreign target does not
//! belong to the environment, so it is not examined and need not be readable.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::RecordError;
use super::tree::{Content, Dir, DirId, Entry, File, FileId, Kind, OnDisk, Target, Tree, is_left_out};
use crate::library::catalog::MAX_DEPTH;
use crate::sys::guarded::odd_kind;

/// A walk, and the tree that it has found so far.
#[derive(Debug, Default)]
struct Walk {
    tree: Tree,
    /// By inode.
    dir_ids: HashMap<(u64, u64), DirId>,
    file_ids: HashMap<(u64, u64), FileId>,
    /// The links: directory, position in it, and where the link ends.
    links: Vec<(DirId, usize, End)>,
}

/// The end of a link: whether it is a directory, and its inode. None if it cannot be found.
type End = Option<(bool, (u64, u64))>;

/// Walks everything below `stage`.
///
/// # Errors
/// When an entry cannot be recorded or examined. The error has its path.
pub(super) fn walk(stage: &Path) -> Result<Tree, RecordError> {
    let metadata = std::fs::symlink_metadata(stage).map_err(RecordError::io(stage))?;
    let mut walk = Walk::default();
    walk.dir(&metadata);
    let mut todo = vec![(DirId(0), stage.to_owned(), 0)];
    while let Some((id, path, depth)) = todo.pop() {
        if depth > MAX_DEPTH {
            return Err(RecordError::TooDeep { path });
        }
        for (name, subdir) in walk.list(id, &path)? {
            todo.push((subdir, path.join(name), depth + 1));
        }
    }
    Ok(walk.finish())
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Walk {
    fn dir(&mut self, metadata: &Metadata) -> DirId {
        let id = DirId(self.tree.dirs.len());
        self.tree.dirs.push(Dir { mode: metadata.mode(), entries: Vec::new() });
        self.dir_ids.insert(inode(metadata), id);
        id
    }

    fn file(&mut self, metadata: &Metadata, path: PathBuf) -> FileId {
        let (inode, next) = (inode(metadata), FileId(self.tree.files.len()));
        *self.file_ids.entry(inode).or_insert_with(|| {
            let content = Content::OnDisk(OnDisk { path, size: metadata.len(), inode });
            self.tree.files.push(File { mode: metadata.mode(), content });
            next
        })
    }

    /// Adds the entries of a directory to the tree, and returns its subdirectories.
    fn list(&mut self, id: DirId, path: &Path) -> Result<Vec<(String, DirId)>, RecordError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(RecordError::io(path))? {
            names.push(utf8(path, entry.map_err(RecordError::io(path))?.file_name())?);
        }
        names.retain(|name| !is_left_out(name));
        names.sort_unstable();
        let mut entries = Vec::with_capacity(names.len());
        let mut subdirs = Vec::new();
        for name in names {
            let path = path.join(&name);
            let metadata = std::fs::symlink_metadata(&path).map_err(RecordError::io(&path))?;
            let kind = if metadata.is_dir() {
                let subdir = self.dir(&metadata);
                subdirs.push((name.clone(), subdir));
                Kind::Dir(subdir)
            } else if metadata.is_file() {
                Kind::File(self.file(&metadata, path))
            } else if metadata.is_symlink() {
                let text = std::fs::read_link(&path).map_err(RecordError::io(&path))?;
                let text = text.into_os_string().into_string();
                let text = text.map_err(|_| RecordError::Special {
                    path: path.clone(),
                    what: "a link whose text is not UTF-8",
                })?;
                // The link may be broken, or lead to where this user has no access.
                let end = std::fs::metadata(&path).ok().map(|end| (end.is_dir(), inode(&end)));
                self.links.push((id, entries.len(), end));
                Kind::Link { text, target: Target::File(None) }
            } else {
                let what = odd_kind(metadata.mode()).unwrap_or("a file");
                return Err(RecordError::Special { path, what });
            };
            entries.push(Entry { name, kind });
        }
        if let Some(dir) = self.tree.dirs.get_mut(id.0) {
            dir.entries = entries;
        }
        Ok(subdirs)
    }

    /// Finds the entry that each link leads to.
    fn finish(mut self) -> Tree {
        for (dir, position, end) in self.links {
            let entry = self.tree.dirs.get_mut(dir.0).and_then(|dir| dir.entries.get_mut(position));
            if let Some(Entry { kind: Kind::Link { target, .. }, .. }) = entry {
                *target = match end {
                    None => Target::File(None),
                    Some((true, inode)) => Target::Dir(self.dir_ids.get(&inode).copied()),
                    Some((false, inode)) => Target::File(self.file_ids.get(&inode).copied()),
                };
            }
        }
        self.tree
    }
}

fn utf8(dir: &Path, name: OsString) -> Result<String, RecordError> {
    name.into_string().map_err(|name| RecordError::NameNotUtf8 { path: dir.join(name) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(tree: &Tree) -> Vec<&str> {
        tree.dirs.iter().flat_map(|dir| dir.entries.iter().map(|entry| entry.name.as_str())).collect()
    }

    fn target_of(tree: &Tree, name: &str) -> Target {
        let entry = tree.dirs[0].entries.iter().find(|entry| entry.name == name).unwrap();
        match &entry.kind {
            Kind::Link { target, .. } => *target,
            other => panic!("{name} is {other:?}"),
        }
    }

    #[test]
    fn links_are_resolved() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("stage");
        std::fs::create_dir_all(root.join("sub/__pycache__")).unwrap();
        std::fs::write(root.join("file"), "x").unwrap();
        std::fs::hard_link(root.join("file"), root.join("other-name")).unwrap();
        std::fs::write(root.join("left-out.pyc"), "x").unwrap();
        std::fs::write(dir.path().join("outside"), "x").unwrap();
        for (text, name) in [
            ("file", "to-file"),
            ("to-file", "to-link"),
            ("sub/.", "to-dir"),
            ("/", "to-slash"),
            ("../outside", "to-outside"),
            ("left-out.pyc", "to-left-out"),
            ("sub/__pycache__", "to-left-out-dir"),
            ("nowhere", "broken"),
            ("loop", "loop"),
            (".", "self"),
            ("/dev/zero", "device"),
        ] {
            symlink(text, root.join(name)).unwrap();
        }
        let tree = walk(&root).unwrap();
        assert_eq!(tree.files.len(), 1, "hard links are one content");
        let file = Target::File(Some(FileId(0)));
        for (name, wanted) in [
            ("to-file", file),
            ("to-link", file),
            ("to-dir", Target::Dir(Some(DirId(1)))),
            ("self", Target::Dir(Some(DirId(0)))),
            ("to-slash", Target::Dir(None)),
            ("to-left-out-dir", Target::Dir(None)),
            ("to-outside", Target::File(None)),
            ("to-left-out", Target::File(None)),
            ("broken", Target::File(None)),
            ("loop", Target::File(None)),
            ("device", Target::File(None)),
        ] {
            assert_eq!(target_of(&tree, name), wanted, "{name}");
        }
        assert!(names(&tree).iter().all(|name| !is_left_out(name)));
    }

    #[test]
    fn refuses_sockets_and_fifos_with_their_path() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sub").join("sock");
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = walk(dir.path()).unwrap_err().to_string();
        assert!(error.contains("sub/sock") && error.contains("a socket"), "{error}");
        drop(listener);
        std::fs::remove_file(&socket).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &socket, rustix::fs::Mode::RWXU).unwrap();
        let error = walk(dir.path()).unwrap_err().to_string();
        assert!(error.contains("sub/sock") && error.contains("a FIFO"), "{error}");
    }

    #[test]
    fn refuses_names_and_link_texts_that_are_not_utf8() {
        let bad = OsString::from_vec(b"caf\xe9".to_vec());
        let dir = tempfile::tempdir().unwrap();
        symlink(&bad, dir.path().join("link")).unwrap();
        let what = "a link whose text is not UTF-8";
        assert!(matches!(walk(dir.path()), Err(RecordError::Special { what: found, .. }) if found == what));
        std::fs::remove_file(dir.path().join("link")).unwrap();
        std::fs::write(dir.path().join(&bad), "x").unwrap();
        assert!(matches!(walk(dir.path()), Err(RecordError::NameNotUtf8 { .. })));
    }

    #[test]
    fn refuses_a_tree_deeper_than_a_catalog_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        (0..MAX_DEPTH + 1).for_each(|_| deep.push("d"));
        std::fs::create_dir_all(&deep).unwrap();
        assert!(matches!(walk(dir.path()), Err(RecordError::TooDeep { .. })));
    }
}
