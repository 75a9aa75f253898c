//! Escapes text that others wrote, for terminals and logs.
//!
//! Anybody can have chosen the names, paths and texts in a library. A terminal obeys control characters in them, and a
//! newline in them starts a line that looks like a line of holofs. So all text for people goes through [`one_line`]:
//! `cli::output` applies it to each line and each cell of a table, `cli::log` to each event. JSON has its own escapes;
//! [`json`] adds those that JSON does not require.
//!
//! Invariant: the result of [`one_line`] contains no newline and no character that a terminal obeys.

use std::borrow::Cow;

/// Whether a terminal obeys the character, or reorders the text after it.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Replaces newlines and characters that a terminal obeys by Rust's escapes.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_active, |c, out| out.extend(c.escape_default()))
}

/// Escapes the characters that a terminal obeys in a JSON text. The value stays the same, because in JSON these
/// characters occur only inside strings, except for the newlines between values.
pub(super) fn json(text: &str) -> Cow<'_, str> {
    escaped(
        text,
        |c| c != '\n' && is_active(c),
        |c, out| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        },
    )
}

fn escaped(text: &str, is_bad: fn(char) -> bool, escape: fn(char, &mut String)) -> Cow<'_, str> {
    if !text.chars().any(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_bad(c) { escape(c, &mut out) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_a_terminal_obeys_are_escaped() {
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
