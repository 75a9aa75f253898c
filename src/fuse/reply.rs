//! Answers requests: converts results to fuser's replies. All errors are logged, counted and answered here.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, RequestId,
};
use rustix::fs::StatVfs;

use super::convert;
use super::passthrough::{Answer, Opened};
use super::workers::{Mount, TTL, guarded};
use crate::fs::error::{corrupt, errno, is_cut_off};
use crate::fs::{Fs, read_file};
use crate::handoff::opens::Handle;
use crate::materialize::FileData;
use crate::metrics::Counter;
use crate::namespace::NAME_MAX;
use crate::namespace::types::{Attr, Error, Result, upper as call};

thread_local! {
    /// Each thread reads into its own buffer, which grows to the size of the largest request.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A reply of fuser that can be an error.
pub(super) trait ErrorReply {
    fn error(self, errno: Errno);
}

macro_rules! error_replies {
    ($($reply:ty),*) => {
        $(impl ErrorReply for $reply {
            fn error(self, errno: Errno) {
                <$reply>::error(self, errno);
            }
        })*
    };
}

error_replies! {
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr
}

/// What a request is about.
#[derive(Clone, Copy)]
pub(super) struct At<'n> {
    pub(super) request: RequestId,
    pub(super) operation: &'static str,
    pub(super) ino: INodeNo,
    /// A name in the directory `ino`, or of an attribute. Empty without one.
    pub(super) name: &'n [u8],
}

impl<'n> At<'n> {
    pub(super) fn inode(request: &Request, operation: &'static str, ino: INodeNo) -> Self {
        Self { request: request.unique(), operation, ino, name: &[] }
    }

    pub(super) fn name(request: &Request, operation: &'static str, ino: INodeNo, name: &'n OsStr) -> Self {
        Self { request: request.unique(), operation, ino, name: name.as_bytes() }
    }
}

/// Answers with an error: the only place that does, except for ENOSYS, which tells the kernel not to send such requests.
pub(super) fn refuse(fs: &Fs, reply: impl ErrorReply, at: At<'_>, error: &Error) {
    let errno = errno(error);
    fs.metrics().request_failed(errno);
    if let Some((path, digest)) = corrupt(error) {
        fs.metrics().corrupt(path, &digest);
    }
    let At { operation, ino: INodeNo(ino), name, .. } = at;
    let name = &*String::from_utf8_lossy(name);
    match errno {
        rustix::io::Errno::IO if is_cut_off(error) => {
            if let Some(more) = fs.metrics().may_log_silence() {
                tracing::error!(operation, ino, name, %error, more, "failed: the object store does not answer");
            }
        }
        rustix::io::Errno::IO => tracing::error!(operation, ino, name, %error, "failed"),
        // A message of its own, because the log is limited by message: a full disk must not hide a bad blob.
        rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => {
            tracing::error!(operation, ino, name, %error, "no space");
        }
        _ => tracing::debug!(operation, ino, name, %error, "refused"),
    }
    reply.error(Errno::from_i32(errno.raw_os_error()));
}

/// Answers with the result of an operation: by `send`, or with its error.
pub(super) fn answer<R: ErrorReply, T>(
    fs: &Fs,
    reply: R,
    at: At<'_>,
    done: Result<T>,
    send: impl FnOnce(R, T),
) {
    match done {
        Ok(value) => send(reply, value),
        Err(error) => refuse(fs, reply, at, &error),
    }
}

/// Answers with an entry. The kernel then holds one lookup of its inode.
pub(super) fn entry(mount: &Mount, reply: ReplyEntry, attr: Attr) {
    let generation = Generation(attr.generation.into());
    reply.entry_with_ttls(mount.attr_ttl(attr.ino), &TTL, &convert::attr(&attr), generation);
}

/// Answers a lookup. With number 0 the kernel caches that there is no such name; with an error it would not.
pub(super) fn found(mount: &Mount, reply: ReplyEntry, found: Option<Attr>) {
    match found {
        Some(attr) => entry(mount, reply, attr),
        None => reply.entry(&TTL, &convert::attr(&Attr::default()), Generation(0)),
    }
}

pub(super) fn empty(_: &Mount, reply: ReplyEmpty, (): ()) {
    reply.ok();
}

pub(super) fn attributes(mount: &Mount, reply: ReplyAttr, attr: Attr) {
    reply.attr(mount.attr_ttl(attr.ino), &convert::attr(&attr));
}

pub(super) fn text(_: &Mount, reply: ReplyData, text: Vec<u8>) {
    reply.data(&text);
}

/// Answers with a length that the kernel asked for, so it fits.
pub(super) fn written(_: &Mount, reply: ReplyWrite, n: usize) {
    reply.written(u32::try_from(n).unwrap_or(u32::MAX));
}

pub(super) fn offset(_: &Mount, reply: ReplyLseek, at: u64) {
    reply.offset(at.cast_signed());
}

pub(super) fn statfs(_: &Mount, reply: ReplyStatfs, found: StatVfs) {
    let StatVfs { f_blocks, f_bfree, f_bavail, f_files, f_ffree, .. } = found;
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let (block, fragment) = (small(found.f_bsize), small(found.f_frsize));
    reply.statfs(f_blocks, f_bfree, f_bavail, f_files, f_ffree, block, NAME_MAX as u32, fragment);
}

/// The answer to getxattr and listxattr. With `size` 0 the caller asks for the length.
pub(super) enum Xattr {
    Length(u32),
    Value(Vec<u8>),
}

/// Checks that a value has at most `size` bytes.
pub(super) fn fitting(value: Vec<u8>, size: u32) -> Result<Xattr> {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => Ok(Xattr::Length(len)),
        Ok(len) if len <= size => Ok(Xattr::Value(value)),
        _ => Err(call("getxattr")(rustix::io::Errno::RANGE)),
    }
}

pub(super) fn xattr(_: &Mount, reply: ReplyXattr, answer: Xattr) {
    match answer {
        Xattr::Length(len) => reply.size(len),
        Xattr::Value(value) => reply.data(&value),
    }
}

/// Answers a read from data that is at hand, or from a blob once its bytes are unpacked.
pub(super) fn data(
    mount: &Arc<Mount>,
    reply: ReplyData,
    at: At<'static>,
    found: Result<FileData>,
    offset: u64,
    size: u32,
) {
    answer(mount, reply, at, found, |reply, data| match data {
        FileData::Bytes(bytes) => {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let end = start.saturating_add(size as usize).min(bytes.len());
            mount.metrics().served(end - start);
            reply.data(bytes.get(start..end).unwrap_or_default());
        }
        FileData::File(file) => from_file(mount, reply, at, Ok(file), offset, size),
        FileData::Upper(file) => from_file(mount, reply, at, Ok(file), offset, size),
        FileData::Stream(filling, node) => {
            let mount = Arc::clone(mount);
            let unpacked = Box::new(move |outcome| {
                guarded(mount.metrics(), || {
                    from_file(&mount, reply, at, mount.unpacked(node, outcome), offset, size);
                });
            });
            if let Err(unpacked) = filling.when_there(offset, size as usize, unpacked) {
                tracing::debug!(
                    ino = at.ino.0,
                    "too many reads wait for one blob; this one holds its thread"
                );
                unpacked(filling.wait(offset, size as usize));
            }
        }
    });
}

fn from_file(fs: &Fs, reply: ReplyData, at: At<'_>, file: Result<impl AsFd>, offset: u64, size: u32) {
    BUFFER.with_borrow_mut(|buffer| {
        let size = size as usize;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let read = file.and_then(|file| {
            let room = buffer.get_mut(..size).ok_or_else(|| call("read")(rustix::io::Errno::NOMEM))?;
            Ok((read_file(file, offset, room)?, room))
        });
        answer(fs, reply, at, read, |reply, (n, room)| {
            fs.metrics().served(n);
            reply.data(room.get(..n).unwrap_or_default());
        });
    });
}

pub(super) fn opened(mount: &Mount, reply: ReplyOpen, Opened { answer, handle }: Opened) {
    count_open(mount, &answer);
    let number = FileHandle(handle.get());
    match answer {
        Answer::Passthrough(id) => {
            crate::sys::backing::reply_open(reply, number, FopenFlags::FOPEN_NOFLUSH, id);
        }
        Answer::Cached { keep } => reply.opened(number, cache_flags(keep)),
    }
    answered(mount, handle);
}

fn answered(mount: &Mount, handle: Handle) {
    if let Some(modes) = &mount.passthrough {
        modes.answered(handle);
    }
}

/// Counts an open by how the kernel goes on. In cached mode the kernel sends no opens.
fn count_open(mount: &Mount, answer: &Answer) {
    mount.metrics().add(
        match answer {
            Answer::Passthrough(_) => Counter::OpensByPassthrough,
            Answer::Cached { .. } => Counter::OpensByCache,
        },
        1,
    );
}

pub(super) fn created(mount: &Mount, reply: ReplyCreate, (attr, opened): (Attr, Opened)) {
    let Opened { answer, handle } = opened;
    count_open(mount, &answer);
    let (attr, generation) = (convert::attr(&attr), Generation(attr.generation.into()));
    let number = FileHandle(handle.get());
    match answer {
        Answer::Passthrough(id) => {
            let flags = FopenFlags::FOPEN_NOFLUSH;
            crate::sys::backing::reply_create(reply, &TTL, &attr, generation, number, flags, id);
        }
        Answer::Cached { keep } => {
            reply.created(&TTL, &attr, generation, number, cache_flags(keep));
        }
    }
    answered(mount, handle);
}

/// Without `keep`, the kernel drops the file's pages: they may be older than a passthrough write.
fn cache_flags(keep: bool) -> FopenFlags {
    if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}
