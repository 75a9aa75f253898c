//! The control channel: other commands of holofs ask the daemon of a mount, beside the filesystem.
//!
//! The daemon listens on a Unix socket in the state directory of the space. A request is one line of JSON, and so is its
//! answer. Both carry the version of the protocol. A daemon that does not know a version or a request says so, so that a
//! command of another version gets an answer and not a guess.
//!
//! One thread of the daemon serves one connection after the other. It takes no part in serving the filesystem, so a
//! request that waits never delays a FUSE request. The client has a time limit of its own: a socket can be left at any
//! time, also while the daemon is stopped or hangs. A daemon that is stopped is not waited for.
//!
//! Limits: a request has at most [`LONGEST_REQUEST`] bytes, and a peer gets `PATIENCE` to send it. The path of a socket
//! has at most 107 bytes, and that of a state directory can be longer. So both sides name the socket by an open descriptor
//! of the directory, `/proc/self/fd/N/control`.
//!
//! Invariants: only the user of the daemon, and root, are answered. The socket of a daemon that was killed is replaced by
//! the next mount, which holds the lock of the space.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Error, Refused};
use crate::sys::fd::proc_path;
use crate::sys::guarded::{Dir, Trust};
use crate::sys::process::{Condition, condition};

/// The version of the protocol. A request of another version is refused.
pub const VERSION: u32 = 1;

/// The socket's name in the state directory.
const NAME: &str = "control";

/// The longest request, in bytes.
pub const LONGEST_REQUEST: usize = 1 << 20;

/// The longest answer, in bytes.
const LONGEST_ANSWER: usize = 64 << 20;

/// How long a peer may take to send its request, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a client looks for the socket of a mount. A daemon makes it just after the mount has been reported.
const APPEARS_WITHIN: Duration = Duration::from_secs(2);

/// How often a client that waits looks whether the daemon is stopped.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a command asks the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// Whether the daemon answers. The answer has its process id.
    Ping,
    /// What the mounts of the space add up to, as [`crate::metrics::totals::Totals`].
    Statistics,
    /// Start that anew.
    ResetStatistics,
    /// Let no change of the space begin until the peer sends a further line or closes the connection, for at most this
    /// many milliseconds. There are two answers: when no change is in progress any more, and at the end whether changes
    /// were held back all the time.
    Freeze {
        /// In milliseconds.
        ms: u64,
    },
    /// Go on with this program.
    Upgrade {
        /// Its path, in bytes.
        program: Vec<u8>,
    },
    /// Reset paths, or with none the whole space. The answer has the paths.
    Reset {
        /// Paths below the root, in bytes.
        paths: Vec<Vec<u8>>,
        /// Only answer what would be done.
        dry_run: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Asked<R> {
    version: u32,
    request: R,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answered {
    version: u32,
    answer: Result<Value, Refused>,
}

/// One connection.
#[derive(Debug)]
pub struct Line {
    stream: UnixStream,
}

impl Line {
    /// Sends an answer before the last one.
    ///
    /// # Errors
    /// When the peer has gone, or does not read.
    pub fn say(&mut self, answer: Result<Value, Refused>) -> io::Result<()> {
        let mut text = serde_json::to_vec(&Answered { version: VERSION, answer })?;
        text.push(b'\n');
        self.stream.set_write_timeout(Some(PATIENCE))?;
        self.stream.write_all(&text)
    }

    /// Waits until the peer sends a line, or closes the connection. False if it does neither in time.
    #[must_use]
    pub fn wait(&mut self, limit: Duration) -> bool {
        !matches!(self.read_line(LONGEST_REQUEST, Instant::now() + limit), Err(error) if is_late(&error))
    }

    /// Reads until a newline, which is left out, or the end.
    fn read_line(&mut self, longest: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let read = match self.stream.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => piece.get(..read?).unwrap_or_default(),
            };
            let end = read.iter().position(|byte| *byte == b'\n');
            text.extend_from_slice(read.get(..end.unwrap_or(read.len())).unwrap_or_default());
            if text.len() > longest {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
            }
            if end.is_some() || read.is_empty() {
                return Ok(text);
            }
        }
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// The daemon's end.
#[derive(Debug)]
pub(super) struct Server {
    listener: UnixListener,
    dir: Dir,
    stopped: AtomicBool,
}

impl Server {
    /// Makes the socket in the state directory. The caller holds the lock of the space, so a socket that is there already
    /// belongs to a daemon that was killed.
    pub(super) fn listen(state_dir: &Path) -> io::Result<Self> {
        let dir = Dir::open(state_dir, Trust::Private)?;
        dir.remove_file(OsStr::new(NAME))?;
        let listener = UnixListener::bind(path_in(&dir))?;
        Ok(Self { listener, dir, stopped: AtomicBool::new(false) })
    }

    /// Answers one connection after the other, until [`Server::stop`].
    pub(super) fn serve(&self, answer: &dyn Fn(Request, &mut Line) -> Result<Value, Refused>) {
        while !self.stopped.load(Ordering::Relaxed) {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    // A peer that has gone, or sends nothing, is no trouble of the mount.
                    if let Err(error) = talk(stream, answer) {
                        tracing::debug!(%error, "a control connection ended");
                    }
                }
                Err(_) if self.stopped.load(Ordering::Relaxed) => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a control connection");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Ends [`Server::serve`], and removes the socket.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread in accept(2).
        if let Err(errno) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            tracing::debug!(%errno, "cannot shut the control socket down");
        }
        if let Err(error) = self.dir.remove_file(OsStr::new(NAME)) {
            tracing::debug!(%error, "the control socket stays; the next mount replaces it");
        }
    }
}

fn talk(stream: UnixStream, answer: &dyn Fn(Request, &mut Line) -> Result<Value, Refused>) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    let mut line = Line { stream };
    if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
        return line.say(Err(Refused::Peer));
    }
    let answered = match line.read_line(LONGEST_REQUEST, Instant::now() + PATIENCE) {
        // A client that has gone was told that there is no answer, so nothing is done for it later.
        Ok(_) if poll(&line.stream, PollFlags::empty(), Duration::ZERO)?.contains(PollFlags::HUP) => {
            return Ok(());
        }
        Ok(text) => match parse(&text) {
            // A panic must not end the mount.
            Ok(request) => {
                catch_unwind(AssertUnwindSafe(|| answer(request, &mut line))).unwrap_or_else(|_| {
                    tracing::error!("a control request panicked");
                    Err(Refused::Failed("the request failed: see the log of the mount".into()))
                })
            }
            Err(refused) => Err(refused),
        },
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(Refused::NotUnderstood(error.to_string()))
        }
        Err(error) => return Err(error),
    };
    line.say(answered)?;
    line.stream.shutdown(Shutdown::Both)
}

fn parse(text: &[u8]) -> Result<Request, Refused> {
    let not_understood = |error: serde_json::Error| Refused::NotUnderstood(error.to_string());
    // The version first: requests of another version can look different.
    let asked: Asked<Value> = serde_json::from_slice(text).map_err(not_understood)?;
    if asked.version != VERSION {
        return Err(Refused::Version);
    }
    serde_json::from_value(asked.request).map_err(not_understood)
}

/// A command's end.
#[derive(Debug)]
pub struct Client {
    line: Line,
    state_dir: PathBuf,
}

impl Client {
    /// Connects to the daemon of the space with this state directory.
    ///
    /// # Errors
    /// [`Error::NoControl`] when no daemon listens there, and [`Error::NoAnswer`] when it takes no connection.
    pub fn connect(state_dir: &Path) -> Result<Self, Error> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::NoControl(state_dir.to_owned())
            }
            _ if is_late(&error) => no_answer(state_dir),
            _ => Error::os(state_dir, "connect")(error),
        };
        let dir = Dir::open(state_dir, Trust::Private).map_err(io::Error::from).map_err(failed)?;
        let deadline = Instant::now() + APPEARS_WITHIN;
        loop {
            match connect(&dir) {
                Ok(stream) => return Ok(Self { line: Line { stream }, state_dir: state_dir.to_owned() }),
                Err(Errno::NOENT | Errno::CONNREFUSED) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    /// Sends a request, and returns its first answer.
    ///
    /// # Errors
    /// [`Error::Refused`], and [`Error::NoAnswer`] after the time limit or when the daemon ends.
    pub fn ask(&mut self, request: &Request, limit: Duration) -> Result<Value, Error> {
        self.send(&Asked { version: VERSION, request })?;
        self.answer(limit)
    }

    /// Sends a further line, which ends what the first request began, and returns the last answer.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn finish(mut self, limit: Duration) -> Result<Value, Error> {
        // A daemon whose limit has passed has closed the connection, and its answer is there.
        if let Err(error) = self.send(&Value::Null) {
            tracing::debug!(%error, "the daemon has not waited");
        }
        self.answer(limit)
    }

    fn send(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let sent = serde_json::to_vec(value).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            self.line.stream.set_write_timeout(Some(PATIENCE))?;
            self.line.stream.write_all(&text)
        });
        sent.map_err(|error| self.failed(error))
    }

    fn answer(&mut self, limit: Duration) -> Result<Value, Error> {
        let deadline = Instant::now() + limit;
        self.wait(deadline)?;
        let read = self.line.read_line(LONGEST_ANSWER, deadline);
        let text = read.map_err(|error| self.failed(error))?;
        // The daemon has ended.
        if text.is_empty() {
            return Err(no_answer(&self.state_dir));
        }
        let answered: Answered = serde_json::from_slice(&text)
            .map_err(|error| Error::Refused(Refused::NotUnderstood(error.to_string())))?;
        answered.answer.map_err(Error::Refused)
    }

    /// Waits until there is something to read, unless the daemon stays stopped.
    fn wait(&self, deadline: Instant) -> Result<(), Error> {
        let daemon = crate::space::run::read_run(&self.state_dir).map(|run| run.server());
        let is_stopped = || daemon.is_some_and(|pid| condition(pid) == Condition::Stopped);
        let mut was_stopped = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).min(LOOK_EVERY);
            match poll(&self.line.stream, PollFlags::IN, left) {
                Ok(ready) if !ready.is_empty() => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno.into())),
            }
            let is_stopped = is_stopped();
            if is_stopped && was_stopped || Instant::now() >= deadline {
                return Err(no_answer(&self.state_dir));
            }
            was_stopped = is_stopped;
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        match error.kind() {
            _ if is_late(&error) => no_answer(&self.state_dir),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => no_answer(&self.state_dir),
            _ => Error::os(&self.state_dir, "control")(error),
        }
    }
}

fn poll(stream: &UnixStream, events: PollFlags, limit: Duration) -> Result<PollFlags, Errno> {
    let limit = Timespec::try_from(limit).map_err(|_| Errno::INVAL)?;
    let mut polled = [PollFd::new(stream, events)];
    rustix::event::poll(&mut polled, Some(&limit))?;
    let [polled] = polled;
    Ok(polled.revents())
}

fn no_answer(state_dir: &Path) -> Error {
    let run = crate::space::run::read_run(state_dir);
    let place = run.as_ref().map_or_else(|| state_dir.to_owned(), |run| run.mountpoint.clone());
    Error::no_answer(place, run.map(|run| run.server()))
}

/// Connects within `PATIENCE`: a daemon that is stopped has a queue of connections, which can be full.
fn connect(dir: &Dir) -> Result<UnixStream, Errno> {
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path_in(dir))?)?;
    Ok(UnixStream::from(socket))
}

fn path_in(dir: &Dir) -> String {
    format!("{}/{NAME}", proc_path(dir.as_fd()))
}

#[cfg(test)]
mod tests;
