//! The messages between holofs and the helper.
//!
//! They are sent over a `SOCK_SEQPACKET` socketpair, one request and one reply in turn. A request has [`REQUEST_SIZE`]
//! bytes and a reply [`REPLY_SIZE`], in little-endian order. Unused bytes are zero. File descriptors are sent as
//! `SCM_RIGHTS`: with a request as many as its opcode says, with the reply to a successful mount the FUSE descriptor, and
//! with every other reply none.
//!
//! | bytes | request | reply |
//! |---|---|---|
//! | 0-3 | `HfsQ` | `HfsR` |
//! | 4-5 | version of the protocol | the same |
//! | 6-7 | opcode | opcode of the request, 0 if it was malformed |
//! | 8-11 | flags (mount) | status |
//! | 12-15 | version (hello), id (close) | reason (denied), errno (failed), version (hello), id (open) |
//! | 16-23 | sequence number | sequence number of the request, 0 if it was malformed |
//! | 24-31 | source (mount) | zero |
//! | 32-327 | source (mount) | |
//!
//! The process that asks can be replaced by another one, which uses the same socket, and then finds the reply to a request
//! that it has not sent. So each request has a sequence number, and its reply has the same. The helper does not look at the
//! number.
//!
//! Invariant: decoding never panics, and accepts a message only if encoding the result gives the same bytes. So a message
//! cannot contain data that one side ignores.

use crate::vocabulary::{BackingId, Deny, MountFlags, VERSION};

/// Size of a request in bytes.
pub const REQUEST_SIZE: usize = HEAD + SOURCE_SIZE;
/// Size of a reply in bytes.
pub const REPLY_SIZE: usize = 32;
/// Longest source of a mount, in bytes.
pub const SOURCE_SIZE: usize = 304;
/// Size of the fields before the source.
const HEAD: usize = 24;
/// Prefix of every source, so that no mount looks like that of a disk.
const SOURCE_PREFIX: &[u8] = b"holofs:";

const REQUEST: [u8; 4] = *b"HfsQ";
const REPLY: [u8; 4] = *b"HfsR";

/// The kind of a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum Opcode {
    /// Agrees on a version. The first request.
    Hello = 1,
    /// Mounts. Allowed once.
    Mount = 2,
    /// Registers a file for passthrough.
    BackingOpen = 3,
    /// Closes a registered file.
    BackingClose = 4,
}

impl Opcode {
    const ALL: [Self; 4] = [Self::Hello, Self::Mount, Self::BackingOpen, Self::BackingClose];

    fn of(number: u16) -> Result<Self, ProtoError> {
        let known = Self::ALL.into_iter().find(|opcode| *opcode as u16 == number);
        known.ok_or_else(|| ProtoError(format!("unknown opcode {number}")))
    }

    /// The number of descriptors that are sent with the request: for a mount the directory (`O_PATH` is sufficient), for
    /// `BackingOpen` the file.
    #[must_use]
    pub fn fds(self) -> usize {
        match self {
            Self::Mount | Self::BackingOpen => 1,
            Self::Hello | Self::BackingClose => 0,
        }
    }
}

/// The source of a mount in mountinfo: `holofs:` and at least one more character, no control characters, at most
/// [`SOURCE_SIZE`] bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MountSource([u8; SOURCE_SIZE]);

impl MountSource {
    /// None for a text that is not allowed.
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
        // `of` has checked that it is UTF-8.
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
// There is one request at a time, on the stack.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// See [`Opcode::Hello`].
    Hello {
        /// The newest version that the caller speaks, not 0.
        version: u16,
    },
    /// See [`Opcode::Mount`].
    Mount {
        flags: MountFlags,
        /// The source in mountinfo.
        source: MountSource,
    },
    /// See [`Opcode::BackingOpen`].
    BackingOpen,
    /// See [`Opcode::BackingClose`].
    BackingClose {
        /// The backing id.
        id: BackingId,
    },
}

/// A reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The version is agreed.
    Hello {
        /// The version that both speak, not 0.
        version: u16,
    },
    /// The mount was made. Sent with the FUSE descriptor.
    Mounted,
    /// The file is registered.
    BackingOpened {
        /// The backing id.
        id: BackingId,
    },
    /// The file is closed.
    BackingClosed,
    /// The policy refused the request.
    Denied {
        /// The opcode of the request.
        opcode: Opcode,
        /// The reason.
        reason: Deny,
    },
    /// A system call failed.
    Failed {
        /// The opcode of the request.
        opcode: Opcode,
        /// The errno, positive.
        errno: u32,
    },
    /// The request was malformed. The helper ends after this reply.
    NotUnderstood,
}

/// Why bytes are not a valid message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProtoError(String);

impl ProtoError {
    fn field(field: &str) -> Self {
        Self(format!("a value that is not allowed in {field}"))
    }
}

impl std::fmt::Display for ProtoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ProtoError {}

/// Checks that a message has as many descriptors as it should have.
///
/// # Errors
/// When it has not.
pub fn check_fds(got: usize, wanted: usize) -> Result<(), ProtoError> {
    if got == wanted {
        Ok(())
    } else {
        Err(ProtoError(format!("{got} file descriptors instead of {wanted}")))
    }
}

/// The numeric fields of a message.
#[derive(Clone, Copy, Default)]
struct Raw {
    opcode: u16,
    first: u32,
    second: u32,
    sequence: u64,
}

impl Raw {
    /// Encodes a message with `tail` after the numeric fields.
    fn encode<const SIZE: usize>(self, magic: [u8; 4], tail: &[u8]) -> [u8; SIZE] {
        let mut out = [0; SIZE];
        let fields = [
            &magic[..],
            &VERSION.to_le_bytes(),
            &self.opcode.to_le_bytes(),
            &self.first.to_le_bytes(),
            &self.second.to_le_bytes(),
            &self.sequence.to_le_bytes(),
            tail,
        ];
        for (to, from) in out.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        out
    }

    /// Decodes the numeric fields of a message, and returns the rest.
    fn decode(bytes: &[u8], size: usize, magic: [u8; 4]) -> Result<(Self, &[u8]), ProtoError> {
        let wrong_size = || ProtoError(format!("a message of {} bytes", bytes.len()));
        let &[
            a,
            b,
            c,
            d,
            v0,
            v1,
            o0,
            o1,
            f0,
            f1,
            f2,
            f3,
            s0,
            s1,
            s2,
            s3,
            n0,
            n1,
            n2,
            n3,
            n4,
            n5,
            n6,
            n7,
            ref tail @ ..,
        ] = bytes
        else {
            return Err(wrong_size());
        };
        if bytes.len() != size {
            return Err(wrong_size());
        }
        if [a, b, c, d] != magic {
            return Err(ProtoError("not a message of the mount helper's protocol".into()));
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(ProtoError(format!("protocol version {version} instead of {VERSION}")));
        }
        let opcode = u16::from_le_bytes([o0, o1]);
        let first = u32::from_le_bytes([f0, f1, f2, f3]);
        let second = u32::from_le_bytes([s0, s1, s2, s3]);
        let sequence = u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]);
        Ok((Self { opcode, first, second, sequence }, tail))
    }
}

fn blank(tail: &[u8]) -> Result<(), ProtoError> {
    if tail.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(ProtoError::field("the padding")) }
}

fn zero(number: u32, field: &str) -> Result<(), ProtoError> {
    if number == 0 { Ok(()) } else { Err(ProtoError::field(field)) }
}

fn version(number: u32) -> Result<u16, ProtoError> {
    let version = u16::try_from(number).ok().filter(|version| *version != 0);
    version.ok_or_else(|| ProtoError::field("the version"))
}

fn backing_id(number: u32) -> Result<BackingId, ProtoError> {
    BackingId::new(number).ok_or_else(|| ProtoError::field("the id"))
}

impl Request {
    /// The kind of the request.
    #[must_use]
    pub fn opcode(&self) -> Opcode {
        match self {
            Self::Hello { .. } => Opcode::Hello,
            Self::Mount { .. } => Opcode::Mount,
            Self::BackingOpen => Opcode::BackingOpen,
            Self::BackingClose { .. } => Opcode::BackingClose,
        }
    }

    /// The encoded message with a sequence number.
    #[must_use]
    pub fn encode(&self, sequence: u64) -> [u8; REQUEST_SIZE] {
        let (first, second, tail) = match self {
            Self::Hello { version } => (0, (*version).into(), &[][..]),
            Self::Mount { flags, source } => (flags.bits(), 0, &source.0[..]),
            Self::BackingOpen => (0, 0, &[][..]),
            Self::BackingClose { id } => (0, id.get(), &[][..]),
        };
        Raw { opcode: self.opcode() as u16, first, second, sequence }.encode(REQUEST, tail)
    }

    /// Decodes a request that was received with `fds` descriptors, and its sequence number.
    ///
    /// # Errors
    /// When the bytes are not a valid request.
    pub fn decode(bytes: &[u8], fds: usize) -> Result<(Self, u64), ProtoError> {
        let (Raw { opcode, first, second, sequence }, tail) = Raw::decode(bytes, REQUEST_SIZE, REQUEST)?;
        let opcode = Opcode::of(opcode)?;
        check_fds(fds, opcode.fds())?;
        if opcode != Opcode::Mount {
            zero(first, "the flags")?;
            blank(tail)?;
        }
        let request = match opcode {
            Opcode::Hello => Self::Hello { version: version(second)? },
            Opcode::Mount => {
                zero(second, "the id")?;
                let flags = MountFlags::of(first).ok_or_else(|| ProtoError::field("the flags"))?;
                let source = <[u8; SOURCE_SIZE]>::try_from(tail).ok().and_then(MountSource::of);
                Self::Mount { flags, source: source.ok_or_else(|| ProtoError::field("the source"))? }
            }
            Opcode::BackingOpen => zero(second, "the id").map(|()| Self::BackingOpen)?,
            Opcode::BackingClose => Self::BackingClose { id: backing_id(second)? },
        };
        Ok((request, sequence))
    }
}

const DONE: u32 = 0;
const DENIED: u32 = 1;
const FAILED: u32 = 2;
const NOT_UNDERSTOOD: u32 = 3;

impl Reply {
    /// The number of descriptors that are sent with the reply.
    #[must_use]
    pub fn fds(&self) -> usize {
        usize::from(*self == Self::Mounted)
    }

    /// The encoded reply to the request with a sequence number.
    #[must_use]
    pub fn encode(&self, sequence: u64) -> [u8; REPLY_SIZE] {
        let raw = |opcode: Opcode, first, second| Raw { opcode: opcode as u16, first, second, sequence };
        let done = |opcode, second| raw(opcode, DONE, second);
        let raw = match *self {
            Self::Hello { version } => done(Opcode::Hello, version.into()),
            Self::Mounted => done(Opcode::Mount, 0),
            Self::BackingOpened { id } => done(Opcode::BackingOpen, id.get()),
            Self::BackingClosed => done(Opcode::BackingClose, 0),
            Self::Denied { opcode, reason } => raw(opcode, DENIED, reason as u32),
            Self::Failed { opcode, errno } => raw(opcode, FAILED, errno),
            Self::NotUnderstood => Raw { opcode: 0, first: NOT_UNDERSTOOD, second: 0, sequence: 0 },
        };
        raw.encode(REPLY, &[])
    }

    /// Decodes a reply, and the sequence number of its request.
    ///
    /// # Errors
    /// When the bytes are not a valid reply.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u64), ProtoError> {
        let (raw, tail) = Raw::decode(bytes, REPLY_SIZE, REPLY)?;
        let Raw { opcode: number, first: status, second, sequence } = raw;
        blank(tail)?;
        if status == NOT_UNDERSTOOD {
            zero(number.into(), "the opcode")?;
            zero(second, "the detail")?;
            if sequence != 0 {
                return Err(ProtoError::field("the sequence number"));
            }
            return Ok((Self::NotUnderstood, 0));
        }
        let opcode = Opcode::of(number)?;
        let reply = match (status, opcode) {
            (DONE, Opcode::Hello) => Self::Hello { version: version(second)? },
            (DONE, Opcode::Mount) => zero(second, "the detail").map(|()| Self::Mounted)?,
            (DONE, Opcode::BackingOpen) => Self::BackingOpened { id: backing_id(second)? },
            (DONE, Opcode::BackingClose) => zero(second, "the detail").map(|()| Self::BackingClosed)?,
            (DENIED, _) => {
                let reason = Deny::of(second).ok_or_else(|| ProtoError::field("the reason"))?;
                Self::Denied { opcode, reason }
            }
            // The range of errnos in the kernel.
            (FAILED, _) if (1..4096).contains(&second) => Self::Failed { opcode, errno: second },
            (FAILED, _) => return Err(ProtoError::field("the errno")),
            (other, _) => return Err(ProtoError(format!("unknown status {other}"))),
        };
        Ok((reply, sequence))
    }
}

#[cfg(test)]
mod tests;
