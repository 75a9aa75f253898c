//! Reads the header of a catalog, and copies a catalog with another header.
//!
//! A catalog is one JSON object of a few strings, the header, and a tree of up to a gigabyte of text. The header is
//! needed without the tree: to know in which directory a catalog's spaces lie, and to make a space's `.meta`, which is
//! the catalog with other strings. So the text is read as a stream, and what is kept does not grow with the tree. The
//! members may come in any order.
//!
//! Invariant: every byte of a copied document is the original's, except for the replaced values and the members that
//! were missing.

use std::io::{self, BufReader, Read, Write};
use std::ops::Range;

use flate2::bufread::MultiGzDecoder;

use super::gunzip::Unpacker;
use super::json::{Lexer, Pieces, Stop};
use super::limits::{Limits, MAX_FILE};
use super::{CatalogError, Header, write};

/// How much of the text is unpacked at once. rcc writes the header first, so one piece holds all of it.
const PIECE: usize = 8 * 1024;

impl Header {
    fn is_complete(&self) -> bool {
        [&self.identity, &self.path, &self.platform, &self.blueprint].iter().all(|value| !value.is_empty())
    }
}

/// Reads the header of a catalog or a `.meta` of `stored` compressed bytes.
///
/// # Errors
/// When the file cannot be read, is not such a document, or lacks a part of the header.
pub fn read_header(packed: impl Read, stored: u64) -> Result<Header, CatalogError> {
    if stored > MAX_FILE {
        return Err(CatalogError::TooLarge(format!("the file is larger than {MAX_FILE} bytes")));
    }
    let packed = BufReader::with_capacity(PIECE, packed);
    let header = header(&mut Unpacker::new(packed, PIECE, Limits::of(stored)))?;
    if header.is_complete() {
        return Ok(header);
    }
    Err(CatalogError::BadHeader("identity, path, platform or blueprint is missing".into()))
}

fn header(pieces: &mut dyn Pieces) -> Result<Header, CatalogError> {
    let mut json = Lexer::new(pieces);
    let mut header = Header::default();
    read_members(&mut json, &mut header).map_err(|stop| stop.into_error(json.offset()))?;
    Ok(header)
}

fn read_members(json: &mut Lexer<'_>, header: &mut Header) -> Result<(), Stop> {
    const FIELDS: [&str; 8] =
        ["rcc", "identity", "path", "controller", "space", "platform", "blueprint", "tree"];
    let mut object = json.object()?;
    while let Some(field) = json.next_field(&mut object, &FIELDS)? {
        let value = match field {
            // rcc writes the tree last, so nothing of interest follows.
            "tree" if header.is_complete() => return Ok(()),
            "tree" => {
                json.skip()?;
                continue;
            }
            "rcc" => &mut header.rcc,
            "identity" => &mut header.identity,
            "path" => &mut header.path,
            "controller" => &mut header.controller,
            "space" => &mut header.space,
            "platform" => &mut header.platform,
            _ => &mut header.blueprint,
        };
        json.string()?.clone_into(value);
    }
    Ok(())
}

/// Copies the text of a catalog with the identity, path, controller and space of `header`. Members that are missing are
/// added. The copy ends where the document ends: rcc ignores any bytes after it, and so does the parser.
///
/// The text is unpacked twice: the first pass finds the values, the second one copies the text around them.
///
/// # Errors
/// When `packed` is not such a document, or `out` cannot be written.
pub fn rewrite(packed: &[u8], header: &Header, out: &mut dyn Write) -> io::Result<()> {
    let mut text = Unpacker::new(packed, PIECE, Limits::of(packed.len() as u64));
    splice(MultiGzDecoder::new(packed), edits(&mut text, header)?, out)
}

/// A range of the text, and its replacement.
type Edit = (Range<u64>, Vec<u8>);

/// The edits that put `header` into the text, in ascending order. The last one is at the end of the document.
fn edits(pieces: &mut dyn Pieces, header: &Header) -> io::Result<Vec<Edit>> {
    let mut values = Vec::new();
    for (name, value) in [
        ("identity", &header.identity),
        ("path", &header.path),
        ("controller", &header.controller),
        ("space", &header.space),
    ] {
        let mut json = Vec::new();
        write::write_json(value, &mut json)?;
        values.push((name, Some(json)));
    }
    let mut json = Lexer::new(pieces);
    find_edits(&mut json, values).map_err(|stop| io::Error::other(stop.into_error(json.offset())))
}

/// `values` are the new ones. Each is taken when its place is found.
fn find_edits(
    json: &mut Lexer<'_>,
    mut values: Vec<(&'static str, Option<Vec<u8>>)>,
) -> Result<Vec<Edit>, Stop> {
    let mut edits = Vec::new();
    let mut object = json.object()?;
    while json.next_member(&mut object.first)? {
        let name = json.bytes()?;
        let known = values.iter_mut().find(|(known, _)| known.as_bytes() == name);
        json.colon()?;
        json.peek()?;
        let start = json.offset();
        json.skip()?;
        if let Some((_, value)) = known {
            let value = value.take().ok_or(Stop::Json("a duplicate field"))?;
            edits.push((start..json.offset(), value));
        }
    }
    let mut end = Vec::new();
    for (name, value) in values {
        if let Some(value) = value {
            let comma = if std::mem::take(&mut object.first) { "" } else { "," };
            end.extend_from_slice(format!("{comma}\n  \"{name}\": ").as_bytes());
            end.extend_from_slice(&value);
        }
    }
    end.push(b'}');
    edits.push((json.offset() - 1..json.offset(), end));
    Ok(edits)
}

/// Copies a text with its edits, up to the end of the last one.
fn splice(mut text: impl Read, edits: Vec<Edit>, out: &mut dyn Write) -> io::Result<()> {
    let mut at = 0;
    for (range, value) in edits {
        io::copy(&mut text.by_ref().take(range.start - at), out)?;
        io::copy(&mut text.by_ref().take(range.end - range.start), &mut io::sink())?;
        out.write_all(&value)?;
        at = range.end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::Chopped;
    use super::*;

    fn read(text: &str) -> Result<Header, CatalogError> {
        header(&mut Chopped(text.as_bytes(), 3))
    }

    fn new_header() -> Header {
        Header {
            identity: "I".into(),
            path: "/b/I".into(),
            controller: "rcc.user".into(),
            space: "a<b".into(),
            ..Header::default()
        }
    }

    fn rewritten(text: &str, block: usize) -> io::Result<String> {
        let edits = edits(&mut Chopped(text.as_bytes(), block), &new_header())?;
        let mut out = Vec::new();
        splice(text.as_bytes(), edits, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn only_the_four_values_change_whatever_the_block_size() {
        let text = "{\n  \"rcc\": \"v1\",\n  \"identity\": \"h\",\n  \"path\": \"/b/h\",\n  \"controller\": \"\",\n  \
                    \"space\": \"\",\n  \"lifted\": true,\n  \"tree\": {\n    \"name\": \"\",\n    \"path\": \"}\\\"{\",\n    \"x\": [1,2]\n  }\n}trailing";
        let want = text
            .replace("\"h\"", "\"I\"")
            .replace("\"/b/h\"", "\"/b/I\"")
            .replace("\"controller\": \"\"", "\"controller\": \"rcc.user\"")
            .replace("\"space\": \"\"", "\"space\": \"a\\u003cb\"")
            .replace("trailing", "");
        for block in [1, 2, 7, 4096] {
            assert_eq!(rewritten(text, block).unwrap(), want, "{block}");
        }
    }

    #[test]
    fn members_in_any_order_and_missing_ones_are_added() {
        let text = r#"{"tree":{"a":["]"]},"n":-1.5e3,"identity":"h","path":null}"#;
        for text in [text, "{}", "{ }"] {
            let out = rewritten(text, 3).unwrap();
            let value: serde_json::Value = serde_json::from_str(&out).unwrap();
            assert_eq!((&value["identity"], &value["path"]), (&"I".into(), &"/b/I".into()), "{out}");
            assert_eq!((&value["controller"], &value["space"]), (&"rcc.user".into(), &"a<b".into()));
        }
        let value: serde_json::Value = serde_json::from_str(&rewritten(text, 3).unwrap()).unwrap();
        assert_eq!((&value["tree"]["a"][0], &value["n"]), (&"]".into(), &(-1500.0).into()));
    }

    #[test]
    fn a_duplicate_value_is_refused() {
        let error = rewritten(r#"{"space":"a","n":1,"space":"b"}"#, 3).unwrap_err().to_string();
        assert!(error.contains("duplicate"), "{error}");
    }

    #[test]
    fn cut_documents_are_errors() {
        let text = r#"{"identity":"h","path":"/b/h","tree":{"a":"b"}}"#;
        for end in 0..text.len() {
            assert!(rewritten(&text[..end], 5).is_err(), "{end}");
        }
    }

    #[test]
    fn header_is_read_before_and_after_the_tree() {
        let first =
            r#"{"identity":"h","path":"/b/h","platform":"linux_amd64","blueprint":"x","tree":{cut off"#;
        assert_eq!(read(first).unwrap().path, "/b/h");
        let last =
            r#"{"tree":{"identity":"no"},"blueprint":"x","identity":"h","path":"/b/h","platform":"p"}"#;
        assert_eq!(read(last).unwrap().identity, "h");
    }

    #[test]
    fn garbage_never_panics() {
        for text in ["", "{", "}", "[]", "{\"a\"", "{\"a\":", "{\"a\":}", "{\"a\":1", "{\"a\":\"\\", "\u{0}"]
        {
            assert!(!read(text).is_ok_and(|header| header.is_complete()), "{text:?}");
            assert!(rewritten(text, 1).is_err(), "{text:?}");
        }
    }

    #[test]
    fn full_disk_is_reported() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = rewrite(&packed(b"{\"tree\":{}}"), &new_header(), &mut Full).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn endless_white_space_before_the_header_is_refused() {
        let packed = packed(&vec![b' '; 64 << 20]);
        let error = read_header(&packed[..], packed.len() as u64).unwrap_err();
        assert!(matches!(error, CatalogError::TooLarge(_)), "{error}");
    }
}
