//! The upper on disk: what an entry of the space's private tree says about itself.
//!
//! The upper is a tree of real files of the same names and paths as in the environment. This module knows the
//! marks on them and nothing of the merged view:
//!
//! * a character device 0/0, or an empty file with the mark `gone`, is a **whiteout**: the lower name is gone (see
//!   `whiteout`).
//! * `user.holofs.entry` = `data:N`, `meta:N` or `dir:N`: the entry came from lower node N (its **origin**).
//!   `data`: the bytes are here. `meta`: only the attributes are; the bytes, or the link text, are the lower's.
//!   `dir`: the directory merges with lower directory N, wherever it now stands. No mark: born here; a directory
//!   without a mark is opaque.
//!   `data:N@BOOT`: as `data:N`, but begun as an empty file in this boot, and its bytes may not be on
//!   the disk (see `settle`).
//! * `user.holofs.mode` = the permission bits in octal, when they lack what the daemon itself needs to reach the
//!   file (owner read and write, and search for directories). The backing entry then has those bits as well.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::error::{Error, Result, upper};
use super::types::{Attr, Ino, Kind, SetTime, Time};
use crate::library::index::NodeId;
use crate::sys::boot::Boot;

/// The attribute that holds a [`Mark`].
pub(crate) const ENTRY_XATTR: &CStr = c"user.holofs.entry";
/// The attribute that holds permission bits that the backing entry cannot.
pub(crate) const MODE_XATTR: &CStr = c"user.holofs.mode";
/// Attributes that begin so are ours: hidden from, and refused to, the users of the mount.
pub(crate) const OWN_XATTRS: &[u8] = b"user.holofs.";

/// What the mark of an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mark {
    /// A file whose bytes are here.
    Data(NodeId),
    /// The same, emptied in this boot and not known to be on the disk.
    Emptied(NodeId, Boot),
    /// A file or link whose bytes or text are still the lower's.
    Meta(NodeId),
    /// A directory that merges with a lower one.
    Dir(NodeId),
    /// A whiteout where there can be no device 0/0: an empty file.
    Gone,
}

impl Mark {
    /// The lower node it came from; a whiteout came from none.
    #[must_use]
    pub(crate) fn origin(self) -> Option<NodeId> {
        match self {
            Self::Data(node) | Self::Emptied(node, _) | Self::Meta(node) | Self::Dir(node) => Some(node),
            Self::Gone => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Data(node) => format!("data:{}", node.0),
            Self::Emptied(node, boot) => format!("data:{}@{:08x}", node.0, boot.0),
            Self::Meta(node) => format!("meta:{}", node.0),
            Self::Dir(node) => format!("dir:{}", node.0),
            Self::Gone => "gone".to_owned(),
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        if text == b"gone" {
            return Some(Self::Gone);
        }
        let (kind, number) = std::str::from_utf8(text).ok()?.split_once(':')?;
        if let Some((number, boot)) = number.split_once('@') {
            let boot = u32::from_str_radix(boot, 16).ok()?;
            return (kind == "data").then_some(Self::Emptied(NodeId(number.parse().ok()?), Boot(boot)));
        }
        let node = NodeId(number.parse().ok()?);
        match kind {
            "data" => Some(Self::Data(node)),
            "meta" => Some(Self::Meta(node)),
            "dir" => Some(Self::Dir(node)),
            _ => None,
        }
    }
}

/// One entry of an upper directory.
#[derive(Debug)]
pub(crate) struct Listed {
    /// Its name.
    pub(crate) name: CString,
    /// What it is.
    pub(crate) what: What,
}

/// What an entry of an upper directory is.
#[derive(Debug)]
pub(crate) enum What {
    /// A lower name that is gone.
    Whiteout,
    /// An entry whose mark cannot be read, or of a kind that no environment has. It alone answers EIO.
    Damaged,
    /// An entry with its backing inode number.
    Entry {
        /// Its kind on disk (a `meta` entry of a symlink is a regular file here).
        file_type: FileType,
        /// Its mark, if it has one.
        mark: Option<Mark>,
        /// The inode number of the backing entry.
        backing_ino: u64,
    },
}

/// The path by which a name below an open directory can be given to calls that take no directory descriptor.
fn proc_path(dir: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    path
}

/// The path of an open descriptor itself, `O_PATH` ones included.
fn proc_fd(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Does something to an open entry: by its descriptor, and where that is an `O_PATH` one, which these calls refuse, by its
/// path, which takes twice as long.
fn by_fd_or_path<T>(
    fd: BorrowedFd<'_>,
    by_fd: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>,
    by_path: impl FnOnce(&str) -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    match by_fd(fd) {
        Err(Errno::BADF) => by_path(&proc_fd(fd)),
        done => done,
    }
}

/// Opens a name. `O_NOATIME` is left out where it is refused: a file that was given away is not the daemon's.
pub(crate) fn open(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => {
            rustix::fs::openat(dir, name, flags.difference(OFlags::NOATIME), Mode::empty())
        }
        opened => opened,
    }
}

/// Lists a directory with the marks of its entries. That we read it is no access to it.
/// With `exact` the numbers on disk are those of `stat`; without, those of the listing, which are the same but on overlayfs.
pub(crate) fn list(dir: BorrowedFd<'_>, exact: bool) -> Result<Vec<Listed>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME;
    let readable = open(dir, c".", flags).map_err(upper("open a directory"))?;
    let mut out = Vec::new();
    for entry in rustix::fs::Dir::new(readable).map_err(upper("read a directory"))? {
        let entry = entry.map_err(upper("read a directory"))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let mut file_type = entry.file_type();
        let mut backing_ino = entry.ino();
        if exact || matches!(file_type, FileType::Unknown | FileType::CharacterDevice) {
            let stat = stat_at(dir, name)?;
            file_type = FileType::from_raw_mode(stat.st_mode);
            backing_ino = stat.st_ino;
            if file_type == FileType::CharacterDevice && stat.st_rdev == 0 {
                out.push(Listed { name: name.to_owned(), what: What::Whiteout });
                continue;
            }
        }
        let what = match read_mark(dir, name, file_type) {
            Ok(Some(Mark::Gone)) => What::Whiteout,
            Ok(mark) => What::Entry { file_type, mark, backing_ino },
            Err(error @ Error::Damaged { .. }) => {
                tracing::error!(%error, "an entry of the upper is left out");
                What::Damaged
            }
            Err(error) => return Err(error),
        };
        out.push(Listed { name: name.to_owned(), what });
    }
    Ok(out)
}

/// The mark of a name below a directory. Only regular files and directories can carry one.
pub(crate) fn read_mark(dir: BorrowedFd<'_>, name: &CStr, file_type: FileType) -> Result<Option<Mark>> {
    if !matches!(file_type, FileType::RegularFile | FileType::Directory) {
        return Ok(None);
    }
    let mut text = [0u8; 32];
    match rustix::fs::lgetxattr(proc_path(dir, name), ENTRY_XATTR, &mut text[..]) {
        Ok(len) => text.get(..len).and_then(Mark::parse).map(Some).ok_or_else(|| Error::Damaged {
            name: name.to_string_lossy().into_owned(),
            why: "its user.holofs.entry attribute cannot be read",
        }),
        Err(Errno::NODATA) => Ok(None),
        Err(Errno::RANGE) => Err(Error::Damaged {
            name: name.to_string_lossy().into_owned(),
            why: "its user.holofs.entry attribute is too long",
        }),
        Err(errno) => Err(upper("getxattr")(errno)),
    }
}

/// Writes the mark of an open entry.
pub(crate) fn write_mark(fd: BorrowedFd<'_>, mark: Mark) -> Result<()> {
    set_xattr(fd, ENTRY_XATTR, mark.text().as_bytes(), XattrFlags::empty())
}

/// The permission bits that the mode attribute holds, if there is one.
pub(crate) fn read_mode(fd: BorrowedFd<'_>) -> Result<Option<u32>> {
    let mut buffer = [0u8; 8];
    let Some(text) = short_xattr(fd, MODE_XATTR, &mut buffer)? else { return Ok(None) };
    let mode = std::str::from_utf8(text).ok().and_then(|text| u32::from_str_radix(text, 8).ok());
    mode.filter(|mode| *mode <= 0o7777)
        .map(Some)
        .ok_or(Error::Damaged { name: String::new(), why: "its user.holofs.mode attribute is no octal mode" })
}

/// The value of one of our own attributes, read in one call; None when there is none.
pub(crate) fn short_xattr<'b>(
    fd: BorrowedFd<'_>,
    name: &CStr,
    buffer: &'b mut [u8],
) -> Result<Option<&'b [u8]>> {
    match rustix::fs::getxattr(proc_fd(fd), name, &mut *buffer) {
        Ok(len) => Ok(buffer.get(..len)),
        Err(Errno::NODATA) => Ok(None),
        Err(errno) => Err(upper("getxattr")(errno)),
    }
}

/// The bits that the daemon itself needs on an entry.
fn needed(kind: Kind) -> u32 {
    match kind {
        Kind::Dir => 0o700,
        Kind::File | Kind::Symlink => 0o600,
        Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => 0,
    }
}

/// Gives an entry its permission bits; returns what [`read_mode`] would now say.
///
/// The attribute, while it is there, is the truth, and the bits of the backing entry do not show. So the last step is
/// the one that shows, and a failure before it changes nothing.
pub(crate) fn write_mode(fd: BorrowedFd<'_>, kind: Kind, mode: u32, old: Option<u32>) -> Result<Option<u32>> {
    let mode = mode & 0o7777;
    let backing = Mode::from_raw_mode(mode | needed(kind));
    let chmod = || {
        let done =
            by_fd_or_path(fd, |fd| rustix::fs::fchmod(fd, backing), |path| rustix::fs::chmod(path, backing));
        done.map_err(upper("chmod"))
    };
    let lacking = mode & needed(kind) != needed(kind);
    let hold = || set_xattr(fd, MODE_XATTR, format!("{mode:o}").as_bytes(), XattrFlags::empty());
    let release = || match remove_xattr(fd, MODE_XATTR) {
        Ok(()) | Err(Error::NoAttribute) => Ok(()),
        Err(error) => Err(error),
    };
    match (old, lacking) {
        (None, false) => chmod()?,
        (None, true) => {
            hold()?;
            if let Err(error) = chmod() {
                if let Err(second) = release() {
                    tracing::error!(%second, "a change of mode that failed is half applied");
                }
                return Err(error);
            }
        }
        (Some(_), true) => {
            chmod()?;
            hold()?;
        }
        (Some(_), false) => {
            chmod()?;
            release()?;
        }
    }
    Ok(lacking.then_some(mode))
}

/// Sets owner and group.
pub(crate) fn write_owner(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let uid = uid.map(rustix::fs::Uid::from_raw);
    let gid = gid.map(rustix::fs::Gid::from_raw);
    rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH).map_err(upper("chown"))
}

/// Sets access and modification times.
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
    done.map_err(upper("utimensat"))
}

/// `stat` of a name, not following a link.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(upper("stat"))
}

/// An `O_PATH` descriptor of a name, not following a link.
pub(crate) fn open_path(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(upper("open"))
}

/// Reopens an `O_PATH` descriptor of a file or directory for reading.
pub(crate) fn reopen(fd: &impl AsFd) -> Result<File> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(upper("open"))?;
    Ok(File::from(fd))
}

/// The value of an attribute.
pub(crate) fn get_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>> {
    // The value may grow between the question for its size and the read; ask again then.
    loop {
        let size = by_fd_or_path(
            fd,
            |fd| rustix::fs::fgetxattr_query(fd, name),
            |path| rustix::fs::getxattr_query(path, name),
        );
        let size = match size {
            Err(Errno::NODATA) => return Err(Error::NoAttribute),
            other => other.map_err(upper("getxattr"))?,
        };
        let mut value = vec![0u8; size.max(1)];
        let mut read = rustix::fs::fgetxattr(fd, name, &mut value[..]);
        if read == Err(Errno::BADF) {
            read = rustix::fs::getxattr(proc_fd(fd), name, &mut value[..]);
        }
        match read {
            Ok(len) => {
                value.truncate(len);
                return Ok(value);
            }
            Err(Errno::RANGE) => {}
            Err(Errno::NODATA) => return Err(Error::NoAttribute),
            Err(errno) => return Err(upper("getxattr")(errno)),
        }
    }
}

/// The names of the attributes that are not ours, each ended by a NUL.
pub(crate) fn list_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let path = proc_fd(fd);
    loop {
        let size = match rustix::fs::listxattr_query(&path) {
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            other => other.map_err(upper("listxattr"))?,
        };
        let mut names = vec![0u8; size.max(1)];
        match rustix::fs::listxattr(&path, &mut names[..]) {
            Ok(len) => {
                names.truncate(len);
                let mut out = Vec::with_capacity(len);
                for name in names.split_inclusive(|byte| *byte == 0) {
                    if !name.starts_with(OWN_XATTRS) {
                        out.extend_from_slice(name);
                    }
                }
                return Ok(out);
            }
            Err(Errno::RANGE) => {}
            Err(errno) => return Err(upper("listxattr")(errno)),
        }
    }
}

/// Sets an attribute.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: XattrFlags) -> Result<()> {
    let done = by_fd_or_path(
        fd,
        |fd| rustix::fs::fsetxattr(fd, name, value, flags),
        |path| rustix::fs::setxattr(path, name, value, flags),
    );
    done.map_err(upper("setxattr"))
}

/// Removes an attribute.
pub(crate) fn remove_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let done = by_fd_or_path(
        fd,
        |fd| rustix::fs::fremovexattr(fd, name),
        |path| rustix::fs::removexattr(path, name),
    );
    match done {
        Err(Errno::NODATA) => Err(Error::NoAttribute),
        other => other.map_err(upper("removexattr")),
    }
}

/// Copies the attributes that are not ours from one entry to another.
pub(crate) fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    for name in list_xattrs(from)?.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        set_xattr(to, name, &get_xattr(from, name)?, XattrFlags::empty())?;
    }
    Ok(())
}

/// The kind of a backing entry.
pub(crate) fn kind_of(file_type: FileType) -> Option<Kind> {
    match file_type {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Dir),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::Fifo => Some(Kind::Fifo),
        FileType::Socket => Some(Kind::Socket),
        FileType::CharacterDevice => Some(Kind::CharDevice),
        FileType::BlockDevice => Some(Kind::BlockDevice),
        FileType::Unknown => None,
    }
}

/// The attributes of a backing entry, under the number and kind that it has in the mount.
pub(crate) fn attr_of(stat: &Stat, ino: Ino, kind: Kind) -> Attr {
    let time = |sec: i64, nsec| Time { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
    Attr {
        ino,
        kind,
        mode: stat.st_mode & 0o7777,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        generation: 0,
        device: if matches!(kind, Kind::CharDevice | Kind::BlockDevice) { stat.st_rdev } else { 0 },
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Borrows the descriptor of an owned one; a name for `.as_fd()` where the type is behind an `Arc`.
pub(crate) fn fd(owned: &impl AsFd) -> BorrowedFd<'_> {
    owned.as_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_read_as_they_were_written() {
        for mark in [
            Mark::Data(NodeId(0)),
            Mark::Meta(NodeId(7)),
            Mark::Dir(NodeId(u32::MAX)),
            Mark::Emptied(NodeId(u32::MAX), Boot(u32::MAX)),
            Mark::Emptied(NodeId(1), Boot(0)),
            Mark::Gone,
        ] {
            assert_eq!(Mark::parse(mark.text().as_bytes()), Some(mark));
        }
        for bad in [
            &b"data"[..],
            b"data:",
            b"data:-1",
            b"data:4294967296",
            b"x:1",
            b"\xff:1",
            b"",
            b"meta:1@1",
            b"data:1@",
        ] {
            assert_eq!(Mark::parse(bad), None);
        }
    }

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
