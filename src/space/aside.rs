//! Keeps the changes of a space that rcc has deleted.
//!
//! ```text
//! $HOLOFS_HOME/spaces/<identity>/aside.<N>/
//!   state.json  which catalog the changes are based on
//!   upper/      the changes
//! ```
//!
//! holofs never reads or removes these directories. Invariant: the changes are moved by one rename, after their record
//! was copied. So at every instant they are complete, in one of the two places, and beside a record.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::space::SpaceError;
use crate::space::record;
use crate::space::state::{StateDir, make_private_dir, sync_dir, unused};
use crate::space::upper::entry::{self, OnDisk};
use crate::space::upper::mark::Mark;
use crate::space::upper::{self, UpperError};
use crate::sys::guarded::{self, Durability, Replace, Writers};

const PREFIX: &str = "aside.";

/// Moves the changes of a space aside, and returns the directory. Returns None if the upper's root has only whiteouts, as
/// after `rcc holotree delete` of a mounted space: there is nothing to keep, and the caller may drop the upper.
///
/// # Errors
/// When the changes cannot be moved. They are still in the space.
pub fn set_aside(state: &StateDir) -> Result<Option<PathBuf>, SpaceError> {
    let upper = state.upper();
    if !has_entries(&upper)? {
        return Ok(None);
    }
    let dir = unused(state.path(), PREFIX);
    make_private_dir(&dir)?;
    let (from, to) = (state.path().join(record::FILE), dir.join(record::FILE));
    // Synced before the changes move: without a record nobody can tell what the changes are based on.
    let how = Replace { mode: 0o600, writers: Writers::One, durability: Durability::DataAndName };
    guarded::read(&from, record::MAX_LEN)
        .map_err(io::Error::from)
        .and_then(|record| guarded::replace(&to, how, &record))
        .map_err(SpaceError::io(&to))?;
    let to = dir.join("upper");
    std::fs::rename(&upper, &to).map_err(SpaceError::io(&to))?;
    make_private_dir(&upper)?;
    sync_dir(&dir)?;
    sync_dir(state.path())?;
    tracing::info!(path = %dir.display(), "rcc has deleted the space: its changes are kept aside");
    Ok(Some(dir))
}

/// The directories with changes of this space that were moved aside, in no order.
#[must_use]
pub fn list(state_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state_dir).into_iter().flatten().flatten();
    let is_aside = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
            && path.join("upper").is_dir()
    };
    entries.map(|entry| entry.path()).filter(is_aside).collect()
}

/// Whether the root of the upper has entries other than whiteouts.
fn has_entries(upper: &Path) -> Result<bool, SpaceError> {
    let look = || -> Result<bool, UpperError> {
        let Some(root) = upper::open(upper)? else { return Ok(false) };
        for listed in entry::list(root.as_fd())? {
            match OnDisk::read(root.as_fd(), &listed?, false) {
                Ok(on_disk) if on_disk.mark == Some(Mark::Gone) => {}
                // A damaged entry may be the user's work, too.
                Ok(_) | Err(UpperError::Damaged { .. }) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    };
    look().map_err(|error| SpaceError::io(upper)(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_moved_whole_and_each_time_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_locked(&dir.path().join("s")).unwrap();
        std::fs::write(state.path().join("state.json"), "{}").unwrap();
        assert_eq!(set_aside(&state).unwrap(), None);
        let mut kept = Vec::new();
        for text in ["one", "two"] {
            std::fs::write(state.upper().join("mine"), text).unwrap();
            let aside = set_aside(&state).unwrap().unwrap();
            assert_eq!(std::fs::read_to_string(aside.join("upper/mine")).unwrap(), text);
            assert!(aside.join("state.json").exists());
            assert_eq!(std::fs::read_dir(state.upper()).unwrap().count(), 0);
            kept.push(aside);
        }
        let mut found = list(state.path());
        found.sort();
        assert_eq!(found, kept);
    }
}
