//! The counters of one mount.
//!
//! One [`Metrics`] is made where the mount is put together, and shared by all who count. `holofs status` reads the
//! counters of a live mount from an extended attribute of its root: one JSON object, from name to value.
//!
//! Counting must not slow the mount down: nothing is counted by a lookup, a getattr, or a read that finds its data.
//! Counters only grow, and start at 0 with each mount. They are not exact with respect to each other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use serde::de::value::MapDeserializer;
use serde::{Deserialize, Serialize};

/// What is known of a counter.
#[derive(Debug)]
pub struct Definition {
    /// Key in the JSON of the attribute. Stable between versions.
    pub name: &'static str,
    /// What is counted, in the plural.
    pub unit: &'static str,
    /// What it counts, for documentation.
    pub meaning: &'static str,
}

macro_rules! counters {
    ($($counter:ident = $name:literal, $unit:literal, $meaning:literal;)*) => {
        /// A counter.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Counter {
            $(#[doc = $meaning] $counter,)*
        }

        /// All counters, in the order of [`Counter`].
        pub const COUNTERS: &[Definition] =
            &[$(Definition { name: $name, unit: $unit, meaning: $meaning },)*];
    };
}

counters! {
    Reflinked = "reflink", "files", "Private copies that share the extents of their blob.";
    Copied = "copy", "files", "Private copies whose bytes were copied.";
    Relocated = "relocated", "files", "Relocated files that were given a private file to read from.";
    CopiedBytes = "bytes", "bytes", "Size of all private copies.";
    SharedBytes = "bytes_shared", "bytes", "Size of the private copies that share extents.";
    FilesTouched = "files_touched", "files", "Library files of which bytes were asked for.";
    BlobsFetched = "blobs_fetched", "blobs", "Blobs that were read from the library and verified.";
    FetchedBytes = "blob_bytes_fetched", "bytes", "Unpacked size of the blobs that were read from the library.";
    BlobsRefused = "blobs_refused", "blobs", "Blobs of the library that were missing or corrupt when they were needed.";
    RequestsFailed = "requests_failed", "requests", "Requests that were answered with an error. `errors.NAME` counts those of one errno.";
}

/// One more than the largest errno of Linux.
const ERRNOS: usize = 134;

/// The counters of one mount.
#[derive(Debug)]
pub struct Metrics {
    counters: [AtomicU64; COUNTERS.len()],
    errors: [AtomicU64; ERRNOS],
}

impl Default for Metrics {
    fn default() -> Self {
        Self { counters: [const { AtomicU64::new(0) }; _], errors: [const { AtomicU64::new(0) }; _] }
    }
}

impl Metrics {
    /// Adds to a counter.
    pub fn add(&self, counter: Counter, n: u64) {
        if let Some(counter) = self.counters.get(counter as usize) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Counts a request that is answered with an error.
    pub fn request_failed(&self, errno: Errno) {
        self.add(Counter::RequestsFailed, 1);
        if let Some(counter) = usize::try_from(errno.raw_os_error()).ok().and_then(|n| self.errors.get(n)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The value of a counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
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
        counters.chain(errors).collect()
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
}
