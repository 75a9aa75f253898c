//! Writes variables for a program that reads them.
//!
//! rcc prints `export NAME=VALUE` without quotes, so a blank, a bracket or a semicolon in a value breaks the shell that reads
//! it, or runs a command. Here every format quotes, and a name that its reader would not take as a name is left out.
//!
//! Invariant: the reader of a format gets the value that was written, byte for byte, except that JSON can hold only text.

use std::os::unix::ffi::OsStrExt;

use clap::ValueEnum;
use serde::Serialize;

use super::Variable;

/// The reader of the variables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
#[value(rename_all = "lowercase")]
pub enum Format {
    /// sh, bash, zsh: `export NAME='VALUE'`
    #[default]
    Export,
    /// rcc's JSON: a list of objects with `key` and `value`
    Json,
    /// `.env` files: `NAME='VALUE'`
    Dotenv,
    /// `NAME=VALUE`, each followed by a NUL, as `env -0` prints it
    Null,
    /// fish: `set -gx NAME 'VALUE';`
    Fish,
    /// PowerShell: assignments to `env:NAME`
    PowerShell,
}

/// Writes the variables.
#[must_use]
pub fn written(variables: &[Variable], format: Format) -> Vec<u8> {
    if format == Format::Json {
        return json(variables).into_bytes();
    }
    let mut out = Vec::new();
    for Variable { name, value } in variables {
        let value = value.as_bytes();
        if !(format == Format::Null || is_name(name)) {
            tracing::warn!(name, "left out: it cannot be the name of a variable of a shell");
            continue;
        }
        let parts: [&[u8]; 4] = match format {
            Format::Export => [b"export ", name.as_bytes(), b"=", &in_shell(value)],
            Format::Dotenv => [b"", name.as_bytes(), b"=", &in_dotenv(value)],
            Format::Fish => [b"set -gx ", name.as_bytes(), b" ", &in_fish(value)],
            Format::PowerShell => [b"$env:", name.as_bytes(), b" = ", &in_powershell(value)],
            Format::Null | Format::Json => [b"", name.as_bytes(), b"=", value],
        };
        out.extend(parts.concat());
        out.extend_from_slice(match format {
            Format::Null => b"\0",
            Format::Fish => b";\n",
            _ => b"\n",
        });
    }
    out
}

/// Whether a text can be the name of a variable in a shell.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether no reader needs quotes for the value.
fn is_plain(value: &[u8]) -> bool {
    value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(byte))
}

/// Writes the value between single quotes, with `escaped` for the bytes that need it.
fn quoted(value: &[u8], escaped: impl Fn(u8) -> Option<&'static [u8]>) -> Vec<u8> {
    let mut out = vec![b'\''];
    for byte in value {
        match escaped(*byte) {
            Some(escape) => out.extend_from_slice(escape),
            None => out.push(*byte),
        }
    }
    out.push(b'\'');
    out
}

fn in_shell(value: &[u8]) -> Vec<u8> {
    if is_plain(value) {
        return value.to_owned();
    }
    quoted(value, |byte| (byte == b'\'').then_some(b"'\\''".as_slice()))
}

/// Readers of `.env` files agree on single quotes around a text without quotes and backslashes. For other texts there are
/// double quotes with backslashes, which Docker Compose and Python's dotenv read alike.
fn in_dotenv(value: &[u8]) -> Vec<u8> {
    if is_plain(value) {
        return value.to_owned();
    }
    if !value.iter().any(|byte| b"'\\".contains(byte)) {
        return quoted(value, |_| None);
    }
    let mut out = vec![b'"'];
    for byte in value {
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'"' | b'\\' | b'$' => out.extend([b'\\', *byte]),
            byte => out.push(*byte),
        }
    }
    out.push(b'"');
    out
}

fn in_fish(value: &[u8]) -> Vec<u8> {
    quoted(value, |byte| match byte {
        b'\'' => Some(b"\\'"),
        b'\\' => Some(b"\\\\"),
        _ => None,
    })
}

/// PowerShell takes four typographic quotes for single quotes too.
fn in_powershell(value: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(value);
    let mut out = String::from("'");
    for c in text.chars() {
        if matches!(c, '\'' | '\u{2018}'..='\u{201b}') {
            out.push(c);
        }
        out.push(c);
    }
    out.push('\'');
    out.into_bytes()
}

/// rcc's JSON, byte for byte: blanks at the end of a value are cut off, and the characters that matter in HTML are escaped,
/// because Go escapes them.
fn json(variables: &[Variable]) -> String {
    #[derive(Serialize)]
    struct Entry<'v> {
        key: &'v str,
        value: String,
    }
    let entries: Vec<Entry<'_>> = variables
        .iter()
        .map(|Variable { name, value }| Entry {
            key: name.trim_start(),
            value: value.to_string_lossy().trim_end().to_owned(),
        })
        .filter(|entry| !entry.key.is_empty())
        .collect();
    let plain = serde_json::to_string_pretty(&entries).unwrap_or_default();
    let mut out = String::with_capacity(plain.len() + 1);
    for c in plain.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests;
