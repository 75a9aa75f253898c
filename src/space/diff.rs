//! What a space has changed, as a list that people read: added, modified, deleted and renamed paths.
//!
//! The upper says what each of its entries is, but not how the tree differs from the catalog's. A rename is two entries
//! there, a directory that was made anew hides others without a mark, and a copy can have the library's bytes again. The
//! walk collects all entries first, since a rename can be told only when both of its places are known. Then each entry
//! becomes at most one line. A path below a renamed directory has the directory's new name, so the list can be applied
//! to the tree of the catalog from its first line to its last.
//!
//! The time grows with the upper, not with the catalog. A directory that was made anew over one of the catalog adds one
//! look at the names of the latter.
//!
//! Limits: times of access and of the last change are not compared, and of directories no times: they change with every
//! entry that comes or goes.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, Stat};

use super::upper::changes::{Change as Found, Changes, What};
use super::upper::mark::OWN_XATTRS;
use super::upper::{Kind, UpperError, entry};
use crate::library::MOTHER_TIME;
use crate::library::index::{Index, NodeId, NodeKind};
use crate::sys::fd::proc_path;

/// How a path differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The catalog does not have it.
    Added,
    /// Content, type or attributes differ.
    Modified,
    /// The space does not show it, nor anything that was below it.
    Deleted,
    /// It was renamed, together with everything below it.
    Renamed,
}

/// One line of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// How it differs.
    pub change: Change,
    /// The path below the root of the space.
    pub path: PathBuf,
    /// Of a renamed entry, its path in the catalog.
    pub from: Option<PathBuf>,
    /// What the space shows; of a deleted entry, what the catalog has.
    pub kind: Kind,
    /// The type or the bytes differ from those of the catalog's entry.
    pub content: bool,
    /// Mode, owner, time of modification or extended attributes differ.
    pub metadata: bool,
}

/// The attributes of an entry that was never changed.
#[derive(Clone, Copy, Debug)]
pub struct Pristine {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The permission bits of directories.
    pub dir_mode: u32,
}

/// Compares a file with a file of the catalog of the same size: whether the bytes are equal.
pub type SameBytes<'a> = &'a dyn Fn(NodeId, &File) -> bool;

/// An entry of the upper.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The path below the root.
    pub path: PathBuf,
    /// What it changes.
    pub what: What,
    /// What the space shows; of a removed entry, what the catalog has.
    pub kind: Kind,
    /// The node that it came from.
    pub origin: Option<NodeId>,
    /// The node of its name in the origin of its directory. It is hidden, unless it is the origin.
    pub covers: Option<NodeId>,
    /// The node to compare with. Below a directory that was made anew it is the one at this path.
    before: Option<NodeId>,
    /// The bytes, or the text of a link, are those of `origin` or `before`.
    same_bytes: bool,
    pub(super) metadata: bool,
    /// Of a directory: its time of modification is not that of the catalog's.
    pub(super) touched: bool,
}

/// All entries of an upper.
#[derive(Debug)]
pub struct Scan<'a> {
    pub(super) index: &'a Index,
    /// Each directory before what is below it.
    pub entries: Vec<Entry>,
    /// The nodes that show no more at their own place in their directory.
    hidden: HashSet<NodeId>,
    /// The directories that show at another place.
    moved: HashSet<NodeId>,
}

impl<'a> Scan<'a> {
    /// Reads the upper with this root directory, made over the catalog of `index`. An entry that is damaged is logged and
    /// left out.
    ///
    /// # Errors
    /// When the upper cannot be read.
    pub fn new(
        root: BorrowedFd<'_>,
        index: &'a Index,
        pristine: Pristine,
        same: SameBytes<'_>,
    ) -> Result<Self, UpperError> {
        let mut scan = Self { index, entries: Vec::new(), hidden: HashSet::new(), moved: HashSet::new() };
        let mut changes = Changes::new(root, index)?;
        // For each directory on the path: the node whose children those of the directory are compared with.
        let mut bases = vec![Some(NodeId(0))];
        while let Some(change) = changes.advance() {
            match change {
                Ok(found) => scan.add(&found, &mut bases, pristine, same)?,
                Err(error @ UpperError::Damaged { .. }) => {
                    tracing::error!(%error, "a damaged entry of the upper is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(scan)
    }

    fn add(
        &mut self,
        found: &Found<'_>,
        bases: &mut Vec<Option<NodeId>>,
        pristine: Pristine,
        same: SameBytes<'_>,
    ) -> Result<(), UpperError> {
        let index = self.index;
        bases.truncate(found.at.depth.saturating_add(1));
        let base = bases.last().copied().flatten();
        let before = match base {
            Some(base) => index.lookup(base, found.at.listed.file_name().to_bytes())?,
            None => None,
        };
        let (what, origin) = (found.what(), found.now.and_then(|now| now.present.origin));
        let kind = match (found.now, found.lower) {
            (Some(now), _) => now.present.kind,
            (None, Some(lower)) => Kind::of_lower(&index.node(lower)?),
            (None, None) => return Ok(()),
        };
        if let Some(lower) = found.lower.filter(|lower| Some(*lower) != origin) {
            self.hidden.insert(lower);
        }
        if what == What::Merged && found.renamed_from().is_some() {
            self.moved.extend(origin);
        }
        if kind == Kind::Dir && found.now.is_some() {
            bases.push(origin.or(before));
        }
        let compared = origin.or(before);
        let mut entry = Entry {
            path: found.at.path.to_owned(),
            what,
            kind,
            origin,
            covers: found.lower,
            before,
            same_bytes: what != What::Created && what != What::Bytes,
            metadata: false,
            touched: found.now.is_some_and(|now| now.stat.st_mtime != MOTHER_TIME),
        };
        if let (Some(node), Some(now)) = (compared, found.now) {
            if !entry.same_bytes {
                entry.same_bytes = self.has_bytes_of(node, found, &now.stat, same)?;
            }
            entry.metadata = self.has_other_attributes(node, found, &now.stat, pristine)?;
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Whether an entry with its own bytes or text has those of a node.
    fn has_bytes_of(
        &self,
        node: NodeId,
        found: &Found<'_>,
        stat: &Stat,
        same: SameBytes<'_>,
    ) -> Result<bool, UpperError> {
        let (dir, name) = (found.at.dir, found.at.listed.file_name());
        let kind = found.now.map(|now| now.present.kind);
        Ok(match (self.index.node(node)?.kind, kind) {
            (NodeKind::Dir { .. }, Some(Kind::Dir)) => true,
            (NodeKind::File { size, .. }, Some(Kind::File)) if size == stat.st_size.unsigned_abs() => {
                match entry::open(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME) {
                    Ok(file) => same(node, &File::from(file)),
                    Err(error) => {
                        tracing::debug!(path = %found.at.path.display(), %error, "not compared");
                        false
                    }
                }
            }
            (NodeKind::Symlink { target }, Some(Kind::Symlink)) => {
                rustix::fs::readlinkat(dir, name, Vec::new()).is_ok_and(|text| text.to_bytes() == target)
            }
            _ => false,
        })
    }

    /// Whether mode, owner, time of modification or extended attributes are not those of a node.
    fn has_other_attributes(
        &self,
        node: NodeId,
        found: &Found<'_>,
        stat: &Stat,
        pristine: Pristine,
    ) -> Result<bool, UpperError> {
        let mode = match self.index.node(node)?.kind {
            NodeKind::File { perm, .. } => Some(perm),
            NodeKind::Dir { .. } => Some(pristine.dir_mode),
            NodeKind::Symlink { .. } => None,
        };
        let is_dir = matches!(found.now, Some(now) if now.present.kind == Kind::Dir);
        let kept_times = is_dir || (stat.st_mtime, stat.st_mtime_nsec as i64) == (MOTHER_TIME, 0);
        let same_mode = mode.is_none() || found.mode()? == mode;
        let same_owner = (stat.st_uid, stat.st_gid) == (pristine.uid, pristine.gid);
        Ok(!(kept_times && same_mode && same_owner) || has_xattrs(found))
    }

    /// Whether a node shows at its own place.
    #[must_use]
    pub fn is_at_home(&self, node: NodeId) -> bool {
        let mut at = node;
        loop {
            if at.0 == 0 || (at != node && self.moved.contains(&at)) {
                return true;
            }
            if self.hidden.contains(&at) {
                return false;
            }
            match self.index.node(at) {
                Ok(found) if found.parent < at => at = found.parent,
                // A damaged index must not cause an endless loop.
                _ => return false,
            }
        }
    }

    /// The differences, in the order of the paths.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn differences(&self) -> Result<Vec<Difference>, UpperError> {
        let renames = self.renames();
        let mut out = Vec::new();
        let shown: HashSet<&Path> = self.entries.iter().map(|entry| entry.path.as_path()).collect();
        // Directories that were made anew where one was renamed away: all below them is new.
        let mut new_below: Option<&Path> = None;
        for (n, entry) in self.entries.iter().enumerate() {
            let is_new = new_below.is_some_and(|dir| entry.path.starts_with(dir));
            let before = entry.before.filter(|before| !is_new && !renames.contains_key(before));
            let mut line = |change, content, metadata| {
                out.push(Difference {
                    change,
                    path: entry.path.clone(),
                    from: None,
                    kind: entry.kind,
                    content,
                    metadata,
                });
            };
            match (entry.what, entry.origin) {
                (What::Removed, _) => {
                    if entry.covers.is_some_and(|node| !renames.contains_key(&node)) {
                        line(Change::Deleted, false, false);
                    }
                }
                (What::Created, _) | (_, None) => {
                    match before {
                        None => line(Change::Added, true, false),
                        Some(_) if !entry.same_bytes || entry.metadata => {
                            line(Change::Modified, !entry.same_bytes, entry.metadata);
                        }
                        Some(_) => {}
                    }
                    match before {
                        Some(dir) if entry.kind == Kind::Dir => {
                            self.missing(dir, entry, &shown, &renames, &mut out)?;
                        }
                        None if entry.kind == Kind::Dir && !is_new => new_below = Some(&entry.path),
                        _ => {}
                    }
                }
                (_, Some(origin)) if Some(origin) == entry.covers => {
                    if !entry.same_bytes || entry.metadata {
                        line(Change::Modified, !entry.same_bytes, entry.metadata);
                    }
                }
                (_, Some(origin)) if renames.get(&origin) == Some(&n) => {
                    line(Change::Renamed, !entry.same_bytes, entry.metadata);
                    if let Some(last) = out.last_mut() {
                        last.from = Some(self.path_of(origin));
                    }
                }
                // A further hard link.
                (_, Some(_)) => line(Change::Added, !entry.same_bytes, entry.metadata),
            }
        }
        Ok(out)
    }

    /// The nodes that were renamed, each with the number of the entry that shows it now.
    fn renames(&self) -> HashMap<NodeId, usize> {
        let mut renames = HashMap::new();
        for (n, entry) in self.entries.iter().enumerate() {
            if let Some(origin) = entry.origin
                && Some(origin) != entry.covers
                && !self.is_at_home(origin)
            {
                renames.entry(origin).or_insert(n);
            }
        }
        renames
    }

    /// Adds what a directory that was made anew does not have any more.
    fn missing(
        &self,
        dir: NodeId,
        entry: &Entry,
        shown: &HashSet<&Path>,
        renames: &HashMap<NodeId, usize>,
        out: &mut Vec<Difference>,
    ) -> Result<(), UpperError> {
        let NodeKind::Dir { children, .. } = self.index.node(dir)?.kind else { return Ok(()) };
        for child in children.map(NodeId) {
            let found = self.index.node(child)?;
            let path = entry.path.join(OsStr::from_bytes(found.name));
            if !shown.contains(path.as_path()) && !renames.contains_key(&child) {
                let kind = Kind::of_lower(&found);
                out.push(Difference {
                    change: Change::Deleted,
                    path,
                    from: None,
                    kind,
                    content: false,
                    metadata: false,
                });
            }
        }
        Ok(())
    }

    fn path_of(&self, node: NodeId) -> PathBuf {
        PathBuf::from(self.index.path_of(node))
    }
}

/// Whether an entry has extended attributes that a program can see.
fn has_xattrs(found: &Found<'_>) -> bool {
    let mut names = [0; 4096];
    let mut path = PathBuf::from(proc_path(found.at.dir));
    path.push(OsStr::from_bytes(found.at.listed.file_name().to_bytes()));
    let len = match rustix::fs::llistxattr(&path, &mut names[..]) {
        Ok(len) => len,
        // Our own names are not that many.
        Err(errno) => return errno == rustix::io::Errno::RANGE,
    };
    let names = names.get(..len).unwrap_or_default();
    let shown = |name: &[u8]| name.starts_with(b"user.") && !name.starts_with(OWN_XATTRS);
    names.split(|byte| *byte == 0).any(shown)
}
