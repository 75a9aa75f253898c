//! What the mounts of a space add up to. Kept in the space's state directory between mounts.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{SILENT_SINCE, Snapshot};

/// How many corrupt files are listed.
pub const MOST_CORRUPT: usize = 100;

/// A file that cannot be read because its blob is corrupt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CorruptFile {
    /// Its path in the environment.
    pub path: String,
    /// The digest that the blob should have.
    pub digest: String,
}

/// The sums over the mounts of a space with one environment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// SHA-256 of the catalog, in hexadecimal. Another environment starts anew.
    pub catalog: String,
    /// Regular files of the environment.
    pub files: u64,
    /// Those with relocations.
    pub relocated: u64,
    /// Mounts.
    pub mounts: u64,
    /// When the first of them began, or the last reset was, in seconds since the epoch.
    pub since: u64,
    /// The counters by name.
    pub counters: Snapshot,
    /// Files of which bytes were asked for, each counted once.
    pub touched: u64,
    /// These files: a bit for each node of the index, in words of 16 hexadecimal digits.
    pub touched_files: String,
    /// Files with a corrupt blob.
    pub corrupt: Vec<CorruptFile>,
}

impl Totals {
    /// Without any mount.
    #[must_use]
    pub fn new(catalog: String, files: u64, relocated: u64) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { catalog, files, relocated, since, ..Self::default() }
    }

    /// The same environment without any mount.
    pub(super) fn anew(self) -> Self {
        Self::new(self.catalog, self.files, self.relocated)
    }

    /// The totals with one more mount.
    pub(super) fn with(&self, counters: &Snapshot, touched: &[u64], corrupt: &[CorruptFile]) -> Self {
        let mut sum = self.clone();
        sum.mounts += 1;
        // A time cannot be added up.
        for (name, n) in counters.iter().filter(|(name, _)| *name != SILENT_SINCE) {
            let total = sum.counters.entry(name.clone()).or_default();
            *total = total.saturating_add(*n);
        }
        let mut words = words(&self.touched_files);
        words.resize(words.len().max(touched.len()), 0);
        for (word, more) in words.iter_mut().zip(touched) {
            *word |= more;
        }
        sum.touched = words.iter().map(|word| u64::from(word.count_ones())).sum();
        sum.touched_files = words.iter().map(|word| format!("{word:016x}")).collect();
        for file in corrupt {
            if sum.corrupt.len() < MOST_CORRUPT && !sum.corrupt.contains(file) {
                sum.corrupt.push(file.clone());
            }
        }
        sum
    }

    /// A counter by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// The errors by the names of their errnos.
    pub fn errors(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counters.iter().filter_map(|(name, n)| Some((name.strip_prefix("errors.")?, *n)))
    }
}

/// The words of a text. One that is not a number is 0.
fn words(text: &str) -> Vec<u64> {
    let digits = text.as_bytes().chunks(16).map(std::str::from_utf8);
    digits
        .map(|digits| digits.ok().and_then(|word| u64::from_str_radix(word, 16).ok()).unwrap_or(0))
        .collect()
}
