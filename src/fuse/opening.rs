//! Opening a file in passthrough mode: what the bytes are read from and written to, and how the kernel is answered.

use std::os::fd::{AsFd, BorrowedFd};

use fuser::OpenFlags;

use super::passthrough::{Answer, Passthrough};
use crate::fs::{Fs, Side};
use crate::namespace::error::Result;
use crate::namespace::types::{Attr, Ino};

/// What an open is for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    write: bool,
    read_write: bool,
    truncate: bool,
    /// The caller may not keep setuid and setgid on what is emptied.
    drop_setid: bool,
}

impl Wanted {
    pub(super) fn new(flags: OpenFlags, uid: u32) -> Self {
        let truncate = flags.0 & libc::O_TRUNC != 0;
        Self {
            write: truncate || flags.0 & libc::O_ACCMODE != libc::O_RDONLY,
            read_write: flags.0 & libc::O_ACCMODE == libc::O_RDWR,
            truncate,
            drop_setid: truncate && uid != 0,
        }
    }

    /// Answers an open that needs nothing to be fetched or copied.
    pub(super) fn at_once(self, fs: &Fs, modes: &Passthrough, ino: Ino) -> Result<Option<Answer>> {
        if self.write { Ok(None) } else { Ok(modes.join(ino.0, fs.side(ino)?)) }
    }

    /// Whether the open may take long.
    pub(super) fn is_slow(self, fs: &Fs, modes: &Passthrough, ino: Ino) -> bool {
        match self.write {
            true => (!self.truncate && fs.must_copy_much(ino)) || modes.must_wait(ino.0),
            false => fs.must_fetch_much(ino),
        }
    }

    /// Opens the file behind an inode and counts it.
    pub(super) fn open(self, fs: &Fs, modes: &Passthrough, ino: Ino) -> Result<Answer> {
        if !self.write {
            return reading(fs, modes, ino);
        }
        let _change = modes.change(ino.0)?;
        let file = fs.backing_for_writing(ino, self.truncate)?;
        if self.drop_setid {
            fs.drop_setid(ino)?;
        }
        Ok(self.opened(fs, modes, &fs.namespace().attr(ino)?, file.as_fd()))
    }

    /// Opens a file that was just made.
    pub(super) fn created(self, fs: &Fs, modes: &Passthrough, attr: &Attr) -> Result<Answer> {
        let file = fs.backing_for_writing(attr.ino, false)?;
        Ok(self.opened(fs, modes, attr, file.as_fd()))
    }

    /// Counts an open file of an inode whose bytes are the space's own, in `file`.
    fn opened(self, fs: &Fs, modes: &Passthrough, attr: &Attr, file: BorrowedFd<'_>) -> Answer {
        let answer = modes.open(attr.ino.0, Side::Upper, may_bypass(fs, attr).then_some(file));
        if self.read_write && matches!(answer, Answer::Passthrough(_)) {
            modes.may_be_mapped(attr.ino.0);
        }
        answer
    }
}

/// Whether the kernel may read and write a file of the upper by itself: nobody would take setuid and setgid bits away
/// (the kernel leaves it to us), and a read renews the time of access, which some mounts keep.
fn may_bypass(fs: &Fs, attr: &Attr) -> bool {
    attr.mode & 0o6000 == 0 && !fs.namespace().keeps_atime()
}

fn reading(fs: &Fs, modes: &Passthrough, ino: Ino) -> Result<Answer> {
    loop {
        let (side, content) = fs.backing(ino)?;
        let bypass = side == Side::Lower || may_bypass(fs, &fs.namespace().attr(ino)?);
        let file = content.as_ref().and_then(|content| content.file()).filter(|_| bypass);
        let answer = modes.open(ino.0, side, file);
        // From here on a change waits for us, or shares the kernel's cache with us. One that was made before this is seen
        // here.
        if fs.side(ino)? == side {
            return Ok(answer);
        }
        modes.release(ino.0);
    }
}
