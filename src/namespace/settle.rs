//! Files whose name may survive a loss of power while their bytes do not.
//!
//! A copy-up carries the library's bytes, and they are out before the copy gets its name (`sys::order`). But a file
//! that a program *empties*, to write it anew, has its name or its length at once and its bytes later. Until these are
//! out, a loss of power could leave it empty, where it was neither before nor should be after.
//!
//! * A library file that is emptied begins as an empty copy, with the boot in its mark
//!   ([`Mark::Emptied`]). In a later boot, one that is still empty counts as never emptied: it shows the library's bytes.
//! * Soon after ([`DELAY`]; [`EMPTY`] while there are none) its bytes are written out, and then the mark becomes an ordinary one: from then on an empty
//!   file was meant to be empty. A sync of the file does the same at once, and so does the end of the mount. A daemon
//!   that was killed leaves the rest to the next one, which finds the marks when it reads the directory.
//! * A file of the upper that is emptied has no old bytes to fall back to. Its new ones are written out as soon,
//!   as ext4 does when such a file is closed, which is not told to us.
//! * A file that *replaces* a library file by a rename is written out before the rename, as ext4 does where it sees one
//!   file replace another. In the upper it would not see it: the library's file is not there.
//!
//! Invariant: the order is always bytes, then mark. The files that wait are kept in the table by a lookup of ours.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::dir::Entry;
use super::error::{Result, upper as call};
use super::table::{InUpper, Node};
use super::types::{Ino, Kind};
use super::{Namespace, View, backing, read};
use crate::library::index::NodeId;
use crate::space::upper::mark::Mark;
use crate::sys::boot::{self, Boot};
use crate::sys::fd;

/// CopyUp long after it was emptied a file's bytes are written out. Long enough for a program to have written them, short
/// beside the seconds after which a journal is committed.
const DELAY: Duration = Duration::from_millis(100);

/// CopyUp long a file has to stay empty to be meant to be. A program that empties a file writes to it at once, but a busy
/// machine may let it wait.
const EMPTY: Duration = Duration::from_secs(3);

/// The files that wait.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// CopyUp many there are, to be asked without the lock.
    count: AtomicUsize,
    /// A leaf lock.
    state: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    files: HashMap<Ino, Waiting>,
    /// Nobody will wait for more.
    ended: bool,
}

/// A file that was emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Waiting {
    since: Instant,
    /// The node in its mark, if the mark names a boot.
    marked: Option<NodeId>,
}

impl Unsettled {
    fn get(&self, ino: Ino) -> Option<Waiting> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.state.lock().files.get(&ino).copied()
    }

    /// Adds a file; false when it was there, and waits anew.
    fn add(&self, ino: Ino, marked: Option<NodeId>) -> bool {
        let mut state = self.state.lock();
        let since = Instant::now();
        let old = state.files.get(&ino).and_then(|old| old.marked);
        let is_new = state.files.insert(ino, Waiting { since, marked: marked.or(old) }).is_none();
        self.count.store(state.files.len(), Ordering::Relaxed);
        drop(state);
        self.changed.notify_all();
        is_new
    }

    /// Takes a file out, unless it was emptied again meanwhile.
    fn remove(&self, ino: Ino, as_it_was: Waiting) -> bool {
        let mut state = self.state.lock();
        let same = state.files.get(&ino).is_some_and(|now| now.since == as_it_was.since);
        if same {
            state.files.remove(&ino);
        } else if let Some(now) = state.files.get_mut(&ino) {
            now.marked = None;
        }
        self.count.store(state.files.len(), Ordering::Relaxed);
        same
    }

    /// Those that have waited so long.
    fn due(&self, age: Duration) -> Vec<(Ino, Waiting)> {
        let state = self.state.lock();
        let due = state.files.iter().filter(|(_, waiting)| waiting.since.elapsed() >= age);
        due.map(|(ino, waiting)| (*ino, *waiting)).collect()
    }
}

impl Namespace {
    /// Writes out what was emptied, some time after it was, until [`Namespace::end_settling`]. For a thread of its own,
    /// which sleeps while nothing waits.
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
                // Whoever is added meanwhile is not yet due.
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

    /// Writes out what was emptied this long ago; with no age, all at once, for nothing more will come. What cannot be
    /// written out is left as it is, and told in the log.
    pub fn settle(&self, age: Duration) {
        let due = self.unsettled.due(age);
        // All are begun before one is waited for.
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
                    tracing::warn!(?ino, %error, "a file that was emptied may come back after a loss of power");
                }
            }
            if self.unsettled.remove(ino, waiting) {
                self.table.forget(ino, 1);
            }
        }
    }

    /// False when its bytes may still come.
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

    /// Notes that a file was emptied. `marked`: its mark says so.
    pub(super) fn was_emptied(&self, node: &Node, marked: Option<NodeId>) {
        if self.unsettled.add(node.ino, marked) {
            self.hold(node);
        }
    }

    /// A file that was emptied has been written to: begins to write it out.
    pub(crate) fn was_written(&self, ino: Ino, file: &impl AsFd) {
        if self.unsettled.get(ino).is_some() {
            fd::start_writeback(file);
        }
    }

    /// Syncs a file by `sync`, which is told whether attributes matter, and makes its mark an ordinary one.
    pub(crate) fn sync_by(&self, ino: Ino, sync: impl FnOnce(bool) -> Result<()>) -> Result<()> {
        let Some(waiting) = self.unsettled.get(ino) else { return sync(false) };
        let (Some(origin), Some(node)) = (waiting.marked, self.table.get(ino)) else { return sync(false) };
        let file = self.backing_fd(&node)?;
        // With bytes the file is what it is, whatever its mark says, once they are safe. Without, the mark decides, and
        // must be safe as well.
        let is_empty = rustix::fs::fstat(&file).map_err(call("stat"))?.st_size == 0;
        if is_empty {
            backing::write_mark(file.as_fd(), Mark::Data(origin))?;
        }
        sync(is_empty)?;
        if !is_empty {
            backing::write_mark(file.as_fd(), Mark::Data(origin))?;
        }
        if self.unsettled.remove(ino, waiting) {
            self.table.forget(ino, 1);
        }
        Ok(())
    }

    /// What the mark of an emptied file means now. The caller holds the directory's lock.
    pub(super) fn emptied(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        origin: NodeId,
        made_in: Boot,
    ) -> Result<Mark> {
        if made_in == boot::this() || origin.0 >= self.index.len() {
            return Ok(Mark::Data(origin));
        }
        let file = backing::open_path(dir, name)?;
        let stat = rustix::fs::fstat(&file).map_err(call("stat"))?;
        let mark = Mark::Emptied(origin, made_in).in_boot(boot::this(), stat.st_size);
        let lost = matches!(mark, Mark::Meta(_));
        // At once, or it would be misread when the file is emptied in this boot.
        let mended = backing::write_mark(file.as_fd(), mark).and_then(|()| match lost {
            true => backing::write_times(file.as_fd(), None, Some(read::MOTHER)),
            false => Ok(()),
        });
        if let Err(error) = mended {
            tracing::warn!(?name, %error, "the mark of a file that was emptied stays");
        }
        if lost {
            tracing::warn!(?name, "its new bytes were lost with the power: it shows the library's");
        }
        Ok(mark)
    }

    /// Keeps a node in the table.
    fn hold(&self, node: &Node) {
        let (places, in_upper, backing_ino) = {
            let state = node.state.lock();
            (state.places.clone(), state.in_upper, state.backing_ino)
        };
        self.table.acquire(node.ino, 1, || {
            Node::new(node.ino, node.lower, node.kind, places, in_upper, backing_ino)
        });
    }

    /// Before a rename: when it replaces bytes of the library, those that replace them are written out. Nothing is
    /// locked while they are.
    pub(super) fn write_out_what_replaces(&self, (parent, name): (Ino, &CStr), (to, new_name): (Ino, &CStr)) {
        if !self.shows_lower_bytes(to, new_name) {
            return;
        }
        let Some(node) = self.upper_file(parent, name) else { return };
        let written =
            self.backing_fd(&node).and_then(|file| self.staging.write_out(&file).map_err(call("write out")));
        if let Err(error) = written {
            // As on any filesystem, a rename says nothing of bytes; a sync of the file will.
            tracing::warn!(?name, %error, "a file that replaces one of the library was not written out");
        }
    }

    /// Whether a name leads to a file whose bytes are the library's.
    fn shows_lower_bytes(&self, dir: Ino, name: &CStr) -> bool {
        let name = name.to_bytes();
        let lower_is_file = |dir: NodeId| {
            let found = self.index.lookup(dir, name).ok().flatten();
            found
                .and_then(|child| self.index.node(child).ok())
                .is_some_and(|n| Kind::of_lower(&n) == Kind::File)
        };
        match self.view(dir) {
            Ok(View::Lower(dir)) => lower_is_file(dir),
            Ok(View::Node(node)) if node.kind == Kind::Dir => self
                .with_dir(&node, |state| {
                    Ok(match state.get(name) {
                        Some(Entry::Present(present)) => present.kind == Kind::File && present.meta,
                        Some(Entry::Whiteout | Entry::Damaged) => false,
                        None => node.lower.is_some_and(lower_is_file),
                    })
                })
                .unwrap_or(false),
            Ok(View::Node(_)) | Err(_) => false,
        }
    }

    /// The file of a name, when it has its bytes in the upper.
    fn upper_file(&self, dir: Ino, name: &CStr) -> Option<std::sync::Arc<Node>> {
        let Ok(View::Node(dir)) = self.view(dir) else { return None };
        let found = self.with_dir(&dir, |state| Ok(state.get(name.to_bytes()))).ok()?;
        let Some(Entry::Present(present)) = found else { return None };
        let is_file = present.kind == Kind::File && !present.meta;
        let node = is_file.then(|| self.entry_node(&dir, name, present, 0))?;
        (node.in_upper() == InUpper::All).then_some(node)
    }
}
