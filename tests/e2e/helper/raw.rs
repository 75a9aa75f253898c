//! Talks to the mount helper directly, with valid and invalid messages.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use holofs_mount_helper::proto::{MountSource, Reply, Request};
use holofs_mount_helper::vocabulary::{BackingId, Deny, MountFlags, VERSION};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::common::as_user::mount_helper;

/// The sequence number of all requests. The helper only repeats it.
pub const SEQUENCE: u64 = 0x8000_0000_0000_0007;

/// A running helper. It must end soon after its socket is closed.
pub struct Helper {
    socket: Option<OwnedFd>,
    child: Child,
}

impl Helper {
    /// Starts a helper as holofs does, and completes the hello request.
    #[track_caller]
    pub fn greeted() -> Self {
        let helper = Self::start(&mut Command::new(mount_helper()));
        assert_eq!(helper.ask(hello(), &[]), Reply::Hello { version: VERSION });
        helper
    }

    /// Starts a helper with this command.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let child = command.stdin(theirs).spawn().unwrap();
        // Without this, the command would keep its end of the socket for another start.
        command.stdin(Stdio::null());
        Self { socket: Some(ours), child }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends bytes and returns whether that worked.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(250))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        let socket = self.socket.as_ref().expect("open");
        sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).is_ok()
    }

    /// The next reply; `None` if the helper has ended.
    #[track_caller]
    pub fn receive(&self) -> Option<(Reply, Option<OwnedFd>)> {
        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let socket = self.socket.as_ref().expect("open");
        let mut into = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let size = got.map_or(0, |got| got.bytes);
        let mut fds = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        if size == 0 {
            return None;
        }
        let (reply, sequence) = Reply::decode(&bytes[..size]).expect("a reply");
        assert_eq!(sequence, if reply == Reply::NotUnderstood { 0 } else { SEQUENCE });
        assert_eq!(fds.len(), reply.fds());
        Some((reply, fds.pop()))
    }

    #[track_caller]
    pub fn ask_fd(&self, request: Request, fds: &[BorrowedFd<'_>]) -> (Reply, Option<OwnedFd>) {
        assert!(self.send(&request.encode(SEQUENCE), fds), "the helper has ended");
        self.receive().expect("a reply")
    }

    #[track_caller]
    pub fn ask(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Reply {
        self.ask_fd(request, fds).0
    }

    /// The reason why a request is refused.
    #[track_caller]
    pub fn denied(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Deny {
        match self.ask(request, fds) {
            Reply::Denied { opcode, reason } if opcode == request.opcode() => reason,
            other => panic!("{request:?}: {other:?}"),
        }
    }

    /// Mounts on a directory of the user's own, and negotiates passthrough with the kernel.
    #[track_caller]
    pub fn mount(&self, dir: &Path) -> RawMount {
        let (reply, fuse) = self.ask_fd(mount(), &[directory(dir).as_fd()]);
        assert_eq!(reply, Reply::Mounted);
        let mount = RawMount { fuse: Some(fuse.expect("counted")), path: dir.to_owned() };
        mount.agree();
        mount
    }

    #[track_caller]
    pub fn register(&self, file: &impl AsFd) -> BackingId {
        match self.ask(Request::BackingOpen, &[file.as_fd()]) {
            Reply::BackingOpened { id } => id,
            other => panic!("{other:?}"),
        }
    }

    /// Closes the socket and waits.
    #[track_caller]
    pub fn end(mut self) -> ExitStatus {
        self.socket = None;
        self.wait()
    }

    /// Kills the helper, as its user may.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.wait();
    }

    /// Closes the socket.
    pub fn hang_up(&mut self) {
        self.socket = None;
    }

    /// Waits for a helper that ends by itself.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the helper does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.socket = None;
        if !std::thread::panicking() {
            self.wait();
        }
    }
}

/// A mount that nobody serves: any access to it would hang.
pub struct RawMount {
    fuse: Option<OwnedFd>,
    path: PathBuf,
}

impl RawMount {
    /// Answers the kernel's FUSE_INIT with FUSE_PASSTHROUGH (bit 37).
    fn agree(&self) {
        let mut device = std::fs::File::from(self.fuse.as_ref().unwrap().try_clone().unwrap());
        let mut request = vec![0; 1 << 17];
        let size = device.read(&mut request).unwrap();
        assert!(size >= 40 && request[4..8] == 26u32.to_le_bytes(), "not FUSE_INIT");
        let mut reply = Vec::new();
        reply.extend(80u32.to_le_bytes());
        reply.extend(0i32.to_le_bytes());
        reply.extend(&request[8..16]);
        // major, minor, max_readahead, flags (FUSE_INIT_EXT), max_background and congestion_threshold, max_write,
        // time_gran, max_pages and map_alignment, flags2, max_stack_depth.
        for number in [7u32, 40, 0, 1 << 30, 0x000a_000c, 4096, 1, 0, 1 << 5, 1] {
            reply.extend(number.to_le_bytes());
        }
        reply.resize(80, 0);
        device.write_all(&reply).unwrap();
    }

    /// Another descriptor of the same connection.
    pub fn connection(&self) -> OwnedFd {
        self.fuse.as_ref().unwrap().try_clone().unwrap()
    }

    /// Serves a root directory in which every name is one world-accessible file that is opened by passthrough. Ends
    /// with the mount.
    pub fn serve(&self, backing: BackingId) -> std::thread::JoinHandle<()> {
        let mut device = std::fs::File::from(self.connection());
        std::thread::spawn(move || {
            let mut request = vec![0; 1 << 17];
            while let Ok(size) = device.read(&mut request) {
                let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
                let node = u64::from_le_bytes(request[16..24].try_into().unwrap());
                assert!(size >= 40);
                let answer = match word(4) {
                    // FORGET and BATCH_FORGET have no reply.
                    2 | 42 => continue,
                    // LOOKUP.
                    1 => Ok([&2u64.to_le_bytes()[..], &[0; 32], &attributes(2)].concat()),
                    // GETATTR.
                    3 => Ok([&[0; 16][..], &attributes(node)].concat()),
                    // OPEN: FOPEN_PASSTHROUGH.
                    14 => {
                        Ok([&[0; 8][..], &(1u32 << 7).to_le_bytes(), &backing.get().to_le_bytes()].concat())
                    }
                    // FLUSH, RELEASE.
                    18 | 25 => Ok(Vec::new()),
                    _ => Err(-libc::ENOSYS),
                };
                let body = answer.clone().unwrap_or_default();
                let mut reply = Vec::new();
                reply.extend(u32::try_from(16 + body.len()).unwrap().to_le_bytes());
                reply.extend(answer.err().unwrap_or(0).to_le_bytes());
                reply.extend(&request[8..16]);
                reply.extend(body);
                if device.write_all(&reply).is_err() {
                    return;
                }
            }
        })
    }

    /// Aborts the connection, so that the kernel waits for nobody.
    pub fn abandon(&mut self) {
        self.fuse = None;
    }

    /// Its line in mountinfo.
    pub fn line(&self) -> Option<String> {
        line_of(&self.path)
    }

    /// Runs `fusermount3 -u` as its owner.
    #[track_caller]
    pub fn unmount(mut self) {
        self.abandon();
        super::sh(Command::new("fusermount3").arg("-u").arg(&self.path));
        assert_eq!(self.line(), None);
    }
}

impl Drop for RawMount {
    fn drop(&mut self) {
        self.fuse = None;
        if self.line().is_some() {
            drop(Command::new("fusermount3").arg("-uz").arg(&self.path).output());
        }
    }
}

/// A `struct fuse_attr`: inode 1 is a directory, every other number a file.
fn attributes(node: u64) -> Vec<u8> {
    let mode: u32 = if node == 1 { 0o040_777 } else { 0o100_666 };
    let mut bytes = Vec::new();
    // ino, size, blocks and three times.
    [node, 5, 0, 0, 0, 0].into_iter().for_each(|n| bytes.extend(n.to_le_bytes()));
    // The nanoseconds of the three times, mode, nlink, uid, gid, rdev, blksize, flags.
    [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].into_iter().for_each(|n: u32| bytes.extend(n.to_le_bytes()));
    bytes
}

/// The mountinfo line of a mountpoint.
pub fn line_of(path: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    table.lines().find(|line| line.split(' ').nth(4) == Some(path)).map(str::to_owned)
}

pub fn hello() -> Request {
    Request::Hello { version: VERSION }
}

pub fn mount() -> Request {
    Request::Mount { flags: MountFlags::default(), source: MountSource::new("holofs:test@1.2").unwrap() }
}

/// Opens whatever is at the path with O_PATH.
pub fn directory(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}
