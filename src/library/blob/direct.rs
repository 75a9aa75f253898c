//! Reads whole blobs without a copy in the cache, as fast as the processor unpacks them: for a restore, which needs each
//! blob once.
//!
//! Mechanism: one read of the stored bytes, one call of the inflater into a buffer of the known size, one digest. The
//! buffers and the inflater are used again for the next blob. libdeflate takes a third less time than an inflater of
//! streams, which may not assume that all bytes are there. Anything unusual (several gzip members, a name in the gzip
//! header, plain bytes, a wrong digest) is left to `library::blob::read`, which decides whether the blob is good. Stored
//! bytes after the content are not looked at: the digest says that the content is right.
//!
//! Invariant: the caller gets the bytes of a small blob only after they were compared with the digest. The bytes of a large
//! one are compared when the last of them has been given to the caller.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use libdeflater::Decompressor;

use super::read::{Fault, read_through};
use super::{BlobError, Blobs};
use crate::library::digest::{Digest, Hasher};
use crate::library::stored::StoredBlob;
use crate::metrics::Counter;
use crate::sys::surroundings;

/// Blobs up to this size, in bytes, are unpacked at once.
const AT_ONCE: u64 = 4 << 20;
/// Larger ones up to this size, as long as the buffers of all threads have room.
const LARGE: u64 = 16 << 20;
/// The most bytes that the buffers for the content of larger ones have together.
const BUFFERS: u64 = 64 << 20;
/// The bytes that these buffers have now.
static IN_BUFFERS: AtomicU64 = AtomicU64::new(0);
/// What a limit on memory has to leave, in bytes, when two threads have made such buffers at once.
const BESIDE: u64 = 64 << 20;

/// The header of a gzip stream without name, comment and extra field, as rcc and holofs write it.
const HEADER: [u8; 4] = [0x1f, 0x8b, 8, 0];
/// Its length in bytes with time, level and system.
const HEADER_LEN: usize = 10;
/// The checksum at the end of a gzip stream, in bytes. The digest says more. The length of the content follows.
const CHECKSUM_LEN: usize = 4;

/// Buffers for blobs. Each thread has its own.
pub struct Room {
    stored: Vec<u8>,
    /// The content of the last blob, and after it what earlier ones have left.
    content: Vec<u8>,
    /// How many bytes of `in_buffers` are those of `content`. 0 if it is for blobs of up to [`AT_ONCE`] bytes.
    large: u64,
    in_buffers: &'static AtomicU64,
    inflater: Decompressor,
}

impl Default for Room {
    fn default() -> Self {
        Self::counted_in(&IN_BUFFERS)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.in_buffers.fetch_sub(self.large, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
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
    /// Whether [`Blobs::read_into`] is for a blob of `size` bytes. `room` gets a buffer for it.
    #[must_use]
    pub fn is_read_at_once(&self, size: u64, room: &mut Room) -> bool {
        size <= AT_ONCE || (!self.is_far() && room.grows_to(size))
    }

    /// The verified content of a blob, in `room`. For those that [`Blobs::is_read_at_once`] names.
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
        let len = match read.map_err(|source| self.library_error(digest, source))? {
            Some(len) => {
                self.metrics.add(Counter::BlobsFetched, 1);
                self.metrics.add(Counter::FetchedBytes, size);
                len
            }
            None => {
                room.content = self.read_all(digest, size)?;
                room.content.len()
            }
        };
        Ok(room.content.get_mut(..len).unwrap_or_default())
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
    fn counted_in(in_buffers: &'static AtomicU64) -> Self {
        let inflater = Decompressor::new();
        Self { stored: Vec::new(), content: Vec::new(), large: 0, in_buffers, inflater }
    }

    /// Makes a buffer for a blob of more than [`AT_ONCE`] bytes. False if it would be too large, or there is no memory.
    fn grows_to(&mut self, size: u64) -> bool {
        let Some(len) = usize::try_from(size).ok().filter(|_| size <= LARGE) else { return false };
        if self.large >= size {
            return true;
        }
        let stored = most_stored(size);
        let needed = BESIDE + 2 * (size + stored);
        if surroundings::memory_room().is_some_and(|room| room < needed) {
            return false;
        }
        let more = size - self.large;
        let add = |now: u64| now.checked_add(more).filter(|sum| *sum <= BUFFERS);
        if self.in_buffers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_err() {
            return false;
        }
        (self.content, self.stored) = (Vec::new(), Vec::new());
        let stored = usize::try_from(stored).unwrap_or(usize::MAX);
        if self.content.try_reserve_exact(len).is_err() || self.stored.try_reserve_exact(stored).is_err() {
            self.in_buffers.fetch_sub(std::mem::take(&mut self.large) + more, Ordering::Relaxed);
            return false;
        }
        self.large = size;
        true
    }

    /// The verified content of a blob. If None, the blob may still be good.
    ///
    /// # Errors
    /// When the stored bytes cannot be read.
    pub(super) fn content(
        &mut self,
        stored: &mut StoredBlob,
        digest: &Digest,
        size: u64,
    ) -> io::Result<Option<&[u8]>> {
        let len = self.read(stored, digest, size)?;
        Ok(len.and_then(|len| self.content.get(..len)))
    }

    /// Reads the blob to the beginning of `content`, and returns its length. If None, the blob may still be good.
    fn read(&mut self, stored: &mut StoredBlob, digest: &Digest, size: u64) -> io::Result<Option<usize>> {
        let most = self.large.max(AT_ONCE);
        let Ok(len) = usize::try_from(size.min(most)) else { return Ok(None) };
        let is_packed = !digest.is_raw() && !stored.is_content();
        if !is_packed {
            self.content.clear();
            match stored.take(size + 1).read_to_end(&mut self.content) {
                Ok(n) if n as u64 == size => {}
                // An error without an errno comes from unpacking.
                Err(error) if error.raw_os_error().is_some() => return Err(error),
                Ok(_) | Err(_) => return Ok(None),
            }
        } else {
            self.stored.clear();
            stored.take(most_stored(size)).read_to_end(&mut self.stored)?;
            if self.content.len() < len {
                self.content.resize(len, 0);
            }
        }
        let content = self.content.get_mut(..len).unwrap_or_default();
        if is_packed && !inflate(&mut self.inflater, &self.stored, content) {
            return Ok(None);
        }
        let is_blob = content.len() as u64 == size && Hasher::digest(digest.kind(), content) == *digest;
        Ok(is_blob.then_some(len))
    }
}

/// The most stored bytes of a blob that are read. Compressed bytes are hardly longer than the content: a longer file is not what
/// rcc writes.
fn most_stored(size: u64) -> u64 {
    size.saturating_add(size / 8).saturating_add(1024)
}

/// Unpacks a gzip stream of one member, which fills `out`. False if it is something else.
fn inflate(inflater: &mut Decompressor, packed: &[u8], out: &mut [u8]) -> bool {
    let Some((body, len)) = packed.get(HEADER_LEN..).and_then(<[u8]>::split_last_chunk) else { return false };
    let Some((body, _)) = body.split_last_chunk::<CHECKSUM_LEN>() else { return false };
    packed.starts_with(&HEADER)
        && u32::try_from(out.len()) == Ok(u32::from_le_bytes(*len))
        && inflater.deflate_decompress(body, out) == Ok(out.len())
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
        let mut out = vec![0; size];
        inflate(&mut Decompressor::new(), packed, &mut out).then_some(out)
    }

    #[test]
    fn one_plain_member_is_unpacked_at_once() {
        for content in [&b""[..], b"x", &[7; 100_000]] {
            assert_eq!(unpacked(&packed(None, content), content.len()).unwrap(), content);
        }
    }

    #[test]
    fn the_buffers_for_large_blobs_are_limited() {
        let in_buffers: &AtomicU64 = Box::leak(Box::default());
        let [mut one, mut last] = [(); 2].map(|()| Room::counted_in(in_buffers));
        assert!(!one.grows_to(LARGE + 1));
        assert!(one.grows_to(AT_ONCE + 1) && one.grows_to(LARGE) && one.grows_to(LARGE));
        let mut others: Vec<_> = (1..BUFFERS / LARGE).map(|_| Room::counted_in(in_buffers)).collect();
        assert!(others.iter_mut().all(|room| room.grows_to(LARGE)) && !last.grows_to(AT_ONCE + 1));
        drop(one);
        assert!(last.grows_to(AT_ONCE + 1));
    }

    #[test]
    fn everything_else_is_left_to_the_general_reader() {
        let good = packed(None, b"content");
        let two = [good.clone(), packed(None, b"more")].concat();
        let cut = good.get(..good.len() - 1).unwrap();
        for odd in [&packed(Some("name"), b"content"), &two, cut, b"plain", b"", b"\x1f\x8b\x08\0"] {
            assert_eq!(unpacked(odd, 7), None);
        }
        // More or fewer bytes than the catalog says.
        for size in [3, 99_999, 100_001] {
            assert_eq!(unpacked(&packed(None, &[7; 100_000]), size), None, "{size}");
        }
        let mut lies = good.clone();
        *lies.last_chunk_mut::<4>().unwrap() = 8u32.to_le_bytes();
        assert_eq!(unpacked(&lies, 8), None);
    }
}
