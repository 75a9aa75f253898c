//! What rcc writes beside a space: the text of `D.meta` and of `D.meta.info`.
//!
//! A `D.meta` is the space's catalog with other first lines; the catalog's own parser reads and copies it
//! (`library::catalog::header`). Others may write these files, so they are opened as such and read as far as they may be
//! long.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::library::catalog::header;
use crate::space::SpaceError;
use crate::sys::guarded::{self, Access};

pub use crate::library::catalog::Header;

/// A `.meta.info` is seven short strings.
const MAX_INFO: u64 = 1 << 20;

/// Reads the header of a catalog file or a `.meta`, as a rule from its first block.
///
/// # Errors
/// When it cannot be read, or is not such a document.
pub fn read_header(path: &Path) -> Result<Header, SpaceError> {
    let file = guarded::open_file(path, Access::Read)?;
    header::read_header(&file).map_err(|error| bad(path, &error))
}

/// Reads a document's header from JSON as it is, such as a `.meta.info`.
///
/// # Errors
/// When it cannot be read, or is not such a document.
pub fn read_info(path: &Path) -> Result<Header, SpaceError> {
    let bytes = guarded::read(path, MAX_INFO)?;
    serde_json::from_slice(&bytes).map_err(|error| bad(path, &error))
}

fn bad(path: &Path, error: &dyn std::error::Error) -> SpaceError {
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

/// Copies the text of a catalog file with other values in its header.
///
/// # Errors
/// When the file is no catalog, and what writing may answer.
pub fn rewrite(catalog: &File, replaced: &Replaced<'_>, out: &mut dyn Write) -> io::Result<()> {
    let values = [
        ("identity", replaced.identity),
        ("path", replaced.path),
        ("controller", replaced.controller),
        ("space", replaced.space),
    ];
    header::rewrite(catalog, &values.map(|(name, value)| (name, go_string(value))), out)
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
