//! What is recorded: a tree of directories, files and links, and where the bytes of each file are.
//!
//! Invariant: a [`DirId`] or [`FileId`] is a position in `dirs` or `files` of its tree. Entries are sorted by the bytes
//! of their names.

use std::path::PathBuf;

use crate::library::digest::Digest;

/// The names and extensions that rcc does not record.
const LEFT_OUT: [&str; 7] = ["__MACOSX", "__pycache__", ".pyc", ".git", ".hg", ".svn", ".gitignore"];

/// Position in [`Tree::dirs`]. The root is the first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct DirId(pub(crate) usize);

/// Position in [`Tree::files`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FileId(pub(crate) usize);

/// The tree of an environment.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) dirs: Vec<Dir>,
    /// One for each inode, so that a file with several hard links is read once.
    pub(crate) files: Vec<File>,
}

#[derive(Debug)]
pub(crate) struct Dir {
    /// The whole `st_mode`, with the file type.
    pub(crate) mode: u32,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Dir(DirId),
    File(FileId),
    Link { text: String, target: Target },
}

/// What a link leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// A directory. None if it is not recorded.
    Dir(Option<DirId>),
    /// A file. None if it is not recorded, or if there is nothing.
    File(Option<FileId>),
}

/// A regular file.
#[derive(Debug)]
pub(crate) struct File {
    /// The whole `st_mode`, with the file type.
    pub(crate) mode: u32,
    pub(crate) content: Content,
}

/// Where the bytes of a file are.
#[derive(Debug)]
pub(crate) enum Content {
    /// In a file on the disk.
    OnDisk(OnDisk),
    /// In memory.
    Bytes(Vec<u8>),
    /// In the library already.
    Known(Facts),
    /// In the library from which the environment comes. Digest and size.
    Elsewhere(Digest, u64),
}

/// A file on the disk.
#[derive(Debug)]
pub(crate) struct OnDisk {
    /// One of its paths.
    pub(crate) path: PathBuf,
    /// The size at the time of the walk. Only used to distribute the work.
    pub(crate) size: u64,
    pub(crate) inode: (u64, u64),
}

/// What was found when a file was hashed.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// The offsets of the stage's name.
    pub(crate) rewrite: Vec<u64>,
}

impl Content {
    /// How many bytes are to be read.
    pub(crate) fn to_read(&self) -> u64 {
        match self {
            Self::OnDisk(file) => file.size,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Known(_) => 0,
            Self::Elsewhere(_, size) => *size,
        }
    }
}

/// Whether rcc skips entries of this name: the name or its extension is in the list.
pub(crate) fn is_left_out(name: &str) -> bool {
    let extension = name.rfind('.').and_then(|dot| name.get(dot..));
    LEFT_OUT.contains(&name) || extension.is_some_and(|extension| LEFT_OUT.contains(&extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_out_what_rcc_leaves_out() {
        for out in ["__pycache__", "a.pyc", "x.cpython-311.pyc", ".git", "project.git", "notes.svn", ".hg"] {
            assert!(is_left_out(out), "{out}");
        }
        for out in [".gitignore", "x.gitignore", "__MACOSX", ".pyc"] {
            assert!(is_left_out(out), "{out}");
        }
        for kept in ["x.PYC", ".gitkeep", ".github", "git", "a.pyc.bak", "x__pycache__", "a.__pycache__", "é"]
        {
            assert!(!is_left_out(kept), "{kept}");
        }
    }
}
