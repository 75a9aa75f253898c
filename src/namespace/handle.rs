//! Entries by their number alone: what a file handle (`open_by_handle_at`, NFS) leads to when the kernel has
//! forgotten the entry.
//!
//! The kernel then looks up `.` and `..` in a number. A number of a lower node says where the node was in the catalog;
//! one of an entry born in the upper is its number on disk, for which the upper is searched. Invariant: a number
//! that a later entry has got is not taken for the earlier one, because their generations differ.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::{Error, Result};
use super::table::Node;
use super::types::{Attr, Ino};
use super::{Namespace, View, c_name};
use crate::library::index::NodeId;
use crate::space::upper::UpperError;
use crate::space::upper::changes::Changes;

impl Namespace {
    /// Looks up `.` (or, with `parent`, `..`) in a number, and counts one lookup of what it finds.
    pub(super) fn lookup_number(&self, ino: Ino, parent: bool) -> Result<Attr> {
        let attr = self.find_number(ino)?;
        if !parent {
            return Ok(attr);
        }
        let above = match self.view(ino) {
            Ok(View::Lower(lower)) => self.index.node(lower).map(|node| Ino::of_lower(node.parent)),
            Ok(View::Node(node)) => Ok(self.parent_of(&node)),
            Err(error) => {
                self.forget(ino, 1);
                return Err(error);
            }
        };
        self.forget(ino, 1);
        self.find_number(above?)
    }

    fn find_number(&self, ino: Ino) -> Result<Attr> {
        if let Some(node) = self.table.hold(ino) {
            if node.is_gone() && self.table.lookups(ino) <= 1 {
                self.forget(ino, 1);
                return Err(Error::Stale(ino));
            }
            return self.node_attr(&node).inspect_err(|_| self.forget(ino, 1));
        }
        let place = match ino.lower() {
            Some(lower) if lower.0 < self.index.len() => self.place_of_lower(lower)?,
            Some(_) => None,
            None => self.search_upper(ino)?,
        };
        let (dir, name) = place.ok_or(Error::Stale(ino))?;
        let attr = self.lookup(dir, name.as_bytes())?;
        // Without a generation (on overlayfs) a later entry of the number could not be told from the one that is meant.
        let is_certain = ino.lower().is_some() || attr.generation != 0;
        if attr.ino == ino && is_certain {
            return Ok(attr);
        }
        self.forget(attr.ino, 1);
        Err(Error::Stale(ino))
    }

    /// Where a lower node shows now: at its own place below its parent, or where the upper has moved it.
    fn place_of_lower(&self, lower: NodeId) -> Result<Option<(Ino, CString)>> {
        let ino = Ino::of_lower(lower);
        // From the root down, since a directory can only be looked into once it is known where that is.
        let mut line = vec![lower];
        while let Some(last) = line.last().copied().filter(|last| *last != NodeId(0)) {
            line.push(self.index.node(last)?.parent);
        }
        let mut whole = true;
        let mut place = None;
        for node in line.into_iter().rev().skip(1) {
            let found = self.index.node(node)?;
            let own = (Ino::of_lower(found.parent), c_name(found.name)?);
            place = if whole && self.leads_to(&own, Ino::of_lower(node))? {
                Some(own)
            } else {
                self.search_upper(Ino::of_lower(node))?
            };
            whole = place.is_some();
        }
        Ok(place.filter(|_| ino != Ino::ROOT))
    }

    fn leads_to(&self, (dir, name): &(Ino, CString), ino: Ino) -> Result<bool> {
        match self.must_show(*dir, name) {
            Ok(attr) => Ok(attr.ino == ino),
            Err(Error::NotFound | Error::NotADirectory | Error::Stale(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where the upper has an entry of this number. The search takes time in proportion to the upper.
    fn search_upper(&self, ino: Ino) -> Result<Option<(Ino, CString)>> {
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

    /// Looks a path of the upper up step by step, so that its directories are known.
    fn place_at(&self, path: &Path) -> Result<Option<(Ino, CString)>> {
        let mut dir = Ino::ROOT;
        for step in path.parent().into_iter().flatten() {
            dir = match self.must_show(dir, &c_name(step.as_bytes())?) {
                Ok(attr) => attr.ino,
                // Moved meanwhile.
                Err(Error::NotFound | Error::NotADirectory) => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        path.file_name().map(|name| Ok((dir, c_name(name.as_bytes())?))).transpose()
    }

    /// What tells an entry born in the upper from an earlier one of the same number; asked once. Numbers of lower nodes
    /// are used once.
    pub(super) fn generation(&self, node: &Node, backing: &impl AsFd) -> u32 {
        if node.lower.is_some() {
            return 0;
        }
        *node.generation.get_or_init(|| crate::sys::fd::identity(backing).unwrap_or(0))
    }
}
