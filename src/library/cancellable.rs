//! A writer that refuses everything once it was cancelled. Unpacking one blob can take long.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct Cancellable<'a, W: Write> {
    pub(crate) out: W,
    pub(crate) cancel: &'a AtomicBool,
}

impl<W: Write> Write for Cancellable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
