//! Mounts, and gets the `/dev/fuse` descriptor of the mount. The client of the mount helper.
//!
//! Passthrough needs CAP_SYS_ADMIN, both to mount and to register backing files. Without CAP_SYS_ADMIN, the mount helper
//! (`mount-helper/`, `docs/SECURITY.md`) does both, over a socket. It registers files only on a mount that it has made.
//! Without passthrough the helper is not used, since fusermount3 can mount as well.
//!
//! The processes that serve a mount one after the other use the same helper over the same socket. One that dies may leave
//! a request whose reply nobody has read. So requests are numbered, and a reply to another request is not taken for one's
//! own: a file that it registered is unregistered, since nobody knows the number.
//!
//! Invariant: the helper ends with its [`Client`]. It holds the mount's descriptor too, so as long as it ran, the kernel
//! would not notice the end of the daemon.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holofs_mount_helper::proto::{
    MountSource, ProtoError, REPLY_SIZE, Reply, Request, SOURCE_SIZE, check_fds,
};
use holofs_mount_helper::vocabulary::{BackingId, Deny, MountFlags, VERSION};
use holofs_mount_helper::wire;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::session::error::Error;
use crate::session::request::MountPlan;
use crate::settings::MountHelper;
use crate::sys::backing::{Backings, Direct};
use crate::sys::fuse_mount;
use crate::sys::guarded::Dir;
use crate::sys::mountinfo::MountEntry;
use crate::sys::plain;
use crate::sys::private_ns::may_mount;

/// The program's name. It lies beside holofs, or in one of the directories below.
pub const PROGRAM: &str = "holofs-mount-helper";

/// Where packages and `scripts/install.sh` install it. `PATH` is not searched for a privileged program.
const DIRECTORIES: [&str; 3] = ["/usr/local/libexec/holofs", "/usr/libexec/holofs", "/usr/lib/holofs"];

/// How long a reply may take. The system calls behind it take microseconds.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the program may take to end after its socket was closed.
const ENDING: Duration = Duration::from_secs(1);

/// The descriptors of a new mount.
#[derive(Debug)]
pub(in crate::session) struct Device {
    /// `/dev/fuse`, connected to the mount.
    pub(in crate::session) fd: OwnedFd,
    /// The mount. None if somebody has unmounted it already.
    pub(in crate::session) mount: Option<MountEntry>,
    /// Registers backing files, in passthrough mode.
    pub(in crate::session) backings: Option<Arc<dyn Backings>>,
    /// The mount helper's program. The helper registers its own file, too.
    pub(in crate::session) program: Option<PathBuf>,
    /// The number of the helper's socket.
    pub(in crate::session) socket: Option<RawFd>,
}

/// Mounts on a checked directory: by mount(2) if this process may, else by fusermount3 or the mount helper.
pub(in crate::session) fn acquire(
    plan: &MountPlan,
    dir: &Dir,
    options: &fuse_mount::Options,
) -> Result<Device, Error> {
    let path = &plan.space.mountpoint;
    let failed = |source| Error::Mount { path: path.clone(), source };
    let made = || fuse_mount::check_place(dir, &options.source).map_err(failed);
    let no_passthrough =
        |reason: &dyn Display| Error::NoPassthrough { path: path.clone(), reason: plain(reason) };
    let is_passthrough = plan.settings.io.value.is_passthrough();
    if is_passthrough && !has_privilege() {
        let started = Client::start(&plan.settings.mount_helper.value);
        let mounted = started.and_then(|client| Ok((client.mount(dir.as_fd(), options)?, client)));
        let (fd, client) = mounted.map_err(|error| no_passthrough(&error))?;
        let program = Some(client.program.clone());
        let socket = client.socket.as_ref().map(AsRawFd::as_raw_fd);
        return Ok(Device { fd, mount: made()?, backings: Some(Arc::new(client)), program, socket });
    }
    let fd = fuse_mount::mount(dir, options).map_err(failed)?;
    let mount = made()?;
    let own = is_passthrough.then(|| fd.try_clone()).transpose().map_err(|error| {
        mount.iter().for_each(crate::session::end::undo_mounts);
        no_passthrough(&error)
    })?;
    let backings = own.map(|own| Arc::new(Direct::new(own)) as Arc<dyn Backings>);
    Ok(Device { fd, mount, backings, program: None, socket: None })
}

pub(in crate::session) fn has_privilege() -> bool {
    may_mount()
}

/// Why the helper cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// There is no helper.
    #[error("the mount helper is not installed, and only root can do without it")]
    NotInstalled,
    /// It could not be started.
    #[error("mount helper {path}: {source}", source = plain(.source))]
    Start {
        /// The program.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It refused the request.
    #[error("mount helper: {0}")]
    Denied(Deny),
    /// The kernel refused the request.
    #[error("mount helper: {0}")]
    Failed(Errno),
    /// It has ended, or does not answer.
    #[error("the mount helper does not answer: {0}")]
    Gone(Errno),
    /// It has another protocol: it belongs to another version of holofs.
    #[error("the mount helper does not understand: {0}")]
    Protocol(#[from] ProtoError),
    /// Its reply does not belong to the request.
    #[error("the mount helper sent a reply to another request")]
    Confused,
    /// The space's name cannot be the source of a mount.
    #[error("the name of the space is longer than {SOURCE_SIZE} bytes, or has a control character")]
    Source,
}

impl From<HelperError> for io::Error {
    fn from(error: HelperError) -> Self {
        match error {
            HelperError::Failed(errno) => errno.into(),
            HelperError::Denied(deny) => Self::new(io::ErrorKind::PermissionDenied, deny),
            other => Self::other(other),
        }
    }
}

/// The programs to try, best first.
fn programs(wanted: &MountHelper) -> Vec<PathBuf> {
    match wanted {
        MountHelper::Off => Vec::new(),
        MountHelper::At(path) => vec![path.clone()],
        MountHelper::Installed => {
            let own = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(PROGRAM)));
            let installed = DIRECTORIES.iter().map(|directory| Path::new(directory).join(PROGRAM));
            own.into_iter().chain(installed).filter(|path| path.is_file()).collect()
        }
    }
}

/// A running mount helper.
#[derive(Debug)]
pub struct Client {
    /// None when the client is dropped. A failed request does not close it, because other processes have its number.
    socket: Option<OwnedFd>,
    /// Locked for a request and its reply.
    line: Mutex<Line>,
    /// None if an earlier program of the keeper started it.
    child: Option<Child>,
    program: PathBuf,
}

/// What has been said over the socket.
#[derive(Debug)]
struct Line {
    /// The number of the next request.
    next: u64,
    /// A request has failed. Nobody waits again for a helper that does not answer.
    is_cut: bool,
}

/// The first request of a process that takes the place of another one has a number above all that the other one can have
/// used.
const NUMBERS_SHIFT: u32 = 40;

impl Client {
    /// Starts the program, and compares the protocol versions.
    ///
    /// # Errors
    /// See [`HelperError`].
    pub fn start(wanted: &MountHelper) -> Result<Self, HelperError> {
        let mut result = Err(HelperError::NotInstalled);
        for program in programs(wanted) {
            result = Self::start_program(&program);
            // Without its capability, as after `cargo build`. Try the installed one.
            if !matches!(result, Err(HelperError::Denied(Deny::NoPrivilege))) {
                break;
            }
        }
        result
    }

    fn start_program(path: &Path) -> Result<Self, HelperError> {
        let cannot = |source| HelperError::Start { path: path.to_owned(), source };
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.map_err(|errno| cannot(errno.into()))?;
        set_socket_timeout(&ours, Timeout::Recv, Some(REPLY_TIMEOUT))
            .map_err(|errno| cannot(errno.into()))?;
        let child = Command::new(path)
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(cannot)?;
        let line = Mutex::new(Line { next: 1, is_cut: false });
        let client = Self { socket: Some(ours), line, child: Some(child), program: path.to_owned() };
        match client.ask(Request::Hello { version: VERSION }, None)? {
            (Reply::Hello { .. }, _) => Ok(client),
            _ => Err(HelperError::Confused),
        }
    }

    /// The client of a helper that an earlier program of this process started.
    pub(super) fn resume(socket: OwnedFd, program: PathBuf) -> Self {
        let line = Mutex::new(Line { next: 1, is_cut: false });
        Self { socket: Some(socket), line, child: None, program }
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Mounts, and returns the mount's `/dev/fuse` descriptor.
    ///
    /// # Errors
    /// See [`HelperError`]. In each case nothing is mounted.
    pub fn mount(&self, dir: BorrowedFd<'_>, options: &fuse_mount::Options) -> Result<OwnedFd, HelperError> {
        let has = |name: &str| options.extra.iter().any(|option| option == name);
        let flags = MountFlags {
            read_only: options.read_only || has("ro"),
            no_exec: has("noexec"),
            allow_other: options.allow_other,
            no_atime: has("noatime"),
            sync: has("sync"),
            dir_sync: has("dirsync"),
        };
        let source = MountSource::new(&options.source).ok_or(HelperError::Source)?;
        match self.ask(Request::Mount { flags, source }, Some(dir))? {
            (Reply::Mounted, Some(fd)) => Ok(fd),
            _ => Err(HelperError::Confused),
        }
    }

    /// Sends a request, and returns its reply. A refusal is an error.
    fn ask(
        &self,
        request: Request,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Option<OwnedFd>), HelperError> {
        let mut line = self.line.lock();
        let Some(socket) = self.socket.as_ref().filter(|_| !line.is_cut) else {
            return Err(HelperError::Gone(Errno::PIPE));
        };
        let mut nobodys = Vec::new();
        let answered = line.exchange(socket.as_fd(), request, fd, &mut nobodys);
        for id in nobodys {
            let closed = line.exchange(socket.as_fd(), Request::BackingClose { id }, None, &mut Vec::new());
            tracing::debug!(?id, ?closed, "unregistered a file whose number nobody had received");
        }
        match answered? {
            (Reply::Denied { reason, .. }, _) => Err(HelperError::Denied(reason)),
            (Reply::Failed { errno, .. }, _) => {
                Err(HelperError::Failed(Errno::from_raw_os_error(i32::try_from(errno).unwrap_or(libc::EIO))))
            }
            other => Ok(other),
        }
    }
}

impl Line {
    /// Sends a request, and returns its reply, which can be a refusal. Files that replies to earlier requests name are
    /// added to `nobodys`.
    fn exchange(
        &mut self,
        socket: BorrowedFd<'_>,
        request: Request,
        fd: Option<BorrowedFd<'_>>,
        nobodys: &mut Vec<BackingId>,
    ) -> Result<(Reply, Option<OwnedFd>), HelperError> {
        let number = self.next;
        self.next += 1;
        let exchanged = exchange(socket, number, request, fd, nobodys);
        let answered = exchanged.and_then(|(reply, fd)| match reply {
            Reply::Denied { opcode, .. } | Reply::Failed { opcode, .. } if opcode != request.opcode() => {
                Err(HelperError::Confused)
            }
            Reply::NotUnderstood => Err(HelperError::Confused),
            reply => Ok((reply, fd)),
        });
        self.is_cut |= answered.is_err();
        answered
    }
}

fn exchange(
    socket: BorrowedFd<'_>,
    number: u64,
    request: Request,
    fd: Option<BorrowedFd<'_>>,
    nobodys: &mut Vec<BackingId>,
) -> Result<(Reply, Option<OwnedFd>), HelperError> {
    wire::send(socket, &request.encode(number), fd).map_err(HelperError::Gone)?;
    loop {
        let received = wire::receive::<{ REPLY_SIZE + 1 }>(socket).map_err(HelperError::Gone)?;
        let mut received = received.ok_or(HelperError::Gone(Errno::PIPE))?;
        let (reply, answers) = Reply::decode(received.bytes())?;
        check_fds(received.fds.len(), reply.fds())?;
        // A reply without a number says that the helper has ended.
        if answers == number || answers == 0 {
            return Ok((reply, received.fds.pop()));
        }
        if answers > number {
            return Err(HelperError::Confused);
        }
        if let Reply::BackingOpened { id } = reply {
            nobodys.push(id);
        }
    }
}

impl Backings for Client {
    fn open(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        match self.ask(Request::BackingOpen, Some(file))? {
            (Reply::BackingOpened { id }, _) => Ok(id.get()),
            _ => Err(HelperError::Confused.into()),
        }
    }

    fn close(&self, id: u32) -> io::Result<()> {
        let id = BackingId::new(id).ok_or(Errno::NOENT)?;
        match self.ask(Request::BackingClose { id }, None)? {
            (Reply::BackingClosed, _) => Ok(()),
            _ => Err(HelperError::Confused.into()),
        }
    }

    fn take_over(&self, restarts: u64) {
        *self.line.lock() = Line { next: restarts << NUMBERS_SHIFT, is_cut: false };
    }
}

impl Drop for Client {
    /// Ends the program and waits for it, but not forever: somebody may have stopped it.
    fn drop(&mut self) {
        drop(self.socket.take());
        let deadline = Instant::now() + ENDING;
        let Some(child) = &mut self.child else { return };
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
