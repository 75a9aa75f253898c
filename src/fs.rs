//! The file operations of a mounted space, on our own types. The FUSE adapter calls them, and so do tests.
//!
//! The namespace provides names and attributes, the materializer provides bytes, and an operation combines the two. There
//! is no table of open files: each operation gets an inode number. So a file can be copied up between two reads of one
//! open file, and the reader does not notice.
//!
//! Invariant: no operation panics, and each error has exactly one errno ([`error::errno`]).

pub mod error;
#[cfg(test)]
mod tests;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Access, FallocateFlags, SeekFrom, StatVfs, XattrFlags};
use rustix::io::Errno;

use crate::handoff::requests::Requests;
use crate::library::index::NodeId;
use crate::library::stream::Outcome;
use crate::materialize::{FileData, Materializer};
use crate::metrics::Metrics;
pub use crate::namespace::change::Make;
use crate::namespace::types::{Error, Ino, Kind, Result, SetAttr, upper as call};
use crate::namespace::{Namespace, backing, read::Bytes};
use crate::space::upper::mark::OWN_XATTRS;
use crate::sys::fd;

/// The attribute of the root that holds the counters of a live mount, as JSON of
/// [`Metrics::snapshot`](crate::metrics::Metrics::snapshot). `holofs status` reads it; it is not listed.
pub const STATUS_XATTR: &str = "user.holofs.status";

/// The operations of one mounted space.
#[derive(Debug)]
pub struct Fs {
    namespace: Namespace,
    materializer: Arc<Materializer>,
    /// On the filesystem that holds the upper, for statfs.
    space: OwnedFd,
    /// Set once the space's own directories are on the disk, or could not be written there.
    settled: OnceLock<std::result::Result<(), Errno>>,
}

/// The layer that holds the bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// A blob, or a relocated file that was only read. Must not be written to.
    Lower,
    /// The space's own file.
    Upper,
}

/// Where the bytes of a file are.
#[derive(Debug)]
pub enum DataLocation {
    /// Available now.
    Here(FileData),
    /// Still to be fetched with [`Fs::fetch_data`], which may take long.
    Fetch(NodeId),
}

impl Fs {
    /// Combines the layers. `space` is any descriptor on the filesystem that holds the upper.
    #[must_use]
    pub fn new(namespace: Namespace, materializer: Arc<Materializer>, space: OwnedFd) -> Self {
        Self { namespace, materializer, space, settled: OnceLock::new() }
    }

    /// The merged view: lookups, listings, and the operations on names.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Provides the bytes of library files.
    #[must_use]
    pub fn materializer(&self) -> &Materializer {
        &self.materializer
    }

    /// The counters of the mount.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        self.materializer.metrics()
    }

    /// Runs an operation. If the process has no descriptor left, closes those that are only cached and runs it again.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn retry<T>(&self, operation: impl Fn() -> Result<T>) -> Result<T> {
        match operation() {
            Err(error) if matches!(error::errno(&error), Errno::MFILE | Errno::NFILE) => {
                tracing::warn!(%error, "out of descriptors; closing the cached ones");
                self.namespace.close_kept();
                self.materializer.close_kept();
                operation()
            }
            done => done,
        }
    }

    /// Finds the bytes of a file for reading, unless that takes long. Then returns what has to be fetched.
    ///
    /// # Errors
    /// `IsADirectory` or `Invalid` for an entry without bytes; EIO when its blob is missing or corrupt.
    pub fn find_data(&self, ino: Ino) -> Result<DataLocation> {
        Ok(match self.namespace.bytes(ino)? {
            Bytes::Upper(file) => DataLocation::Here(FileData::Upper(file)),
            Bytes::Lower(lower) => match self.materializer.at_once(lower)? {
                Some(data) => DataLocation::Here(data),
                None => DataLocation::Fetch(lower),
            },
        })
    }

    /// Fetches the bytes that [`Fs::find_data`] could not return.
    ///
    /// # Errors
    /// As [`Fs::find_data`].
    pub fn fetch_data(&self, lower: NodeId) -> Result<FileData> {
        Ok(self.materializer.fetch(lower)?)
    }

    /// The bytes of a file for reading, fetched first if necessary.
    ///
    /// # Errors
    /// As [`Fs::find_data`].
    pub fn data(&self, ino: Ino) -> Result<FileData> {
        match self.namespace.bytes(ino)? {
            Bytes::Upper(file) => Ok(FileData::Upper(file)),
            Bytes::Lower(lower) => Ok(self.materializer.data(lower)?),
        }
    }

    /// The layer that holds the bytes of a file now.
    ///
    /// # Errors
    /// `IsADirectory` or `Invalid` for an entry without bytes.
    pub fn side(&self, ino: Ino) -> Result<Side> {
        Ok(match self.namespace.lower_bytes(ino)? {
            Some(_) => Side::Lower,
            None => Side::Upper,
        })
    }

    /// The file that the kernel may read instead of asking the daemon, and its layer. No file when the daemon has to
    /// serve the bytes.
    ///
    /// The kernel cannot switch an open file to another backing file. So it gets a library file only if no program writes
    /// to such a file in place while others have it open. That holds for executables and shared libraries: they are
    /// replaced. All spaces then share their pages in the page cache.
    ///
    /// # Errors
    /// As [`Fs::find_data`].
    pub fn backing(&self, ino: Ino) -> Result<(Side, Option<FileData>)> {
        Ok(match self.namespace.bytes(ino)? {
            Bytes::Upper(file) => (Side::Upper, Some(FileData::Upper(file))),
            Bytes::Lower(lower) if self.is_program(ino, lower)? => {
                let file = self.materializer.file(lower)?;
                // The blocks of an unlinked file would be in use for as long as the kernel has the file registered.
                let kept = fd::has_name(&*file).map_err(call("stat"))?;
                (Side::Lower, kept.then_some(FileData::File(file)))
            }
            Bytes::Lower(_) => (Side::Lower, None),
        })
    }

    /// Whether a library file is an ELF file. A small file without execute permission is not opened to find out.
    fn is_program(&self, ino: Ino, lower: NodeId) -> Result<bool> {
        if !self.materializer.is_large(lower) && self.namespace.attr(ino)?.mode & 0o111 == 0 {
            return Ok(false);
        }
        let mut magic = [0; 4];
        let n = self.read_data(&self.materializer.data(lower)?, 0, &mut magic)?;
        Ok(n == magic.len() && magic == *b"\x7fELF")
    }

    /// The file to write to, copied up first if necessary. With `truncate` it is emptied.
    ///
    /// # Errors
    /// Those of the copy-up.
    pub fn backing_for_writing(&self, ino: Ino, truncate: bool) -> Result<Arc<OwnedFd>> {
        if truncate {
            let empty = SetAttr { size: Some(0), ..SetAttr::default() };
            self.namespace.setattr(ino, &empty)?;
        }
        self.namespace.writable(ino)
    }

    /// Whether root may access an entry. Root may do everything, except execute a file that nobody may execute. Called
    /// only on mounts where the kernel does not check permission bits.
    ///
    /// # Errors
    /// Those of reading the attributes.
    pub fn may_access(&self, ino: Ino, mask: Access) -> Result<bool> {
        let attr = self.namespace.attr(ino)?;
        Ok(!mask.contains(Access::EXEC_OK) || attr.kind == Kind::Dir || attr.mode & 0o111 != 0)
    }

    /// Clears the setuid and setgid bits, because a writer without `CAP_FSETID` changes the file.
    ///
    /// # Errors
    /// Those of changing the mode.
    pub fn drop_setid(&self, ino: Ino) -> Result<()> {
        let change = SetAttr { drop_setid: true, ..SetAttr::default() };
        self.namespace.setattr(ino, &change).map(|_| ())
    }

    /// Reads until the buffer is full or the data ends. Waits for bytes that are not unpacked yet.
    ///
    /// # Errors
    /// Those of pread(2) and of unpacking a blob.
    pub fn read_data(&self, data: &FileData, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        match data {
            FileData::Bytes(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                let n = rest.len().min(buffer.len());
                if let (Some(to), Some(from)) = (buffer.get_mut(..n), rest.get(..n)) {
                    to.copy_from_slice(from);
                }
                Ok(n)
            }
            FileData::File(file) => read_file(file, offset, buffer),
            FileData::Upper(file) => read_file(file, offset, buffer),
            FileData::Stream(filling, node) => {
                let outcome = filling.wait(offset, buffer.len());
                read_file(self.unpacked(*node, outcome)?, offset, buffer)
            }
        }
    }

    /// The file with the unpacked bytes of a node, or the error of its blob.
    ///
    /// # Errors
    /// EIO when the blob is missing or corrupt.
    pub fn unpacked(&self, node: NodeId, outcome: Outcome) -> Result<Arc<File>> {
        Ok(outcome.map_err(|error| self.materializer.source().blob_error(node, error))?)
    }

    /// Writes `data`, and returns how many bytes were written before an error.
    ///
    /// # Errors
    /// Those of the copy-up, and those of pwrite(2) if nothing was written. A file whose copy-up fails is unchanged.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        let file = self.namespace.writable(ino)?;
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(&file, rest, offset + done as u64) {
                Ok(0) => return Err(call("write")(Errno::IO)),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                // The caller learns how much was written. The next write gets the error.
                Err(_) if done > 0 => break,
                Err(errno) => return Err(call("write")(errno)),
            }
        }
        self.namespace.was_written(ino, &file);
        Ok(done)
    }

    /// As fallocate(2): allocates, punches or zeroes a range.
    ///
    /// # Errors
    /// Those of the copy-up and of fallocate(2).
    pub fn fallocate(&self, ino: Ino, mode: u32, offset: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::from_bits(mode).ok_or(Error::NotSupported("unknown fallocate mode"))?;
        let file = self.namespace.writable(ino)?;
        rustix::fs::fallocate(&file, flags, offset, len).map_err(call("fallocate"))
    }

    /// The offset of the next data or hole (`SeekFrom::Data`, `SeekFrom::Hole`). A library file has no holes.
    ///
    /// # Errors
    /// `BeyondEnd` when there is none.
    pub fn seek(&self, ino: Ino, from: SeekFrom) -> Result<u64> {
        if let Bytes::Upper(file) = self.namespace.bytes(ino)? {
            // This moves the descriptor's position, which nothing uses: all reads and writes pass an offset.
            return match rustix::fs::seek(&file, from) {
                Err(Errno::NXIO) => Err(Error::BeyondEnd),
                other => other.map_err(call("lseek")),
            };
        }
        let size = self.namespace.attr(ino)?.size;
        match from {
            SeekFrom::Data(at) if at < size => Ok(at),
            SeekFrom::Hole(at) if at < size => Ok(size),
            _ => Err(Error::BeyondEnd),
        }
    }

    /// As copy_file_range(2): copies a range inside the kernel, by reflink where the filesystem supports it.
    ///
    /// # Errors
    /// `NotSupported` when the source's bytes are only in memory. The caller then reads and writes.
    pub fn copy_range(&self, from: Ino, from_at: u64, to: Ino, to_at: u64, len: u64) -> Result<usize> {
        let target = self.namespace.writable(to)?;
        let source = self.data(from)?;
        let source = source.file().ok_or(Error::NotSupported("the source has no file to copy from"))?;
        let (mut from_at, mut to_at) = (from_at, to_at);
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
        rustix::fs::copy_file_range(source, Some(&mut from_at), &target, Some(&mut to_at), len)
            .map_err(call("copy_file_range"))
    }

    /// Sets whether the space's own directories are safe on the disk, for which [`Fs::sync`] waits. Only the first call
    /// has an effect.
    pub fn settled(&self, done: std::result::Result<(), Errno>) {
        self.settled.get_or_init(|| done);
        self.namespace.is_recorded();
    }

    /// As fsync(2), or fdatasync(2) with `data_only`.
    ///
    /// # Errors
    /// Those of fsync(2), and of the sync of the space's own directories.
    pub fn sync(&self, ino: Ino, data_only: bool) -> Result<()> {
        (*self.settled.wait()).map_err(call("fsync"))?;
        let Some(file) = self.namespace.to_sync(ino)? else { return Ok(()) };
        self.namespace.sync_by(ino, |attributes_matter| {
            if data_only && !attributes_matter {
                rustix::fs::fdatasync(&file).map_err(call("fdatasync"))
            } else {
                rustix::fs::fsync(&file).map_err(call("fsync"))
            }
        })
    }

    /// The value of an extended attribute. An entry that is only in the lower has none.
    ///
    /// # Errors
    /// `NoAttribute`, and those of getxattr(2).
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if ino == Ino::ROOT && name == STATUS_XATTR.as_bytes() {
            let counters = self.metrics().snapshot();
            return serde_json::to_vec(&counters)
                .map_err(|_| Error::NotSupported("the counters have no text"));
        }
        let name = checked(name).map_err(|_| Error::NoAttribute)?;
        let fd = self.namespace.existing_fd(ino)?.ok_or(Error::NoAttribute)?;
        backing::get_xattr(fd.as_fd(), &name)
    }

    /// The names of the extended attributes, each terminated by a NUL.
    ///
    /// # Errors
    /// Those of listxattr(2).
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.namespace.existing_fd(ino)? {
            Some(fd) => backing::list_xattrs(fd.as_fd()),
            None => Ok(Vec::new()),
        }
    }

    /// Sets an extended attribute, and copies the metadata of the entry up.
    ///
    /// # Errors
    /// `NotPermitted` for holofs's own attributes, and those of the copy-up and of setxattr(2).
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let name = checked(name)?;
        let flags = XattrFlags::from_bits_retain(flags);
        // A call that fails must not copy anything up.
        if flags.contains(XattrFlags::REPLACE) {
            self.get_xattr(ino, name.to_bytes())?;
        }
        let is_new = flags.contains(XattrFlags::CREATE);
        if is_new && self.has_xattr(ino, &name)? {
            // An earlier worker may have set it for this request.
            self.requests().noted().ok_or(Error::Exists)?;
            self.namespace.attribute_changed(ino);
            return Ok(());
        }
        let fd = self.namespace.changed_fd(ino)?;
        if is_new {
            self.requests().note(0);
        }
        backing::set_xattr(fd.as_fd(), &name, value, flags)?;
        self.namespace.attribute_changed(ino);
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `NotPermitted` for holofs's own attributes, and those of removexattr(2).
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let name = checked(name)?;
        if !self.has_xattr(ino, &name)? {
            // An earlier worker may have removed it for this request.
            self.requests().noted().ok_or(Error::NoAttribute)?;
            self.namespace.attribute_changed(ino);
            return Ok(());
        }
        self.requests().note(0);
        let fd = self.namespace.existing_fd(ino)?.ok_or(Error::NoAttribute)?;
        backing::remove_xattr(fd.as_fd(), &name)?;
        self.namespace.attribute_changed(ino);
        Ok(())
    }

    fn has_xattr(&self, ino: Ino, name: &CStr) -> Result<bool> {
        match self.get_xattr(ino, name.to_bytes()) {
            Ok(_) => Ok(true),
            Err(Error::NoAttribute) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What each thread is doing, for the worker that comes after this one.
    fn requests(&self) -> Requests<'_> {
        self.namespace.handoff().requests()
    }

    /// Free space and inodes of the filesystem that holds the upper.
    ///
    /// # Errors
    /// Those of fstatvfs(3).
    pub fn statfs(&self) -> Result<StatVfs> {
        rustix::fs::fstatvfs(&self.space).map_err(call("statvfs"))
    }

    /// Whether opening a file for the kernel to read may take long.
    #[must_use]
    pub fn must_fetch_much(&self, ino: Ino) -> bool {
        // The operation itself meets an error and answers it.
        matches!(self.namespace.lower_bytes(ino), Ok(Some(lower)) if self.materializer.must_fetch_much(lower))
    }

    /// Whether writing has to copy up a large file first.
    #[must_use]
    pub fn must_copy_much(&self, ino: Ino) -> bool {
        matches!(self.namespace.lower_bytes(ino), Ok(Some(lower)) if self.materializer.is_slow(lower))
    }
}

/// Refuses holofs's own attributes, and ACLs, which this filesystem does not enforce.
fn checked(name: &[u8]) -> Result<CString> {
    if name.starts_with(OWN_XATTRS) {
        return Err(Error::NotPermitted("user.holofs.* belongs to holofs"));
    }
    if name.starts_with(b"system.") {
        return Err(Error::NotSupported("POSIX ACLs are not supported"));
    }
    CString::new(name).map_err(|_| Error::Invalid("an attribute's name cannot hold a NUL byte"))
}

/// Reads until the buffer is full or the file ends.
///
/// # Errors
/// Those of pread(2).
pub fn read_file(file: impl AsFd, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    fd::read_full(file, offset, buffer).map_err(call("read"))
}
