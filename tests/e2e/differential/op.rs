//! The operations on a tree. Paths are relative to its root.

use rustix::fs::{FallocateFlags, RenameFlags};

/// One operation, with everything that is needed to repeat it.
#[derive(Clone, Debug)]
pub enum Op {
    Write {
        path: String,
        how: How,
        at: u64,
        len: usize,
        fill: u8,
    },
    Read {
        path: String,
    },
    Truncate {
        path: String,
        len: u64,
    },
    Mkdir {
        path: String,
        mode: u32,
    },
    Rmdir {
        path: String,
    },
    Unlink {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        flags: RenameFlags,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        target: String,
        path: String,
    },
    Readlink {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    SetTime {
        path: String,
        seconds: i64,
    },
    SetXattr {
        path: String,
        name: &'static str,
        len: usize,
    },
    GetXattr {
        path: String,
        name: &'static str,
    },
    RemoveXattr {
        path: String,
        name: &'static str,
    },
    ListXattr {
        path: String,
    },
    List {
        path: String,
    },
    Stat {
        path: String,
    },
    Mkfifo {
        path: String,
    },
    Fallocate {
        path: String,
        flags: FallocateFlags,
        at: u64,
        len: u64,
    },
    CopyRange {
        from: String,
        to: String,
        at: u64,
        put: u64,
        len: usize,
    },
    Open {
        slot: usize,
        path: String,
        how: How,
    },
    WriteOpen {
        slot: usize,
        at: u64,
        len: usize,
        fill: u8,
    },
    ReadOpen {
        slot: usize,
        at: u64,
        len: usize,
    },
    TruncateOpen {
        slot: usize,
        len: u64,
    },
    StatOpen {
        slot: usize,
    },
    /// Writes through a shared map of the open file.
    MapOpen {
        slot: usize,
        at: usize,
        fill: u8,
    },
    /// Maps the open file and keeps the map even if the file is closed.
    KeepMap {
        slot: usize,
    },
    /// Reads the kept map up to the end of the file.
    ReadMap {
        slot: usize,
    },
    /// Writes to the kept map.
    WriteMap {
        slot: usize,
        at: usize,
        fill: u8,
    },
    Close {
        slot: usize,
    },
    Remount,
    Kill,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub enum How {
    Read,
    Write,
    ReadWrite,
    Truncate,
    Append,
    Create,
    CreateNew,
}

impl How {
    pub fn options(self) -> std::fs::OpenOptions {
        let mut options = std::fs::OpenOptions::new();
        match self {
            Self::Read => options.read(true),
            Self::Write => options.write(true),
            Self::ReadWrite => options.read(true).write(true),
            Self::Truncate => options.write(true).truncate(true),
            Self::Append => options.append(true),
            Self::Create => options.read(true).write(true).create(true),
            Self::CreateNew => options.read(true).write(true).create_new(true),
        };
        options
    }
}
