//! A blob that is being unpacked into the cache, and can be read from meanwhile.
//!
//! One thread unpacks; any number of readers take what is there already and wait for what is not. Invariant: the last
//! byte is handed out only after the whole blob matched its digest and size, so nobody can have read a bad blob to
//! its end without an error. What was read of it before that has to be taken back by whoever keeps it: all who were
//! given it are told when it fails.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use parking_lot::{Condvar, Mutex};

/// How far the unpacking has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// So many bytes are in the file, not yet verified.
    Unpacked(u64),
    /// All are there, and verified.
    Whole,
    /// It was given up; the library's blob tells why to whoever asks again.
    Failed,
}

/// Tells one of those who read from a blob that it is not to be believed.
pub(super) type Failed = Box<dyn FnOnce() + Send>;

/// A blob on its way into the cache.
pub struct Filling {
    size: u64,
    /// Set before any byte is announced.
    file: OnceLock<File>,
    /// A leaf lock; waiting releases it. With it are those to be told of a failure.
    progress: Mutex<(Progress, Vec<Failed>)>,
    changed: Condvar,
}

impl std::fmt::Debug for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filling")
            .field("size", &self.size)
            .field("progress", &self.progress.lock().0)
            .finish()
    }
}

impl Filling {
    pub(super) fn new(size: u64) -> Self {
        let progress = Mutex::new((Progress::Unpacked(0), Vec::new()));
        Self { size, file: OnceLock::new(), progress, changed: Condvar::new() }
    }

    /// Where the bytes will be; before the first of them is announced, and once.
    pub(super) fn from(&self, file: File) {
        // Set twice it would keep the first, which has the same bytes.
        drop(self.file.set(file));
    }

    /// Announces bytes that are in the file.
    pub(super) fn add(&self, bytes: u64) {
        let mut progress = self.progress.lock();
        if let Progress::Unpacked(n) = &mut progress.0 {
            *n += bytes;
        }
        drop(progress);
        self.changed.notify_all();
    }

    /// Has somebody told when it fails, at once if it has.
    pub(super) fn on_failure(&self, tell: Failed) {
        let mut progress = self.progress.lock();
        match progress.0 {
            Progress::Unpacked(_) => progress.1.push(tell),
            Progress::Whole => {}
            Progress::Failed => {
                drop(progress);
                tell();
            }
        }
    }

    /// Ends it, one way or the other.
    pub(super) fn end(&self, whole: bool) {
        let to_tell = {
            let mut progress = self.progress.lock();
            progress.0 = if whole { Progress::Whole } else { Progress::Failed };
            std::mem::take(&mut progress.1)
        };
        self.changed.notify_all();
        if !whole {
            to_tell.into_iter().for_each(|tell| tell());
        }
    }

    /// Reads at an offset, waiting for the bytes: all of `buffer`, less only at the end of the file. None when the
    /// unpacking was given up.
    ///
    /// # Errors
    /// What reading the cache's file may answer.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let end = offset.saturating_add(buffer.len() as u64).min(self.size);
        if offset >= end {
            return Ok(Some(0));
        }
        let mut progress = self.progress.lock();
        loop {
            match progress.0 {
                Progress::Whole => break,
                Progress::Failed => return Ok(None),
                // The last byte waits for the digest.
                Progress::Unpacked(n) if n >= end && end < self.size => break,
                Progress::Unpacked(_) => self.changed.wait(&mut progress),
            }
        }
        drop(progress);
        let Some(file) = self.file.get() else { return Ok(None) };
        let wanted = usize::try_from(end - offset).unwrap_or(buffer.len());
        let Some(room) = buffer.get_mut(..wanted) else { return Ok(Some(0)) };
        file.read_exact_at(room, offset)?;
        Ok(Some(wanted))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn filling(content: &[u8]) -> Arc<Filling> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let filling = Filling::new(content.len() as u64);
        filling.from(file);
        Arc::new(filling)
    }

    #[test]
    fn what_is_there_is_read_and_the_last_byte_waits_for_the_digest() {
        let filling = filling(b"0123456789");
        filling.add(10);
        let mut buffer = [0; 4];
        assert_eq!(filling.read_at(2, &mut buffer).unwrap(), Some(4));
        assert_eq!(&buffer, b"2345");
        let reader = Arc::clone(&filling);
        let waiting = std::thread::spawn(move || reader.read_at(8, &mut [0; 4]).unwrap());
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiting.is_finished());
        filling.end(true);
        assert_eq!(waiting.join().unwrap(), Some(2));
    }

    #[test]
    fn a_failure_reaches_everybody_who_waits_and_who_comes_later() {
        let filling = filling(b"0123456789");
        filling.add(4);
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let reader = Arc::clone(&filling);
                std::thread::spawn(move || reader.read_at(5, &mut [0; 4]).unwrap())
            })
            .collect();
        let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let hook = || {
            let told = Arc::clone(&told);
            Box::new(move || {
                told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            })
        };
        filling.on_failure(hook());
        filling.on_failure(hook());
        filling.end(false);
        filling.on_failure(hook());
        assert_eq!(told.load(std::sync::atomic::Ordering::Relaxed), 3);
        assert!(waiting.into_iter().all(|reader| reader.join().unwrap().is_none()));
        assert_eq!(filling.read_at(0, &mut [0; 1]).unwrap(), None);
    }

    #[test]
    fn beyond_the_end_there_is_nothing_to_wait_for() {
        assert_eq!(filling(b"01").read_at(2, &mut [0; 4]).unwrap(), Some(0));
        assert_eq!(filling(b"01").read_at(u64::MAX, &mut [0; 4]).unwrap(), Some(0));
    }
}
