//! Files opened again by a mount that cannot be written to.
//!
//! The kernel opens a registered file anew for each open through the FUSE mount, with the access that this open asks
//! for, and checks no permission bits. It does check whether the *mount* that the file was opened by may be written to.
//! So a file that may only be read is registered by a read-only clone of its mount, which is attached nowhere.
//!
//! It makes no mount by itself: that takes CAP_SYS_ADMIN, which the mount helper has in force only where it is needed.
//! Invariant: what [`Views::open`] returns is the same inode as the file that was given, and no open for writing by its
//! path can succeed.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// Clones the mount, or the part of it, that a descriptor leads to: detached, read-only, without what is mounted in it.
pub type CloneMount = fn(BorrowedFd<'_>) -> Result<OwnedFd, Errno>;

/// Mounts whose clones are kept. A daemon registers files of one or two.
const MOST: usize = 4;

/// Opens files by read-only clones of their mounts.
#[derive(Debug)]
pub struct Views {
    clone: CloneMount,
    views: Vec<View>,
}

/// The read-only clone of one mount.
#[derive(Debug)]
struct View {
    /// The number of the mount that was cloned.
    mount: u64,
    /// Where that mount is.
    path: PathBuf,
    root: OwnedFd,
}

/// Which file it is, and by which mount it was opened.
#[derive(PartialEq, Eq)]
struct Identity {
    device: (u32, u32),
    inode: u64,
    mount: u64,
}

impl Views {
    /// None yet.
    #[must_use]
    pub fn new(clone: CloneMount) -> Self {
        Self { clone, views: Vec::new() }
    }

    /// The same file, opened for reading by a mount that cannot be written to.
    ///
    /// # Errors
    /// What cloning the mount or opening the file may answer.
    pub fn open(&mut self, file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let wanted = identity(file)?;
        match self.by_path(file, &wanted) {
            Some(opened) => Ok(opened),
            // It was renamed or removed meanwhile, or something is mounted over it.
            None => self.alone(file, &wanted),
        }
    }

    /// By its path below the clone of its mount. None when another file is there, or none.
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

    /// By a clone of the file alone. Giving such a clone up makes the kernel wait, half a millisecond for each file.
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

fn identity(fd: BorrowedFd<'_>) -> Result<Identity, Errno> {
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, wanted)?;
    Ok(Identity {
        device: (found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        mount: found.stx_mnt_id,
    })
}

/// Whether it is the file, by another mount than the one that it was opened by.
fn is_same(opened: &OwnedFd, wanted: &Identity) -> bool {
    identity(opened.as_fd()).is_ok_and(|found| {
        (found.device, found.inode) == (wanted.device, wanted.inode) && found.mount != wanted.mount
    })
}

fn path_of(file: BorrowedFd<'_>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = rustix::fs::readlinkat(CWD, link, Vec::new()).ok()?.into_bytes();
    Some(std::ffi::OsString::from_vec(path).into()).filter(|path: &PathBuf| path.is_absolute())
}

/// Where a mount of `/proc/self/mountinfo` is. None when its path holds a character that is escaped there.
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
