//! What one directory of the upper says, held in memory: names that are new, changed or gone.
//!
//! Not the merged directory: lower names that the upper does not mention are not here, so that a directory of
//! ten thousand lower files and one change costs one entry. Invariant: it mirrors the backing directory, which
//! only this daemon changes while the space is mounted.
//!
//! A directory is read without a handle, so a cookie alone must say where a listing goes on while the directory changes.
//! The cookie of a name that the lower does not have is a hash of the name, as on ext4: a name that is renamed away
//! and back has its old place again, behind a listing that was there already. Cookies given out in the order of creation
//! would let a listing that renames what it meets run after its own tail for ever.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;

use crate::space::upper::entry::Present;

/// Cookies from here on belong to names that the lower directory does not have. They end below 2^31, so that 32-bit
/// programs can read directories.
pub(super) const EXTRA_COOKIES: u64 = 1 << 30;
/// CopyUp many cookies such names can have.
const EXTRA_SLOTS: u64 = 1 << 30;

/// What the upper says of one name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// The lower name is gone.
    Whiteout,
    /// The backing entry cannot be understood.
    Damaged,
    /// A backing entry.
    Present(Present),
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    /// Set for names that the lower directory does not have.
    cookie: Option<u64>,
}

/// The upper's word on one directory.
#[derive(Debug, Default)]
pub(super) struct DirState {
    entries: HashMap<Box<[u8]>, Slot>,
    extra: BTreeMap<u64, Box<[u8]>>,
    /// Subdirectories that the upper adds to (or, negative, takes from) the lower's.
    pub(super) subdir_delta: i64,
}

impl DirState {
    /// What the upper says of a name; None when it says nothing.
    pub(super) fn get(&self, name: &[u8]) -> Option<Entry> {
        self.entries.get(name).map(|slot| slot.entry)
    }

    /// Sets what the upper says of a name. `in_lower`: the lower directory has the name too.
    pub(super) fn set(&mut self, name: &[u8], entry: Entry, in_lower: bool) {
        if let Some(slot) = self.entries.get_mut(name) {
            slot.entry = entry;
            return;
        }
        let cookie = (!in_lower).then(|| {
            let cookie = self.free_cookie(name);
            self.extra.insert(cookie, name.into());
            cookie
        });
        self.entries.insert(name.into(), Slot { entry, cookie });
    }

    /// The cookie of a new name: its hash, or the next one that is free.
    fn free_cookie(&self, name: &[u8]) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(name);
        let mut slot = hasher.finish() % EXTRA_SLOTS;
        while self.extra.contains_key(&(EXTRA_COOKIES + slot)) {
            slot = (slot + 1) % EXTRA_SLOTS;
        }
        EXTRA_COOKIES + slot
    }

    /// Forgets a name.
    pub(super) fn remove(&mut self, name: &[u8]) {
        if let Some(Slot { cookie: Some(cookie), .. }) = self.entries.remove(name) {
            self.extra.remove(&cookie);
        }
    }

    /// The names that the lower does not have, with cookies above `after`, in order.
    pub(super) fn extras(&self, after: u64) -> impl Iterator<Item = (u64, &[u8], Entry)> {
        let from = after.saturating_add(1).max(EXTRA_COOKIES);
        self.extra.range(from..).filter_map(|(cookie, name)| {
            let slot = self.entries.get(name)?;
            Some((*cookie, &**name, slot.entry))
        })
    }

    /// Every name with what is said of it, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Entry)> {
        self.entries.iter().map(|(name, slot)| (&**name, slot.entry))
    }

    /// Whether the upper says nothing at all, whiteouts included.
    pub(super) fn is_silent(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::upper::types::Kind;

    fn present(ino: u64) -> Entry {
        Entry::Present(Present::created(Kind::File, ino))
    }

    #[test]
    fn cookies_stay_while_names_come_and_go() {
        let mut state = DirState::default();
        for (n, name) in [b"a", b"b", b"c"].into_iter().enumerate() {
            state.set(name, present(n as u64), false);
        }
        let listed = |state: &DirState| -> Vec<(u64, Vec<u8>)> {
            state.extras(0).map(|(cookie, name, _)| (cookie, name.to_vec())).collect()
        };
        let before = listed(&state);
        state.remove(b"a");
        state.set(b"d", present(9), false);
        let after = listed(&state);
        assert!(before.iter().filter(|(_, name)| name != b"a").all(|kept| after.contains(kept)));
        state.set(b"a", present(0), false);
        state.remove(b"d");
        assert_eq!(listed(&state), before, "a name that comes back has its old place");
    }

    #[test]
    fn names_of_one_hash_have_cookies_of_their_own() {
        let mut state = DirState::default();
        let cookie = state.free_cookie(b"a");
        state.extra.insert(cookie, b"other"[..].into());
        assert_eq!(state.free_cookie(b"a"), EXTRA_COOKIES + (cookie - EXTRA_COOKIES + 1) % EXTRA_SLOTS);
    }

    #[test]
    fn names_of_the_lower_take_no_extra_cookie() {
        let mut state = DirState::default();
        state.set(b"x", Entry::Whiteout, true);
        assert_eq!(state.extras(0).count(), 0);
        assert!(!state.is_silent());
    }
}
