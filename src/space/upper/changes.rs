//! The changes of a space, read from its upper without a mount.
//!
//! [`Changes`] goes through an upper and says of each entry what it changes of the catalog's tree, and which inode number
//! it has in the space. Applied to the tree of the index, in the order in which they come, the changes give the tree that a
//! mount shows: an entry that no change mentions is the catalog's, and a directory that merges with a lower one, or
//! that the upper does not mention, shows whatever is left of the lower one.
//!
//! On filesystems without whiteout devices a rename takes two steps. One that a crash has cut short is finished by the
//! next mount; until then the old name shows here as if it had never been renamed.

use std::os::fd::BorrowedFd;

use rustix::fs::Stat;

use super::UpperError;
use super::entry::Present;
use super::mark;
use super::types::Kind;
use super::walk::{Met, Walk};
use crate::library::index::{Index, NodeId};
use crate::sys::boot;

/// The changes that an upper holds.
#[derive(Debug)]
pub struct Changes<'a> {
    walk: Walk<'a>,
    index: &'a Index,
    /// For each directory from the root to the present entry, the lower directory that it merges with.
    merged: Vec<Option<NodeId>>,
}

/// One change.
#[derive(Clone, Copy, Debug)]
pub struct Change<'w> {
    /// Where the entry is, and a descriptor by which it can be opened.
    pub at: Met<'w>,
    /// The lower node that the catalog has under this name in the lower directory that the entry's directory merges with.
    /// The entry hides it, unless it is the entry's own origin.
    pub lower: Option<NodeId>,
    /// What the space shows under the name; None when the name was removed.
    pub now: Option<Now>,
}

/// What the space shows under a name that its upper mentions.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Kind, inode number in the space, and origin. Names of one file have one inode number.
    pub present: Present,
    /// stat(2) of the file in the upper. Its permission bits can be more than those of the entry (see
    /// [`Change::mode`]), and the bytes that it counts are not those of a [`What::Metadata`] entry.
    pub stat: Stat,
}

/// What a change does to the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The space has removed the catalog's entry.
    Removed,
    /// The entry was created in the space. A directory is opaque: everything in it was created or moved there.
    Created,
    /// A file of the catalog whose bytes have changed.
    Bytes,
    /// A file or link of the catalog with other attributes or another name. Its bytes are still the catalog's.
    Metadata,
    /// A directory of the catalog, which merges with it. Its attributes may differ, and something below it may.
    Merged,
}

/// See [`Change::lower`].
type Covered = Option<NodeId>;

impl<'a> Changes<'a> {
    /// The changes in the upper whose root directory is `root`, over the catalog of `index`.
    ///
    /// # Errors
    /// [`UpperError::Os`] when the root cannot be read.
    pub fn new(root: BorrowedFd<'a>, index: &'a Index) -> Result<Self, UpperError> {
        Ok(Self { walk: Walk::new(root)?, index, merged: vec![Some(NodeId(0))] })
    }

    /// Goes to the next change; None at the end. After an error of one entry the changes go on: what is below that entry
    /// is left out.
    pub fn advance(&mut self) -> Option<Result<Change<'_>, UpperError>> {
        let (lower, now) = loop {
            if let Err(error) = self.walk.step()? {
                return Some(Err(error));
            }
            match self.understand() {
                Ok(Some(understood)) => break understood,
                Ok(None) => {}
                Err(error) => {
                    self.walk.skip_below();
                    return Some(Err(error));
                }
            }
        };
        let at = self.walk.met()?;
        Some(Ok(Change { at, lower, now }))
    }

    /// What the present entry changes; None when that is nothing.
    fn understand(&mut self) -> Result<Option<(Covered, Option<Now>)>, UpperError> {
        let Some(met) = self.walk.met() else { return Ok(None) };
        let Some((stat, mut on_disk)) = met.look()? else { return Ok(None) };
        self.merged.truncate(met.depth.saturating_add(1));
        let lower = match self.merged.last() {
            Some(Some(dir)) => self.index.lookup(*dir, met.listed.name.to_bytes())?,
            _ => None,
        };
        on_disk.mark = on_disk.mark.map(|mark| mark.in_boot(boot::this(), stat.st_size));
        let present = Present::of(self.index, &met.listed.name, &on_disk);
        let Some(present) = present.map_err(|error| error.at(met.path))? else {
            // A whiteout without a lower entry has no effect. A crash can leave one behind.
            self.walk.skip_below();
            return Ok(lower.map(|lower| (Some(lower), None)));
        };
        if present.kind == Kind::Dir {
            self.merged.push(present.origin);
        }
        Ok(Some((lower, Some(Now { present, stat }))))
    }
}

impl Change<'_> {
    /// What the change does to the name.
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

    /// The lower node that the entry was renamed from, when it is not the one that the catalog has under this name. A
    /// further hard link of a library file counts as well.
    #[must_use]
    pub fn renamed_from(&self) -> Option<NodeId> {
        self.now?.present.origin.filter(|origin| Some(*origin) != self.lower)
    }

    /// The permission bits of an entry that is there (07777).
    ///
    /// # Errors
    /// [`UpperError`] when the attribute that holds them cannot be read.
    pub fn mode(&self) -> Result<Option<u32>, UpperError> {
        let Some(now) = self.now else { return Ok(None) };
        let held = mark::read_mode(self.at.dir, &self.at.listed.name, now.stat.st_mode);
        held.map(Some).map_err(|error| error.at(self.at.path))
    }
}
