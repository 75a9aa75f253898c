//! Reads an extended attribute of an entry of a directory.
//!
//! Linux 6.13 has a system call for it. Before, the only way was the path of the directory in `/proc`, which takes more
//! than twice as long.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::last_errno;

/// `getxattrat`, which has this number on all architectures.
const GETXATTRAT: libc::c_long = 464;

/// The kernel, or a filter of system calls, does not have [`GETXATTRAT`].
static IS_MISSING: AtomicBool = AtomicBool::new(false);

/// `struct xattr_args` of the kernel.
#[repr(C)]
struct Args {
    value: u64,
    size: u32,
    flags: u32,
}

/// Reads the attribute of the entry `name` of a directory into `value`, and returns its length. A symbolic link is not
/// followed.
///
/// # Errors
/// Those of getxattr(2).
pub fn get_at(dir: BorrowedFd<'_>, name: &CStr, attribute: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    if !IS_MISSING.load(Ordering::Relaxed) {
        match get_by_call(dir, name, attribute, value) {
            // A filter of system calls that does not know the number answers EPERM. No filesystem does.
            Err(Errno::NOSYS | Errno::PERM) => IS_MISSING.store(true, Ordering::Relaxed),
            done => return done,
        }
    }
    get_by_path(dir, name, attribute, value)
}

fn get_by_call(dir: BorrowedFd<'_>, name: &CStr, attribute: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    let size = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let mut args = Args { value: value.as_mut_ptr() as u64, size, flags: 0 };
    // SAFETY: both names end with a NUL, and `args` is laid out as the kernel expects it. It writes at most `size` bytes to
    // `value`, which is as long and is borrowed for the call.
    let len = unsafe {
        libc::syscall(
            GETXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            attribute.as_ptr(),
            &raw mut args,
            size_of::<Args>(),
        )
    };
    usize::try_from(len).map_err(|_| last_errno())
}

fn get_by_path(dir: BorrowedFd<'_>, name: &CStr, attribute: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    rustix::fs::lgetxattr(path, attribute, value)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn both_ways_answer_the_same() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir.path().join("file"), "user.test", b"value", flags).unwrap();
        let at = File::open(dir.path()).unwrap();
        for (name, attribute, room, wanted) in [
            (c"file", c"user.test", 5, Ok(5)),
            (c"file", c"user.test", 4, Err(Errno::RANGE)),
            (c"file", c"user.none", 5, Err(Errno::NODATA)),
            (c"link", c"user.test", 5, Err(Errno::NODATA)),
            (c"none", c"user.test", 5, Err(Errno::NOENT)),
        ] {
            let (mut one, mut two) = (vec![0; room], vec![0; room]);
            assert_eq!(get_at(at.as_fd(), name, attribute, &mut one), wanted, "{name:?}");
            assert_eq!(get_by_path(at.as_fd(), name, attribute, &mut two), wanted, "{name:?}");
            assert_eq!(one, two);
        }
    }
}
