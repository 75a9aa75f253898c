//! What the variables need to know of the files of a space.
//!
//! Three names are looked up, and one small file is read, whatever the size of the space. Invariant: the file is read
//! only if it is a regular file within `MAX_ACTIVATION`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType};
use serde_json::{Map, Value};

use super::Variable;
use crate::sys::guarded::{Dir, GuardedError, Trust};

/// The largest activation file that is read, in bytes. Real ones have some kilobytes.
const MAX_ACTIVATION: u64 = 4 << 20;

/// What the files of a space say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// The Python of the space, relative to it.
    pub python: Option<PathBuf>,
    /// It is a Python venv: it has a `pyvenv.cfg`.
    pub is_venv: bool,
    /// The variables that the activation scripts of the environment's packages set when it was built.
    pub activation: Vec<Variable>,
}

impl Facts {
    /// Looks at a space.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn of(root: &Path) -> Result<Self, GuardedError> {
        let dir = Dir::open(root, Trust::Shared)?;
        // As rcc, through links: the names in `bin` of a conda environment are links.
        let kind = |name: &str| {
            let found = rustix::fs::statat(&dir, name, AtFlags::empty()).ok()?;
            Some(FileType::from_raw_mode(found.st_mode))
        };
        let is_program = |name: &&str| kind(name).is_some_and(|kind| kind != FileType::Directory);
        Ok(Self {
            python: ["bin/python3", "bin/python"].into_iter().find(is_program).map(PathBuf::from),
            is_venv: kind("pyvenv.cfg") == Some(FileType::RegularFile),
            activation: activation(&dir),
        })
    }
}

/// The variables in `rcc_activate.json`, which holofs shows relocated. rcc ignores a file that it cannot use.
fn activation(dir: &Dir) -> Vec<Variable> {
    let text = match dir.read(OsStr::new("rcc_activate.json"), MAX_ACTIVATION) {
        Ok(text) => text,
        Err(error) => {
            tracing::debug!(%error, "no variables of activation scripts");
            return Vec::new();
        }
    };
    parse(&text).unwrap_or_else(|why| {
        tracing::warn!(path = %dir.path().display(), why, "rcc_activate.json of the space is ignored");
        Vec::new()
    })
}

fn parse(text: &[u8]) -> Result<Vec<Variable>, String> {
    let map: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    map.into_iter()
        .map(|(name, value)| match value {
            Value::String(value) => Ok(Variable::new(&name, value)),
            Value::Null => Ok(Variable::new(&name, "")),
            _ => Err(format!("the value of {name} is not a text")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn python3_is_preferred_and_directories_are_no_programs() {
        let dir = tempfile::tempdir().unwrap();
        let facts = || Facts::of(dir.path()).unwrap();
        assert_eq!(facts(), Facts::default());
        std::fs::create_dir_all(dir.path().join("bin/python3")).unwrap();
        std::fs::write(dir.path().join("bin/python"), "").unwrap();
        assert_eq!(facts().python, Some("bin/python".into()));
        std::fs::remove_dir(dir.path().join("bin/python3")).unwrap();
        symlink("python", dir.path().join("bin/python3")).unwrap();
        assert_eq!(facts().python, Some("bin/python3".into()));
        std::fs::remove_file(dir.path().join("bin/python")).unwrap();
        assert_eq!(facts().python, None, "a dangling link is no program");
    }

    #[test]
    fn activation_file_that_is_not_what_rcc_writes_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rcc_activate.json");
        let read = || Facts::of(dir.path()).unwrap().activation;
        for bad in ["", "[]", r#"{"A": 1}"#, r#"{"A": "b""#] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(read(), [], "{bad}");
        }
        std::fs::write(&file, r#"{"B": "x y", "A": null}"#).unwrap();
        assert_eq!(read(), [Variable::new("B", "x y"), Variable::new("A", "")]);
        std::fs::remove_file(&file).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &file,
            FileType::Fifo,
            rustix::fs::Mode::from_bits_truncate(0o600),
            0,
        )
        .unwrap();
        assert_eq!(read(), []);
    }
}
