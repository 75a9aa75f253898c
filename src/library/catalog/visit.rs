//! The serde visitors that walk the text and fill the builder. No tree of JSON values is ever made.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Builder, Entry, EntryKind, MAX_DEPTH, MAX_SIZE, Text, bad_name, perm_of_go_mode};
use crate::materialize::relocate::NAME_LEN;

/// A string that is borrowed from the text where it can be.
#[derive(Deserialize)]
struct Str<'a>(#[serde(borrow)] Cow<'a, str>);

/// The document.
pub(super) struct Catalog<'b>(pub(super) &'b mut Builder);

impl<'de> DeserializeSeed<'de> for Catalog<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Catalog<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a catalog")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Str(key)) = map.next_key()? {
            let info = &mut self.0.tree.info;
            match &*key {
                "rcc" => info.rcc = map.next_value()?,
                "identity" => info.identity = map.next_value()?,
                "path" => info.path = map.next_value()?,
                "platform" => info.platform = map.next_value()?,
                "blueprint" => info.blueprint = map.next_value()?,
                "tree" => {
                    if !self.0.tree.entries.is_empty() {
                        return Err(A::Error::custom("two trees"));
                    }
                    map.next_value_seed(Dir { builder: &mut *self.0, name: None, parent: 0 })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// One directory; `name` is its key, None for the root.
struct Dir<'b, 'n> {
    builder: &'b mut Builder,
    name: Option<&'n str>,
    parent: u32,
}

impl<'de> DeserializeSeed<'de> for Dir<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Dir<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a directory")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { builder, name, parent } = self;
        let own = push(builder, name, parent, EntryKind::Dir)?;
        if let Some(name) = name {
            if builder.path.len() >= MAX_DEPTH {
                return Err(builder.refuse(name, format_args!("nested deeper than {MAX_DEPTH} directories")));
            }
            builder.path.push(name.to_owned());
        }
        let mut link: Option<String> = None;
        while let Some(Str(key)) = map.next_key()? {
            match &*key {
                "name" => {
                    let Str(said) = map.next_value()?;
                    check_name(builder, name.unwrap_or_default(), &said)?;
                }
                "symlink" => link = map.next_value()?,
                "subdirs" => {
                    map.next_value_seed(Children { builder: &mut *builder, parent: own, dirs: true })?
                }
                "files" => {
                    map.next_value_seed(Children { builder: &mut *builder, parent: own, dirs: false })?
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        builder.tree.info.rcc_directories += 1;
        if name.is_some() {
            builder.path.pop();
        }
        if let Some(text) = link.filter(|text| !text.is_empty()) {
            let shown = name.ok_or_else(|| A::Error::custom("the root is a link"))?;
            // What is listed below it is the target's, once more.
            builder.tree.entries.truncate(own as usize + 1);
            let target = link_text(builder, shown, &text)?;
            if let Some(entry) = builder.tree.entries.get_mut(own as usize) {
                entry.kind = EntryKind::Symlink { target };
            }
        }
        Ok(())
    }
}

/// The map of a directory's subdirectories, or of its files.
struct Children<'b> {
    builder: &'b mut Builder,
    parent: u32,
    dirs: bool,
}

impl<'de> DeserializeSeed<'de> for Children<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Children<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of entries")
    }

    /// `null`, as another writer may say for an empty one.
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { builder, parent, dirs } = self;
        while let Some(Str(key)) = map.next_key()? {
            if let Some(why) = bad_name(&key) {
                return Err(builder.refuse(&key, why));
            }
            if dirs {
                map.next_value_seed(Dir { builder: &mut *builder, name: Some(&key), parent })?;
            } else {
                let file: FileValue<'_> = map.next_value()?;
                add_file(builder, &key, parent, file)?;
            }
        }
        Ok(())
    }
}

/// A file, as it stands in the text.
#[derive(Deserialize)]
struct FileValue<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    symlink: Option<Cow<'a, str>>,
    #[serde(default)]
    size: i64,
    #[serde(default)]
    mode: u32,
    #[serde(borrow, default)]
    digest: Cow<'a, str>,
    #[serde(default)]
    rewrite: Option<Offsets>,
}

/// Offsets; most files have none, and none takes no memory.
struct Offsets(Vec<u64>);

impl<'de> Deserialize<'de> for Offsets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Offsets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of offsets")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Offsets, A::Error> {
                let mut offsets = Vec::new();
                while let Some(offset) = seq.next_element()? {
                    offsets.push(offset);
                }
                Ok(Offsets(offsets))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

fn add_file<E: serde::de::Error>(
    builder: &mut Builder,
    name: &str,
    parent: u32,
    file: FileValue<'_>,
) -> Result<(), E> {
    if let Some(said) = &file.name {
        check_name(builder, name, said)?;
    }
    let size = match u64::try_from(file.size) {
        Ok(size) if size <= MAX_SIZE => size,
        _ => return Err(builder.refuse(name, format_args!("a size of {}", file.size))),
    };
    let mut offsets = file.rewrite.map(|offsets| offsets.0).unwrap_or_default();
    let info = &mut builder.tree.info;
    info.rcc_files += 1;
    info.rcc_bytes = info.rcc_bytes.saturating_add(size);
    info.rcc_relocations += u64::from(!offsets.is_empty());
    if let Some(text) = file.symlink.filter(|text| !text.is_empty()) {
        // Its digest and size are the target's: of no concern, and sometimes of no blob.
        let target = link_text(builder, name, &text)?;
        push(builder, Some(name), parent, EntryKind::Symlink { target })?;
        return Ok(());
    }
    let Ok(digest) = file.digest.parse() else {
        return Err(builder.refuse(name, format_args!("a digest {:?} that is none", file.digest)));
    };
    offsets.sort_unstable();
    offsets.dedup();
    if let Some(last) = offsets.last()
        && last.checked_add(NAME_LEN as u64).is_none_or(|end| end > size)
    {
        return Err(builder.refuse(name, format_args!("a relocation at {last} in a file of {size} bytes")));
    }
    let count =
        u32::try_from(offsets.len()).map_err(|_| builder.refuse::<E>(name, "too many relocations"))?;
    let relocations = (builder.tree.relocations.len() as u64, count);
    builder.tree.relocations.append(&mut offsets);
    let kind = EntryKind::File {
        size,
        perm: perm_of_go_mode(file.mode),
        digest: builder.digest(digest),
        relocations,
    };
    push(builder, Some(name), parent, kind)?;
    Ok(())
}

fn push<E: serde::de::Error>(
    builder: &mut Builder,
    name: Option<&str>,
    parent: u32,
    kind: EntryKind,
) -> Result<u32, E> {
    let shown = name.unwrap_or_default();
    let Ok(own) = u32::try_from(builder.tree.entries.len()) else {
        return Err(builder.refuse(shown, "too many entries"));
    };
    let text = builder.text(shown).ok_or_else(|| builder.refuse::<E>(shown, "too many bytes of names"))?;
    builder.tree.entries.push(Entry { name: text, parent, kind });
    Ok(own)
}

fn check_name<E: serde::de::Error>(builder: &mut Builder, key: &str, said: &str) -> Result<(), E> {
    if key == said { Ok(()) } else { Err(builder.refuse(key, format_args!("it calls itself {said:?}"))) }
}

fn link_text<E: serde::de::Error>(builder: &mut Builder, name: &str, text: &str) -> Result<Text, E> {
    if text.len() > 4095 || text.contains('\0') {
        return Err(builder.refuse(name, "a link text that no link can have"));
    }
    builder.text(text).ok_or_else(|| builder.refuse(name, "too many bytes of link texts"))
}
