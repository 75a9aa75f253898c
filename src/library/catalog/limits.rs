//! How much of a catalog is read and kept, by the size of its file.
//!
//! gzip packs repetition a thousand times, so a small file can unpack to anything. Real catalogs unpack to 5 times
//! their size, and to 42 times where all files are empty; an entry takes 60 packed bytes, and then 6. Each limit has room for
//! some hundred thousand entries whatever the file's size, and grows with the file up to a limit that nothing exceeds.
//! `docs/SECURITY.md` states them.

use super::CatalogError;

/// The largest catalog file, in bytes: real ones take some megabytes.
pub(crate) const MAX_FILE: u64 = 128 << 20;
/// The longest text of a catalog, in bytes: a million files take about 300 MB.
const MAX_TEXT: u64 = 1 << 30;
/// The most entries of a tree. Real environments have up to some hundred thousand.
const MAX_ENTRIES: u64 = 1 << 21;
/// The most relocations of all files together.
const MAX_RELOCATIONS: u64 = 1 << 23;

/// The limits of one catalog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// Bytes of unpacked text.
    pub(super) text: u64,
    /// Entries, and distinct digests.
    pub(super) entries: usize,
    /// Distinct relocations.
    pub(super) relocations: usize,
}

impl Limits {
    /// Those of a file of this size.
    pub(crate) fn of(stored: u64) -> Self {
        let stored = stored.min(MAX_FILE);
        Self {
            text: ((16 << 20) + 128 * stored).min(MAX_TEXT),
            entries: ((1 << 18) + stored / 8).min(MAX_ENTRIES) as usize,
            relocations: ((1 << 16) + stored).min(MAX_RELOCATIONS) as usize,
        }
    }

    pub(super) fn too_large(what: &str, limit: impl Into<u64>) -> CatalogError {
        let limit = limit.into();
        CatalogError::TooLarge(format!(
            "it has more than {limit} {what}, which is too much for a file of its size"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_with_the_file_and_end() {
        let (small, middle, large) = (Limits::of(1000), Limits::of(4 << 20), Limits::of(u64::MAX));
        assert!(small.entries >= 250_000 && small.text < 20 << 20 && small.relocations < 100_000);
        assert!(middle.entries > small.entries && middle.text > small.text);
        // A million empty files, as gzip packs them.
        assert!(Limits::of(970_000 * 6).entries >= 970_000);
        assert_eq!(
            (large.text, large.entries as u64, large.relocations as u64),
            (MAX_TEXT, MAX_ENTRIES, MAX_RELOCATIONS)
        );
    }
}
