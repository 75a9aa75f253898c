//! How blobs are packed for the store: each is a frame of Zstandard.
//!
//! rcc compresses at its fastest level, because a library is written once for each machine. A store is written once and
//! read by all machines, so more time goes into it, for a third fewer bytes.
//!
//! Each blob has a frame of its own, not each group, so that a later push can use a part of a group.
//!
//! Invariant: a frame is not trusted. It cannot make its reader allocate more than the window of [`WINDOW`], and the reader
//! of the blob counts the bytes and compares the digest.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use zstd::stream::{read::Decoder, write::Encoder};

use super::layout::{Blob, Group, Layout, Packing};
use crate::library::stored::StoredBlob;
use crate::library::turn;

/// The level. The next higher ones take twice the time for half a percent.
const LEVEL: i32 = 9;
/// The largest window, as a power of two in bytes. A reader needs this much memory for each blob that it unpacks.
const WINDOW: u32 = 23;
/// How many bytes are taken at once from a reader that has no buffer.
const PIECE: usize = 128 << 10;

/// The blob of these stored bytes.
pub(super) fn unpacked(stored: impl Read + Send + 'static, packing: Packing) -> StoredBlob {
    match packing {
        Packing::AsInLibrary => StoredBlob::new(stored, None),
        Packing::Zstd => {
            StoredBlob::of_content(Unpacking::Packed(Some(BufReader::with_capacity(PIECE, stored))))
        }
    }
}

/// A blob of a store, `offset` bytes from the beginning of bytes that are in memory.
pub(super) fn of_bytes(bytes: &Arc<Vec<u8>>, blob: &Blob, offset: u64) -> StoredBlob {
    let end = offset.saturating_add(blob.stored);
    let range = usize::try_from(offset).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(usize::MAX);
    let stored = Slice { bytes: Arc::clone(bytes), range };
    match blob.packing {
        Packing::AsInLibrary => StoredBlob::new(stored, None),
        Packing::Zstd => StoredBlob::of_content(Unpacking::Packed(Some(stored))),
    }
}

/// Gives the blobs of a group whose bytes are in memory.
pub(super) fn in_group(layout: Arc<Layout>, group: Group, bytes: Arc<Vec<u8>>) -> turn::Group {
    Box::new(move |digest| {
        let entry = layout.find(digest)?;
        let (id, offset) = entry.grouped?;
        (id == group.id).then(|| of_bytes(&bytes, &entry.blob, offset))
    })
}

/// A writer of the content of a blob of `size` bytes. Its packed bytes go to `out`.
///
/// # Errors
/// When there is no memory.
pub(super) fn packer<W: Write>(out: W, size: u64) -> io::Result<Encoder<'static, W>> {
    let mut packer = Encoder::new(out, LEVEL)?;
    // Small blobs get small tables.
    packer.set_pledged_src_size(Some(size))?;
    Ok(packer)
}

/// A frame that is unpacked. The unpacker is made by the first read, because it takes memory.
enum Unpacking<R: BufRead> {
    /// None after the first read has failed.
    Packed(Option<R>),
    Begun(Decoder<'static, R>),
}

impl<R: BufRead> Read for Unpacking<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Self::Packed(stored) = self {
            let stored = stored.take().ok_or(io::ErrorKind::InvalidData)?;
            let mut unpacker = Decoder::with_buffer(stored)?;
            unpacker.window_log_max(WINDOW)?;
            *self = Self::Begun(unpacker);
        }
        match self {
            Self::Packed(_) => Ok(0),
            Self::Begun(unpacker) => unpacker.read(buffer),
        }
    }
}

/// A part of bytes in memory.
struct Slice {
    bytes: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Slice {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.bytes.get(self.range.clone()).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.range.start = self.range.start.saturating_add(n).min(self.range.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::digest::Digest;

    fn packed(content: &[u8]) -> Vec<u8> {
        let mut packer = packer(Vec::new(), content.len() as u64).unwrap();
        packer.write_all(content).unwrap();
        packer.finish().unwrap()
    }

    fn read(packed: &[u8]) -> io::Result<Vec<u8>> {
        let (mut content, bytes) = (Vec::new(), Arc::new([b"before", packed, b"after"].concat()));
        let (digest, stored) = (Digest::Sha256([0; 32]), packed.len() as u64);
        let blob = Blob { digest, size: 0, stored, packing: Packing::Zstd };
        of_bytes(&bytes, &blob, 6).read_to_end(&mut content)?;
        let mut again = Vec::new();
        unpacked(io::Cursor::new(packed.to_vec()), Packing::Zstd).read_to_end(&mut again)?;
        assert_eq!(content, again);
        Ok(content)
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let long: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
        for content in [&b""[..], b"x", &[7; 100_000], &long] {
            assert_eq!(read(&packed(content)).unwrap(), content);
        }
    }

    /// An error without an errno says that the blob is bad, not that it cannot be read.
    #[test]
    fn damage_is_an_error_without_an_errno() {
        let good = packed(&[7; 100_000]);
        let cut = &good[..good.len() - 1];
        let more = [&good[..], b"more"].concat();
        // A frame with a window of 2^31 bytes.
        let window = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xa8][..], &good[6..]].concat();
        for bad in [cut, &more, &window, b"plain", b"\x28\xb5\x2f\xfd"] {
            assert_eq!(read(bad).unwrap_err().raw_os_error(), None, "{bad:?}");
        }
    }
}
