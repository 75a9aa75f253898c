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
use rustix::fs::{Access, SeekFrom};

use super::Adapter;
use super::convert::{self, caller, ino as number, taken};
use super::opening::Wanted;
use super::passthrough::Opened;
use super::reply::{self, At, ErrorReply};
use super::workers::{Mount, Wait};
use crate::fs::{DataLocation, Make};
use crate::handoff::opens::Handle;
use crate::namespace::read::DirEntry;
use crate::namespace::rename::RenameMode;
use crate::namespace::types::{Attr, Error, Result, SetAttr, upper as call};

impl Adapter {
    /// Runs an operation on a thread where it may wait, and answers with `send` or with its error.
    fn serve<R: ErrorReply + Send + 'static, T: 'static>(
        &self,
        wait: Wait,
        at: At<'_>,
        reply: R,
        send: fn(&Mount, R, T),
        operation: impl Fn(&Mount, &[u8]) -> Result<T> + Send + 'static,
    ) {
        let At { request, operation: named, ino, name } = at;
        self.workers.run(wait, name, move |mount, name| {
            let done = mount.begin(request).and_then(|()| mount.retry(|| operation(mount, name)));
            let at = At { request, operation: named, ino, name };
            reply::answer(mount, reply, at, done, |reply, value| send(mount, reply, value));
        });
    }

    /// As [`Self::serve`], for an operation that changes something. It waits while the space is frozen.
    fn change<R: ErrorReply + Send + 'static, T: 'static>(
        &self,
        wait: Wait,
        at: At<'_>,
        reply: R,
        send: fn(&Mount, R, T),
        operation: impl Fn(&Mount, &[u8]) -> Result<T> + Send + 'static,
    ) {
        self.serve(wait, at, reply, send, move |mount, name| {
            let _changing = mount.namespace().changing();
            operation(mount, name)
        });
    }

    /// What a write to a file may wait for: a long copy-up if the file is large.
    fn copy_up(&self, ino: INodeNo) -> Wait {
        Wait::long_if(self.workers.mount().must_copy_much(number(ino)))
    }

    /// Answers with an error that needs no operation to be found.
    fn refuse(&self, reply: impl ErrorReply, at: At<'_>, error: &Error) {
        reply::refuse(self.workers.mount(), reply, at, error);
    }
}

fn names(ino: INodeNo) -> Wait {
    Wait::Names(number(ino))
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.negotiate(config);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = At::name(request, "lookup", parent, name);
        self.serve(names(parent), at, reply, reply::found, move |mount, name| {
            match mount.namespace().lookup(number(parent), name) {
                Err(Error::NotFound) => Ok(None),
                found => found.map(Some),
            }
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        // May close the last descriptor of an unlinked file, which frees its blocks on the disk.
        self.workers.run(names(ino), &[], move |mount, _| {
            if let Some(modes) = &mount.passthrough {
                modes.forget(ino.0);
            }
            mount.namespace().forget(number(ino), count);
        });
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(
            names(ino),
            At::inode(request, "getattr", ino),
            reply,
            reply::attributes,
            move |mount, _| mount.namespace().attr(number(ino)),
        );
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
        let slow =
            waits || size.is_some_and(|size| size > 0) && self.workers.mount().must_copy_much(number(ino));
        let at = At::inode(request, "setattr", ino);
        self.change(Wait::long_if(slow), at, reply, reply::attributes, move |mount, _| {
            // A new size changes the bytes.
            let modes = mount.passthrough.as_ref().filter(|_| size.is_some());
            let _change = modes.map(|modes| modes.change(ino.0)).transpose()?;
            mount.namespace().setattr(number(ino), &change)
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(names(ino), At::inode(request, "readlink", ino), reply, reply::text, move |mount, _| {
            mount.namespace().readlink(number(ino))
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
        let at = At::name(request, "mknod", parent, name);
        // The kernel has applied the umask: we do not set FUSE_DONT_MASK.
        let what = match rustix::fs::FileType::from_raw_mode(mode) {
            rustix::fs::FileType::RegularFile => Make::File(mode),
            // The kernel lets only root make devices, and every mount of ours is `nodev`.
            file_type => Make::Node(file_type, mode, convert::device_of(rdev)),
        };
        let caller = caller(request);
        self.change(Wait::Disk, at, reply, reply::entry, move |mount, name| {
            mount.namespace().make(number(parent), name, what, caller)
        });
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
        let (at, caller) = (At::name(request, "mkdir", parent, name), caller(request));
        self.change(Wait::Disk, at, reply, reply::entry, move |mount, name| {
            mount.namespace().make(number(parent), name, Make::Dir(mode), caller)
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.change(
            Wait::Disk,
            At::name(request, "unlink", parent, name),
            reply,
            reply::empty,
            move |mount, name| mount.namespace().unlink(number(parent), name),
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.change(
            Wait::Disk,
            At::name(request, "rmdir", parent, name),
            reply,
            reply::empty,
            move |mount, name| mount.namespace().rmdir(number(parent), name),
        );
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (at, caller) = (At::name(request, "symlink", parent, name), caller(request));
        let Ok(text) = CString::new(target.as_os_str().as_bytes()) else {
            return self.refuse(reply, at, &Error::Invalid("a link's text cannot hold a NUL byte"));
        };
        self.change(Wait::Disk, at, reply, reply::entry, move |mount, name| {
            mount.namespace().make(number(parent), name, Make::Symlink(&text), caller)
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let at = At::name(request, "rename", parent, name);
        let mode = match flags {
            _ if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return self.refuse(reply, at, &Error::Invalid("unknown flags of rename")),
        };
        let (dir, new_dir, new_name) = (number(parent), number(newparent), newname.as_bytes().to_owned());
        self.change(Wait::Disk, at, reply, reply::empty, move |mount, name| {
            mount.namespace().rename(dir, name, new_dir, &new_name, mode)
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let at = At::name(request, "link", newparent, newname);
        self.change(self.copy_up(ino), at, reply, reply::entry, move |mount, name| {
            mount.namespace().link(number(ino), number(newparent), name)
        });
    }

    /// In cached mode ENOSYS. The first such answer makes the kernel open files without a request from then on
    /// (`FUSE_NO_OPEN_SUPPORT`), keep their pages between opens, and truncate by `setattr`.
    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mount = self.workers.mount();
        let Some(modes) = &mount.passthrough else { return reply.error(Errno::ENOSYS) };
        let wanted = Wanted::new(flags, request);
        match wanted.at_once(mount, modes, number(ino)) {
            Ok(None) => {}
            Ok(Some(answer)) => return reply::opened(mount, reply, answer),
            Err(error) => return self.refuse(reply, At::inode(request, "open", ino), &error),
        }
        let wait = Wait::long_if(wanted.is_slow(mount, modes, number(ino)));
        self.serve(wait, At::inode(request, "open", ino), reply, reply::opened, move |mount, _| {
            let _changing = wanted.changes().then(|| mount.namespace().changing());
            match &mount.passthrough {
                Some(modes) => wanted.open(mount, modes, number(ino)),
                None => Ok(Opened::CACHED),
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.workers.run(Wait::Disk, &[], move |mount, _| {
            if let Some(modes) = &mount.passthrough {
                modes.release(Handle::of(handle.0));
            }
            reply.ok();
        });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let at = At::inode(request, "read", ino);
        self.workers.run_in_steps(move |mount| {
            let begun = mount.begin(at.request);
            match begun.and_then(|()| mount.retry(|| mount.find_data(number(ino)))) {
                Ok(DataLocation::Here(data)) => reply::data(mount, reply, at, Ok(data), offset, size),
                Ok(DataLocation::Fetch(lower)) => {
                    return Some(move |mount: &Arc<Mount>| {
                        let begun = mount.begin(at.request);
                        let fetched = begun.and_then(|()| mount.retry(|| mount.fetch_data(lower)));
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
        request: &Request,
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
        let at = At::inode(request, "write", ino);
        self.workers.mount().namespace().handoff().requests().written(data.len());
        self.workers.run(self.copy_up(ino), data, move |mount, data| {
            let _changing = mount.namespace().changing();
            let begun = mount.begin(at.request);
            let begun = begun.and_then(|()| if drop_setid { mount.drop_setid(number(ino)) } else { Ok(()) });
            // The bits are cleared first, as the kernel does it on a disk: a write that fails may have cleared them.
            let done = begun.and_then(|()| mount.retry(|| mount.write(number(ino), offset, data)));
            reply::answer(mount, reply, at, done, |reply, n| reply::written(mount, reply, n));
        });
    }

    /// No data is held back, so there is nothing to flush. After ENOSYS the kernel does not ask again.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        // Not on a loop: it waits for the disk.
        self.serve(Wait::Long, At::inode(request, "fsync", ino), reply, reply::empty, move |mount, _| {
            mount.sync(number(ino), datasync)
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

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let at = At::inode(request, "readdir", ino);
        self.workers.run(names(ino), &[], move |mount, _| {
            let mut take = |entry: DirEntry<'_>| {
                let (number, kind) = (INodeNo(entry.ino.0), convert::kind(entry.kind));
                taken(reply.add(number, entry.cookie, kind, OsStr::from_bytes(entry.name)))
            };
            let done = mount
                .begin(at.request)
                .and_then(|()| mount.namespace().readdir(number(ino), offset, false, &mut take));
            reply::answer(mount, reply, at, done, |reply, ()| reply.ok());
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let at = At::inode(request, "readdirplus", ino);
        self.workers.run(names(ino), &[], move |mount, _| {
            let mut take = |entry: DirEntry<'_>| {
                // `.` and `..` come without attributes; the kernel uses only their names.
                let attr = entry.attr.unwrap_or(Attr { ino: entry.ino, kind: entry.kind, ..Attr::default() });
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
            };
            let done = mount
                .begin(at.request)
                .and_then(|()| mount.namespace().readdir(number(ino), offset, true, &mut take));
            reply::answer(mount, reply, at, done, |reply, ()| reply.ok());
        });
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.serve(Wait::Disk, At::inode(request, "statfs", ino), reply, reply::statfs, |mount, _| {
            mount.statfs()
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let value = value.to_owned();
        self.change(
            Wait::Disk,
            At::name(request, "setxattr", ino, name),
            reply,
            reply::empty,
            move |mount, name| mount.set_xattr(number(ino), name, &value, flags.cast_unsigned()),
        );
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(
            names(ino),
            At::name(request, "getxattr", ino, name),
            reply,
            reply::xattr,
            move |mount, name| reply::fitting(mount.get_xattr(number(ino), name)?, size),
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(names(ino), At::inode(request, "listxattr", ino), reply, reply::xattr, move |mount, _| {
            reply::fitting(mount.list_xattrs(number(ino))?, size)
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let at = At::name(request, "removexattr", ino, name);
        self.change(Wait::Disk, at, reply, reply::empty, move |mount, name| {
            mount.remove_xattr(number(ino), name)
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
        let (dir, caller) = (number(parent), caller(request));
        let wanted = Wanted::new(OpenFlags(flags), request);
        let at = At::name(request, "create", parent, name);
        self.change(Wait::Disk, at, reply, reply::created, move |mount, name| {
            let attr = mount.namespace().make(dir, name, Make::File(mode), caller)?;
            let Some(modes) = &mount.passthrough else {
                return Ok((attr, Opened::CACHED));
            };
            let opened = wanted.created(mount, modes, &attr).inspect_err(|_| {
                // The request fails or is tried again, so the file must go, and the kernel holds no lookup of it.
                if let Err(error) = mount.namespace().unlink(dir, name) {
                    let name = String::from_utf8_lossy(name);
                    tracing::error!(%name, %error, "cannot remove a file whose creation failed");
                }
                mount.namespace().forget(attr.ino, 1);
            })?;
            Ok((attr, opened))
        });
    }

    /// For `access` and `chdir`, where the kernel does not check permission bits itself.
    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let mask = Access::from_bits_truncate(mask.bits().cast_unsigned());
        self.serve(names(ino), At::inode(request, "access", ino), reply, reply::empty, move |mount, _| {
            match mount.may_access(number(ino), mask)? {
                true => Ok(()),
                false => Err(call("access")(rustix::io::Errno::ACCESS)),
            }
        });
    }

    /// No ioctl has a meaning here. ENOTTY is the answer of a regular file to an unknown ioctl.
    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.refuse(reply, At::inode(request, "ioctl", ino), &call("ioctl")(rustix::io::Errno::NOTTY));
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let at = At::inode(request, "fallocate", ino);
        self.change(self.copy_up(ino), at, reply, reply::empty, move |mount, _| {
            mount.fallocate(number(ino), mode.cast_unsigned(), offset, length)
        });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve(Wait::Disk, At::inode(request, "lseek", ino), reply, reply::offset, move |mount, _| {
            let from = match (whence, u64::try_from(offset)) {
                (libc::SEEK_DATA, Ok(offset)) => SeekFrom::Data(offset),
                (libc::SEEK_HOLE, Ok(offset)) => SeekFrom::Hole(offset),
                (libc::SEEK_DATA | libc::SEEK_HOLE, Err(_)) => return Err(Error::BeyondEnd),
                _ => return Err(Error::Invalid("the kernel handles all other ways to seek")),
            };
            mount.seek(number(ino), from)
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
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
        // Not on a loop: it may copy much.
        let at = At::inode(request, "copy_file_range", ino_in);
        self.change(Wait::Long, at, reply, reply::written, move |mount, _| {
            mount.copy_range(number(ino_in), offset_in, number(ino_out), offset_out, len)
        });
    }
}
