//! Changes mode, owner, times and size of an entry.
//!
//! A lower entry is copied up with the change already applied. For any other entry, the backing file is changed (`copy_up`).

use std::sync::Arc;

use super::Namespace;
use super::copy_up::CopyUp;
use super::error::{Error, Result};
use super::types::{Attr, Ino, Kind, SetAttr, SetTime, Time};

impl Namespace {
    /// Changes attributes, and returns the new ones. A change that changes nothing leaves the upper as it is.
    ///
    /// # Errors
    /// Those of a copy-up and of the system calls on the upper. The attributes are then as they were before.
    pub fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        let attr = self.attr(ino)?;
        if change.size.is_some() && attr.kind != Kind::File {
            return Err(if attr.kind == Kind::Dir {
                Error::IsADirectory
            } else {
                Error::Invalid("only a regular file has a size to set")
            });
        }
        let mut change = *change;
        // As on any filesystem, chown clears setuid and setgid, even if the owner stays the same. FUSE leaves that to
        // us.
        let drops = change.drop_setid || change.uid.is_some() || change.gid.is_some();
        if drops && change.mode.is_none() && attr.setid_to_drop() != 0 {
            change.mode = Some(attr.mode & !attr.setid_to_drop());
        }
        let change = &change;
        if changes_nothing(&attr, change) {
            return Ok(attr);
        }
        let node = if attr.kind == Kind::Dir {
            let node = self.upper_dir(ino)?;
            let _change = node.change.lock();
            self.apply(&node, change)?;
            self.release_ctime(&node);
            Arc::clone(&node)
        } else {
            self.copy_up(ino, change.size.map_or(CopyUp::Metadata, CopyUp::Data), change)?
        };
        // The change is made, so a failure to read the new attributes is not an error of the operation.
        Ok(self.node_attr(&node).unwrap_or_else(|error| {
            tracing::warn!(?ino, %error, "cannot read the attributes after a change; answering those that were asked for");
            as_asked(attr, change)
        }))
    }
}

/// The attributes that an entry has after a change.
fn as_asked(attr: Attr, change: &SetAttr) -> Attr {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let now = Time::new(now.tv_sec, now.tv_nsec);
    let time = |wanted: Option<SetTime>, old: Time| match wanted {
        None => old,
        Some(SetTime::At(time)) => time,
        Some(SetTime::Now) => now,
    };
    let size = change.size.unwrap_or(attr.size);
    Attr {
        mode: change.mode.unwrap_or(attr.mode),
        uid: change.uid.unwrap_or(attr.uid),
        gid: change.gid.unwrap_or(attr.gid),
        size,
        blocks: if change.size.is_some() { size.div_ceil(512) } else { attr.blocks },
        atime: time(change.atime, attr.atime),
        mtime: time(change.mtime.or(change.size.map(|_| SetTime::Now)), attr.mtime),
        ctime: now,
        ..attr
    }
}

/// Whether an entry has all the attributes of a change already. A change of the size always changes something,
/// because it also sets the times.
fn changes_nothing(attr: &Attr, change: &SetAttr) -> bool {
    let same_time = |wanted: Option<SetTime>, now: Time| match wanted {
        None => true,
        Some(SetTime::At(time)) => time == now,
        Some(SetTime::Now) => false,
    };
    change.size.is_none()
        && change.mode.is_none_or(|mode| mode & 0o7777 == attr.mode)
        && change.uid.is_none_or(|uid| uid == attr.uid)
        && change.gid.is_none_or(|gid| gid == attr.gid)
        && same_time(change.atime, attr.atime)
        && same_time(change.mtime, attr.mtime)
}
