//! File handles (`name_to_handle_at`, `open_by_handle_at`) work after the kernel has forgotten the inode, and never
//! lead to a later file with the same number.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use crate::common::as_user::is_root;
use crate::common::{Mounted, World, assert_errno};

/// The kernel's `struct file_handle`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Handle {
    len: u32,
    kind: i32,
    bytes: [u8; 128],
}

fn handle_of(path: &Path) -> Handle {
    let mut handle = Handle { len: 128, kind: 0, bytes: [0; 128] };
    let mut mount: libc::c_int = 0;
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends in NUL, and the kernel writes no more bytes than the buffer has.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    };
    assert_eq!(done, 0, "{}: {}", path.display(), std::io::Error::last_os_error());
    handle
}

fn open(mounted: &Mounted<'_>, mut handle: Handle) -> std::io::Result<std::fs::File> {
    let root = std::fs::File::open(mounted.path()).unwrap();
    // SAFETY: the kernel only reads the handle, and returns a new descriptor.
    unsafe {
        let fd =
            libc::syscall(libc::SYS_open_by_handle_at, root.as_raw_fd(), &raw mut handle, libc::O_RDONLY);
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(std::fs::File::from_raw_fd(i32::try_from(fd).unwrap()))
    }
}

fn read(mounted: &Mounted<'_>, handle: Handle) -> String {
    let mut text = String::new();
    open(mounted, handle).unwrap().read_to_string(&mut text).unwrap();
    text
}

for_both_users! {
    /// A new mount knows none of the inodes of the mount before.
    fn handles_work_after_the_kernel_forgot_the_inode() {
        // Needs CAP_DAC_READ_SEARCH.
        if !is_root() {
            return;
        }
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::create_dir_all(mounted.at("made/deep")).unwrap();
        std::fs::write(mounted.at("made/deep/new"), "new").unwrap();
        std::fs::write(mounted.at("many/a"), "changed").unwrap();
        let paths =
            ["readme.txt", "lib/deep/er/leaf.txt", "many/a", "many/b", "made/deep/new", "lib/module.py", "many/c"];
        let handles = paths.map(|path| handle_of(&mounted.at(path)));
        let dir = handle_of(&mounted.at("made/deep"));
        std::fs::rename(mounted.at("lib/deep"), mounted.at("made/moved")).unwrap();
        std::fs::rename(mounted.at("made/deep/new"), mounted.at("hollow/new")).unwrap();
        std::fs::rename(mounted.at("lib/module.py"), mounted.at("module.py")).unwrap();
        std::fs::remove_file(mounted.at("many/c")).unwrap();
        let mounted = mounted.remount();
        let texts = ["hello, space\n", "leaf\n", "changed", "b\n", "new", "VALUE = 42\n"];
        for (handle, text) in handles.iter().zip(texts) {
            assert_eq!(read(&mounted, *handle), text);
        }
        assert_errno(open(&mounted, handles[6]), Errno::STALE);
        let opened = open(&mounted, dir).unwrap();
        let path = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).unwrap();
        assert_eq!(path, mounted.at("made/deep"));
    }

    /// ext4 reuses the inode number of a removed file.
    fn handle_of_a_removed_file_is_stale() {
        if !is_root() {
            return;
        }
        let world = World::sample();
        let mounted = world.mount("s");
        let mut handles = Vec::new();
        for n in 0..20 {
            let path = mounted.at(format!("new-{n}"));
            std::fs::write(&path, "first").unwrap();
            handles.push(handle_of(&path));
            std::fs::remove_file(&path).unwrap();
            std::fs::write(mounted.at(format!("later-{n}")), "second").unwrap();
        }
        for handle in &handles {
            assert_errno(open(&mounted, *handle), Errno::STALE);
        }
        let mounted = mounted.remount();
        for handle in &handles {
            assert_errno(open(&mounted, *handle), Errno::STALE);
        }
    }
}
