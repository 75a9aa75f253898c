//! The system calls that need CAP_SYS_ADMIN. The policy was asked before each of them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use holofs_mount_helper::passthrough;
use holofs_mount_helper::proto::MountSource;
use holofs_mount_helper::vocabulary::{BackingId, MountFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::confine::privileged;

/// Mounts on a directory and returns a descriptor of the mount, which keeps the mount busy while it is open.
///
/// No path is resolved, so the mount is on the directory that the policy checked, even if another one has its path by now.
pub(crate) fn mount(
    fuse: BorrowedFd<'_>,
    flags: MountFlags,
    source: &MountSource,
    mountpoint: BorrowedFd<'_>,
) -> Result<OwnedFd, Errno> {
    let uid = rustix::process::getuid().as_raw().to_string();
    let gid = rustix::process::getgid().as_raw().to_string();
    let device = fuse.as_raw_fd().to_string();
    privileged(|| {
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [
            ("source", source.as_str()),
            ("subtype", "holofs"),
            ("fd", &device),
            ("rootmode", "40000"),
            // The caller's ids: no other user gets access, and the caller can unmount with fusermount3.
            ("user_id", &uid),
            ("group_id", &gid),
        ] {
            fsconfig_set_string(context.as_fd(), key, value)?;
        }
        for (key, wanted) in [
            ("default_permissions", true),
            ("allow_other", flags.allow_other),
            ("ro", flags.read_only),
            ("sync", flags.sync),
            ("dirsync", flags.dir_sync),
        ] {
            if wanted {
                fsconfig_set_flag(context.as_fd(), key)?;
            }
        }
        fsconfig_create(context.as_fd())?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        for (attribute, wanted) in [
            (MountAttrFlags::MOUNT_ATTR_RDONLY, flags.read_only),
            (MountAttrFlags::MOUNT_ATTR_NOEXEC, flags.no_exec),
            (MountAttrFlags::MOUNT_ATTR_NOATIME, flags.no_atime),
        ] {
            if wanted {
                attributes |= attribute;
            }
        }
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let by_descriptors =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(mount.as_fd(), "", mountpoint, "", by_descriptors)?;
        Ok(mount)
    })
}

/// Unmounts a mount whose descriptor could not be sent to the caller.
pub(crate) fn undo_mount(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    privileged(|| unmount(path, UnmountFlags::DETACH))
}

/// As [`passthrough::read_only_clone`].
pub(crate) fn read_only_clone(of: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    privileged(|| passthrough::read_only_clone(of))
}

/// As [`passthrough::backing_open`].
pub(crate) fn backing_open(fuse: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<BackingId, Errno> {
    let id = privileged(|| passthrough::backing_open(fuse, file))?;
    BackingId::new(id).ok_or(Errno::IO)
}

/// As [`passthrough::backing_close`].
pub(crate) fn backing_close(fuse: BorrowedFd<'_>, id: BackingId) -> Result<(), Errno> {
    privileged(|| passthrough::backing_close(fuse, id.get()))
}
