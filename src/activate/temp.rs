//! The directory for temporary files of the programs in a space: `ROBOCORP_HOME/temp/<16 hex digits>`, as in rcc.
//!
//! rcc names it in `TEMP`, and removes it after a task. The reader of `holofs variables` may use it later, so it stays there
//! with the mark `recycle.now`, and rcc or holofs removes it two days after its last change.
//!
//! Invariant: only directories of this user with the mark are swept.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::sys::guarded::{Access, Dir, GuardedError, Problem, Trust};
use crate::sys::tree;

/// How long a directory with the mark stays.
const KEPT: Duration = Duration::from_secs(48 * 3600);

const MARK: &str = "recycle.now";

/// A directory for temporary files, made for one command.
#[derive(Debug)]
pub struct Temp {
    parent: Dir,
    name: OsString,
    path: PathBuf,
}

impl Temp {
    /// Makes the directory below rcc's home.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(robocorp_home: &Path) -> Result<Self, GuardedError> {
        let place = robocorp_home.join("temp");
        let parent = match Dir::open(&place, Trust::Shared) {
            Err(error) if error.is_not_found() => {
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(&place);
                made.map_err(|error| failed(&place)(crate::sys::errno_of(&error)))?;
                Dir::open(&place, Trust::Shared)?
            }
            found => found?,
        };
        loop {
            let name = OsString::from(format!("{:016x}", RandomState::new().build_hasher().finish()));
            let path = place.join(&name);
            match rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o750)) {
                Ok(()) => return Ok(Self { parent, name, path }),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(&path)(errno)),
            }
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Marks it for a later removal, and removes those that were marked long ago.
    pub fn leave(self) {
        let marked = self
            .parent
            .open_dir(&self.name, Trust::Owned)
            .and_then(|dir| dir.create_new(OsStr::new(MARK), Access::Write, 0o644))
            .and_then(|mut file| {
                use std::io::Write;
                file.write_all(b"True").map_err(|error| failed(&self.path)(crate::sys::errno_of(&error)))
            });
        if let Err(error) = marked {
            tracing::warn!(%error, "this directory for temporary files will not be removed");
        }
        self.sweep(SystemTime::now());
    }

    /// Removes it.
    pub fn remove(self) {
        if let Err(errno) = tree::remove(&self.parent, self.name.as_os_str()) {
            tracing::warn!(path = %self.path.display(), %errno, "cannot remove the directory for temporary files");
        }
    }

    /// Removes the directories beside it that were marked long ago.
    fn sweep(&self, now: SystemTime) {
        let Ok(entries) = std::fs::read_dir(self.parent.path()) else { return };
        for name in entries.flatten().map(|entry| entry.file_name()) {
            if self.is_old(&name, now)
                && let Err(errno) = tree::remove(&self.parent, name.as_os_str())
            {
                tracing::debug!(?name, %errno, "an old directory for temporary files is not removed");
            }
        }
    }

    fn is_old(&self, name: &OsStr, now: SystemTime) -> bool {
        let is_named_so = name.len() == 16 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit);
        // Another user's directory is not opened, and a directory without the mark is in use.
        let Some(dir) = is_named_so.then(|| self.parent.open_dir(name, Trust::Owned).ok()).flatten() else {
            return false;
        };
        let changed = rustix::fs::fstat(&dir).ok().and_then(|stat| u64::try_from(stat.st_mtime).ok());
        let changed = changed.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        dir.stat(OsStr::new(MARK)).is_ok()
            && changed.and_then(|changed| now.duration_since(changed).ok()).is_some_and(|age| age > KEPT)
    }
}

fn failed(path: &Path) -> impl Fn(Errno) -> GuardedError + use<> {
    let path = path.to_owned();
    move |errno| GuardedError { path: path.clone(), problem: Problem::Os(errno) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_directories_are_swept_and_only_when_they_are_old() {
        let home = tempfile::tempdir().unwrap();
        let make = || Temp::make(home.path()).unwrap();
        let (marked, running) = (make(), make());
        let (left, kept) = (marked.path().to_owned(), running.path().to_owned());
        assert_eq!(left.parent(), Some(home.path().join("temp").as_path()));
        let named = left.file_name().unwrap().to_str().unwrap();
        assert!(named.len() == 16 && named.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        marked.leave();
        assert_eq!(std::fs::read(left.join(MARK)).unwrap(), b"True");
        let other = home.path().join("temp/mine");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join(MARK), "").unwrap();
        let sweep = |after| running.sweep(SystemTime::now() + after);
        sweep(Duration::from_secs(47 * 3600));
        assert!(left.exists());
        sweep(Duration::from_secs(49 * 3600));
        assert!(!left.exists() && kept.exists() && other.exists());
        running.remove();
        assert!(!kept.exists());
    }

    #[test]
    fn home_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("home"), "").unwrap();
        assert!(Temp::make(&dir.path().join("home")).is_err());
    }
}
