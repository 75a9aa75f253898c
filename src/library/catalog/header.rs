//! The first lines of a catalog, and a catalog with other first lines.
//!
//! A catalog is one JSON object of a few strings and a tree that can be tens of megabytes. Where only the strings are
//! needed, the text goes by as a stream and the tree is not kept. The members may come in any order. Invariant: of a
//! rewritten document every byte is the original's, except for the replaced values and the members that were missing.

use std::fs::File;
use std::io::{self, BufReader, Write};

use super::gunzip::Unpacker;
use super::json::{Lexer, Pieces, Stop};
use super::limits::{Limits, MAX_FILE};
use super::{CatalogError, Header};

/// A header lies in the first block, as a rule.
const PIECE: usize = 8 * 1024;

const COLON: &str = "a colon was expected";
const OBJECT: &str = "an object was expected";

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

    fn is_complete(&self) -> bool {
        [&self.identity, &self.path, &self.platform, &self.blueprint].iter().all(|value| !value.is_empty())
    }
}

/// Reads the header of a catalog file.
///
/// # Errors
/// When it cannot be read, or is not such a document.
pub fn read_header(file: &File) -> Result<Header, CatalogError> {
    let header = header(unpacker(file, PIECE)?)?;
    if header.is_complete() {
        return Ok(header);
    }
    Err(CatalogError::BadHeader("identity, path, platform or blueprint is missing".into()))
}

fn unpacker(file: &File, piece: usize) -> Result<Unpacker<BufReader<&File>>, CatalogError> {
    let stored = file.metadata().map_err(|error| CatalogError::NotGzip(error.to_string()))?.len();
    if stored > MAX_FILE {
        return Err(CatalogError::TooLarge(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(Unpacker::new(BufReader::with_capacity(piece, file), piece, Limits::of(stored)))
}

fn header(pieces: impl Pieces) -> Result<Header, CatalogError> {
    let mut json = Lexer::new(pieces);
    let mut header = Header::default();
    match read_members(&mut json, &mut header) {
        Ok(()) => Ok(header),
        Err(stop) => Err(stop.into_error(json.offset())),
    }
}

fn read_members<P: Pieces>(json: &mut Lexer<P>, header: &mut Header) -> Result<(), Stop> {
    json.expect(b'{', OBJECT)?;
    let mut first = true;
    while json.next_member(&mut first)? {
        let name = json.bytes()?;
        // The tree comes last in what rcc writes: what is left is of no interest.
        if name == b"tree" && header.is_complete() {
            return Ok(());
        }
        let value = header.member(name);
        json.expect(b':', COLON)?;
        match value {
            Some(value) if !json.null()? => json.string()?.clone_into(value),
            Some(_) => {}
            None => json.skip()?,
        }
    }
    Ok(())
}

/// Copies the text of a catalog file with other values in its header. Ends where the document ends: rcc accepts whatever
/// follows.
///
/// # Errors
/// When the file is no such document, and what writing may answer.
pub fn rewrite(file: &File, replaced: &[(&str, String)], out: &mut dyn Write) -> io::Result<()> {
    rewrite_pieces(unpacker(file, PIECE).map_err(io::Error::other)?, replaced, out)
}

fn rewrite_pieces(pieces: impl Pieces, replaced: &[(&str, String)], out: &mut dyn Write) -> io::Result<()> {
    let mut json = Lexer::new(Echo { pieces, out, from: 0, is_on: true, failed: None });
    let done = copy_members(&mut json, replaced);
    let offset = json.offset();
    match (done, json.passed().0.failed.take()) {
        (_, Some(error)) => Err(error),
        (Err(stop), None) => Err(io::Error::other(stop.into_error(offset))),
        (Ok(()), None) => Ok(()),
    }
}

fn copy_members<P: Pieces>(json: &mut Lexer<Echo<'_, P>>, replaced: &[(&str, String)]) -> Result<(), Stop> {
    let mut missing: Vec<_> = replaced.iter().collect();
    json.expect(b'{', OBJECT)?;
    let (mut first, mut is_empty) = (true, true);
    while json.next_member(&mut first)? {
        is_empty = false;
        let name = json.bytes()?;
        let value = replaced.iter().find(|(known, _)| known.as_bytes() == name);
        json.expect(b':', COLON)?;
        let Some(value) = value else {
            json.skip()?;
            continue;
        };
        missing.retain(|known| known.0 != value.0);
        json.peek()?;
        copy(json, 0)?;
        json.passed().0.is_on = false;
        json.skip()?;
        let (echo, taken) = json.passed();
        (echo.is_on, echo.from) = (true, taken.len());
        echo.write(value.1.as_bytes())?;
    }
    // All but the bracket, before which the missing ones come.
    copy(json, 1)?;
    let (echo, _) = json.passed();
    for (name, value) in missing {
        let comma = if std::mem::take(&mut is_empty) { "" } else { "," };
        echo.write(format!("{comma}\n  \"{name}\": {value}").as_bytes())?;
    }
    echo.write(b"}")
}

/// Writes what was taken of the piece, but for the last bytes of it.
fn copy<P: Pieces>(json: &mut Lexer<Echo<'_, P>>, but: usize) -> Result<(), Stop> {
    let (echo, taken) = json.passed();
    let from = std::mem::replace(&mut echo.from, taken.len());
    echo.write(taken.get(from..taken.len().saturating_sub(but)).unwrap_or_default())
}

/// Writes the text again as it is read.
struct Echo<'w, P> {
    pieces: P,
    out: &'w mut dyn Write,
    /// What was written already of the piece that is being read.
    from: usize,
    /// Whether what is read now is to be written.
    is_on: bool,
    failed: Option<io::Error>,
}

impl<P> Echo<'_, P> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.out.write_all(bytes).map_err(|error| {
            self.failed = Some(error);
            Stop::Json("it cannot be copied")
        })
    }
}

impl<P: Pieces> Pieces for Echo<'_, P> {
    fn next(&mut self, used: Vec<u8>) -> Result<Option<Vec<u8>>, CatalogError> {
        if self.is_on {
            let rest = used.get(self.from..).unwrap_or_default();
            self.write(rest).map_err(|stop| stop.into_error(0))?;
        }
        self.from = 0;
        self.pieces.next(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text, given out in pieces of some bytes.
    struct Chopped<'a>(&'a [u8], usize);

    impl Pieces for Chopped<'_> {
        fn next(&mut self, _used: Vec<u8>) -> Result<Option<Vec<u8>>, CatalogError> {
            let (piece, rest) = self.0.split_at(self.1.min(self.0.len()));
            self.0 = rest;
            Ok((!piece.is_empty()).then(|| piece.to_vec()))
        }
    }

    fn read(text: &str) -> Result<Header, CatalogError> {
        header(Chopped(text.as_bytes(), 3))
    }

    fn rewritten(text: &str, block: usize) -> io::Result<String> {
        let values =
            [("identity", "I"), ("path", "/b/I"), ("controller", "rcc.user"), ("space", "a\\u003cb")];
        let replaced = values.map(|(name, value)| (name, format!("\"{value}\"")));
        let mut out = Vec::new();
        rewrite_pieces(Chopped(text.as_bytes(), block), &replaced, &mut out)?;
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
    fn cut_documents_are_errors() {
        let text = r#"{"identity":"h","path":"/b/h","tree":{"a":"b"}}"#;
        for end in 0..text.len() {
            assert!(rewritten(&text[..end], 5).is_err(), "{end}");
        }
    }

    #[test]
    fn header_is_read_before_and_after_the_tree() {
        let first = r#"{"identity":"h","path":"/b/h","platform":"linux_amd64","blueprint":"x","tree":"#;
        assert_eq!(read(first).unwrap().base(), Some(std::path::Path::new("/b")));
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
    fn a_disk_that_is_full_is_said() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = rewrite_pieces(Chopped(b"{\"tree\":{}}", 4), &[], &mut Full).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn text_that_never_gets_to_the_header_is_given_up() {
        let file = tempfile::tempfile().unwrap();
        let mut out = flate2::write::GzEncoder::new(&file, flate2::Compression::best());
        for _ in 0..(64 << 4) {
            out.write_all(&[b' '; 1 << 16]).unwrap();
        }
        out.finish().unwrap();
        use std::io::Seek;
        (&file).rewind().unwrap();
        let error = read_header(&file).unwrap_err();
        assert!(matches!(error, CatalogError::TooLarge(_)), "{error}");
    }
}
