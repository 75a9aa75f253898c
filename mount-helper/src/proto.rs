//! The messages between holofs and the helper.
//!
//! They travel over a `SOCK_SEQPACKET` socketpair that the helper was started with: one request, one reply, in turn.
//! A request is [`REQUEST_SIZE`] bytes and a reply [`REPLY_SIZE`], little-endian; what a message does not use is zero.
//! File descriptors go beside a message as `SCM_RIGHTS`: with a request as many as its opcode says, with the reply
//! to a mount that was made the one to serve it on, with every other reply none.
//!
//! | bytes | request | reply |
//! |---|---|---|
//! | 0-3 | `HfsQ` | `HfsR` |
//! | 4-5 | version of the protocol | the same |
//! | 6-7 | opcode | opcode of the request answered, 0 when it was not understood |
//! | 8-11 | flags (mount) | status |
//! | 12-15 | version (hello), id (close) | reason (denied), errno (failed), version (hello), id (open) |
//! | 16-31 | source (mount) | zero |
//! | 32-319 | source (mount) | |
//!
//! Invariant: decoding never panics, and accepts a message only if encoding what it understood gives the same bytes.
//! So nothing travels in a message that either side does not know of.

use crate::vocabulary::{BackingId, Deny, MountFlags, VERSION, numbered};

/// The size of every request, in bytes.
pub const REQUEST_SIZE: usize = HEAD + SOURCE_SIZE;
/// The size of every reply, in bytes.
pub const REPLY_SIZE: usize = 32;
/// How long a mount's source may be, in bytes.
pub const SOURCE_SIZE: usize = 304;
/// The bytes before the source.
const HEAD: usize = 16;
/// What every source begins with, so that nobody's mount looks like a disk.
const SOURCE_PREFIX: &[u8] = b"holofs:";

const REQUEST: [u8; 4] = *b"HfsQ";
const REPLY: [u8; 4] = *b"HfsR";

numbered! {
/// What is asked for, without its arguments.
Opcode: u16 {
    /// Agree on a version; the first request.
    Hello = 1,
    /// Mount; once.
    Mount = 2,
    /// Register a file for passthrough.
    BackingOpen = 3,
    /// Forget a registered file.
    BackingClose = 4,
}
}

impl Opcode {
    /// How many file descriptors go with the request. Mount: the directory (`O_PATH` is enough). BackingOpen: the
    /// file.
    #[must_use]
    pub fn fds(self) -> usize {
        match self {
            Self::Mount | Self::BackingOpen => 1,
            Self::Hello | Self::BackingClose => 0,
        }
    }
}

/// What mountinfo shows as a mount's source: `holofs:` and at least one character more, none of them a control
/// character, at most [`SOURCE_SIZE`] bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MountSource([u8; SOURCE_SIZE]);

impl MountSource {
    /// None when it may not be shown.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut padded = [0; SOURCE_SIZE];
        padded.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Self::of(padded)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let text = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        // It was looked at when it was made.
        std::str::from_utf8(text).unwrap_or_default()
    }

    fn of(padded: [u8; SOURCE_SIZE]) -> Option<Self> {
        let mut parts = padded.splitn(2, |byte| *byte == 0);
        let text = std::str::from_utf8(parts.next()?).ok()?;
        let padding = parts.next().unwrap_or_default();
        let shown = text.len() > SOURCE_PREFIX.len()
            && text.as_bytes().starts_with(SOURCE_PREFIX)
            && !text.chars().any(char::is_control)
            && padding.iter().all(|byte| *byte == 0);
        shown.then_some(Self(padded))
    }
}

impl std::fmt::Debug for MountSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// A request.
// One at a time, on the stack: nothing is won by allocating.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// See [`Opcode::Hello`].
    Hello {
        /// The newest version the asker speaks, not 0.
        version: u16,
    },
    /// See [`Opcode::Mount`].
    Mount {
        /// How.
        flags: MountFlags,
        /// What mountinfo is to show.
        source: MountSource,
    },
    /// See [`Opcode::BackingOpen`].
    BackingOpen,
    /// See [`Opcode::BackingClose`].
    BackingClose {
        /// Which one.
        id: BackingId,
    },
}

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Hello: both speak this version, not 0.
    Hello {
        /// The version.
        version: u16,
    },
    /// It is mounted, and the descriptor to serve it on comes with this.
    Mounted,
    /// The file is registered.
    BackingOpened {
        /// Under this id.
        id: BackingId,
    },
    /// The file is forgotten.
    BackingClosed,
    /// The policy refuses.
    Denied {
        /// What was asked for.
        opcode: Opcode,
        /// Why it is refused.
        reason: Deny,
    },
    /// The kernel refused.
    Failed {
        /// What was asked for.
        opcode: Opcode,
        /// Its answer, a positive errno.
        errno: u32,
    },
    /// The request was not understood. The helper ends after this.
    NotUnderstood,
}

/// Why bytes are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtoError {
    /// Not as many bytes as a message of this direction has.
    Size(usize),
    /// It does not begin as a message of this direction does.
    Magic,
    /// Another version than [`VERSION`].
    Version(u16),
    /// No such opcode.
    Opcode(u16),
    /// No such status.
    Status(u32),
    /// Unknown flags, an id or errno that cannot be, something where nothing belongs.
    Field(&'static str),
    /// Not as many descriptors as the opcode says.
    Descriptors {
        /// How many came.
        got: usize,
        /// How many belong to it.
        wanted: usize,
    },
}

impl std::fmt::Display for ProtoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size(size) => write!(f, "a message of {size} bytes"),
            Self::Magic => write!(f, "not a message of the mount helper's protocol"),
            Self::Version(version) => write!(f, "protocol version {version} instead of {VERSION}"),
            Self::Opcode(opcode) => write!(f, "unknown opcode {opcode}"),
            Self::Status(status) => write!(f, "unknown status {status}"),
            Self::Field(field) => write!(f, "a bad value in {field}"),
            Self::Descriptors { got, wanted } => write!(f, "{got} file descriptors instead of {wanted}"),
        }
    }
}

impl std::error::Error for ProtoError {}

/// The numbers of a message.
#[derive(Clone, Copy, Default)]
struct Raw {
    opcode: u16,
    first: u32,
    second: u32,
}

impl Raw {
    /// A message with `tail` from byte 16 on.
    fn encode<const SIZE: usize>(self, magic: [u8; 4], tail: &[u8]) -> [u8; SIZE] {
        let mut out = [0; SIZE];
        let fields = [
            &magic[..],
            &VERSION.to_le_bytes(),
            &self.opcode.to_le_bytes(),
            &self.first.to_le_bytes(),
            &self.second.to_le_bytes(),
            tail,
        ];
        for (to, from) in out.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        out
    }

    /// The numbers of a message, and what comes after them.
    fn decode(bytes: &[u8], size: usize, magic: [u8; 4]) -> Result<(Self, &[u8]), ProtoError> {
        let &[a, b, c, d, v0, v1, o0, o1, f0, f1, f2, f3, s0, s1, s2, s3, ref tail @ ..] = bytes else {
            return Err(ProtoError::Size(bytes.len()));
        };
        if bytes.len() != size {
            return Err(ProtoError::Size(bytes.len()));
        }
        if [a, b, c, d] != magic {
            return Err(ProtoError::Magic);
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(ProtoError::Version(version));
        }
        let opcode = u16::from_le_bytes([o0, o1]);
        let first = u32::from_le_bytes([f0, f1, f2, f3]);
        Ok((Self { opcode, first, second: u32::from_le_bytes([s0, s1, s2, s3]) }, tail))
    }
}

fn blank(tail: &[u8]) -> Result<(), ProtoError> {
    if tail.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(ProtoError::Field("the padding")) }
}

fn zero(number: u32, field: &'static str) -> Result<(), ProtoError> {
    if number == 0 { Ok(()) } else { Err(ProtoError::Field(field)) }
}

fn version(number: u32) -> Result<u16, ProtoError> {
    u16::try_from(number).ok().filter(|version| *version != 0).ok_or(ProtoError::Field("the version"))
}

fn backing_id(number: u32) -> Result<BackingId, ProtoError> {
    BackingId::new(number).ok_or(ProtoError::Field("the id"))
}

impl Request {
    /// What is asked for.
    #[must_use]
    pub fn opcode(&self) -> Opcode {
        match self {
            Self::Hello { .. } => Opcode::Hello,
            Self::Mount { .. } => Opcode::Mount,
            Self::BackingOpen => Opcode::BackingOpen,
            Self::BackingClose { .. } => Opcode::BackingClose,
        }
    }

    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_SIZE] {
        let (first, second, tail) = match self {
            Self::Hello { version } => (0, (*version).into(), &[][..]),
            Self::Mount { flags, source } => (flags.bits(), 0, &source.0[..]),
            Self::BackingOpen => (0, 0, &[][..]),
            Self::BackingClose { id } => (0, id.get(), &[][..]),
        };
        Raw { opcode: self.opcode() as u16, first, second }.encode(REQUEST, tail)
    }

    /// The request in received bytes, with which `fds` descriptors came.
    ///
    /// # Errors
    /// Whatever is not exactly a request of this version.
    pub fn decode(bytes: &[u8], fds: usize) -> Result<Self, ProtoError> {
        let (Raw { opcode, first, second }, tail) = Raw::decode(bytes, REQUEST_SIZE, REQUEST)?;
        let opcode = Opcode::of(opcode).ok_or(ProtoError::Opcode(opcode))?;
        if fds != opcode.fds() {
            return Err(ProtoError::Descriptors { got: fds, wanted: opcode.fds() });
        }
        if opcode != Opcode::Mount {
            zero(first, "the flags")?;
            blank(tail)?;
        }
        Ok(match opcode {
            Opcode::Hello => Self::Hello { version: version(second)? },
            Opcode::Mount => {
                zero(second, "the id")?;
                let flags = MountFlags::of(first).ok_or(ProtoError::Field("the flags"))?;
                let source = <[u8; SOURCE_SIZE]>::try_from(tail).ok().and_then(MountSource::of);
                Self::Mount { flags, source: source.ok_or(ProtoError::Field("the source"))? }
            }
            Opcode::BackingOpen => {
                zero(second, "the id")?;
                Self::BackingOpen
            }
            Opcode::BackingClose => Self::BackingClose { id: backing_id(second)? },
        })
    }
}

const DONE: u32 = 0;
const DENIED: u32 = 1;
const FAILED: u32 = 2;
const NOT_UNDERSTOOD: u32 = 3;

impl Reply {
    /// Whether a file descriptor goes with it: the one to serve the mount on.
    #[must_use]
    pub fn fds(&self) -> usize {
        usize::from(*self == Self::Mounted)
    }

    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> [u8; REPLY_SIZE] {
        let done = |opcode: Opcode, second| Raw { opcode: opcode as u16, first: DONE, second };
        let raw = match *self {
            Self::Hello { version } => done(Opcode::Hello, version.into()),
            Self::Mounted => done(Opcode::Mount, 0),
            Self::BackingOpened { id } => done(Opcode::BackingOpen, id.get()),
            Self::BackingClosed => done(Opcode::BackingClose, 0),
            Self::Denied { opcode, reason } => {
                Raw { opcode: opcode as u16, first: DENIED, second: reason as u32 }
            }
            Self::Failed { opcode, errno } => Raw { opcode: opcode as u16, first: FAILED, second: errno },
            Self::NotUnderstood => Raw { opcode: 0, first: NOT_UNDERSTOOD, second: 0 },
        };
        raw.encode(REPLY, &[])
    }

    /// The reply in received bytes.
    ///
    /// # Errors
    /// Whatever is not exactly a reply of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtoError> {
        let (raw, tail) = Raw::decode(bytes, REPLY_SIZE, REPLY)?;
        let Raw { opcode: number, first: status, second } = raw;
        blank(tail)?;
        if status == NOT_UNDERSTOOD {
            zero(number.into(), "the opcode")?;
            zero(second, "the detail")?;
            return Ok(Self::NotUnderstood);
        }
        let opcode = Opcode::of(number).ok_or(ProtoError::Opcode(number))?;
        match status {
            DONE => Ok(match opcode {
                Opcode::Hello => Self::Hello { version: version(second)? },
                Opcode::Mount => {
                    zero(second, "the detail")?;
                    Self::Mounted
                }
                Opcode::BackingOpen => Self::BackingOpened { id: backing_id(second)? },
                Opcode::BackingClose => {
                    zero(second, "the detail")?;
                    Self::BackingClosed
                }
            }),
            DENIED => {
                let reason = Deny::of(second).ok_or(ProtoError::Field("the reason"))?;
                Ok(Self::Denied { opcode, reason })
            }
            // The kernel's own range.
            FAILED if (1..4096).contains(&second) => Ok(Self::Failed { opcode, errno: second }),
            FAILED => Err(ProtoError::Field("the errno")),
            other => Err(ProtoError::Status(other)),
        }
    }
}

#[cfg(test)]
mod tests;
