//! The counters of one mount, and what they add up to over all mounts of a space.
//!
//! One [`Metrics`] is made where the mount is put together, and shared by all who count. `holofs status`
//! reads the counters of a live mount from an extended attribute of its root, and `holofs stats` asks its daemon for the
//! totals. `docs/METRICS.md` documents each.
//!
//! Counting must not slow the mount down: nothing is counted by a lookup or a getattr, and a read adds its length to one
//! counter on a cache line of its own. All operations are relaxed. Counters only grow, and start at 0 with each mount. They
//! are not exact with respect to each other.

pub mod prometheus;
pub mod totals;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::io::Errno;
use serde::de::value::MapDeserializer;
use serde::{Deserialize, Serialize};
use zerocopy::FromZeros;

use totals::{CorruptFile, Totals};

/// Whether a name may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stability {
    /// The name and the meaning stay the same until the next major version.
    Stable,
    /// May change with any version.
    Unstable,
}

/// What is known of a counter.
#[derive(Debug)]
pub struct Definition {
    /// Key in JSON.
    pub name: &'static str,
    /// The family in Prometheus's format, with a label and its value. Empty if the counter is not there.
    pub family: (&'static str, &'static str, &'static str),
    /// What is counted, in the plural.
    pub unit: &'static str,
    /// Whether the name may change.
    pub stability: Stability,
    /// What it counts.
    pub meaning: &'static str,
}

macro_rules! counters {
    ($($counter:ident = $name:literal, $unit:literal, $stability:ident, $family:expr, $meaning:literal;)*) => {
        /// A counter.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Counter {
            $(#[doc = $meaning] $counter,)*
        }

        /// All counters, in the order of [`Counter`].
        pub const COUNTERS: &[Definition] = &[$(Definition {
            name: $name, family: $family, unit: $unit, stability: Stability::$stability, meaning: $meaning,
        },)*];
    };
}

/// A family with one sample, and one that Prometheus's format does not have.
const fn alone(family: &'static str) -> (&'static str, &'static str, &'static str) {
    (family, "", "")
}

const COPIES: &str = "holofs_private_copies_total";
const OPENS: &str = "holofs_opens_total";

counters! {
    Reflinked = "reflink", "files", Stable, (COPIES, "method", "reflink"), "Private copies that share the extents of their blob.";
    CopiedInKernel = "copy_file_range", "files", Stable, (COPIES, "method", "copy_file_range"), "Private copies that the kernel copied.";
    Copied = "copy", "files", Stable, (COPIES, "method", "copy"), "Private copies that the daemon wrote.";
    Relocated = "relocated", "files", Stable, alone("holofs_relocated_copies_total"), "Among the private copies, those of relocated files that were only read.";
    CopiedBytes = "bytes", "bytes", Stable, alone("holofs_private_copy_bytes_total"), "Size of all private copies.";
    SharedBytes = "bytes_shared", "bytes", Stable, alone("holofs_private_copy_shared_bytes_total"), "Size of the private copies that share extents.";
    FilesTouched = "files_touched", "files", Stable, alone(""), "Library files of which bytes were asked for.";
    ServedBytes = "bytes_served", "bytes", Stable, alone("holofs_served_bytes_total"), "Bytes that the daemon answered reads with. What the kernel had cached, or reads by passthrough, is not seen.";
    CacheHits = "cache_hits", "blobs", Stable, alone("holofs_blob_cache_hits_total"), "Times that a blob was found unpacked in the blob cache.";
    CacheHitBytes = "cache_hit_bytes", "bytes", Stable, alone("holofs_blob_cache_hit_bytes_total"), "Unpacked size of the blobs that were found in the blob cache.";
    BlobsFetched = "blobs_fetched", "blobs", Stable, alone("holofs_blobs_fetched_total"), "Blobs that were read from the library and verified.";
    FetchedBytes = "blob_bytes_fetched", "bytes", Stable, alone("holofs_blob_fetched_bytes_total"), "Unpacked size of the blobs that were read from the library.";
    BlobsRefused = "blobs_refused", "blobs", Stable, alone("holofs_blobs_refused_total"), "Blobs of the library that were missing or corrupt when they were needed.";
    OpensByPassthrough = "opens_passthrough", "opens", Stable, (OPENS, "mode", "passthrough"), "Opens after which the kernel uses the backing file.";
    OpensByCache = "opens_cached", "opens", Stable, (OPENS, "mode", "cached"), "Opens in passthrough mode after which the kernel uses its page cache.";
    RemoteRequests = "remote_requests", "requests", Unstable, alone("holofs_remote_requests_total"), "Requests to the object store of the library.";
    RemoteBytes = "remote_bytes", "bytes", Unstable, alone("holofs_remote_bytes_total"), "Bytes that came from the object store.";
    RemoteRetries = "remote_retries", "requests", Unstable, alone("holofs_remote_retries_total"), "Requests to the object store that failed and were sent again.";
    RemoteFailures = "remote_failures", "requests", Unstable, alone("holofs_remote_failures_total"), "Requests to the object store that were given up.";
    RequestsFailed = "requests_failed", "requests", Stable, alone(""), "Requests that were answered with an error, other than ENODATA and ENOTTY. `errors.NAME` counts those of one errno.";
}

/// What was asked of an object store since this process connected to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Contact {
    pub requests: u64,
    /// Received, in bytes.
    pub bytes: u64,
    /// Requests that were sent again.
    pub retries: u64,
    /// Requests that were given up.
    pub failures: u64,
    /// Since when the store does not answer, in seconds since the epoch. None if it answers.
    pub silent_since: Option<u64>,
}

/// The key of [`Contact::silent_since`] beside the counters. It is there only while the store does not answer.
pub const SILENT_SINCE: &str = "remote_silent_since";

/// Tells how it goes with an object store. None if there is none.
type AskContact = Box<dyn Fn() -> Option<Contact> + Send + Sync>;

/// One more than the largest errno of Linux.
const ERRNOS: usize = 134;

/// A counter that many threads add to, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart(AtomicU64);

/// Returns what earlier mounts of the space added up to.
pub type Earlier = Box<dyn Fn() -> Totals + Send + Sync>;

/// The counters of one mount.
pub struct Metrics {
    counters: [AtomicU64; COUNTERS.len()],
    served: Apart,
    errors: [AtomicU64; ERRNOS],
    /// One bit for each node of the environment: whether its bytes were asked for. Empty in a mount without an environment.
    touched: Box<[AtomicU64]>,
    /// Files with a corrupt blob. A leaf lock.
    corrupt: Mutex<Vec<CorruptFile>>,
    /// Read when somebody asks for the totals, and so never by a mount that nobody asks.
    earlier: Option<Earlier>,
    /// When a request was logged last that failed because the store does not answer, in seconds since the epoch, and how
    /// many have failed since. A leaf lock.
    silence: Mutex<(u64, u64)>,
    /// None for a library on this machine.
    contact: OnceLock<AskContact>,
    /// Held while the totals are made, by `stats` and when they are saved. Taken before `corrupt`.
    base: Mutex<Option<Totals>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("counters", &self.snapshot()).finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            counters: [const { AtomicU64::new(0) }; _],
            served: Apart::default(),
            errors: [const { AtomicU64::new(0) }; _],
            touched: Box::default(),
            corrupt: Mutex::default(),
            earlier: None,
            silence: Mutex::default(),
            contact: OnceLock::new(),
            base: Mutex::default(),
        }
    }
}

impl Metrics {
    /// The counters of a mount of an environment with this many nodes.
    #[must_use]
    pub fn of_environment(nodes: u32, earlier: Earlier) -> Self {
        let words = (nodes as usize).div_ceil(64);
        Self {
            // The allocator returns fresh pages as they are, so a mount of a large environment writes to none of them.
            // Without the memory, every touch counts as the first.
            touched: <[AtomicU64]>::new_box_zeroed_with_elems(words).unwrap_or_default(),
            earlier: Some(earlier),
            ..Self::default()
        }
    }

    /// Sets who tells about the object store of the library. Only the first call has an effect.
    pub fn set_contact(&self, ask: impl Fn() -> Option<Contact> + Send + Sync + 'static) {
        drop(self.contact.set(Box::new(ask)));
    }

    /// Whether to log a request that failed because the store does not answer: one each minute. Returns how many were not
    /// logged since the last one.
    pub fn may_log_silence(&self) -> Option<u64> {
        /// In seconds.
        const PERIOD: u64 = 60;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut silence = self.silence.lock();
        let (last, more) = &mut *silence;
        if now < last.saturating_add(PERIOD) {
            *more += 1;
            return None;
        }
        *last = now;
        Some(std::mem::take(more))
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, n: u64) {
        if let Some(counter) = self.counters.get(counter as usize) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Counts the bytes of an answer to a read.
    pub fn served(&self, bytes: usize) {
        self.served.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes that bytes of a node were asked for. Returns whether this is the first time. Without an environment always true.
    pub fn touch(&self, node: u32) -> bool {
        let Some(word) = self.touched.get(node as usize / 64) else { return true };
        let bit = 1 << (node % 64);
        // Most files were touched before. A load does not take the cache line from the other processors.
        if word.load(Ordering::Relaxed) & bit != 0 || word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return false;
        }
        self.add(Counter::FilesTouched, 1);
        true
    }

    /// Notes that a file cannot be read because its blob is corrupt.
    pub fn corrupt(&self, path: &str, digest: &str) {
        let file = CorruptFile { path: path.to_owned(), digest: digest.to_owned() };
        let mut corrupt = self.corrupt.lock();
        if corrupt.len() < totals::MOST_CORRUPT && !corrupt.contains(&file) {
            corrupt.push(file);
        }
    }

    /// Counts a request that is answered with an error.
    pub fn request_failed(&self, errno: Errno) {
        if !matches!(errno, Errno::NODATA | Errno::NOTTY) {
            self.add(Counter::RequestsFailed, 1);
        }
        if let Some(counter) = usize::try_from(errno.raw_os_error()).ok().and_then(|n| self.errors.get(n)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The value of a counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        if counter == Counter::ServedBytes {
            return self.served.0.load(Ordering::Relaxed);
        }
        self.counters.get(counter as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// All counters by name, and of the errors those that occurred.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = COUNTERS.iter().zip(&self.counters);
        let counters = counters.map(|(definition, counter)| (definition.name.to_owned(), value(counter)));
        let errors = (0..).zip(&self.errors).map(|(errno, counter)| (errno, value(counter)));
        let errors = errors.filter(|(_, n)| *n > 0).map(|(errno, n)| (error_name(errno), n));
        let mut all: Snapshot = counters.chain(errors).collect();
        all.insert("bytes_served".to_owned(), value(&self.served.0));
        if let Some(contact) = self.contact.get().and_then(|ask| ask()) {
            for (counter, n) in [
                (Counter::RemoteRequests, contact.requests),
                (Counter::RemoteBytes, contact.bytes),
                (Counter::RemoteRetries, contact.retries),
                (Counter::RemoteFailures, contact.failures),
            ] {
                all.extend(COUNTERS.get(counter as usize).map(|of| (of.name.to_owned(), n)));
            }
            all.extend(contact.silent_since.map(|since| (SILENT_SINCE.to_owned(), since)));
        }
        all
    }

    /// What all mounts of the space add up to, this one included.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut base = self.base.lock();
        let base = base.get_or_insert_with(|| self.earlier.as_ref().map(|read| read()).unwrap_or_default());
        let touched: Vec<u64> = self.touched.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        base.with(&self.snapshot(), &touched, &self.corrupt.lock())
    }

    /// Starts all counters anew, and forgets the earlier mounts. What is counted meanwhile may be lost.
    pub fn reset(&self) {
        let mut base = self.base.lock();
        let known = base.take().or_else(|| self.earlier.as_ref().map(|read| read())).unwrap_or_default();
        let words = self.counters.iter().chain(&self.errors).chain(&*self.touched).chain([&self.served.0]);
        words.for_each(|word| word.store(0, Ordering::Relaxed));
        self.corrupt.lock().clear();
        *base = Some(known.anew());
    }
}

/// Counters by name.
pub type Snapshot = BTreeMap<String, u64>;

/// The names of the errnos from 1 on.
const ERRNO_NAMES: &str = "EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT \
    ENOTBLK EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK \
    EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP";

/// The names of larger errnos that a filesystem returns.
const LARGE_ERRNOS: [(usize, &str); 4] =
    [(61, "ENODATA"), (95, "EOPNOTSUPP"), (116, "ESTALE"), (122, "EDQUOT")];

/// Errnos that are ordinary answers: no such extended attribute, and not a terminal. Programs ask for both all the time.
const ORDINARY: [&str; 2] = ["ENODATA", "ENOTTY"];

/// Whether an errno says that something went wrong.
#[must_use]
pub fn is_alarming(errno: &str) -> bool {
    !ORDINARY.contains(&errno)
}

/// The key of the errors with one errno.
fn error_name(errno: usize) -> String {
    let large = || LARGE_ERRNOS.iter().find(|(number, _)| *number == errno).map(|(_, name)| *name);
    let small = errno.checked_sub(1).and_then(|n| ERRNO_NAMES.split(' ').nth(n));
    small.or_else(large).map_or_else(|| format!("errors.{errno}"), |name| format!("errors.{name}"))
}

/// The counters of private copies, as `holofs status` shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// [`Counter::Reflinked`].
    pub reflink: u64,
    /// [`Counter::CopiedInKernel`].
    #[serde(default)]
    pub copy_file_range: u64,
    /// [`Counter::Copied`].
    pub copy: u64,
    /// [`Counter::Relocated`].
    pub relocated: u64,
    /// [`Counter::CopiedBytes`].
    pub bytes: u64,
    /// [`Counter::SharedBytes`].
    pub bytes_shared: u64,
}

impl Counts {
    /// The counters of private copies among all. None when the mount does not have them.
    #[must_use]
    pub fn of(all: &Snapshot) -> Option<Self> {
        let pairs = all.iter().map(|(name, value)| (name.as_str(), *value));
        Self::deserialize(MapDeserializer::<_, serde::de::value::Error>::new(pairs)).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ordinary_answers_are_counted_and_are_no_failures() {
        let metrics = Metrics::default();
        for errno in [Errno::NODATA, Errno::NOTTY, Errno::NOENT] {
            metrics.request_failed(errno);
        }
        let all = metrics.snapshot();
        assert_eq!((all["requests_failed"], all["errors.ENODATA"], all["errors.ENOTTY"]), (1, 1, 1));
        assert!(is_alarming("ENOENT") && !is_alarming("ENODATA") && !is_alarming("ENOTTY"));
    }

    #[test]
    fn counters_and_errors_are_in_the_snapshot_under_their_names() {
        let metrics = Metrics::default();
        metrics.add(Counter::FetchedBytes, 7);
        metrics.add(Counter::FetchedBytes, 3);
        metrics.request_failed(Errno::IO);
        metrics.request_failed(Errno::IO);
        metrics.request_failed(Errno::from_raw_os_error(133));
        metrics.request_failed(Errno::from_raw_os_error(4000));
        let all = metrics.snapshot();
        assert_eq!((all["blob_bytes_fetched"], all["requests_failed"]), (10, 4));
        assert_eq!((all["errors.EIO"], all["errors.133"]), (2, 1));
        assert!(!all.contains_key("errors.EPERM"));
        assert_eq!(all.len(), COUNTERS.len() + 2);
        // What `holofs status` reads of it.
        metrics.add(Counter::Copied, 2);
        assert_eq!(Counts::of(&metrics.snapshot()), Some(Counts { copy: 2, ..Counts::default() }));
        for (errno, name) in [(Errno::LOOP, "ELOOP"), (Errno::NOSPC, "ENOSPC"), (Errno::DQUOT, "EDQUOT")] {
            metrics.request_failed(errno);
            assert_eq!(metrics.snapshot()[&format!("errors.{name}")], 1);
        }
    }

    #[test]
    fn names_are_used_once() {
        let names: HashSet<_> = COUNTERS.iter().map(|definition| definition.name).collect();
        assert_eq!(names.len(), COUNTERS.len());
        assert!(names.iter().all(|name| !name.starts_with("errors.")));
    }

    #[test]
    fn a_file_is_touched_once() {
        let metrics = Metrics::of_environment(70, Box::new(Totals::default));
        assert!(metrics.touch(69) && !metrics.touch(69) && metrics.touch(0));
        assert_eq!(metrics.get(Counter::FilesTouched), 2);
        // Beyond the environment nothing is known.
        assert!(metrics.touch(1000) && metrics.touch(1000));
        assert_eq!(metrics.get(Counter::FilesTouched), 2);
    }

    #[test]
    fn totals_are_those_of_all_mounts_and_end_with_a_reset() {
        let earlier = Totals { catalog: "c".into(), files: 100, mounts: 2, ..Totals::default() };
        let earlier = earlier.with(&[("copy".to_owned(), 5)].into(), &[0b11], &[]);
        let base = earlier.clone();
        let metrics = Metrics::of_environment(100, Box::new(move || base.clone()));
        metrics.add(Counter::Copied, 1);
        metrics.served(10);
        metrics.touch(1);
        metrics.touch(64);
        metrics.corrupt("lib/a", "d");
        metrics.corrupt("lib/a", "d");
        metrics.request_failed(Errno::IO);
        let all = metrics.totals();
        assert_eq!(
            (all.counters["copy"], all.counters["bytes_served"], all.counters["errors.EIO"]),
            (6, 10, 1)
        );
        assert_eq!((all.touched, all.mounts, all.files), (3, 4, 100));
        assert_eq!(all.corrupt, [CorruptFile { path: "lib/a".into(), digest: "d".into() }]);
        // Asking again changes nothing.
        assert_eq!(metrics.totals(), all);
        metrics.reset();
        let anew = metrics.totals();
        assert_eq!((anew.counters["copy"], anew.touched, anew.mounts, anew.files), (0, 0, 1, 100));
        assert!(anew.corrupt.is_empty() && !anew.counters.contains_key("errors.EIO"));
        assert!(metrics.touch(1));
    }
}
