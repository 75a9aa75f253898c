//! The first lines of a catalog, and a catalog with other first lines.
//!
//! A catalog is one JSON object of a few strings and a tree that can be tens of megabytes. What is needed of it here
//! are the strings; so the text goes by as a stream, and the tree is never parsed and never held. It accepts the
//! members in any order, and whatever spacing; it is no validator, `library::catalog` is. Invariant: of a rewritten
//! document every byte is the original's, except for the replaced values.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use crate::space::SpaceError;
use crate::sys::guarded::{self, Access};

/// A member's name, or a value we read, is never longer.
const MAX_STRING: usize = 64 * 1024;

/// A `.meta.info` is seven short strings.
const MAX_INFO: u64 = 1 << 20;

/// What a catalog or a space's `.meta` says about itself, in rcc's order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// The version of rcc; empty in old ones, and left out then.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rcc: String,
    /// The directory's name: of the stage in a catalog, of the space in a `.meta`.
    pub identity: String,
    /// The directory.
    pub path: String,
    /// `rcc.user`; empty in a catalog.
    pub controller: String,
    /// The space's name; empty in a catalog.
    pub space: String,
    /// `linux_amd64`.
    pub platform: String,
    /// The blueprint's hash.
    pub blueprint: String,
}

impl Header {
    fn member(&mut self, name: &[u8]) -> Option<&mut String> {
        Some(match name {
            b"rcc" => &mut self.rcc,
            b"identity" => &mut self.identity,
            b"path" => &mut self.path,
            b"controller" => &mut self.controller,
            b"space" => &mut self.space,
            b"platform" => &mut self.platform,
            b"blueprint" => &mut self.blueprint,
            _ => return None,
        })
    }

    /// The directory in which spaces of it must lie.
    #[must_use]
    pub fn base(&self) -> Option<&Path> {
        Path::new(&self.path).parent()
    }

    fn is_complete(&self) -> bool {
        [&self.identity, &self.path, &self.platform, &self.blueprint].iter().all(|value| !value.is_empty())
    }
}

/// Reads the header of a catalog file, as a rule from its first block.
///
/// # Errors
/// When it cannot be read, or is not such a document.
pub fn read_header(path: &Path) -> Result<Header, SpaceError> {
    let file = guarded::open_file(path, Access::Read)?;
    let text = BufReader::new(MultiGzDecoder::new(BufReader::new(file)));
    let header = Scanner { input: text }.header().map_err(|error| bad(path, &error))?;
    if header.is_complete() {
        return Ok(header);
    }
    Err(bad(path, &invalid("identity, path, platform or blueprint is missing")))
}

/// Reads a document's header from JSON as it is, such as a `.meta.info`.
///
/// # Errors
/// When it cannot be read, or is not such a document.
pub fn read_info(path: &Path) -> Result<Header, SpaceError> {
    let bytes = guarded::read(path, MAX_INFO)?;
    serde_json::from_slice(&bytes).map_err(|error| bad(path, &error.into()))
}

fn bad(path: &Path, error: &io::Error) -> SpaceError {
    SpaceError::BadCatalog { path: path.to_owned(), why: error.to_string() }
}

/// The values that make a space's `.meta` of a catalog.
#[derive(Clone, Copy, Debug)]
pub struct Replaced<'a> {
    /// The space's directory name.
    pub identity: &'a str,
    /// Its directory.
    pub path: &'a str,
    /// As rcc records it: `rcc.user`.
    pub controller: &'a str,
    /// The space's name.
    pub space: &'a str,
}

impl<'a> Replaced<'a> {
    fn member(&self, name: &[u8]) -> Option<&'a str> {
        Some(match name {
            b"identity" => self.identity,
            b"path" => self.path,
            b"controller" => self.controller,
            b"space" => self.space,
            _ => return None,
        })
    }
}

/// Copies the catalog text of `input` with other values in its header. Ends where the document ends: rcc accepts
/// whatever follows.
///
/// # Errors
/// When the text ends early or is no such document, and what writing may answer.
pub fn rewrite(input: impl BufRead, replaced: &Replaced<'_>, out: &mut dyn Write) -> io::Result<()> {
    Scanner { input }.rewrite(replaced, out)
}

/// `text` as a JSON string in Go's way, which escapes what could be taken for HTML.
#[must_use]
pub fn go_string(text: &str) -> String {
    go_escapes(&serde_json::Value::from(text).to_string())
}

/// The plain JSON of a header that rcc keeps beside a `.meta`.
#[must_use]
pub fn info_text(header: &Header) -> String {
    // Serializing plain strings cannot fail; an empty text would be noticed by the next reader at once.
    go_escapes(&serde_json::to_string_pretty(header).unwrap_or_default())
}

/// A catalog with this header and an empty tree.
#[must_use]
pub fn stub_text(header: &Header) -> String {
    let info = info_text(header);
    let members = info.trim_end().trim_end_matches('}').trim_end();
    let tree =
        "{\n    \"name\": \"\",\n    \"mode\": 2147484141,\n    \"subdirs\": {},\n    \"files\": {}\n  }";
    format!("{members},\n  \"lifted\": true,\n  \"tree\": {tree}\n}}")
}

fn go_escapes(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

struct Scanner<R> {
    input: R,
}

/// Drops what is written to it.
struct Nowhere;

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<R: BufRead> Scanner<R> {
    fn header(mut self) -> io::Result<Header> {
        let mut header = Header::default();
        self.expect(b'{', &mut Nowhere)?;
        loop {
            let Some(name) = self.member_name(&mut Nowhere)? else { return Ok(header) };
            // The tree comes last in what rcc writes: what is left is of no interest.
            if name == b"tree" && header.is_complete() {
                return Ok(header);
            }
            match header.member(&name) {
                Some(value) => *value = self.string_value()?,
                None => self.value(&mut Nowhere)?,
            }
            if !self.goes_on(&mut Nowhere)? {
                return Ok(header);
            }
        }
    }

    fn rewrite(mut self, replaced: &Replaced<'_>, out: &mut dyn Write) -> io::Result<()> {
        let mut missing = vec![&b"identity"[..], b"path", b"controller", b"space"];
        self.expect(b'{', out)?;
        loop {
            let Some(name) = self.member_name(out)? else { return Err(invalid("the document is empty")) };
            match replaced.member(&name) {
                Some(value) => {
                    missing.retain(|known| *known != name);
                    self.space(out)?;
                    self.value(&mut Nowhere)?;
                    out.write_all(go_string(value).as_bytes())?;
                }
                None => self.value(out)?,
            }
            self.space(&mut Nowhere)?;
            match self.byte()? {
                b',' => out.write_all(b",")?,
                b'}' => break,
                _ => return Err(invalid("a member is followed by neither , nor }")),
            }
        }
        for name in missing {
            let value = replaced.member(name).unwrap_or_default();
            write!(out, ",\n  \"{}\": {}", String::from_utf8_lossy(name), go_string(value))?;
        }
        out.write_all(b"\n}")
    }

    fn peek(&mut self) -> io::Result<u8> {
        let buffer = self.input.fill_buf()?;
        buffer.first().copied().ok_or_else(|| invalid("the document ends early"))
    }

    fn byte(&mut self) -> io::Result<u8> {
        let byte = self.peek()?;
        self.input.consume(1);
        Ok(byte)
    }

    fn space(&mut self, out: &mut dyn Write) -> io::Result<()> {
        while matches!(self.peek()?, b' ' | b'\t' | b'\n' | b'\r') {
            out.write_all(&[self.byte()?])?;
        }
        Ok(())
    }

    fn expect(&mut self, wanted: u8, out: &mut dyn Write) -> io::Result<()> {
        self.space(out)?;
        if self.byte()? != wanted {
            return Err(invalid("not a JSON object"));
        }
        out.write_all(&[wanted])
    }

    /// A member's name and its colon; None at the end of an empty object.
    fn member_name(&mut self, out: &mut dyn Write) -> io::Result<Option<Vec<u8>>> {
        self.space(out)?;
        if self.peek()? == b'}' {
            self.input.consume(1);
            return Ok(None);
        }
        let mut raw = Vec::new();
        self.string(&mut raw)?;
        out.write_all(&raw)?;
        self.expect(b':', out)?;
        let name: String = serde_json::from_slice(&raw)?;
        Ok(Some(name.into_bytes()))
    }

    /// A string, with its quotes, of a length that fits in memory.
    fn string(&mut self, raw: &mut Vec<u8>) -> io::Result<()> {
        if self.peek()? != b'"' {
            return Err(invalid("a string is missing"));
        }
        raw.push(self.byte()?);
        loop {
            match self.byte()? {
                b'"' => {
                    raw.push(b'"');
                    return Ok(());
                }
                b'\\' => raw.extend_from_slice(&[b'\\', self.byte()?]),
                byte => raw.push(byte),
            }
            if raw.len() > MAX_STRING {
                return Err(invalid("a string is too long"));
            }
        }
    }

    fn string_value(&mut self) -> io::Result<String> {
        self.space(&mut Nowhere)?;
        let mut raw = Vec::new();
        self.string(&mut raw)?;
        Ok(serde_json::from_slice(&raw)?)
    }

    fn goes_on(&mut self, out: &mut dyn Write) -> io::Result<bool> {
        self.space(out)?;
        match self.byte()? {
            b',' => Ok(true),
            b'}' => Ok(false),
            _ => Err(invalid("a member is followed by neither , nor }")),
        }
    }

    /// Copies a value of any kind, a block at a time: its end is where its brackets are balanced.
    fn value(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.space(out)?;
        let (mut depth, mut in_string, mut escaped) = (0u64, false, false);
        let mut started = false;
        loop {
            let block = self.input.fill_buf()?;
            if block.is_empty() {
                return Err(invalid("the document ends early"));
            }
            let mut end = None;
            for (at, &byte) in block.iter().enumerate() {
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                    if !in_string && depth == 0 {
                        end = Some(at + 1);
                        break;
                    }
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 1 => depth -= 1,
                    b'}' | b']' if depth == 1 => {
                        end = Some(at + 1);
                        break;
                    }
                    // A number or a word ends before what follows it.
                    b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => {
                        end = Some(at);
                        break;
                    }
                    _ => {}
                }
            }
            let used = end.unwrap_or(block.len());
            out.write_all(block.get(..used).unwrap_or_default())?;
            started |= used > 0;
            self.input.consume(used);
            if end.is_some() {
                return if started { Ok(()) } else { Err(invalid("a value is missing")) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLACED: Replaced<'_> =
        Replaced { identity: "I", path: "/b/I", controller: "rcc.user", space: "a<b" };

    fn rewritten(text: &str, block: usize) -> io::Result<String> {
        let mut out = Vec::new();
        rewrite(BufReader::with_capacity(block, text.as_bytes()), &REPLACED, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
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
        let text = r#"{"tree":{"a":["]"]},"n":-1.5e3,"identity":"h","path":"/b/h"}"#;
        let out = rewritten(text, 3).unwrap();
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["identity"], "I");
        assert_eq!(value["controller"], "rcc.user");
        assert_eq!(value["space"], "a<b");
        assert_eq!(value["tree"]["a"][0], "]");
        assert_eq!(value["n"], -1500.0);
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
        let first = r#"{"identity":"h","path":"/b/h","platform":"linux_amd64","blueprint":"x","tree":"#;
        let header = Scanner { input: first.as_bytes() }.header().unwrap();
        assert_eq!(header.base(), Some(Path::new("/b")));
        let last =
            r#"{"tree":{"identity":"no"},"blueprint":"x","identity":"h","path":"/b/h","platform":"p"}"#;
        assert_eq!(Scanner { input: last.as_bytes() }.header().unwrap().identity, "h");
    }

    #[test]
    fn garbage_never_panics() {
        for text in ["", "{", "}", "[]", "{\"a\"", "{\"a\":", "{\"a\":}", "{\"a\":1", "{\"a\":\"\\", "\u{0}"]
        {
            let header = Scanner { input: text.as_bytes() }.header();
            assert!(!header.is_ok_and(|header| header.is_complete()), "{text:?}");
            assert!(rewritten(text, 1).is_err(), "{text:?}");
        }
    }
}
