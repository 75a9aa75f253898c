//! Tries what this machine can do: reflinks, `/dev/fuse`, a FUSE mount, passthrough. What a filesystem or a kernel can do is
//! not known from its name, so it is tried.
//!
//! Limits: the calls may wait for a disk for ever. The caller makes them in a process that can be left behind, see
//! [`super::process::ask`].
//!
//! Invariant: nothing is left behind. A probe file has no name, or loses it before it is used. The mount is made in a mount
//! namespace that ends with the process.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use holofs_mount_helper::passthrough::backing_open;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use serde::{Deserialize, Serialize};

use super::FUSE_DEVICE;
use super::{errno_of, last_errno, mountinfo};

/// A directory and its filesystem.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// The directory that was examined: the one that was asked for, or the nearest above it that exists.
    pub path: PathBuf,
    /// The name of the filesystem in the mount table: `ext4`, `btrfs`, `overlay`.
    pub fs: String,
    /// `f_type` of statfs(2).
    pub magic: u64,
    /// The device number of the filesystem.
    pub dev: u64,
    /// The bytes that this user may still write.
    pub free: u64,
    /// Whether this user may create files in it.
    pub is_writable: bool,
}

/// Examines a directory, or the nearest existing one above it.
///
/// # Errors
/// Those of stat(2), statfs(2) and of reading the mount table.
pub fn place(path: &Path) -> io::Result<Place> {
    let mut path = path;
    let real = loop {
        match path.canonicalize() {
            Ok(real) => break real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                path = path.parent().ok_or(error)?;
            }
            Err(error) => return Err(error),
        }
    };
    let stat = rustix::fs::stat(&real)?;
    let found = rustix::fs::statfs(&real)?;
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let id = rustix::fs::statx(CWD, &real, flags, StatxFlags::MNT_ID).ok();
    let id = id.filter(|found| found.stx_mask & StatxFlags::MNT_ID.bits() != 0).map(|found| found.stx_mnt_id);
    let mounts = mountinfo::mounts()?;
    let by_id = mounts.iter().find(|mount| Some(mount.id) == id);
    // Before Linux 5.8 the mount has no number: then it is the one with the longest path.
    let above = mounts.iter().filter(|mount| real.starts_with(&mount.mountpoint));
    let mount = by_id.or(above.max_by_key(|mount| mount.mountpoint.components().count()));
    Ok(Place {
        fs: mount.map(|mount| mount.fstype.clone()).unwrap_or_default(),
        magic: (found.f_type as u64) & 0xffff_ffff,
        dev: stat.st_dev,
        free: found.f_bavail.saturating_mul(found.f_bsize.unsigned_abs()),
        is_writable: rustix::fs::access(&real, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .is_ok(),
        path: real,
    })
}

/// The call in the messages of a reflink.
const FICLONE: &str = "FICLONE";

/// A step of a probe that failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What was tried.
    pub call: String,
    /// Its errno.
    pub errno: i32,
}

impl Refusal {
    fn of<E: Into<io::Error>>(call: &str) -> impl FnOnce(E) -> Self + use<'_, E> {
        move |error| Self { call: call.to_owned(), errno: errno_of(&error.into()).raw_os_error() }
    }

    /// Whether only the sharing of extents failed, and not the making of a file.
    #[must_use]
    pub fn is_about_sharing(&self) -> bool {
        self.call == FICLONE
    }

    /// The errno.
    #[must_use]
    pub fn errno(&self) -> Errno {
        Errno::from_raw_os_error(self.errno)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.call, super::plain(&self.errno()))
    }
}

/// Shares the extents of a temporary file in one directory with one in another directory, or in the same.
///
/// # Errors
/// The step that failed.
pub fn reflink(from: &Path, to: &Path) -> Result<(), Refusal> {
    let source = nameless(from)?;
    // btrfs keeps shorter files among its metadata.
    rustix::io::write(&source, &[1; 8192]).map_err(Refusal::of("write"))?;
    let target = nameless(to)?;
    rustix::fs::ioctl_ficlone(&target, &source).map_err(Refusal::of(FICLONE))
}

/// Gives a temporary file an extended attribute of a user.
///
/// # Errors
/// The step that failed.
pub fn user_attribute(dir: &Path) -> Result<(), Refusal> {
    let file = nameless(dir)?;
    rustix::fs::fsetxattr(&file, c"user.holofs.probe", b"x", XattrFlags::empty())
        .map_err(Refusal::of("setxattr"))
}

/// A temporary file without a name.
fn nameless(dir: &Path) -> Result<File, Refusal> {
    let mode = Mode::RUSR | Mode::WUSR;
    let failed = || Refusal::of("create a file");
    match rustix::fs::open(dir, OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, mode) {
        Ok(file) => return Ok(file.into()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(errno) => return Err(failed()(errno)),
    }
    let name = dir.join(format!(".holofs-probe.{}", std::process::id()));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&name, flags, mode).map_err(failed())?;
    std::fs::remove_file(&name).map_err(Refusal::of("remove a file"))?;
    Ok(file.into())
}

/// Opens `/dev/fuse`.
///
/// # Errors
/// The errno of open(2).
pub fn fuse_device() -> Result<OwnedFd, Errno> {
    rustix::fs::open(FUSE_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// What the kernel answered to a mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FuseProbe {
    /// The mount itself.
    pub mount: Result<(), Refusal>,
    /// Passthrough on it. None if it was not tried.
    pub passthrough: Option<Result<(), Refusal>>,
}

/// Makes a FUSE mount in a mount namespace of this process alone, and registers a backing file on it. For a process that ends
/// just after, and that has CAP_SYS_ADMIN.
#[must_use]
pub fn fuse() -> FuseProbe {
    match private_mount() {
        Err(refusal) => FuseProbe { mount: Err(refusal), passthrough: None },
        Ok(fuse) => FuseProbe { mount: Ok(()), passthrough: Some(passthrough(&fuse)) },
    }
}

fn private_mount() -> Result<OwnedFd, Refusal> {
    // SAFETY: the call takes no pointers. The process has a single thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(Refusal::of("unshare")(last_errno()));
    }
    // Else the mount would show up in the namespace that this one was copied from.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(Refusal::of("mount"))?;
    let fuse = fuse_device().map_err(Refusal::of(FUSE_DEVICE))?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0\0", fuse.as_raw_fd());
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes())
        .map_err(|_| Refusal::of("mount")(Errno::INVAL))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    // On `/`, which always exists. This process still sees the old root.
    rustix::mount::mount("holofs-probe", "/", "fuse", flags, Some(options)).map_err(Refusal::of("mount"))?;
    Ok(fuse)
}

/// The layout of the first message: `struct fuse_in_header`, `fuse_init_in`, `fuse_out_header` and `fuse_init_out` of
/// `linux/fuse.h`.
mod init {
    pub(super) const FLAGS: usize = 40 + 12;
    pub(super) const FLAGS2: usize = 40 + 16;
    pub(super) const UNIQUE: std::ops::Range<usize> = 8..16;
    /// `FUSE_INIT_EXT`.
    pub(super) const EXT: u32 = 1 << 30;
    /// `FUSE_PASSTHROUGH`, in the second word of flags.
    pub(super) const PASSTHROUGH: u32 = 1 << 5;
    pub(super) const REPLY: u32 = 16 + 64;
}

/// Answers the kernel's first message on a mount, and registers a file as backing file.
fn passthrough(fuse: &OwnedFd) -> Result<(), Refusal> {
    let tried = "passthrough";
    let refused = |errno: Errno| Refusal::of(tried)(errno);
    let patience = Timespec { tv_sec: 2, tv_nsec: 0 };
    if rustix::event::poll(&mut [PollFd::new(fuse, PollFlags::IN)], Some(&patience)).map_err(refused)? == 0 {
        return Err(refused(Errno::TIMEDOUT));
    }
    let mut message = [0u8; 16 * 1024];
    rustix::io::read(fuse, &mut message).map_err(refused)?;
    let word = |at: usize| {
        let bytes = message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    };
    if word(init::FLAGS) & init::EXT == 0 || word(init::FLAGS2) & init::PASSTHROUGH == 0 {
        return Err(refused(Errno::OPNOTSUPP));
    }
    // Major and minor version, readahead, flags; requests in the background; limit of writes, granularity of times; pages
    // and alignment; second word of flags; depth of the stack of filesystems. The rest is unused.
    let words = [7u32, 40, 0, init::EXT, 0, 4096, 1, 0, init::PASSTHROUGH, 2];
    let mut reply = Vec::with_capacity(init::REPLY as usize);
    reply.extend(init::REPLY.to_ne_bytes());
    reply.extend(0i32.to_ne_bytes());
    reply.extend(message.get(init::UNIQUE).unwrap_or_default());
    reply.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    reply.resize(init::REPLY as usize, 0);
    rustix::io::write(fuse, &reply).map_err(refused)?;
    let sample = File::open("/proc/self/exe").map_err(Refusal::of(tried))?;
    backing_open(std::os::fd::AsFd::as_fd(fuse), std::os::fd::AsFd::as_fd(&sample)).map_err(refused)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_does_not_exist_is_judged_by_the_directory_above() {
        let dir = tempfile::tempdir().unwrap();
        let found = place(&dir.path().join("not/there")).unwrap();
        assert_eq!(found.path, dir.path().canonicalize().unwrap());
        assert!(!found.fs.is_empty() && found.magic != 0 && found.is_writable, "{found:?}");
    }

    #[test]
    fn a_reflink_probe_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        match reflink(dir.path(), dir.path()) {
            Ok(()) => {}
            Err(refusal) => assert!(refusal.call == "FICLONE", "{refusal}"),
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let missing = reflink(&dir.path().join("none"), dir.path()).unwrap_err();
        assert_eq!(missing.errno(), Errno::NOENT);
    }
}
