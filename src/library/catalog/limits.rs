//! How much of a catalog is read and kept, depending on the size of its file.
//!
//! gzip compresses repetition by a factor of a thousand, so a small file can unpack to any size. Real catalogs unpack
//! to 5 times their size, or to 42 times if all files are empty. An entry takes 60 compressed bytes, or 6 if all files
//! are empty. Each limit leaves room for some hundred thousand entries in a file of any size, and grows with the file
//! up to a fixed maximum. `docs/SECURITY.md` lists them.

use super::CatalogError;

/// The largest catalog file in bytes. Real ones have some megabytes.
pub(crate) const MAX_FILE: u64 = 128 << 20;
/// The longest text of a catalog in bytes. A million files take about 300 MB.
const MAX_TEXT: u64 = 1 << 30;
/// The maximum number of entries. Real environments have up to some hundred thousand.
const MAX_ENTRIES: u64 = 1 << 21;
/// The maximum number of relocations of all files together.
const MAX_RELOCATIONS: u64 = 1 << 23;

/// The limits for one catalog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// Bytes of unpacked text.
    pub(super) text: u64,
    /// The number of entries, and of distinct digests.
    pub(super) entries: usize,
    /// The number of distinct relocations.
    pub(super) relocations: usize,
}

impl Limits {
    /// The limits for a file of `stored` bytes.
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
        CatalogError::TooLarge(format!("more than {limit} {what}, which is too much for a file of this size"))
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
        // A million empty files take 6 compressed bytes each.
        assert!(Limits::of(970_000 * 6).entries >= 970_000);
        assert_eq!(
            (large.text, large.entries as u64, large.relocations as u64),
            (MAX_TEXT, MAX_ENTRIES, MAX_RELOCATIONS)
        );
    }
}
