//! Relocation: the space's name written over the stage's name, at the offsets that the catalog lists.
//!
//! Not a search (the recorder does that) and not a decision about which file: it works on bytes, or on a file
//! that is already private. Invariant: the size never changes, since both names are [`NAME_LEN`] bytes, and an
//! offset at which the stage's name does not stand is an error, since then catalog and blob disagree.

use std::fs::File;
use std::os::unix::fs::FileExt;

pub use crate::library::NAME_LEN;

/// The pair of names of one space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// The stage's name, as recorded.
    pub from: [u8; NAME_LEN],
    /// The space's name.
    pub to: [u8; NAME_LEN],
}

/// Why a file could not be relocated.
#[derive(Debug, thiserror::Error)]
pub enum RelocateError {
    /// The offset lies beyond the content.
    #[error("relocation at byte {offset} lies beyond the end of the file")]
    OutOfBounds {
        /// The offset.
        offset: u64,
    },
    /// Something else stands there.
    #[error("relocation at byte {offset}: the recorded name is not there")]
    NameNotThere {
        /// The offset.
        offset: u64,
    },
    /// Reading or writing the private file failed.
    #[error("relocation at byte {offset}: {source}")]
    Io {
        /// The offset.
        offset: u64,
        /// The reason.
        source: std::io::Error,
    },
}

/// Patches content in memory.
///
/// # Errors
/// When an offset is out of bounds or does not hold the recorded name.
pub fn patch_bytes(
    content: &mut [u8],
    offsets: impl Iterator<Item = u64>,
    names: &Names,
) -> Result<(), RelocateError> {
    for offset in offsets {
        let slot = usize::try_from(offset)
            .ok()
            .and_then(|start| content.get_mut(start..start.checked_add(NAME_LEN)?))
            .ok_or(RelocateError::OutOfBounds { offset })?;
        if slot != names.from {
            return Err(RelocateError::NameNotThere { offset });
        }
        slot.copy_from_slice(&names.to);
    }
    Ok(())
}

/// Patches a private file.
///
/// # Errors
/// As [`patch_bytes`], and when the file cannot be read or written.
pub fn patch_file(
    file: &File,
    offsets: impl Iterator<Item = u64>,
    names: &Names,
) -> Result<(), RelocateError> {
    let mut found = [0u8; NAME_LEN];
    for offset in offsets {
        file.read_exact_at(&mut found, offset).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => RelocateError::OutOfBounds { offset },
            _ => RelocateError::Io { offset, source },
        })?;
        if found != names.from {
            return Err(RelocateError::NameNotThere { offset });
        }
        file.write_all_at(&names.to, offset).map_err(|source| RelocateError::Io { offset, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names = Names { from: *b"h720c7a8_493f813dad24d3t", to: *b"720c7a8_5a1fac3_9fcd2534" };

    #[test]
    fn bytes_and_file_agree() {
        let mut bytes = b"#!/x/h720c7a8_493f813dad24d3t/bin/python\nh720c7a8_493f813dad24d3t".to_vec();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        patch_bytes(&mut bytes, [5, 41].into_iter(), &NAMES).unwrap();
        patch_file(&file, [5, 41].into_iter(), &NAMES).unwrap();
        assert_eq!(bytes, b"#!/x/720c7a8_5a1fac3_9fcd2534/bin/python\n720c7a8_5a1fac3_9fcd2534");
        let mut from_file = vec![0; bytes.len()];
        file.read_exact_at(&mut from_file, 0).unwrap();
        assert_eq!(from_file, bytes);
    }

    #[test]
    fn out_of_bounds_is_refused() {
        let error = patch_bytes(&mut [0u8; 30], [7].into_iter(), &NAMES).unwrap_err();
        assert!(matches!(error, RelocateError::OutOfBounds { offset: 7 }));
        let error = patch_bytes(&mut [0u8; 30], [u64::MAX].into_iter(), &NAMES).unwrap_err();
        assert!(matches!(error, RelocateError::OutOfBounds { .. }));
    }

    #[test]
    fn another_name_is_refused() {
        let error = patch_bytes(&mut [b'x'; 30], [0].into_iter(), &NAMES).unwrap_err();
        assert!(matches!(error, RelocateError::NameNotThere { offset: 0 }));
    }
}
