//! How many files one user may have registered, in all sessions together.
//!
//! A registered file is open in the kernel, where no limit of the user's counts it, until the connection ends. The
//! connection does not end with the helper or with the mount: a descriptor of it that the user keeps is enough. So what
//! counts has to live as long as the connection. A lock does, that belongs to a file which is registered on the
//! connection itself: the kernel keeps that file open, and with it the lock.
//!
//! The file is the helper's own program, since everybody who can run the helper can read it and nobody else can exchange
//! it. Each user has [`SLOTS_PER_USER`] bytes of it to lock (whether the file is so long does not matter), and each
//! locked byte is good for [`FILES_PER_SLOT`](holofs_mount_helper::policy::FILES_PER_SLOT) files.
//!
//! Invariants: no byte is held by two connections; the file is registered by a read-only mount, so nobody can write to
//! the program through the connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holofs_mount_helper::policy::SLOTS_PER_USER;
use holofs_mount_helper::view::Views;
use holofs_mount_helper::vocabulary::Deny;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{kernel, sys};

/// The program itself, whatever its name is now.
const PROGRAM: &str = "/proc/self/exe";

/// What a session holds of its user's share.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    /// The locked file, once it is registered.
    file: Option<OwnedFd>,
    /// The slots that are locked.
    held: Vec<u32>,
}

impl Quota {
    /// Takes one more slot of the caller's for a connection. Tells whether there was one.
    ///
    /// # Errors
    /// What opening, registering or locking the file may answer.
    pub(crate) fn take(
        &mut self,
        caller: u32,
        fuse: BorrowedFd<'_>,
        views: &mut Views,
    ) -> Result<Result<(), Deny>, Errno> {
        if self.file.is_none() {
            let program = rustix::fs::open(PROGRAM, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let file = views.open(program.as_fd())?;
            // Its number is told to nobody and never given back.
            kernel::backing_open(fuse, file.as_fd())?;
            self.file = Some(file);
        }
        let Some(file) = self.file.as_ref().map(AsFd::as_fd) else { return Err(Errno::BADF) };
        for slot in 0..SLOTS_PER_USER {
            let byte = i64::from(caller) * i64::from(SLOTS_PER_USER) + i64::from(slot);
            // One's own locks are not shown.
            if self.held.contains(&slot) || sys::is_locked(file, byte)? {
                continue;
            }
            sys::set_lock(file, byte, true)?;
            // Two that come at once see each other now, and both give way.
            if sys::is_locked(file, byte)? {
                sys::set_lock(file, byte, false)?;
                continue;
            }
            self.held.push(slot);
            return Ok(Ok(()));
        }
        Ok(Err(Deny::TooMany))
    }
}
