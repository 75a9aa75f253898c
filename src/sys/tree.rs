//! Removes directories with everything in them.
//!
//! The tree is walked by descriptors. A symbolic link is removed and never followed, even if somebody replaces a directory
//! by a link during the walk. Each level of the tree takes one descriptor and one stack frame.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// Removes an entry of a directory, with everything below it. Does nothing when there is no such entry.
///
/// # Errors
/// The errno of the first removal that failed.
pub fn remove(dir: impl AsFd, name: impl Arg + Copy) -> Result<(), Errno> {
    remove_with(dir, name, &|| ())
}

/// As [`remove`]. Calls `each` after the removal of each entry, to show progress.
///
/// # Errors
/// As [`remove`].
pub fn remove_with(dir: impl AsFd, name: impl Arg + Copy, each: &dyn Fn()) -> Result<(), Errno> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) => {
            each();
            return Ok(());
        }
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    clear(rustix::fs::openat(&dir, name, flags, Mode::empty())?, each)?;
    rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)?;
    each();
    Ok(())
}

/// Removes everything in a directory, which may be open with `O_PATH`. Calls `each` as [`remove_with`] does.
///
/// # Errors
/// As [`remove`].
pub fn clear(dir: OwnedFd, each: &dyn Fn()) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(&dir)?;
    // A directory of the tree may have lost the permissions that this needs. Root needs none.
    if stat.st_mode & 0o700 != 0o700 && stat.st_uid == rustix::process::geteuid().as_raw() {
        // By /proc: fchmod(2) takes no O_PATH descriptor, and a directory without permissions cannot be opened without it.
        rustix::fs::chmod(super::fd::proc_path(&dir), Mode::RWXU)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = rustix::fs::openat(&dir, ".", flags, Mode::empty())?;
    drop(dir);
    let mut entries = rustix::fs::Dir::new(listed)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            remove_with(entries.fd()?, entry.file_name(), each)?;
        }
    }
    Ok(())
}

/// The sum of the sizes in bytes of all files in a directory. What cannot be read is left out, and links are not followed.
#[must_use]
pub fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| match entry.metadata().ok()? {
        found if found.is_dir() => Some(size(&entry.path())),
        found => Some(found.len()),
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::CWD;

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn directories_without_permissions_are_removed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, kept) = (dir.path().join("tree"), dir.path().join("kept"));
        std::fs::create_dir_all(tree.join("closed/inner/deep")).unwrap();
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "").unwrap();
        std::fs::write(tree.join("closed/inner/file"), "").unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("closed/link")).unwrap();
        chmod(&kept, 0o500);
        chmod(&tree.join("closed/inner/deep"), 0o000);
        chmod(&tree.join("closed/inner"), 0o500);
        chmod(&tree.join("closed"), 0o000);
        remove(CWD, tree.as_path()).unwrap();
        assert!(!tree.exists() && kept.join("file").exists());
        assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o500);
        remove(CWD, tree.as_path()).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        for name in std::iter::once("tree").chain(std::iter::repeat_n("a-directory", 500)) {
            rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, name, flags, Mode::empty()).unwrap();
        }
        remove(CWD, dir.path().join("tree").as_path()).unwrap();
    }
}
