//! Reads blobs, verifies them, packs them and sends them.
//!
//! Invariant: nothing is sent that was not compared with its digest. Memory: as many packs as are sent at once.

use std::io::{self, BufWriter, Seek, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use indicatif::ProgressBar;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::PushError;
use super::plan::{PACK, Plan};
use super::present::Present;
use crate::library::Library;
use crate::library::blob::copy_content;
use crate::library::cache::BlobCache;
use crate::library::cancellable::Cancellable;
use crate::library::catalogs::CatalogName;
use crate::library::remote::layout::{Blob, Packing, Writer};
use crate::library::remote::{Objects, StoreError, head, packing};
use crate::sys::thread;

/// How many objects are made and sent at once.
const IN_FLIGHT: usize = 4;
/// How many bytes are written at once.
const PIECE: usize = 256 << 10;

/// What was sent, in numbers.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) objects: AtomicU64,
    pub(super) bytes: AtomicU64,
}

impl Sent {
    pub(super) fn add(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What the steps of a push share.
pub(super) struct Sending<'a> {
    pub(super) library: &'a dyn Library,
    pub(super) store: &'a dyn Objects,
    pub(super) catalog: &'a CatalogName,
    pub(super) present: &'a Present,
    /// Where large blobs lie until they are sent.
    pub(super) scratch: &'a BlobCache,
    pub(super) progress: &'a ProgressBar,
    pub(super) cancel: &'a AtomicBool,
    pub(super) sent: &'a Sent,
}

/// A pack that the store has now.
struct Packed {
    sum: [u8; 32],
    bytes: u64,
    /// With the sizes of the packed blobs.
    groups: Vec<(u64, Vec<Blob>)>,
}

/// An object to be made.
enum Work<'p> {
    /// The number of the pack, for its place in the layout.
    Pack(usize, &'p [Vec<Blob>]),
    Alone(&'p Blob),
}

impl Sending<'_> {
    /// Sends all new blobs of a plan. Returns the bytes of the layout.
    pub(super) fn all(&self, plan: &Plan) -> Result<Vec<u8>, PushError> {
        // The large ones first, so that the last thread to end is not one with a large blob.
        let alone = plan.alone.iter().map(Work::Alone);
        let packs = plan.packs.iter().enumerate().map(|(number, groups)| Work::Pack(number, groups));
        let work: Vec<Work<'_>> = alone.chain(packs).collect();
        let (packed, alone) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        thread::for_each(
            &work,
            IN_FLIGHT,
            || (),
            |(), work| {
                match work {
                    Work::Pack(number, groups) => {
                        let pack = self.pack(groups)?;
                        packed.lock().push((*number, pack));
                    }
                    Work::Alone(blob) => {
                        let blob = self.alone(blob)?;
                        alone.lock().push(blob);
                    }
                }
                Ok::<(), PushError>(())
            },
        )?;
        let mut writer = Writer::default();
        for known in &plan.known {
            writer.group(known.pack, known.pack_bytes, known.offset, known.blobs.iter().copied());
        }
        let mut packed = packed.into_inner();
        packed.sort_by_key(|(number, _)| *number);
        for Packed { sum, bytes, groups } in packed.into_iter().map(|(_, pack)| pack) {
            for (offset, blobs) in groups {
                writer.group(sum, bytes, offset, blobs);
            }
        }
        let mut alone = alone.into_inner();
        alone.extend(plan.known_alone.iter().copied());
        alone.into_iter().for_each(|blob| writer.alone(blob));
        Ok(writer.finish())
    }

    fn pack(&self, groups: &[Vec<Blob>]) -> Result<Packed, PushError> {
        let planned: u64 = groups.iter().flatten().map(|blob| blob.stored).sum();
        let mut pack = Vec::with_capacity(usize::try_from(planned.min(PACK)).unwrap_or(0));
        let mut placed = Vec::new();
        for group in groups {
            let offset = pack.len() as u64;
            let mut blobs = Vec::new();
            for planned in group {
                blobs.push(self.read(planned, &mut pack)?);
                self.progress.inc(planned.stored);
            }
            placed.push((offset, blobs));
        }
        let (sum, bytes): ([u8; 32], u64) = (Sha256::digest(&pack).into(), pack.len() as u64);
        if self.present.packs.get(&sum) != Some(&bytes) {
            self.store.put(&head::pack(&sum), pack)?;
            self.sent.add(bytes);
        }
        Ok(Packed { sum, bytes, groups: placed })
    }

    /// Sends a blob as an object of its own.
    fn alone(&self, planned: &Blob) -> Result<Blob, PushError> {
        let blob = if planned.stored <= PACK {
            let mut packed = Vec::new();
            let blob = self.read(planned, &mut packed)?;
            self.store.put(&head::blob(&blob), packed)?;
            blob
        } else {
            self.large(planned)?
        };
        self.progress.inc(planned.stored);
        self.sent.add(blob.stored);
        Ok(blob)
    }

    /// Sends a blob that does not go into memory. Its packed bytes lie in a file without a name until they are sent.
    fn large(&self, planned: &Blob) -> Result<Blob, PushError> {
        let failed = |source| PushError::Pack { place: self.scratch.tmp().display().to_string(), source };
        let mut packed = self.scratch.begin().map_err(failed)?;
        let out = BufWriter::with_capacity(PIECE, &packed.file);
        let blob = self.packed(planned, out)?.map_err(failed)?;
        packed.file.rewind().map_err(failed)?;
        let mut content = Cancellable { inner: &mut packed.file, cancel: self.cancel };
        match self.store.put_large(&head::blob(&blob), &mut content) {
            Err(StoreError::Content { source, .. }) => {
                self.go_on()?;
                Err(failed(source))
            }
            done => Ok(done.map(|()| blob)?),
        }
    }

    /// Adds the packed bytes of a blob to those in memory.
    fn read(&self, planned: &Blob, out: &mut Vec<u8>) -> Result<Blob, PushError> {
        let failed = |source| PushError::Pack { place: self.library.blob_place(&planned.digest), source };
        self.packed(planned, out)?.map_err(failed)
    }

    /// Writes the packed bytes of a blob to `out`, and compares its content with its digest. The inner error is that of `out`
    /// or of packing.
    fn packed(&self, planned: &Blob, out: impl Write) -> Result<io::Result<Blob>, PushError> {
        self.go_on()?;
        let Blob { digest, size, .. } = *planned;
        let mut out = Counted { out: Cancellable { inner: out, cancel: self.cancel }, bytes: 0 };
        let mut packer = match packing::packer(&mut out, size) {
            Ok(packer) => packer,
            Err(error) => return Ok(Err(error)),
        };
        let copied = copy_content(self.library, &digest, size, &mut packer);
        let written = copied.map_err(|source| PushError::Blob { catalog: self.catalog.clone(), source })?;
        let written = written.and_then(|()| packer.finish()?.flush());
        self.go_on()?;
        Ok(written.map(|()| Blob { digest, size, stored: out.bytes, packing: Packing::Zstd }))
    }

    /// Sends a catalog, a layout or a profile, unless the store has it.
    pub(super) fn object(&self, name: &str, bytes: Vec<u8>) -> Result<(), PushError> {
        self.go_on()?;
        let len = bytes.len() as u64;
        if !self.present.has(name, len) {
            self.store.put(name, bytes)?;
            self.sent.add(len);
        }
        Ok(())
    }

    fn go_on(&self) -> Result<(), PushError> {
        if self.cancel.load(Ordering::Relaxed) { Err(PushError::Interrupted) } else { Ok(()) }
    }
}

/// A writer that counts.
struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
