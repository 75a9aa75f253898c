//! The clone ladder: FICLONE, then `copy_file_range`, then read and write.
//!
//! [`Cloner::clone_file`] copies the bytes of one open file into an empty one, and returns the method that worked. A
//! refusal is remembered for each pair of filesystems.
//!
//! Invariant: the next method is tried only after an errno that means "not between these filesystems". ENOSPC, EDQUOT,
//! EIO and the like are errors: a fallback would hide them.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::settings::Strategy;
use crate::sys::{errno_of, fd, plain};

/// How the bytes were copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By FICLONE: the extents are shared.
    Reflink,
    /// By `copy_file_range`, inside the kernel.
    CopyRange,
    /// By reads and writes of this process.
    Copy,
}

/// Why cloning failed.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The strategy is reflink, and the filesystems do not support it.
    #[error("the filesystems cannot share extents (FICLONE: {0})")]
    ReflinkRefused(Errno),
    /// A system call failed, and another method would fail too.
    #[error("{call} failed: {source}")]
    Os {
        /// The system call.
        call: &'static str,
        /// Its errno.
        source: Errno,
    },
    /// The source ended before the promised length.
    #[error("the source ended at byte {at} of {len}")]
    ShortSource {
        /// Its length in bytes.
        at: u64,
        /// The expected length in bytes.
        len: u64,
    },
}

/// Clones files, and remembers for each pair of devices which methods were refused.
#[derive(Debug)]
pub struct Cloner {
    strategy: Strategy,
    /// By source and target device. A leaf lock: no other lock is taken while it is held.
    refusals: Mutex<HashMap<(u64, u64), Refusals>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Refusals {
    ficlone: Option<Errno>,
    copy_range: Option<Errno>,
}

/// Whether the errno means "not between these files" and not "failed".
fn means_unsupported(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::PERM
            | Errno::NOSYS
            | Errno::TXTBSY
    )
}

impl Cloner {
    /// A cloner for one mount.
    #[must_use]
    pub fn new(strategy: Strategy) -> Self {
        Self { strategy, refusals: Mutex::new(HashMap::new()) }
    }

    /// The strategy of the mount.
    #[must_use]
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Makes the empty file `to` hold the `len` bytes of `from`.
    ///
    /// # Errors
    /// See [`CloneError`]. After an error the content of `to` is undefined.
    pub fn clone_file(&self, from: &File, to: &File, len: u64) -> Result<Method, CloneError> {
        if self.strategy == Strategy::Copy {
            copy(from, to, len)?;
            return Ok(Method::Copy);
        }
        let known = self.known(from, to)?;
        let refused = match known.ficlone {
            Some(errno) => errno,
            None => match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(Method::Reflink),
                Err(errno) if means_unsupported(errno) => {
                    self.remember(from, to, |refusals| refusals.ficlone = Some(errno))?;
                    errno
                }
                Err(source) => return Err(CloneError::Os { call: "FICLONE", source }),
            },
        };
        if self.strategy == Strategy::Reflink {
            return Err(CloneError::ReflinkRefused(refused));
        }
        if known.copy_range.is_none() {
            match copy_range(from, to, len) {
                Ok(()) => return Ok(Method::CopyRange),
                Err(CloneError::Os { source, .. }) if means_unsupported(source) => {
                    self.remember(from, to, |refusals| refusals.copy_range = Some(source))?;
                }
                Err(error) => return Err(error),
            }
        }
        copy(from, to, len)?;
        Ok(Method::Copy)
    }

    /// What was refused between these filesystems. While nothing was refused anywhere, nobody asks which ones they are.
    fn known(&self, from: &File, to: &File) -> Result<Refusals, CloneError> {
        if self.refusals.lock().is_empty() {
            return Ok(Refusals::default());
        }
        let pair = (device(from)?, device(to)?);
        Ok(self.refusals.lock().get(&pair).copied().unwrap_or_default())
    }

    fn remember(&self, from: &File, to: &File, set: impl FnOnce(&mut Refusals)) -> Result<(), CloneError> {
        let pair = (device(from)?, device(to)?);
        set(self.refusals.lock().entry(pair).or_default());
        Ok(())
    }
}

/// Tries a real FICLONE from a file in one directory to a file in another. Leaves nothing behind.
///
/// # Errors
/// Why it is not possible.
pub fn probe(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), String> {
    let source = probe_file(from).map_err(|errno| format!("cannot make a file to probe with: {errno}"))?;
    source
        .write_all_at(&[0; 8192], 0)
        .map_err(|error| format!("cannot write to a file: {}", plain(&error)))?;
    let target = probe_file(to).map_err(|errno| format!("cannot make a file to probe with: {errno}"))?;
    rustix::fs::ioctl_ficlone(&target, &source).map_err(|errno| format!("FICLONE: {}", plain(&errno)))
}

fn probe_file(dir: BorrowedFd<'_>) -> Result<File, Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::openat(dir, ".", OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, mode) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let name = format!("probe.{}", std::process::id());
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, &name, flags, mode)?;
            rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
            Ok(file.into())
        }
        made => made.map(File::from),
    }
}

fn device(file: &File) -> Result<u64, CloneError> {
    Ok(rustix::fs::fstat(file).map_err(|source| CloneError::Os { call: "fstat", source })?.st_dev)
}

fn copy_range(from: &File, to: &File, len: u64) -> Result<(), CloneError> {
    let (mut from_at, mut to_at) = (0u64, 0u64);
    while from_at < len {
        let want = usize::try_from((len - from_at).min(1 << 30)).unwrap_or(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), want) {
            Ok(0) => return Err(CloneError::ShortSource { at: from_at, len }),
            Ok(_) | Err(Errno::INTR) => {}
            Err(source) => return Err(CloneError::Os { call: "copy_file_range", source }),
        }
    }
    Ok(())
}

/// Copies all bytes by offset, and so overwrites what an interrupted `copy_file_range` has left.
pub(super) fn copy(from: &File, to: &File, len: u64) -> Result<(), CloneError> {
    let mut buffer = vec![0u8; usize::try_from(len.clamp(1, 256 * 1024)).unwrap_or(256 * 1024)];
    let mut at = 0u64;
    while at < len {
        let want = usize::try_from((len - at).min(buffer.len() as u64)).unwrap_or(buffer.len());
        let Some(chunk) = buffer.get_mut(..want) else { break };
        let read = fd::read_full(from, at, chunk);
        let n = read.map_err(|source| CloneError::Os { call: "read", source })?;
        if n == 0 {
            return Err(CloneError::ShortSource { at, len });
        }
        to.write_all_at(chunk.get(..n).unwrap_or_default(), at)
            .map_err(|error| CloneError::Os { call: "write", source: errno_of(&error) })?;
        at += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    fn pair(bytes: &[u8]) -> (File, File) {
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(bytes).unwrap();
        (from, tempfile::tempfile().unwrap())
    }

    fn content(mut file: File) -> Vec<u8> {
        let mut out = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn every_rung_copies_the_bytes() {
        let bytes: Vec<u8> = (0..700_001u32).map(|n| n as u8).collect();
        for strategy in [Strategy::Smart, Strategy::Copy] {
            let (from, to) = pair(&bytes);
            let done = Cloner::new(strategy).clone_file(&from, &to, bytes.len() as u64).unwrap();
            assert_eq!(content(to), bytes);
            if strategy == Strategy::Copy {
                assert_eq!(done, Method::Copy);
            }
        }
    }

    #[test]
    fn reflink_or_nothing_when_asked_for() {
        let (from, to) = pair(b"x");
        match Cloner::new(Strategy::Reflink).clone_file(&from, &to, 1) {
            Ok(done) => assert_eq!(done, Method::Reflink),
            Err(error) => assert!(matches!(error, CloneError::ReflinkRefused(_)), "{error}"),
        }
    }

    #[test]
    fn a_short_source_is_an_error() {
        let (from, to) = pair(b"abc");
        let error = Cloner::new(Strategy::Copy).clone_file(&from, &to, 10).unwrap_err();
        assert!(matches!(error, CloneError::ShortSource { at: 3, len: 10 }));
    }

    #[test]
    fn a_refusal_is_remembered() {
        let cloner = Cloner::new(Strategy::Smart);
        let (from, to) = pair(b"abc");
        let first = cloner.clone_file(&from, &to, 3).unwrap();
        let known = cloner.refusals.lock().values().next().copied().unwrap_or_default();
        assert_eq!(known.ficlone.is_some(), first != Method::Reflink);
    }
}
