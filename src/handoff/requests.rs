//! Operations that are under way.

use std::sync::atomic::AtomicU64;

/// The region of the shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Requests<'h> {
    words: &'h [AtomicU64],
}

impl<'h> Requests<'h> {
    pub(super) fn new(words: &'h [AtomicU64]) -> Self {
        Self { words }
    }

    /// The words of the region, zero at first.
    #[must_use]
    pub fn words(&self) -> &'h [AtomicU64] {
        self.words
    }
}
