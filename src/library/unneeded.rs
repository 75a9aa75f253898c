//! What `gc` removes from the caches of indexes, profiles and bytecode.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::cache_dir::{SETTLED, is_past};
use super::index::cache::{index_path, note_path, noted_sum};
use super::index::{find, place};
use super::{Library, LibraryError, bytecode};

/// The files in the caches of indexes, profiles and bytecode that none of the known catalogs needs, with their sizes in bytes:
/// those of catalogs that are gone, indexes of other versions, and temporary files of killed processes. Files
/// that were written in the last hour may belong to a catalog that is not known yet. `sums` are the SHA-256 sums of further
/// catalogs that are needed.
///
/// # Errors
/// When the catalogs of a library cannot be listed. Then nobody knows what is needed.
pub fn unneeded(
    libraries: &[&dyn Library],
    mut sums: BTreeSet<String>,
    index_dir: &Path,
    profile_dir: &Path,
    bytecode_dir: &Path,
) -> Result<Vec<(PathBuf, u64)>, LibraryError> {
    let mut needed = BTreeSet::new();
    for library in libraries {
        for entry in library.catalogs()?.entries {
            let note = note_path(*library, &entry.name, index_dir);
            sums.extend(noted_sum(&note));
            needed.insert(note);
        }
    }
    for sum in &sums {
        needed.insert(index_path(index_dir, sum));
        needed.insert(index_dir.join(find::name_of(sum)));
        needed.insert(bytecode_dir.join(bytecode::file_name(sum)));
        needed.insert(profile_dir.join(sum));
        // The space that was restored last.
        needed.insert(profile_dir.join(format!("{sum}.restored")));
    }
    let mut unneeded = Vec::new();
    for dir in [index_dir, profile_dir, bytecode_dir] {
        let entries = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(LibraryError::io(dir))?,
        };
        for entry in entries {
            let entry = entry.map_err(LibraryError::io(dir))?;
            let Ok(found) = entry.metadata() else { continue };
            let is_old = found.modified().is_ok_and(|modified| is_past(modified, SETTLED));
            let is_placed = |name: &str| place::catalog_of(name).is_some_and(|sum| sums.contains(sum));
            let is_needed =
                needed.contains(&entry.path()) || entry.file_name().to_str().is_some_and(is_placed);
            if found.is_file() && is_old && !is_needed {
                unneeded.push((entry.path(), found.len()));
            }
        }
    }
    unneeded.sort();
    Ok(unneeded)
}
