//! The changes that a space has made to its catalog, read from its upper without a mount.
//!
//! [`Changes`] visits the entries of an upper and says what each one changes, and which inode number it has in the
//! space. The changes, applied to the tree of the catalog, give the tree that a mount shows. The rules are:
//!
//! * A name that no change mentions shows the catalog's entry, with everything below it.
//! * A directory that is [`What::Merged`] shows the names of its origin that no change in it mentions. Its origin is
//!   not always the catalog's directory at this path, because a directory can be renamed.
//! * A directory that is [`What::Created`] shows nothing but what the changes in it mention.
//!
//! Where the filesystem has no whiteout devices, a rename takes two steps, and the next mount finishes one that a
//! crash has cut short. Until then, the entry shows here under both names.

use std::os::fd::BorrowedFd;

use rustix::fs::Stat;

use super::entry::Present;
use super::walk::{Visited, Walk};
use super::{Kind, UpperError, mark};
use crate::library::index::{Index, NodeId};
use crate::sys::boot;

/// The changes that an upper holds.
#[derive(Debug)]
pub struct Changes<'a> {
    walk: Walk<'a>,
    index: &'a Index,
    /// The origin of each directory on the path to the current entry.
    merged: Vec<Option<NodeId>>,
}

/// One change.
#[derive(Clone, Copy, Debug)]
pub struct Change<'w> {
    /// The path of the entry, and the descriptor of its directory, by which it can be opened.
    pub at: Visited<'w>,
    /// The lower node of this name in the origin of the entry's directory. The entry hides that node, unless the node
    /// is its own origin.
    pub lower: Option<NodeId>,
    /// The entry that the space shows; None if it has removed the catalog's.
    pub now: Option<Now>,
}

/// An entry that the space shows and that has a file in the upper.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Kind, origin, and inode number in the space. All hard links of a file have the same inode number.
    pub present: Present,
    /// stat(2) of the file in the upper. It can have more permission bits than the entry (see [`Change::mode`]), and
    /// its size is not that of a [`What::Metadata`] entry.
    pub stat: Stat,
}

/// The kind of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The space has removed the catalog's entry.
    Removed,
    /// The entry was created in the space. Such a directory is opaque: it hides what the catalog has at its path.
    Created,
    /// A file of the catalog with bytes of its own.
    Bytes,
    /// A file or link of the catalog with other attributes or another name. Its bytes are still the catalog's.
    Metadata,
    /// A directory of the catalog. Its attributes or its place may have changed, or something below it.
    Merged,
}

/// See [`Change::lower`].
type Covered = Option<NodeId>;

impl<'a> Changes<'a> {
    /// Starts reading the changes at the root directory of an upper, which were made over the catalog of `index`.
    ///
    /// # Errors
    /// [`UpperError::Os`] when the root cannot be read.
    pub fn new(root: BorrowedFd<'a>, index: &'a Index) -> Result<Self, UpperError> {
        Ok(Self { walk: Walk::new(root)?, index, merged: vec![Some(NodeId(0))] })
    }

    /// Goes to the next change; None at the end. After an error the caller can go on. What is below the entry that
    /// could not be read is skipped.
    pub fn advance(&mut self) -> Option<Result<Change<'_>, UpperError>> {
        let (lower, now) = loop {
            if let Err(error) = self.walk.step()? {
                return Some(Err(error));
            }
            let understood = self.understand();
            if !matches!(&understood, Ok(Some((_, Some(now)))) if now.present.kind == Kind::Dir) {
                self.walk.skip_below();
            }
            match understood {
                Ok(Some(understood)) => break understood,
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        };
        let at = self.walk.current()?;
        Some(Ok(Change { at, lower, now }))
    }

    /// What the current entry changes; None if it changes nothing.
    fn understand(&mut self) -> Result<Option<(Covered, Option<Now>)>, UpperError> {
        let Some(visited) = self.walk.current() else { return Ok(None) };
        let Some((stat, mut on_disk)) = visited.look()? else { return Ok(None) };
        self.merged.truncate(visited.depth.saturating_add(1));
        let lower = match self.merged.last() {
            Some(Some(dir)) => self.index.lookup(*dir, visited.listed.file_name().to_bytes())?,
            _ => None,
        };
        on_disk.mark = on_disk.mark.map(|mark| mark.in_boot(boot::this(), stat.st_size));
        let present = Present::of(self.index, visited.listed.file_name(), &on_disk);
        let Some(present) = present.map_err(|error| error.at(visited.path))? else {
            // A whiteout without a lower entry has no effect. A crash can leave one behind.
            return Ok(lower.map(|lower| (Some(lower), None)));
        };
        if present.kind == Kind::Dir {
            self.merged.push(present.origin);
        }
        Ok(Some((lower, Some(Now { present, stat }))))
    }
}

impl Change<'_> {
    /// The kind of the change.
    #[must_use]
    pub fn what(&self) -> What {
        match self.now.map(|now| now.present) {
            None => What::Removed,
            Some(Present { origin: None, .. }) => What::Created,
            Some(Present { kind: Kind::Dir, .. }) => What::Merged,
            Some(Present { meta: true, .. }) => What::Metadata,
            Some(_) => What::Bytes,
        }
    }

    /// The origin of the entry, if it is not the node that the catalog has under this name. The entry was renamed to
    /// here, or is a further hard link.
    #[must_use]
    pub fn renamed_from(&self) -> Option<NodeId> {
        self.now?.present.origin.filter(|origin| Some(*origin) != self.lower)
    }

    /// The permission bits that the entry shows (07777); None for a removed entry.
    ///
    /// # Errors
    /// [`UpperError`] when the attribute that holds them cannot be read.
    pub fn mode(&self) -> Result<Option<u32>, UpperError> {
        let Some(now) = self.now else { return Ok(None) };
        let held = mark::read_mode(self.at.dir, self.at.listed.file_name(), now.stat.st_mode);
        held.map(Some).map_err(|error| error.at(self.at.path))
    }
}
