//! Reads a large object from its beginning to its end: ranges of some megabytes, a few of them under way.
//!
//! A range that fails is asked for again by [`Objects::get`], so a cut connection costs the rest of one range.
//!
//! Invariant: the reader gets the ranges in order, and an error instead of a range that did not come.

use std::collections::VecDeque;
use std::io::{self, Cursor, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use super::{Objects, StoreError};
use crate::sys::thread;

/// The first range. Whoever reads the beginning of a file waits for it. Most large files of an environment are native
/// libraries, which are read as a whole, and are not larger.
const FIRST: u64 = 4 << 20;
/// All others.
const LEN: u64 = 8 << 20;
/// How many ranges are under way.
const UNDER_WAY: usize = 3;

type Answer = Result<Vec<u8>, StoreError>;

/// The bytes of one object.
pub(super) struct Ranges {
    objects: Arc<dyn Objects>,
    name: String,
    size: u64,
    /// Where the next range begins.
    next: u64,
    coming: VecDeque<(Range<u64>, Receiver<Answer>)>,
    here: Cursor<Vec<u8>>,
    /// How long the store may take to begin the answer to the first range.
    patience: Duration,
    /// Turns an error of the store into one of a file.
    failed: fn(&StoreError) -> io::Error,
}

impl Ranges {
    pub(super) fn new(
        objects: Arc<dyn Objects>,
        name: String,
        size: u64,
        patience: Duration,
        failed: fn(&StoreError) -> io::Error,
    ) -> Self {
        let (coming, here) = (VecDeque::new(), Cursor::default());
        Self { objects, name, size, next: 0, coming, here, patience, failed }
    }

    fn ask(&mut self) {
        while self.next < self.size && self.coming.len() < UNDER_WAY {
            let len = if self.next == 0 { FIRST } else { LEN };
            let range = self.next..self.size.min(self.next + len);
            self.next = range.end;
            let (send, receive) = sync_channel(1);
            let asked = (Arc::clone(&self.objects), self.name.clone(), range.clone(), send);
            let patience = self.patience;
            let ask = move |(objects, name, range, send): (Arc<dyn Objects>, String, Range<u64>, _)| {
                let send: std::sync::mpsc::SyncSender<Answer> = send;
                let len = range.end - range.start;
                let answer = match range.start {
                    0 => objects.get_within(&name, Some(range), len, patience),
                    _ => objects.get(&name, Some(range), len),
                };
                // Nobody waits for it if the reader has gone.
                drop(send.send(answer));
            };
            if let Err((asked, error)) = thread::spawn_with("range", asked, ask) {
                tracing::debug!(%error, "no thread for a range: its reader asks for it");
                ask(asked);
            }
            self.coming.push_back((range, receive));
        }
    }
}

impl Read for Ranges {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.here.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            self.here = Cursor::default();
            self.ask();
            let Some((range, coming)) = self.coming.pop_front() else { return Ok(0) };
            let answer = coming.recv().map_err(|_| io::Error::from_raw_os_error(libc::EIO))?;
            let bytes = answer.map_err(|error| (self.failed)(&error))?;
            if bytes.len() as u64 != range.end - range.start {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the object is shorter than it was",
                ));
            }
            self.here = Cursor::new(bytes);
            self.ask();
        }
    }
}
