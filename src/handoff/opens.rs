//! What the kernel has open by passthrough.

use std::sync::atomic::AtomicU64;

/// The region of the shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Opens<'h> {
    words: &'h [AtomicU64],
}

impl<'h> Opens<'h> {
    pub(super) fn new(words: &'h [AtomicU64]) -> Self {
        Self { words }
    }

    /// The words of the region, zero at first.
    #[must_use]
    pub fn words(&self) -> &'h [AtomicU64] {
        self.words
    }
}
