//! Reads the header of a catalog, and copies a catalog with another header.
//!
//! A catalog is one JSON object of a few strings, the header, and a tree of up to a gigabyte of text. The header is
//! needed without the tree: to know in which directory a catalog's spaces lie, and to make a space's `.meta`, which is
//! the catalog with other strings. So the text is read once, as a stream, and what is kept does not grow with the tree. The
//! members may come in any order.
//!
//! Invariant: every byte of a copied document is the original's, except for the replaced values and the members that
//! were missing.

use std::io::{self, BufReader, Read, Write};

use super::gunzip::Unpacker;
use super::json::{Lexer, Pieces, Stop};
use super::limits::{Limits, MAX_FILE};
use super::{CatalogError, Header, write};

/// How much of the text is unpacked at once. rcc writes the header first, so one piece holds all of it.
const PIECE: usize = 8 * 1024;

/// The members that a header may lack.
const OPTIONAL: [&str; 3] = ["rcc", "controller", "space"];

impl Header {
    fn complete(self) -> Result<Self, CatalogError> {
        let parts = [&self.identity, &self.path, &self.platform, &self.blueprint];
        if parts.iter().any(|value| value.is_empty()) {
            return Err(CatalogError::BadHeader("identity, path, platform or blueprint is missing".into()));
        }
        Ok(self)
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
    header(&mut unpacker(packed, stored))?.complete()
}

fn unpacker<R: Read>(packed: R, stored: u64) -> Unpacker<BufReader<R>> {
    Unpacker::new(BufReader::with_capacity(PIECE, packed), PIECE, Limits::of(stored))
}

/// Copies the text of a catalog or a `.meta` with the identity, path, controller and space of `header`. Members that are
/// missing are added. The copy ends where the document ends: rcc ignores any bytes after it, and so does the parser.
/// Returns the header of the copy.
///
/// # Errors
/// When `packed` is not such a document or lacks a part of the header, or `out` cannot be written.
pub fn rewrite(packed: impl Read, header: Header, out: &mut dyn Write) -> io::Result<Header> {
    copy(&mut unpacker(packed, MAX_FILE), header, out)?.complete().map_err(io::Error::other)
}

fn copy(pieces: &mut dyn Pieces, mut header: Header, out: &mut dyn Write) -> io::Result<Header> {
    let mut json = Lexer::new(pieces);
    json.copy = Some(out);
    match read_members(&mut json, &mut header, true) {
        Ok(()) => Ok(header),
        Err(Stop::Write(error)) => Err(error),
        Err(stop) => Err(io::Error::other(stop.into_error(json.offset()))),
    }
}

fn header(pieces: &mut dyn Pieces) -> Result<Header, CatalogError> {
    let mut json = Lexer::new(pieces);
    let mut header = Header::default();
    read_members(&mut json, &mut header, false).map_err(|stop| stop.into_error(json.offset()))?;
    Ok(header)
}

/// Reads the members into `header`. With `rename`, the names of a space are not read: the copy gets those of `header`.
fn read_members(json: &mut Lexer<'_>, header: &mut Header, rename: bool) -> Result<(), Stop> {
    // The name, where its value goes until it was found, and whether `header` has the value for the copy.
    let mut members = [
        ("rcc", Some(&mut header.rcc), false),
        ("identity", Some(&mut header.identity), rename),
        ("path", Some(&mut header.path), rename),
        ("controller", Some(&mut header.controller), rename),
        ("space", Some(&mut header.space), rename),
        ("platform", Some(&mut header.platform), false),
        ("blueprint", Some(&mut header.blueprint), false),
    ];
    let json_of = |value: &str| {
        let mut json = Vec::new();
        write::write_json(&value, &mut json).map(|()| json).map_err(Stop::Write)
    };
    let mut object = json.object()?;
    while json.next_member(&mut object.first)? {
        let name = json.bytes()?;
        let is_found = |(name, value, _): &(&str, _, _)| Option::is_none(value) || OPTIONAL.contains(name);
        // rcc writes the tree last, so nothing of interest follows.
        if name == b"tree" && !rename && members.iter().all(is_found) {
            return Ok(());
        }
        let member = members.iter_mut().find(|(known, ..)| known.as_bytes() == name);
        json.colon()?;
        let Some((_, value, is_new)) = member else {
            json.skip()?;
            continue;
        };
        let value = value.take().ok_or(Stop::Json("a duplicate field"))?;
        if *is_new {
            json.replace(&json_of(value)?)?;
        } else if !json.null()? {
            json.string()?.clone_into(value);
        }
    }
    let mut end = Vec::new();
    for (name, value, is_new) in members {
        if let Some(value) = value.filter(|_| is_new) {
            let comma = if std::mem::take(&mut object.first) { "" } else { "," };
            end.extend_from_slice(format!("{comma}\n  \"{name}\": ").as_bytes());
            end.append(&mut json_of(value)?);
        }
    }
    end.push(b'}');
    json.write_copy(1, &end)
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
        let mut out = Vec::new();
        copy(&mut Chopped(text.as_bytes(), block), new_header(), &mut out)?;
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

    /// A document with a name of `n` bytes in front, so that everything after it lies elsewhere in the pieces.
    fn shifted(n: usize) -> String {
        let values = r#""identity":"h","path":"/b/h","platform":"p","blueprint":"x""#;
        format!(r#"{{"{}":0,{values},"tree":{{"deep":[1,{{"a":"]"}}]}},"space":"old"}} rest"#, "n".repeat(n))
    }

    #[test]
    fn values_at_the_border_of_a_piece_are_replaced() {
        for n in PIECE - 120..PIECE + 10 {
            let text = shifted(n);
            let mut out = Vec::new();
            let header = rewrite(&packed(text.as_bytes())[..], new_header(), &mut out).unwrap();
            let want = text
                .replace(r#""h""#, r#""I""#)
                .replace("/b/h", "/b/I")
                .replace(r#""old"} rest"#, "\"a\\u003cb\",\n  \"controller\": \"rcc.user\"}");
            assert_eq!(String::from_utf8(out).unwrap(), want, "{n}");
            assert_eq!((header.identity.as_str(), header.blueprint.as_str()), ("I", "x"));
        }
    }

    #[test]
    fn the_copy_is_written_while_the_text_is_read() {
        /// A source that knows how much of the text was not yet copied.
        struct Source<'a> {
            pieces: usize,
            ahead: &'a std::cell::Cell<usize>,
            most: usize,
        }
        impl Pieces for Source<'_> {
            fn next(&mut self, mut used: Vec<u8>) -> Result<Option<Vec<u8>>, CatalogError> {
                used.clear();
                used.extend_from_slice(match self.pieces {
                    0 => b"{\"tree\":[0",
                    4096 => b"]}",
                    _ => b",\"01234567890123456789012345678901234567890123456789\"",
                });
                self.pieces += 1;
                self.ahead.set(self.ahead.get() + used.len());
                self.most = self.most.max(self.ahead.get());
                Ok(Some(used))
            }
        }
        struct Copied<'a>(&'a std::cell::Cell<usize>);
        impl Write for Copied<'_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.set(self.0.get().saturating_sub(bytes.len()));
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let ahead = std::cell::Cell::new(0);
        let mut source = Source { pieces: 0, ahead: &ahead, most: 0 };
        copy(&mut source, new_header(), &mut Copied(&ahead)).unwrap();
        assert!(source.pieces == 4097 && source.most < 100, "{} {}", source.pieces, source.most);
    }

    #[test]
    fn a_copy_that_lacks_a_part_of_the_header_is_refused() {
        let error = rewrite(&packed(b"{\"platform\":\"p\"}")[..], new_header(), &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("is missing"), "{error}");
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
            assert!(read(text).and_then(Header::complete).is_err(), "{text:?}");
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
        let error = rewrite(&packed(b"{\"tree\":{}}")[..], new_header(), &mut Full).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn endless_white_space_before_the_header_is_refused() {
        let packed = packed(&vec![b' '; 64 << 20]);
        let error = read_header(&packed[..], packed.len() as u64).unwrap_err();
        assert!(matches!(error, CatalogError::TooLarge(_)), "{error}");
    }
}
