//! Operations that a dead worker may have done: whether the effect of a request is there already, and its answer.
//!
//! Each operation on names notes, under the locks of its directories, when it has found that it will succeed unless a
//! system call fails (`handoff::requests`). So if the request comes again, and the name is as the operation leaves it,
//! the operation was done. What is left is the answer, and what an operation does after its visible step.

use std::ffi::CString;

use super::Namespace;
use super::rename::RenameMode;
use super::types::{Attr, Error, Ino, Kind, Result};
use crate::handoff::requests::Note;

impl Namespace {
    /// Notes that the operation of this thread will now change the entry `ino`, and has found that it may.
    pub(super) fn about_to_change(&self, ino: Ino) {
        self.handoff.requests().note(ino.0);
    }

    /// The same for an entry that is made, and has no number yet.
    pub(super) fn about_to_make(&self) {
        self.handoff.requests().note(0);
    }

    fn noted(&self) -> Option<Note> {
        self.handoff.requests().noted()
    }

    /// The entry that this request has made, with one lookup counted.
    pub(super) fn made_before(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        if self.noted().is_none() {
            return Ok(None);
        }
        // A reset can bring back what the environment has there.
        self.shown_now(parent, name, |attr| attr.ino.lower().is_none())
    }

    /// The attributes of the entry to which this request has given a name, with one lookup counted.
    pub(super) fn linked_before(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        if self.noted().is_none() {
            return Ok(None);
        }
        self.shown_now(parent, name, |attr| attr.ino == ino)
    }

    /// Whether this request has removed a name.
    pub(super) fn removed_before(&self, parent: Ino, name: &CString) -> Result<bool> {
        if self.noted().is_none() {
            return Ok(false);
        }
        match self.must_show(parent, name) {
            Ok(_) => Ok(false),
            Err(Error::NotFound) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether this request has renamed or exchanged what it was to. Before that, the new name never shows the entry: a
    /// rename from one link of a file to another does nothing, and makes no note.
    pub(super) fn renamed_before(
        &self,
        (parent, name): (Ino, &CString),
        (new_parent, new_name): (Ino, &CString),
        mode: RenameMode,
    ) -> Result<bool> {
        let Some(Note { witness }) = self.noted() else { return Ok(false) };
        let moved = match self.look(new_parent, new_name) {
            Ok(looked) if looked.attr.ino == Ino(witness) => looked,
            Ok(_) | Err(Error::NotFound) => return Ok(false),
            Err(error) => return Err(error),
        };
        self.attribute_changed(moved.attr.ino);
        if mode == RenameMode::Exchange {
            self.attribute_changed(self.must_show(parent, name)?.ino);
        }
        Ok(true)
    }

    /// Ends what a change of attributes ends, if this request may have made the change before.
    pub(super) fn changed_before(&self, ino: Ino, kind: Kind) {
        if kind == Kind::Dir && self.handoff.requests().is_resent() {
            self.attribute_changed(ino);
        }
    }

    /// Looks up a name, and keeps the lookup counted if the entry is the right one.
    fn shown_now(
        &self,
        parent: Ino,
        name: &[u8],
        is_right: impl FnOnce(&Attr) -> bool,
    ) -> Result<Option<Attr>> {
        match self.lookup(parent, name) {
            Ok(attr) if is_right(&attr) => Ok(Some(attr)),
            Ok(attr) => {
                self.forget(attr.ino, 1);
                Ok(None)
            }
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
