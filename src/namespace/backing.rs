//! Backing files: system calls on their marks, permission bits, owners, times and extended attributes, and how they are
//! opened.
//!
//! Many descriptors of the namespace are `O_PATH` descriptors, which several system calls refuse. The functions here
//! accept both kinds. The format of marks is in [`mark`](crate::space::upper::mark).

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::Namespace;
use super::table::{InUpper, Node, Pin};
use super::types::{Attr, Error, Ino, Kind, Result, SetTime, Time, upper as call};
use crate::space::upper::entry;
use crate::space::upper::mark::{
    BAD_MODE, CTIME_XATTR, KeptCtime, MARK_XATTR, MODE_XATTR, Mark, OWN_XATTRS, mode_text, parse_mode,
};
use crate::sys::fd::proc_path;

/// The longest value of an extended attribute, and the longest list of names, that the kernel returns.
const XATTR_MAX: usize = 1 << 16;

/// Makes a system call on an open file. If the call refuses the descriptor because it is an `O_PATH` descriptor, the
/// call is made by path, which takes twice as long.
fn by_fd_or_path<T>(
    fd: BorrowedFd<'_>,
    by_fd: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>,
    by_path: impl FnOnce(&str) -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    match by_fd(fd) {
        Err(Errno::BADF) => by_path(&proc_path(fd)),
        done => done,
    }
}

/// Writes the mark of a file.
pub(crate) fn write_mark(fd: BorrowedFd<'_>, mark: Mark) -> Result<()> {
    set_xattr(fd, MARK_XATTR, mark.text().as_bytes(), XattrFlags::empty())
}

/// The permission bits in the mode attribute; None when there is no such attribute.
pub(crate) fn read_mode(fd: BorrowedFd<'_>) -> Result<Option<u32>> {
    let mut buffer = [0u8; 8];
    let Some(text) = short_xattr(fd, MODE_XATTR, &mut buffer)? else { return Ok(None) };
    parse_mode(text).map(Some).ok_or(Error::Damaged { name: String::new(), why: BAD_MODE })
}

/// The value of one of our own attributes, read in one system call; None when there is no such attribute.
pub(crate) fn short_xattr<'b>(
    fd: BorrowedFd<'_>,
    name: &CStr,
    buffer: &'b mut [u8],
) -> Result<Option<&'b [u8]>> {
    match rustix::fs::getxattr(proc_path(fd), name, &mut *buffer) {
        Ok(len) => Ok(buffer.get(..len)),
        Err(Errno::NODATA) => Ok(None),
        Err(errno) => Err(call("getxattr")(errno)),
    }
}

/// The permission bits that the daemon itself needs on a file.
fn needed(kind: Kind) -> u32 {
    match kind {
        Kind::Dir => 0o700,
        Kind::File | Kind::Symlink => 0o600,
        Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => 0,
    }
}

/// Sets the permission bits of a file, and returns what [`read_mode`] returns from now on.
///
/// If the bits lack what the daemon needs, the file gets the needed bits as well, and the real ones go into the mode
/// attribute. While there is such an attribute, the bits of the file do not count. So the last of the two steps is
/// the one that becomes visible, and a failure before it changes nothing.
pub(crate) fn write_mode(fd: BorrowedFd<'_>, kind: Kind, mode: u32, old: Option<u32>) -> Result<Option<u32>> {
    let mode = mode & 0o7777;
    let backing = Mode::from_raw_mode(mode | needed(kind));
    let chmod = || {
        let done =
            by_fd_or_path(fd, |fd| rustix::fs::fchmod(fd, backing), |path| rustix::fs::chmod(path, backing));
        done.map_err(call("chmod"))
    };
    let lacking = mode & needed(kind) != needed(kind);
    let hold = || set_xattr(fd, MODE_XATTR, mode_text(mode).as_bytes(), XattrFlags::empty());
    let release = || match remove_xattr(fd, MODE_XATTR) {
        Ok(()) | Err(Error::NoAttribute) => Ok(()),
        Err(error) => Err(error),
    };
    if lacking && old.is_none() {
        hold()?;
        chmod().inspect_err(|_| {
            if let Err(second) = release() {
                tracing::error!(%second, "a change of mode failed and could not be undone");
            }
        })?;
    } else {
        chmod()?;
        if lacking {
            hold()?;
        } else if old.is_some() {
            release()?;
        }
    }
    Ok(lacking.then_some(mode))
}

/// Writes the ctime that a directory is to show.
pub(crate) fn write_ctime(fd: &impl AsFd, kept: KeptCtime) -> Result<()> {
    set_xattr(fd.as_fd(), CTIME_XATTR, kept.text().as_bytes(), XattrFlags::empty())
}

/// Sets owner and group of a file.
pub(crate) fn write_owner(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let uid = uid.map(rustix::fs::Uid::from_raw);
    let gid = gid.map(rustix::fs::Gid::from_raw);
    rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH).map_err(call("chown"))
}

/// Sets the times of access and modification of a file.
pub(crate) fn write_times(fd: BorrowedFd<'_>, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
    let spec = |time: Option<SetTime>| match time {
        None => rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(SetTime::Now) => rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(SetTime::At(time)) => rustix::fs::Timespec { tv_sec: time.sec, tv_nsec: i64::from(time.nsec) },
    };
    let times = rustix::fs::Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    let done = by_fd_or_path(
        fd,
        |fd| rustix::fs::futimens(fd, &times),
        |path| rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::empty()),
    );
    done.map_err(call("utimensat"))
}

/// Sets the times of access and modification back to those of an earlier stat(2).
pub(crate) fn put_times_back(fd: &impl AsFd, before: &Stat) -> Result<()> {
    let atime = SetTime::At(Time::new(before.st_atime, before.st_atime_nsec));
    let mtime = SetTime::At(Time::new(before.st_mtime, before.st_mtime_nsec));
    write_times(fd.as_fd(), Some(atime), Some(mtime))
}

/// Opens a name as an `O_PATH` descriptor. A symbolic link is opened itself.
pub(crate) fn open_path(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(call("open"))
}

/// Opens a file or directory again for reading, from an `O_PATH` descriptor.
pub(crate) fn reopen(fd: &impl AsFd) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(proc_path(fd.as_fd()), flags, Mode::empty()).map_err(call("open"))?;
    Ok(File::from(fd))
}

/// The value of an extended attribute.
pub(crate) fn get_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>> {
    let mut value = Vec::with_capacity(XATTR_MAX);
    let mut read = rustix::fs::fgetxattr(fd, name, spare_capacity(&mut value));
    if read == Err(Errno::BADF) {
        read = rustix::fs::getxattr(proc_path(fd), name, spare_capacity(&mut value));
    }
    match read {
        Ok(_) => Ok(value),
        Err(Errno::NODATA) => Err(Error::NoAttribute),
        Err(errno) => Err(call("getxattr")(errno)),
    }
}

/// The names of all extended attributes but our own, each with a NUL byte at its end.
pub(crate) fn list_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut names = Vec::with_capacity(XATTR_MAX);
    match rustix::fs::listxattr(proc_path(fd), spare_capacity(&mut names)) {
        Ok(_) | Err(Errno::NOTSUP) => {}
        Err(errno) => return Err(call("listxattr")(errno)),
    }
    let names = names.split_inclusive(|byte| *byte == 0).filter(|name| !name.starts_with(OWN_XATTRS));
    Ok(names.collect::<Vec<_>>().concat())
}

/// Sets an extended attribute.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: XattrFlags) -> Result<()> {
    let done = by_fd_or_path(
        fd,
        |fd| rustix::fs::fsetxattr(fd, name, value, flags),
        |path| rustix::fs::setxattr(path, name, value, flags),
    );
    done.map_err(call("setxattr"))
}

/// Removes an extended attribute.
pub(crate) fn remove_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let done = by_fd_or_path(
        fd,
        |fd| rustix::fs::fremovexattr(fd, name),
        |path| rustix::fs::removexattr(path, name),
    );
    match done {
        Err(Errno::NODATA) => Err(Error::NoAttribute),
        other => other.map_err(call("removexattr")),
    }
}

/// Copies all extended attributes but our own from one file to another.
pub(crate) fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    for name in list_xattrs(from)?.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        set_xattr(to, name, &get_xattr(from, name)?, XattrFlags::empty())?;
    }
    Ok(())
}

/// The attributes of an entry, from stat(2) of its backing file.
pub(crate) fn attr_of(stat: &Stat, ino: Ino, kind: Kind) -> Attr {
    Attr {
        ino,
        kind,
        mode: stat.st_mode & 0o7777,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size.unsigned_abs(),
        blocks: stat.st_blocks.unsigned_abs(),
        generation: 0,
        device: if matches!(kind, Kind::CharDevice | Kind::BlockDevice) { stat.st_rdev } else { 0 },
        atime: Time::new(stat.st_atime, stat.st_atime_nsec),
        mtime: Time::new(stat.st_mtime, stat.st_mtime_nsec),
        ctime: Time::new(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Opens the backing files of entries.
///
/// A node notes the directory and name of its backing file, and the file's inode number. Another thread can rename
/// the file between the moment that the place is read and the open. So the inode number is compared after each open,
/// and the open is tried again if it differs.
///
/// A thread that is about to rename, replace or remove a backing file *pins* it first: it puts an open descriptor
/// into the node. Until the node has the new place, all threads use that descriptor and need no name. No thread ever
/// waits for a rename, and the retry finds the right place.
impl Namespace {
    /// A descriptor of an entry's backing file. It can be read and written if the file has its bytes in the upper;
    /// for any other entry it is an `O_PATH` descriptor.
    pub(super) fn backing_fd(&self, node: &Node) -> Result<Arc<OwnedFd>> {
        // One retry is enough after one rename. The limit only keeps a damaged upper from causing an endless loop.
        for _ in 0..100 {
            let (place, in_upper, backing_ino) = {
                let state = node.state.lock();
                if let Some(pinned) = &state.pinned {
                    return Ok(Arc::clone(&pinned.fd));
                }
                (state.places.first().cloned(), state.in_upper, state.backing_ino)
            };
            if node.ino == Ino::ROOT {
                return Ok(Arc::clone(&self.root));
            }
            let keep = in_upper == InUpper::All;
            if keep && let Some(fd) = self.table.opened(node.ino) {
                return Ok(fd);
            }
            let Some((parent, name)) = place.filter(|_| in_upper != InUpper::Nothing) else {
                return Err(Error::Stale(node.ino));
            };
            let Some(parent) = self.table.get(parent) else { return Err(Error::Stale(parent)) };
            let dir = self.backing_fd(&parent)?;
            let access = match (keep && node.kind == Kind::File, self.keeps_atime) {
                (true, true) => OFlags::RDWR | OFlags::NOATIME,
                (true, false) => OFlags::RDWR,
                (false, _) => OFlags::PATH,
            };
            let fd = match entry::open(dir.as_fd(), &name, access | OFlags::NOFOLLOW) {
                Ok(fd) => Arc::new(fd),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(call("open")(errno)),
            };
            if rustix::fs::fstat(&fd).map_err(call("stat"))?.st_ino != backing_ino {
                continue;
            }
            if keep {
                self.table.keep_open(node.ino, &fd);
            }
            return Ok(fd);
        }
        Err(Error::Stale(node.ino))
    }

    /// Keeps the descriptor with which a backing file was made, for the next use. It was opened without `O_NOATIME`.
    pub(super) fn keep_created(&self, ino: Ino, kind: Kind, fd: OwnedFd) {
        if kind == Kind::File
            && self.keeps_atime
            && let Err(errno) = rustix::fs::fcntl_setfl(&fd, OFlags::NOATIME)
        {
            tracing::debug!(?ino, %errno, "reading a new file would change its time of access; not kept open");
            return;
        }
        self.table.keep_open(ino, &Arc::new(fd));
    }

    /// Keeps the backing file of an entry open, before the file is renamed, replaced or removed. Ends with
    /// [`Node::unpin`]. An entry that the kernel does not know needs no pin.
    pub(super) fn pin(&self, node: &Node) -> Result<()> {
        {
            let state = node.state.lock();
            if state.in_upper == InUpper::Nothing || state.pinned.is_some() {
                return Ok(());
            }
        }
        if self.table.may_be_known(node) {
            let fd = self.backing_fd(node)?;
            node.state.lock().pinned = Some(Pin::new(fd));
        }
        Ok(())
    }

    /// Pins an entry that is about to lose a name, in a way that the next worker has it as well. Ends with
    /// [`Namespace::unhold`], or when the entry is not used any more.
    pub(super) fn hold(&self, node: &Node) -> Result<()> {
        self.pin(node)?;
        match &mut node.state.lock().pinned {
            Some(pin) => pin.hold(node.ino, &self.handoff),
            // It has no file in the upper.
            None if self.table.may_be_known(node) => self.note_gone(node.ino, true),
            None => {}
        }
        Ok(())
    }

    /// Ends [`Namespace::hold`]: the entry has kept its name.
    pub(super) fn unhold(&self, node: &Node) {
        node.unpin();
        self.note_gone(node.ino, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_without_owner_access_survives_and_stays_readable() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        let held = write_mode(file.as_fd(), Kind::File, 0o4044, None).unwrap();
        assert_eq!(held, Some(0o4044));
        assert_eq!(read_mode(file.as_fd()).unwrap(), Some(0o4044));
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_mode & 0o7777, 0o4644);
        assert_eq!(write_mode(file.as_fd(), Kind::File, 0o644, held).unwrap(), None);
        assert_eq!(read_mode(file.as_fd()).unwrap(), None);
    }
}
