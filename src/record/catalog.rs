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

use super::gojson::Writer;
use super::walk::{Dir, DirId, FileId, Kind, Target, Tree};
use crate::library::catalog::MAX_DEPTH;
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

/// What a catalog says about itself.
#[derive(Clone, Debug)]
pub(super) struct Header<'a> {
    pub(super) identity: &'a str,
    /// The stage, absolute; ends in `identity`.
    pub(super) path: &'a str,
    pub(super) platform: &'a str,
    pub(super) blueprint: &'a str,
}

impl Header<'_> {
    fn write<W: Write>(&self, json: &mut Writer<W>) -> io::Result<()> {
        let rcc = concat!("holofs v", env!("CARGO_PKG_VERSION"));
        for (key, value) in [
            ("rcc", rcc),
            ("identity", self.identity),
            ("path", self.path),
            ("controller", ""),
            ("space", ""),
            ("platform", self.platform),
            ("blueprint", self.blueprint),
        ] {
            json.key(key)?;
            json.string(value)?;
        }
        Ok(())
    }
}

/// Writes the text of the `.info` file.
pub(super) fn write_info(header: &Header<'_>, out: impl Write) -> io::Result<()> {
    let mut json = Writer::new(out);
    json.begin(b'{')?;
    header.write(&mut json)?;
    json.end(b'}')
}

/// Writes the text of a catalog. `facts` are those of `tree.files`, by position; `empty` is the empty file's digest.
pub(super) fn write<W: Write>(
    header: &Header<'_>,
    tree: &Tree,
    facts: &[Facts],
    empty: Digest,
    out: W,
) -> io::Result<W> {
    let entries = tree.dirs.iter().map(|dir| dir.entries.len()).sum::<usize>();
    // Real environments double at most, by a venv's lib64.
    let shadows_left = entries.saturating_mul(8).max(10_000);
    let json = Writer::new(out);
    let mut catalog =
        Catalog { json, tree, facts, empty, open: Vec::new(), links: 0, shadows_left, shadow: false };
    catalog.json.begin(b'{')?;
    header.write(&mut catalog.json)?;
    catalog.json.key("lifted")?;
    catalog.json.bool(true)?;
    catalog.json.key("tree")?;
    catalog.dir("", None, Some(DirId(0)))?;
    catalog.json.end(b'}')?;
    Ok(catalog.json.into_inner())
}

/// The Go `FileMode` of an `st_mode`.
pub(super) fn go_mode(st_mode: u32) -> u32 {
    let mut mode = st_mode & 0o777;
    for (st_bit, bit) in [(0o4000, 23), (0o2000, 22), (0o1000, 20)] {
        if st_mode & st_bit != 0 {
            mode |= 1 << bit;
        }
    }
    if st_mode & 0o170_000 == 0o040_000 {
        mode |= 1 << 31;
    }
    mode
}

struct Catalog<'a, W> {
    json: Writer<W>,
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

impl<'a, W: Write> Catalog<'a, W> {
    /// A directory, or a link (with its text) to one; `None` is one that is not recorded.
    fn dir(&mut self, name: &str, symlink: Option<&str>, id: Option<DirId>) -> io::Result<()> {
        let found: Option<(DirId, &'a Dir)> = id.and_then(|id| Some((id, self.tree.dirs.get(id.0)?)));
        self.json.begin(b'{')?;
        self.json.key("name")?;
        self.json.string(name)?;
        if let Some(text) = symlink {
            self.json.key("symlink")?;
            self.json.string(text)?;
        }
        self.json.key("mode")?;
        self.json.number(go_mode(found.map_or(FOREIGN_DIR, |(_, dir)| dir.mode)).into())?;
        let shadow = self.shadow;
        match found {
            Some((id, dir)) if self.may_list(symlink.is_some(), id, dir) => {
                self.open.push(id);
                self.links += usize::from(symlink.is_some());
                self.shadow = shadow || symlink.is_some();
                self.members(dir)?;
                self.shadow = shadow;
                self.links -= usize::from(symlink.is_some());
                self.open.pop();
            }
            _ => self.no_members()?,
        }
        if shadow {
            self.json.key("shadow")?;
            self.json.bool(true)?;
        }
        self.json.end(b'}')
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

    fn members(&mut self, dir: &'a Dir) -> io::Result<()> {
        self.json.key("subdirs")?;
        self.json.begin(b'{')?;
        for entry in &dir.entries {
            let (symlink, id) = match &entry.kind {
                Kind::Dir(id) => (None, Some(*id)),
                Kind::Link { text, target: Target::Dir(id) } => (Some(text.as_str()), Some(*id)),
                Kind::Link { text, target: Target::ForeignDir } => (Some(text.as_str()), None),
                Kind::File(_) | Kind::Link { target: Target::File(_) | Target::Foreign, .. } => continue,
            };
            self.json.key(&entry.name)?;
            self.dir(&entry.name, symlink, id)?;
        }
        self.json.end(b'}')?;
        self.json.key("files")?;
        self.json.begin(b'{')?;
        for entry in &dir.entries {
            let (symlink, id) = match &entry.kind {
                Kind::File(id) => (None, Some(*id)),
                Kind::Link { text, target: Target::File(id) } => (Some(text.as_str()), Some(*id)),
                Kind::Link { text, target: Target::Foreign } => (Some(text.as_str()), None),
                Kind::Dir(_) | Kind::Link { target: Target::Dir(_) | Target::ForeignDir, .. } => continue,
            };
            self.json.key(&entry.name)?;
            self.file(&entry.name, symlink, id)?;
        }
        self.json.end(b'}')
    }

    fn no_members(&mut self) -> io::Result<()> {
        for key in ["subdirs", "files"] {
            self.json.key(key)?;
            self.json.begin(b'{')?;
            self.json.end(b'}')?;
        }
        Ok(())
    }

    /// A file, or a link (with its text) to one; `None` is one that is not recorded.
    fn file(&mut self, name: &str, symlink: Option<&str>, id: Option<FileId>) -> io::Result<()> {
        let foreign = Facts { digest: self.empty, size: 0, rewrite: Vec::new() };
        let (mode, facts) = match id {
            None => (FOREIGN_FILE, &foreign),
            Some(id) => match (self.tree.files.get(id.0), self.facts.get(id.0)) {
                (Some(content), Some(facts)) => (content.mode, facts),
                // The caller hashes every file of the tree; a catalog with a wrong digest must not come of it.
                _ => return Err(io::Error::other("a file was not hashed")),
            },
        };
        self.json.begin(b'{')?;
        self.json.key("name")?;
        self.json.string(name)?;
        if let Some(text) = symlink {
            self.json.key("symlink")?;
            self.json.string(text)?;
        }
        self.json.key("size")?;
        self.json.number(facts.size)?;
        self.json.key("mode")?;
        self.json.number(go_mode(mode).into())?;
        self.json.key("digest")?;
        self.json.string(&facts.digest.to_string())?;
        self.json.key("rewrite")?;
        self.json.begin(b'[')?;
        for offset in &facts.rewrite {
            self.json.member()?;
            self.json.number(*offset)?;
        }
        self.json.end(b']')?;
        self.json.end(b'}')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::catalog::perm_of_go_mode;

    #[test]
    fn modes_as_go_numbers_them() {
        for (st_mode, mode) in [
            (0o100_644, 420),
            (0o100_755, 493),
            (0o040_755, 2_147_484_141),
            (0o104_755, 8_389_101),
            (0o102_755, 4_194_797),
            (0o101_644, 1_048_996),
            (0o041_777, 2_148_532_735),
            (0o042_755, 2_151_678_445),
        ] {
            assert_eq!(go_mode(st_mode), mode, "{st_mode:o}");
            assert_eq!(u32::from(perm_of_go_mode(mode)), st_mode & 0o7777);
        }
    }
}
