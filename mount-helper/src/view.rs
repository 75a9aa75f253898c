//! Opens files through a read-only clone of their mount.
//!
//! For each open through the FUSE mount, the kernel opens a registered file again with the requested access mode. It checks
//! no permission bits, but it does check whether the *mount* of the registered file is writable. A file that may only be
//! read is therefore registered through a read-only, detached clone of its mount.
//!
//! The caller passes the function that clones a mount, because that needs CAP_SYS_ADMIN and the mount helper makes the
//! capability effective only for that call. Invariant: [`Views::open`] returns the same inode as the given file, and every
//! open for writing through it fails.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// Makes a read-only, detached clone of a mount. See [`read_only_clone`](crate::passthrough::read_only_clone).
pub type CloneMount = fn(BorrowedFd<'_>) -> Result<OwnedFd, Errno>;

/// How many clones are kept. A daemon registers files of one or two mounts.
const MOST: usize = 4;

/// Opens files through read-only clones of their mounts.
#[derive(Debug)]
pub struct Views {
    clone: CloneMount,
    views: Vec<View>,
}

/// The read-only clone of one mount.
#[derive(Debug)]
struct View {
    /// The id of the original mount.
    mount: u64,
    /// The mountpoint of the original mount.
    path: PathBuf,
    root: OwnedFd,
}

/// A file or directory, and the mount through which it was opened.
#[derive(PartialEq, Eq, Debug)]
pub struct Identity {
    device: (u32, u32),
    inode: u64,
    mount: u64,
}

impl Views {
    /// No clone is made yet.
    #[must_use]
    pub fn new(clone: CloneMount) -> Self {
        Self { clone, views: Vec::new() }
    }

    /// Opens the same file for reading, through a read-only clone of its mount.
    ///
    /// # Errors
    /// Those of cloning the mount and of opening the file.
    pub fn open(&mut self, file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let wanted = identity(file)?;
        match self.by_path(file, &wanted) {
            Some(opened) => Ok(opened),
            // The file was renamed or removed, or another mount covers it.
            None => self.alone(file, &wanted),
        }
    }

    /// Opens the file by its path in a clone of its mount. None when the path does not lead to the file.
    fn by_path(&mut self, file: BorrowedFd<'_>, wanted: &Identity) -> Option<OwnedFd> {
        let path = path_of(file)?;
        if !self.views.iter().any(|view| view.mount == wanted.mount) {
            let view = self.view(wanted.mount)?;
            if self.views.len() == MOST {
                self.views.remove(0);
            }
            self.views.push(view);
        }
        let view = self.views.iter().find(|view| view.mount == wanted.mount)?;
        let below = path.strip_prefix(&view.path).ok()?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = rustix::fs::openat2(&view.root, below, FLAGS, Mode::empty(), resolve).ok()?;
        is_same(&opened, wanted).then_some(opened)
    }

    /// Opens the file through a clone of the file alone. Dropping such a clone takes the kernel half a millisecond.
    fn alone(&self, file: BorrowedFd<'_>, wanted: &Identity) -> Result<OwnedFd, Errno> {
        let clone = (self.clone)(file)?;
        let path = format!("/proc/self/fd/{}", clone.as_raw_fd());
        let opened = rustix::fs::open(path, FLAGS & !OFlags::NOFOLLOW, Mode::empty())?;
        if is_same(&opened, wanted) { Ok(opened) } else { Err(Errno::STALE) }
    }

    fn view(&self, mount: u64) -> Option<View> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        let path = mount_point(&table, mount)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
        if identity(root.as_fd()).ok()?.mount != mount {
            return None;
        }
        Some(View { mount, path, root: (self.clone)(root.as_fd()).ok()? })
    }
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Identifies an open file or directory.
///
/// # Errors
/// ENOSYS if the kernel does not tell the mount, and those of statx(2).
pub fn identity(fd: BorrowedFd<'_>) -> Result<Identity, Errno> {
    // Without a request to a FUSE daemon: one that mounted on the directory may not answer.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(fd, "", flags, wanted)?;
    if !StatxFlags::from_bits_retain(found.stx_mask).contains(wanted) {
        return Err(Errno::NOSYS);
    }
    Ok(Identity {
        device: (found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        mount: found.stx_mnt_id,
    })
}

/// Whether `opened` is the wanted file, but on another mount.
fn is_same(opened: &OwnedFd, wanted: &Identity) -> bool {
    identity(opened.as_fd()).is_ok_and(|found| {
        (found.device, found.inode) == (wanted.device, wanted.inode) && found.mount != wanted.mount
    })
}

/// The current path of an open file or directory. None if it was removed from the caller's tree.
#[must_use]
pub fn path_of(file: BorrowedFd<'_>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = rustix::fs::readlinkat(CWD, link, Vec::new()).ok()?.into_bytes();
    Some(std::ffi::OsString::from_vec(path).into()).filter(|path: &PathBuf| path.is_absolute())
}

/// The mountpoint of a mount in `/proc/self/mountinfo`. None when its path contains an escaped character.
fn mount_point(table: &str, mount: u64) -> Option<PathBuf> {
    let wanted = mount.to_string();
    let mut fields = table.lines().map(|line| line.split(' '));
    let path = fields.find_map(|mut line| (line.next()? == wanted).then(|| line.nth(3)).flatten())?;
    (!path.contains('\\')).then(|| Path::new(path).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_the_fifth_field() {
        let table =
            "21 1 254:0 / / rw - ext4 /dev/vda rw\n36 21 0:32 /a /b rw - tmpfs x rw\n37 21 0:3 / /c\\040d rw";
        assert_eq!(mount_point(table, 36), Some("/b".into()));
        assert_eq!(mount_point(table, 21), Some("/".into()));
        assert_eq!(mount_point(table, 37), None);
        assert_eq!(mount_point(table, 3), None);
        assert_eq!(mount_point("", 3), None);
    }
}
