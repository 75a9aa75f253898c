//! Opens a file in passthrough mode: finds or makes its backing file, and decides how the kernel reads and writes it.

use std::os::fd::{AsFd, BorrowedFd};

use fuser::{OpenFlags, Request};

use super::passthrough::{Answer, Opened, Passthrough};
use crate::fs::{Fs, Side};
use crate::namespace::types::{Attr, Ino, Result};

/// What the caller of an open wants to do.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    write: bool,
    read_write: bool,
    truncate: bool,
    /// The number of the request.
    unique: u64,
    /// Truncation clears the setuid and setgid bits, because the caller is not root.
    drop_setid: bool,
}

impl Wanted {
    pub(super) fn new(flags: OpenFlags, request: &Request) -> Self {
        let truncate = flags.0 & libc::O_TRUNC != 0;
        Self {
            write: truncate || flags.0 & libc::O_ACCMODE != libc::O_RDONLY,
            read_write: flags.0 & libc::O_ACCMODE == libc::O_RDWR,
            truncate,
            unique: request.unique().0,
            drop_setid: truncate && request.uid() != 0,
        }
    }

    /// Whether the open may change the space: it copies a file up, or empties it.
    pub(super) fn changes(self) -> bool {
        self.write
    }

    /// Answers an open that needs no file to be opened, fetched or copied.
    pub(super) fn at_once(self, fs: &Fs, modes: &Passthrough, ino: Ino) -> Result<Option<Opened>> {
        if self.write { Ok(None) } else { modes.join(self.unique, ino.0, fs.side(ino)?) }
    }

    /// Whether the open may take long.
    pub(super) fn is_slow(self, fs: &Fs, modes: &Passthrough, ino: Ino) -> bool {
        match self.write {
            true => (!self.truncate && fs.must_copy_much(ino)) || modes.must_wait(ino.0),
            false => fs.must_fetch_much(ino),
        }
    }

    /// Opens the backing file of an inode, and counts one more open file.
    pub(super) fn open(self, fs: &Fs, modes: &Passthrough, ino: Ino) -> Result<Opened> {
        if !self.write {
            return self.reading(fs, modes, ino);
        }
        let _change = modes.change(ino.0)?;
        let file = fs.backing_for_writing(ino, self.truncate)?;
        if self.drop_setid {
            fs.drop_setid(ino)?;
        }
        self.opened(fs, modes, &fs.namespace().attr(ino)?, file.as_fd())
    }

    /// As [`Wanted::open`], for a file that was just created.
    pub(super) fn created(self, fs: &Fs, modes: &Passthrough, attr: &Attr) -> Result<Opened> {
        let file = fs.backing_for_writing(attr.ino, false)?;
        self.opened(fs, modes, attr, file.as_fd())
    }

    /// Counts one more open file of an inode whose bytes are in the upper, in `file`.
    fn opened(self, fs: &Fs, modes: &Passthrough, attr: &Attr, file: BorrowedFd<'_>) -> Result<Opened> {
        let file = may_bypass(fs, attr).then_some(file);
        let opened = modes.open(self.unique, attr.ino.0, Side::Upper, file)?;
        if self.read_write && matches!(opened.answer, Answer::Passthrough(_)) {
            modes.may_be_mapped(attr.ino.0);
        }
        Ok(opened)
    }

    fn reading(self, fs: &Fs, modes: &Passthrough, ino: Ino) -> Result<Opened> {
        loop {
            let (side, content) = fs.backing(ino)?;
            let bypass = side == Side::Lower || may_bypass(fs, &fs.namespace().attr(ino)?);
            let file = content.as_ref().and_then(|content| content.file()).filter(|_| bypass);
            let opened = modes.open(self.unique, ino.0, side, file)?;
            // A change that begins now waits for this open, or uses the same page cache. A change that was made before is
            // noticed here.
            if fs.side(ino)? == side {
                return Ok(opened);
            }
            modes.release(opened.handle);
        }
    }
}

/// Whether the kernel may read and write a file of the upper without the daemon. Not when a write has to clear setuid or
/// setgid bits, which the kernel leaves to the daemon; and not when the mount keeps access times, which a read by the
/// kernel would change.
fn may_bypass(fs: &Fs, attr: &Attr) -> bool {
    attr.mode & 0o6000 == 0 && !fs.namespace().keeps_atime()
}
