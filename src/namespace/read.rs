//! Operations that only read: lookup, attributes, listings, texts of links. They never change the upper.
//!
//! This is the hot path. For a pure lower entry, all answers come from the index, without a system call.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::dir::{DirState, EXTRA_COOKIES, Entry};
use super::table::{InUpper, Node};
use super::types::{Attr, Error, Ino, Kind, Result, SetTime, Time, upper as call};
use super::{Found, NAME_MAX, Namespace, View, backing, c_name, lower_children};
use crate::library::index::{Node as LowerNode, NodeId, NodeKind};
use crate::materialize::MOTHER_TIME;

/// All three times of every lower entry.
pub(super) const MOTHER: SetTime = SetTime::At(MOTHER_AS_TIME);
pub(super) const MOTHER_AS_TIME: Time = Time { sec: MOTHER_TIME, nsec: 0 };

/// The size that a directory shows: one block, as on most filesystems.
pub(super) const DIR_SIZE: u64 = 4096;

/// Cookies of a listing: 1 for `.`, 2 for `..`, then the children of the lower directory by position, then the names
/// that the lower directory does not have (see `dir`).
const FIRST_LOWER: u64 = 3;

/// One entry of a listing.
#[derive(Debug)]
pub struct DirEntry<'a> {
    /// Name in the directory.
    pub name: &'a [u8],
    /// Inode number.
    pub ino: Ino,
    /// File type.
    pub kind: Kind,
    /// The position at which a listing goes on after this entry.
    pub cookie: u64,
    /// Attributes, for a listing with attributes. None for `.` and `..`.
    pub attr: Option<Attr>,
}

/// What the callback of a listing did with an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The entry was taken.
    Yes,
    /// There was no room for the entry. The listing ends before it.
    Full,
}

/// One call of [`Namespace::readdir`].
struct Listing<'a> {
    /// The listing starts after this position.
    cookie: u64,
    /// Entries come with attributes, and are counted as looked up.
    plus: bool,
    take: &'a mut dyn FnMut(DirEntry<'_>) -> Taken,
}

/// Where the bytes of a file are.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// They are the library's: those of this node.
    Lower(NodeId),
    /// They are in this backing file.
    Upper(Arc<OwnedFd>),
}

/// An entry that an operation has looked up. It counts as one lookup, so the table keeps the entry's node until the
/// operation is done.
pub(super) struct Looked<'a> {
    pub(super) attr: Attr,
    namespace: &'a Namespace,
}

impl Drop for Looked<'_> {
    fn drop(&mut self) {
        self.namespace.forget(self.attr.ino, 1);
    }
}

impl Namespace {
    /// Where the bytes of a file are.
    pub(crate) fn bytes(&self, ino: Ino) -> Result<Bytes> {
        match self.file(ino)? {
            View::Lower(lower) => Ok(Bytes::Lower(lower)),
            View::Node(node) => Ok(Bytes::Upper(self.backing_fd(&node)?)),
        }
    }

    /// The lower node that has the bytes of a file; None when they are in the upper. Opens nothing.
    pub(crate) fn lower_bytes(&self, ino: Ino) -> Result<Option<NodeId>> {
        match self.file(ino)? {
            View::Lower(lower) => Ok(Some(lower)),
            View::Node(_) => Ok(None),
        }
    }

    /// The lower node that has the bytes of a file, or the node of a file that has its own.
    pub(super) fn file(&self, ino: Ino) -> Result<View> {
        let view = self.lower_or_node(ino)?;
        must_be_file(match &view {
            View::Lower(lower) => self.lower_kind(*lower)?,
            View::Node(node) => node.kind,
        })?;
        Ok(view)
    }

    /// The lower node that has the bytes or the text of an entry, or the node of an entry that has its own.
    fn lower_or_node(&self, ino: Ino) -> Result<View> {
        let view = self.view(ino)?;
        let lower = if let View::Node(node) = &view { node.lower_content() } else { None };
        Ok(lower.map_or(view, View::Lower))
    }

    /// The file or directory in the upper that has to be synced for an entry; None if there is nothing to sync.
    pub(crate) fn to_sync(&self, ino: Ino) -> Result<Option<OwnedFd>> {
        let View::Node(node) = self.view(ino)? else { return Ok(None) };
        match (node.in_upper(), node.kind) {
            // A symbolic link cannot be opened. A sync of its directory makes it durable.
            (InUpper::Nothing, _)
            | (InUpper::All, Kind::Symlink)
            | (_, Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice) => Ok(None),
            _ => Ok(Some(backing::reopen(&self.backing_fd(&node)?)?.into())),
        }
    }

    /// Looks up a name in a directory, and counts one lookup of the entry.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, and those of reading the upper.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        // The kernel looks these up for file handles only. In a path, it resolves them itself.
        if matches!(name, b"." | b"..") {
            return self.lookup_number(parent, name == b"..");
        }
        let counted = |child| match self.aliased(child, 1) {
            Some(node) => View::Node(node),
            None => {
                self.table.count_lower(child, 1);
                View::Lower(child)
            }
        };
        let found = match self.view(parent)? {
            View::Lower(lower) => {
                must_be_dir(self.lower_kind(lower)?)?;
                counted(self.index.lookup(lower, name)?.ok_or(Error::NotFound)?)
            }
            View::Node(node) => {
                must_be_dir(node.kind)?;
                self.with_dir(&node, |state| {
                    match self.find(&node, state, name)?.ok_or(Error::NotFound)? {
                        Found::Lower(child) => Ok(counted(child)),
                        Found::Upper(present) => {
                            Ok(View::Node(self.entry_node(&node, &c_name(name)?, present, 1)))
                        }
                    }
                })?
            }
        };
        match found {
            View::Lower(child) => Ok(self.lower_attr(&self.index.node(child)?)),
            View::Node(child) => self.node_attr(&child).inspect_err(|_| self.table.forget(child.ino, 1)),
        }
    }

    /// Looks up a name for an operation that needs the entry's node until it is done.
    pub(super) fn look(&self, parent: Ino, name: &CString) -> Result<Looked<'_>> {
        Ok(Looked { attr: self.lookup(parent, name.as_bytes())?, namespace: self })
    }

    /// The attributes of the entry that a name shows. No lookup is counted.
    pub(super) fn must_show(&self, parent: Ino, name: &CString) -> Result<Attr> {
        Ok(self.look(parent, name)?.attr)
    }

    /// The attributes of an entry.
    ///
    /// # Errors
    /// `Stale` for an inode number that no entry has, and those of reading the upper.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        match self.view(ino)? {
            View::Lower(lower) => Ok(self.lower_attr(&self.index.node(lower)?)),
            View::Node(node) => self.node_attr(&node),
        }
    }

    /// The text of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` for any other kind of entry.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.lower_or_node(ino)? {
            View::Lower(lower) => match self.index.node(lower)?.kind {
                NodeKind::Symlink { target } => Ok(target.to_vec()),
                NodeKind::Dir { .. } | NodeKind::File { .. } => Err(Error::Invalid("not a symbolic link")),
            },
            View::Node(node) => match rustix::fs::readlinkat(self.backing_fd(&node)?, c"", Vec::new()) {
                Ok(text) => Ok(text.into_bytes()),
                // The answer of readlinkat for a descriptor that is not a symbolic link.
                Err(rustix::io::Errno::NOENT) => Err(Error::Invalid("not a symbolic link")),
                Err(errno) => Err(call("readlink")(errno)),
            },
        }
    }

    /// Lists a directory, from the entry after `cookie` (0: from the first) until `take` has no more room. With
    /// `plus`, each entry except `.` and `..` comes with its attributes, and one lookup of it is counted.
    ///
    /// # Errors
    /// `NotADirectory`, and those of reading the upper.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        plus: bool,
        take: &mut dyn FnMut(DirEntry<'_>) -> Taken,
    ) -> Result<()> {
        let view = self.view(ino)?;
        let (lower, kind) = match &view {
            View::Lower(lower) => (Some(*lower), self.lower_kind(*lower)?),
            View::Node(node) => (node.lower, node.kind),
        };
        must_be_dir(kind)?;
        if matches!(&view, View::Node(node) if node.is_gone()) {
            return Ok(());
        }
        let parent = self.parent_of(&view)?;
        for (dot, name, target) in [(1, &b"."[..], ino), (2, b"..", parent)] {
            let entry = DirEntry { name, ino: target, kind: Kind::Dir, cookie: dot, attr: None };
            if cookie < dot && take(entry) == Taken::Full {
                return Ok(());
            }
        }
        let mut out = Listing { cookie, plus, take };
        match &view {
            View::Lower(_) => self.list_lower(lower, None, &mut out).map(|_| ()),
            View::Node(node) => self.with_dir(node, |state| {
                if self.list_lower(lower, Some((node, state)), &mut out)? == Taken::Full {
                    return Ok(());
                }
                for (cookie, name, entry) in state.extras(cookie) {
                    if self.list_upper(node, name, entry, cookie, &mut out)? == Taken::Full {
                        break;
                    }
                }
                Ok(())
            }),
        }
    }

    /// Lists the names that the lower directory has, in the order of the index, each with the entry that the space
    /// shows.
    fn list_lower(
        &self,
        lower: Option<NodeId>,
        over: Option<(&Node, &DirState)>,
        out: &mut Listing<'_>,
    ) -> Result<Taken> {
        let Some(lower) = lower.filter(|_| out.cookie < EXTRA_COOKIES) else { return Ok(Taken::Yes) };
        let skip = usize::try_from(out.cookie.saturating_sub(FIRST_LOWER - 1)).unwrap_or(usize::MAX);
        let children = lower_children(&self.index.node(lower)?);
        for (position, child) in children.enumerate().skip(skip) {
            let found = self.index.node(child)?;
            let cookie = FIRST_LOWER + position as u64;
            let entry = over.and_then(|(node, state)| Some((node, state.get(found.name)?)));
            let alias = if entry.is_none() { self.aliased(child, u32::from(out.plus)) } else { None };
            let taken = match (entry, alias) {
                (None, Some(node)) => {
                    let attr = self.node_attr(&node)?;
                    let shown = DirEntry {
                        name: found.name,
                        ino: node.ino,
                        kind: node.kind,
                        cookie,
                        attr: out.plus.then_some(attr),
                    };
                    let taken = (out.take)(shown);
                    if out.plus && taken == Taken::Full {
                        self.table.forget(node.ino, 1);
                    }
                    taken
                }
                (None, None) => {
                    let taken = (out.take)(DirEntry {
                        name: found.name,
                        ino: Ino::of_lower(child),
                        kind: Kind::of_lower(&found),
                        cookie,
                        attr: out.plus.then(|| self.lower_attr(&found)),
                    });
                    if out.plus && taken == Taken::Yes {
                        self.table.count_lower(child, 1);
                    }
                    taken
                }
                (Some((node, entry)), _) => self.list_upper(node, found.name, entry, cookie, out)?,
            };
            if taken == Taken::Full {
                return Ok(Taken::Full);
            }
        }
        Ok(Taken::Yes)
    }

    /// Gives `take` an entry of the upper. A whiteout is not shown.
    fn list_upper(
        &self,
        dir: &Node,
        name: &[u8],
        entry: Entry,
        cookie: u64,
        out: &mut Listing<'_>,
    ) -> Result<Taken> {
        let Entry::Present(present) = entry else { return Ok(Taken::Yes) };
        let mut shown = DirEntry { name, ino: present.ino, kind: present.kind, cookie, attr: None };
        if !out.plus {
            return Ok((out.take)(shown));
        }
        // The lookup is counted first, so that the node is not dropped meanwhile.
        let node = self.entry_node(dir, &c_name(name)?, present, 1);
        let taken = match self.node_attr(&node) {
            Ok(attr) => {
                shown.attr = Some(attr);
                (out.take)(shown)
            }
            // An entry that cannot be read must not hide the others. A lookup of it will give the error.
            Err(error) => {
                tracing::error!(name = %String::from_utf8_lossy(name), %error, "an entry that cannot be read is left out of a listing");
                self.table.forget(node.ino, 1);
                return Ok(Taken::Yes);
            }
        };
        if taken == Taken::Full {
            self.table.forget(node.ino, 1);
        }
        Ok(taken)
    }

    /// The attributes of a pure lower entry.
    pub(super) fn lower_attr(&self, node: &LowerNode<'_>) -> Attr {
        let (kind, mode, nlink, size) = match node.kind {
            NodeKind::Dir { subdirs, .. } => {
                (Kind::Dir, self.owner.dir_mode, subdirs.saturating_add(2), DIR_SIZE)
            }
            NodeKind::File { size, perm, .. } => (Kind::File, perm, 1, size),
            NodeKind::Symlink { target } => (Kind::Symlink, 0o777, 1, target.len() as u64),
        };
        Attr {
            ino: Ino::of_lower(node.id),
            kind,
            mode,
            nlink,
            uid: self.owner.uid,
            gid: self.owner.gid,
            size,
            blocks: size.div_ceil(512),
            atime: MOTHER_AS_TIME,
            mtime: MOTHER_AS_TIME,
            ctime: MOTHER_AS_TIME,
            ..Attr::default()
        }
    }

    /// The attributes of an entry that has a node.
    pub(super) fn node_attr(&self, node: &Node) -> Result<Attr> {
        let (in_upper, gone) = {
            let state = node.state.lock();
            (state.in_upper, state.gone)
        };
        let lower = match node.lower {
            Some(lower) if in_upper != InUpper::All || node.kind == Kind::Dir => {
                Some(self.lower_attr(&self.index.node(lower)?))
            }
            _ => None,
        };
        if in_upper == InUpper::Nothing {
            let mut attr = lower.ok_or(Error::Stale(node.ino))?;
            attr.ino = node.ino;
            if gone {
                attr.nlink = 0;
            }
            return Ok(attr);
        }
        let fd = self.backing_fd(node)?;
        let stat = rustix::fs::fstat(&fd).map_err(call("stat"))?;
        let mut attr = backing::attr_of(&stat, node.ino, node.kind);
        attr.generation = self.generation(node, &fd);
        if let Some(mode) = self.held_mode(node, &fd)? {
            attr.mode = mode;
        }
        if node.kind == Kind::Dir {
            self.show_ctime(node, &fd, &mut attr)?;
            (attr.size, attr.blocks) = (DIR_SIZE, DIR_SIZE / 512);
            attr.nlink = if gone { 0 } else { self.dir_nlink(node, lower)? };
        } else if let Some(lower) = lower {
            (attr.size, attr.blocks) = (lower.size, lower.blocks);
        }
        if node.kind == Kind::Symlink {
            attr.mode = 0o777;
            if lower.is_some() {
                attr.blocks = 0;
            }
        }
        Ok(attr)
    }

    /// The link count of a directory: two, and one for each subdirectory that it shows.
    fn dir_nlink(&self, node: &Node, lower: Option<Attr>) -> Result<u32> {
        let own = i64::from(lower.map_or(2, |attr| attr.nlink));
        self.with_dir(node, |state| {
            u32::try_from(own + state.subdir_delta).map_err(|_| Error::Stale(node.ino))
        })
    }

    /// The permission bits in the mode attribute of an entry; None without such an attribute. It is read once.
    pub(super) fn held_mode(&self, node: &Node, fd: &impl AsFd) -> Result<Option<u32>> {
        if let Some(known) = node.state.lock().mode {
            return Ok(known);
        }
        let held = match node.kind {
            Kind::File | Kind::Dir => backing::read_mode(fd.as_fd())?,
            // These cannot have attributes, and their files can have any permission bits.
            Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => None,
        };
        node.state.lock().mode = Some(held);
        Ok(held)
    }
}

/// Fails for an entry that is not a regular file.
fn must_be_file(kind: Kind) -> Result<()> {
    match kind {
        Kind::File => Ok(()),
        Kind::Dir => Err(Error::IsADirectory),
        Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
            Err(Error::Invalid("not a regular file"))
        }
    }
}

/// Fails for an entry that is not a directory.
pub(super) fn must_be_dir(kind: Kind) -> Result<()> {
    if kind == Kind::Dir { Ok(()) } else { Err(Error::NotADirectory) }
}
