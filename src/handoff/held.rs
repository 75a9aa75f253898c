//! Descriptors of files that have no name any more, but that the kernel still uses.

use std::sync::atomic::AtomicU64;

/// The region of the shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Held<'h> {
    words: &'h [AtomicU64],
}

impl<'h> Held<'h> {
    pub(super) fn new(words: &'h [AtomicU64]) -> Self {
        Self { words }
    }

    /// The words of the region, zero at first.
    #[must_use]
    pub fn words(&self) -> &'h [AtomicU64] {
        self.words
    }
}
