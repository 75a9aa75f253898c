//! Converts directories, as users write them, to absolute paths.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{SettingsError, Variables};
use crate::sys::lexically_clean;

/// Replaces `$NAME` and `${NAME}` as rcc does, with Go's `os.ExpandEnv`: an unset variable is replaced by nothing.
pub(super) fn expand(text: &OsStr, variables: Variables<'_>) -> PathBuf {
    let mut rest = text.as_bytes();
    let mut out = Vec::with_capacity(rest.len());
    while let Some(at) = rest.iter().position(|&b| b == b'$') {
        let (before, after) = rest.split_at(at);
        out.extend_from_slice(before);
        let after = after.get(1..).unwrap_or_default();
        let (name, used) = variable_name(after);
        match std::str::from_utf8(name) {
            Ok("") if used == 0 => out.push(b'$'),
            Ok(name) => out.extend_from_slice(variables(name).unwrap_or_default().as_bytes()),
            Err(_) => {}
        }
        rest = after.get(used..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    PathBuf::from(OsString::from_vec(out))
}

/// The name of the variable at the start of `text`, and its length in bytes with braces.
fn variable_name(text: &[u8]) -> (&[u8], usize) {
    if let Some(inner) = text.strip_prefix(b"{") {
        return match inner.iter().position(|&b| b == b'}') {
            Some(end) => (inner.get(..end).unwrap_or_default(), end + 2),
            None => (&[], 1),
        };
    }
    let end = text.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).unwrap_or(text.len());
    (text.get(..end).unwrap_or_default(), end)
}

/// Makes a path absolute and removes `.` and `..` from it without reading the filesystem, as rcc does.
///
/// # Errors
/// When the path is relative and the current directory cannot be read.
pub fn absolute(path: &Path) -> Result<PathBuf, SettingsError> {
    let full = if path.is_absolute() {
        path.to_owned()
    } else {
        std::env::current_dir().map_err(SettingsError::NoCurrentDir)?.join(path)
    };
    Ok(lexically_clean(&full))
}
