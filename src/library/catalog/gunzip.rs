//! Unpacking a catalog while it is parsed.
//!
//! Unpacking takes about as long as parsing, so a large catalog is unpacked by another thread, a few pieces ahead.
//! The checksum at the end of the stream is not asked for once the document is complete: real rcc reads a catalog
//! whose trailer is cut off.

use std::io::{BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::CatalogError;
use super::json::Pieces;
use super::limits::Limits;

/// Bytes of a piece.
const PIECE: usize = 256 * 1024;
/// How many pieces may wait to be parsed.
const AHEAD: usize = 4;
/// Compressed catalogs below this many bytes are not worth a thread.
const SMALL: usize = 32 * 1024;

/// Unpacks `bytes` piece by piece into `reader`.
pub(super) fn unpacking<T>(
    bytes: &[u8],
    limits: Limits,
    reader: impl FnOnce(Box<dyn Pieces + '_>) -> Result<T, CatalogError>,
) -> Result<T, CatalogError> {
    if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(CatalogError::NotGzip("it is zstd, as an experimental rcc writes: not supported".into()));
    }
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Err(CatalogError::NotGzip("it is not a gzip stream".into()));
    }
    let unpacker = Unpacker::new(bytes, PIECE, limits);
    if bytes.len() < SMALL {
        return reader(Box::new(unpacker));
    }
    std::thread::scope(|scope| {
        let (full, pieces) = sync_channel(AHEAD);
        let (empty, used) = channel();
        let worker = std::thread::Builder::new().name("unpack".into());
        match worker.spawn_scoped(scope, move || unpack_into(unpacker, &full, &used)) {
            Ok(_) => reader(Box::new(Waiting { pieces, empty })),
            // No threads to be had: the same, one after the other.
            Err(_) => reader(Box::new(Unpacker::new(bytes, PIECE, limits))),
        }
    })
}

/// Runs until the stream ends or the parser has enough.
fn unpack_into(
    mut unpacker: Unpacker<&[u8]>,
    full: &SyncSender<Result<Vec<u8>, CatalogError>>,
    used: &Receiver<Vec<u8>>,
) {
    while let Some(piece) = unpacker.next(used.try_recv().unwrap_or_default()).transpose() {
        let ends = piece.is_err();
        if full.send(piece).is_err() || ends {
            return;
        }
    }
}

/// The parser's end.
struct Waiting {
    pieces: Receiver<Result<Vec<u8>, CatalogError>>,
    empty: Sender<Vec<u8>>,
}

impl Pieces for Waiting {
    fn next(&mut self, used: Vec<u8>) -> Result<Option<Vec<u8>>, CatalogError> {
        if used.capacity() > 0 {
            // The other end is gone when the stream has ended, and needs no more memory.
            self.empty.send(used).unwrap_or_default();
        }
        self.pieces.recv().ok().transpose()
    }
}

impl<P: Pieces + ?Sized> Pieces for Box<P> {
    fn next(&mut self, used: Vec<u8>) -> Result<Option<Vec<u8>>, CatalogError> {
        (**self).next(used)
    }
}

/// Unpacks on demand.
pub(super) struct Unpacker<R> {
    stream: flate2::bufread::MultiGzDecoder<R>,
    /// Bytes of a piece.
    piece: usize,
    total: u64,
    limits: Limits,
    /// What is wrong with the stream behind the piece that was given last.
    broken: Option<std::io::Error>,
}

impl<R: BufRead> Unpacker<R> {
    pub(super) fn new(packed: R, piece: usize, limits: Limits) -> Self {
        Self { stream: flate2::bufread::MultiGzDecoder::new(packed), piece, total: 0, limits, broken: None }
    }
}

impl<R: BufRead> Pieces for Unpacker<R> {
    fn next(&mut self, used: Vec<u8>) -> Result<Option<Vec<u8>>, CatalogError> {
        if let Some(error) = self.broken.take() {
            return Err(CatalogError::NotGzip(format!("the gzip stream is broken: {error}")));
        }
        let mut piece = used;
        piece.resize(self.piece, 0);
        let mut filled = 0;
        while let Some(room) = piece.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.stream.read(room) {
                Ok(0) => break,
                Ok(n) => filled += n,
                // What came before it may complete the document.
                Err(error) if filled > 0 => {
                    self.broken = Some(error);
                    break;
                }
                Err(error) => {
                    return Err(CatalogError::NotGzip(format!("the gzip stream is broken: {error}")));
                }
            }
        }
        piece.truncate(filled);
        self.total += filled as u64;
        if self.total > self.limits.text {
            return Err(Limits::too_large("bytes of text", self.limits.text));
        }
        Ok((filled > 0).then_some(piece))
    }
}
