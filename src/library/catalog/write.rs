//! Writes catalogs as rcc does, to the byte: the members in rcc's order, in the JSON that Go's `json.MarshalIndent`
//! writes with an indent of two spaces, compressed as Go's `gzip` compresses.
//!
//! Two writers use it: the recorder, for whole catalogs, and a space, for the `.meta` beside its directory.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use serde::{Serialize, Serializer};
use serde_json::ser::{Formatter, PrettyFormatter};

use super::Header;
use crate::library::digest::Digest;

/// rcc's compression level for catalogs and blobs.
pub(crate) const LEVEL: Compression = Compression::new(1);

/// A whole catalog.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'a> {
    #[serde(flatten)]
    pub(crate) header: &'a Header,
    pub(crate) lifted: bool,
    pub(crate) tree: DirEntry<'a>,
}

/// A directory, or a link to one.
#[derive(Debug, Default, Serialize)]
pub(crate) struct DirEntry<'a> {
    pub(crate) name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) symlink: Option<&'a str>,
    /// A Go `FileMode`, see [`go_mode`].
    pub(crate) mode: u32,
    #[serde(serialize_with = "dirs_by_name")]
    pub(crate) subdirs: Vec<DirEntry<'a>>,
    #[serde(serialize_with = "files_by_name")]
    pub(crate) files: Vec<FileEntry<'a>>,
    /// Whether it lies below a link to a directory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shadow: bool,
}

/// A file, or a link to anything but a directory.
#[derive(Debug, Serialize)]
pub(crate) struct FileEntry<'a> {
    pub(crate) name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) symlink: Option<&'a str>,
    /// In bytes.
    pub(crate) size: u64,
    /// A Go `FileMode`, see [`go_mode`].
    pub(crate) mode: u32,
    #[serde(serialize_with = "as_text")]
    pub(crate) digest: Digest,
    /// The offsets of the stage's name.
    pub(crate) rewrite: &'a [u64],
}

fn dirs_by_name<S: Serializer>(dirs: &[DirEntry<'_>], out: S) -> Result<S::Ok, S::Error> {
    out.collect_map(dirs.iter().map(|dir| (dir.name, dir)))
}

fn files_by_name<S: Serializer>(files: &[FileEntry<'_>], out: S) -> Result<S::Ok, S::Error> {
    out.collect_map(files.iter().map(|file| (file.name, file)))
}

fn as_text<S: Serializer>(digest: &Digest, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(digest)
}

/// Writes the text of a catalog that lists no entries.
///
/// # Errors
/// When `out` cannot be written.
pub(crate) fn write_empty(header: &Header, out: impl Write) -> io::Result<()> {
    let tree = DirEntry { mode: go_mode(0o040_755), ..DirEntry::default() };
    write_json(&Document { header, lifted: true, tree }, out)
}

/// Writes a value as Go would.
///
/// # Errors
/// When `out` cannot be written.
pub(crate) fn write_json(value: &impl Serialize, out: impl Write) -> io::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(out, GoFormatter(PrettyFormatter::new())))?;
    Ok(())
}

/// Writes a header to a file of its own, as beside each catalog and each space.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_info(header: &Header, file: &mut File) -> io::Result<()> {
    let mut out = BufWriter::new(file);
    write_json(header, &mut out)?;
    // A write error would be lost when the writer is dropped.
    out.flush()
}

/// A stream that compresses as Go does: no name, no time, and an unknown operating system in the gzip header.
pub(crate) fn gzip<W: Write>(out: W) -> GzEncoder<W> {
    GzBuilder::new().operating_system(255).write(out, LEVEL)
}

/// The Go `FileMode` of an `st_mode`.
pub(crate) fn go_mode(st_mode: u32) -> u32 {
    let mut mode = st_mode & 0o777;
    for (st_bit, bit) in super::GO_BITS {
        if st_mode & u32::from(st_bit) != 0 {
            mode |= 1 << bit;
        }
    }
    if st_mode & 0o170_000 == 0o040_000 {
        mode |= 1 << 31;
    }
    mode
}

/// The indented form of serde_json. Go's differs only in the characters that it escapes in strings.
struct GoFormatter(PrettyFormatter<'static>);

/// Forwards these calls to the inner formatter.
macro_rules! as_pretty {
    ($($call:ident($($first:ident)?);)*) => {
        $(fn $call<W: ?Sized + Write>(&mut self, out: &mut W $(, $first: bool)?) -> io::Result<()> {
            self.0.$call(out $(, $first)?)
        })*
    };
}

impl Formatter for GoFormatter {
    as_pretty! {
        begin_array();
        end_array();
        begin_array_value(first);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first);
        begin_object_value();
        end_object_value();
    }

    /// Also escapes the characters that are special in HTML and JavaScript, as Go does.
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        for piece in text.split_inclusive(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            match piece.char_indices().next_back() {
                Some((plain, c @ ('<' | '>' | '&' | '\u{2028}' | '\u{2029}'))) => {
                    out.write_all(piece.split_at(plain).0.as_bytes())?;
                    write!(out, "\\u{:04x}", u32::from(c))?;
                }
                _ => out.write_all(piece.as_bytes())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::perm_of_go_mode;
    use super::*;

    fn json(value: &impl Serialize) -> String {
        let mut out = Vec::new();
        write_json(value, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escapes_as_go_does() {
        assert_eq!(json(&"amp&lt<gt>.txt"), r#""amp\u0026lt\u003cgt\u003e.txt""#);
        assert_eq!(json(&"q\"b\\s\n\t\r"), r#""q\"b\\s\n\t\r""#);
        assert_eq!(json(&"\u{1}\u{1f}\u{7f}\u{8}\u{c}"), "\"\\u0001\\u001f\u{7f}\\b\\f\"");
        assert_eq!(json(&"\u{2028}\u{2029}é日🐍<"), "\"\\u2028\\u2029é日🐍\\u003c\"");
    }

    #[test]
    fn empty_objects_stay_on_one_line() {
        let value = serde_json::json!({ "a": {}, "b": {}, "c": [1, 2] });
        assert_eq!(json(&value), "{\n  \"a\": {},\n  \"b\": {},\n  \"c\": [\n    1,\n    2\n  ]\n}");
    }

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
