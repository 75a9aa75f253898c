//! Answering: our results become fuser's replies, and errors become errnos, here and nowhere else.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyXattr,
};

use super::convert;
use super::passthrough::{Answer, Passthrough};
use super::workers::guarded;
use crate::fs::error::errno;
use crate::fs::{Fs, read_file};
use crate::materialize::FileData;
use crate::namespace::error::{Error, Result};
use crate::namespace::types::{Attr, Ino};

/// How long the kernel may keep names and attributes: in effect for ever, since it learns of every change by
/// making it.
pub(super) static TTL: Duration = Duration::from_secs(365 * 24 * 3600);

thread_local! {
    /// Each loop reads into its own buffer, grown once to the largest request it met.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What stands in where attributes are asked for and mean nothing.
pub(super) const ABSENT: Attr = Attr {
    ino: Ino(0),
    kind: crate::namespace::types::Kind::Dir,
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    size: 0,
    blocks: 0,
    generation: 0,
    device: 0,
    atime: EPOCH,
    mtime: EPOCH,
    ctime: EPOCH,
};
const EPOCH: crate::namespace::types::Time = crate::namespace::types::Time { sec: 0, nsec: 0 };

/// The one place where an error becomes an answer.
pub(super) fn fail(operation: &'static str, ino: INodeNo, name: Option<&OsStr>, error: &Error) -> Errno {
    let errno = errno(error);
    let name = name.map(OsStr::to_string_lossy);
    let name = name.as_deref().unwrap_or_default();
    match errno {
        rustix::io::Errno::IO => tracing::error!(operation, ino = ino.0, name, %error, "failed"),
        // Apart, so that a full disk, which is told again and again, does not keep a bad blob from being told.
        rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => {
            tracing::error!(operation, ino = ino.0, name, %error, "no space");
        }
        _ => tracing::debug!(operation, ino = ino.0, name, %error, "refused"),
    }
    Errno::from_i32(errno.raw_os_error())
}

/// The one way in which an entry gets to the kernel, which then holds one reference to its inode.
pub(super) fn entry(
    modes: Option<&Arc<Passthrough>>,
    reply: ReplyEntry,
    operation: &'static str,
    at: INodeNo,
    name: &OsStr,
    done: Result<Attr>,
) {
    let attr = match done {
        Ok(attr) => attr,
        Err(error) => return reply.error(fail(operation, at, Some(name), &error)),
    };
    let attr_ttl = attr_ttl(modes, attr.ino);
    reply.entry_with_ttls(attr_ttl, &TTL, &convert::attr(&attr), Generation(attr.generation.into()));
}

/// How long the kernel may keep an inode's attributes.
pub(super) fn attr_ttl(modes: Option<&Arc<Passthrough>>, ino: Ino) -> &'static Duration {
    match modes {
        Some(modes) if !modes.keeps_attributes(ino.0) => &Duration::ZERO,
        _ => &TTL,
    }
}

pub(super) fn empty(
    reply: ReplyEmpty,
    operation: &'static str,
    at: INodeNo,
    name: Option<&OsStr>,
    done: Result<()>,
) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(fail(operation, at, name, &error)),
    }
}

pub(super) fn attributes(
    modes: Option<&Arc<Passthrough>>,
    reply: ReplyAttr,
    operation: &'static str,
    at: INodeNo,
    done: Result<Attr>,
) {
    match done {
        Ok(attr) => reply.attr(attr_ttl(modes, attr.ino), &convert::attr(&attr)),
        Err(error) => reply.error(fail(operation, at, None, &error)),
    }
}

/// Answers getxattr and listxattr, which ask for the size first.
pub(super) fn xattr(reply: ReplyXattr, at: INodeNo, size: u32, name: Option<&OsStr>, done: Result<Vec<u8>>) {
    match done {
        Err(error) => reply.error(fail("xattr", at, name, &error)),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
    }
}

/// Answers a read from data that is at hand, or from a blob once its bytes are unpacked.
pub(super) fn data(fs: &Arc<Fs>, reply: ReplyData, ino: INodeNo, data: FileData, offset: u64, size: u32) {
    match data {
        FileData::Bytes(bytes) => {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let end = start.saturating_add(size as usize).min(bytes.len());
            reply.data(bytes.get(start..end).unwrap_or_default());
        }
        FileData::File(file) => from_file(reply, ino, Ok(file), offset, size),
        FileData::Upper(file) => from_file(reply, ino, Ok(file), offset, size),
        FileData::Stream(filling, node) => {
            let fs = Arc::clone(fs);
            let answer = move |outcome| {
                guarded(|| from_file(reply, ino, fs.unpacked(node, outcome), offset, size));
            };
            if let Err(answer) = filling.when_there(offset, size as usize, Box::new(answer)) {
                tracing::debug!(ino = ino.0, "too many reads wait for one blob; waiting on this thread");
                answer(filling.wait(offset, size as usize));
            }
        }
    }
}

fn from_file(reply: ReplyData, ino: INodeNo, file: Result<impl AsFd>, offset: u64, size: u32) {
    BUFFER.with_borrow_mut(|buffer| {
        let size = size as usize;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let Some(room) = buffer.get_mut(..size) else { return reply.error(Errno::EIO) };
        match file.and_then(|file| read_file(file, offset, room)) {
            Ok(n) => reply.data(room.get(..n).unwrap_or_default()),
            Err(error) => reply.error(fail("read", ino, None, &error)),
        }
    });
}

/// Answers an open in the way that was decided.
pub(super) fn opened(reply: ReplyOpen, answer: Answer) {
    match answer {
        Answer::Passthrough(id) => crate::sys::backing::reply_open(reply, FopenFlags::FOPEN_NOFLUSH, id),
        Answer::Cached { keep } => reply.opened(FileHandle(0), cache_flags(keep)),
    }
}

/// Answers a create, as [`opened`] does an open.
pub(super) fn created(reply: ReplyCreate, attr: &Attr, answer: Answer) {
    let (attr, generation) = (convert::attr(attr), Generation(attr.generation.into()));
    match answer {
        Answer::Passthrough(id) => {
            let flags = FopenFlags::FOPEN_NOFLUSH;
            crate::sys::backing::reply_create(reply, &TTL, &attr, generation, flags, id);
        }
        Answer::Cached { keep } => {
            reply.created(&TTL, &attr, generation, FileHandle(0), cache_flags(keep));
        }
    }
}

/// What the kernel has cached may be from before somebody wrote by passthrough: then it must not be kept.
fn cache_flags(keep: bool) -> FopenFlags {
    if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}
