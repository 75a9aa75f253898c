//! A blob that is being unpacked into the cache, and can be read meanwhile.
//!
//! One thread unpacks. A reader registers the range that it wants together with a callback. The callback runs at once
//! when the range is in the file, and otherwise on the thread that unpacks, as soon as it is. So a reader that waits
//! needs no thread of its own.
//!
//! Invariant: the last byte is handed out only after the whole blob matched its digest and size, so nobody reads a bad
//! blob to its end without an error. Bytes that were handed out before a failure have to be dropped from the kernel's page
//! cache: each file that is read registers a callback for that.

use std::fs::File;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::blob::error::BlobError;
use crate::sys::thread::Panicked;

/// The file to read a range from, or why the blob cannot be read.
pub type Outcome = Result<Arc<File>, Arc<BlobError>>;

/// Called once with the outcome. It must not block for long: other readers wait for the same thread.
pub type Callback = Box<dyn FnOnce(Outcome) + Send>;

/// Called when bytes that were handed out turn out to be bad.
pub(super) type Failed = Box<dyn FnOnce() + Send>;

/// The number of reads that may wait for one blob. The kernel has few reads in flight for each process, so only several
/// hundred processes that read one file reach the limit.
const WAITING_LIMIT: usize = 4096;

/// A blob on its way into the cache.
pub struct Filling {
    size: u64,
    /// Set before any byte is announced.
    file: OnceLock<Arc<File>>,
    /// A leaf lock.
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// Bytes in the file, not yet verified.
    unpacked: u64,
    /// Bytes were announced that turned out to be bad.
    taken_back: bool,
    /// Set when the blob is verified or has failed.
    ended: Option<Outcome>,
    /// Readers, each with the number of bytes of the blob that have to be there for it.
    waiting: Vec<(u64, Callback)>,
    on_failure: Vec<Failed>,
}

impl std::fmt::Debug for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filling").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Filling {
    pub(super) fn new(size: u64) -> Self {
        Self { size, file: OnceLock::new(), progress: Mutex::default() }
    }

    /// Sets the file that the bytes are written to, before the first of them is announced. Only the first call has
    /// an effect.
    pub(super) fn begin(&self, file: File) {
        drop(self.file.set(Arc::new(file)));
    }

    /// Announces bytes that are in the file.
    pub(super) fn add(&self, bytes: u64) {
        let Some(file) = self.file.get() else { return };
        let ready: Vec<_> = {
            let mut progress = self.progress.lock();
            progress.unpacked += bytes;
            let unpacked = progress.unpacked;
            progress.waiting.extract_if(.., |(end, _)| self.is_there(*end, unpacked)).collect()
        };
        ready.into_iter().for_each(|(_, answer)| answer(Ok(Arc::clone(file))));
    }

    /// Registers a callback for a reader of bytes that may turn out to be bad.
    pub(super) fn on_failure(&self, tell: Failed) {
        let mut progress = self.progress.lock();
        // After the end, no reader gets bytes that are not verified.
        if progress.ended.is_none() {
            progress.on_failure.push(tell);
        }
    }

    /// Stops handing out the bytes that are in the file: they are bad. Readers wait for the end from now on.
    pub(super) fn take_back(&self) {
        let mut progress = self.progress.lock();
        progress.taken_back |= progress.unpacked > 0;
        progress.unpacked = 0;
    }

    /// Ends the unpacking and answers all readers.
    pub(super) fn end(&self, outcome: Outcome) {
        if outcome.is_err() {
            self.take_back();
        }
        let (waiting, to_tell) = {
            let mut progress = self.progress.lock();
            progress.ended = Some(outcome.clone());
            let to_tell = std::mem::take(&mut progress.on_failure);
            (std::mem::take(&mut progress.waiting), if progress.taken_back { to_tell } else { Vec::new() })
        };
        waiting.into_iter().for_each(|(_, answer)| answer(outcome.clone()));
        // Last, because dropping the kernel's pages waits for reads that lock them, and these reads wait for this thread.
        to_tell.into_iter().for_each(|tell| tell());
    }

    /// Whether the unpacking has ended without a good blob.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.progress.lock().ended, Some(Err(_)))
    }

    /// Calls `answer` once the `len` bytes at `offset` are in the file: now, or later on the thread that unpacks.
    ///
    /// # Errors
    /// Gives `answer` back when too many readers wait already. [`Filling::wait`] still works then.
    pub fn when_there(&self, offset: u64, len: usize, answer: Callback) -> Result<(), Callback> {
        self.register(offset, len, answer, WAITING_LIMIT)
    }

    /// Waits until the `len` bytes at `offset` are in the file.
    ///
    /// # Errors
    /// Why the blob cannot be read.
    pub fn wait(&self, offset: u64, len: usize) -> Outcome {
        let (send, receive) = sync_channel(1);
        // The receiver exists until it has the outcome.
        let answer = move |outcome| drop(send.send(outcome));
        drop(self.register(offset, len, Box::new(answer), usize::MAX));
        receive.recv().unwrap_or_else(|_| Err(Arc::new(Panicked.into())))
    }

    fn register(&self, offset: u64, len: usize, answer: Callback, limit: usize) -> Result<(), Callback> {
        let end = if offset < self.size { offset.saturating_add(len as u64).min(self.size) } else { 0 };
        let mut progress = self.progress.lock();
        let outcome = match (&progress.ended, self.file.get()) {
            (Some(outcome), _) => outcome.clone(),
            (None, Some(file)) if self.is_there(end, progress.unpacked) => Ok(Arc::clone(file)),
            (None, _) if progress.waiting.len() >= limit => return Err(answer),
            (None, _) => {
                progress.waiting.push((end, answer));
                return Ok(());
            }
        };
        drop(progress);
        answer(outcome);
        Ok(())
    }

    /// Whether the first `end` bytes may be read while `unpacked` bytes are there and none is verified.
    fn is_there(&self, end: u64, unpacked: u64) -> bool {
        end <= unpacked && end < self.size.max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn filling(content: &[u8]) -> (Arc<Filling>, Arc<File>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let filling = Filling::new(content.len() as u64);
        filling.begin(file.try_clone().unwrap());
        (Arc::new(filling), Arc::new(file))
    }

    fn read(filling: &Filling, offset: u64, len: usize) -> Vec<u8> {
        let file = filling.wait(offset, len).unwrap();
        let mut bytes = vec![0; len];
        let n = file.read_at(&mut bytes, offset).unwrap();
        bytes.truncate(n);
        bytes
    }

    #[test]
    fn what_is_there_is_read_and_the_last_byte_waits_for_the_digest() {
        let (filling, file) = filling(b"0123456789");
        filling.add(10);
        assert_eq!(read(&filling, 2, 4), b"2345");
        let reader = Arc::clone(&filling);
        let waiting = std::thread::spawn(move || read(&reader, 8, 4));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiting.is_finished());
        filling.end(Ok(file));
        assert_eq!(waiting.join().unwrap(), b"89");
    }

    #[test]
    fn a_reader_is_answered_by_the_thread_that_unpacks() {
        let (filling, file) = filling(b"0123456789");
        let answered = Arc::new(Mutex::new(Vec::new()));
        for (offset, len) in [(0, 4), (2, 4), (6, 4)] {
            let answered = Arc::clone(&answered);
            let answer = move |outcome: Outcome| {
                answered.lock().push((offset, outcome.is_ok(), std::thread::current().id()));
            };
            assert!(filling.when_there(offset, len, Box::new(answer)).is_ok());
        }
        assert!(answered.lock().is_empty());
        let here = std::thread::current().id();
        filling.add(4);
        assert_eq!(*answered.lock(), [(0, true, here)]);
        filling.add(6);
        assert_eq!(answered.lock().len(), 2);
        filling.end(Ok(file));
        assert_eq!(answered.lock().last(), Some(&(6, true, here)));
    }

    #[test]
    fn a_failure_reaches_all_readers_that_wait_and_that_come_later() {
        let (filling, _) = filling(b"0123456789");
        filling.add(4);
        let (failed, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = |counter: &Arc<AtomicUsize>| {
            let counter = Arc::clone(counter);
            move || {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        for _ in 0..4 {
            let count = count(&failed);
            let answer = move |outcome: Outcome| outcome.err().map(|_| count()).unwrap();
            assert!(filling.when_there(5, 4, Box::new(answer)).is_ok());
        }
        filling.on_failure(Box::new(count(&told)));
        filling.on_failure(Box::new(count(&told)));
        filling.end(Err(Arc::new(Panicked.into())));
        // One that comes later has read nothing.
        filling.on_failure(Box::new(count(&told)));
        assert_eq!((failed.load(Ordering::Relaxed), told.load(Ordering::Relaxed)), (4, 2));
        assert!(filling.wait(0, 1).is_err());
    }

    #[test]
    fn readers_are_answered_before_the_pages_of_a_bad_blob_are_dropped() {
        let (filling, _) = filling(b"0123456789");
        filling.add(4);
        let answered = Arc::new(AtomicUsize::new(0));
        let (counter, seen) = (Arc::clone(&answered), Arc::clone(&answered));
        filling.on_failure(Box::new(move || assert_eq!(seen.load(Ordering::Relaxed), 1)));
        let answer = move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        assert!(filling.when_there(5, 4, Box::new(answer)).is_ok());
        filling.end(Err(Arc::new(Panicked.into())));
        assert_eq!(answered.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn readers_beyond_the_limit_are_refused() {
        let (filling, file) = filling(b"0123456789");
        for _ in 0..WAITING_LIMIT {
            assert!(filling.when_there(0, 4, Box::new(|_| ())).is_ok());
        }
        assert!(filling.when_there(0, 4, Box::new(|_| ())).is_err());
        filling.end(Ok(file));
        assert!(filling.when_there(0, 4, Box::new(|_| ())).is_ok());
    }

    #[test]
    fn bytes_that_were_taken_back_are_not_read() {
        let (filling, file) = filling(b"0123456789");
        filling.add(10);
        filling.take_back();
        let reader = Arc::clone(&filling);
        let waiting = std::thread::spawn(move || read(&reader, 0, 4));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiting.is_finished());
        filling.end(Ok(file));
        assert_eq!(waiting.join().unwrap(), b"0123");
    }

    #[test]
    fn beyond_the_end_there_is_nothing_to_wait_for() {
        let (filling, _) = filling(b"01");
        assert!(read(&filling, 2, 4).is_empty());
        assert!(filling.wait(u64::MAX, 4).is_ok());
    }
}
