//! Changing attributes: mode, owner, times and size of an entry.
//!
//! Not the copy-up, which brings a lower entry its counterpart with the change already applied. Invariant: the
//! answer is the truth. When one part of a change fails, the parts that were applied before it are undone, so that
//! an error means that nothing changed.

use std::sync::Arc;

use super::Namespace;
use super::copy_up::CopyUp;
use super::error::{Error, Result};
use super::types::{Attr, Ino, Kind, SetAttr, SetTime, Time};

impl Namespace {
    /// Changes attributes; the new ones are returned. What changes nothing leaves the upper alone.
    ///
    /// # Errors
    /// What copying up and the calls on the upper may answer. The attributes are then as before.
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
        // A file that is given to somebody loses them, be it the one who has it: the kernel leaves that to us.
        let drops = change.drop_setid || change.uid.is_some() || change.gid.is_some();
        if drops && change.mode.is_none() && attr.setid_to_drop() != 0 {
            change.mode = Some(attr.mode & !attr.setid_to_drop());
        }
        let change = &change;
        if changes_nothing(&attr, change) {
            return Ok(attr);
        }
        let node = match (attr.kind, change.size) {
            (Kind::Dir, _) => {
                let node = self.upper_dir(ino)?;
                let _change = node.change.lock();
                self.apply(&node, change)?;
                self.release_ctime(&node);
                Arc::clone(&node)
            }
            (_, Some(size)) => self.copy_up(ino, CopyUp::Data(size), change)?,
            (_, None) => self.copy_up(ino, CopyUp::Metadata, change)?,
        };
        // The change is made: not being able to look at it is no error.
        Ok(self.node_attr(&node).unwrap_or_else(|error| {
            tracing::warn!(?ino, %error, "attributes are told as they were asked for");
            as_asked(attr, change)
        }))
    }
}

/// The attributes that a change leads to.
fn as_asked(attr: Attr, change: &SetAttr) -> Attr {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let now = Time { sec: now.tv_sec, nsec: u32::try_from(now.tv_nsec).unwrap_or(0) };
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

/// Whether a change asks for what is there already. A size never counts: truncating touches the times.
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
