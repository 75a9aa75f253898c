//! Profiles record which files of an environment earlier mounts read, in the order of the first reads.
//!
//! A prefetch unpacks these files before a program asks for them. A profile is only a hint: one that is damaged, too
//! long, or of another environment is ignored.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cache_dir::{cached, make_dir};
use super::digest::Hex;
use super::index::NodeId;
use crate::sys::fd;
use crate::sys::guarded::{self, Durability};

/// The maximum number of files in a profile. Importing all of the largest environments reads a tenth of this.
const LIMIT: usize = 65_536;

/// Files in the order in which they were first read.
#[derive(Debug, Default)]
pub struct Touched {
    order: Vec<NodeId>,
    seen: HashSet<NodeId>,
}

impl Touched {
    /// Records that a file is read.
    pub fn add(&mut self, node: NodeId) {
        if self.order.len() < LIMIT && self.seen.insert(node) {
            self.order.push(node);
        }
    }

    #[must_use]
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    /// Whether adding these files would change the profile. Takes one look-up per file, however long the profile is.
    #[must_use]
    pub fn would_grow_by(&self, nodes: &[NodeId]) -> bool {
        self.order.len() < LIMIT && nodes.iter().any(|node| !self.seen.contains(node))
    }
}

/// The path of a catalog's profile in the cache directory.
#[must_use]
pub fn place(cache_dir: &Path, catalog_sha256: &[u8; 32]) -> PathBuf {
    cache_dir.join("profiles").join(Hex(catalog_sha256).to_string())
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// The SHA-256 of the catalog.
    catalog: String,
    nodes: Vec<u32>,
}

/// Reads the profile of an environment with `nodes` nodes. The file may be a symbolic link, but not a FIFO.
///
/// # Errors
/// When the file cannot be read, or belongs to another environment. [`io::ErrorKind::InvalidData`] when it is not a
/// complete profile.
pub fn read(path: &Path, catalog_sha256: &[u8; 32], nodes: u32) -> io::Result<Touched> {
    /// A number has at most ten digits and a comma.
    const LARGEST: u64 = 11 * LIMIT as u64 + 1024;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "not a complete profile");
    let (file, _) = fd::open_regular(path)?;
    let bytes = guarded::read_at_most(&file, LARGEST).map_err(|_| damaged())?;
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
    if stored.catalog != Hex(catalog_sha256).to_string() {
        return Err(io::Error::other("a profile of another environment"));
    }
    if stored.nodes.iter().any(|node| *node >= nodes) {
        return Err(damaged());
    }
    let mut touched = Touched::default();
    stored.nodes.into_iter().for_each(|node| touched.add(NodeId(node)));
    Ok(touched)
}

/// Writes a profile in one step: the files that `read` returned, then the new ones.
///
/// # Errors
/// When the file cannot be written. The old profile stays then.
pub fn write(path: &Path, catalog_sha256: &[u8; 32], known: Touched, new: &[NodeId]) -> io::Result<()> {
    let mut all = known;
    new.iter().for_each(|node| all.add(*node));
    let bytes = to_bytes(catalog_sha256, &all)?;
    if let Some(parent) = path.parent() {
        make_dir(parent).map_err(io::Error::other)?;
    }
    guarded::replace(path, cached(Durability::CacheOnly), &bytes)
}

/// The bytes of a profile.
///
/// # Errors
/// None is known.
pub fn to_bytes(catalog_sha256: &[u8; 32], files: &Touched) -> serde_json::Result<Vec<u8>> {
    let nodes = files.order().iter().map(|node| node.0).collect();
    serde_json::to_vec(&Stored { catalog: Hex(catalog_sha256).to_string(), nodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_is_read_back_in_order_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = place(dir.path(), &[7; 32]);
        write(&path, &[7; 32], Touched::default(), &[NodeId(5), NodeId(2), NodeId(5)]).unwrap();
        let first = read(&path, &[7; 32], 10).unwrap();
        assert_eq!(first.order(), [NodeId(5), NodeId(2)]);
        assert!(
            !first.would_grow_by(&[NodeId(2), NodeId(5)]) && first.would_grow_by(&[NodeId(2), NodeId(9)])
        );
        write(&path, &[7; 32], first, &[NodeId(9), NodeId(2)]).unwrap();
        assert_eq!(read(&path, &[7; 32], 10).unwrap().order(), [NodeId(5), NodeId(2), NodeId(9)]);
    }

    #[test]
    fn incomplete_or_foreign_profile_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = place(dir.path(), &[7; 32]);
        write(&path, &[7; 32], Touched::default(), &[NodeId(5), NodeId(2)]).unwrap();
        assert!(
            matches!(read(&path, &[8; 32], 10), Err(error) if error.to_string().contains("another environment"))
        );
        assert!(
            matches!(read(&path, &[7; 32], 5), Err(error) if error.kind() == io::ErrorKind::InvalidData),
            "a node that is not there"
        );
        let text = std::fs::read_to_string(&path).unwrap();
        for bad in [
            &text[..text.len() - 3],
            "",
            "something else\n",
            &text.replace("5,2", "52"),
            &text.replace('5', "x"),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(
                matches!(read(&path, &[7; 32], 10), Err(error) if error.kind() == io::ErrorKind::InvalidData),
                "{bad:?}"
            );
        }
        assert!(
            matches!(read(&dir.path().join("none"), &[7; 32], 10), Err(error) if error.kind() == io::ErrorKind::NotFound)
        );
        assert!(
            matches!(read(dir.path(), &[7; 32], 10), Err(error) if error.kind() == io::ErrorKind::InvalidData)
        );
    }

    #[test]
    fn profile_that_is_a_fifo_or_huge_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        assert!(
            matches!(read(&path, &[7; 32], 10), Err(error) if error.kind() == io::ErrorKind::InvalidData)
        );
        let path = dir.path().join("large");
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(
            matches!(read(&path, &[7; 32], 10), Err(error) if error.kind() == io::ErrorKind::InvalidData)
        );
    }

    #[test]
    fn largest_profile_is_compared_in_linear_time() {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let nodes: Vec<_> = (0..LIMIT as u32 - 1).rev().map(NodeId).collect();
            let mut known = Touched::default();
            nodes.iter().rev().for_each(|node| known.add(*node));
            // A hundred times, so that a comparison of all pairs would take minutes.
            send.send((0..100).any(|_| known.would_grow_by(&nodes))).unwrap();
        });
        assert!(!receive.recv_timeout(std::time::Duration::from_secs(60)).unwrap());
    }

    #[test]
    fn a_profile_is_bounded() {
        let mut touched = Touched::default();
        (0..LIMIT as u32 + 10).for_each(|node| touched.add(NodeId(node)));
        assert_eq!(touched.order().len(), LIMIT);
    }
}
