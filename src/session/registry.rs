//! Finds live mounts in mountinfo. A remembered path is not enough: a mount moves when a directory above it is renamed.
//!
//! Invariant: the mount of a space is a complete FUSE mount of our type that this user made, and its source names the
//! space and the directory of its state. If one of several has the device number in `run.json`, it is the mount.

use std::path::Path;

use super::error::Error;
use crate::space::path::resolved;
use crate::space::record::recorded_place;
use crate::space::run::{RunInfo, read_run};
use crate::sys::mountinfo::{self, MountEntry};

/// The mounts of the spaces of one home, read once.
#[derive(Debug)]
pub struct Registry {
    mounts: Vec<MountEntry>,
}

impl Registry {
    /// Reads mountinfo. `spaces_dir` holds the state directories.
    ///
    /// # Errors
    /// When mountinfo cannot be read.
    pub fn read(spaces_dir: &Path) -> Result<Self, Error> {
        let mounts = mountinfo::holofs_mounts_of(spaces_dir).map_err(unreadable)?;
        Ok(Self { mounts })
    }

    /// The identities of the mounted spaces, sorted, each once.
    #[must_use]
    pub fn identities(&self) -> Vec<&str> {
        let mut found: Vec<&str> = self.mounts.iter().filter_map(MountEntry::identity).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The mount of the space whose state is in `state_dir`. There can be several: bind mounts of the space, and dead mounts
    /// of earlier daemons. The one with the recorded device number is chosen, then the one at the recorded place.
    #[must_use]
    pub fn find(&self, state_dir: &Path, run: Option<&RunInfo>) -> Option<&MountEntry> {
        let identity = state_dir.file_name().and_then(|name| name.to_str());
        let mut fitting: Vec<&MountEntry> =
            self.mounts.iter().filter(|mount| mount.identity() == identity).collect();
        let dev = run.and_then(|run| run.dev.as_deref());
        if fitting.iter().any(|mount| Some(mount.dev.as_str()) == dev) {
            fitting.retain(|mount| Some(mount.dev.as_str()) == dev);
        }
        let ([first, _, ..] | [first]) = fitting.as_slice() else { return None };
        if fitting.len() == 1 {
            return Some(first);
        }
        // The first one is the mount, and later ones are bind mounts of it, unless one of those is at the recorded place.
        let place = recorded_place(state_dir, run).map(|place| resolved(&place));
        Some(fitting.iter().rfind(|mount| Some(&mount.mountpoint) == place.as_ref()).unwrap_or(first))
    }
}

/// The mount of the space whose state is in `state_dir`.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn find(state_dir: &Path) -> Result<Option<MountEntry>, Error> {
    let registry = Registry::read(state_dir.parent().unwrap_or(state_dir))?;
    Ok(registry.find(state_dir, read_run(state_dir).as_ref()).cloned())
}

/// Whether the filesystem of this mount is still mounted somewhere in this mount namespace.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn is_mounted(mount: &MountEntry) -> Result<bool, Error> {
    Ok(places_of(mount)?.iter().any(|other| other.root == mount.root))
}

/// The mounts of the same filesystem, this one included.
pub(super) fn places_of(mount: &MountEntry) -> Result<Vec<MountEntry>, Error> {
    let mut mounts = mountinfo::mounts().map_err(unreadable)?;
    mounts.retain(|other| other.is_same_filesystem(mount));
    Ok(mounts)
}

/// The mount source of the space whose state is in `state_dir`.
///
/// # Errors
/// When the directory of the spaces cannot be accessed.
pub(super) fn source_of(state_dir: &Path) -> Result<String, Error> {
    mountinfo::source_of(state_dir).map_err(Error::os(state_dir, "stat"))
}

pub(super) fn unreadable(error: std::io::Error) -> Error {
    Error::os("/proc/self/mountinfo", "read")(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(lines: &[&str]) -> Registry {
        let text: Vec<String> = lines
            .iter()
            .map(|line| {
                let (head, identity) = line.split_once('=').unwrap();
                format!("{head} rw - fuse.holofs holofs:{identity}@1.2 rw,user_id=0")
            })
            .collect();
        Registry { mounts: mountinfo::parse(text.join("\n").as_bytes()) }
    }

    fn run(dev: &str, mountpoint: &str) -> RunInfo {
        RunInfo { dev: Some(dev.into()), mountpoint: mountpoint.into(), ..RunInfo::default() }
    }

    fn place(registry: &Registry, run: Option<&RunInfo>) -> Option<String> {
        let found = registry.find(Path::new("/no/spaces/id"), run)?;
        Some(found.mountpoint.display().to_string())
    }

    #[test]
    fn recorded_device_then_recorded_place_decide() {
        let of =
            registry(&["1 0 0:50 / /dead=id", "2 0 0:51 / /a=id", "3 0 0:51 / /b=id", "4 0 0:52 / /c=other"]);
        assert_eq!(place(&of, Some(&run("0:51", "/b"))).unwrap(), "/b");
        assert_eq!(place(&of, Some(&run("0:51", "/a"))).unwrap(), "/a");
        // It has moved: the first is the mount, the second a bind mount of it.
        assert_eq!(place(&of, Some(&run("0:51", "/moved"))).unwrap(), "/a");
        assert_eq!(place(&of, Some(&run("0:50", "/x"))).unwrap(), "/dead");
        assert_eq!(place(&of, None).unwrap(), "/dead");
        assert_eq!(of.identities(), ["id", "other"]);
    }

    #[test]
    fn part_of_a_space_is_not_the_space() {
        let of = registry(&["1 0 0:50 / /m=id", "2 0 0:50 /lib /bound=id"]);
        assert_eq!(place(&of, Some(&run("0:50", "/bound"))).unwrap(), "/m");
        assert_eq!(place(&registry(&["2 0 0:50 /lib /bound=id"]), Some(&run("0:50", "/bound"))), None);
    }
}
