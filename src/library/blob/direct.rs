//! Reads whole blobs without a copy in the cache, as fast as the processor unpacks them: for a restore, which needs each
//! blob once.
//!
//! Mechanism: one read of the stored bytes, one call of the inflater into a buffer of the known size, one digest. The
//! buffers and the inflater are used again for the next blob. Anything unusual (several gzip members, a name in the gzip
//! header, plain bytes, a wrong digest) is left to `library::blob::read`, which decides whether the blob is good.
//!
//! Invariant: the caller gets the bytes of a small blob only after they were compared with the digest. The bytes of a large
//! one are compared when the last of them has been given to the caller.

use std::io::{self, Read, Write};

use flate2::{Decompress, FlushDecompress, Status};

use super::read::{Fault, read_through};
use super::{BlobError, Blobs};
use crate::library::digest::{Digest, Hasher};
use crate::library::stored::StoredBlob;
use crate::metrics::Counter;

/// Blobs up to this size, in bytes, are unpacked at once.
pub const AT_ONCE: u64 = 1 << 20;

/// The header of a gzip stream without name, comment and extra field, as rcc and holofs write it.
const HEADER: [u8; 4] = [0x1f, 0x8b, 8, 0];
/// Its length in bytes with time, level and system.
const HEADER_LEN: usize = 10;
/// The checksum and the length at the end of a gzip stream, in bytes. The digest says more.
const TRAILER_LEN: usize = 8;

/// Buffers for blobs. Each thread has its own.
#[derive(Debug)]
pub struct Room {
    stored: Vec<u8>,
    content: Vec<u8>,
    inflater: Decompress,
}

impl Default for Room {
    fn default() -> Self {
        Self { stored: Vec::new(), content: Vec::new(), inflater: Decompress::new(false) }
    }
}

/// Why the content of a blob did not arrive.
#[derive(Debug)]
pub enum Unpacked {
    /// The blob is bad or cannot be read.
    Blob(BlobError),
    /// The caller's file does not take the bytes.
    Write(io::Error),
}

impl Blobs {
    /// The verified content of a blob of at most [`AT_ONCE`] bytes, in `room`.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn read_into<'r>(
        &self,
        digest: &Digest,
        size: u64,
        room: &'r mut Room,
    ) -> Result<&'r mut [u8], BlobError> {
        if self.is_far() {
            room.content = self.read_cached(digest, size)?;
            return Ok(&mut room.content);
        }
        let read = room.read(&mut self.stored(digest)?, digest, size);
        if read.map_err(|source| self.library_error(digest, source))? {
            self.metrics.add(Counter::BlobsFetched, 1);
            self.metrics.add(Counter::FetchedBytes, size);
        } else {
            room.content = self.read_all(digest, size)?;
        }
        Ok(&mut room.content)
    }

    /// Gives the content of a blob to `out` piece by piece. It is verified when this returns.
    ///
    /// # Errors
    /// See [`Unpacked`]. Then `out` may have wrong bytes.
    pub fn unpack_to(&self, digest: &Digest, size: u64, out: &mut dyn Write) -> Result<(), Unpacked> {
        if self.is_far() {
            let mut file = self.open_raw(digest, size).map_err(Unpacked::Blob)?;
            return io::copy(&mut file, out).map(drop).map_err(Unpacked::Write);
        }
        let mut stored = self.stored(digest).map_err(Unpacked::Blob)?;
        let read = read_through(&mut stored, digest, Some(size), &mut |bytes| out.write_all(bytes));
        read.map_err(|fault| match fault {
            Fault::Taken(source) => Unpacked::Write(source),
            fault => Unpacked::Blob(self.fault(digest, fault)),
        })?;
        self.metrics.add(Counter::BlobsFetched, 1);
        self.metrics.add(Counter::FetchedBytes, size);
        Ok(())
    }
}

impl Room {
    /// Whether `content` is the blob now. If not, the blob may still be good.
    fn read(&mut self, stored: &mut StoredBlob, digest: &Digest, size: u64) -> io::Result<bool> {
        let Ok(len) = usize::try_from(size.min(AT_ONCE)) else { return Ok(false) };
        self.content.clear();
        if digest.is_raw() {
            stored.take(size + 1).read_to_end(&mut self.content)?;
        } else {
            self.stored.clear();
            // Compressed bytes are hardly longer than the content. A longer file is not what rcc writes.
            stored.take(size + size / 8 + 1024).read_to_end(&mut self.stored)?;
            self.content.reserve(len + 1);
            if !inflate(&mut self.inflater, &self.stored, &mut self.content) {
                return Ok(false);
            }
        }
        if self.content.len() as u64 != size {
            return Ok(false);
        }
        let mut hasher = Hasher::new(digest.kind());
        hasher.update(&self.content);
        Ok(hasher.finish() == *digest)
    }
}

/// Unpacks a gzip stream of one member into the spare room of `out`. False if it is something else, or does not fit.
fn inflate(inflater: &mut Decompress, packed: &[u8], out: &mut Vec<u8>) -> bool {
    if !packed.starts_with(&HEADER) {
        return false;
    }
    let Some(body) = packed.get(HEADER_LEN..) else { return false };
    inflater.reset(false);
    let ended = inflater.decompress_vec(body, out, FlushDecompress::Finish);
    matches!(ended, Ok(Status::StreamEnd))
        && inflater.total_in().checked_add(TRAILER_LEN as u64) == Some(body.len() as u64)
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, GzBuilder};

    use super::*;

    fn packed(name: Option<&str>, content: &[u8]) -> Vec<u8> {
        let builder = name.map_or_else(GzBuilder::new, |name| GzBuilder::new().filename(name));
        let mut out = builder.write(Vec::new(), Compression::fast());
        out.write_all(content).unwrap();
        out.finish().unwrap()
    }

    fn unpacked(packed: &[u8], size: usize) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(size + 1);
        inflate(&mut Decompress::new(false), packed, &mut out).then_some(out)
    }

    #[test]
    fn one_plain_member_is_unpacked_at_once() {
        for content in [&b""[..], b"x", &[7; 100_000]] {
            assert_eq!(unpacked(&packed(None, content), content.len()).unwrap(), content);
        }
    }

    #[test]
    fn everything_else_is_left_to_the_general_reader() {
        let good = packed(None, b"content");
        let two = [good.clone(), good.clone()].concat();
        let cut = good.get(..good.len() - 1).unwrap();
        for odd in [&packed(Some("name"), b"content"), &two, cut, b"plain", b"", b"\x1f\x8b\x08\0"] {
            assert_eq!(unpacked(odd, 7), None);
        }
        // More bytes than the catalog says.
        assert_eq!(unpacked(&packed(None, &[7; 100_000]), 3), None);
    }
}
