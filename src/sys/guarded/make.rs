//! Creates directories where other users can write, with an exact mode that does not depend on the umask.
//!
//! Invariant: the mode of a directory is changed by its descriptor, and only if the directory belongs to this user.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::fd::proc_path;
use super::{Dir, GuardedError, Problem, Trust};

impl Dir {
    /// Opens a directory by its path, or creates it. With `exactly`, the umask does not apply to `mode`. Missing directories
    /// above it are created with mode 0750 and the umask. A symbolic link in the last component is followed if it belongs to
    /// this user or root.
    ///
    /// # Errors
    /// When it can neither be opened nor created.
    pub fn open_or_make(path: &Path, mode: u32, exactly: bool) -> Result<Self, GuardedError> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Self::open(path, Trust::Shared);
        };
        let above = match Self::open(above, Trust::Shared) {
            Err(error) if error.is_not_found() => Self::open_or_make(above, 0o750, false)?,
            found => found?,
        };
        above.open_or_make_at(name, mode, exactly)
    }

    /// Like [`Dir::open_or_make`], for a directory in this one.
    ///
    /// # Errors
    /// When it can neither be opened nor created.
    pub fn open_or_make_at(&self, name: &OsStr, mode: u32, exactly: bool) -> Result<Self, GuardedError> {
        match self.open_by_own_link(name) {
            Err(error) if error.is_not_found() => {}
            found => return found,
        }
        self.make_dir_with(name, mode, exactly).map(|(dir, _)| dir)
    }

    /// Opens a directory in this one. Follows a symbolic link if it belongs to this user or root. A link of another user
    /// could lead anywhere.
    fn open_by_own_link(&self, name: &OsStr) -> Result<Self, GuardedError> {
        let path = self.path.join(name);
        let failed = GuardedError::os(&path);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat(&self.fd, name, flags, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&found).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return self.open_dir(name, Trust::Shared);
        }
        let (owner, wanted) = (stat.st_uid, rustix::process::geteuid().as_raw());
        if owner != wanted && owner != 0 {
            return Err(GuardedError::new(&path, Problem::Owner { owner, wanted }));
        }
        // By descriptor, because another link may have that name by now.
        let target = rustix::fs::readlinkat(&found, "", Vec::new()).map_err(failed)?;
        let fd = rustix::fs::openat(&self.fd, target, super::DIRECTORY, Mode::empty()).map_err(failed)?;
        Ok(Self { fd, path })
    }

    /// Opens a directory in this one, or creates it. With `exactly`, the umask does not apply to `mode`. Returns whether it
    /// was created.
    ///
    /// # Errors
    /// As [`Dir::open_dir`], and those of mkdir(2).
    pub fn make_dir_with(
        &self,
        name: &OsStr,
        mode: u32,
        exactly: bool,
    ) -> Result<(Self, bool), GuardedError> {
        let made = match rustix::fs::mkdirat(&self.fd, name, Mode::from_bits_truncate(mode)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(self.failed(name)(errno)),
        };
        let dir = self.open_dir(name, Trust::Shared)?;
        if made && exactly {
            dir.widen(mode)?;
        }
        Ok((dir, made))
    }

    /// Adds the bits of `mode` that the umask removed from a new directory. mkdir(2) returns no descriptor, so somebody may
    /// have renamed another directory to this name before it was opened. The mode is changed only if the directory belongs
    /// to this user, is empty, and has no other mode bits than `mode`.
    fn widen(&self, mode: u32) -> Result<(), GuardedError> {
        let found = self.own_mode()?;
        let (bits, set_id) = (found & 0o1777, found & 0o6000);
        if bits == mode {
            return Ok(());
        }
        if bits & !mode != 0 || !self.is_empty()? {
            return Err(GuardedError::new(&self.path, Problem::Exchanged));
        }
        self.set_mode(mode | set_id)
    }

    /// Changes the mode of a directory of this user, by its descriptor.
    ///
    /// # Errors
    /// When it belongs to another user, and those of chmod(2).
    pub fn set_mode(&self, mode: u32) -> Result<(), GuardedError> {
        self.own_mode()?;
        // By /proc: fchmod(2) takes no O_PATH descriptor, and a directory without permissions cannot be opened without it.
        rustix::fs::chmod(proc_path(&self.fd), Mode::from_raw_mode(mode))
            .map_err(GuardedError::os(&self.path))
    }

    /// Whether the directory is empty.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_empty(&self) -> Result<bool, GuardedError> {
        Ok(self.names()?.is_empty())
    }

    /// The names of its entries, in no order.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn names(&self) -> Result<Vec<OsString>, GuardedError> {
        let failed = GuardedError::os(&self.path);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(self.readable()?).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
            }
        }
        Ok(names)
    }

    /// Syncs the filesystem of the directory to the disk.
    ///
    /// # Errors
    /// When the directory cannot be opened for reading, and those of syncfs(2).
    pub fn sync_filesystem(&self) -> Result<(), GuardedError> {
        rustix::fs::syncfs(self.readable()?).map_err(GuardedError::os(&self.path))
    }

    /// Whether `name` is the entry of this open file or directory. A file that was locked may have been removed or
    /// replaced in the meantime.
    #[must_use]
    pub fn still_has(&self, name: &OsStr, opened: impl AsFd) -> bool {
        match (rustix::fs::fstat(opened), self.stat(name)) {
            (Ok(ours), Ok(there)) => (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino),
            _ => false,
        }
    }

    pub(super) fn readable(&self) -> Result<OwnedFd, GuardedError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, ".", flags, Mode::empty()).map_err(GuardedError::os(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn opened(path: &Path) -> Dir {
        Dir::open(path, Trust::Shared).unwrap()
    }

    #[test]
    fn a_new_directory_has_the_exact_mode_and_an_existing_one_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let here = opened(dir.path());
        let (made, is_new) = here.make_dir_with("a".as_ref(), 0o777, true).unwrap();
        assert!(is_new && mode(&dir.path().join("a")) == 0o777 && made.is_empty().unwrap());
        made.set_mode(0o711).unwrap();
        assert!(!here.make_dir_with("a".as_ref(), 0o777, true).unwrap().1);
        assert_eq!(mode(&dir.path().join("a")), 0o711);
        let deep = dir.path().join("x/y/z");
        Dir::open_or_make(&deep, 0o777, true).unwrap();
        assert_eq!(mode(&deep), 0o777);
        assert_eq!(mode(&dir.path().join("x/y")) & !0o750, 0);
    }

    #[test]
    fn a_link_is_neither_replaced_nor_followed() {
        let dir = tempfile::tempdir().unwrap();
        let private = dir.path().join("private");
        std::fs::create_dir(&private).unwrap();
        opened(&private).set_mode(0o700).unwrap();
        symlink(&private, dir.path().join("link")).unwrap();
        let error = opened(dir.path()).make_dir_with("link".as_ref(), 0o777, true).unwrap_err();
        assert!(error.to_string().contains("a link"), "{error}");
        assert_eq!(mode(&private), 0o700);
    }

    #[test]
    fn own_link_to_a_directory_is_followed_and_another_users_is_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("there")).unwrap();
        let link = dir.path().join("link");
        symlink("there", &link).unwrap();
        let found = Dir::open_or_make(&link, 0o700, false).unwrap();
        std::fs::write(link.join("file"), "x").unwrap();
        assert!(!found.is_empty().unwrap() && found.path() == link);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
            let error = Dir::open_or_make(&link, 0o700, false).unwrap_err();
            assert!(matches!(error.problem, Problem::Owner { owner: 12345, .. }), "{error}");
        }
        symlink("nowhere", dir.path().join("broken")).unwrap();
        assert!(Dir::open_or_make(&dir.path().join("broken"), 0o700, false).is_err());
    }

    /// Tests the race between mkdir and chmod: another thread keeps swapping the new directory.
    #[test]
    fn a_directory_that_was_swapped_in_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (base, private) = (dir.path().join("base"), dir.path().join("private"));
        for path in [&base, &private] {
            std::fs::create_dir(path).unwrap();
            opened(path).set_mode(0o700).unwrap();
        }
        std::fs::write(private.join("secret"), "x").unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let name = base.join("a");
                    if std::fs::rename(&name, base.join("away")).is_ok() {
                        // The other thread may have made a directory there.
                        drop(symlink(&private, &name));
                        drop(std::fs::remove_file(&name));
                        drop(std::fs::remove_dir(base.join("away")));
                        drop(std::fs::rename(&private, &name));
                        drop(std::fs::rename(&name, &private));
                    }
                }
            });
            for _ in 0..200 {
                let done = opened(&base).make_dir_with("a".as_ref(), 0o777, true);
                // Success and failure are both possible.
                drop(done);
                drop(std::fs::remove_dir(base.join("a")));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let found = if private.exists() { private } else { base.join("a") };
        assert_eq!(mode(&found), 0o700);
    }

    #[test]
    fn a_replaced_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (opened, name) = (opened(dir.path()), OsStr::new("lock"));
        let file = std::fs::File::create(&path).unwrap();
        assert!(opened.still_has(name, &file));
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        assert!(!opened.still_has(name, &file));
        std::fs::File::create(&path).unwrap();
        assert!(!opened.still_has(name, &file));
    }
}
