//! A pull lexer for JSON that arrives in pieces. It can copy the text that it reads, with other values.
//!
//! A catalog's text can be a gigabyte, so the lexer keeps one piece of the text and builds no values. The memory use is
//! the caller's choice. serde_json is no alternative: from a reader it takes twice the time, and from a slice it needs
//! the whole text in memory and still takes 1.4 times as long.
//!
//! Skipped values are checked for structure only.
//!
//! Invariant: no input causes recursion or a panic. Skipped values may nest [`MAX_SKIP`] levels.

use std::io::{self, Write};

use super::CatalogError;

/// The deepest nesting of a skipped value.
pub(super) const MAX_SKIP: usize = 512;

/// The longest string in bytes. Names and link targets are shorter, and no other string is read.
const MAX_STRING: usize = 1 << 16;

/// A source of the text.
pub(super) trait Pieces {
    /// Returns the next piece, which is not empty, or None at the end. `used` is the previous piece, whose buffer can
    /// be reused.
    fn next(&mut self, used: Vec<u8>) -> Result<Option<Vec<u8>>, CatalogError>;
}

/// Why parsing stops.
#[derive(Debug)]
pub(super) enum Stop {
    /// The text is not the JSON that is expected here.
    Json(&'static str),
    /// The current entry is invalid.
    Entry(String),
    /// The copy cannot be written.
    Write(io::Error),
    /// Any other error.
    Other(CatalogError),
}

impl From<CatalogError> for Stop {
    fn from(error: CatalogError) -> Self {
        Self::Other(error)
    }
}

impl Stop {
    /// The error for a text that was read up to `offset`.
    pub(super) fn into_error(self, offset: u64) -> CatalogError {
        match self {
            Self::Json(why) => CatalogError::NotACatalog { why, offset },
            Self::Entry(why) => CatalogError::BadHeader(why),
            Self::Write(error) => CatalogError::BadHeader(error.to_string()),
            Self::Other(error) => error,
        }
    }
}

pub(super) struct Lexer<'p> {
    pieces: &'p mut dyn Pieces,
    piece: Vec<u8>,
    at: usize,
    /// The length of the text before this piece.
    before: u64,
    /// The current string, if it cannot be borrowed from the piece.
    scratch: Vec<u8>,
    /// Gets a copy of the text, piece by piece.
    pub(super) copy: Option<&'p mut dyn Write>,
    /// The position in this piece up to which the text was copied.
    copied: usize,
}

/// The state of an object that is being read.
pub(super) struct Object {
    pub(super) first: bool,
    /// One bit for each known field that was read. So an object has up to 32 known fields.
    seen: u32,
}

/// Whether a byte of a string stands for itself, and is not a quote, a backslash or a control character.
fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

/// The number of bytes at the beginning that stand for themselves in a string. Tests eight at a time: most of a catalog
/// is digests.
fn plain_len(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    // Sets the high bit of each zero byte. Bits above the lowest zero byte may be wrong; only the lowest one is used.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let mut len = 0;
    for chunk in bytes.as_chunks::<8>().0 {
        let word = u64::from_le_bytes(*chunk);
        let controls = word.wrapping_sub(0x20 * ONES) & !word & HIGH;
        let ends = zeros(word ^ (0x22 * ONES)) | zeros(word ^ (0x5c * ONES)) | controls;
        if ends != 0 {
            return len + (ends.trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    let rest = bytes.get(len..).unwrap_or_default();
    len + rest.iter().position(|byte| !is_plain(*byte)).unwrap_or(rest.len())
}

/// Moves UTF-16 units to the end of a text. Half a surrogate pair becomes U+FFFD, as in Go.
fn push_utf16(text: &mut Vec<u8>, units: &mut Vec<u16>) {
    for character in char::decode_utf16(units.drain(..)) {
        let character = character.unwrap_or(char::REPLACEMENT_CHARACTER);
        text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// The length of the white space at the beginning. Tests eight bytes at a time: rcc indents.
fn blank_len(bytes: &[u8]) -> usize {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
    // White space within a line is one byte. It is two bytes or more at the end of a line.
    let start = bytes.iter().take(2).take_while(|byte| is_blank(byte)).count();
    if start < 2 {
        return start;
    }
    let (words, _) = bytes.get(start..).unwrap_or_default().as_chunks::<8>();
    let len = start + 8 * words.iter().take_while(|word| **word == *b"        ").count();
    let rest = bytes.get(len..).unwrap_or_default();
    len + rest.iter().take_while(|byte| is_blank(byte)).count()
}

impl<'p> Lexer<'p> {
    pub(super) fn new(pieces: &'p mut dyn Pieces) -> Self {
        Self { pieces, piece: Vec::new(), at: 0, before: 0, scratch: Vec::new(), copy: None, copied: 0 }
    }

    /// Skips one value, and writes `new` to the copy instead.
    pub(super) fn replace(&mut self, new: &[u8]) -> Result<(), Stop> {
        self.peek()?;
        self.write_copy(0, new)?;
        let copy = self.copy.take();
        self.skip()?;
        (self.copy, self.copied) = (copy, self.at);
        Ok(())
    }

    /// Copies this piece up to `before` bytes before the next byte, and then writes `new` to the copy.
    pub(super) fn write_copy(&mut self, before: usize, new: &[u8]) -> Result<(), Stop> {
        if let Some(copy) = &mut self.copy {
            let text = self.piece.get(self.copied..self.at - before).unwrap_or_default();
            copy.write_all(text).and_then(|()| copy.write_all(new)).map_err(Stop::Write)?;
        }
        Ok(())
    }

    /// The number of bytes of the text that were read.
    pub(super) fn offset(&self) -> u64 {
        self.before + self.at as u64
    }

    /// Gets the next piece. At the end of the text this is an error.
    #[cold]
    fn refill(&mut self) -> Result<(), Stop> {
        self.write_copy(0, b"")?;
        self.before += self.piece.len() as u64;
        (self.at, self.copied) = (0, 0);
        let used = std::mem::take(&mut self.piece);
        self.piece = self.pieces.next(used)?.ok_or(Stop::Json("the text ends too early"))?;
        Ok(())
    }

    /// Returns the next byte without consuming it.
    fn peek_any(&mut self) -> Result<u8, Stop> {
        loop {
            if let Some(byte) = self.piece.get(self.at) {
                return Ok(*byte);
            }
            self.refill()?;
        }
    }

    /// Consumes and returns the next byte.
    fn take_any(&mut self) -> Result<u8, Stop> {
        let byte = self.peek_any()?;
        self.at += 1;
        Ok(byte)
    }

    /// Skips white space and returns the next byte without consuming it.
    pub(super) fn peek(&mut self) -> Result<u8, Stop> {
        loop {
            self.at += blank_len(self.piece.get(self.at..).unwrap_or_default());
            if let Some(byte) = self.piece.get(self.at) {
                return Ok(*byte);
            }
            self.refill()?;
        }
    }

    /// Skips white space and consumes this byte.
    pub(super) fn expect(&mut self, byte: u8, otherwise: &'static str) -> Result<(), Stop> {
        if self.peek()? != byte {
            return Err(Stop::Json(otherwise));
        }
        self.at += 1;
        Ok(())
    }

    /// Consumes the rest of a word.
    fn word(&mut self, word: &[u8]) -> Result<(), Stop> {
        for expected in word {
            if self.take_any()? != *expected {
                return Err(Stop::Json("not a JSON value"));
            }
        }
        Ok(())
    }

    /// Consumes a `null`, if one is next.
    pub(super) fn null(&mut self) -> Result<bool, Stop> {
        if self.peek()? != b'n' {
            return Ok(false);
        }
        self.word(b"null")?;
        Ok(true)
    }

    /// Moves to the next key of an object whose `{` was consumed. Consumes the `}` and returns false if there is none.
    pub(super) fn next_member(&mut self, first: &mut bool) -> Result<bool, Stop> {
        self.next_of(first, b'}')
    }

    /// Moves to the value of the next field of an object whose `{` was consumed, if its name is one of `names`, and
    /// returns that name. Skips other fields and fields that are `null`. Consumes the `}` and returns None if there is
    /// no such field.
    pub(super) fn next_field(
        &mut self,
        object: &mut Object,
        names: &[&'static str],
    ) -> Result<Option<&'static str>, Stop> {
        while self.next_member(&mut object.first)? {
            let name = self.bytes()?;
            let field = names.iter().position(|known| known.as_bytes() == name);
            self.colon()?;
            let Some(field) = field else {
                self.skip()?;
                continue;
            };
            if object.seen & 1 << field != 0 {
                return Err(Stop::Json("a duplicate field"));
            }
            object.seen |= 1 << field;
            if !self.null()? {
                return Ok(names.get(field).copied());
            }
        }
        Ok(None)
    }

    /// Consumes the `{` of an object.
    pub(super) fn object(&mut self) -> Result<Object, Stop> {
        self.expect(b'{', "an object was expected")?;
        Ok(Object { first: true, seen: 0 })
    }

    /// Consumes the colon after a name.
    pub(super) fn colon(&mut self) -> Result<(), Stop> {
        self.expect(b':', "a colon was expected")
    }

    /// Moves to the next element of an array whose `[` was consumed. Consumes the `]` and returns false if there is
    /// none.
    pub(super) fn next_element(&mut self, first: &mut bool) -> Result<bool, Stop> {
        self.next_of(first, b']')
    }

    fn next_of(&mut self, first: &mut bool, close: u8) -> Result<bool, Stop> {
        let byte = self.peek()?;
        if byte == close {
            self.at += 1;
            return Ok(false);
        }
        if !std::mem::take(first) {
            if byte != b',' {
                return Err(Stop::Json("a comma or the end of a list was expected"));
            }
            self.at += 1;
            // After the comma of `{"a":1,}` the caller fails, because no key follows.
        }
        Ok(true)
    }

    pub(super) fn string(&mut self) -> Result<&str, Stop> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Stop::Json("a string is not UTF-8"))
    }

    /// Reads a string as bytes, which may not be UTF-8.
    pub(super) fn bytes(&mut self) -> Result<&[u8], Stop> {
        self.expect(b'"', "a string was expected")?;
        let start = self.at;
        let rest = self.piece.get(start..).unwrap_or_default();
        let len = plain_len(rest);
        if rest.get(len) == Some(&b'"') {
            self.at = start + len + 1;
            return Ok(self.piece.get(start..start + len).unwrap_or_default());
        }
        self.string_in_pieces()?;
        Ok(&self.scratch)
    }

    /// Reads the rest of a string into `scratch`, if it has escapes or does not end in this piece.
    #[cold]
    fn string_in_pieces(&mut self) -> Result<(), Stop> {
        self.scratch.clear();
        // The units of adjacent `\uXXXX`. Only together do two of them make a surrogate pair.
        let mut units = Vec::new();
        loop {
            let rest = self.piece.get(self.at..).unwrap_or_default();
            let plain = rest.get(..plain_len(rest)).unwrap_or_default();
            if !plain.is_empty() {
                push_utf16(&mut self.scratch, &mut units);
            }
            self.scratch.extend_from_slice(plain);
            self.at += plain.len();
            if self.scratch.len() + units.len() > MAX_STRING {
                return Err(Stop::Json("a string is too long"));
            }
            if self.at == self.piece.len() {
                self.peek_any()?;
                continue;
            }
            let escaped = match self.take_any()? {
                b'"' => {
                    push_utf16(&mut self.scratch, &mut units);
                    return Ok(());
                }
                b'\\' => self.take_any()?,
                _ => return Err(Stop::Json("a control character in a string")),
            };
            let byte = match escaped {
                b'u' => {
                    units.push(self.four_digits()?);
                    continue;
                }
                b'"' | b'\\' | b'/' => escaped,
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                _ => return Err(Stop::Json("an unknown escape in a string")),
            };
            push_utf16(&mut self.scratch, &mut units);
            self.scratch.push(byte);
        }
    }

    fn four_digits(&mut self) -> Result<u16, Stop> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = char::from(self.take_any()?).to_digit(16);
            unit = unit << 4 | digit.ok_or(Stop::Json("an unknown escape in a string"))? as u16;
        }
        Ok(unit)
    }

    /// Reads an integer that is not negative.
    pub(super) fn natural(&mut self) -> Result<u64, Stop> {
        match self.peek()? {
            b'0'..=b'9' => {}
            b'-' => return Err(Stop::Json("a number is negative")),
            _ => return Err(Stop::Json("a number was expected")),
        }
        let mut number = 0u64;
        let mut digits = 0;
        loop {
            match self.peek_any()? {
                digit @ b'0'..=b'9' => {
                    if digits == 1 && number == 0 {
                        return Err(Stop::Json("a number begins with zero"));
                    }
                    number = number
                        .checked_mul(10)
                        .and_then(|number| number.checked_add(u64::from(digit - b'0')))
                        .ok_or(Stop::Json("a number is too large"))?;
                    digits += 1;
                    self.at += 1;
                }
                b'.' | b'e' | b'E' => return Err(Stop::Json("a number is not whole")),
                _ => return Ok(number),
            }
        }
    }

    pub(super) fn boolean(&mut self) -> Result<bool, Stop> {
        match self.peek()? {
            b't' => self.word(b"true").map(|()| true),
            b'f' => self.word(b"false").map(|()| false),
            _ => Err(Stop::Json("true or false was expected")),
        }
    }

    /// Skips one value of any type.
    pub(super) fn skip(&mut self) -> Result<(), Stop> {
        self.skip_below(0)
    }

    /// Skips a value in `depth` objects and arrays.
    fn skip_below(&mut self, depth: usize) -> Result<(), Stop> {
        let (is_object, close) = match self.peek()? {
            b'{' => (true, b'}'),
            b'[' => (false, b']'),
            b'"' => return self.skip_string(),
            b'n' => return self.word(b"null"),
            b't' | b'f' => return self.boolean().map(drop),
            b'-' | b'0'..=b'9' => return self.skip_number(),
            _ => return Err(Stop::Json("not a JSON value")),
        };
        if depth == MAX_SKIP {
            return Err(Stop::Json("a value is nested too deeply"));
        }
        self.at += 1;
        let mut first = true;
        while self.next_of(&mut first, close)? {
            if is_object {
                if self.peek()? != b'"' {
                    return Err(Stop::Json("a key was expected"));
                }
                self.skip_string()?;
                self.colon()?;
            }
            self.skip_below(depth + 1)?;
        }
        Ok(())
    }

    fn skip_number(&mut self) -> Result<(), Stop> {
        while matches!(self.peek_any()?, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') {
            self.at += 1;
        }
        Ok(())
    }

    fn skip_string(&mut self) -> Result<(), Stop> {
        self.at += 1;
        loop {
            self.at += plain_len(self.piece.get(self.at..).unwrap_or_default());
            match self.take_any()? {
                b'"' => return Ok(()),
                b'\\' => {
                    self.take_any()?;
                }
                _ => {}
            }
        }
    }
}
