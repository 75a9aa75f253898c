//! Makes the bytes of a file that names another path than the one in its blob, and of another length.
//!
//! The blob comes in pieces of any size. The words of the index say at which of its bytes a name or path is replaced, or
//! something is filled up; all else is passed on. So nothing has to be in memory.
//!
//! Invariant: a place at which the path or the name of the stage is missing is an error, and so is another size than the
//! index says, because then the index and the blob do not belong together.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use zerocopy::little_endian::U64;

use super::relocate::{Names, RelocateError};
use crate::library::index::place::Step;
use crate::sys::fd;

/// The path in which an environment was built, and the one at which it is shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) from: Vec<u8>,
    pub(super) to: Vec<u8>,
}

/// Makes a file of its blob.
#[derive(Debug)]
pub(super) struct Splicer<'a, W> {
    /// What is still to be done.
    words: std::slice::Iter<'a, U64>,
    next: Option<(u64, Step)>,
    names: &'a Names,
    place: &'a Place,
    /// How much of the blob was taken.
    at: u64,
    /// How much was passed on.
    made: u64,
    /// How much is to be passed on in all.
    size: u64,
    /// The beginning of the name or path that ends in the next piece.
    held: Vec<u8>,
    out: W,
}

impl<'a, W: Write> Splicer<'a, W> {
    /// `size` is what the index says of the file.
    pub(super) fn new(words: &'a [U64], names: &'a Names, place: &'a Place, size: u64, out: W) -> Self {
        let mut words = words.iter();
        let next = words.next().map(|word| Step::decode(word.get()));
        Self { words, next, names, place, at: 0, made: 0, size, held: Vec::new(), out }
    }

    /// Takes the next bytes of the blob.
    pub(super) fn push(&mut self, mut piece: &[u8]) -> Result<(), RelocateError> {
        while let Some((offset, step)) = self.next {
            let before = offset.checked_sub(self.at).ok_or(RelocateError::NameNotThere { offset })?;
            if before > 0 {
                if piece.is_empty() {
                    return Ok(());
                }
                let before = usize::try_from(before).unwrap_or(usize::MAX).min(piece.len());
                let (copied, rest) = piece.split_at(before);
                self.pass(copied)?;
                self.at += copied.len() as u64;
                piece = rest;
                continue;
            }
            let (from, to): (&'a [u8], &'a [u8]) = match step {
                Step::Name => (&self.names.from, &self.names.to),
                Step::Path => (&self.place.from, &self.place.to),
                Step::Nul => (&[], &[]),
                Step::Blank => (&[], &[]),
            };
            let missing = from.len() - self.held.len();
            let (taken, rest) = piece.split_at(missing.min(piece.len()));
            self.held.extend_from_slice(taken);
            piece = rest;
            if self.held.len() < from.len() {
                return Ok(());
            }
            if self.held != from {
                return Err(RelocateError::NameNotThere { offset });
            }
            self.held.clear();
            self.at += from.len() as u64;
            match step {
                Step::Name | Step::Path => self.pass(to)?,
                Step::Nul => self.fill(0)?,
                Step::Blank => self.fill(b' ')?,
            }
            self.next = self.words.next().map(|word| Step::decode(word.get()));
        }
        self.at += piece.len() as u64;
        self.pass(piece)
    }

    /// The blob has ended.
    pub(super) fn finish(mut self) -> Result<W, RelocateError> {
        // What fills up at the very end.
        self.push(&[])?;
        match self.next {
            Some((offset, _)) => Err(RelocateError::OutOfBounds { offset }),
            None if self.made != self.size => {
                Err(RelocateError::OtherSize { made: self.made, size: self.size })
            }
            None => Ok(self.out),
        }
    }

    fn pass(&mut self, bytes: &[u8]) -> Result<(), RelocateError> {
        self.made += bytes.len() as u64;
        if self.made > self.size {
            return Err(RelocateError::OtherSize { made: self.made, size: self.size });
        }
        self.out.write_all(bytes).map_err(|source| RelocateError::Io { offset: self.at, source })
    }

    /// Fills up until as much was passed on as was taken.
    fn fill(&mut self, byte: u8) -> Result<(), RelocateError> {
        let mut missing =
            self.at.checked_sub(self.made).ok_or(RelocateError::NameNotThere { offset: self.at })?;
        // What the index says may be a lie, so not all of it is held in memory.
        let piece = [byte; 4096];
        while missing > 0 {
            let len = usize::try_from(missing).unwrap_or(usize::MAX).min(piece.len());
            self.pass(piece.get(..len).unwrap_or_default())?;
            missing -= len as u64;
        }
        Ok(())
    }
}

/// A splicer as something to write to.
#[derive(Debug)]
pub(super) struct Pushing<'a, W> {
    splicer: Splicer<'a, W>,
    failed: Option<RelocateError>,
}

impl<'a, W: Write> Pushing<'a, W> {
    pub(super) fn new(splicer: Splicer<'a, W>) -> Self {
        Self { splicer, failed: None }
    }

    pub(super) fn end(self) -> Result<W, RelocateError> {
        match self.failed {
            Some(error) => Err(error),
            None => self.splicer.finish(),
        }
    }
}

impl<W: Write> Write for Pushing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.splicer.push(bytes).map_err(|error| {
            self.failed = Some(error);
            io::Error::from(io::ErrorKind::InvalidData)
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to a file from a place on. Its own position is not used.
#[derive(Debug)]
pub(super) struct At<'f> {
    file: &'f File,
    at: u64,
}

impl<'f> At<'f> {
    pub(super) fn new(file: &'f File, at: u64) -> Self {
        Self { file, at }
    }
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compares what is written with another file.
#[derive(Debug)]
pub(super) struct Same<'f> {
    pub(super) other: &'f File,
    pub(super) at: u64,
    /// They differ, or the other file cannot be read.
    pub(super) differs: Option<Result<(), Errno>>,
}

impl Write for Same<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut theirs = vec![0; bytes.len()];
        match fd::read_full(self.other, self.at, &mut theirs) {
            Ok(read) if theirs.get(..read) == Some(bytes) => {
                self.at += bytes.len() as u64;
                return Ok(bytes.len());
            }
            Ok(_) => self.differs = Some(Ok(())),
            Err(errno) => self.differs = Some(Err(errno)),
        }
        Err(io::ErrorKind::Other.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names = Names { from: *b"h720c7a8_493f813dad24d3t", to: *b"720c7a8_5a1fac3_9fcd2534" };

    fn word(at: usize, step: u64) -> U64 {
        (at as u64 | step << 62).into()
    }

    fn spliced(content: &[u8], words: &[U64], to: &str, piece: usize) -> Result<Vec<u8>, RelocateError> {
        let place = Place { from: b"/b/h720c7a8_493f813dad24d3t".to_vec(), to: to.into() };
        let of_size = |size| {
            let mut splicer = Splicer::new(words, &NAMES, &place, size, Vec::new());
            for piece in content.chunks(piece) {
                splicer.push(piece)?;
            }
            splicer.finish()
        };
        match of_size(u64::MAX) {
            Err(RelocateError::OtherSize { made, .. }) => {
                assert!(of_size(made - 1).is_err());
                of_size(made)
            }
            other => other,
        }
    }

    #[test]
    fn a_text_gets_longer_or_shorter() {
        let text =
            b"#!/b/h720c7a8_493f813dad24d3t/bin/x\nh720c7a8_493f813dad24d3t /b/h720c7a8_493f813dad24d3t";
        let words = [word(2, 1), word(36, 0), word(61, 1)];
        for to in ["/c", "/a/much/longer/path/than/the/one/in/the/library"] {
            let expected = format!("#!{to}/bin/x\n720c7a8_5a1fac3_9fcd2534 {to}");
            for piece in 1..100 {
                assert_eq!(spliced(text, &words, to, piece).unwrap(), expected.as_bytes(), "{piece}");
            }
        }
    }

    #[test]
    fn strings_of_a_binary_are_filled_up() {
        let binary = b"\x7f\0/b/h720c7a8_493f813dad24d3t/lib:/b/h720c7a8_493f813dad24d3t/x\0rest";
        let words = [word(2, 1), word(34, 1), word(63, 2)];
        for piece in 1..80 {
            let made = spliced(binary, &words, "/c", piece).unwrap();
            let expected = [b"\x7f\0/c/lib:/c/x".as_slice(), &[0; 50], b"\0rest"].concat();
            assert_eq!(made, expected);
            assert_eq!(made.len(), binary.len());
        }
    }

    #[test]
    fn first_line_is_filled_up_with_spaces() {
        let binary = b"#!/b/h720c7a8_493f813dad24d3t/bin/x\nPK\0";
        let made = spliced(binary, &[word(2, 1), word(35, 3)], "/b/shorter", 4).unwrap();
        assert_eq!(made, [b"#!/b/shorter/bin/x".as_slice(), &[b' '; 17], b"\nPK\0"].concat());
    }

    #[test]
    fn what_does_not_belong_to_the_blob_is_refused() {
        let refused = |words: &[U64], content: &[u8]| spliced(content, words, "/c", 5).unwrap_err();
        assert!(matches!(refused(&[word(0, 1)], &[b'x'; 40]), RelocateError::NameNotThere { offset: 0 }));
        assert!(matches!(refused(&[word(50, 1)], &[b'x'; 40]), RelocateError::OutOfBounds { offset: 50 }));
        let at_the_end = b"x/b/h720c7a8_493f813dad24d3";
        assert!(matches!(refused(&[word(1, 1)], at_the_end), RelocateError::OutOfBounds { offset: 1 }));
    }
}
