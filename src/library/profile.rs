//! Profiles: which files of an environment were read in earlier mounts, in the order in which they were first.
//!
//! What is in one is advice and nothing more: it says what is worth unpacking before it is asked for. Invariant: a
//! profile that is damaged, too long or of another environment is as good as none.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::digest::Hex;
use super::index::NodeId;
use super::index::cache::{cached, make_dir};
use crate::sys::guarded::{self, Durability};

/// The most files of one profile: an import of the largest environments reads a tenth of it.
const LIMIT: usize = 65_536;

/// The first line of the format that this module writes.
const HEADER: &str = "holofs profile 1";

/// Files in the order in which they were first read.
#[derive(Debug, Default)]
pub struct Touched {
    order: Vec<NodeId>,
    seen: HashSet<NodeId>,
}

impl Touched {
    /// Notes that a file is read.
    pub fn add(&mut self, node: NodeId) {
        if self.order.len() < LIMIT && self.seen.insert(node) {
            self.order.push(node);
        }
    }

    /// What was noted.
    #[must_use]
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    /// What was noted, without what it takes to note more.
    #[must_use]
    pub fn into_order(self) -> Vec<NodeId> {
        self.order
    }

    /// Whether noting these would add something. It asks once for each, however much was noted.
    #[must_use]
    pub fn would_grow_by(&self, nodes: &[NodeId]) -> bool {
        self.order.len() < LIMIT && nodes.iter().any(|node| !self.seen.contains(node))
    }
}

/// Where the profile of a catalog is, in the cache.
#[must_use]
pub fn place(cache_dir: &Path, catalog_sha256: &[u8; 32]) -> PathBuf {
    cache_dir.join("profiles").join(Hex(catalog_sha256).to_string())
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no profile, or not a whole one.
    #[error("not a whole profile")]
    Damaged,
    /// It was made of another environment.
    #[error("the profile of another environment")]
    Other,
}

/// Reads a profile of an environment with so many nodes.
///
/// # Errors
/// See [`ProfileError`].
pub fn read(path: &Path, catalog_sha256: &[u8; 32], nodes: u32) -> Result<Touched, ProfileError> {
    let text = text_of(path)?;
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Err(ProfileError::Damaged);
    }
    if lines.next() != Some(&catalog_line(catalog_sha256)) {
        return Err(ProfileError::Other);
    }
    let mut touched = Touched::default();
    for line in lines {
        if let Some(count) = line.strip_prefix("end ") {
            let whole = count.parse() == Ok(touched.order.len());
            return if whole { Ok(touched) } else { Err(ProfileError::Damaged) };
        }
        match line.parse() {
            Ok(node) if node < nodes => touched.add(NodeId(node)),
            _ => return Err(ProfileError::Damaged),
        }
    }
    Err(ProfileError::Damaged)
}

/// The text of a profile, which may be a link but no FIFO, and no more than one holds.
fn text_of(path: &Path) -> Result<String, ProfileError> {
    /// The longest line has ten digits; the first two and the last are short.
    const LARGEST: u64 = 11 * LIMIT as u64 + 1024;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?);
    if !file.metadata()?.is_file() {
        return Err(ProfileError::Damaged);
    }
    let bytes = guarded::read_at_most(&file, LARGEST).map_err(|_| ProfileError::Damaged)?;
    String::from_utf8(bytes).map_err(|_| ProfileError::Damaged)
}

/// Writes a profile in one step: what `read` gave before, then what is new.
///
/// # Errors
/// What writing may answer; the old profile stays then.
pub fn write(path: &Path, catalog_sha256: &[u8; 32], known: Touched, new: &[NodeId]) -> io::Result<()> {
    let mut all = known;
    new.iter().for_each(|node| all.add(*node));
    let mut text = format!("{HEADER}\n{}\n", catalog_line(catalog_sha256));
    for node in all.order() {
        text.push_str(&format!("{}\n", node.0));
    }
    text.push_str(&format!("end {}\n", all.order.len()));
    if let Some(parent) = path.parent() {
        make_dir(parent).map_err(io::Error::other)?;
    }
    guarded::replace(path, cached(Durability::CacheOnly), text.as_bytes())
}

fn catalog_line(catalog_sha256: &[u8; 32]) -> String {
    format!("catalog {}", Hex(catalog_sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_comes_back_in_its_order_and_grows() {
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
    fn a_profile_that_is_not_whole_or_not_of_this_environment_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = place(dir.path(), &[7; 32]);
        write(&path, &[7; 32], Touched::default(), &[NodeId(5), NodeId(2)]).unwrap();
        assert!(matches!(read(&path, &[8; 32], 10), Err(ProfileError::Other)));
        assert!(matches!(read(&path, &[7; 32], 5), Err(ProfileError::Damaged)), "a node that is not there");
        let text = std::fs::read_to_string(&path).unwrap();
        for bad in [
            &text[..text.len() - 3],
            "",
            "something else\n",
            &text.replace("\n2\n", "\n"),
            &text.replace('5', "x"),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(read(&path, &[7; 32], 10), Err(ProfileError::Damaged)), "{bad:?}");
        }
        assert!(matches!(read(&dir.path().join("none"), &[7; 32], 10), Err(ProfileError::Io(_))));
        assert!(matches!(read(dir.path(), &[7; 32], 10), Err(ProfileError::Damaged)));
    }

    #[test]
    fn a_profile_that_is_no_file_or_has_no_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(read(&path, &[7; 32], 10), Err(ProfileError::Damaged)));
        let path = dir.path().join("large");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(read(&path, &[7; 32], 10), Err(ProfileError::Damaged)));
    }

    #[test]
    fn the_largest_profile_is_compared_before_anybody_tires_of_it() {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let nodes: Vec<_> = (0..LIMIT as u32 - 1).rev().map(NodeId).collect();
            let mut known = Touched::default();
            nodes.iter().rev().for_each(|node| known.add(*node));
            // A hundred times, so that looking at every pair would take minutes.
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
