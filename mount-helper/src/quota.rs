//! Limits how many files a user can have registered, in all sessions together.
//!
//! The kernel keeps a registered file open until the FUSE connection ends, and no resource limit of the user counts it.
//! The connection can outlive the helper and the mount, because a `/dev/fuse` descriptor that the user keeps is enough. The
//! counter must therefore live as long as the connection. An open file description lock does, if its file is itself
//! registered on the connection: the kernel keeps that file open, and so keeps the lock.
//!
//! The file is the helper's own program, because everybody who can run the helper can read the file, and only root can
//! replace it. Each user has a range of [`SLOTS_PER_USER`] bytes to lock, which can lie beyond the end of the file. Each
//! locked byte is a slot for [`FILES_PER_SLOT`](holofs_mount_helper::policy::FILES_PER_SLOT) files.
//!
//! Invariants: no two connections hold the same slot. The program file is registered by a read-only mount, so that nobody
//! can write to it through the connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holofs_mount_helper::policy::SLOTS_PER_USER;
use holofs_mount_helper::view::Views;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{kernel, sys};

/// The program file, even after a rename.
const PROGRAM: &str = "/proc/self/exe";

/// The slots of a session.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    /// The locked file. None before it is registered.
    file: Option<OwnedFd>,
    /// The slots that this session has locked.
    pub(crate) held: Vec<u32>,
}

impl Quota {
    /// Locks one more slot of the caller for a connection. Returns false if all are taken.
    ///
    /// # Errors
    /// Those of opening, registering and locking the file.
    pub(crate) fn take(
        &mut self,
        caller: u32,
        fuse: BorrowedFd<'_>,
        views: &mut Views,
    ) -> Result<bool, Errno> {
        if self.file.is_none() {
            let program = rustix::fs::open(PROGRAM, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let file = views.open(program.as_fd())?;
            // The backing id is not sent to the caller and never closed.
            kernel::backing_open(fuse, file.as_fd())?;
            self.file = Some(file);
        }
        let Some(file) = self.file.as_ref().map(AsFd::as_fd) else { return Err(Errno::BADF) };
        for slot in 0..SLOTS_PER_USER {
            let byte = i64::from(caller) * i64::from(SLOTS_PER_USER) + i64::from(slot);
            // F_OFD_GETLK does not report locks of the same open file.
            if self.held.contains(&slot) || sys::is_locked(file, byte)? {
                continue;
            }
            sys::set_lock(file, byte, true)?;
            // If two sessions lock the same slot at the same time, each sees the other here, and both release it.
            if sys::is_locked(file, byte)? {
                sys::set_lock(file, byte, false)?;
                continue;
            }
            self.held.push(slot);
            return Ok(true);
        }
        Ok(false)
    }
}
