//! Has the kernel hand over stores to shared maps, before a look at a mounted space.
//!
//! A store to a shared map is not a request. The kernel sends its page in a write of its own accord, and syncfs(2) on a FUSE
//! filesystem starts such writes but does not wait for them: on a busy machine they are answered only after the look.
//! close(2) of any descriptor of a file does wait: it writes the dirty pages of that file, and returns when the daemon has
//! answered. So each file of the upper is opened and closed in the mount. A file with a shared writable map is in the
//! upper, because it was opened for writing. In cached mode, a file without dirty pages takes no request.
//!
//! In passthrough mode close(2) does not wait for a file that the kernel maps from the upper, and need not: its stores are
//! in the upper's own pages at once. A file that is open through FUSE's page cache is waited for as in cached mode.
//!
//! Limits: a file that is renamed meanwhile can be missed. One that this user may not open is reported as not done.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::session::end::write_out;
use crate::space::run::RunInfo;
use crate::space::upper::walk::Walk;
use crate::sys::process;

/// How long it may take in all. A file takes microseconds, and longer if it has much to write.
const WITHIN: Duration = Duration::from_secs(30);

/// Makes the stores that were made so far part of the upper. Returns whether it was done.
pub(in crate::session) fn hand_over_stores(
    mountpoint: &Path,
    upper: BorrowedFd<'_>,
    daemon: Option<&RunInfo>,
) -> bool {
    // It starts the writes of all files, so that the waits below overlap.
    if !write_out(mountpoint, daemon) {
        return false;
    }
    let close_each = || match close_each(mountpoint, upper) {
        Ok(()) => Vec::new(),
        Err(errno) => errno.to_string().into_bytes(),
    };
    matches!(process::ask_apart(WITHIN, upper, close_each), Ok(Some(answer)) if answer.is_empty())
}

/// Opens and closes in the mount each file that the upper has. Continues after a failure, and returns the first one.
fn close_each(mountpoint: &Path, upper: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(mountpoint, flags, Mode::empty())?;
    let mut done = Ok(());
    let mut walk = Walk::new(upper).map_err(|_| Errno::IO)?;
    while let Some(visited) = walk.advance() {
        // The copy finds the same trouble and reports it.
        let Ok(visited) = visited else { continue };
        if matches!(visited.listed.file_type(), FileType::RegularFile | FileType::Unknown) {
            match open_below(root.as_fd(), visited.path) {
                Ok(file) => drop(file),
                // It was removed meanwhile, marks a removed entry, or something else has its name now.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::XDEV) => {}
                Err(errno) => done = done.and(Err(errno)),
            }
        }
    }
    done
}

/// Opens a file of the mount, and nothing outside of it.
fn open_below(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), within) {
        // Seccomp filters of containers may not know openat2(2).
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(root, path, flags, Mode::empty()),
        opened => opened,
    }
}
