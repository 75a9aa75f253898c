//! Makes the state directory of a space that is a copy of another one.
//!
//! The new directory is made beside the others under a name that no space has, `fork.<identity>`, and gets its name by
//! one rename when it is complete and on the disk. A crash leaves a directory that the next fork or `holofs gc` removes.
//!
//! A file that came from the catalog names the directory of its space at the offsets that the catalog lists. In the copy,
//! the new name is written there, where the old one still stands. All else are the user's bytes and stay as they are, also
//! if they name the old space; [`NewSpace::mentions`] finds them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::copy::{Copied, Copy, CopyError, Edit};
use super::record::{Basis, SpaceRecord};
use super::state::is_locked;
use super::upper::walk::Walk;
use super::upper::{self, UpperError, entry};
use super::{SpaceError, lock};
use crate::library::index::place::{self, Step};
use crate::library::index::{Index, NodeId, NodeKind};
use crate::sys::fd::read_full;
use crate::sys::guarded::{Dir, Durability, Trust};
use crate::sys::tree;

/// The beginning of the name of an unfinished state directory.
const PREFIX: &str = "fork.";

/// A space that is being made.
#[derive(Debug)]
pub struct NewSpace {
    spaces: Dir,
    dir: Dir,
    identity: OsString,
    _lock: File,
}

impl NewSpace {
    /// Begins the state directory of the space `identity` in the directory of all state directories.
    ///
    /// # Errors
    /// [`SpaceError::Exists`], [`SpaceError::Busy`] while another process makes it, and those of making directories.
    pub fn begin(spaces_dir: &Path, identity: &str) -> Result<Self, SpaceError> {
        let spaces = Dir::make_ours(spaces_dir)?;
        let name = OsStr::new(identity);
        if spaces.stat(name).is_ok() {
            return Err(SpaceError::Exists(spaces_dir.join(name)));
        }
        sweep(&spaces);
        let part = OsString::from(format!("{PREFIX}{identity}"));
        let dir = spaces.make_dir(&part, Trust::Private)?;
        let busy = |pid| SpaceError::Busy { identity: identity.to_owned(), pid };
        let lock = lock::take(&dir, OsStr::new("lock"), 0o600, Duration::ZERO)?.map_err(busy)?;
        for sub in ["upper", "work", "reloc"] {
            dir.make_dir(OsStr::new(sub), Trust::Owned)?;
        }
        Ok(Self { spaces, dir, identity: name.to_owned(), _lock: lock })
    }

    /// The root of the new upper.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn upper(&self) -> Result<OwnedFd, SpaceError> {
        let path = self.dir.path().join("upper");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let opened = entry::open(self.dir.as_fd(), c"upper", flags);
        opened.map_err(|errno| SpaceError::io(&path)(errno.into()))
    }

    /// The files and links of the new upper that contain `name`, sorted. Reads all bytes of the new upper.
    ///
    /// # Errors
    /// When the upper cannot be read.
    pub fn mentions(&self, name: &str) -> Result<Vec<PathBuf>, SpaceError> {
        let upper = self.upper()?;
        let search = || -> Result<Vec<PathBuf>, UpperError> {
            let mut found = Vec::new();
            let mut walk = Walk::new(upper.as_fd())?;
            while let Some(visited) = walk.advance() {
                let visited = visited?;
                let (dir, entry_name) = (visited.dir, visited.listed.file_name());
                let Some(stat) = visited.stat()? else { continue };
                let os = |source| UpperError::Os { path: visited.path.to_owned(), call: "read", source };
                let has = match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile if stat.st_size >= name.len() as i64 => {
                        let file =
                            entry::open(dir, entry_name, OFlags::RDONLY | OFlags::NOFOLLOW).map_err(os)?;
                        holds(&File::from(file), name.as_bytes()).map_err(os)?
                    }
                    FileType::Symlink => {
                        let text = rustix::fs::readlinkat(dir, entry_name, Vec::new()).map_err(os)?;
                        memchr::memmem::find(text.to_bytes(), name.as_bytes()).is_some()
                    }
                    _ => false,
                };
                if has {
                    found.push(visited.path.to_owned());
                }
            }
            Ok(found)
        };
        search().map_err(|error| SpaceError::io(&self.dir.path().join("upper"))(error.into()))
    }

    /// Gives the space its name. It is on the disk then.
    ///
    /// # Errors
    /// [`SpaceError::Exists`] when there is such a space by now, and those of writing.
    pub fn publish(self, basis: Basis) -> Result<(), SpaceError> {
        let path = self.spaces.path().join(&self.identity);
        SpaceRecord::new(basis).write(self.dir.path(), Durability::DataAndName)?;
        self.dir.sync_filesystem()?;
        let part = OsString::from(format!("{PREFIX}{}", self.identity.to_string_lossy()));
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.spaces, &*part, &self.spaces, &*self.identity, flags) {
            Ok(()) => Ok(self.spaces.sync()?),
            Err(Errno::EXIST) => Err(SpaceError::Exists(path)),
            Err(errno) => Err(SpaceError::io(&path)(errno.into())),
        }
    }

    /// Removes what was made, after a failure.
    pub fn abandon(self) {
        let part = OsString::from(format!("{PREFIX}{}", self.identity.to_string_lossy()));
        if let Err(error) = tree::remove(&self.spaces, Path::new(&part)) {
            tracing::warn!(%error, "an unfinished space stays; the next fork removes it");
        }
    }
}

/// Removes what forks that were killed have left.
fn sweep(spaces: &Dir) {
    for name in names(spaces.path()) {
        if let Err(error) = remove(spaces, &name) {
            tracing::warn!(?name, %error, "cannot remove an unfinished space");
        }
    }
}

fn names(spaces_dir: &Path) -> impl Iterator<Item = OsString> {
    let names = std::fs::read_dir(spaces_dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
}

/// Removes an unfinished state directory, unless it is being made.
fn remove(spaces: &Dir, name: &OsStr) -> Result<(), SpaceError> {
    let dir = match spaces.open_dir(name, Trust::Private) {
        Err(error) if error.is_not_found() => return Ok(()),
        dir => dir?,
    };
    let Ok(_lock) = lock::take(&dir, OsStr::new("lock"), 0o600, Duration::ZERO)? else { return Ok(()) };
    tree::remove(spaces, Path::new(name)).map_err(|errno| SpaceError::io(dir.path())(errno.into()))
}

/// The unfinished state directories that nobody makes any more.
#[must_use]
pub fn unfinished(spaces_dir: &Path) -> Vec<PathBuf> {
    let paths = names(spaces_dir).map(|name| spaces_dir.join(name));
    let mut left: Vec<PathBuf> = paths.filter(|path| !is_locked(path)).collect();
    left.sort();
    left
}

/// Whether the name of a state directory is that of an unfinished one.
#[must_use]
pub fn is_unfinished(state_dir: &Path) -> bool {
    state_dir.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
}

/// Removes one of [`unfinished`], unless it is being made again by now.
///
/// # Errors
/// When it is not this user's, or cannot be removed.
pub fn remove_unfinished(state_dir: &Path) -> Result<(), SpaceError> {
    let spaces = Dir::open(state_dir.parent().unwrap_or(state_dir), Trust::Private)?;
    remove(&spaces, state_dir.file_name().unwrap_or_default())
}

/// What changes in the files of a fork: the names of the two spaces, and their paths, of equal length, if the files name
/// other paths than the catalog says.
#[derive(Clone, Copy, Debug)]
pub struct Renamed<'a> {
    /// The names.
    pub name: (&'a str, &'a str),
    /// The paths.
    pub path: Option<(&'a str, &'a str)>,
}

/// Writes the new name over the old one at the offsets at which the catalog relocates a node, where the old one still
/// stands. Likewise the new path.
///
/// # Errors
/// When the file cannot be read or written.
pub fn rename_in(index: &Index, node: NodeId, file: &File, renamed: Renamed<'_>) -> io::Result<()> {
    let NodeKind::File { relocations, .. } = index.node(node)?.kind else { return Ok(()) };
    let places = match (&index.info().placed, renamed.path) {
        (Some(placed), Some(_)) => place::places(relocations, index.info().path.len(), placed.path.len()),
        _ => relocations.iter().map(|offset| (offset.get(), Step::Name)).collect(),
    };
    for (offset, step) in places {
        let (old, new) = match (step, renamed.path) {
            (Step::Path, Some(path)) => path,
            _ => renamed.name,
        };
        let mut found = vec![0; old.len()];
        if read_full(file, offset, &mut found)? == old.len() && found == old.as_bytes() {
            file.write_all_at(new.as_bytes(), offset)?;
        }
    }
    Ok(())
}

/// Copies an upper in passes; see the module `copy`. `frozen` is called after the first pass, and returns once nothing changes any
/// more. `settle` is how often to look again for files that change nevertheless. `each` is called for each
/// entry, to show progress.
///
/// # Errors
/// Those of copying and of `frozen`. None when files changed again and again.
pub fn copy<E: From<CopyError>, F>(
    from: &OwnedFd,
    to: OwnedFd,
    (edit, each): (Edit<'_>, &dyn Fn()),
    settle: u32,
    frozen: impl FnOnce() -> Result<F, E>,
) -> Result<Option<(Copied, F)>, E> {
    let mut copy = Copy::new(from.as_fd(), to);
    copy.pass(false, edit, each)?;
    let frozen = frozen()?;
    let mut left = settle;
    loop {
        let changed = copy.pass(true, edit, each)?;
        if settle == 0 || changed == 0 {
            break;
        }
        if left == 0 {
            return Ok(None);
        }
        left -= 1;
        std::thread::sleep(Duration::from_millis(25));
    }
    Ok(Some((copy.finish()?, frozen)))
}

/// Whether a file contains a name.
fn holds(file: &File, name: &[u8]) -> Result<bool, Errno> {
    const PIECE: usize = 256 * 1024;
    let finder = memchr::memmem::Finder::new(name);
    let mut buffer = vec![0; PIECE + name.len()];
    let mut at = 0;
    loop {
        // Pieces overlap, because a name can stand where two of them meet.
        let read = read_full(file, at, &mut buffer)?;
        if finder.find(buffer.get(..read).unwrap_or_default()).is_some() {
            return Ok(true);
        }
        if read < buffer.len() {
            return Ok(false);
        }
        at += PIECE as u64;
    }
}

/// Whether there are plain files at the place of a space that has no state directory.
///
/// # Errors
/// When the directory exists and cannot be read.
pub fn is_taken(place: &Path) -> Result<bool, SpaceError> {
    match upper::open(place) {
        Ok(None) => Ok(false),
        Ok(Some(dir)) => {
            let first = entry::list(dir.as_fd()).and_then(|mut listed| listed.next().transpose());
            first.map(|first| first.is_some()).map_err(|error| SpaceError::io(place)(error.into()))
        }
        Err(error) => Err(SpaceError::io(place)(error.into())),
    }
}
