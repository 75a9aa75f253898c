//! Reading a stored blob through: unpacking, bounding, hashing.
//!
//! Not where the bytes go. Invariant: more than the catalog's size is never handed on, and whether what was handed on is
//! the content of the digest is known at the end only.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

use crate::library::digest::{Digest, Hasher};
use crate::library::stored::StoredBlob;

/// Whether a file holds the content of a digest, as it is.
pub(super) fn is_content(file: &File, digest: &Digest) -> io::Result<bool> {
    let mut hasher = Hasher::new(digest.kind());
    let mut from = StoredBlob::of_file(file.try_clone()?);
    let mut buffer = vec![0u8; 256 * 1024];
    loop {
        match fill(&mut from, &mut buffer)? {
            0 => return Ok(hasher.finish() == *digest),
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

/// Unpacks stored bytes. Under a SHA-256 digest they are gzip, or plain where they do not begin like gzip, as rcc reads
/// them. Under a SipHash digest they are always plain: a raw library may hold a `.gz` file.
fn unpacked<'a>(stored: &'a mut StoredBlob, digest: &Digest) -> io::Result<Box<dyn Read + 'a>> {
    if digest.is_raw() {
        return Ok(Box::new(stored));
    }
    let mut magic = vec![0u8; 2];
    let n = fill(stored, &mut magic)?;
    magic.truncate(n);
    let is_gzip = magic == [0x1f, 0x8b];
    let whole = Cursor::new(magic).chain(stored);
    if !is_gzip {
        return Ok(Box::new(whole));
    }
    Ok(Box::new(MultiGzDecoder::new(BufReader::with_capacity(64 * 1024, whole))))
}

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

/// The system says why a file cannot be read; everything else is the stored bytes' fault.
fn not_read(error: io::Error) -> Fault {
    match error.raw_os_error() {
        Some(_) => Fault::Read(error),
        None => Fault::Corrupt(format!("it cannot be unpacked: {error}")),
    }
}

/// What an error of [`crate::library::Library::blob`] says of the blob.
pub(in crate::library) fn not_opened(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::InvalidData => Fault::Corrupt(error.to_string()),
        _ => Fault::Read(error),
    }
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
    stored: &mut StoredBlob,
    digest: &Digest,
    size: Option<u64>,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<u64, Fault> {
    let mut reader = unpacked(stored, digest).map_err(not_read)?;
    let mut hasher = Hasher::new(digest.kind());
    let mut buffer = vec![0u8; FIRST_PIECE];
    let mut total = 0u64;
    loop {
        let n = match fill(&mut reader, &mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) => return Err(not_read(error)),
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
