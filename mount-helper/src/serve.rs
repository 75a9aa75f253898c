//! The request loop: for each request collects the facts, asks the policy, makes the system call and replies.
//!
//! Invariant: the FUSE device is opened here and mounted once. Files are registered on that connection only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holofs_mount_helper::policy::{Access, Session, Verdict};
use holofs_mount_helper::proto::{MountSource, Opcode, REQUEST_SIZE, Reply, Request};
use holofs_mount_helper::view::Views;
use holofs_mount_helper::vocabulary::{BackingId, Deny, MountFlags, VERSION};
use holofs_mount_helper::wire;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::stdio::stdin;

use crate::quota::Quota;
use crate::{facts, kernel};

/// The device through which the kernel talks to a FUSE daemon.
const DEVICE: &str = "/dev/fuse";

/// Answers requests until the other side closes the socket. `able` is whether the program has the privilege it needs.
///
/// # Errors
/// When a request is malformed, or a message cannot be received or sent.
pub(crate) fn serve(able: Verdict) -> Result<(), Errno> {
    // All user ids of the program are the caller's.
    let caller = rustix::process::getuid().as_raw();
    let session = Session::new(caller, able);
    let views = Views::new(kernel::read_only_clone);
    let mut server = Server { caller, session, fuse: None, views, quota: Quota::default() };
    while let Some(received) = wire::receive::<{ REQUEST_SIZE + 1 }>(stdin())? {
        match Request::decode(received.bytes(), received.fds.len()) {
            Ok((request, sequence)) if !received.is_malformed => {
                server.answer(request, sequence, received.fds)?;
            }
            _ => {
                wire::send(stdin(), &Reply::NotUnderstood.encode(0), None)?;
                return Err(Errno::BADMSG);
            }
        }
    }
    Ok(())
}

/// Why a request was not carried out: the policy denied it, or a system call failed.
enum Refusal {
    Denied(Deny),
    Failed(Errno),
}

impl From<Deny> for Refusal {
    fn from(deny: Deny) -> Self {
        Self::Denied(deny)
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

impl Refusal {
    fn reply(self, opcode: Opcode) -> Reply {
        match self {
            Self::Denied(reason) => Reply::Denied { opcode, reason },
            Self::Failed(errno) => Reply::Failed { opcode, errno: errno.raw_os_error().unsigned_abs() },
        }
    }
}

struct Server {
    caller: u32,
    session: Session,
    fuse: Option<OwnedFd>,
    /// Opens the files that are registered read-only.
    views: Views,
    quota: Quota,
}

impl Server {
    fn answer(&mut self, request: Request, sequence: u64, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let opcode = request.opcode();
        let reply = match (request, fds.first()) {
            (Request::Hello { version }, _) => {
                self.session.hello(version).map(|()| Reply::Hello { version: VERSION }).map_err(Refusal::from)
            }
            (Request::Mount { flags, source }, Some(dir)) => match self.mount(flags, &source, dir.as_fd()) {
                Ok(mount) => return self.hand_over(&mount, sequence),
                Err(refusal) => Err(refusal),
            },
            (Request::BackingOpen, Some(file)) => {
                self.backing_open(file.as_fd()).map(|id| Reply::BackingOpened { id })
            }
            (Request::BackingClose { id }, _) => self.backing_close(id).map(|()| Reply::BackingClosed),
            // Not reached: `decode` checks the number of descriptors.
            (_, None) => return Err(Errno::INVAL),
        };
        let reply = reply.unwrap_or_else(|refusal| refusal.reply(opcode));
        wire::send(stdin(), &reply.encode(sequence), None)
    }

    fn mount(
        &mut self,
        flags: MountFlags,
        source: &MountSource,
        dir: BorrowedFd<'_>,
    ) -> Result<OwnedFd, Refusal> {
        let fuse = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?;
        let device = facts::of_device(fuse.as_fd())?;
        let mountpoint = facts::of_mountpoint(dir)?;
        let conf = facts::fuse_conf();
        self.session.may_mount(flags, conf, facts::mounts()?, device, &mountpoint)?;
        let mount = kernel::mount(fuse.as_fd(), flags, source, dir)?;
        if let Err(deny) = self.session.may_stay(conf, facts::mounts()?) {
            kernel::undo_mount(mount.as_fd())?;
            return Err(deny.into());
        }
        self.session.mounted();
        self.fuse = Some(fuse);
        Ok(mount)
    }

    /// Replies with the FUSE descriptor. If that fails, the mount is unmounted, because it would never be served.
    fn hand_over(&self, mount: &OwnedFd, sequence: u64) -> Result<(), Errno> {
        let fuse = self.fuse.as_ref().map(AsFd::as_fd);
        wire::send(stdin(), &Reply::Mounted.encode(sequence), fuse)
            .or_else(|errno| kernel::undo_mount(mount.as_fd()).and(Err(errno)))
    }

    fn backing_open(&mut self, file: BorrowedFd<'_>) -> Result<BackingId, Refusal> {
        let facts = facts::of_backing(file)?;
        self.session.may_open_backing(&facts)?;
        let fuse = self.fuse.as_ref().ok_or(Deny::NotMounted)?.as_fd();
        while self.session.needs_slot(self.quota.held.len()) {
            if !self.quota.take(self.caller, fuse, &mut self.views)? {
                return Err(Deny::TooMany.into());
            }
        }
        let id = match facts.access {
            Access::ReadWrite => kernel::backing_open(fuse, file)?,
            // The kernel must not open this file for writing, even if it later belongs to another user.
            Access::Read | Access::Write | Access::Path => {
                kernel::backing_open(fuse, self.views.open(file)?.as_fd())?
            }
        };
        self.session.backing_opened(id);
        Ok(id)
    }

    fn backing_close(&mut self, id: BackingId) -> Result<(), Refusal> {
        self.session.close_backing(id)?;
        let fuse = self.fuse.as_ref().ok_or(Deny::NotMounted)?;
        Ok(kernel::backing_close(fuse.as_fd(), id)?)
    }
}
