//! Keeps a loss of power from leaving a file empty that a program was about to write anew.
//!
//! A filesystem's journal records names, lengths and attributes within seconds, but the bytes of a file can come much
//! later. A copy-up writes out the library's bytes before it renames the copy into place (`sys::order`). But a
//! program that *empties* a file first (`O_TRUNC`), and then writes it, would lose both contents if the power fails
//! between the two.
//!
//! * A library file that is emptied becomes an empty copy whose mark names the boot ([`Mark::Emptied`]). If the file
//!   is still empty in a later boot, it counts as one that was never emptied, and shows the library's bytes.
//! * Soon afterwards its new bytes are written out, and then the mark becomes an ordinary one. From then on, an empty
//!   file is meant to be empty. That happens after [`DELAY`], or after [`EMPTY`] while the file stays empty, and also
//!   at a sync of the file and at the end of the mount. If the daemon is killed, the next one finds the marks when it
//!   reads the directory. If a worker is replaced (`handoff`), the next one knows the files that wait.
//! * A file that has its bytes in the upper already, and is emptied, has no old bytes to show. Its new bytes are
//!   written out after the same time. ext4 does that when such a file is closed, but no close is reported to this
//!   daemon.
//! * A file that *replaces* a library file by a rename is written out before the rename. ext4 does that when a rename
//!   replaces a file, but the library file is not in the upper, so ext4 does not see that there is one.
//!
//! Invariant: the bytes are always written out before the mark changes. A file that waits has one lookup counted, so
//! the table keeps its node.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::dir::Entry;
use super::table::{InUpper, Node};
use super::types::{Ino, Kind, Result, upper as call};
use super::{Namespace, View, backing, read};
use crate::handoff::Handoff;
use crate::library::index::NodeId;
use crate::space::upper::mark::Mark;
use crate::sys::boot::{self, Boot};
use crate::sys::fd;

/// The time from emptying a file until its bytes are written out. Most programs have written them by then, and a
/// journal is committed only after seconds.
const DELAY: Duration = Duration::from_millis(100);

/// The time after which a file that is still empty is meant to be empty. A program writes to a file that it has
/// emptied at once, but a busy machine may delay it.
const EMPTY: Duration = Duration::from_secs(3);

/// The files that were emptied and are not written out yet.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// The number of files, which can be read without the lock.
    count: AtomicUsize,
    /// A leaf lock.
    state: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    files: HashMap<Ino, Waiting>,
    /// [`Namespace::keep_settling`] is to return.
    ended: bool,
}

/// A file that was emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Waiting {
    since: Instant,
    /// The origin, if the file's mark is [`Mark::Emptied`].
    marked: Option<NodeId>,
}

impl Unsettled {
    fn get(&self, ino: Ino) -> Option<Waiting> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.state.lock().files.get(&ino).copied()
    }

    /// Adds a file. Returns false if it was there already; its time then starts anew.
    fn add(&self, handoff: &Handoff, ino: Ino, marked: Option<NodeId>) -> bool {
        let mut state = self.state.lock();
        let since = Instant::now();
        let old = state.files.get(&ino).and_then(|old| old.marked);
        let is_new = state.files.insert(ino, Waiting { since, marked: marked.or(old) }).is_none();
        self.count.store(state.files.len(), Ordering::Relaxed);
        if is_new {
            handoff.held().add_emptied(ino.0);
        }
        drop(state);
        self.changed.notify_all();
        is_new
    }

    /// Removes a file that was written out. Returns false if it was emptied again meanwhile; it then stays.
    fn remove(&self, handoff: &Handoff, ino: Ino, as_it_was: Waiting) -> bool {
        let mut state = self.state.lock();
        let same = state.files.get(&ino).is_some_and(|now| now.since == as_it_was.since);
        if same {
            state.files.remove(&ino);
            handoff.held().remove_emptied(ino.0);
        } else if let Some(now) = state.files.get_mut(&ino) {
            now.marked = None;
        }
        self.count.store(state.files.len(), Ordering::Relaxed);
        same
    }

    /// The files that were emptied at least this long ago.
    fn due(&self, age: Duration) -> Vec<(Ino, Waiting)> {
        let state = self.state.lock();
        let due = state.files.iter().filter(|(_, waiting)| waiting.since.elapsed() >= age);
        due.map(|(ino, waiting)| (*ino, *waiting)).collect()
    }
}

impl Namespace {
    /// Writes out emptied files when their time has come, until [`Namespace::end_settling`]. For a thread of its own,
    /// which sleeps while there are none.
    pub fn keep_settling(&self) {
        loop {
            {
                let mut state = self.unsettled.state.lock();
                while state.files.is_empty() && !state.ended {
                    self.unsettled.changed.wait(&mut state);
                }
                if state.ended {
                    return;
                }
                // A file that is added meanwhile is not due at the end of this wait.
                let until = Instant::now() + DELAY;
                while !state.ended && !self.unsettled.changed.wait_until(&mut state, until).timed_out() {}
            }
            self.settle(DELAY);
        }
    }

    /// Ends [`Namespace::keep_settling`].
    pub fn end_settling(&self) {
        self.unsettled.state.lock().ended = true;
        self.unsettled.changed.notify_all();
    }

    /// Writes out the files that were emptied at least `age` ago. An age of zero is for the end of the mount: no more
    /// bytes will come, so empty files are meant to be empty. A file that cannot be written out is left as it is, and
    /// logged.
    pub fn settle(&self, age: Duration) {
        let due = self.unsettled.due(age);
        // The writes of all files are started before the first one is waited for.
        for (ino, _) in &due {
            if let Some(node) = self.table.get(*ino).filter(|node| !node.is_gone())
                && let Ok(file) = self.backing_fd(&node)
            {
                fd::start_writeback(&file);
            }
        }
        for (ino, waiting) in due {
            match self.settle_one(ino, waiting, age) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    tracing::warn!(?ino, %error, "cannot write out a file that was emptied; after a loss of power it may have its old bytes");
                }
            }
            self.is_settled(ino, waiting);
        }
    }

    /// Writes out one file. Returns false if the file is empty and its bytes may still come.
    fn settle_one(&self, ino: Ino, waiting: Waiting, age: Duration) -> Result<bool> {
        let Some(node) = self.table.get(ino).filter(|node| !node.is_gone()) else { return Ok(true) };
        let file = self.backing_fd(&node)?;
        let is_empty = rustix::fs::fstat(&file).map_err(call("stat"))?.st_size == 0;
        if is_empty && !age.is_zero() && waiting.since.elapsed() < EMPTY {
            return Ok(false);
        }
        self.staging.write_out(&file).map_err(call("write out"))?;
        match waiting.marked {
            Some(origin) => backing::write_mark(file.as_fd(), Mark::Data(origin)).map(|()| true),
            None => Ok(true),
        }
    }

    /// Notes that a file was emptied. `marked` is its origin if its mark is [`Mark::Emptied`].
    pub(super) fn was_emptied(&self, node: &Arc<Node>, marked: Option<NodeId>) {
        if self.unsettled.add(&self.handoff, node.ino, marked) {
            self.table.acquire(node.ino, 1, || Arc::clone(node));
        }
    }

    /// Starts to write out a file that was written to, if it was emptied before.
    pub(crate) fn was_written(&self, ino: Ino, file: &impl AsFd) {
        if self.unsettled.get(ino).is_some() {
            fd::start_writeback(file);
        }
    }

    /// Syncs a file by calling `sync`, and makes its mark an ordinary one. `sync` gets true if it must sync the
    /// attributes as well.
    pub(crate) fn sync_by(&self, ino: Ino, sync: impl FnOnce(bool) -> Result<()>) -> Result<()> {
        let Some(waiting) = self.unsettled.get(ino) else { return sync(false) };
        let (Some(origin), Some(node)) = (waiting.marked, self.table.get(ino)) else { return sync(false) };
        let file = self.backing_fd(&node)?;
        // If the file has bytes, they are what the next boot shows, whatever the mark says. If it is empty, the mark
        // decides, so the mark must be durable as well.
        let is_empty = rustix::fs::fstat(&file).map_err(call("stat"))?.st_size == 0;
        if is_empty {
            backing::write_mark(file.as_fd(), Mark::Data(origin))?;
        }
        sync(is_empty)?;
        if !is_empty {
            backing::write_mark(file.as_fd(), Mark::Data(origin))?;
        }
        self.is_settled(ino, waiting);
        Ok(())
    }

    /// Forgets a file of which an earlier worker has noted that it was emptied.
    pub(super) fn forget_emptied(&self, ino: Ino) {
        let state = self.unsettled.state.lock();
        if !state.files.contains_key(&ino) {
            self.handoff.held().remove_emptied(ino.0);
        }
    }

    /// Notes that a file was written out, or cannot be.
    fn is_settled(&self, ino: Ino, waiting: Waiting) {
        if self.unsettled.remove(&self.handoff, ino, waiting) {
            self.table.forget(ino, 1);
        }
    }

    /// The ordinary mark of a file whose mark is [`Mark::Emptied`], as it is written to a file of an earlier boot.
    /// The caller holds the lock of the directory.
    pub(super) fn emptied(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        origin: NodeId,
        made_in: Boot,
    ) -> Result<Mark> {
        if made_in == boot::this() || origin.0 >= self.index.ids() {
            return Ok(Mark::Data(origin));
        }
        let file = backing::open_path(dir, name)?;
        let stat = rustix::fs::fstat(&file).map_err(call("stat"))?;
        let mark = Mark::Emptied(origin, made_in).in_boot(boot::this(), stat.st_size);
        let lost = matches!(mark, Mark::Meta(_));
        // The mark is written at once. Else, emptying the file in this boot would be mistaken for the earlier time.
        let mended = backing::write_mark(file.as_fd(), mark).and_then(|()| match lost {
            true => backing::write_times(file.as_fd(), None, Some(read::MOTHER)),
            false => Ok(()),
        });
        if let Err(error) = mended {
            tracing::warn!(?name, %error, "cannot write the mark of a file that was emptied before the last boot");
        }
        if lost {
            tracing::warn!(
                ?name,
                "the new bytes of a file were lost with the power; it shows the library's bytes"
            );
        }
        Ok(mark)
    }

    /// Writes out a file that is about to be renamed, if the rename replaces bytes of the library. Takes no locks
    /// while the bytes are written.
    pub(super) fn write_out_what_replaces(&self, (parent, name): (Ino, &CStr), (to, new_name): (Ino, &CStr)) {
        let write_out = || -> Result<()> {
            if self.shows_lower_bytes(to, new_name)?
                && let Some(node) = self.upper_file(parent, name)?
            {
                self.staging.write_out(&self.backing_fd(&node)?).map_err(call("write out"))?;
            }
            Ok(())
        };
        if let Err(error) = write_out() {
            // A rename does not fail because of the bytes of a file, as on any filesystem. A sync of the file will.
            tracing::warn!(?name, %error, "cannot write out a file that replaces one of the library");
        }
    }

    /// Whether a name shows a file whose bytes are the library's.
    fn shows_lower_bytes(&self, dir: Ino, name: &CStr) -> Result<bool> {
        let lower_is_file = |dir: NodeId| match self.index.lookup(dir, name.to_bytes())? {
            Some(child) => Ok(self.lower_kind(child)? == Kind::File),
            None => Ok(false),
        };
        match self.view(dir)? {
            View::Lower(dir) => lower_is_file(dir),
            View::Node(node) if node.kind == Kind::Dir => {
                self.with_dir(&node, |state| match (state.get(name.to_bytes()), node.lower) {
                    (Some(Entry::Present(present)), _) => Ok(present.kind == Kind::File && present.meta),
                    (None, Some(lower)) => lower_is_file(lower),
                    (Some(Entry::Whiteout | Entry::Damaged), _) | (None, None) => Ok(false),
                })
            }
            View::Node(_) => Ok(false),
        }
    }

    /// The node of a file that has its bytes in the upper; None if the name shows anything else.
    fn upper_file(&self, dir: Ino, name: &CStr) -> Result<Option<Arc<Node>>> {
        let View::Node(dir) = self.view(dir)? else { return Ok(None) };
        let found = self.with_dir(&dir, |state| Ok(state.get(name.to_bytes())))?;
        let Some(Entry::Present(present)) = found else { return Ok(None) };
        if present.kind != Kind::File || present.meta {
            return Ok(None);
        }
        let node = self.entry_node(&dir, name, present, 0);
        Ok((node.in_upper() == InUpper::All).then_some(node))
    }
}
