//! Text from elsewhere, made harmless for a terminal and for a log.
//!
//! Names, paths and texts of a library are anybody's. A terminal obeys the control characters in them, and a newline in
//! them begins a line that looks like ours. So everything that is written for people goes through [`one_line`]:
//! `cli::output` applies it to each line and each cell of a table, `cli::log` to each event. Nothing else writes for
//! people. JSON has escapes of its own; [`json`] adds the few that it does not ask for.
//!
//! Invariant: what [`one_line`] returns holds no newline and nothing that a terminal acts on.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal acts on the character, or shows what follows out of its order.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text without a newline and without what a terminal acts on: these characters are written as Rust writes them
/// in a string.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_active) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().fold(String::with_capacity(text.len() + 16), |mut out, c| {
        if is_active(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        out
    });
    Cow::Owned(escaped)
}

/// JSON in which strings hold nothing that a terminal acts on. It has the same value: in JSON such characters can stand
/// in strings only, but for the newlines between the values.
pub(super) fn json(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| c != '\n' && is_active(c);
    if !text.chars().any(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_bad(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                // Writing to a string cannot fail.
                write!(out, "\\u{unit:04x}").unwrap_or_default();
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_shown_and_not_sent() {
        for (text, shown) in [
            ("plain, äöü 日本 \\n", "plain, äöü 日本 \\n"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[2J\u{7f}\u{9b}31m", "\\u{1b}[2J\\u{7f}\\u{9b}31m"),
            ("gpj\u{202e}exe", "gpj\\u{202e}exe"),
            ("\u{2028}\u{2066}", "\\u{2028}\\u{2066}"),
        ] {
            assert_eq!(one_line(text), shown);
        }
    }

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({ "a\u{9b}": "x\u{1b}\u{7f}\u{202e}\n", "b": [1, "é"] });
        let text = serde_json::to_string_pretty(&value).unwrap();
        let escaped = json(&text);
        assert!(!escaped.chars().any(|c| c != '\n' && is_active(c)), "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }
}
