//! What the upper has in one directory, held in memory: names that are new, changed or removed.
//!
//! It is not the merged directory. Lower names that the upper does not mention are not here, so a directory with ten
//! thousand lower files and one change takes the memory of one name. Invariant: it equals the directory in the upper,
//! which only this daemon changes while the space is mounted.
//!
//! It also gives the *cookies* of names that the lower does not have. A cookie is the position at which a listing
//! goes on. The kernel lists without an open handle, so the cookie alone must find the position again while the
//! directory changes. A cookie is therefore a hash of the name, as on ext4: a name that is renamed away and back gets
//! its old position, behind a listing that has passed it. If cookies were given out in the order of creation, a
//! program that renames each file it lists would list its own new names for ever.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;

use crate::space::upper::entry::Present;

/// The first cookie of names that the lower directory does not have. All cookies are below 2^31, so that 32-bit
/// programs can read directories.
pub(super) const EXTRA_COOKIES: u64 = 1 << 30;
/// The number of such cookies.
const EXTRA_SLOTS: u64 = 1 << 30;

/// What the upper has under one name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// A whiteout: the space does not show the lower entry of this name.
    Whiteout,
    /// An entry that cannot be understood. Using the name is an error.
    Damaged,
    /// An entry that the space shows.
    Present(Present),
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    /// None for a name that the lower directory has: its position there is its cookie.
    cookie: Option<u64>,
}

/// What the upper has in one directory.
#[derive(Debug, Default)]
pub(super) struct DirState {
    entries: HashMap<Box<[u8]>, Slot>,
    /// The names that the lower directory does not have, by cookie.
    extra: BTreeMap<u64, Box<[u8]>>,
    /// How many more subdirectories (or, if negative, fewer) the space shows than the lower directory has.
    pub(super) subdir_delta: i64,
    /// The directory was removed with what is below it, so it does not show the entries of the lower either.
    removed: bool,
}

impl DirState {
    /// What a directory has that was removed with what is below it.
    pub(super) fn of_removed() -> Self {
        Self { removed: true, ..Self::default() }
    }

    /// Whether the directory was removed with what is below it.
    pub(super) fn is_removed(&self) -> bool {
        self.removed
    }

    /// What the upper has under a name; None when it does not mention the name.
    pub(super) fn get(&self, name: &[u8]) -> Option<Entry> {
        self.entries.get(name).map(|slot| slot.entry)
    }

    /// Sets what the upper has under a name. `in_lower`: the lower directory has the name as well.
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

    /// The cookie of a new name: the hash of the name, or the next cookie that is free.
    fn free_cookie(&self, name: &[u8]) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(name);
        let mut slot = hasher.finish() % EXTRA_SLOTS;
        while self.extra.contains_key(&(EXTRA_COOKIES + slot)) {
            slot = (slot + 1) % EXTRA_SLOTS;
        }
        EXTRA_COOKIES + slot
    }

    /// Removes a name.
    pub(super) fn remove(&mut self, name: &[u8]) {
        if let Some(Slot { cookie: Some(cookie), .. }) = self.entries.remove(name) {
            self.extra.remove(&cookie);
        }
    }

    /// The names that the lower directory does not have and whose cookies are above `after`, ordered by cookie.
    pub(super) fn extras(&self, after: u64) -> impl Iterator<Item = (u64, &[u8], Entry)> {
        let from = after.saturating_add(1).max(EXTRA_COOKIES);
        self.extra.range(from..).filter_map(|(cookie, name)| {
            let slot = self.entries.get(name)?;
            Some((*cookie, &**name, slot.entry))
        })
    }

    /// Everything that the upper has in the directory, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Entry)> {
        self.entries.iter().map(|(name, slot)| (&**name, slot.entry))
    }

    /// Whether the directory in the upper is empty, so that it has no whiteouts either.
    pub(super) fn is_silent(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::upper::Kind;

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

    /// A listing goes on in the next worker, which another compiler may have built.
    #[test]
    fn cookies_are_the_same_in_every_build() {
        let state = DirState::default();
        let cookie = |name: &[u8]| state.free_cookie(name) - EXTRA_COOKIES;
        assert_eq!([cookie(b"a"), cookie(b"new-name"), cookie(b"")], [949_688_339, 178_808_542, 353_129_260]);
    }

    #[test]
    fn names_of_the_lower_take_no_extra_cookie() {
        let mut state = DirState::default();
        state.set(b"x", Entry::Whiteout, true);
        assert_eq!(state.extras(0).count(), 0);
        assert!(!state.is_silent());
    }
}
