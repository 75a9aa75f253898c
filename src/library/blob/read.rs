//! Reading a stored blob through: unpacking, bounding, hashing.
//!
//! Not where the bytes go. Invariant: more than the catalog's size is never handed on, and whether what was handed on is
//! the content of the digest is known at the end only.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use crate::library::digest::{Digest, Hasher};

/// Whether a file holds the content of a digest, as it is.
pub(super) fn is_content(file: &File, digest: &Digest) -> io::Result<bool> {
    let mut hasher = Hasher::new(digest.kind());
    let mut from = At { file: file.try_clone()?, offset: 0 };
    let mut buffer = vec![0u8; 256 * 1024];
    loop {
        match fill(&mut from, &mut buffer)? {
            0 => return Ok(hasher.finish() == *digest),
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

/// The raw bytes of a stored blob.
enum Raw {
    Plain(At),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<At>>>),
}

impl Raw {
    /// Under a SHA-256 digest the bytes are gzip, or plain where they do not begin like gzip, as rcc reads them.
    /// Under a SipHash digest they are always plain: a raw library may hold a `.gz` file.
    fn new(stored: File, raw: bool) -> io::Result<Self> {
        let mut magic = [0u8; 2];
        let n = stored.read_at(&mut magic, 0)?;
        let stored = At { file: stored, offset: 0 };
        if raw || n < 2 || magic != [0x1f, 0x8b] {
            return Ok(Self::Plain(stored));
        }
        let reader = BufReader::with_capacity(64 * 1024, stored);
        Ok(Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(reader))))
    }
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
        }
    }
}

/// Reads a file by offset, leaving its own position alone.
struct At {
    file: File,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

/// What a blob's place may hold instead.
pub(super) const NOT_A_FILE: &str = "it is not a regular file";

fn wrong_size(found: u64, size: u64) -> String {
    format!("it has {found} bytes, the catalog says {size}")
}

/// What ends a reading.
#[derive(Debug)]
pub(in crate::library) enum Fault {
    /// The bytes are not those of the digest.
    Corrupt(String),
    /// They could not be read.
    Read(io::Error),
    /// They were not taken.
    Taken(io::Error),
}

/// How much is unpacked before it is handed on: little at first, since somebody may wait for the beginning, and then
/// as much as there is already, up to a huge page. The page cache holds a file in folios as large as the writes that
/// made it *and as their offset is aligned*, and a folio of two megabytes is mapped by one entry of the page table.
const FIRST_PIECE: usize = 128 * 1024;
const LARGEST_PIECE: usize = 2 * 1024 * 1024;

/// Reads until the buffer is full or nothing is left.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while let Some(room) = buffer.get_mut(n..).filter(|room| !room.is_empty()) {
        match reader.read(room) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n)
}

/// Reads a stored blob through, giving its raw bytes to `take`, and compares it with its digest and, where that is
/// known, its size. Returns the size.
///
/// # Errors
/// See [`Fault`]; bytes that were taken by then are not to be believed.
pub(in crate::library) fn read_through(
    stored: File,
    digest: &Digest,
    size: Option<u64>,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<u64, Fault> {
    if !stored.metadata().map_err(Fault::Read)?.is_file() {
        return Err(Fault::Corrupt(NOT_A_FILE.into()));
    }
    let mut reader = Raw::new(stored, digest.is_raw()).map_err(Fault::Read)?;
    let mut hasher = Hasher::new(digest.kind());
    let mut buffer = vec![0u8; FIRST_PIECE];
    let mut total = 0u64;
    loop {
        let n = match fill(&mut reader, &mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.raw_os_error().is_some() => return Err(Fault::Read(error)),
            Err(error) => return Err(Fault::Corrupt(format!("it cannot be unpacked: {error}"))),
        };
        let bytes = buffer.get(..n).unwrap_or_default();
        total += n as u64;
        // A bomb is stopped as soon as it is larger than it may be.
        if let Some(size) = size.filter(|size| total > *size) {
            return Err(Fault::Corrupt(format!("it is larger than the {size} bytes of the catalog")));
        }
        hasher.update(bytes);
        take(bytes).map_err(Fault::Taken)?;
        if n == buffer.len() && n < LARGEST_PIECE {
            // So every piece begins at a multiple of its size.
            let whole = usize::try_from(total).unwrap_or(LARGEST_PIECE);
            buffer.resize(whole.clamp(FIRST_PIECE, LARGEST_PIECE), 0);
        }
    }
    if let Some(size) = size.filter(|size| total != *size) {
        return Err(Fault::Corrupt(wrong_size(total, size)));
    }
    let found = hasher.finish();
    if found != *digest {
        return Err(Fault::Corrupt(format!("its content has the digest {found}")));
    }
    Ok(total)
}
