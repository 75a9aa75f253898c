//! The messages between holofs and the helper.
//!
//! They travel over a `SOCK_SEQPACKET` socketpair that the helper was started with: one request, one reply, in turn.
//! Each is [`SIZE`] bytes, little-endian; numbers that a message does not use are zero. File descriptors go beside a
//! request as `SCM_RIGHTS`, exactly as many as its opcode says; replies carry none.
//!
//! | bytes | request | reply |
//! |---|---|---|
//! | 0-3 | `HfsQ` | `HfsR` |
//! | 4-5 | version of the protocol | the same |
//! | 6-7 | opcode | opcode of the request answered, 0 when it was not understood |
//! | 8-11 | flags (mount) | status |
//! | 12-15 | version (hello), id (close) | reason (denied), errno (failed), version (hello), id (open) |
//! | 16-31 | zero | zero |
//!
//! Invariant: decoding never panics, and accepts a message only if encoding what it understood gives the same bytes.
//! So nothing travels in a message that either side does not know of.

use crate::policy::Deny;

/// The version of the protocol; there is one.
pub const VERSION: u16 = 1;
/// The size of every message, in bytes.
pub const SIZE: usize = 32;

const REQUEST: [u8; 4] = *b"HfsQ";
const REPLY: [u8; 4] = *b"HfsR";

/// What is asked for, without its arguments.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum Opcode {
    /// Agree on a version; the first request.
    Hello = 1,
    /// Mount; once.
    Mount = 2,
    /// Register a file for passthrough.
    BackingOpen = 3,
    /// Forget a registered file.
    BackingClose = 4,
}

impl Opcode {
    const ALL: [Opcode; 4] = [Self::Hello, Self::Mount, Self::BackingOpen, Self::BackingClose];

    fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|opcode| *opcode as u16 == number)
    }

    /// How many file descriptors go with the request. Mount: the open `/dev/fuse`, then the directory (`O_PATH`).
    /// BackingOpen: the file.
    #[must_use]
    pub fn fds(self) -> usize {
        match self {
            Self::Mount => 2,
            Self::BackingOpen => 1,
            Self::Hello | Self::BackingClose => 0,
        }
    }
}

/// How to mount. `nosuid`, `nodev` and `default_permissions` are not to be had otherwise, so they have no flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MountFlags {
    /// Refuse every change.
    pub read_only: bool,
    /// Run no programs from it.
    pub no_exec: bool,
    /// Let other users in.
    pub allow_other: bool,
}

impl MountFlags {
    fn bits(self) -> u32 {
        u32::from(self.read_only) | u32::from(self.no_exec) << 1 | u32::from(self.allow_other) << 2
    }

    fn of(bits: u32) -> Option<Self> {
        let flags = Self { read_only: bits & 1 != 0, no_exec: bits & 2 != 0, allow_other: bits & 4 != 0 };
        (flags.bits() == bits).then_some(flags)
    }
}

/// The kernel's name of a registered file: a positive `int`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BackingId(u32);

impl BackingId {
    /// None when the kernel cannot have given it.
    #[must_use]
    pub fn new(id: u32) -> Option<Self> {
        (1..=i32::MAX as u32).contains(&id).then_some(Self(id))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// A request.
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
    /// It is mounted.
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
    /// Not [`SIZE`] bytes.
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
            Self::Size(size) => write!(f, "a message of {size} bytes instead of {SIZE}"),
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
    fn encode(self, magic: [u8; 4]) -> [u8; SIZE] {
        let mut out = [0; SIZE];
        let fields = [
            &magic[..],
            &VERSION.to_le_bytes(),
            &self.opcode.to_le_bytes(),
            &self.first.to_le_bytes(),
            &self.second.to_le_bytes(),
        ];
        for (to, from) in out.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        out
    }

    fn decode(bytes: &[u8], magic: [u8; 4]) -> Result<Self, ProtoError> {
        let &[a, b, c, d, v0, v1, o0, o1, f0, f1, f2, f3, s0, s1, s2, s3, ref rest @ ..] = bytes else {
            return Err(ProtoError::Size(bytes.len()));
        };
        if bytes.len() != SIZE {
            return Err(ProtoError::Size(bytes.len()));
        }
        if [a, b, c, d] != magic {
            return Err(ProtoError::Magic);
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(ProtoError::Version(version));
        }
        if rest.iter().any(|byte| *byte != 0) {
            return Err(ProtoError::Field("the padding"));
        }
        let opcode = u16::from_le_bytes([o0, o1]);
        let first = u32::from_le_bytes([f0, f1, f2, f3]);
        Ok(Self { opcode, first, second: u32::from_le_bytes([s0, s1, s2, s3]) })
    }
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
    pub fn encode(&self) -> [u8; SIZE] {
        let (first, second) = match *self {
            Self::Hello { version } => (0, version.into()),
            Self::Mount { flags } => (flags.bits(), 0),
            Self::BackingOpen => (0, 0),
            Self::BackingClose { id } => (0, id.get()),
        };
        Raw { opcode: self.opcode() as u16, first, second }.encode(REQUEST)
    }

    /// The request in received bytes, with which `fds` descriptors came.
    ///
    /// # Errors
    /// Whatever is not exactly a request of this version.
    pub fn decode(bytes: &[u8], fds: usize) -> Result<Self, ProtoError> {
        let Raw { opcode, first, second } = Raw::decode(bytes, REQUEST)?;
        let opcode = Opcode::of(opcode).ok_or(ProtoError::Opcode(opcode))?;
        if fds != opcode.fds() {
            return Err(ProtoError::Descriptors { got: fds, wanted: opcode.fds() });
        }
        if opcode != Opcode::Mount {
            zero(first, "the flags")?;
        }
        Ok(match opcode {
            Opcode::Hello => Self::Hello { version: version(second)? },
            Opcode::Mount => {
                zero(second, "the id")?;
                Self::Mount { flags: MountFlags::of(first).ok_or(ProtoError::Field("the flags"))? }
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
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> [u8; SIZE] {
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
        raw.encode(REPLY)
    }

    /// The reply in received bytes.
    ///
    /// # Errors
    /// Whatever is not exactly a reply of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtoError> {
        let Raw { opcode: number, first: status, second } = Raw::decode(bytes, REPLY)?;
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
