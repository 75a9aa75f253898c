//! Blobs as a library gives them: compressed as rcc does, or plain, and not verified.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use super::digest::Digest;

/// All blobs of a library.
#[derive(Debug, Default)]
pub struct StoredBlobs {
    /// Each blob with its stored size in bytes, sorted by digest.
    pub blobs: Vec<(Digest, u64)>,
    /// The size in bytes of everything that is stored among the blobs and is no blob.
    pub strays: u64,
}

/// The stored bytes of one blob or catalog. They can be read once, from the beginning.
pub struct StoredBlob {
    reader: Box<dyn Read + Send>,
    /// Whether these bytes are the content, whatever they begin with.
    is_content: bool,
    /// The part of a file that holds the bytes, if a file does.
    section: Option<Section>,
}

impl std::fmt::Debug for StoredBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredBlob").field("section", &self.section).finish_non_exhaustive()
    }
}

impl StoredBlob {
    /// A blob that `reader` reads, from a part of a file or from no file of this machine.
    pub(super) fn new(reader: impl Read + Send + 'static, section: Option<Section>) -> Self {
        Self { reader: Box::new(reader), is_content: false, section }
    }

    /// A blob whose content `reader` reads, of a library that stores blobs otherwise than rcc.
    #[cfg(feature = "remote")]
    pub(super) fn of_content(reader: impl Read + Send + 'static) -> Self {
        Self { is_content: true, ..Self::new(reader, None) }
    }

    /// Whether the bytes are the content. Otherwise they are stored as rcc does.
    pub(super) fn is_content(&self) -> bool {
        self.is_content
    }

    /// A blob that is a file of its own.
    #[must_use]
    pub fn of_file(file: File) -> Self {
        let section = Section { file: Arc::new(file), at: 0, end: None };
        Self::new(section.clone(), Some(section))
    }

    /// The file whose whole content is the stored bytes. None for a part of a file: a reflink must begin at a block.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        self.section.as_ref().filter(|section| section.end.is_none()).map(|section| &*section.file)
    }

    /// Lets the kernel read the stored bytes in the background.
    ///
    /// # Errors
    /// The errno of `posix_fadvise`.
    pub fn read_ahead(&self) -> io::Result<()> {
        self.advise(Advice::WillNeed)
    }

    /// Whether the first of the stored bytes are in the page cache. False if that is not known.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        let Some(section) = &self.section else { return false };
        let mut byte = [0];
        let read = rustix::io::preadv2(
            &*section.file,
            &mut [IoSliceMut::new(&mut byte)],
            section.at,
            ReadWriteFlags::NOWAIT,
        );
        read == Ok(1)
    }

    /// Lets the kernel drop the stored bytes from the page cache.
    pub fn drop_pages(&self) {
        if let Err(error) = self.advise(Advice::DontNeed) {
            tracing::debug!(%error, "cannot drop stored bytes from the page cache");
        }
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        let Some(section) = &self.section else { return Ok(()) };
        let len = match section.range() {
            // A length of zero would mean the rest of the file.
            Some((_, 0)) => return Ok(()),
            Some((_, len)) => NonZeroU64::new(len),
            None => None,
        };
        Ok(rustix::fs::fadvise(&*section.file, section.at, len, advice)?)
    }
}

impl Read for StoredBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// A part of a file. It is read by offset, so that several readers can share a descriptor.
#[derive(Clone, Debug)]
pub(super) struct Section {
    file: Arc<File>,
    at: u64,
    /// None for the end of the file.
    end: Option<u64>,
}

impl Section {
    /// The bytes from `at` up to `end`, which is not before it.
    pub(super) fn part(file: Arc<File>, at: u64, end: u64) -> Self {
        Self { file, at, end: Some(end) }
    }

    /// The offset and the length in bytes. None for a part that reaches to the end of the file.
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        Some((self.at, self.end?.checked_sub(self.at)?))
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.map_or(u64::MAX, |end| end.saturating_sub(self.at));
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(buffer) = buffer.get_mut(..len).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let n = self.file.read_at(buffer, self.at)?;
        if n == 0 && self.end.is_some() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was truncated"));
        }
        self.at += n as u64;
        Ok(n)
    }
}
