//! Replaces a file in one step, by writing another one and renaming it.
//!
//! A reader sees the old content or the new content, never a part of either. After an error the old file is still there, and
//! nothing else. What a loss of power may do is the caller's choice: see [`Durability`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::{Access, Dir, Problem, split};

/// What has reached the disk when a file was replaced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Durability {
    /// Nothing. After a loss of power the file has the old content, the new one, a part of it, or none.
    CacheOnly,
    /// The content, before the file got its name. After a loss of power the file has the old content or the new one.
    Data,
    /// The content and the name. After a loss of power the file has the new content.
    DataAndName,
}

/// Who may replace the same file at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writers {
    /// Only the caller, who holds a lock. The temporary file always has the same name, so that the next call removes what
    /// a killed process left.
    One,
    /// Anybody. Every temporary file has a unique name. The file of a killed process stays until something sweeps it.
    Many,
}

/// How a file is replaced.
#[derive(Clone, Copy, Debug)]
pub struct Replace {
    /// Permission bits of the new file, before the umask.
    pub mode: u32,
    /// Who else replaces it.
    pub writers: Writers,
    /// What is waited for.
    pub durability: Durability,
}

/// In the name of every temporary file. rcc's temporary files have it too.
pub const PART: &str = ".part#";

/// A new content that is written and has no name yet. Dropping it removes it.
#[derive(Debug)]
pub struct Staged<'d> {
    dir: &'d Dir,
    temporary: Option<OsString>,
    name: OsString,
    durability: Durability,
}

impl Staged<'_> {
    /// Gives the file its name.
    ///
    /// # Errors
    /// Those of rename(2), and of fsync(2) for [`Durability::DataAndName`].
    pub fn publish(mut self) -> io::Result<()> {
        if let Some(temporary) = &self.temporary {
            self.dir.rename(temporary, &self.name)?;
            self.temporary = None;
        }
        if self.durability == Durability::DataAndName {
            self.dir.sync()?;
        }
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take()
            && let Err(error) = self.dir.remove_file(&temporary)
        {
            tracing::debug!(%error, "a temporary file is left behind");
        }
    }
}

impl Dir {
    /// Replaces `name` in this directory by a file that `fill` writes.
    ///
    /// # Errors
    /// Those of `fill`, open(2), fsync(2) and rename(2).
    pub fn replace(
        &self,
        name: &OsStr,
        how: Replace,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<()> {
        self.stage(name, how, fill)?.publish()
    }

    /// The first half of [`Dir::replace`]: everything but the name.
    ///
    /// # Errors
    /// Those of `fill`, open(2) and fsync(2).
    pub fn stage(
        &self,
        name: &OsStr,
        how: Replace,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<Staged<'_>> {
        let (temporary, mut file) = self.create_temporary(name, how)?;
        let staged = Staged {
            dir: self,
            temporary: Some(temporary),
            name: name.to_owned(),
            durability: how.durability,
        };
        fill(&mut file)?;
        if how.durability >= Durability::Data {
            file.sync_data()?;
        }
        Ok(staged)
    }

    fn create_temporary(&self, name: &OsStr, how: Replace) -> io::Result<(OsString, File)> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        if how.writers == Writers::One {
            let mut temporary = name.to_owned();
            temporary.push(format!("{PART}holofs"));
            // Removed, not truncated: it could be a link or a FIFO.
            self.remove_file(&temporary)?;
            let file = self.create_new(&temporary, Access::Write, how.mode)?;
            return Ok((temporary, file));
        }
        loop {
            // rcc takes no name with a leading dot for a catalog.
            let mut temporary = OsString::from(".");
            temporary.push(name);
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            temporary.push(format!("{PART}{}.{number}", std::process::id()));
            match self.create_new(&temporary, Access::Write, how.mode) {
                // A process in another container may have the same number.
                Err(error) if error.problem == Problem::Os(Errno::EXIST) => {}
                made => return Ok((temporary, made?)),
            }
        }
    }
}

/// As [`Dir::replace`], by the file's path.
///
/// # Errors
/// As [`Dir::replace`], and when the directory cannot be opened.
pub fn replace(path: &Path, how: Replace, bytes: &[u8]) -> io::Result<()> {
    let (dir, name) = split(path)?;
    dir.replace(name, how, |file| io::Write::write_all(file, bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::super::Trust;
    use super::*;

    const HOW: [Replace; 3] = [
        Replace { mode: 0o600, writers: Writers::One, durability: Durability::CacheOnly },
        Replace { mode: 0o640, writers: Writers::Many, durability: Durability::Data },
        Replace { mode: 0o600, writers: Writers::One, durability: Durability::DataAndName },
    ];

    fn names(dir: &Path) -> Vec<OsString> {
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for (n, how) in HOW.into_iter().enumerate() {
            replace(&path, how, &vec![b'x'; n + 1]).unwrap();
            let found = std::fs::metadata(&path).unwrap();
            assert_eq!((found.len(), found.permissions().mode() & 0o777), (n as u64 + 1, how.mode));
            assert_eq!(names(dir.path()), ["file"]);
        }
    }

    #[test]
    fn a_failure_leaves_the_old_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "old").unwrap();
        let opened = Dir::open(dir.path(), Trust::Owned).unwrap();
        for how in HOW {
            let failed = opened.replace(OsStr::new("file"), how, |file| {
                file.write_all(b"half")?;
                Err(io::Error::other("no more"))
            });
            assert_eq!(failed.unwrap_err().to_string(), "no more");
            assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"old");
            std::fs::create_dir_all(dir.path().join("dir")).unwrap();
            assert!(replace(&dir.path().join("dir"), how, b"x").is_err());
            std::fs::remove_dir(dir.path().join("dir")).unwrap();
            assert_eq!(names(dir.path()), ["file"]);
        }
    }

    #[test]
    fn a_link_with_the_temporary_name_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("file.part#holofs")).unwrap();
        replace(&dir.path().join("file"), HOW[0], b"x").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert_eq!(names(dir.path()).len(), 2);
    }
}
