//! Directories as users write them, made into absolute paths.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::{SettingsError, Variables};

/// Replaces `$NAME` and `${NAME}` as Go's `os.ExpandEnv` does, which rcc uses: an unset name becomes nothing.
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

/// The variable's name at the start of `text`, and how many bytes it takes with its braces.
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

/// Makes a path absolute and clean without asking the filesystem: `.` and `..` are resolved by their text, as in rcc.
///
/// # Errors
/// When the path is relative and the current directory is gone.
pub fn absolute(path: &Path) -> Result<PathBuf, SettingsError> {
    let full = if path.is_absolute() {
        path.to_owned()
    } else {
        std::env::current_dir().map_err(SettingsError::NoCurrentDir)?.join(path)
    };
    let mut clean = PathBuf::from("/");
    for part in full.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}
