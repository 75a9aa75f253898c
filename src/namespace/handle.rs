//! Finds entries by their inode number alone, for file handles.
//!
//! A program can keep a file handle (`name_to_handle_at`; NFS does the same) for longer than the kernel keeps the
//! entry. The kernel then looks up `.` or `..` in the inode number. The number of a lower node says where the node is
//! in the catalog. Any other entry is searched for in the upper, which takes time in proportion to the upper.
//!
//! Invariant: an entry is not mistaken for an earlier one whose inode number it got, because their generations
//! differ.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::table::{Node, Place};
use super::types::{Attr, Error, Ino, Result};
use super::{Namespace, c_name};
use crate::space::upper::UpperError;
use crate::space::upper::changes::Changes;

impl Namespace {
    /// Looks up `.` (or, with `parent`, `..`) in an inode number, and counts one lookup of the entry.
    pub(super) fn lookup_number(&self, ino: Ino, parent: bool) -> Result<Attr> {
        let attr = self.find_number(ino)?;
        if !parent {
            return Ok(attr);
        }
        let above = self.view(ino).and_then(|view| self.parent_of(&view));
        self.forget(ino, 1);
        self.find_number(above?)
    }

    fn find_number(&self, ino: Ino) -> Result<Attr> {
        if let Some(node) = self.table.hold(ino) {
            if node.is_gone() && self.table.lookups(&node) <= 1 {
                self.forget(ino, 1);
                return Err(Error::Stale(ino));
            }
            return self.node_attr(&node).inspect_err(|_| self.forget(ino, 1));
        }
        let place = match ino.lower() {
            Some(lower) if lower.0 >= self.index.ids() => None,
            _ => self.place_of(ino)?,
        };
        let (dir, name) = place.ok_or(Error::Stale(ino))?;
        let attr = self.lookup(dir, name.as_bytes())?;
        // Without a generation (on overlayfs), a later entry with the same number would be mistaken for this one.
        let is_certain = ino.lower().is_some() || attr.generation != 0;
        if attr.ino == ino && is_certain {
            return Ok(attr);
        }
        self.forget(attr.ino, 1);
        Err(Error::Stale(ino))
    }

    /// The place at which an entry shows now: its place in the catalog, or else one in the upper.
    fn place_of(&self, ino: Ino) -> Result<Option<Place>> {
        if let Some(lower) = ino.lower() {
            let found = self.index.node(lower)?;
            let own = (self.ino_of(found.parent), c_name(found.name)?);
            // A directory can be searched only when its own place is known. A catalog is at most 256 directories deep.
            let is_known = own.0 == Ino::ROOT || self.place_of(own.0)?.is_some();
            if is_known && self.leads_to(&own, ino)? {
                return Ok(Some(own));
            }
        }
        self.search_upper(ino)
    }

    /// Whether a place shows the entry with this inode number.
    fn leads_to(&self, (dir, name): &Place, ino: Ino) -> Result<bool> {
        match self.must_show(*dir, name) {
            Ok(attr) => Ok(attr.ino == ino),
            Err(Error::NotFound | Error::NotADirectory | Error::Stale(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The place at which the upper has an entry with this inode number.
    fn search_upper(&self, ino: Ino) -> Result<Option<Place>> {
        let mut changes = Changes::new(self.root.as_fd(), &self.index)?;
        while let Some(change) = changes.advance() {
            match change {
                Ok(change) if change.now.is_some_and(|now| now.present.ino == ino) => {
                    return self.place_at(change.at.path);
                }
                // A damaged entry has no number.
                Ok(_) | Err(UpperError::Damaged { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// The place of a path below the root. Each directory on the path is looked up, so that it has a node.
    pub(super) fn place_at(&self, path: &Path) -> Result<Option<Place>> {
        let mut dir = Ino::ROOT;
        for step in path.parent().into_iter().flatten() {
            dir = match self.must_show(dir, &c_name(step.as_bytes())?) {
                Ok(attr) => attr.ino,
                // It was renamed or removed during the search.
                Err(Error::NotFound | Error::NotADirectory) => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        path.file_name().map(|name| Ok((dir, c_name(name.as_bytes())?))).transpose()
    }

    /// The generation of an entry, computed once. An entry with the number of a lower node needs none, because such a
    /// number is never used for another entry.
    pub(super) fn generation(&self, node: &Node, backing: &impl AsFd) -> u32 {
        if node.lower.is_some() {
            return 0;
        }
        *node.generation.get_or_init(|| crate::sys::fd::identity(backing).unwrap_or(0))
    }
}
