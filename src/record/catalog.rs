//! Makes the catalog of a tree, byte for byte as rcc does.
//!
//! rcc lists a link to a directory as a directory, with the whole content of its target once more, and marks every
//! directory below the link with `shadow`. rcc also reads catalogs that list nothing there. So nothing is listed where
//! a full listing would be infinite (a link to a directory above it, which makes rcc fail) or very large.
//!
//! *Foreign* links are the intended difference to rcc. Their target does not exist or is not recorded. rcc refuses
//! broken links. It gives the others the digest of their target on the recording machine, but stores no blob of it, so
//! `HasBlueprint` stays false and export fails. Here a foreign link is a file entry with the digest of the empty file,
//! whose blob is stored, or an empty directory entry. rcc restores both as the links that they are, since it looks only
//! at the link's text. So nothing of the recording machine gets into the library.
//!
//! Invariant: the caller has stored a blob for every digest in a catalog.

use std::io::{self, Write};

use super::tree::{Dir, DirId, Facts, FileId, Kind, Target, Tree};
use crate::library::catalog::write::{DirEntry, Document, FileEntry, go_mode, write_json};
use crate::library::catalog::{Header, MAX_DEPTH};
use crate::library::digest::Digest;

/// The mode of a foreign link, rw-r--r--. The mode of its target does not belong to the environment.
const FOREIGN_FILE: u32 = 0o100_644;
/// The mode of a link to a foreign directory.
const FOREIGN_DIR: u32 = 0o040_755;
/// The deepest nesting of links to directories, which is what the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// Writes the text of a catalog. `facts` has one element for each of `tree.files`. `empty` is the digest of the empty
/// file.
pub(super) fn write(
    header: &Header,
    tree: &Tree,
    facts: &[Facts],
    empty: Digest,
    out: impl Write,
) -> io::Result<()> {
    let entries = tree.dirs.iter().map(|dir| dir.entries.len()).sum::<usize>();
    // The `lib64` of a venv doubles the number of entries. Real environments have no more than that.
    let shadows_left = entries.saturating_mul(8).max(10_000);
    let mut lister = Lister { tree, facts, empty, open: Vec::new(), links: 0, shadows_left, shadow: false };
    let tree = lister.dir("", None, Some(DirId(0)))?;
    write_json(&Document { header, lifted: true, tree }, out)
}

/// Lists the tree in the form of the catalog.
struct Lister<'a> {
    tree: &'a Tree,
    facts: &'a [Facts],
    empty: Digest,
    /// The directories that are being listed, from the root on.
    open: Vec<DirId>,
    /// The number of them that are listed through a link.
    links: usize,
    /// The number of entries that may still be listed behind links.
    shadows_left: usize,
    /// Whether the current directory is below a link, at any depth.
    shadow: bool,
}

impl<'a> Lister<'a> {
    /// Lists a directory, or a link to one if `symlink` has its target. `id` is None if the directory is not recorded.
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
                    Target::Dir(id) => listed.subdirs.push(self.dir(name, Some(text), *id)?),
                    Target::File(id) => listed.files.push(self.file(name, Some(text), *id)?),
                },
            }
        }
        Ok(())
    }

    /// Lists a file, or a link to one if `symlink` has its target. `id` is None if the file is not recorded.
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
            // The caller hashes every file of the tree. Without this check a bug would lead to a wrong catalog.
            _ => Err(io::Error::other("a file was not hashed")),
        }
    }
}
