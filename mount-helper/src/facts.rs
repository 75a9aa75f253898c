//! Collects the facts that the policy needs: about descriptors, and about the machine.
//!
//! Facts about a descriptor come from system calls on that descriptor. No capability is effective here, so the program
//! cannot reach a path that the caller cannot reach.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use holofs_mount_helper::policy::{Access, BackingFacts, FuseConf, MountpointFacts, fuse_mounts};
use holofs_mount_helper::view::{identity, path_of};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatxAttributes, StatxFlags, fcntl_getfl,
    fstat, fstatfs,
};
use rustix::io::Errno;

/// Limit for the size of a text file, in bytes.
const LONGEST: u64 = 16 << 20;

fn text_of(path: &str) -> Option<String> {
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Reads `/etc/fuse.conf`. Without the file, the defaults of fusermount3 apply.
pub(crate) fn fuse_conf() -> FuseConf {
    text_of("/etc/fuse.conf").map_or_else(FuseConf::default, |text| FuseConf::parse(&text))
}

/// The number of mounted FUSE filesystems.
pub(crate) fn mounts() -> Result<usize, Errno> {
    text_of("/proc/self/mounts").map(|table| fuse_mounts(&table)).ok_or(Errno::NOENT)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn type_of_filesystem(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    // A 32-bit magic number. Some architectures sign-extend it.
    Ok(fstatfs(fd)?.f_type as u64 & u64::from(u32::MAX))
}

/// The device number, if it is a character device.
pub(crate) fn of_device(fd: BorrowedFd<'_>) -> Result<Option<(u32, u32)>, Errno> {
    let stat = fstat(fd)?;
    let rdev = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok((kind(&stat) == FileType::CharacterDevice).then_some(rdev))
}

pub(crate) fn of_mountpoint(fd: BorrowedFd<'_>) -> Result<MountpointFacts, Errno> {
    let stat = fstat(fd)?;
    Ok(MountpointFacts {
        is_dir: kind(&stat) == FileType::Directory,
        owner: stat.st_uid,
        mode: stat.st_mode & 0o7777,
        resolved_without_symlinks: is_where_it_says(fd),
        f_type: type_of_filesystem(fd)?,
    })
}

/// Whether the path of the directory leads to it for the caller, without symbolic links and without a mount on top.
fn is_where_it_says(fd: BorrowedFd<'_>) -> bool {
    let found = || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let found = rustix::fs::openat2(CWD, path_of(fd)?, flags, Mode::empty(), resolve).ok()?;
        Some(identity(found.as_fd()).ok()? == identity(fd).ok()?)
    };
    found() == Some(true)
}

pub(crate) fn of_backing(fd: BorrowedFd<'_>) -> Result<BackingFacts, Errno> {
    let stat = fstat(fd)?;
    let flags = fcntl_getfl(fd)?;
    let statx = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    let access = match flags & OFlags::RWMODE {
        _ if flags.contains(OFlags::PATH) => Access::Path,
        OFlags::RDWR => Access::ReadWrite,
        OFlags::WRONLY => Access::Write,
        _ => Access::Read,
    };
    Ok(BackingFacts {
        is_regular: kind(&stat) == FileType::RegularFile,
        owner: stat.st_uid,
        is_linked: stat.st_nlink > 0,
        is_immutable: statx.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND),
        access,
        f_type: type_of_filesystem(fd)?,
    })
}
