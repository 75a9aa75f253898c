//! Builds the tree from the text of a catalog, in one pass.
//!
//! A missing or `null` field means empty or zero, and an unknown field is skipped, as in Go. Unlike Go, a duplicate
//! field in an object is an error: readers differ in which one they take.

use std::collections::HashMap;

use super::json::{Lexer, Pieces, Stop};
use super::{
    CatalogError, Entry, EntryKind, Limits, MAX_DEPTH, MAX_LINK, MAX_SIZE, Text, Tree, bad_name,
    perm_of_go_mode,
};
use crate::library::NAME_LEN;
use crate::library::digest::Digest;

/// The number of offsets of one file that are collected before they are sorted for the first time.
const SORT: usize = 1 << 12;

/// Reads one document. Bytes after it are ignored.
pub(super) fn build(pieces: &mut dyn Pieces, limits: Limits, with_links: bool) -> Result<Tree, CatalogError> {
    let mut builder = Builder {
        json: Lexer::new(pieces),
        tree: Tree::default(),
        limits,
        with_links,
        known_digests: HashMap::new(),
        path: Vec::new(),
        hidden: false,
        has_tree: false,
    };
    match builder.document() {
        Ok(()) if builder.has_tree => Ok(builder.tree),
        Ok(()) => Err(CatalogError::BadHeader("the tree is missing".into())),
        Err(Stop::Other(error)) => Err(error),
        Err(Stop::Entry(why)) => Err(CatalogError::Entry { path: builder.current_path(), why }),
        Err(Stop::Json(why)) if !builder.path.is_empty() => {
            let why = format!("{why} (at byte {} of the catalog's text)", builder.json.offset());
            Err(CatalogError::Entry { path: builder.current_path(), why })
        }
        Err(stop) => Err(stop.into_error(builder.json.offset())),
    }
}

struct Builder<'p> {
    json: Lexer<'p>,
    tree: Tree,
    limits: Limits,
    /// Whether to collect what is listed for links.
    with_links: bool,
    known_digests: HashMap<Digest, u32>,
    /// The names of the directories on the way to the current entry, and of the entry.
    path: Vec<Text>,
    /// Whether the current entry lies below a link to a directory, and so is not part of the tree.
    hidden: bool,
    has_tree: bool,
}

/// The lengths of the tree's lists before an entry was added, to remove that entry again.
struct Lengths {
    entries: usize,
    strings: usize,
    relocations: usize,
}

impl Builder<'_> {
    fn document(&mut self) -> Result<(), Stop> {
        const FIELDS: [&str; 6] = ["rcc", "identity", "path", "platform", "blueprint", "tree"];
        let mut object = self.json.object()?;
        while let Some(field) = self.json.next_field(&mut object, &FIELDS)? {
            if field == "tree" {
                self.has_tree = true;
                let root = self.text("")?;
                self.dir(root, 0)?;
                continue;
            }
            let value = self.json.string()?.to_owned();
            let info = &mut self.tree.info;
            match field {
                "rcc" => info.rcc = value,
                "identity" => info.identity = value,
                "path" => info.path = value,
                "platform" => info.platform = value,
                _ => info.blueprint = value,
            }
        }
        Ok(())
    }

    /// Reads a directory. Its name has been read.
    fn dir(&mut self, name: Text, parent: u32) -> Result<(), Stop> {
        let before = self.lengths();
        let was_hidden = self.hidden;
        let own = self.push(name, parent, EntryKind::Dir)?;
        let (mut link, mut shadow) = (None, false);
        let mut object = self.json.object()?;
        const FIELDS: [&str; 5] = ["name", "symlink", "subdirs", "files", "shadow"];
        while let Some(field) = self.json.next_field(&mut object, &FIELDS)? {
            match field {
                "name" => self.same_name(name)?,
                "symlink" => {
                    link = self.link_text()?;
                    // rcc writes the link before the content. So the content need not be kept.
                    self.hidden |= link.is_some();
                }
                "subdirs" => self.children(own, true)?,
                "files" => self.children(own, false)?,
                _ => shadow = self.json.boolean()?,
            }
        }
        self.hidden = was_hidden;
        self.tree.info.rcc_directories += 1;
        let is_root = self.path.is_empty();
        if is_root && (link.is_some() || shadow) {
            return Err(Stop::Json("the root of the tree is a link"));
        }
        if shadow || self.hidden {
            self.take_back(&before);
        } else if let Some(target) = link {
            self.take_back(&before);
            let target = self.text(&target)?;
            self.push(name, parent, EntryKind::Symlink { target })?;
        }
        Ok(())
    }

    /// Reads the map of a directory's subdirectories (`dirs`) or files.
    fn children(&mut self, parent: u32, dirs: bool) -> Result<(), Stop> {
        let mut object = self.json.object()?;
        while self.json.next_member(&mut object.first)? {
            let before = self.tree.strings.len();
            let key = self.json.string()?;
            let name = add_text(&mut self.tree.strings, key)?;
            self.path.push(name);
            if let Some(why) = bad_name(self.tree.text(name)) {
                return Err(Stop::Entry(why.into()));
            }
            self.json.colon()?;
            if !dirs {
                self.file(name, parent)?;
            } else if self.path.len() > MAX_DEPTH {
                return Err(Stop::Entry(format!("nested deeper than {MAX_DEPTH} directories")));
            } else {
                self.dir(name, parent)?;
            }
            self.path.pop();
            if self.hidden {
                self.tree.strings.truncate(before);
            }
        }
        Ok(())
    }

    /// Reads a file. Its name has been read.
    fn file(&mut self, name: Text, parent: u32) -> Result<(), Stop> {
        let before = self.lengths();
        let (mut link, mut size, mut mode) = (None, 0u64, 0u32);
        let mut digest = Err(String::new());
        let mut object = self.json.object()?;
        const FIELDS: [&str; 6] = ["name", "symlink", "size", "mode", "digest", "rewrite"];
        while let Some(field) = self.json.next_field(&mut object, &FIELDS)? {
            match field {
                "name" => self.same_name(name)?,
                "symlink" => link = self.link_text()?,
                "size" => size = self.json.natural()?,
                "mode" => {
                    let found = self.json.natural()?;
                    mode =
                        u32::try_from(found).map_err(|_| Stop::Entry(format!("an invalid mode {found}")))?;
                }
                "digest" => {
                    let said = self.json.bytes()?;
                    digest = Digest::parse(said)
                        .map_err(|_| String::from_utf8_lossy(said).chars().take(80).collect::<String>());
                }
                _ => self.offsets()?,
            }
        }
        if size > MAX_SIZE {
            return Err(Stop::Entry(format!("a size of {size} bytes")));
        }
        let info = &mut self.tree.info;
        info.rcc_files += 1;
        info.rcc_bytes = info.rcc_bytes.saturating_add(size);
        info.rcc_relocations += u64::from(self.tree.relocations.len() > before.relocations);
        if self.with_links && (self.hidden || link.is_some()) {
            self.linked(&digest, size)?;
        }
        if self.hidden {
            self.take_back(&before);
            return Ok(());
        }
        if let Some(target) = link {
            // The digest, size and offsets are those of the link's target. The library may have no blob of that digest.
            self.take_back(&before);
            let target = self.text(&target)?;
            self.push(name, parent, EntryKind::Symlink { target })?;
            return Ok(());
        }
        let digest = digest.map_err(|said| Stop::Entry(format!("an invalid digest {said:?}")))?;
        let digest = self.digest(digest)?;
        let relocations = self.checked_offsets(before.relocations, size)?;
        let perm = perm_of_go_mode(mode);
        self.push(name, parent, EntryKind::File { size, perm, digest, relocations })?;
        Ok(())
    }

    /// Appends a list of offsets to `relocations`. Repeats do not accumulate, however many there are.
    fn offsets(&mut self) -> Result<(), Stop> {
        self.json.expect(b'[', "a list was expected")?;
        let start = self.tree.relocations.len();
        let (mut first, mut sort_at) = (true, start + SORT);
        while self.json.next_element(&mut first)? {
            let offset = self.json.natural()?;
            // rcc lists some offsets twice in a row.
            if self.tree.relocations.len() > start && self.tree.relocations.last() == Some(&offset) {
                continue;
            }
            if self.tree.relocations.len() >= sort_at {
                let own = self.sort_offsets(start)?;
                // The threshold doubles, so the total time for sorting stays proportional to the list's length times
                // its logarithm.
                sort_at = start + (2 * own).max(SORT);
            }
            self.tree.relocations.push(offset);
        }
        Ok(())
    }

    /// Sorts the offsets from `start` on, removes repeats, and returns their number. Writers other than rcc do not sort
    /// them.
    fn sort_offsets(&mut self, start: usize) -> Result<usize, Stop> {
        let all = &mut self.tree.relocations;
        let own = all.get_mut(start..).unwrap_or_default();
        if !own.is_sorted_by(|a, b| a < b) {
            own.sort_unstable();
            let mut sorted = all.split_off(start);
            sorted.dedup();
            all.append(&mut sorted);
        }
        if all.len() > self.limits.relocations {
            return Err(Limits::too_large("relocations", self.limits.relocations as u64).into());
        }
        Ok(all.len() - start)
    }

    /// Sorts the offsets from `start` on and checks them against the file's size.
    fn checked_offsets(&mut self, start: usize, size: u64) -> Result<(u64, u32), Stop> {
        let own = self.sort_offsets(start)?;
        if own > 0
            && let Some(last) = self.tree.relocations.last()
            && last.checked_add(NAME_LEN as u64).is_none_or(|end| end > size)
        {
            return Err(Stop::Entry(format!("a relocation at {last} in a file of {size} bytes")));
        }
        Ok((start as u64, own as u32))
    }

    /// The target of a link. Empty means that the entry is not a link, as in Go.
    fn link_text(&mut self) -> Result<Option<String>, Stop> {
        let text = self.json.string()?;
        if text.len() > MAX_LINK || text.contains('\0') {
            return Err(Stop::Entry("an invalid link target".into()));
        }
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    fn same_name(&mut self, name: Text) -> Result<(), Stop> {
        let said = self.json.bytes()?;
        // The root has an empty name, which is not checked.
        if !self.path.is_empty() && self.tree.text(name) != said {
            return Err(Stop::Entry(format!("its name field is {:?}", String::from_utf8_lossy(said))));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<Text, Stop> {
        add_text(&mut self.tree.strings, text)
    }

    /// Collects what is listed for a link. What is no digest names no blob.
    fn linked(&mut self, digest: &Result<Digest, String>, size: u64) -> Result<(), Stop> {
        if let Ok(digest) = digest {
            self.tree.linked.insert(*digest, size);
        }
        if self.tree.linked.len() > self.limits.entries {
            return Err(Limits::too_large("links", self.limits.entries as u64).into());
        }
        Ok(())
    }

    fn digest(&mut self, digest: Digest) -> Result<u32, Stop> {
        // The digests of removed entries remain, so they count too.
        if self.tree.digests.len() > self.limits.entries {
            return Err(Limits::too_large("digests", self.limits.entries as u64).into());
        }
        let next = self.tree.digests.len() as u32;
        Ok(*self.known_digests.entry(digest).or_insert_with(|| {
            self.tree.digests.push(digest);
            next
        }))
    }

    /// Adds an entry and returns its position. Adds nothing while `hidden` is set.
    fn push(&mut self, name: Text, parent: u32, kind: EntryKind) -> Result<u32, Stop> {
        if self.hidden {
            return Ok(parent);
        }
        let own = self.tree.entries.len();
        if own >= self.limits.entries {
            return Err(Limits::too_large("entries", self.limits.entries as u64).into());
        }
        self.tree.entries.push(Entry { name, parent, kind });
        Ok(own as u32)
    }

    fn lengths(&self) -> Lengths {
        Lengths {
            entries: self.tree.entries.len(),
            strings: self.tree.strings.len(),
            relocations: self.tree.relocations.len(),
        }
    }

    fn take_back(&mut self, before: &Lengths) {
        self.tree.entries.truncate(before.entries);
        self.tree.strings.truncate(before.strings);
        self.tree.relocations.truncate(before.relocations);
    }

    fn current_path(&self) -> String {
        let names: Vec<_> =
            self.path.iter().map(|name| String::from_utf8_lossy(self.tree.text(*name))).collect();
        names.join("/")
    }
}

/// Appends a text. Takes the list instead of the builder, because the text is borrowed from the builder's lexer.
fn add_text(strings: &mut Vec<u8>, text: &str) -> Result<Text, Stop> {
    let whole = strings.len() + text.len();
    let (Ok(offset), Ok(len), Ok(_)) =
        (u32::try_from(strings.len()), u32::try_from(text.len()), u32::try_from(whole))
    else {
        return Err(CatalogError::TooLarge("the names take more than 4 GiB".into()).into());
    };
    strings.extend_from_slice(text.as_bytes());
    Ok((offset, len))
}
