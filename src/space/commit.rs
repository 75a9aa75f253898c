//! The tree that a space shows, in the form in which it is recorded: the catalog's tree with the space's changes.
//!
//! The changes are read first, in one walk through the upper. Then both trees are merged, directory by directory. A file
//! whose bytes are the catalog's keeps its blob and is not read. So the work grows with the changes, and with the entries
//! of the catalog only as far as they must be listed.
//!
//! What is never recorded is left out, as `record` leaves it out. Links are resolved within the tree. A link that leads
//! out of it is foreign, and nothing of its target is looked at.
//!
//! Invariant: the same changes give the same `Signature`. Equal signatures before and after the files were read mean
//! that nobody changed the space meanwhile.

mod links;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Stat, readlinkat};

use self::links::resolve_links;
use super::upper::changes::{Change, Changes};
use super::upper::entry::Present;
use super::upper::{Kind as UpperKind, UpperError};
use crate::library::catalog::MAX_DEPTH;
use crate::library::digest::Digest;
use crate::library::index::{Index, IndexError, NodeId, NodeKind};
use crate::record::RecordError;
use crate::record::tree::{
    Content, Dir, DirId, Entry, Facts, File, FileId, Kind, OnDisk, Target, Tree, is_left_out,
};

/// The name of the blueprint's file in an environment.
const BLUEPRINT: &str = "identity.yaml";
/// The mode of a directory in a catalog. rcc and mounts make all directories alike, whatever a catalog says.
const DIR_MODE: u32 = 0o040_755;
const FILE_TYPE: u32 = 0o100_000;

/// Why a space cannot be committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// An entry of the upper cannot be read, or its mark is damaged.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// The space has an entry that a catalog cannot list, or it could not be stored.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl From<IndexError> for CommitError {
    fn from(error: IndexError) -> Self {
        Self::Upper(error.into())
    }
}

/// The names that change when a space is recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    /// The name of the space's directory.
    pub(crate) space: &'a str,
    /// The path of the space, if its files name that instead of the one that the catalog says.
    pub(crate) place: Option<&'a str>,
    /// The name of the stage.
    pub(crate) stage: &'a str,
    /// The path of the stage.
    pub(crate) stage_path: &'a str,
}

/// All that a walk sees of the changes: path, inode number, size, mode and times of each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Signature(Vec<(PathBuf, [i128; 7])>);

/// The changes of a space.
#[derive(Debug)]
pub(crate) struct Seen {
    overs: Vec<Over>,
    /// The positions of those in the root.
    root: Vec<usize>,
    /// For the comparison with another look.
    pub(crate) signature: Signature,
}

/// An entry of the upper.
#[derive(Debug)]
struct Over {
    name: Vec<u8>,
    /// None for a whiteout.
    now: Option<Shown>,
    /// The entries below, in the order of their names.
    below: Vec<usize>,
}

/// An entry of the upper that the space shows.
#[derive(Debug)]
struct Shown {
    present: Present,
    /// Permission bits.
    mode: u32,
    stat: Stat,
    /// The text of a link that was created in the space.
    text: Option<Vec<u8>>,
    path: PathBuf,
}

/// Reads the changes at the root of an upper, which were made over the catalog of `index`.
pub(crate) fn see(root: BorrowedFd<'_>, index: &Index) -> Result<Seen, UpperError> {
    let mut seen = Seen { overs: Vec::new(), root: Vec::new(), signature: Signature::default() };
    // The directories on the path to the current entry.
    let mut open: Vec<usize> = Vec::new();
    let mut changes = Changes::new(root, index)?;
    while let Some(change) = changes.advance() {
        let change = change?;
        open.truncate(change.at.depth);
        let Some((over, print)) = Over::of(&change)? else { continue };
        seen.signature.0.push((change.at.path.to_owned(), print));
        let id = seen.overs.len();
        match open.last() {
            Some(above) => {
                if let Some(above) = seen.overs.get_mut(*above) {
                    above.below.push(id);
                }
            }
            None => seen.root.push(id),
        }
        if over.now.as_ref().is_some_and(|now| now.present.kind == UpperKind::Dir) {
            open.push(id);
        }
        seen.overs.push(over);
    }
    Ok(seen)
}

impl Over {
    /// None if the entry vanished meanwhile.
    fn of(change: &Change<'_>) -> Result<Option<(Self, [i128; 7])>, UpperError> {
        let (at, name) = (&change.at, change.at.listed.file_name());
        let mut over = Over { name: name.to_bytes().to_vec(), now: None, below: Vec::new() };
        let (Some(now), Some(mode)) = (change.now, change.mode()?) else {
            return Ok(Some((over, [0; 7])));
        };
        let is_created_link = now.present.kind == UpperKind::Symlink && !now.present.meta;
        let text = if is_created_link {
            match readlinkat(at.dir, name, Vec::new()) {
                Ok(text) => Some(text.into_bytes()),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => return Ok(None),
                Err(source) => {
                    return Err(UpperError::Os { path: at.path.to_owned(), call: "readlink", source });
                }
            }
        } else {
            None
        };
        let Stat { st_ino, st_mtime, st_mtime_nsec, st_ctime, st_ctime_nsec, st_size, .. } = now.stat;
        let ino = i128::from(st_ino);
        let (mtime, ctime) = (i128::from(st_mtime), i128::from(st_ctime));
        let print = match now.present.kind {
            // Changes below a directory have entries of their own, and copies from the library change its times.
            UpperKind::Dir => [ino, i128::from(mode), 0, 0, 0, 0, 0],
            _ => [
                ino,
                i128::from(mode),
                i128::from(st_size),
                mtime,
                i128::from(st_mtime_nsec),
                ctime,
                i128::from(st_ctime_nsec),
            ],
        };
        let path = at.path.to_owned();
        over.now = Some(Shown { present: now.present, mode, stat: now.stat, text, path });
        Ok(Some((over, print)))
    }
}

/// Which blobs of the catalog need not be stored.
pub(crate) type IsStored<'a> = &'a dyn Fn(&Digest, u64) -> Result<bool, RecordError>;

/// Merges the catalog's tree and the changes. `upper` is the path of the upper. The blueprint's file gets `blueprint`.
pub(crate) fn merge(
    index: &Index,
    seen: &Seen,
    upper: &Path,
    names: Names<'_>,
    blueprint: &str,
    is_stored: IsStored<'_>,
) -> Result<Tree, CommitError> {
    let (tree, by_inode) = Default::default();
    let mut merge = Merge { index, seen, upper, names, is_stored, tree, by_inode };
    merge.dir();
    let mut todo = vec![Todo { dir: DirId(0), lower: Some(NodeId(0)), below: &seen.root, depth: 0 }];
    while let Some(next) = todo.pop() {
        if next.depth > MAX_DEPTH {
            return Err(RecordError::TooDeep { path: upper.to_owned() }.into());
        }
        merge.list(next, &mut todo)?;
    }
    merge.put_blueprint(blueprint);
    resolve_links(&mut merge.tree, names.stage_path);
    Ok(merge.tree)
}

struct Merge<'a> {
    index: &'a Index,
    seen: &'a Seen,
    upper: &'a Path,
    names: Names<'a>,
    is_stored: IsStored<'a>,
    tree: Tree,
    /// The hard links that were created in the space, by inode.
    by_inode: HashMap<(u64, u64), FileId>,
}

/// A directory to be listed.
struct Todo<'s> {
    dir: DirId,
    /// The catalog's directory whose entries it shows.
    lower: Option<NodeId>,
    /// The changes in it.
    below: &'s [usize],
    depth: usize,
}

impl<'a> Merge<'a> {
    fn dir(&mut self) -> DirId {
        self.tree.dirs.push(Dir { mode: DIR_MODE, entries: Vec::new() });
        DirId(self.tree.dirs.len() - 1)
    }

    fn file(&mut self, mode: u32, content: Content) -> FileId {
        self.tree.files.push(File { mode: FILE_TYPE | mode & 0o7777, content });
        FileId(self.tree.files.len() - 1)
    }

    fn list(&mut self, todo_dir: Todo<'a>, todo: &mut Vec<Todo<'a>>) -> Result<(), CommitError> {
        let Todo { dir, lower, below, depth } = todo_dir;
        let overs = || below.iter().filter_map(|id| self.seen.overs.get(*id));
        let mut entries = Vec::new();
        let mentioned: HashMap<&[u8], &'a Over> = overs().map(|over| (over.name.as_slice(), over)).collect();
        if let Some(lower) = lower
            && let NodeKind::Dir { children, .. } = self.index.node(lower)?.kind
        {
            for child in children.map(NodeId) {
                let name = self.index.node(child)?.name;
                if !mentioned.contains_key(name)
                    && let Some(name) = self.name(name)?
                {
                    let kind = self.lower(child, depth, todo)?;
                    entries.push(Entry { name, kind });
                }
            }
        }
        for over in mentioned.into_values() {
            if let Some(shown) = &over.now
                && let Some(name) = self.name(&over.name)?
            {
                let kind = self.shown(shown, &over.below, depth, todo)?;
                entries.push(Entry { name, kind });
            }
        }
        entries.sort_unstable_by(|one, two| one.name.cmp(&two.name));
        if let Some(dir) = self.tree.dirs.get_mut(dir.0) {
            dir.entries = entries;
        }
        Ok(())
    }

    /// None for an entry that is never recorded.
    fn name(&self, name: &[u8]) -> Result<Option<String>, CommitError> {
        let name = String::from_utf8(name.to_vec()).map_err(|error| RecordError::NameNotUtf8 {
            path: String::from_utf8_lossy(error.as_bytes()).into_owned().into(),
        })?;
        Ok((!is_left_out(&name)).then_some(name))
    }

    /// An entry as the catalog has it.
    fn lower(&mut self, node: NodeId, depth: usize, todo: &mut Vec<Todo<'a>>) -> Result<Kind, CommitError> {
        Ok(match self.index.node(node)?.kind {
            NodeKind::Dir { .. } => {
                let dir = self.dir();
                todo.push(Todo { dir, lower: Some(node), below: &[], depth: depth + 1 });
                Kind::Dir(dir)
            }
            NodeKind::File { perm, .. } => {
                let content = self.kept(node)?;
                Kind::File(self.file(perm, content))
            }
            NodeKind::Symlink { target } => self.link(target, &self.index.path_of(node))?,
        })
    }

    /// A file whose bytes are the catalog's.
    fn kept(&self, node: NodeId) -> Result<Content, CommitError> {
        let NodeKind::File { size, digest, relocations, .. } = self.index.node(node)?.kind else {
            return Err(IndexError("a file that is not one").into());
        };
        if !(self.is_stored)(&digest, size)? {
            return Ok(Content::Elsewhere(digest, size));
        }
        let rewrite = relocations.iter().map(|offset| offset.get()).collect();
        Ok(Content::Known(Facts { digest, size, rewrite }))
    }

    /// An entry of the upper.
    fn shown(
        &mut self,
        shown: &'a Shown,
        below: &'a [usize],
        depth: usize,
        todo: &mut Vec<Todo<'a>>,
    ) -> Result<Kind, CommitError> {
        let Present { kind, origin, meta, .. } = shown.present;
        let special = |what| Err(RecordError::Special { path: shown.path.clone(), what }.into());
        match (kind, origin) {
            (UpperKind::Dir, _) => {
                let dir = self.dir();
                todo.push(Todo { dir, lower: origin, below, depth: depth + 1 });
                Ok(Kind::Dir(dir))
            }
            (UpperKind::File, Some(origin)) if meta => {
                let content = self.kept(origin)?;
                Ok(Kind::File(self.file(shown.mode, content)))
            }
            (UpperKind::File, _) => Ok(Kind::File(self.changed(shown))),
            (UpperKind::Symlink, Some(origin)) if meta => match self.index.node(origin)?.kind {
                NodeKind::Symlink { target } => self.link(target, &shown.path.to_string_lossy()),
                _ => Err(IndexError("a link that is not one").into()),
            },
            (UpperKind::Symlink, _) => {
                self.link(shown.text.as_deref().unwrap_or_default(), &shown.path.to_string_lossy())
            }
            (UpperKind::Fifo, _) => special("a FIFO"),
            (UpperKind::Socket, _) => special("a socket"),
            (UpperKind::CharDevice | UpperKind::BlockDevice, _) => special("a device"),
        }
    }

    /// A file with bytes of its own.
    fn changed(&mut self, shown: &Shown) -> FileId {
        let inode = (shown.stat.st_dev, shown.stat.st_ino);
        if let Some(id) = self.by_inode.get(&inode) {
            return *id;
        }
        let path = self.upper.join(&shown.path);
        let size = u64::try_from(shown.stat.st_size).unwrap_or(0);
        let id = self.file(shown.mode, Content::OnDisk(OnDisk { path, size, inode }));
        self.by_inode.insert(inode, id);
        id
    }

    fn link(&self, text: &[u8], path: &str) -> Result<Kind, CommitError> {
        let text = std::str::from_utf8(text).map_err(|_| RecordError::Special {
            path: path.into(),
            what: "a link whose text is not UTF-8",
        })?;
        let Names { space, place, stage, stage_path } = self.names;
        let below = place.and_then(|place| text.strip_prefix(place));
        let text = match below.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
            Some(rest) => format!("{stage_path}{rest}"),
            None => text.replace(space, stage),
        };
        Ok(Kind::Link { text, target: Target::File(None) })
    }

    /// Puts the blueprint's text into the root.
    fn put_blueprint(&mut self, blueprint: &str) {
        let id = self.file(0o644, Content::Bytes(blueprint.as_bytes().to_vec()));
        let Some(root) = self.tree.dirs.first_mut() else { return };
        root.entries.retain(|entry| entry.name != BLUEPRINT);
        let place = root.entries.partition_point(|entry| entry.name.as_str() < BLUEPRINT);
        root.entries.insert(place, Entry { name: BLUEPRINT.to_owned(), kind: Kind::File(id) });
    }
}

/// Reads the changes of the upper at this path.
pub(crate) fn see_at(upper: &Path, index: &Index) -> Result<Seen, UpperError> {
    match super::upper::open(upper)? {
        Some(root) => see(root.as_fd(), index),
        None => Ok(Seen { overs: Vec::new(), root: Vec::new(), signature: Signature::default() }),
    }
}
