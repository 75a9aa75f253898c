//! The file operations: what a request means, on our own types. FUSE is one caller of it, tests are another.
//!
//! Names and attributes are the namespace's, bytes are the materializer's; here a request is put together from
//! both. There is no table of open files: every operation names an inode, so a file may gain its private backing
//! between two reads of one open file, and nobody notices. Invariant: no operation panics, and each error has
//! exactly one errno ([`error::errno`]).

pub mod error;
#[cfg(test)]
mod tests;
mod xattr;

pub use xattr::STATUS_XATTR;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Access, FallocateFlags, SeekFrom, StatVfs};
use rustix::io::Errno;

use crate::library::index::NodeId;
use crate::library::stream::Outcome;
use crate::materialize::{FileData, Materializer};
use crate::metrics::Metrics;
pub use crate::namespace::change::Make;
use crate::namespace::error::{Error, Result, upper as call};
use crate::namespace::types::{Ino, Kind, SetAttr};
use crate::namespace::{Namespace, read::Bytes};
use crate::sys::fd;

/// The operations of one mounted space.
#[derive(Debug)]
pub struct Fs {
    namespace: Namespace,
    materializer: Arc<Materializer>,
    /// The upper's root, asked for the filesystem's free space.
    space: OwnedFd,
    /// Whether the space itself survives a loss of power, once that is known.
    settled: OnceLock<std::result::Result<(), Errno>>,
}

/// On which side the bytes of a file are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// A blob's, or a relocated file that was only read: it must not be written to.
    Lower,
    /// The space's own file.
    Upper,
}

/// Where the bytes of a file are.
#[derive(Debug)]
pub enum DataLocation {
    /// At hand.
    Here(FileData),
    /// To be fetched with [`Fs::fetch_data`], which may take long.
    Fetch(NodeId),
}

/// Where `lseek` looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whence {
    /// The next data.
    Data,
    /// The next hole.
    Hole,
}

impl Fs {
    /// Puts the layers together. `space` is any descriptor on the filesystem of the space's state.
    #[must_use]
    pub fn new(namespace: Namespace, materializer: Arc<Materializer>, space: OwnedFd) -> Self {
        Self { namespace, materializer, space, settled: OnceLock::new() }
    }

    /// Has every change wait until [`Fs::settled`] is called, as every sync does.
    #[must_use]
    pub fn until_recorded(mut self) -> Self {
        self.namespace = self.namespace.until_recorded();
        self
    }

    /// The merged view: lookups, listings, and the operations on names.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The materializer, for its counts.
    #[must_use]
    pub fn materializer(&self) -> &Materializer {
        &self.materializer
    }

    /// The counters of the mount.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        self.materializer.metrics()
    }

    /// Runs an operation; when no descriptor was left for it, once more without those that are kept for speed only.
    ///
    /// # Errors
    /// As the operation.
    pub fn retry<T>(&self, operation: impl Fn() -> Result<T>) -> Result<T> {
        match operation() {
            Err(error) if matches!(error::errno(&error), Errno::MFILE | Errno::NFILE) => {
                tracing::warn!(%error, "closing the files that are kept open");
                self.namespace.close_kept();
                self.materializer.close_kept();
                operation()
            }
            done => done,
        }
    }

    /// Finds the bytes of a file for reading. Never waits long: where that is necessary it says so.
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

    /// Fetches the bytes of a file that [`Fs::find_data`] did not have at hand.
    ///
    /// # Errors
    /// As [`Fs::find_data`].
    pub fn fetch_data(&self, lower: NodeId) -> Result<FileData> {
        Ok(self.materializer.fetch(lower)?)
    }

    /// The bytes of a file for reading, fetched first if need be.
    ///
    /// # Errors
    /// As [`Fs::find_data`].
    pub fn data(&self, ino: Ino) -> Result<FileData> {
        match self.namespace.bytes(ino)? {
            Bytes::Upper(file) => Ok(FileData::Upper(file)),
            Bytes::Lower(lower) => Ok(self.materializer.data(lower)?),
        }
    }

    /// On which side the bytes of a file are now.
    ///
    /// # Errors
    /// `IsADirectory` or `Invalid` for what has no bytes.
    pub fn side(&self, ino: Ino) -> Result<Side> {
        Ok(match self.namespace.lower_bytes(ino)? {
            Some(_) => Side::Lower,
            None => Side::Upper,
        })
    }

    /// A file with the bytes of `ino` for the kernel to read by itself, and on which side it is. None when the bytes are
    /// the library's and the daemon has to serve them.
    ///
    /// The kernel cannot exchange the file behind one that is open. So a library file is handed to it only if programs do
    /// not write to such files while others have them open: programs and shared libraries, which are replaced, and
    /// which all spaces then have in memory once.
    ///
    /// # Errors
    /// As [`Fs::find_data`].
    pub fn backing(&self, ino: Ino) -> Result<(Side, Option<FileData>)> {
        Ok(match self.namespace.bytes(ino)? {
            Bytes::Upper(file) => (Side::Upper, Some(FileData::Upper(file))),
            Bytes::Lower(lower) if self.is_program(ino, lower)? => {
                let file = self.materializer.file(lower)?;
                // One without a name would stay, in memory or on the disk, for as long as the kernel has it registered.
                let kept = fd::has_name(&*file).map_err(call("stat"))?;
                (Side::Lower, kept.then_some(FileData::File(file)))
            }
            Bytes::Lower(_) => (Side::Lower, None),
        })
    }

    /// Whether a library file is an ELF file. A small one that may not be executed is not looked into.
    fn is_program(&self, ino: Ino, lower: NodeId) -> Result<bool> {
        if !self.materializer.is_large(lower) && self.namespace.attr(ino)?.mode & 0o111 == 0 {
            return Ok(false);
        }
        let mut magic = [0; 4];
        let n = self.read_data(&self.materializer.data(lower)?, 0, &mut magic)?;
        Ok(n == magic.len() && magic == *b"\x7fELF")
    }

    /// The file to write the bytes of `ino` to, copied up first if need be; with `truncate` as an empty one.
    ///
    /// # Errors
    /// What copying up may answer.
    pub fn backing_for_writing(&self, ino: Ino, truncate: bool) -> Result<Arc<OwnedFd>> {
        if truncate {
            let empty = SetAttr { size: Some(0), ..SetAttr::default() };
            self.namespace.setattr(ino, &empty)?;
        }
        self.writable(ino)
    }

    /// Whether root may access an entry so (`mask`: of `R_OK`, `W_OK`, `X_OK`): all, but running what nobody may run.
    /// Only asked on mounts whose permission bits the kernel does not check.
    ///
    /// # Errors
    /// What reading the attributes may answer.
    pub fn may_access(&self, ino: Ino, mask: Access) -> Result<bool> {
        let attr = self.namespace.attr(ino)?;
        Ok(!mask.contains(Access::EXEC_OK) || attr.kind == Kind::Dir || attr.mode & 0o111 != 0)
    }

    /// Takes the bits from a file that running it would lend its owner's or group's rights by: somebody without the
    /// right to keep them has written to it.
    ///
    /// # Errors
    /// What changing the mode may answer.
    pub fn drop_setid(&self, ino: Ino) -> Result<()> {
        let change = SetAttr { drop_setid: true, ..SetAttr::default() };
        self.namespace.setattr(ino, &change).map(|_| ())
    }

    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    ///
    /// # Errors
    /// As [`Fs::find_data`], and what reading may answer.
    pub fn read(&self, ino: Ino, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.read_data(&self.data(ino)?, offset, buffer)
    }

    /// Reads up to `buffer.len()` bytes of data; fewer only at the end of the file. Waits for bytes that are not
    /// unpacked yet.
    ///
    /// # Errors
    /// What pread(2) may answer, and why a blob could not be unpacked.
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

    /// Writes all of `data`.
    ///
    /// # Errors
    /// What copying the file up and writing may answer; ENOSPC leaves a file that was not yet copied up as it was.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        let file = self.writable(ino)?;
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(&file, rest, offset + done as u64) {
                Ok(0) => return Err(call("write")(Errno::IO)),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                // What was written is written: the next write will meet the error again.
                Err(_) if done > 0 => break,
                Err(errno) => return Err(call("write")(errno)),
            }
        }
        self.namespace.was_written(ino, &file);
        Ok(done)
    }

    /// Allocates, punches or zeroes a range, as fallocate(2).
    ///
    /// # Errors
    /// What copying up and fallocate(2) may answer.
    pub fn fallocate(&self, ino: Ino, mode: u32, offset: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::from_bits(mode).ok_or(Error::NotSupported("unknown fallocate mode"))?;
        let file = self.writable(ino)?;
        rustix::fs::fallocate(&file, flags, offset, len).map_err(call("fallocate"))
    }

    /// The next data or hole from `offset` on.
    ///
    /// # Errors
    /// `BeyondEnd` when there is none.
    pub fn seek(&self, ino: Ino, offset: u64, whence: Whence) -> Result<u64> {
        if let FileData::Upper(file) = self.data(ino)? {
            let from = match whence {
                Whence::Data => SeekFrom::Data(offset),
                Whence::Hole => SeekFrom::Hole(offset),
            };
            // The descriptor's own position is nobody's: all reads and writes name theirs.
            return match rustix::fs::seek(&file, from) {
                Err(Errno::NXIO) => Err(Error::BeyondEnd),
                other => other.map_err(call("lseek")),
            };
        }
        let size = self.namespace.attr(ino)?.size;
        match whence {
            _ if offset >= size => Err(Error::BeyondEnd),
            Whence::Data => Ok(offset),
            Whence::Hole => Ok(size),
        }
    }

    /// Copies a range between two files inside the kernel, by reflink where the filesystem can.
    ///
    /// # Errors
    /// `NotSupported` when the source's bytes are in memory only: the caller then reads and writes.
    pub fn copy_range(&self, from: Ino, from_at: u64, to: Ino, to_at: u64, len: u64) -> Result<usize> {
        let target = self.writable(to)?;
        let source = self.data(from)?;
        let source = source.file().ok_or(Error::NotSupported("the source has no file to copy from"))?;
        let (mut from_at, mut to_at) = (from_at, to_at);
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
        rustix::fs::copy_file_range(source, Some(&mut from_at), &target, Some(&mut to_at), len)
            .map_err(call("copy_file_range"))
    }

    /// Tells whether the space itself survives a loss of power from now on; until then [`Fs::sync`] waits.
    pub fn settled(&self, done: std::result::Result<(), Errno>) {
        // Told twice, the first time stands.
        self.settled.get_or_init(|| done);
        self.namespace.is_recorded();
    }

    /// Makes what was written to an entry survive a loss of power.
    ///
    /// # Errors
    /// What fsync(2) may answer.
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

    /// Space and inodes of the filesystem that changes go to.
    ///
    /// # Errors
    /// What statvfs(3) may answer.
    pub fn statfs(&self) -> Result<StatVfs> {
        rustix::fs::fstatvfs(&self.space).map_err(call("statvfs"))
    }

    /// Whether opening a file for the kernel to read may take long.
    #[must_use]
    pub fn must_fetch_much(&self, ino: Ino) -> bool {
        match self.namespace.lower_bytes(ino) {
            Ok(Some(lower)) => self.materializer.must_fetch_much(lower),
            // The operation itself meets the error and answers it.
            Ok(None) | Err(_) => false,
        }
    }

    /// Whether writing would first have to copy up a file of some size.
    #[must_use]
    pub fn must_copy_much(&self, ino: Ino) -> bool {
        match self.namespace.lower_bytes(ino) {
            Ok(Some(lower)) => self.materializer.is_large(lower),
            Ok(None) | Err(_) => false,
        }
    }

    fn writable(&self, ino: Ino) -> Result<Arc<OwnedFd>> {
        self.namespace.writable(ino)
    }
}

/// Reads until the buffer is full or the file ends.
///
/// # Errors
/// What pread(2) may answer.
pub fn read_file(file: impl AsFd, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(&file, rest, offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(call("read")(errno)),
        }
    }
    Ok(done)
}
