//! JSON as Go's `encoding/json` writes it with an indent of two blanks, which is how rcc's catalogs look.
//!
//! Only what a catalog needs: objects, lists of numbers, strings, numbers, booleans. It checks no structure; its one
//! caller writes one shape.

use std::io::{self, Write};

/// Writes one document.
#[derive(Debug)]
pub(super) struct Writer<W> {
    out: W,
    depth: usize,
    /// Whether the innermost object or list has no members yet.
    empty: bool,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, depth: 0, empty: true }
    }

    pub(super) fn into_inner(self) -> W {
        self.out
    }

    /// Begins an object (`{`) or a list (`[`).
    pub(super) fn begin(&mut self, bracket: u8) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        self.out.write_all(&[bracket])
    }

    /// Ends it with `}` or `]`, on the same line when it has no members.
    pub(super) fn end(&mut self, bracket: u8) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if !self.empty {
            self.line()?;
        }
        self.empty = false;
        self.out.write_all(&[bracket])
    }

    /// Begins a member of a list.
    pub(super) fn member(&mut self) -> io::Result<()> {
        if !self.empty {
            self.out.write_all(b",")?;
        }
        self.empty = false;
        self.line()
    }

    /// Begins a member of an object.
    pub(super) fn key(&mut self, key: &str) -> io::Result<()> {
        self.member()?;
        self.string(key)?;
        self.out.write_all(b": ")
    }

    pub(super) fn number(&mut self, number: u64) -> io::Result<()> {
        write!(self.out, "{number}")
    }

    pub(super) fn bool(&mut self, value: bool) -> io::Result<()> {
        self.out.write_all(if value { b"true" } else { b"false" })
    }

    /// A string; besides what JSON asks for, Go escapes what could end a script in HTML.
    pub(super) fn string(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(b"\"")?;
        let mut plain = 0;
        for (at, c) in text.char_indices() {
            let escape = match c {
                '"' => "\\\"".into(),
                '\\' => "\\\\".into(),
                '\n' => "\\n".into(),
                '\r' => "\\r".into(),
                '\t' => "\\t".into(),
                '\u{8}' => "\\b".into(),
                '\u{c}' => "\\f".into(),
                '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => format!("\\u{:04x}", c as u32),
                _ => continue,
            };
            self.out.write_all(text.get(plain..at).unwrap_or_default().as_bytes())?;
            self.out.write_all(escape.as_bytes())?;
            plain = at + c.len_utf8();
        }
        self.out.write_all(text.get(plain..).unwrap_or_default().as_bytes())?;
        self.out.write_all(b"\"")
    }

    fn line(&mut self) -> io::Result<()> {
        self.out.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| self.out.write_all(b"  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> String {
        let mut writer = Writer::new(Vec::new());
        writer.string(text).unwrap();
        String::from_utf8(writer.into_inner()).unwrap()
    }

    #[test]
    fn escapes_as_go_does() {
        assert_eq!(string("amp&lt<gt>.txt"), r#""amp\u0026lt\u003cgt\u003e.txt""#);
        assert_eq!(string("q\"b\\s\n\t\r"), r#""q\"b\\s\n\t\r""#);
        assert_eq!(string("\u{1}\u{1f}\u{7f}\u{8}\u{c}"), "\"\\u0001\\u001f\u{7f}\\b\\f\"");
        assert_eq!(string("\u{2028}\u{2029}é日🐍"), "\"\\u2028\\u2029é日🐍\"");
    }

    #[test]
    fn what_is_empty_stays_on_its_line() {
        let mut writer = Writer::new(Vec::new());
        writer.begin(b'{').unwrap();
        for key in ["a", "b"] {
            writer.key(key).unwrap();
            writer.begin(b'{').unwrap();
            writer.end(b'}').unwrap();
        }
        writer.key("c").unwrap();
        writer.begin(b'[').unwrap();
        for number in [1, 2] {
            writer.member().unwrap();
            writer.number(number).unwrap();
        }
        writer.end(b']').unwrap();
        writer.end(b'}').unwrap();
        let text = String::from_utf8(writer.into_inner()).unwrap();
        assert_eq!(text, "{\n  \"a\": {},\n  \"b\": {},\n  \"c\": [\n    1,\n    2\n  ]\n}");
    }
}
