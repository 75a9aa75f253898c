//! Writes a catalog: the tree with its digests and offsets, in rcc's shape to the byte.
//!
//! A link to a recorded directory is listed as rcc lists it: as a directory, with everything behind it once more
//! below it, and `shadow` from the second level on. rcc reads any catalog that lists nothing there, so where a full
//! listing would not end (a link to a directory above it, over which rcc itself fails) or would grow without
//! measure, nothing is listed.
//!
//! A *foreign* link (to nothing, or to something that is not recorded) is where this departs from rcc on purpose. rcc
//! refuses broken links, and gives the others the digest of what they lead to on the recording machine, whose blob it
//! does not store: `HasBlueprint` is then false for ever and export fails. Here such a link is a file entry with the
//! digest of the empty file, whose blob is stored, and a link to a foreign directory is an empty directory entry. Both
//! are restored by rcc as the links they are, since it looks at nothing but the text, and nothing of the recording
//! machine gets into the library.
//!
//! Invariant: every digest in a catalog is one the caller has stored a blob for.

use std::io::{self, Write};

use super::walk::{Dir, DirId, FileId, Kind, Target, Tree};
use crate::library::catalog::write::{DirEntry, Document, FileEntry, go_mode, write_json};
use crate::library::catalog::{Header, MAX_DEPTH};
use crate::library::digest::Digest;

/// What goes into a foreign link's mode, since the target's is not the environment's: rw-r--r--.
const FOREIGN_FILE: u32 = 0o100_644;
/// The same for a link to a foreign directory.
const FOREIGN_DIR: u32 = 0o040_755;
/// Links to directories within links to directories: what the kernel follows on one path.
const MAX_LINKS: usize = 40;

/// What a content is.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) rewrite: Vec<u64>,
}

/// Writes the text of a catalog. `facts` are those of `tree.files`, by position; `empty` is the empty file's digest.
pub(super) fn write(
    header: &Header,
    tree: &Tree,
    facts: &[Facts],
    empty: Digest,
    out: impl Write,
) -> io::Result<()> {
    let entries = tree.dirs.iter().map(|dir| dir.entries.len()).sum::<usize>();
    // Real environments double at most, by a venv's lib64.
    let shadows_left = entries.saturating_mul(8).max(10_000);
    let mut lister = Lister { tree, facts, empty, open: Vec::new(), links: 0, shadows_left, shadow: false };
    let tree = lister.dir("", None, Some(DirId(0)))?;
    write_json(&Document { header, lifted: true, tree }, out)
}

/// Lists the tree as the catalog shows it.
struct Lister<'a> {
    tree: &'a Tree,
    facts: &'a [Facts],
    empty: Digest,
    /// The directories being listed, from the root on.
    open: Vec<DirId>,
    /// How many of them are listed through a link.
    links: usize,
    /// How many more entries may be listed behind links.
    shadows_left: usize,
    /// Whether the directory being listed is below a link, at any depth.
    shadow: bool,
}

impl<'a> Lister<'a> {
    /// A directory, or a link (with its text) to one; `None` is one that is not recorded.
    fn dir(
        &mut self,
        name: &'a str,
        symlink: Option<&'a str>,
        id: Option<DirId>,
    ) -> io::Result<DirEntry<'a>> {
        let found = id.and_then(|id| Some((id, self.tree.dirs.get(id.0)?)));
        let mode = go_mode(found.map_or(FOREIGN_DIR, |(_, dir)| dir.mode));
        let shadow = self.shadow;
        let mut listed = DirEntry { name, symlink, mode, shadow, ..DirEntry::default() };
        if let Some((id, dir)) = found
            && self.may_list(symlink.is_some(), id, dir)
        {
            self.open.push(id);
            self.links += usize::from(symlink.is_some());
            self.shadow = shadow || symlink.is_some();
            self.members(dir, &mut listed)?;
            self.shadow = shadow;
            self.links -= usize::from(symlink.is_some());
            self.open.pop();
        }
        Ok(listed)
    }

    fn may_list(&mut self, is_link: bool, id: DirId, dir: &Dir) -> bool {
        if self.open.len() > MAX_DEPTH || self.open.contains(&id) || (is_link && self.links >= MAX_LINKS) {
            return false;
        }
        if is_link || self.shadow {
            let Some(left) = self.shadows_left.checked_sub(dir.entries.len()) else { return false };
            self.shadows_left = left;
        }
        true
    }

    fn members(&mut self, dir: &'a Dir, listed: &mut DirEntry<'a>) -> io::Result<()> {
        for entry in &dir.entries {
            let name = entry.name.as_str();
            match &entry.kind {
                Kind::Dir(id) => listed.subdirs.push(self.dir(name, None, Some(*id))?),
                Kind::File(id) => listed.files.push(self.file(name, None, Some(*id))?),
                Kind::Link { text, target } => match target {
                    Target::Dir(id) => listed.subdirs.push(self.dir(name, Some(text), Some(*id))?),
                    Target::ForeignDir => listed.subdirs.push(self.dir(name, Some(text), None)?),
                    Target::File(id) => listed.files.push(self.file(name, Some(text), Some(*id))?),
                    Target::Foreign => listed.files.push(self.file(name, Some(text), None)?),
                },
            }
        }
        Ok(())
    }

    /// A file, or a link (with its text) to one; `None` is one that is not recorded.
    fn file(&self, name: &'a str, symlink: Option<&'a str>, id: Option<FileId>) -> io::Result<FileEntry<'a>> {
        let Some(id) = id else {
            let (mode, digest) = (go_mode(FOREIGN_FILE), self.empty);
            return Ok(FileEntry { name, symlink, size: 0, mode, digest, rewrite: &[] });
        };
        match (self.tree.files.get(id.0), self.facts.get(id.0)) {
            (Some(file), Some(Facts { digest, size, rewrite })) => {
                let (digest, size, mode) = (*digest, *size, go_mode(file.mode));
                Ok(FileEntry { name, symlink, size, mode, digest, rewrite })
            }
            // The caller hashes every file of the tree; a catalog with a wrong digest must not come of it.
            _ => Err(io::Error::other("a file was not hashed")),
        }
    }
}
