//! The adapter between the kernel's requests (fuser) and `fs`.
//!
//! It translates types, decides what the kernel may cache, and answers. It is the only place that replies with
//! an error: each goes through `fail`, which logs it and gives it its errno. Invariant: nothing but
//! this daemon changes the tree, so the kernel may cache names (also absent ones), attributes, link texts and
//! listings for as long as it likes, and opens files and directories without asking (see `open`).

mod convert;

use std::cell::RefCell;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::fs::error::errno;
use crate::fs::{Fs, Make, Whence, read_content};
use crate::materialize::Content;
use crate::namespace::NAME_MAX;
use crate::namespace::error::{Error, Result};
use crate::namespace::read::Taken;
use crate::namespace::rename::RenameMode;
use crate::namespace::types::{Attr, Caller, Ino, SetAttr};

/// How long the kernel may keep names and attributes: in effect for ever, since it learns of every change by
/// making it.
const TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// The largest write request, and what readahead may ask for at once.
const MAX_REQUEST: u32 = 1024 * 1024;

thread_local! {
    /// Each loop reads into its own buffer, grown once to the largest request it met.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers the kernel from a mounted space.
#[derive(Debug)]
pub struct Adapter {
    fs: Arc<Fs>,
}

impl Adapter {
    /// An adapter over the operations.
    #[must_use]
    pub fn new(fs: Arc<Fs>) -> Self {
        Self { fs }
    }

    /// Runs an operation that may have to materialize a large file: on a thread of its own then, so that a copy of
    /// a hundred megabytes stalls nobody's `ls`.
    fn run(&self, slow: bool, work: impl FnOnce(&Fs) + Send + 'static) {
        if !slow {
            return work(&self.fs);
        }
        let fs = Arc::clone(&self.fs);
        let spawned = std::thread::Builder::new().name("materialize".into()).spawn(move || work(&fs));
        if let Err(error) = spawned {
            // The reply went with the closure, and answered EIO in going.
            tracing::error!(%error, "no thread for a large file");
        }
    }
}

/// The one place where an error becomes an answer.
fn fail(operation: &'static str, ino: INodeNo, name: Option<&OsStr>, error: &Error) -> Errno {
    let errno = errno(error);
    let name = name.map(OsStr::to_string_lossy);
    let name = name.as_deref().unwrap_or_default();
    match errno {
        rustix::io::Errno::IO | rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => {
            tracing::error!(operation, ino = ino.0, name, %error, "failed");
        }
        _ => tracing::debug!(operation, ino = ino.0, name, %error, "refused"),
    }
    Errno::from_i32(errno.raw_os_error())
}

fn reply_entry(reply: ReplyEntry, operation: &'static str, at: INodeNo, name: &OsStr, done: Result<Attr>) {
    match done {
        Ok(attr) => reply.entry(&TTL, &convert::attr(&attr), Generation(0)),
        Err(error) => reply.error(fail(operation, at, Some(name), &error)),
    }
}

fn reply_empty(
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

fn reply_attr(reply: ReplyAttr, operation: &'static str, at: INodeNo, done: Result<Attr>) {
    match done {
        Ok(attr) => reply.attr(&TTL, &convert::attr(&attr)),
        Err(error) => reply.error(fail(operation, at, None, &error)),
    }
}

/// Answers getxattr and listxattr, which ask for the size first.
fn reply_xattr(reply: ReplyXattr, at: INodeNo, size: u32, name: Option<&OsStr>, done: Result<Vec<u8>>) {
    match done {
        Err(error) => reply.error(fail("xattr", at, name, &error)),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

/// Sends the bytes of a read.
fn send(reply: ReplyData, ino: INodeNo, content: &Content, offset: u64, size: u32) {
    if let Content::Bytes(bytes) = content {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(size as usize).min(bytes.len());
        return reply.data(bytes.get(start..end).unwrap_or_default());
    }
    BUFFER.with_borrow_mut(|buffer| {
        let size = size as usize;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let Some(room) = buffer.get_mut(..size) else { return reply.error(Errno::EIO) };
        match read_content(content, offset, room) {
            Ok(n) => reply.data(room.get(..n).unwrap_or_default()),
            Err(error) => reply.error(fail("read", ino, None, &error)),
        }
    });
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Each is an improvement where the kernel has it, and nothing is lost where it has not.
        for flag in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            // Only what goes through the kernel changes a file, so its pages never have to be dropped for a
            // changed time.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "the kernel lacks a FUSE capability");
            }
        }
        if let Err(nearest) = config.set_max_write(MAX_REQUEST) {
            tracing::debug!(nearest, "the kernel takes smaller writes only");
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.fs.names().lookup(convert::ino(parent), name.as_bytes()) {
            Err(Error::NotFound) => {
                // Number 0 lets the kernel remember that there is nothing, which an error does not.
                let absent = Attr { ino: Ino(0), ..ABSENT };
                reply.entry(&TTL, &convert::attr(&absent), Generation(0));
            }
            done => reply_entry(reply, "lookup", parent, name, done),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.fs.names().forget(convert::ino(ino), count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, "getattr", ino, self.fs.names().attr(convert::ino(ino)));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let number = convert::ino(ino);
        let slow = size.is_some_and(|size| size > 0) && self.fs.must_copy_much(number);
        self.run(slow, move |fs| {
            reply_attr(reply, "setattr", ino, fs.names().setattr(number, &change));
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.names().readlink(convert::ino(ino)) {
            Ok(text) => reply.data(&text),
            Err(error) => reply.error(fail("readlink", ino, None, &error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        // The umask was applied by the kernel already: we do not take FUSE_DONT_MASK.
        let what = match mode & libc::S_IFMT {
            libc::S_IFREG => Ok(Make::File(mode)),
            libc::S_IFIFO => Ok(Make::Fifo(mode)),
            libc::S_IFSOCK => Ok(Make::Socket(mode)),
            _ => Err(Error::NotPermitted("an environment holds no device files")),
        };
        let made = what.and_then(|what| {
            self.fs.names().make(convert::ino(parent), name.as_bytes(), what, caller(request))
        });
        reply_entry(reply, "mknod", parent, name, made);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made =
            self.fs.names().make(convert::ino(parent), name.as_bytes(), Make::Dir(mode), caller(request));
        reply_entry(reply, "mkdir", parent, name, made);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.fs.names().unlink(convert::ino(parent), name.as_bytes());
        reply_empty(reply, "unlink", parent, Some(name), done);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.fs.names().rmdir(convert::ino(parent), name.as_bytes());
        reply_empty(reply, "rmdir", parent, Some(name), done);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = CString::new(target.as_os_str().as_bytes())
            .map_err(|_| Error::Invalid("a link's text cannot hold a NUL byte"))
            .and_then(|text| {
                let what = Make::Symlink(&text);
                self.fs.names().make(convert::ino(parent), name.as_bytes(), what, caller(request))
            });
        reply_entry(reply, "symlink", parent, name, made);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            _ if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let done = self.fs.names().rename(
            convert::ino(parent),
            name.as_bytes(),
            convert::ino(newparent),
            newname.as_bytes(),
            mode,
        );
        reply_empty(reply, "rename", parent, Some(name), done);
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let number = convert::ino(ino);
        let name = newname.to_owned();
        self.run(self.fs.must_copy_much(number), move |fs| {
            let made = fs.names().link(number, convert::ino(newparent), name.as_bytes());
            reply_entry(reply, "link", newparent, &name, made);
        });
    }

    /// ENOSYS, the first time, means for ever: from then on the kernel opens files without a request
    /// (`FUSE_NO_OPEN_SUPPORT`), keeps their pages between opens, and truncates by `setattr`.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let number = convert::ino(ino);
        self.run(self.fs.must_fetch_much(number), move |fs| match fs.content(number) {
            Ok(content) => send(reply, ino, &content, offset, size),
            Err(error) => reply.error(fail("read", ino, None, &error)),
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let number = convert::ino(ino);
        let answer = move |reply: ReplyWrite, done: Result<usize>| match done {
            Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
            Err(error) => reply.error(fail("write", ino, None, &error)),
        };
        if self.fs.must_copy_much(number) {
            let data = data.to_vec();
            self.run(true, move |fs| answer(reply, fs.write(number, offset, &data)));
        } else {
            answer(reply, self.fs.write(number, offset, data));
        }
    }

    /// Nothing is held back, so there is nothing to flush; ENOSYS spares the request from then on.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let number = convert::ino(ino);
        // It waits for the disk: not on a loop.
        self.run(true, move |fs| reply_empty(reply, "fsync", ino, None, fs.sync(number, datasync)));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let number = convert::ino(ino);
        self.run(true, move |fs| reply_empty(reply, "fsyncdir", ino, None, fs.sync(number, datasync)));
    }

    /// As `open`: the kernel then also caches listings.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let done = self.fs.names().readdir(convert::ino(ino), offset, false, &mut |entry| {
            let number = INodeNo(entry.ino.0);
            taken(reply.add(number, entry.cookie, convert::kind(entry.kind), OsStr::from_bytes(entry.name)))
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(fail("readdir", ino, None, &error)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let done = self.fs.names().readdir(convert::ino(ino), offset, true, &mut |entry| {
            let number = INodeNo(entry.ino.0);
            let name = OsStr::from_bytes(entry.name);
            // `.` and `..` come without attributes; the kernel looks only at their names.
            let attr = entry.attr.unwrap_or(Attr { ino: entry.ino, kind: entry.kind, ..ABSENT });
            taken(reply.add(number, entry.cookie, name, &TTL, &convert::attr(&attr), Generation(0)))
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(fail("readdirplus", ino, None, &error)),
        }
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.fs.statfs() {
            Ok(stat) => {
                let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                let name_max = u32::try_from(NAME_MAX).unwrap_or(255);
                reply.statfs(
                    stat.f_blocks,
                    stat.f_bfree,
                    stat.f_bavail,
                    stat.f_files,
                    stat.f_ffree,
                    small(stat.f_bsize),
                    name_max,
                    small(stat.f_frsize),
                );
            }
            Err(error) => reply.error(fail("statfs", ino, None, &error)),
        }
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = u32::try_from(flags).unwrap_or(0);
        let done = self.fs.set_xattr(convert::ino(ino), name.as_bytes(), value, flags);
        reply_empty(reply, "setxattr", ino, Some(name), done);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, ino, size, Some(name), self.fs.get_xattr(convert::ino(ino), name.as_bytes()));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, ino, size, None, self.fs.list_xattrs(convert::ino(ino)));
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.fs.remove_xattr(convert::ino(ino), name.as_bytes());
        reply_empty(reply, "removexattr", ino, Some(name), done);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made =
            self.fs.names().make(convert::ino(parent), name.as_bytes(), Make::File(mode), caller(request));
        match made {
            Ok(attr) => reply.created(
                &TTL,
                &convert::attr(&attr),
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(fail("create", parent, Some(name), &error)),
        }
    }

    /// No request of this kind has a meaning here; ENOTTY is what a file says to an ioctl it does not know.
    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let number = convert::ino(ino);
        self.run(self.fs.must_copy_much(number), move |fs| {
            let mode = u32::try_from(mode).unwrap_or(u32::MAX);
            reply_empty(reply, "fallocate", ino, None, fs.fallocate(number, mode, offset, length));
        });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let whence = match whence {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.fs.seek(convert::ino(ino), from, whence) {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(error) => reply.error(fail("lseek", ino, None, &error)),
        }
    }

    fn copy_file_range(
        &self,
        _: &Request,
        ino_in: INodeNo,
        _: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = (convert::ino(ino_in), convert::ino(ino_out));
        // However little is copied at once, it may be much: not on a loop.
        self.run(true, move |fs| match fs.copy_range(from, offset_in, to, offset_out, len) {
            Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
            Err(error) => reply.error(fail("copy_file_range", ino_in, None, &error)),
        });
    }
}

/// What stands in where attributes are asked for and mean nothing.
const ABSENT: Attr = Attr {
    ino: Ino(0),
    kind: crate::namespace::types::Kind::Dir,
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    size: 0,
    blocks: 0,
    atime: EPOCH,
    mtime: EPOCH,
    ctime: EPOCH,
};
const EPOCH: crate::namespace::types::Time = crate::namespace::types::Time { sec: 0, nsec: 0 };

fn taken(full: bool) -> Taken {
    if full { Taken::Full } else { Taken::Yes }
}
