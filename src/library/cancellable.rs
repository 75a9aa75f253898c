//! A reader or writer that refuses everything once it was cancelled. Unpacking or sending one blob can take long.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct Cancellable<'a, T> {
    pub(crate) inner: T,
    pub(crate) cancel: &'a AtomicBool,
}

impl<T> Cancellable<'_, T> {
    fn go_on(&self) -> io::Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(io::Error::other("interrupted")) } else { Ok(()) }
    }
}

impl<R: Read> Read for Cancellable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.go_on()?;
        self.inner.read(buffer)
    }
}

impl<W: Write> Write for Cancellable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.go_on()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
