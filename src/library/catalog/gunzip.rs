//! Unpacks a catalog while it is parsed.
//!
//! Unpacking takes about as long as parsing. So a second thread unpacks a large catalog, a few pieces ahead of the
//! parser. The stream's checksum is not verified once the document is complete: rcc reads a catalog without its gzip
//! trailer, too.

use std::io::{BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::CatalogError;
use super::json::Pieces;
use super::limits::Limits;

/// The size of a piece in bytes.
const PIECE: usize = 256 * 1024;
/// The number of pieces that may wait for the parser.
const AHEAD: usize = 4;
/// Smaller compressed catalogs are unpacked without a second thread.
const SMALL: usize = 32 * 1024;

/// Calls `reader` with the unpacked pieces of `bytes`.
pub(super) fn unpacking<T>(
    bytes: &[u8],
    limits: Limits,
    reader: impl FnOnce(&mut dyn Pieces) -> Result<T, CatalogError>,
) -> Result<T, CatalogError> {
    if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(CatalogError::NotGzip(
            "compressed with zstd, as by an experimental rcc: not supported".into(),
        ));
    }
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Err(CatalogError::NotGzip("not a gzip stream".into()));
    }
    let mut unpacker = Unpacker::new(bytes, PIECE, limits);
    if bytes.len() < SMALL {
        return reader(&mut unpacker);
    }
    std::thread::scope(|scope| {
        let (full, pieces) = sync_channel(AHEAD);
        let (empty, used) = channel();
        let worker = std::thread::Builder::new().name("unpack".into());
        match worker.spawn_scoped(scope, move || unpack_into(unpacker, &full, &used)) {
            Ok(_) => reader(&mut Waiting { pieces, empty }),
            // Without a second thread it takes longer.
            Err(_) => reader(&mut Unpacker::new(bytes, PIECE, limits)),
        }
    })
}

/// Unpacks until the stream ends or the parser drops its end of the channel.
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

/// The parser's end of the channel.
struct Waiting {
    pieces: Receiver<Result<Vec<u8>, CatalogError>>,
    empty: Sender<Vec<u8>>,
}

impl Pieces for Waiting {
    fn next(&mut self, used: Vec<u8>) -> Result<Option<Vec<u8>>, CatalogError> {
        if used.capacity() > 0 {
            // The unpacking thread has ended, and needs no more buffers.
            self.empty.send(used).unwrap_or_default();
        }
        self.pieces.recv().ok().transpose()
    }
}

/// Unpacks a piece at each call.
pub(super) struct Unpacker<R> {
    stream: flate2::bufread::MultiGzDecoder<R>,
    /// The size of a piece in bytes.
    piece: usize,
    total: u64,
    limits: Limits,
    /// The error at the end of the piece that was returned last.
    broken: Option<std::io::Error>,
}

impl<R: BufRead> Unpacker<R> {
    pub(super) fn new(packed: R, piece: usize, limits: Limits) -> Self {
        Self { stream: flate2::bufread::MultiGzDecoder::new(packed), piece, total: 0, limits, broken: None }
    }
}

impl<R: BufRead> Pieces for Unpacker<R> {
    fn next(&mut self, used: Vec<u8>) -> Result<Option<Vec<u8>>, CatalogError> {
        let mut piece = used;
        piece.clear();
        if self.broken.is_none() {
            piece.reserve_exact(self.piece);
            self.broken = (&mut self.stream).take(self.piece as u64).read_to_end(&mut piece).err();
        }
        // The document may be complete before the error.
        if piece.is_empty()
            && let Some(error) = self.broken.take()
        {
            return Err(CatalogError::NotGzip(format!("the gzip stream is broken: {error}")));
        }
        self.total += piece.len() as u64;
        if self.total > self.limits.text {
            return Err(Limits::too_large("bytes of text", self.limits.text));
        }
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }
}
