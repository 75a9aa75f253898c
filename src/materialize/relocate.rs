//! Relocation: writes the space's name over the stage's name, at the offsets that the catalog lists.
//!
//! The recorder has searched for these offsets. Here they are applied, to bytes in memory or to a private file.
//!
//! Invariants: the size never changes, because both names are [`NAME_LEN`] bytes long. An offset at which the stage's name
//! is missing is an error, because then the catalog and the blob do not belong together.

use std::fs::File;
use std::os::unix::fs::FileExt;

pub use crate::library::NAME_LEN;

/// The two names of a relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// The stage's name, which the library's files contain.
    pub from: [u8; NAME_LEN],
    /// The space's name.
    pub to: [u8; NAME_LEN],
}

/// Why a file could not be relocated.
#[derive(Debug, thiserror::Error)]
pub enum RelocateError {
    /// The offset is beyond the end of the file.
    #[error("relocation at byte {offset} lies beyond the end of the file")]
    OutOfBounds {
        /// In bytes.
        offset: u64,
    },
    /// The file has other bytes at the offset.
    #[error("relocation at byte {offset}: the recorded name is not there")]
    NameNotThere {
        /// In bytes.
        offset: u64,
    },
    /// The file would have another size than the index says.
    #[error("it has {made} bytes or more, and not {size}")]
    OtherSize {
        /// In bytes.
        made: u64,
        /// In bytes.
        size: u64,
    },
    /// Reading or writing the private file failed.
    #[error("relocation at byte {offset}: {source}")]
    Io {
        /// In bytes.
        offset: u64,
        /// The error.
        source: std::io::Error,
    },
}

/// Relocates content in memory.
///
/// # Errors
/// When an offset is out of bounds, or the stage's name is not there.
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

/// Relocates a piece of a file that begins at byte `at`. A name can begin before the piece, or end after it. The bytes that
/// are replaced are not checked.
pub fn patch_piece(piece: &mut [u8], at: u64, offsets: impl Iterator<Item = u64>, names: &Names) {
    for offset in offsets {
        for (place, byte) in (offset..).zip(names.to) {
            let slot = place.checked_sub(at).and_then(|place| usize::try_from(place).ok());
            if let Some(slot) = slot.and_then(|place| piece.get_mut(place)) {
                *slot = byte;
            }
        }
    }
}

/// Relocates a private file.
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
    fn pieces_make_the_whole() {
        let bytes = b"#!/x/h720c7a8_493f813dad24d3t/bin/python\nh720c7a8_493f813dad24d3t".to_vec();
        let mut whole = bytes.clone();
        patch_bytes(&mut whole, [5, 41].into_iter(), &NAMES).unwrap();
        for len in [1, 7, 24, 30, 100] {
            let mut pieces = bytes.clone();
            for (n, piece) in pieces.chunks_mut(len).enumerate() {
                patch_piece(piece, (n * len) as u64, [5, 41].into_iter(), &NAMES);
            }
            assert_eq!(pieces, whole, "{len}");
        }
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
