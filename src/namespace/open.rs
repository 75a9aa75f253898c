//! Opening the backing files of entries.
//!
//! A node notes the directory and name of its backing file, and the file's inode number. Another thread can rename
//! the file between the moment that the place is read and the open. So the inode number is compared after each open,
//! and the open is tried again if it differs.
//!
//! A thread that is about to rename, replace or remove a backing file *pins* it first: it puts an open descriptor
//! into the node. Until the node has the new place, all threads use that descriptor and need no name. No thread ever
//! waits for a rename, and the retry finds the right place.

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
    /// A descriptor of an entry's backing file. It can be read and written if the file has its bytes in the upper;
    /// for any other entry it is an `O_PATH` descriptor.
    pub(super) fn backing_fd(&self, node: &Node) -> Result<Arc<OwnedFd>> {
        // One retry is enough after one rename. The limit only keeps a damaged upper from causing an endless loop.
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

    /// Keeps the descriptor with which a backing file was made, for the next use. It was opened without `O_NOATIME`.
    pub(super) fn keep_created(&self, ino: Ino, kind: Kind, fd: OwnedFd) {
        if kind == Kind::File
            && self.keeps_atime
            && let Err(errno) = rustix::fs::fcntl_setfl(&fd, OFlags::NOATIME)
        {
            tracing::debug!(?ino, %errno, "reading a new file would change its time of access; not kept open");
            return;
        }
        self.table.keep_open(ino, &Arc::new(fd));
    }

    /// Keeps the backing file of an entry open, before the file is renamed, replaced or removed. Ends with
    /// [`Node::unpin`]. An entry that the kernel does not know needs no pin.
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
