//! Reads a stored blob: unpacks it, limits its size and computes its digest.
//!
//! The caller gets the bytes piece by piece, before the digest is known. Invariant: it never gets more bytes than the size
//! in the catalog.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Write};

use flate2::bufread::MultiGzDecoder;

use crate::library::catalog::write::gzip;
use crate::library::digest::{Digest, Hasher};
use crate::library::stored::StoredBlob;

/// Whether the content of a file has this digest.
pub(in crate::library) fn is_content(file: &File, digest: &Digest) -> io::Result<bool> {
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

/// Unpacks bytes that are stored as rcc does. With a SHA-256 digest they are gzip, or plain if they do not begin like gzip.
/// With a SipHash digest they are always plain, because a raw library may hold a `.gz` file.
fn unpacked<'a>(mut stored: impl Read + 'a, digest: &Digest) -> io::Result<Box<dyn Read + 'a>> {
    if digest.is_raw() {
        return Ok(Box::new(stored));
    }
    let mut magic = vec![0u8; 2];
    let n = fill(&mut stored, &mut magic)?;
    magic.truncate(n);
    let is_gzip = magic == GZIP;
    let whole = Cursor::new(magic).chain(stored);
    if !is_gzip {
        return Ok(Box::new(whole));
    }
    Ok(Box::new(MultiGzDecoder::new(BufReader::with_capacity(64 * 1024, whole))))
}

fn wrong_size(found: u64, size: u64) -> String {
    format!("it has {found} bytes, the catalog says {size}")
}

/// Why a blob was not read to its end.
#[derive(Debug)]
pub(in crate::library) enum Fault {
    /// The stored bytes are not the blob.
    Corrupt(String),
    /// The stored bytes cannot be read.
    Read(io::Error),
    /// The caller did not take the bytes.
    Taken(io::Error),
}

/// An error with an errno comes from the system. All other errors come from decoding the stored bytes.
fn not_read(error: io::Error) -> Fault {
    match error.raw_os_error() {
        Some(_) => Fault::Read(error),
        None => Fault::Corrupt(format!("it cannot be unpacked: {error}")),
    }
}

/// An error of [`crate::library::Library::blob`].
pub(in crate::library) fn not_opened(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::InvalidData => Fault::Corrupt(error.to_string()),
        _ => Fault::Read(error),
    }
}

/// The size in bytes of the first piece, for whose bytes a reader may wait.
const FIRST_PIECE: usize = 128 * 1024;
/// The size of the largest piece: a huge page. Each piece is as large as everything before it, up to this size. The page
/// cache uses folios as large as the write, if the offset is aligned to that size. One entry of the page table maps a
/// folio of two megabytes.
const LARGEST_PIECE: usize = 2 * 1024 * 1024;

/// Reads until the buffer is full or the reader is at its end.
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

/// Gives the content of a stored blob to `take`, and compares it with the digest and, if given, with the size. Returns the
/// size.
///
/// # Errors
/// See [`Fault`]. Then the bytes that `take` got may be wrong.
pub(in crate::library) fn read_through(
    stored: &mut StoredBlob,
    digest: &Digest,
    size: Option<u64>,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<u64, Fault> {
    verified(digest, take, |take| read_pieces(stored, digest, size, take))
}

/// Gives all bytes that `read` gives to `take`, and compares them with the digest.
fn verified(
    digest: &Digest,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    read: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<u64, Fault>,
) -> Result<u64, Fault> {
    let mut hasher = Hasher::new(digest.kind());
    let total = read(&mut |bytes| {
        hasher.update(bytes);
        take(bytes)
    })?;
    let found = hasher.finish();
    if found != *digest {
        return Err(Fault::Corrupt(format!("its content has the digest {found}")));
    }
    Ok(total)
}

/// As [`read_through`], without a look at the digest.
pub(super) fn read_pieces(
    stored: &mut StoredBlob,
    digest: &Digest,
    size: Option<u64>,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<u64, Fault> {
    if stored.is_content() {
        return pieces_of(stored, size, take);
    }
    pieces_of(&mut unpacked(stored, digest).map_err(not_read)?, size, take)
}

fn pieces_of(
    mut reader: &mut dyn Read,
    size: Option<u64>,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<u64, Fault> {
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
        // Stops a gzip bomb.
        if let Some(size) = size.filter(|size| total > *size) {
            return Err(Fault::Corrupt(format!("it is larger than the {size} bytes of the catalog")));
        }
        take(bytes).map_err(Fault::Taken)?;
        if n == buffer.len() && n < LARGEST_PIECE {
            // Then every piece begins at a multiple of its size.
            let whole = usize::try_from(total).unwrap_or(LARGEST_PIECE);
            buffer.resize(whole.clamp(FIRST_PIECE, LARGEST_PIECE), 0);
        }
    }
    if let Some(size) = size.filter(|size| total != *size) {
        return Err(Fault::Corrupt(wrong_size(total, size)));
    }
    Ok(total)
}

/// Copies a blob to `out` as rcc stores it, and compares its content with the digest and the size. Bytes that are stored so
/// are copied as they are.
///
/// # Errors
/// See [`Fault`]; also when a blob with a SHA-256 digest is not compressed. Then the bytes in `out` may be wrong.
pub(crate) fn copy_verified(
    mut stored: StoredBlob,
    digest: &Digest,
    size: u64,
    out: &mut dyn Write,
) -> Result<(), Fault> {
    if stored.is_content() {
        if digest.is_raw() {
            return read_through(&mut stored, digest, Some(size), &mut |bytes| out.write_all(bytes))
                .map(drop);
        }
        let mut packed = gzip(out);
        read_through(&mut stored, digest, Some(size), &mut |bytes| packed.write_all(bytes))?;
        return packed.finish().map(drop).map_err(Fault::Taken);
    }
    let mut tee = Tee { from: stored, to: out, begins: Vec::new(), failed: None };
    let read = verified(digest, &mut |_| Ok(()), |take| {
        pieces_of(&mut unpacked(&mut tee, digest).map_err(not_read)?, Some(size), take)
    });
    if let Some(error) = tee.failed {
        return Err(Fault::Taken(error));
    }
    read?;
    if !digest.is_raw() && tee.begins != GZIP {
        return Err(Fault::Corrupt("it is not compressed".into()));
    }
    Ok(())
}

/// The first bytes of a gzip stream.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A reader that writes what it reads to another place.
struct Tee<'a> {
    from: StoredBlob,
    to: &'a mut dyn Write,
    /// The first two bytes.
    begins: Vec<u8>,
    /// Why the other place did not take the bytes.
    failed: Option<io::Error>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        let bytes = buffer.get(..n).unwrap_or_default();
        let missing = GZIP.len() - self.begins.len();
        self.begins.extend(bytes.iter().take(missing));
        if let Err(error) = self.to.write_all(bytes) {
            self.failed = Some(error);
            return Err(io::Error::other("not taken"));
        }
        Ok(n)
    }
}
