//! Finds the program of a command, as a shell does, before it is started: whether there is none, or one that cannot be run,
//! are two exit codes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

/// The result of a search.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// The program.
    At(PathBuf),
    /// A file of that name that is no program: a directory, or without permission to execute it.
    NoProgram(PathBuf),
    /// No file of that name.
    Nothing,
}

/// Looks for a program in the directories of `path`. Relative directories, and names with a slash, are relative to `dir`.
#[must_use]
pub fn find(name: &OsStr, path: &OsStr, dir: &Path) -> Found {
    if name.is_empty() {
        return Found::Nothing;
    }
    if name.as_bytes().contains(&b'/') {
        return look(dir.join(name));
    }
    let mut first_bad = Found::Nothing;
    for entry in path.as_bytes().split(|byte| *byte == b':') {
        let place = dir.join(OsStr::from_bytes(entry)).join(name);
        match (look(place), &first_bad) {
            (Found::At(program), _) => return Found::At(program),
            (bad @ Found::NoProgram(_), Found::Nothing) => first_bad = bad,
            _ => {}
        }
    }
    first_bad
}

fn look(path: PathBuf) -> Found {
    let Ok(found) = std::fs::metadata(&path) else { return Found::Nothing };
    if found.is_file() && rustix::fs::accessat(CWD, &path, Access::EXEC_OK, AtFlags::EACCESS).is_ok() {
        return Found::At(path);
    }
    Found::NoProgram(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn first_program_wins_and_files_that_are_none_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let file = |name: &str, mode| {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), "").unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        file("a/x", 0o644);
        file("b/x", 0o755);
        file("a/y", 0o644);
        std::fs::create_dir(at("b/y")).unwrap();
        let search = |name: &str| find(OsStr::new(name), OsStr::new("a:b:"), dir.path());
        assert_eq!(search("x"), Found::At(at("b/x")));
        assert_eq!(search("y"), Found::NoProgram(at("a/y")));
        assert_eq!(search("z"), Found::Nothing);
        assert_eq!(search(""), Found::Nothing);
        assert_eq!(search("b/x"), Found::At(at("b/x")));
        assert_eq!(search("./a/x"), Found::NoProgram(at("./a/x")));
        // An empty entry is the current directory.
        file("w", 0o755);
        assert_eq!(search("w"), Found::At(at("w")));
    }
}
