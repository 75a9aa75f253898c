//! Wrappers of system calls and of files in `/proc` and `/sys`: mounts, forks, memory mappings, ioctls, checked
//! directories. It knows nothing of spaces and libraries. All `unsafe` code of the program is here.

pub mod backing;
pub mod boot;
pub mod confinement;
pub mod crash;
pub mod fd;
pub mod filesystem;
pub mod fuse_message;
pub mod fuse_mount;
pub mod guarded;
pub mod log_file;
pub mod mountinfo;
pub mod order;
pub mod private_ns;
pub mod probe;
pub mod process;
pub mod request_buffer;
pub mod service;
pub mod shared_memory;
pub mod signals;
pub mod surroundings;
pub mod thread;
pub mod threads;
pub mod tree;
pub mod xattr;

use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

/// The device through which the kernel talks to a FUSE daemon.
pub const FUSE_DEVICE: &str = "/dev/fuse";

/// The errno of an I/O error; EIO for an error that did not come from the system.
#[must_use]
pub fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The errno of the last call of the C library.
fn last_errno() -> Errno {
    errno_of(&std::io::Error::last_os_error())
}

/// Removes `.`, `..` and double slashes from the text of a path. Does not look at the filesystem.
#[must_use]
pub fn lexically_clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

/// The text of an error without the ` (os error 2)` that Rust appends, because the number tells a user nothing more.
#[must_use]
pub fn plain(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let mut parts = text.split(" (os error ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |before, part| match part.split_once(')') {
        Some((number, after)) if number.bytes().all(|b| b.is_ascii_digit()) => before + after,
        _ => before + " (os error " + part,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_are_left_out() {
        assert_eq!(plain(&"a: gone (os error 2): b (os error 13)"), "a: gone: b");
        assert_eq!(plain(&"odd (os error x) (os error 5"), "odd (os error x) (os error 5");
    }
}
