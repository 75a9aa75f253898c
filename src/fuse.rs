//! The adapter between the kernel's requests (fuser) and `fs`.
//!
//! It translates types, decides what the kernel may cache, and answers. It is the only place that replies with
//! an error: each goes through `fail`, which logs it and gives it its errno. Invariant: nothing but
//! this daemon changes the tree, so the kernel may cache names (also absent ones), attributes, link texts and
//! listings for as long as it likes, and opens directories, and in cached mode files, without asking (see `open`).

mod convert;
mod opening;
mod passthrough;
mod reply;
mod workers;

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use rustix::fs::Access;

use crate::fs::{DataLocation, Fs, Make, Whence};
use crate::namespace::NAME_MAX;
use crate::namespace::error::{Error, Result};
use crate::namespace::read::Taken;
use crate::namespace::rename::RenameMode;
use crate::namespace::types::{Attr, Caller, Ino, SetAttr};
use crate::sys::backing::Backings;
use opening::Wanted;
use passthrough::{Answer, Passthrough};
use workers::Workers;

/// The largest write request, and what readahead may ask for at once.
const MAX_REQUEST: u32 = 1024 * 1024;

/// Answers the kernel from a mounted space.
#[derive(Debug)]
pub struct Adapter {
    workers: Workers,
    /// None in cached mode.
    passthrough: Option<Arc<Passthrough>>,
    /// As [`Offer::stack_depth`].
    stack_depth: u32,
    /// Dropped when the last loop has ended.
    _serving: Serving,
}

/// Something whose drop tells that no loop serves the mount any more.
pub type Serving = Box<dyn std::fmt::Debug + Send + Sync>;

/// What passthrough mode needs.
#[derive(Debug)]
pub struct Offer {
    /// Who registers backing files.
    pub backings: Arc<dyn Backings>,
    /// 1, or 2 when backing files lie on a stacked filesystem themselves (overlayfs): then none can be stacked on
    /// this mount.
    pub stack_depth: u32,
    /// Filled in once the session exists.
    pub notifier: Arc<OnceLock<Notifier>>,
}

impl Adapter {
    /// An adapter over the operations, called from so many loops, in passthrough mode when it is offered.
    #[must_use]
    pub fn new(fs: Arc<Fs>, loops: usize, offer: Option<Offer>, serving: Serving) -> Self {
        let stack_depth = offer.as_ref().map_or(0, |offer| offer.stack_depth);
        let passthrough = offer.map(|offer| Arc::new(Passthrough::new(offer.backings, offer.notifier)));
        Self { workers: Workers::new(fs, loops), passthrough, stack_depth, _serving: serving }
    }

    /// Makes an entry that is no open file, and answers.
    fn make(
        &self,
        operation: &'static str,
        parent: INodeNo,
        name: &OsStr,
        what: Make<'static>,
        caller: Caller,
        reply: ReplyEntry,
    ) {
        let (dir, modes) = (convert::ino(parent), self.passthrough.clone());
        self.workers.run(name, move |fs, name| {
            let made = fs.retry(|| fs.namespace().make(dir, name.as_bytes(), what, caller));
            reply::entry(modes.as_ref(), reply, operation, parent, name, made);
        });
    }

    /// Runs an operation that may have to wait for a disk; one that may have to copy a large file (`slow`) not on a
    /// loop, so that a copy of a hundred megabytes stalls nobody's `ls`.
    fn run(&self, slow: bool, work: impl FnOnce(&Arc<Fs>) + Send + 'static) {
        if slow { self.workers.hand_over(work) } else { self.workers.run(&(), move |fs, ()| work(fs)) }
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Each is an improvement where the kernel has it, and nothing is lost where it has not.
        let by_mode: &[InitFlags] = match self.passthrough {
            // Else a file that is about to be emptied would be copied up first.
            Some(_) => &[InitFlags::FUSE_PASSTHROUGH, InitFlags::FUSE_ATOMIC_O_TRUNC],
            None => &[InitFlags::FUSE_NO_OPEN_SUPPORT],
        };
        if let Err(nearest) = config.set_max_stack_depth(self.stack_depth) {
            tracing::debug!(nearest, "the kernel does not stack so deep");
        }
        for flag in by_mode.iter().copied().chain([
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            // A file handle stays good when the kernel has forgotten the inode: it looks up `.` then.
            InitFlags::FUSE_EXPORT_SUPPORT,
            // Only what goes through the kernel changes a file, so its pages never have to be dropped for a
            // changed time.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // Else the kernel asks before every write whether the file has capabilities to lose.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ]) {
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
        let (dir, modes) = (convert::ino(parent), self.passthrough.clone());
        self.workers.look(dir, name, move |fs, name| {
            match fs.retry(|| fs.namespace().lookup(dir, name.as_bytes())) {
                Err(Error::NotFound) => {
                    // Number 0 lets the kernel remember that there is nothing, which an error does not.
                    let absent = Attr { ino: Ino(0), ..reply::ABSENT };
                    reply.entry(&reply::TTL, &convert::attr(&absent), Generation(0));
                }
                done => reply::entry(modes.as_ref(), reply, "lookup", parent, name, done),
            }
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        // It may close the last descriptor of an unlinked file, and so free what that had on the disk.
        let modes = self.passthrough.clone();
        self.workers.look(convert::ino(ino), &(), move |fs, ()| {
            if let Some(modes) = modes {
                modes.forget(ino.0);
            }
            fs.namespace().forget(convert::ino(ino), count);
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let (number, modes) = (convert::ino(ino), self.passthrough.clone());
        self.workers.look(number, &(), move |fs, ()| {
            let done = fs.retry(|| fs.namespace().attr(number));
            reply::attributes(modes.as_ref(), reply, "getattr", ino, done);
        });
    }

    fn setattr(
        &self,
        request: &Request,
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
            // FUSE_HANDLE_KILLPRIV_V2 leaves it to us. Who may keep the bits is not told here; root may.
            drop_setid: size.is_some() && request.uid() != 0,
        };
        let number = convert::ino(ino);
        // Another size is a change of bytes.
        let modes = self.passthrough.clone();
        let waits = size.is_some() && modes.as_ref().is_some_and(|modes| modes.must_wait(number.0));
        let slow = waits || size.is_some_and(|size| size > 0) && self.workers.fs().must_copy_much(number);
        self.run(slow, move |fs| {
            let begun = match &modes {
                Some(modes) if size.is_some() => opening::changing(modes, number).map(Some),
                _ => Ok(None),
            };
            let done = begun.and_then(|_change| fs.retry(|| fs.namespace().setattr(number, &change)));
            reply::attributes(modes.as_ref(), reply, "setattr", ino, done);
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let number = convert::ino(ino);
        self.workers.look(number, &(), move |fs, ()| match fs.retry(|| fs.namespace().readlink(number)) {
            Ok(text) => reply.data(&text),
            Err(error) => reply.error(reply::fail("readlink", ino, None, &error)),
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        // The umask was applied by the kernel already: we do not take FUSE_DONT_MASK.
        let what = match mode & libc::S_IFMT {
            libc::S_IFREG => Ok(Make::File(mode)),
            libc::S_IFIFO => Ok(Make::Fifo(mode)),
            libc::S_IFSOCK => Ok(Make::Socket(mode)),
            // The kernel lets only root make them, and every mount of ours is `nodev`.
            libc::S_IFCHR => Ok(Make::CharDevice(mode, convert::device_of(rdev))),
            libc::S_IFBLK => Ok(Make::BlockDevice(mode, convert::device_of(rdev))),
            _ => Err(Error::Invalid("no such kind of entry")),
        };
        match what {
            Ok(what) => self.make("mknod", parent, name, what, caller(request), reply),
            Err(error) => reply.error(reply::fail("mknod", parent, Some(name), &error)),
        }
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
        self.make("mkdir", parent, name, Make::Dir(mode), caller(request), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = convert::ino(parent);
        self.workers.run(name, move |fs, name| {
            let done = fs.retry(|| fs.namespace().unlink(dir, name.as_bytes()));
            reply::empty(reply, "unlink", parent, Some(name), done);
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = convert::ino(parent);
        self.workers.run(name, move |fs, name| {
            let done = fs.retry(|| fs.namespace().rmdir(dir, name.as_bytes()));
            reply::empty(reply, "rmdir", parent, Some(name), done);
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let text = CString::new(target.as_os_str().as_bytes())
            .map_err(|_| Error::Invalid("a link's text cannot hold a NUL byte"));
        let (dir, modes, caller) = (convert::ino(parent), self.passthrough.clone(), caller(request));
        self.workers.run(name, move |fs, name| {
            let made = text.and_then(|text| {
                fs.retry(|| fs.namespace().make(dir, name.as_bytes(), Make::Symlink(&text), caller))
            });
            reply::entry(modes.as_ref(), reply, "symlink", parent, name, made);
        });
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
        let (dir, new_dir, new_name) = (convert::ino(parent), convert::ino(newparent), newname.to_owned());
        self.workers.run(name, move |fs, name| {
            let done =
                fs.retry(|| fs.namespace().rename(dir, name.as_bytes(), new_dir, new_name.as_bytes(), mode));
            reply::empty(reply, "rename", parent, Some(name), done);
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let number = convert::ino(ino);
        let (parent, name) = (convert::ino(newparent), newname.to_owned());
        let modes = self.passthrough.clone();
        self.run(self.workers.fs().must_copy_much(number), move |fs| {
            let made = fs.retry(|| fs.namespace().link(number, parent, name.as_bytes()));
            reply::entry(modes.as_ref(), reply, "link", newparent, &name, made);
        });
    }

    /// In cached mode ENOSYS, which the first time means for ever: from then on the kernel opens files without a
    /// request (`FUSE_NO_OPEN_SUPPORT`), keeps their pages between opens, and truncates by `setattr`.
    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some(modes) = self.passthrough.clone() else { return reply.error(Errno::ENOSYS) };
        let number = convert::ino(ino);
        let wanted = Wanted::new(flags, request.uid());
        match wanted.at_once(self.workers.fs(), &modes, number) {
            Ok(None) => {}
            Ok(Some(answer)) => return reply::opened(reply, answer),
            Err(error) => return reply.error(reply::fail("open", ino, None, &error)),
        }
        let slow = wanted.is_slow(self.workers.fs(), &modes, number);
        self.run(slow, move |fs| match fs.retry(|| wanted.open(fs, &modes, number)) {
            Ok(answer) => reply::opened(reply, answer),
            Err(error) => reply.error(reply::fail("open", ino, None, &error)),
        });
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let Some(modes) = self.passthrough.clone() else { return reply.ok() };
        self.workers.run(&(), move |_, ()| {
            modes.release(ino.0);
            reply.ok();
        });
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
        self.workers.run_in_steps(move |fs| match fs.retry(|| fs.find_data(number)) {
            Ok(DataLocation::Here(data)) => {
                reply::data(fs, reply, ino, data, offset, size);
                None
            }
            Ok(DataLocation::Fetch(lower)) => {
                Some(move |fs: &Arc<Fs>| match fs.retry(|| fs.fetch_data(lower)) {
                    Ok(data) => reply::data(fs, reply, ino, data, offset, size),
                    Err(error) => reply.error(reply::fail("read", ino, None, &error)),
                })
            }
            Err(error) => {
                reply.error(reply::fail("read", ino, None, &error));
                None
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let number = convert::ino(ino);
        let drop_setid = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let write = move |fs: &Fs, data: &[u8]| {
            // First, as the kernel does on a disk: a write that fails may have taken them, one that was done has.
            if drop_setid {
                fs.drop_setid(number)?;
            }
            fs.retry(|| fs.write(number, offset, data))
        };
        let answer = move |reply: ReplyWrite, done: Result<usize>| match done {
            Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
            Err(error) => reply.error(reply::fail("write", ino, None, &error)),
        };
        if self.workers.fs().must_copy_much(number) {
            let data = data.to_vec();
            self.workers.hand_over(move |fs| answer(reply, write(fs, &data)));
        } else {
            self.workers.run(data, move |fs, data| answer(reply, write(fs, data)));
        }
    }

    /// Nothing is held back, so there is nothing to flush; ENOSYS spares the request from then on.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let number = convert::ino(ino);
        // It waits for the disk: not on a loop.
        self.workers.hand_over(move |fs| {
            reply::empty(reply, "fsync", ino, None, fs.retry(|| fs.sync(number, datasync)));
        });
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let number = convert::ino(ino);
        self.workers.hand_over(move |fs| {
            reply::empty(reply, "fsyncdir", ino, None, fs.retry(|| fs.sync(number, datasync)));
        });
    }

    /// As `open`: the kernel then also caches listings.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let number = convert::ino(ino);
        self.workers.look(number, &(), move |fs, ()| {
            let done = fs.namespace().readdir(number, offset, false, &mut |entry| {
                let (number, kind) = (INodeNo(entry.ino.0), convert::kind(entry.kind));
                taken(reply.add(number, entry.cookie, kind, OsStr::from_bytes(entry.name)))
            });
            match done {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(reply::fail("readdir", ino, None, &error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (number, modes) = (convert::ino(ino), self.passthrough.clone());
        self.workers.look(number, &(), move |fs, ()| {
            let done = fs.namespace().readdir(number, offset, true, &mut |entry| {
                let number = INodeNo(entry.ino.0);
                let name = OsStr::from_bytes(entry.name);
                // `.` and `..` come without attributes; the kernel looks only at their names.
                let attr = entry.attr.unwrap_or(Attr { ino: entry.ino, kind: entry.kind, ..reply::ABSENT });
                // There is one time for both the name and the attributes.
                let ttl = reply::attr_ttl(modes.as_ref(), entry.ino);
                let generation = Generation(attr.generation.into());
                taken(reply.add(number, entry.cookie, name, ttl, &convert::attr(&attr), generation))
            });
            match done {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(reply::fail("readdirplus", ino, None, &error)),
            }
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.workers.run(&(), move |fs, ()| match fs.statfs() {
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
            Err(error) => reply.error(reply::fail("statfs", ino, None, &error)),
        });
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
        let (number, value) = (convert::ino(ino), value.to_owned());
        self.workers.run(name, move |fs, name| {
            let done = fs.retry(|| fs.set_xattr(number, name.as_bytes(), &value, flags));
            reply::empty(reply, "setxattr", ino, Some(name), done);
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let number = convert::ino(ino);
        self.workers.look(number, name, move |fs, name| {
            let value = fs.retry(|| fs.get_xattr(number, name.as_bytes()));
            reply::xattr(reply, ino, size, Some(name), value);
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let number = convert::ino(ino);
        self.workers.look(number, &(), move |fs, ()| {
            reply::xattr(reply, ino, size, None, fs.retry(|| fs.list_xattrs(number)));
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let number = convert::ino(ino);
        self.workers.run(name, move |fs, name| {
            let done = fs.retry(|| fs.remove_xattr(number, name.as_bytes()));
            reply::empty(reply, "removexattr", ino, Some(name), done);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (dir, modes, caller) = (convert::ino(parent), self.passthrough.clone(), caller(request));
        let wanted = Wanted::new(OpenFlags(flags), request.uid());
        self.workers.run(name, move |fs, name| {
            let made = fs.retry(|| fs.namespace().make(dir, name.as_bytes(), Make::File(mode), caller));
            let answered = made.and_then(|attr| {
                let Some(modes) = &modes else { return Ok((attr, Answer::Cached { keep: true })) };
                let answer = fs.retry(|| wanted.created(fs, modes, &attr)).inspect_err(|_| {
                    // The answer is an error, so nothing is left of the file, and the kernel holds no lookup of it.
                    if let Err(error) = fs.namespace().unlink(dir, name.as_bytes()) {
                        tracing::error!(?name, %error, "a file stays whose creation failed");
                    }
                    fs.namespace().forget(attr.ino, 1);
                })?;
                Ok((attr, answer))
            });
            match answered {
                Ok((attr, answer)) => reply::created(reply, &attr, answer),
                Err(error) => reply.error(reply::fail("create", parent, Some(name), &error)),
            }
        });
    }

    /// For `access` and `chdir`, where the kernel does not check permission bits itself.
    fn access(&self, _: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let mask = Access::from_bits_truncate(u32::try_from(mask.bits()).unwrap_or(0));
        let number = convert::ino(ino);
        self.workers.look(number, &(), move |fs, ()| match fs.retry(|| fs.may_access(number, mask)) {
            Ok(true) => reply.ok(),
            Ok(false) => reply.error(Errno::EACCES),
            Err(error) => reply.error(reply::fail("access", ino, None, &error)),
        });
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
        self.run(self.workers.fs().must_copy_much(number), move |fs| {
            let mode = u32::try_from(mode).unwrap_or(u32::MAX);
            let done = fs.retry(|| fs.fallocate(number, mode, offset, length));
            reply::empty(reply, "fallocate", ino, None, done);
        });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let whence = match whence {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let number = convert::ino(ino);
        self.run(false, move |fs| match fs.retry(|| fs.seek(number, from, whence)) {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(error) => reply.error(reply::fail("lseek", ino, None, &error)),
        });
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
        self.workers.hand_over(move |fs| {
            match fs.retry(|| fs.copy_range(from, offset_in, to, offset_out, len)) {
                Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
                Err(error) => reply.error(reply::fail("copy_file_range", ino_in, None, &error)),
            }
        });
    }
}

fn taken(full: bool) -> Taken {
    if full { Taken::Full } else { Taken::Yes }
}
