//! `PATH` of the caller, as rcc passes it on: without entries that would lead into another Python environment.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Words in the path of another Python environment. rcc drops an entry with one of them, in upper or lower case.
const OTHERS: [&str; 7] = ["python", "conda", "pyenv", "venv", "pypoetry", ".poetry", "virtualenv"];

/// Whether an entry leads into another Python environment.
pub(super) fn is_of_another_environment(entry: &OsStr) -> bool {
    let lower = entry.to_string_lossy().to_lowercase();
    OTHERS.iter().any(|other| lower.contains(other))
}

/// The entries of `PATH`: each once, without spaces of this user.
pub(super) fn of_caller(path: &OsStr, user7: &str) -> Vec<OsString> {
    let mut kept: Vec<OsString> = Vec::new();
    if path.is_empty() {
        return kept;
    }
    for entry in path.as_bytes().split(|byte| *byte == b':') {
        let entry = OsStr::from_bytes(entry);
        if !names_a_space(entry.as_bytes(), user7) && !kept.iter().any(|known| known == entry) {
            kept.push(entry.to_owned());
        }
    }
    kept
}

/// Joins the entries of a `PATH`.
pub(super) fn join<'a>(parts: impl Iterator<Item = &'a OsStr>) -> OsString {
    let parts: Vec<&[u8]> = parts.map(OsStr::as_bytes).collect();
    OsString::from_vec(parts.join(&b':'))
}

/// Whether a path has the name of a space of this user in it, as a whole word.
fn names_a_space(path: &[u8], user7: &str) -> bool {
    (0..path.len()).any(|at| {
        let (before, rest) = path.split_at(at);
        !before.last().is_some_and(|byte| is_word(*byte))
            && [user7, "UNMNGED"].iter().any(|user| is_space_name(rest, user))
    })
}

/// Whether a text starts with the name of a space, and the name ends there.
fn is_space_name(text: &[u8], user: &str) -> bool {
    let hex = |text: &mut &[u8], count: usize| {
        let Some((digits, rest)) = text.split_at_checked(count) else { return false };
        *text = rest;
        digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let Some(mut rest) = text.strip_prefix(user.as_bytes()).and_then(|rest| rest.strip_prefix(b"_")) else {
        return false;
    };
    if !hex(&mut rest, 7) {
        return false;
    }
    let Some(mut rest) = rest.strip_prefix(b"_") else { return false };
    hex(&mut rest, 8) && !rest.first().is_some_and(|byte| is_word(*byte))
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> String {
        let mut kept = of_caller(OsStr::new(path), "ea7ce2c");
        kept.retain(|entry| !is_of_another_environment(entry));
        join(kept.iter().map(OsString::as_os_str)).into_string().unwrap()
    }

    #[test]
    fn other_environments_are_left_out() {
        assert_eq!(of("/usr/bin:/opt/Miniconda3/bin:/x/.pyenv/shims:/home/p/VENV/bin:/bin"), "/usr/bin:/bin");
        assert_eq!(of("/usr/lib/python3:/pypoetry/bin:/a"), "/a");
    }

    #[test]
    fn entries_occur_once_and_empty_ones_stay() {
        assert_eq!(of("/a::/b:/a:"), "/a::/b");
        assert!(of_caller(OsStr::new(""), "ea7ce2c").is_empty());
    }

    #[test]
    fn spaces_of_this_user_are_left_out() {
        assert_eq!(of("/h/ea7ce2c_5a1fac3_ca793c28/bin:/a"), "/a");
        assert_eq!(of("/h/UNMNGED_5a1fac3_ca793c28:/a"), "/a");
        // Other users' spaces, and names that only contain one, stay.
        for other in [
            "/h/0a7ce2c_5a1fac3_ca793c28/bin",
            "/h/xea7ce2c_5a1fac3_ca793c28",
            "/h/ea7ce2c_5a1fac3_ca793c281",
            "/h/ea7ce2c_5a1fac3_ca793c2",
            "/h/ea7ce2c_5A1fac3_ca793c28",
        ] {
            assert_eq!(of(other), other);
        }
        assert_eq!(of("/x-ea7ce2c_5a1fac3_ca793c28.old:/a"), "/a");
    }
}
