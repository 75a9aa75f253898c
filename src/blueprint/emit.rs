//! Writes a blueprint as Go's `yaml.v2` v2.4.0 writes it, to the byte.
//!
//! The hash of an environment is the hash of this text. So this is the writer of libyaml, reduced to what a blueprint has:
//! a mapping of texts and lists of texts in block style. The names of its parts are those of libyaml's emitter.

use crate::yaml::{Meaning, meaning};

/// The column after which a blank may become a line end.
const BEST_WIDTH: usize = 80;

/// The indentation of one level.
const INDENT: usize = 2;

#[derive(Debug)]
pub(super) struct Emitter {
    out: String,
    /// In characters.
    column: usize,
    /// The last character was a blank, or an indicator that needs none behind it.
    whitespace: bool,
    /// Only indentation was written on this line.
    indention: bool,
}

/// How a text is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Style {
    Plain,
    SingleQuoted,
    DoubleQuoted,
    Literal,
}

impl Emitter {
    pub(super) fn new() -> Self {
        Self { out: String::new(), column: 0, whitespace: true, indention: true }
    }

    /// The text, without blanks around it.
    pub(super) fn finish(self) -> String {
        self.out.trim().to_owned()
    }

    /// A key with a text.
    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(0, key);
        self.scalar(INDENT, value);
    }

    /// A key with a list of texts. The list may be followed by further entries, so an empty one is not written as such if
    /// `is_open`.
    pub(super) fn list<'t>(&mut self, key: &str, items: impl IntoIterator<Item = &'t str>, is_open: bool) {
        self.key(0, key);
        self.entries(0, items, is_open);
    }

    /// An entry of the last list: a mapping of one key to a list of texts.
    pub(super) fn nested_list<'t>(&mut self, key: &str, items: impl IntoIterator<Item = &'t str>) {
        self.write_indent(0);
        self.indicator("-", true);
        self.key(INDENT, key);
        self.entries(INDENT, items, false);
    }

    fn key(&mut self, indent: usize, key: &str) {
        self.write_indent(indent);
        self.write_text(indent + INDENT, key, false);
        self.indicator(":", false);
        self.indention = false;
    }

    fn entries<'t>(&mut self, indent: usize, items: impl IntoIterator<Item = &'t str>, is_open: bool) {
        let mut is_empty = true;
        for item in items {
            is_empty = false;
            self.write_indent(indent);
            self.indicator("-", true);
            self.scalar(indent + INDENT, item);
        }
        if is_empty && !is_open {
            self.indicator("[", true);
            self.indicator("]", false);
            self.indention = false;
        }
    }

    fn scalar(&mut self, indent: usize, value: &str) {
        match style(value) {
            Style::Plain => self.write_text(indent, value, false),
            Style::SingleQuoted => self.write_text(indent, value, true),
            Style::DoubleQuoted => self.write_double_quoted(indent, value),
            Style::Literal => self.write_literal(indent, value),
        }
    }

    fn put(&mut self, c: char) {
        self.out.push(c);
        self.column += 1;
    }

    /// A line end. In a text it can be another character than a newline.
    fn put_break(&mut self, c: char) {
        self.out.push(c);
        self.column = 0;
    }

    fn write_indent(&mut self, indent: usize) {
        if !self.indention || self.column > indent || self.column == indent && !self.whitespace {
            self.put_break('\n');
        }
        while self.column < indent {
            self.put(' ');
        }
        self.whitespace = true;
        self.indention = true;
    }

    /// Leaves [`Emitter::indention`] as it is: a dash counts as indentation, and the callers reset it after the others.
    fn indicator(&mut self, indicator: &str, needs_whitespace: bool) {
        if needs_whitespace && !self.whitespace {
            self.put(' ');
        }
        indicator.chars().for_each(|c| self.put(c));
        self.whitespace = false;
    }

    /// A character of a text that may be broken into lines, and the state of its line breaks.
    fn put_text(&mut self, indent: usize, c: char, breaks: &mut bool) {
        if is_break(c) {
            if !*breaks && c == '\n' {
                self.put_break('\n');
            }
            self.put_break(c);
            self.indention = true;
            *breaks = true;
            return;
        }
        if *breaks {
            self.write_indent(indent);
        }
        self.put(c);
        self.indention = false;
        *breaks = false;
    }

    /// A plain text or one in single quotes. Both are broken into lines in the same way.
    fn write_text(&mut self, indent: usize, value: &str, is_quoted: bool) {
        if is_quoted {
            self.indicator("'", true);
            self.indention = false;
        } else if !self.whitespace {
            self.put(' ');
        }
        let (mut spaces, mut breaks) = (false, false);
        let mut rest = value.chars();
        let mut is_first = true;
        while let Some(c) = rest.next() {
            let next = rest.as_str();
            if c == ' ' {
                // A plain text neither begins nor ends with a space.
                let may_break = !is_first && !next.is_empty() && !next.starts_with(' ');
                if !spaces && self.column > BEST_WIDTH && may_break {
                    self.write_indent(indent);
                } else {
                    self.put(c);
                }
                spaces = true;
            } else {
                spaces &= is_break(c);
                if is_quoted && c == '\'' {
                    if breaks {
                        self.write_indent(indent);
                        breaks = false;
                    }
                    self.put(c);
                }
                self.put_text(indent, c, &mut breaks);
            }
            is_first = false;
        }
        if is_quoted {
            self.indicator("'", false);
        }
        self.whitespace = false;
        self.indention = false;
    }

    fn write_double_quoted(&mut self, indent: usize, value: &str) {
        self.indicator("\"", true);
        self.indention = false;
        // libyaml looks for a byte order mark at the beginning of the text, for each character.
        let has_mark = value.starts_with('\u{feff}');
        let mut spaces = false;
        let mut rest = value.chars();
        let mut is_first = true;
        while let Some(c) = rest.next() {
            let next = rest.as_str();
            if !is_printable(c) || has_mark || is_break(c) || matches!(c, '"' | '\\') {
                escape(c).chars().for_each(|c| self.put(c));
                spaces = false;
            } else if c == ' ' {
                if !spaces && self.column > BEST_WIDTH && !is_first && !next.is_empty() {
                    self.write_indent(indent);
                    if next.starts_with(' ') {
                        self.put('\\');
                    }
                } else {
                    self.put(c);
                }
                spaces = true;
            } else {
                self.put(c);
                spaces = false;
            }
            is_first = false;
        }
        self.indicator("\"", false);
        self.indention = false;
    }

    fn write_literal(&mut self, indent: usize, value: &str) {
        self.indicator("|", true);
        if value.starts_with(|c| c == ' ' || is_break(c)) {
            self.indicator(&INDENT.to_string(), false);
        }
        let mut from_end = value.chars().rev().map(is_break);
        match (from_end.next(), from_end.next()) {
            (Some(true), Some(false)) => {}
            (Some(true), _) => self.indicator("+", false),
            _ => self.indicator("-", false),
        }
        self.put_break('\n');
        self.indention = true;
        self.whitespace = true;
        let mut breaks = true;
        for c in value.chars() {
            if is_break(c) {
                self.put_break(c);
                self.indention = true;
                breaks = true;
                continue;
            }
            if breaks {
                self.write_indent(indent);
            }
            self.put(c);
            self.indention = false;
            breaks = false;
        }
    }
}

/// The style in which `yaml.v2` writes a text.
fn style(value: &str) -> Style {
    let form = Form::of(value);
    if value.contains('\n') {
        return if form.block { Style::Literal } else { Style::DoubleQuoted };
    }
    if meaning(value) != Meaning::Text || is_base_60(value) {
        return Style::DoubleQuoted;
    }
    match (form.plain, form.single_quoted) {
        (true, _) => Style::Plain,
        (false, true) => Style::SingleQuoted,
        (false, false) => Style::DoubleQuoted,
    }
}

/// The styles in which a text can be written.
struct Form {
    plain: bool,
    single_quoted: bool,
    block: bool,
}

impl Form {
    fn of(value: &str) -> Self {
        let mut indicators = value.starts_with("---") || value.starts_with("...");
        let (mut special, mut breaks, mut break_space, mut space_break) = (false, false, false, false);
        let (mut after_space, mut after_break, mut after_blank) = (false, false, true);
        let mut rest = value.chars();
        let mut is_first = true;
        while let Some(c) = rest.next() {
            let is_followed_by_blank = rest.as_str().chars().next().is_none_or(|c| matches!(c, ' ' | '\t'));
            indicators |= match c {
                ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' => {
                    is_first
                }
                '?' | '-' => is_first && is_followed_by_blank,
                ':' => is_followed_by_blank,
                '#' => after_blank,
                _ => false,
            };
            special |= !is_printable(c);
            breaks |= is_break(c);
            break_space |= c == ' ' && after_break;
            space_break |= is_break(c) && after_space;
            after_space = c == ' ';
            after_break = is_break(c);
            after_blank = matches!(c, ' ' | '\t' | '\0') || is_break(c);
            is_first = false;
        }
        let is_edge = |c: char| c == ' ' || is_break(c);
        let has_edge = value.starts_with(is_edge) || value.ends_with(is_edge);
        let is_awkward = space_break || special;
        Self {
            plain: !(indicators || has_edge || breaks || break_space || is_awkward),
            single_quoted: !(break_space || is_awkward),
            block: !(value.ends_with(' ') || is_awkward || value.is_empty()),
        }
    }
}

fn is_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Whether libyaml writes a character as it is. It does so with none outside of the basic multilingual plane.
fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}') && c != '\u{feff}'
}

fn escape(c: char) -> String {
    let short = match c {
        '\0' => '0',
        '\x07' => 'a',
        '\x08' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\x0b' => 'v',
        '\x0c' => 'f',
        '\r' => 'r',
        '\x1b' => 'e',
        '"' | '\\' => c,
        '\u{85}' => 'N',
        '\u{a0}' => '_',
        '\u{2028}' => 'L',
        '\u{2029}' => 'P',
        _ => {
            return match u32::from(c) {
                code @ ..=0xff => format!("\\x{code:02X}"),
                code @ ..=0xffff => format!("\\u{code:04X}"),
                code => format!("\\U{code:08X}"),
            };
        }
    };
    format!("\\{short}")
}

/// Whether the text is a number in base 60 for YAML 1.1: `^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?$`.
fn is_base_60(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let mut places = whole.split(':');
    let is_first = places
        .next()
        .is_some_and(|first| first.starts_with(|c: char| c.is_ascii_digit()) && is_digits(first));
    let mut count = 0;
    let are_rest = places.all(|place| {
        count += 1;
        match place.as_bytes() {
            [ones] => ones.is_ascii_digit(),
            [tens, ones] => matches!(tens, b'0'..=b'5') && ones.is_ascii_digit(),
            _ => false,
        }
    });
    is_first && are_rest && count > 0 && is_digits(fraction)
}
