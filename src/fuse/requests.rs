//! The requests of the kernel: each is translated, run where it may block, and answered.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::Access;

use super::Adapter;
use super::convert::{self, ino as number};
use super::mount::{Mount, TTL};
use super::opening::Wanted;
use super::passthrough::Answer;
use super::reply::{self, At};
use crate::fs::{DataLocation, Make, Whence};
use crate::namespace::NAME_MAX;
use crate::namespace::error::{Error, Result, upper as call};
use crate::namespace::read::Taken;
use crate::namespace::rename::RenameMode;
use crate::namespace::types::{Attr, Caller, SetAttr};

impl Adapter {
    /// Makes an entry that is not an open file, and answers.
    fn make(&self, at: At<'_>, what: Make<'static>, caller: Caller, reply: ReplyEntry) {
        let (operation, parent) = (at.operation, at.ino);
        self.workers.run(at.name.unwrap_or_default(), move |mount, name| {
            let made = mount.retry(|| mount.namespace().make(number(parent), name, what, caller));
            reply::entry(mount, reply, At::name(operation, parent, name), made);
        });
    }

    /// Runs a change of a name, or of a named attribute, and answers.
    fn change(
        &self,
        at: At<'_>,
        reply: ReplyEmpty,
        change: impl Fn(&Mount, &[u8]) -> Result<()> + Send + 'static,
    ) {
        let At { operation, ino, .. } = at;
        self.workers.run(at.name.unwrap_or_default(), move |mount, name| {
            let done = mount.retry(|| change(mount, name));
            reply::empty(mount, reply, At::name(operation, ino, name), done);
        });
    }

    /// Runs an operation that may wait for a disk. A `slow` operation, which may copy a large file, is not run on a
    /// loop, so that it does not delay other requests.
    fn run(&self, slow: bool, work: impl FnOnce(&Arc<Mount>) + Send + 'static) {
        if slow {
            self.workers.hand_over(work);
        } else {
            self.workers.run(&[], move |mount, _| work(mount));
        }
    }

    /// Whether writing to a file has to copy it up first, and it is large.
    fn must_copy_much(&self, ino: INodeNo) -> bool {
        self.workers.mount().must_copy_much(number(ino))
    }

    /// Answers with an error that needs no operation to be found.
    fn refuse(&self, reply: impl reply::ErrorReply, at: At<'_>, error: &Error) {
        reply::refuse(self.workers.mount(), reply, at, error);
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

fn taken(full: bool) -> Taken {
    if full { Taken::Full } else { Taken::Yes }
}

/// A length that the kernel asked for, so it fits.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.negotiate(config);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.workers.look(number(parent), name.as_bytes(), move |mount, name| {
            match mount.retry(|| mount.namespace().lookup(number(parent), name)) {
                Err(Error::NotFound) => {
                    // With number 0 the kernel caches that there is no such name; with an error it would not.
                    reply.entry(&TTL, &convert::attr(&reply::ABSENT), Generation(0));
                }
                done => reply::entry(mount, reply, At::name("lookup", parent, name), done),
            }
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        // May close the last descriptor of an unlinked file, which frees its blocks on the disk.
        self.workers.look(number(ino), &[], move |mount, _| {
            if let Some(modes) = &mount.passthrough {
                modes.forget(ino.0);
            }
            mount.namespace().forget(number(ino), count);
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.workers.look(number(ino), &[], move |mount, _| {
            let done = mount.retry(|| mount.namespace().attr(number(ino)));
            reply::attributes(mount, reply, At::inode("getattr", ino), done);
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
            // With FUSE_HANDLE_KILLPRIV_V2 clearing setuid and setgid is up to us. The kernel does not say who has
            // the capability to keep them; root has.
            drop_setid: size.is_some() && request.uid() != 0,
        };
        let modes = self.workers.mount().passthrough.as_ref().filter(|_| size.is_some());
        let waits = modes.is_some_and(|modes| modes.must_wait(ino.0));
        let slow = waits || size.is_some_and(|size| size > 0) && self.must_copy_much(ino);
        self.run(slow, move |mount| {
            // A new size changes the bytes.
            let modes = mount.passthrough.as_ref().filter(|_| size.is_some());
            let begun = modes.map(|modes| modes.change(ino.0)).transpose();
            let done =
                begun.and_then(|_change| mount.retry(|| mount.namespace().setattr(number(ino), &change)));
            reply::attributes(mount, reply, At::inode("setattr", ino), done);
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.workers.look(number(ino), &[], move |mount, _| {
            let done = mount.retry(|| mount.namespace().readlink(number(ino)));
            let at = At::inode("readlink", ino);
            reply::answer(mount, reply, at, done, |reply, text| reply.data(&text));
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
        let at = At::name("mknod", parent, name.as_bytes());
        // The kernel has applied the umask: we do not set FUSE_DONT_MASK.
        let what = match mode & libc::S_IFMT {
            libc::S_IFREG => Make::File(mode),
            libc::S_IFIFO => Make::Fifo(mode),
            libc::S_IFSOCK => Make::Socket(mode),
            // The kernel lets only root make devices, and every mount of ours is `nodev`.
            libc::S_IFCHR => Make::CharDevice(mode, convert::device_of(rdev)),
            libc::S_IFBLK => Make::BlockDevice(mode, convert::device_of(rdev)),
            _ => return self.refuse(reply, at, &Error::Invalid("no such kind of entry")),
        };
        self.make(at, what, caller(request), reply);
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
        self.make(At::name("mkdir", parent, name.as_bytes()), Make::Dir(mode), caller(request), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let at = At::name("unlink", parent, name.as_bytes());
        self.change(at, reply, move |mount, name| mount.namespace().unlink(number(parent), name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let at = At::name("rmdir", parent, name.as_bytes());
        self.change(at, reply, move |mount, name| mount.namespace().rmdir(number(parent), name));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let text = CString::new(target.as_os_str().as_bytes())
            .map_err(|_| Error::Invalid("a link's text cannot hold a NUL byte"));
        let caller = caller(request);
        self.workers.run(name.as_bytes(), move |mount, name| {
            let made = text.and_then(|text| {
                let what = Make::Symlink(&text);
                mount.retry(|| mount.namespace().make(number(parent), name, what, caller))
            });
            reply::entry(mount, reply, At::name("symlink", parent, name), made);
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
        let at = At::name("rename", parent, name.as_bytes());
        let mode = match flags {
            _ if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return self.refuse(reply, at, &Error::Invalid("unknown flags of rename")),
        };
        let (dir, new_dir, new_name) = (number(parent), number(newparent), newname.as_bytes().to_owned());
        self.change(at, reply, move |mount, name| {
            mount.namespace().rename(dir, name, new_dir, &new_name, mode)
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let name = newname.as_bytes().to_owned();
        self.run(self.must_copy_much(ino), move |mount| {
            let done = mount.retry(|| mount.namespace().link(number(ino), number(newparent), &name));
            reply::entry(mount, reply, At::name("link", newparent, &name), done);
        });
    }

    /// In cached mode ENOSYS. The first such answer makes the kernel open files without a request from then on
    /// (`FUSE_NO_OPEN_SUPPORT`), keep their pages between opens, and truncate by `setattr`.
    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mount = self.workers.mount();
        let Some(modes) = &mount.passthrough else { return reply.error(Errno::ENOSYS) };
        let wanted = Wanted::new(flags, request.uid());
        match wanted.at_once(mount, modes, number(ino)) {
            Ok(None) => {}
            Ok(Some(answer)) => return reply::opened(reply, answer),
            Err(error) => return self.refuse(reply, At::inode("open", ino), &error),
        }
        self.run(wanted.is_slow(mount, modes, number(ino)), move |mount| {
            let Some(modes) = &mount.passthrough else { return reply.error(Errno::ENOSYS) };
            let done = mount.retry(|| wanted.open(mount, modes, number(ino)));
            reply::answer(mount, reply, At::inode("open", ino), done, reply::opened);
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
        self.workers.run(&[], move |mount, _| {
            if let Some(modes) = &mount.passthrough {
                modes.release(ino.0);
            }
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
        self.workers.run_in_steps(move |mount| {
            let at = At::inode("read", ino);
            match mount.retry(|| mount.find_data(number(ino))) {
                Ok(DataLocation::Here(data)) => reply::data(mount, reply, at, Ok(data), offset, size),
                Ok(DataLocation::Fetch(lower)) => {
                    return Some(move |mount: &Arc<Mount>| {
                        let fetched = mount.retry(|| mount.fetch_data(lower));
                        reply::data(mount, reply, at, fetched, offset, size);
                    });
                }
                Err(error) => reply::refuse(mount, reply, at, &error),
            }
            None
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
        let drop_setid = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let write = move |mount: &Mount, data: &[u8]| {
            let begun = if drop_setid { mount.drop_setid(number(ino)) } else { Ok(()) };
            // The bits are cleared first, as the kernel does it on a disk: a write that fails may have cleared them.
            let done = begun.and_then(|()| mount.retry(|| mount.write(number(ino), offset, data)));
            let at = At::inode("write", ino);
            reply::answer(mount, reply, at, done, |reply, n| reply.written(length(n)));
        };
        if self.must_copy_much(ino) {
            let data = data.to_vec();
            self.workers.hand_over(move |mount| write(mount, &data));
        } else {
            self.workers.run(data, move |mount, data| write(mount, data));
        }
    }

    /// No data is held back, so there is nothing to flush. After ENOSYS the kernel does not ask again.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        // Not on a loop: it waits for the disk.
        self.workers.hand_over(move |mount| {
            let done = mount.retry(|| mount.sync(number(ino), datasync));
            reply::empty(mount, reply, At::inode("fsync", ino), done);
        });
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.fsync(request, ino, handle, datasync, reply);
    }

    /// As `open`: the kernel then also caches listings.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.workers.look(number(ino), &[], move |mount, _| {
            let done = mount.namespace().readdir(number(ino), offset, false, &mut |entry| {
                let (number, kind) = (INodeNo(entry.ino.0), convert::kind(entry.kind));
                taken(reply.add(number, entry.cookie, kind, OsStr::from_bytes(entry.name)))
            });
            reply::answer(mount, reply, At::inode("readdir", ino), done, |reply, ()| reply.ok());
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
        self.workers.look(number(ino), &[], move |mount, _| {
            let done = mount.namespace().readdir(number(ino), offset, true, &mut |entry| {
                // `.` and `..` come without attributes; the kernel uses only their names.
                let attr = entry.attr.unwrap_or(Attr { ino: entry.ino, kind: entry.kind, ..reply::ABSENT });
                // The name and the attributes have one TTL.
                let ttl = mount.attr_ttl(entry.ino);
                let (name, generation) = (OsStr::from_bytes(entry.name), Generation(attr.generation.into()));
                let full = reply.add(
                    INodeNo(entry.ino.0),
                    entry.cookie,
                    name,
                    ttl,
                    &convert::attr(&attr),
                    generation,
                );
                taken(full)
            });
            reply::answer(mount, reply, At::inode("readdirplus", ino), done, |reply, ()| reply.ok());
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.workers.run(&[], move |mount, _| {
            let at = At::inode("statfs", ino);
            reply::answer(mount, reply, at, mount.statfs(), |reply, stat| {
                let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                reply.statfs(
                    stat.f_blocks,
                    stat.f_bfree,
                    stat.f_bavail,
                    stat.f_files,
                    stat.f_ffree,
                    small(stat.f_bsize),
                    length(NAME_MAX),
                    small(stat.f_frsize),
                );
            });
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
        let value = value.to_owned();
        self.change(At::name("setxattr", ino, name.as_bytes()), reply, move |mount, name| {
            mount.set_xattr(number(ino), name, &value, flags.cast_unsigned())
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.workers.look(number(ino), name.as_bytes(), move |mount, name| {
            let value = mount.retry(|| mount.get_xattr(number(ino), name));
            reply::xattr(mount, reply, At::name("getxattr", ino, name), size, value);
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.workers.look(number(ino), &[], move |mount, _| {
            let names = mount.retry(|| mount.list_xattrs(number(ino)));
            reply::xattr(mount, reply, At::inode("listxattr", ino), size, names);
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let at = At::name("removexattr", ino, name.as_bytes());
        self.change(at, reply, move |mount, name| mount.remove_xattr(number(ino), name));
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
        let (dir, caller) = (number(parent), caller(request));
        let wanted = Wanted::new(OpenFlags(flags), request.uid());
        self.workers.run(name.as_bytes(), move |mount, name| {
            let what = Make::File(mode);
            let made = mount.retry(|| mount.namespace().make(dir, name, what, caller));
            let opened = made.and_then(|attr| {
                let Some(modes) = &mount.passthrough else {
                    return Ok((attr, Answer::Cached { keep: true }));
                };
                let answer = mount.retry(|| wanted.created(mount, modes, &attr)).inspect_err(|_| {
                    // The request fails, so the file must go, and the kernel holds no lookup of it.
                    if let Err(error) = mount.namespace().unlink(dir, name) {
                        let name = String::from_utf8_lossy(name);
                        tracing::error!(%name, %error, "cannot remove a file whose creation failed");
                    }
                    mount.namespace().forget(attr.ino, 1);
                })?;
                Ok((attr, answer))
            });
            let at = At::name("create", parent, name);
            reply::answer(mount, reply, at, opened, |reply, (attr, answer)| {
                reply::created(reply, &attr, answer);
            });
        });
    }

    /// For `access` and `chdir`, where the kernel does not check permission bits itself.
    fn access(&self, _: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let mask = Access::from_bits_truncate(mask.bits().cast_unsigned());
        self.workers.look(number(ino), &[], move |mount, _| {
            let done = mount.retry(|| match mount.may_access(number(ino), mask)? {
                true => Ok(()),
                false => Err(call("access")(rustix::io::Errno::ACCESS)),
            });
            reply::empty(mount, reply, At::inode("access", ino), done);
        });
    }

    /// No ioctl has a meaning here. ENOTTY is the answer of a regular file to an unknown ioctl.
    fn ioctl(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.refuse(reply, At::inode("ioctl", ino), &call("ioctl")(rustix::io::Errno::NOTTY));
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
        self.run(self.must_copy_much(ino), move |mount| {
            let mode = mode.cast_unsigned();
            let done = mount.retry(|| mount.fallocate(number(ino), mode, offset, length));
            reply::empty(mount, reply, At::inode("fallocate", ino), done);
        });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let whence = match whence {
            libc::SEEK_DATA => Ok(Whence::Data),
            libc::SEEK_HOLE => Ok(Whence::Hole),
            _ => Err(Error::Invalid("the kernel handles all other ways to seek")),
        };
        let wanted =
            whence.and_then(|whence| Ok((u64::try_from(offset).map_err(|_| Error::BeyondEnd)?, whence)));
        self.run(false, move |mount| {
            let done =
                wanted.and_then(|(from, whence)| mount.retry(|| mount.seek(number(ino), from, whence)));
            let at = At::inode("lseek", ino);
            reply::answer(mount, reply, at, done, |reply, at| reply.offset(at.cast_signed()));
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
        let (from, to) = (number(ino_in), number(ino_out));
        // Not on a loop: it may copy much.
        self.workers.hand_over(move |mount| {
            let done = mount.retry(|| mount.copy_range(from, offset_in, to, offset_out, len));
            let at = At::inode("copy_file_range", ino_in);
            reply::answer(mount, reply, at, done, |reply, n| reply.written(length(n)));
        });
    }
}
