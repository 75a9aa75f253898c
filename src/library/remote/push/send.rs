//! Reads blobs, verifies them, and sends them.
//!
//! Invariant: nothing is sent that was not compared with its digest. Memory: as many packs as are sent at once.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use indicatif::ProgressBar;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::PushError;
use super::plan::{PACK, Plan, Sized};
use super::present::Present;
use crate::library::Library;
use crate::library::blob::copy_stored;
use crate::library::catalogs::CatalogName;
use crate::library::digest::Digest;
use crate::library::remote::layout::Writer;
use crate::library::remote::{Objects, StoreError, head};
use crate::sys::thread;

/// How many objects are made and sent at once.
const IN_FLIGHT: usize = 4;

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
    pub(super) progress: &'a ProgressBar,
    pub(super) cancel: &'a AtomicBool,
    pub(super) sent: &'a Sent,
}

/// A pack that the store has now.
struct Packed {
    sum: [u8; 32],
    bytes: u64,
    /// With the sizes that were read. The library may have changed since they were planned.
    groups: Vec<(u64, Vec<Sized>)>,
}

/// An object to be made.
enum Work<'p> {
    /// The number of the pack, for its place in the layout.
    Pack(usize, &'p [Vec<Sized>]),
    Alone(&'p Sized),
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
                        let stored = self.alone(blob)?;
                        alone.lock().push((blob.0, blob.1, stored));
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
        alone.iter().for_each(|(digest, size, stored)| writer.alone(*digest, *size, *stored));
        Ok(writer.finish())
    }

    fn pack(&self, groups: &[Vec<Sized>]) -> Result<Packed, PushError> {
        let planned: u64 = groups.iter().flatten().map(|(.., stored)| stored).sum();
        let mut pack = Vec::with_capacity(usize::try_from(planned.min(PACK)).unwrap_or(0));
        let mut placed = Vec::new();
        for group in groups {
            let offset = pack.len() as u64;
            let mut blobs = Vec::new();
            for (digest, size, planned) in group {
                let before = pack.len();
                self.read(digest, *size, &mut pack)?;
                blobs.push((*digest, *size, (pack.len() - before) as u64));
                self.progress.inc(*planned);
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

    /// Sends a blob as an object of its own. Returns the size of its stored bytes.
    fn alone(&self, (digest, size, planned): &Sized) -> Result<u64, PushError> {
        let name = head::blob(digest);
        let bytes = if *planned <= PACK {
            let mut stored = Vec::new();
            self.read(digest, *size, &mut stored)?;
            let bytes = stored.len() as u64;
            self.store.put(&name, stored)?;
            bytes
        } else {
            self.large(&name, digest, *size)?
        };
        self.progress.inc(*planned);
        self.sent.add(bytes);
        Ok(bytes)
    }

    /// Sends a blob that does not go into memory. It is read twice: to be verified, and then to be sent. Both times it must be
    /// the same.
    fn large(&self, name: &str, digest: &Digest, size: u64) -> Result<u64, PushError> {
        let mut verified = Summed::default();
        self.read(digest, size, &mut verified)?;
        let place = || self.library.blob_place(digest);
        let failed = |source| PushError::Read { place: place(), source };
        let stored = self.library.blob(digest).map_err(failed)?;
        let bytes = verified.bytes;
        let mut again =
            Again { stored, read: Summed::default(), verified: Some(verified), cancel: self.cancel };
        match self.store.put_large(name, &mut again) {
            Err(StoreError::Content { source, .. }) => {
                self.go_on()?;
                Err(failed(source))
            }
            done => Ok(done.map(|()| bytes)?),
        }
    }

    fn read(&self, digest: &Digest, size: u64, out: &mut dyn Write) -> Result<(), PushError> {
        self.go_on()?;
        let copied = copy_stored(self.library, digest, size, out);
        let catalog = || self.catalog.clone();
        let written = copied.map_err(|source| PushError::Blob { catalog: catalog(), source })?;
        written.map_err(|source| PushError::Read { place: self.library.blob_place(digest), source })
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

/// The sum of bytes, and their number.
#[derive(Default)]
struct Summed {
    sum: Sha256,
    bytes: u64,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Stored bytes that must be those that were verified. Their end is an error if they are not.
struct Again<'a, R> {
    stored: R,
    read: Summed,
    /// None after the end.
    verified: Option<Summed>,
    cancel: &'a AtomicBool,
}

impl<R: Read> Read for Again<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        let n = self.stored.read(buffer)?;
        self.read.write_all(buffer.get(..n).unwrap_or_default())?;
        if n == 0
            && !buffer.is_empty()
            && let Some(verified) = self.verified.take()
        {
            let read = std::mem::take(&mut self.read);
            if (read.bytes, read.sum.finalize()) != (verified.bytes, verified.sum.finalize()) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it changed while it was read"));
            }
        }
        Ok(n)
    }
}
