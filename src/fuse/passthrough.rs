//! Which kernel inode is open in which I/O mode, when the kernel reads and writes backing files by itself.
//!
//! It decides and counts; it opens no file and moves no bytes. It knows *nodes*, which are what the kernel holds: a
//! node is an inode's number, or another number that stands for the same inode (below).
//!
//! Invariants, both the kernel's (it answers EIO to an open that breaks them):
//!
//! 1. All open files of a node have one mode: cached, or passthrough with one and the same backing number.
//! 2. A backing number is not given back while a file that was opened with it is open.
//!
//! A lower file may be copied up while readers have it open on its blob. They keep the blob's bytes, as on
//! overlayfs; whoever opens the file after that must get the private copy, and cannot under this node. So that
//! open is answered ESTALE, upon which the kernel looks the name up again, and from then on lookups lead to another
//! node for the same inode, for as long as the first one is open or the kernel knows the second. (The kernel looks
//! up twice then, and forgets the first answer: that alone must not end it.)

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use crate::fs::Source;
use crate::namespace::types::Ino;
use crate::sys::backing::Backings;

/// Backing numbers kept for files that nobody has open. Each holds one open file of the kernel's, about 300 bytes,
/// and spares the next open of that file a system call or a message to the mount helper; a heavy import opens two
/// thousand files.
const KEPT_LIMIT: NonZeroUsize = match NonZeroUsize::new(4096) {
    Some(limit) => limit,
    None => NonZeroUsize::MIN,
};

/// Where the numbers of second nodes begin: above all inode numbers.
const SECOND: u64 = 1 << 62;

/// How an open is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The kernel reads and writes the backing file with this number.
    Passthrough(u32),
    /// Reads and writes come as requests.
    Cached,
    /// ESTALE: the name now leads to another node.
    Elsewhere,
}

/// The I/O modes of one mount's nodes.
#[derive(Debug)]
pub(super) struct Passthrough {
    backings: Arc<dyn Backings>,
    /// Whether the log knows that a file could not be registered.
    told: AtomicBool,
    /// A leaf lock, held for map operations only.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Nodes that somebody has open; all others are idle.
    open: HashMap<u64, Open>,
    /// Backing numbers of idle nodes.
    kept: LruCache<u64, Backing>,
    /// Inodes that lookups lead to a second node for.
    diverted: HashMap<Ino, u64>,
    /// All second nodes that the kernel holds, or is about to.
    second: HashMap<u64, Second>,
    /// The last second node's number.
    last: u64,
}

/// The mode of a node that is open, and how many open files it has.
#[derive(Clone, Copy, Debug)]
enum Open {
    Cached(u64),
    Passthrough(Backing, u64),
}

/// A registered backing file.
#[derive(Clone, Copy, Debug)]
struct Backing {
    id: u32,
    source: Source,
}

#[derive(Debug)]
struct Second {
    ino: Ino,
    /// The node that lookups led to before.
    instead_of: u64,
    /// Lookups by the kernel.
    lookups: u64,
}

impl Passthrough {
    pub(super) fn new(backings: Arc<dyn Backings>) -> Self {
        Self {
            backings,
            told: AtomicBool::new(false),
            state: Mutex::new(State {
                open: HashMap::new(),
                kept: LruCache::new(KEPT_LIMIT),
                diverted: HashMap::new(),
                second: HashMap::new(),
                last: SECOND,
            }),
        }
    }

    /// The inode that a node stands for.
    pub(super) fn ino(&self, node: u64) -> Ino {
        if node < SECOND {
            return Ino(node);
        }
        self.state.lock().second.get(&node).map_or(Ino(node), |second| second.ino)
    }

    /// The second node that an inode's names lead to, if they do. With `count` the kernel gets a reference to it.
    pub(super) fn second_node(&self, ino: Ino, count: bool) -> Option<u64> {
        let mut state = self.state.lock();
        let node = *state.diverted.get(&ino)?;
        if count && let Some(second) = state.second.get_mut(&node) {
            second.lookups += 1;
        }
        Some(node)
    }

    /// Whether an open for writing must go elsewhere, because readers have this node open on the lower's bytes.
    /// Asked before the file is copied up.
    pub(super) fn must_divert(&self, node: u64) -> bool {
        let mut state = self.state.lock();
        let reads_lower = matches!(
            state.open.get(&node),
            Some(Open::Passthrough(Backing { source: Source::Lower, .. }, _))
        );
        if reads_lower {
            state.divert(node);
        }
        reads_lower
    }

    /// Counts one more open file of a node, if how to answer is known already: it is open, or its backing number
    /// was kept.
    pub(super) fn join(&self, node: u64, source: Source) -> Option<Answer> {
        self.state.lock().join(node, source, false)
    }

    /// Counts one more open file of a node whose bytes are in `file`, and says how to answer. With `cached` the
    /// file may not be handed to the kernel.
    pub(super) fn open(&self, node: u64, source: Source, cached: bool, file: BorrowedFd<'_>) -> Answer {
        if let Some(answer) = self.state.lock().join(node, source, cached) {
            return answer;
        }
        // Not under the lock: it may be a message to the mount helper.
        let id = if cached { None } else { self.register(file) };
        let (answer, unused) = {
            let mut state = self.state.lock();
            match state.join(node, source, cached) {
                // Somebody else was as fast.
                Some(answer) => (answer, id),
                None => {
                    let backing = id.map(|id| Backing { id, source });
                    state.open.insert(node, backing.map_or(Open::Cached(1), |b| Open::Passthrough(b, 1)));
                    let old = state.kept.pop(&node).map(|old| old.id);
                    (id.map_or(Answer::Cached, Answer::Passthrough), old)
                }
            }
        };
        self.give_back(unused);
        answer
    }

    /// An open file of a node is gone.
    pub(super) fn release(&self, node: u64) {
        let unused = {
            let mut state = self.state.lock();
            match state.open.get_mut(&node) {
                Some(Open::Cached(n) | Open::Passthrough(_, n)) if *n > 1 => {
                    *n -= 1;
                    None
                }
                Some(_) => {
                    let closed = state.open.remove(&node);
                    state.forget_second_of(node);
                    match closed {
                        Some(Open::Passthrough(backing, _)) => {
                            state.kept.push(node, backing).map(|(_, least_used)| least_used.id)
                        }
                        Some(Open::Cached(_)) | None => None,
                    }
                }
                None => None,
            }
        };
        self.give_back(unused);
    }

    /// The kernel has dropped a node: its backing file need not be kept, and may be a deleted one. Returns the inode.
    pub(super) fn forget(&self, node: u64, count: u64) -> Ino {
        let (ino, unused) = {
            let mut state = self.state.lock();
            let unused = state.kept.pop(&node).map(|backing| backing.id);
            (state.forget_second(node, count).unwrap_or(Ino(node)), unused)
        };
        self.give_back(unused);
        ino
    }

    fn register(&self, file: BorrowedFd<'_>) -> Option<u32> {
        match self.backings.open(file) {
            Ok(id) => Some(id),
            // A library of somebody else's has thousands of files that an ordinary user may not register.
            Err(error) if self.told.swap(true, Ordering::Relaxed) => {
                tracing::debug!(%error, "a file is served without passthrough");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a file is served without passthrough, and others may be");
                None
            }
        }
    }

    fn give_back(&self, id: Option<u32>) {
        if let Some(id) = id
            && let Err(error) = self.backings.close(id)
        {
            tracing::warn!(id, %error, "a backing file stays registered");
        }
    }
}

impl State {
    /// Adds an open file to a node that is open, or whose backing number was kept; None when neither is so.
    fn join(&mut self, node: u64, source: Source, cached: bool) -> Option<Answer> {
        match self.open.get_mut(&node) {
            Some(Open::Cached(n)) => {
                *n += 1;
                return Some(Answer::Cached);
            }
            Some(Open::Passthrough(backing, n)) if backing.source == source => {
                *n += 1;
                return Some(Answer::Passthrough(backing.id));
            }
            Some(Open::Passthrough(..)) => {
                self.divert(node);
                return Some(Answer::Elsewhere);
            }
            None => {}
        }
        let kept = self.kept.peek(&node).copied().filter(|kept| kept.source == source && !cached)?;
        self.kept.pop(&node);
        self.open.insert(node, Open::Passthrough(kept, 1));
        Some(Answer::Passthrough(kept.id))
    }

    /// From now on the names of a node's inode lead to another node.
    fn divert(&mut self, node: u64) {
        let ino = match self.second.get(&node) {
            Some(second) => second.ino,
            None => Ino(node),
        };
        if self.diverted.get(&ino).is_some_and(|now| *now != node) {
            return;
        }
        self.last += 1;
        self.diverted.insert(ino, self.last);
        self.second.insert(self.last, Second { ino, instead_of: node, lookups: 0 });
    }

    /// Takes lookups from a second node; the inode, if it is one.
    fn forget_second(&mut self, node: u64, count: u64) -> Option<Ino> {
        let second = self.second.get_mut(&node)?;
        let ino = second.ino;
        second.lookups = second.lookups.saturating_sub(count);
        self.drop_second(node);
        Some(ino)
    }

    /// After the last close of `first`: the node that stands in for it may not be needed any more.
    fn forget_second_of(&mut self, first: u64) {
        let ino = self.second.get(&first).map_or(Ino(first), |second| second.ino);
        if let Some(node) = self.diverted.get(&ino).copied() {
            self.drop_second(node);
        }
    }

    /// Drops a second node that the kernel does not know and nobody will be sent to.
    fn drop_second(&mut self, node: u64) {
        let Some(second) = self.second.get(&node) else { return };
        let ino = second.ino;
        let leads_here = self.diverted.get(&ino) == Some(&node);
        if second.lookups > 0 || (leads_here && self.open.contains_key(&second.instead_of)) {
            return;
        }
        self.second.remove(&node);
        if leads_here {
            self.diverted.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io;
    use std::os::fd::AsFd;

    use super::*;

    /// Hands out numbers and remembers which are out.
    #[derive(Debug, Default)]
    struct Fake {
        out: Mutex<(u32, HashSet<u32>)>,
        refuses: bool,
    }

    impl Backings for Fake {
        fn open(&self, _: BorrowedFd<'_>) -> io::Result<u32> {
            if self.refuses {
                return Err(io::Error::from_raw_os_error(1));
            }
            let mut out = self.out.lock();
            out.0 += 1;
            let id = out.0;
            out.1.insert(id);
            Ok(id)
        }

        fn close(&self, id: u32) -> io::Result<()> {
            assert!(self.out.lock().1.remove(&id), "{id} was given back twice");
            Ok(())
        }
    }

    fn modes(refuses: bool) -> (Arc<Fake>, Passthrough) {
        let fake = Arc::new(Fake { refuses, ..Fake::default() });
        (Arc::clone(&fake), Passthrough::new(fake))
    }

    fn open(modes: &Passthrough, node: u64, source: Source) -> Answer {
        modes.open(node, source, false, std::io::stdin().as_fd())
    }

    #[test]
    fn opens_of_one_node_share_one_number_and_the_next_open_finds_it_again() {
        let (fake, modes) = modes(false);
        let Answer::Passthrough(id) = open(&modes, 7, Source::Lower) else { panic!() };
        assert_eq!(open(&modes, 7, Source::Lower), Answer::Passthrough(id));
        modes.release(7);
        modes.release(7);
        assert_eq!(open(&modes, 7, Source::Lower), Answer::Passthrough(id));
        assert_eq!(fake.out.lock().1.len(), 1);
    }

    #[test]
    fn a_forgotten_node_keeps_no_backing_file() {
        let (fake, modes) = modes(false);
        open(&modes, 7, Source::Upper);
        modes.release(7);
        assert_eq!(modes.forget(7, 1), Ino(7));
        assert!(fake.out.lock().1.is_empty());
    }

    #[test]
    fn an_idle_node_changes_its_backing() {
        let (fake, modes) = modes(false);
        let lower = open(&modes, 7, Source::Lower);
        modes.release(7);
        assert!(!modes.must_divert(7));
        let upper = open(&modes, 7, Source::Upper);
        assert_ne!(lower, upper);
        assert_eq!(fake.out.lock().1.len(), 1);
    }

    #[test]
    fn a_writer_beside_readers_of_the_lower_goes_to_a_second_node() {
        let (_, modes) = modes(false);
        let reader = open(&modes, 7, Source::Lower);
        assert!(modes.must_divert(7));
        let second = modes.second_node(Ino(7), true).unwrap();
        assert_eq!(modes.ino(second), Ino(7));
        let writer = open(&modes, second, Source::Upper);
        assert!(matches!(writer, Answer::Passthrough(_)) && writer != reader);
        // The next reader finds the node on the lower, and is sent to the same second node.
        assert_eq!(open(&modes, 7, Source::Upper), Answer::Elsewhere);
        assert_eq!(modes.second_node(Ino(7), false), Some(second));
        modes.release(second);
        // Forgotten, but the first node is still open on the lower.
        assert_eq!(modes.forget(second, 1), Ino(7));
        assert_eq!(modes.second_node(Ino(7), false), Some(second));
        modes.release(7);
        assert_eq!(modes.second_node(Ino(7), false), None);
    }

    #[test]
    fn a_second_node_that_the_kernel_knows_outlives_the_first_ones_readers() {
        let (_, modes) = modes(false);
        open(&modes, 7, Source::Lower);
        assert!(modes.must_divert(7));
        let second = modes.second_node(Ino(7), true).unwrap();
        modes.release(7);
        assert_eq!(modes.second_node(Ino(7), true), Some(second));
        modes.forget(second, 1);
        assert_eq!(modes.ino(second), Ino(7));
        modes.forget(second, 1);
        assert_eq!(modes.second_node(Ino(7), false), None);
    }

    #[test]
    fn a_file_that_may_not_be_registered_is_cached_until_all_have_closed_it() {
        let (_, refused) = modes(true);
        assert_eq!(open(&refused, 7, Source::Lower), Answer::Cached);
        assert!(!refused.must_divert(7));
        assert_eq!(open(&refused, 7, Source::Upper), Answer::Cached);

        let (_, modes) = modes(false);
        assert_eq!(modes.open(7, Source::Upper, true, std::io::stdin().as_fd()), Answer::Cached);
        assert_eq!(open(&modes, 7, Source::Upper), Answer::Cached);
        modes.release(7);
        modes.release(7);
        assert!(matches!(open(&modes, 7, Source::Upper), Answer::Passthrough(_)));
    }

    #[test]
    fn more_idle_files_than_are_kept_give_their_numbers_back() {
        let (fake, modes) = modes(false);
        for node in 1..=KEPT_LIMIT.get() as u64 + 10 {
            open(&modes, node, Source::Lower);
            modes.release(node);
        }
        assert_eq!(fake.out.lock().1.len(), KEPT_LIMIT.get());
    }

    #[test]
    fn a_release_that_nobody_opened_is_harmless() {
        let (_, modes) = modes(false);
        modes.release(7);
        assert_eq!(modes.forget(SECOND + 5, 1), Ino(SECOND + 5));
    }
}
