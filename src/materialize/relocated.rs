//! Private files for relocated files that were only read: relocated once, and kept beside the upper.
//!
//! They are not changes: `diff` does not show them, and they may be deleted while the space is not mounted.
//! Invariants: a kept file is trusted only in the boot that made it, because relocated bytes have no digest; and only
//! while its size and mtime are the ones that it was given.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;

use super::staging::name_of;
use super::{Error, LowerFile, Materializer, PrivateCopy};
use crate::library::index::NodeId;
use crate::library::memory::memory_limit;
use crate::library::stamp::Stamp;
use crate::metrics::Counter;

impl Materializer {
    /// The private file of a relocated file that is only read. Made now unless there is one.
    pub(super) fn relocated_file(&self, lower: &LowerFile<'_>) -> Result<Arc<File>, Error> {
        if let Some(file) = self.unkept.lock().get(&lower.node) {
            return Ok(file);
        }
        let name = relocated_name(lower.node);
        let kept = self.kept(&name, lower, OFlags::RDONLY);
        if let Some(file) = kept.map_err(self.source.os_error(lower, "open a relocated file"))? {
            return Ok(Arc::new(file));
        }
        match self.relocated_on_disk(lower, &name) {
            Err(error) if error.is_disk_full() && lower.size <= memory_limit() => {
                tracing::debug!(%error, "the disk is full; keeping a relocated file in memory");
                self.relocated_in_memory(lower)
            }
            made => made.map(Arc::new),
        }
    }

    fn relocated_on_disk(&self, lower: &LowerFile<'_>, name: &CString) -> Result<File, Error> {
        let copy = self.whole_copy(lower)?;
        // The mtime marks a complete file, since any later write changes it. Relocated bytes have no digest to verify,
        // so the file is made again after a reboot.
        Stamp::ThisBoot.set(&copy.file).map_err(self.source.os_error(lower, "set times"))?;
        let published = copy.staged.publish(self.relocated.as_fd(), name);
        published.map_err(self.source.os_error(lower, "publish a relocated file"))?;
        self.metrics.add(Counter::Relocated, 1);
        Ok(copy.file)
    }

    /// As [`Self::relocated_on_disk`], in memory, for when the disk is full.
    fn relocated_in_memory(&self, lower: &LowerFile<'_>) -> Result<Arc<File>, Error> {
        let closed_later = self.unkept.lock().make_room(lower.size);
        drop(closed_later);
        let memory = rustix::fs::memfd_create("holofs-relocated", MemfdFlags::CLOEXEC);
        let file = Arc::new(File::from(memory.map_err(self.source.os_error(lower, "memfd_create"))?));
        self.source.fill_by_copy(lower, &file)?;
        let closed_later = self.unkept.lock().put(lower.node, Arc::clone(&file), lower.size);
        drop(closed_later);
        Ok(file)
    }

    /// Takes the kept file, if there is a good one, as the private copy of a writer.
    pub(super) fn promote(&self, lower: &LowerFile<'_>) -> Result<Option<PrivateCopy>, Error> {
        let name = relocated_name(lower.node);
        let kept = self.kept(&name, lower, OFlags::RDWR);
        let Some(file) = kept.map_err(self.source.os_error(lower, "open a relocated file"))? else {
            return Ok(None);
        };
        let staged_name = self.staging.fresh_name();
        rustix::fs::renameat(&self.relocated, &name, self.staging.dir(), &staged_name)
            .map_err(self.source.os_error(lower, "promote a relocated file"))?;
        Ok(Some(PrivateCopy { file, staged: self.staging.adopt(staged_name, false) }))
    }

    /// The kept file, if its size is right and its mtime is of this boot. One that fails this check is removed.
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
    name_of(&node.0.to_string())
}
