//! Backing files of relocated files that are only read: patched once, kept beside the upper.
//!
//! They are no changes: `diff` does not show them, and they may be deleted while unmounted. Invariants: one is believed
//! only in the boot that made it, since there is no digest of patched bytes; and only while its size and
//! time are as they were given to it.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;

use super::clone;
use super::relocate;
use super::{Error, LowerFile, Materializer, PrivateCopy};
use crate::library::index::NodeId;
use crate::library::stamp::Stamp;
use crate::library::unkept::memory_limit;

impl Materializer {
    /// The patched backing file of a relocated file that is only read, made now unless it is there.
    pub(super) fn relocated_file(&self, node: NodeId, lower: &LowerFile<'_>) -> Result<Arc<File>, Error> {
        let os = |call| move |source| Error::Os { path: self.lower_path(node), call, source };
        if let Some(file) = self.unkept.lock().get(&node) {
            return Ok(file);
        }
        let name = relocated_name(node);
        if let Some(file) = self.kept(&name, lower, OFlags::RDONLY).map_err(os("open a relocated file"))? {
            return Ok(Arc::new(file));
        }
        match self.relocated_on_disk(node, lower, &name) {
            Err(error) if error.says_full() && lower.size <= memory_limit() => {
                tracing::debug!(%error, "the disk is full: a relocated file is made in memory");
                self.relocated_in_memory(node, lower)
            }
            made => made.map(Arc::new),
        }
    }

    fn relocated_on_disk(&self, node: NodeId, lower: &LowerFile<'_>, name: &CString) -> Result<File, Error> {
        let os = |call| move |source| Error::Os { path: self.lower_path(node), call, source };
        let copy = self.patched_copy(node, lower)?;
        // The time is the mark of a whole, unharmed file: any later write would change it. There is no digest of the
        // patched bytes, so after a restart of the machine the file is made again.
        Stamp::ThisBoot.set(&copy.file).map_err(os("set times"))?;
        copy.staged.publish(self.relocated.as_fd(), name).map_err(os("publish a relocated file"))?;
        self.counters.relocated.fetch_add(1, Ordering::Relaxed);
        Ok(copy.file)
    }

    /// The same in memory, for when the disk is full.
    fn relocated_in_memory(&self, node: NodeId, lower: &LowerFile<'_>) -> Result<Arc<File>, Error> {
        let os = |call| move |source| Error::Os { path: self.lower_path(node), call, source };
        let source = self.raw(node, lower)?;
        drop(self.unkept.lock().make_room(lower.size));
        let memory = rustix::fs::memfd_create("holofs-relocated", MemfdFlags::CLOEXEC);
        let file = File::from(memory.map_err(os("memfd_create"))?);
        clone::copy(&source, &file, lower.size)
            .map_err(|source| Error::Clone { path: self.lower_path(node), source })?;
        relocate::patch_file(&file, lower.relocations.iter(), &self.names)
            .map_err(|source| Error::Relocate { path: self.lower_path(node), source })?;
        let file = Arc::new(file);
        drop(self.unkept.lock().put(node, Arc::clone(&file), lower.size));
        Ok(file)
    }

    /// Takes the backing file that reading left, if there is a good one, as the private copy of a writer.
    pub(super) fn promote(&self, node: NodeId, lower: &LowerFile<'_>) -> Result<Option<PrivateCopy>, Error> {
        let os = |call| move |source| Error::Os { path: self.lower_path(node), call, source };
        let name = relocated_name(node);
        let Some(file) = self.kept(&name, lower, OFlags::RDWR).map_err(os("open a relocated file"))? else {
            return Ok(None);
        };
        let staged_name = self.staging.fresh_name();
        rustix::fs::renameat(&self.relocated, &name, self.staging.dir(), &staged_name)
            .map_err(os("promote a relocated file"))?;
        Ok(Some(PrivateCopy { file, staged: self.staging.adopt(staged_name, false) }))
    }

    /// A backing file kept from before, when it is what was written: same size, and a time of this boot.
    /// Another one goes.
    fn kept(&self, name: &CString, lower: &LowerFile<'_>, access: OFlags) -> Result<Option<File>, Errno> {
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(&self.relocated, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let stat = rustix::fs::fstat(&file)?;
        let good = u64::try_from(stat.st_size) == Ok(lower.size)
            && Stamp::read(stat.st_mtime, stat.st_mtime_nsec as i64) == Some(Stamp::ThisBoot);
        if good {
            return Ok(Some(file));
        }
        if !Stamp::was_one(stat.st_mtime, stat.st_mtime_nsec as i64) {
            tracing::warn!(?name, "a kept relocated file was changed from outside; making it again");
        }
        rustix::fs::unlinkat(&self.relocated, name, AtFlags::empty())?;
        Ok(None)
    }
}

fn relocated_name(node: NodeId) -> CString {
    CString::new(node.0.to_string()).unwrap_or_default()
}
