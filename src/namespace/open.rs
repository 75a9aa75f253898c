//! Descriptors of the files of the upper.
//!
//! The namespace finds the file of an entry by the directory and the name that it has noted for it. A rename can move
//! the file between reading that place and opening it, so the inode number is compared after each open, and whoever
//! moves, replaces or removes a file *pins* it first: until the change is noted, everybody uses the pinned descriptor and
//! needs no place. Nobody waits for anybody.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Namespace;
use super::error::{Error, Result, upper as call};
use super::table::{InUpper, Node};
use super::types::{Ino, Kind};
use crate::space::upper::entry;

impl Namespace {
    /// A descriptor of an entry's backing: readable and writable for a file that has its bytes here, `O_PATH` for
    /// everything else.
    pub(super) fn backing_fd(&self, node: &Node) -> Result<Arc<OwnedFd>> {
        // A rename may move the entry between reading its place and opening it: the inode number tells. Whoever moves an
        // entry or replaces its backing pins it first (see `pin`), so the place that is read next is the right one.
        for _ in 0..100 {
            let (place, in_upper, backing_ino) = {
                let state = node.state.lock();
                if let Some(pinned) = &state.pinned {
                    return Ok(Arc::clone(pinned));
                }
                (state.places.first().cloned(), state.in_upper, state.backing_ino)
            };
            if node.ino == Ino::ROOT {
                return Ok(Arc::clone(&self.root));
            }
            let keep = in_upper == InUpper::All;
            if keep && let Some(fd) = self.table.opened(node.ino) {
                return Ok(fd);
            }
            let Some((parent, name)) = place.filter(|_| in_upper != InUpper::Nothing) else {
                return Err(Error::Stale(node.ino));
            };
            let Some(parent) = self.table.get(parent) else { return Err(Error::Stale(parent)) };
            let dir = self.backing_fd(&parent)?;
            let access = match (keep && node.kind == Kind::File, self.keeps_atime) {
                (true, true) => OFlags::RDWR | OFlags::NOATIME,
                (true, false) => OFlags::RDWR,
                (false, _) => OFlags::PATH,
            };
            let fd = match entry::open(dir.as_fd(), &name, access | OFlags::NOFOLLOW) {
                Ok(fd) => Arc::new(fd),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(call("open")(errno)),
            };
            if rustix::fs::fstat(&fd).map_err(call("stat"))?.st_ino != backing_ino {
                continue;
            }
            if keep {
                self.table.keep_open(node.ino, &fd);
            }
            return Ok(fd);
        }
        Err(Error::Stale(node.ino))
    }

    /// Before an entry is moved, replaced or removed: keeps its backing open while the kernel may use the entry. Until
    /// [`unpin`], whoever asks for the backing gets this descriptor and needs no name, so the moment between the change
    /// on disk and our record of it does not show.
    pub(super) fn pin(&self, node: &Node) -> Result<()> {
        {
            let state = node.state.lock();
            if state.in_upper == InUpper::Nothing || state.pinned.is_some() {
                return Ok(());
            }
        }
        if self.table.lookups(node.ino) > 0 {
            let fd = self.backing_fd(node)?;
            node.state.lock().pinned = Some(fd);
        }
        Ok(())
    }
}
