//! The entries of an index, as its readers see them.

use std::io;
use std::ops::Range;

use zerocopy::little_endian::U64;

use crate::library::digest::Digest;

/// A node, by its position in the index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u32);

/// The index is damaged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the compiled index is damaged: {0}")]
pub struct IndexError(pub &'static str);

impl From<IndexError> for io::Error {
    fn from(error: IndexError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

#[derive(Clone, Debug)]
pub struct Node<'a> {
    pub id: NodeId,
    /// The directory. The root's is the root.
    pub parent: NodeId,
    /// Empty for the root.
    pub name: &'a [u8],
    pub kind: NodeKind<'a>,
}

/// The kind of a node.
#[derive(Clone, Debug)]
pub enum NodeKind<'a> {
    /// A directory.
    Dir {
        /// The ids of the children.
        children: Range<u32>,
        /// The number of children that are directories.
        subdirs: u32,
    },
    /// A regular file.
    File {
        /// In bytes.
        size: u64,
        /// Permission bits with setuid, setgid and sticky (07777).
        perm: u32,
        digest: Digest,
        /// Where the stage's name stands in the file. In an index for another path, the words of the file: see
        /// [`super::place::Step`]. Empty for a file that equals its blob.
        relocations: Relocations<'a>,
        /// The size of the blob. It differs from the size of the file only in an index for another path.
        stored: u64,
    },
    /// A symbolic link.
    Symlink { target: &'a [u8] },
}

/// The offsets at which a file is relocated: ascending, without repeats, each with room for the name.
pub type Relocations<'a> = &'a [U64];
