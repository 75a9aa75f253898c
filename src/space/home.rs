//! Where things are for this user: rcc's home, the shared holotree, holofs's own files.
//!
//! Reads the process environment once, in [`Env::from_process`]; everything after works on the value, so that a
//! test or a flag can stand in for any part of it. It opens nothing but the shared mode's marker, and holofs's own
//! directories to see whose they are.
//!
//! Invariant: every path in an [`Env`] is absolute and lexically clean.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::library::name;
use crate::sys::guarded::{Dir, GuardedError, Trust};

/// Where rcc keeps the holotree that users of one machine share. No variable moves it.
const SHARED_ROOT: &str =
    if cfg!(target_os = "macos") { "/Users/Shared/robocorp/ht" } else { "/opt/robocorp/ht" };

/// The places one invocation works with.
#[derive(Clone, Debug)]
pub struct Env {
    /// `$HOME` as it is, not cleaned: names of spaces are made from its bytes.
    pub home: Option<OsString>,
    /// rcc's home: `--home`, else `$ROBOCORP_HOME`, else `$HOME/.robocorp`.
    pub robocorp_home: PathBuf,
    /// holofs's own files: `$HOLOFS_HOME`, else `holofs` in rcc's home.
    pub holofs_home: PathBuf,
    /// The shared holotree, whether this user shares or not.
    pub shared_root: PathBuf,
}

/// Why the places could not be told.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// Neither `--home`, nor `$ROBOCORP_HOME`, nor `$HOME`.
    #[error("neither ROBOCORP_HOME nor HOME is set")]
    NoHome,
    /// A relative path, and no directory to take it from.
    #[error("the current directory is not readable")]
    NoCurrentDir(#[source] std::io::Error),
}

impl Env {
    /// Reads the process environment.
    ///
    /// # Errors
    /// When it does not say where rcc's home is.
    pub fn from_process() -> Result<Env, EnvError> {
        Env::from_vars(None, &|name| std::env::var_os(name))
    }

    /// As [`Env::from_process`], with rcc's home given on the command line.
    ///
    /// # Errors
    /// When a relative path cannot be made absolute.
    pub fn with_home(robocorp_home: Option<&OsStr>) -> Result<Env, EnvError> {
        Env::from_vars(robocorp_home, &|name| std::env::var_os(name))
    }

    /// The rules, over any set of variables.
    ///
    /// # Errors
    /// As the other constructors.
    pub fn from_vars(flag: Option<&OsStr>, var: &dyn Fn(&str) -> Option<OsString>) -> Result<Env, EnvError> {
        let set = |name: &str| var(name).filter(|v| !v.is_empty());
        let home = var("HOME").filter(|h| !h.is_empty());
        let robocorp_home = match flag.map(OsStr::to_owned).or_else(|| set("ROBOCORP_HOME")) {
            Some(given) => absolute(&expand(&given, var))?,
            None => absolute(Path::new(home.as_ref().ok_or(EnvError::NoHome)?))?.join(".robocorp"),
        };
        let holofs_home = match set("HOLOFS_HOME") {
            Some(given) => absolute(&expand(&given, var))?,
            None => robocorp_home.join("holofs"),
        };
        Ok(Env { home, robocorp_home, holofs_home, shared_root: PathBuf::from(SHARED_ROOT) })
    }

    /// The user part of the names of this user's spaces.
    #[must_use]
    pub fn user7(&self) -> String {
        name::user7(self.home_bytes())
    }

    /// `$HOME` in the form that [`name`] hashes.
    #[must_use]
    pub fn home_bytes(&self) -> Option<&[u8]> {
        self.home.as_deref().map(OsStr::as_bytes)
    }

    /// Whether this user has joined the shared holotree (`rcc holotree init`).
    #[must_use]
    pub fn is_shared(&self) -> bool {
        let marker = self.shared_root.join("lib/catalog/init").join(self.user7());
        std::fs::symlink_metadata(marker).is_ok_and(|m| m.is_file())
    }

    /// The library rcc itself would use now.
    #[must_use]
    pub fn hololib(&self) -> PathBuf {
        if self.is_shared() { self.shared_root.join("lib") } else { self.robocorp_home.join("hololib") }
    }

    /// The directory of the space's own state.
    #[must_use]
    pub fn state_dir(&self, identity: &name::Identity) -> PathBuf {
        self.spaces_dir().join(identity.as_str())
    }

    /// The directory that holds the state of all spaces.
    #[must_use]
    pub fn spaces_dir(&self) -> PathBuf {
        self.holofs_home.join("spaces")
    }

    /// Makes sure that nobody else can put something into holofs's own directories, as far as they are there: who
    /// could, would choose what runs in a space.
    ///
    /// # Errors
    /// With the directory that belongs to somebody else, or that others may write to.
    pub fn check_own_dirs(&self) -> Result<(), GuardedError> {
        let there = |found: Result<Dir, GuardedError>| match found {
            Err(error) if error.is_not_found() => Ok(None),
            found => found.map(Some),
        };
        let Some(home) = there(Dir::open(&self.holofs_home, Trust::Ours))? else { return Ok(()) };
        there(home.open_dir(OsStr::new("spaces"), Trust::Ours))?;
        let Some(cache) = there(home.open_dir(OsStr::new("cache"), Trust::Ours))? else { return Ok(()) };
        for name in ["index", "blobs", "profiles"] {
            there(cache.open_dir(OsStr::new(name), Trust::Ours))?;
        }
        Ok(())
    }

    /// The directory of compiled indexes and raw blobs.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.holofs_home.join("cache")
    }
}

/// Replaces `$NAME` and `${NAME}` as Go's `os.ExpandEnv` does: an unset name becomes nothing.
fn expand(text: &OsStr, var: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    let mut rest = text.as_bytes();
    let mut out = Vec::with_capacity(rest.len());
    while let Some(at) = rest.iter().position(|&b| b == b'$') {
        let (before, after) = rest.split_at(at);
        out.extend_from_slice(before);
        let after = after.get(1..).unwrap_or_default();
        let (name, used) = variable_name(after);
        match std::str::from_utf8(name) {
            Ok("") if used == 0 => out.push(b'$'),
            Ok(name) => out.extend_from_slice(var(name).unwrap_or_default().as_bytes()),
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

/// `path` made absolute and clean, without asking the filesystem: `.` and `..` go by their text, as in rcc.
///
/// # Errors
/// When the path is relative and the current directory is gone.
pub fn absolute(path: &Path) -> Result<PathBuf, EnvError> {
    let full = if path.is_absolute() {
        path.to_owned()
    } else {
        std::env::current_dir().map_err(EnvError::NoCurrentDir)?.join(path)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn env(flag: Option<&str>, vars: &[(&str, &str)]) -> Result<Env, EnvError> {
        let look = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Env::from_vars(flag.map(OsStr::new), &look)
    }

    #[test]
    fn defaults_to_dot_robocorp() {
        let env = env(None, &[("HOME", "/home/me")]).unwrap();
        assert_eq!(env.robocorp_home, Path::new("/home/me/.robocorp"));
        assert_eq!(env.holofs_home, Path::new("/home/me/.robocorp/holofs"));
        assert_eq!(env.hololib(), Path::new("/home/me/.robocorp/hololib"));
    }

    #[test]
    fn flag_wins_over_variable() {
        let vars = [("HOME", "/h"), ("ROBOCORP_HOME", "/r"), ("HOLOFS_HOME", "/state/./x/..")];
        assert_eq!(env(None, &vars).unwrap().robocorp_home, Path::new("/r"));
        let env = env(Some("/flag"), &vars).unwrap();
        assert_eq!(env.robocorp_home, Path::new("/flag"));
        assert_eq!(env.holofs_home, Path::new("/state"));
    }

    #[test]
    fn expands_variables_in_the_home() {
        let vars = [("HOME", "/home/me"), ("X", "deep"), ("ROBOCORP_HOME", "$HOME/${X}/$NOPE/r$")];
        assert_eq!(env(None, &vars).unwrap().robocorp_home, Path::new("/home/me/deep/r$"));
    }

    #[test]
    fn empty_variable_counts_as_unset() {
        let env = env(None, &[("HOME", "/h"), ("ROBOCORP_HOME", "")]).unwrap();
        assert_eq!(env.robocorp_home, Path::new("/h/.robocorp"));
    }

    #[test]
    fn relative_home_is_made_absolute() {
        let env = env(Some("rel/../x"), &[]).unwrap();
        assert_eq!(env.robocorp_home, std::env::current_dir().unwrap().join("x"));
        assert_eq!(env.user7(), "badcafe");
    }

    #[test]
    fn no_home_at_all_is_an_error() {
        assert!(matches!(env(None, &[]), Err(EnvError::NoHome)));
    }

    #[test]
    fn shared_mode_needs_a_regular_file_as_marker() {
        let dir = tempfile::tempdir().unwrap();
        let mut env = env(None, &[("HOME", "/root")]).unwrap();
        env.shared_root = dir.path().to_owned();
        assert!(!env.is_shared());
        let init = dir.path().join("lib/catalog/init");
        std::fs::create_dir_all(init.join("720c7a8")).unwrap();
        assert!(!env.is_shared());
        std::fs::remove_dir(init.join("720c7a8")).unwrap();
        std::fs::write(init.join("720c7a8"), "OK!").unwrap();
        assert!(env.is_shared());
        assert_eq!(env.hololib(), dir.path().join("lib"));
    }
}
