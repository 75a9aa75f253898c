//! File descriptors: locks and their holders, the limit of open ones, and system calls that rustix does not have.
#![allow(unsafe_code)]

use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Resource;

/// Waits for the exclusive flock on a file. Returns false when it is still held after `timeout`, or `stop` returns true.
///
/// # Errors
/// Those of flock(2).
pub fn lock(file: &File, timeout: Duration, pause: Duration, stop: impl Fn() -> bool) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) if stop() || Instant::now() >= deadline => return Ok(false),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(pause),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The process that holds a flock on the file, if `/proc/locks` shows it. The answer may be outdated at once, so it is for
/// messages only.
#[must_use]
pub fn holder(file: &File) -> Option<u32> {
    let found = file.metadata().ok()?;
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    holder_in(&table, rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()), found.ino())
}

fn holder_in(table: &str, major: u32, minor: u32, inode: u64) -> Option<u32> {
    // 1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF      (a waiter's line has "->" after the number)
    let exact = format!("{major:02x}:{minor:02x}:{inode}");
    let same_inode = format!(":{inode}");
    let holders = || {
        table.lines().filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            if fields.next()? != "FLOCK" {
                return None;
            }
            let pid: u32 = fields.nth(2)?.parse().ok()?;
            Some((pid, fields.next()?))
        })
    };
    // On some filesystems this device number differs from stat's. Then compare the inode number only.
    let found = holders()
        .find(|(_, at)| *at == exact)
        .or_else(|| holders().find(|(_, at)| at.ends_with(&same_inode)));
    found.map(|(pid, _)| pid).filter(|pid| *pid != 0)
}

/// Opens a regular file for reading. Symbolic links are followed. A FIFO or a device is refused and does not block.
///
/// # Errors
/// When the file cannot be opened. [`io::ErrorKind::InvalidData`] when it is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    Ok((file, found))
}

/// How many descriptors a cache may keep open: at most `most`, and at most the process's limit divided by `part`. The
/// limit does not change after a daemon has raised it.
#[must_use]
pub fn share(most: usize, part: u64) -> NonZeroUsize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let share = usize::try_from(limit / part.max(1)).unwrap_or(usize::MAX);
    NonZeroUsize::new(share.min(most)).unwrap_or(NonZeroUsize::MIN)
}

/// Makes `number` a duplicate of `with`, in one step. What it was before is closed.
///
/// # Errors
/// Those of dup3(2).
pub fn put_in_place(number: impl AsFd, with: impl AsFd) -> Result<(), Errno> {
    let (with, number) = (with.as_fd().as_raw_fd(), number.as_fd().as_raw_fd());
    // SAFETY: both are open. The owner of `number` goes on owning it.
    match unsafe { libc::dup3(with, number, libc::O_CLOEXEC) } {
        -1 => Err(super::last_errno()),
        _ => Ok(()),
    }
}

/// A further descriptor of a FUSE connection, from which requests can be read beside the others.
///
/// # Errors
/// Those of opening `/dev/fuse`, which a container may not allow, and of the ioctl.
pub fn clone_fuse_device(device: impl AsFd) -> Result<OwnedFd, Errno> {
    /// `FUSE_DEV_IOC_CLONE` of `linux/fuse.h`: `_IOR(229, 0, uint32_t)`.
    const CLONE: libc::Ioctl = 0x8004_e500_u32 as libc::Ioctl;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let clone = rustix::fs::open(super::FUSE_DEVICE, flags, Mode::empty())?;
    let mut source = device.as_fd().as_raw_fd().unsigned_abs();
    // SAFETY: the request reads one u32, and `source` lives until the call returns.
    match unsafe { libc::ioctl(clone.as_raw_fd(), CLONE, &raw mut source) } {
        -1 => Err(super::last_errno()),
        _ => Ok(clone),
    }
}

/// The path of an open file or directory in `/proc`. It leads to the file even if that was renamed, and works for `O_PATH`
/// descriptors.
#[must_use]
pub fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Whether a file has a name. A file without one is deleted when it is closed.
///
/// # Errors
/// The errno of fstat(2).
pub fn has_name(file: impl AsFd) -> rustix::io::Result<bool> {
    Ok(rustix::fs::fstat(file)?.st_nlink > 0)
}

/// Reads from an offset until the buffer is full or the file ends.
///
/// # Errors
/// Those of pread(2).
pub fn read_full(file: impl AsFd, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(&file, rest, offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Maps a whole file for reading. Nobody may change the file while it is mapped: holofs only replaces index files, by rename.
///
/// # Errors
/// Those of mmap(2).
pub fn map(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: an index file is complete before it gets its name, and belongs to the user. If the user truncates it
    // under a mount, the daemon gets SIGBUS, as any program that maps a file.
    unsafe { memmap2::Mmap::map(file) }
}

/// Makes sure that the disk has room for the first `size` bytes of a file. A filesystem that cannot tell counts as one with room.
///
/// # Errors
/// `NOSPC` and the other errnos of fallocate(2).
pub fn reserve(file: &impl AsFd, size: u64) -> Result<(), Errno> {
    let reserved = rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, size)
    });
    match reserved {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        reserved => reserved,
    }
}

/// Starts writeback of a file's dirty pages and does not wait for it, so that a later fsync or clone takes less time. An
/// error is ignored, because the call is only a hint.
pub fn start_writeback(file: &impl AsFd) {
    if let Err(errno) = write_pages(file, libc::SYNC_FILE_RANGE_WRITE) {
        tracing::debug!(%errno, "cannot start writeback");
    }
}

/// Whether all bytes of a file are on the device, so that cloning it waits for nothing. Where the kernel does not tell, a
/// file counts as written out a minute after its last change, because the kernel writes dirty pages after 35 s by default.
pub fn is_written_out(file: &impl AsFd) -> bool {
    /// `__NR_cachestat`, the same on all architectures. Since Linux 6.5.
    const CACHESTAT: libc::c_long = 451;
    /// `struct cachestat_range`: all of the file.
    const ALL: [u64; 2] = [0, 0];
    const OLD: i64 = 60;
    // `struct cachestat`: pages that are cached, dirty, under writeback, evicted, and recently evicted.
    let mut pages = [0u64; 5];
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the kernel reads two numbers and writes five, in arrays that are borrowed for the call.
    let done =
        unsafe { libc::syscall(CACHESTAT, fd, std::ptr::from_ref(&ALL), std::ptr::from_mut(&mut pages), 0) };
    if done == 0 {
        let [_, dirty, in_writeback, ..] = pages;
        return dirty + in_writeback == 0;
    }
    // An older kernel, or a filter of a container.
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    rustix::fs::fstat(file).is_ok_and(|found| now - found.st_ctime > OLD)
}

/// Writes the dirty pages of a file to the device, and waits as the flags of sync_file_range(2) say. Does not flush the
/// device's cache.
pub(super) fn write_pages(file: &impl AsFd, flags: u32) -> Result<(), Errno> {
    // SAFETY: the descriptor is borrowed for the call, which takes no pointers.
    match unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(super::last_errno()),
    }
}

/// Takes over a descriptor that another process has left open in the table that it shares with this one. From now on it
/// belongs to the result, so nothing else may own it.
///
/// # Errors
/// EBADF when it is not open.
pub fn adopt(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call only reads the flags of the descriptor, if there is one.
    if number < 0 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the descriptor is open, and its owner, a thread of another process, is dead.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Distinguishes a file from an earlier file with the same inode number: a digest of its file handle. None if the
/// filesystem has no file handles (overlayfs). Never 0.
pub fn identity(file: &impl AsFd) -> Option<u32> {
    /// `struct file_handle` of the kernel, with room for the longest handle.
    #[repr(C)]
    struct Handle {
        len: u32,
        kind: i32,
        bytes: [u8; 128],
    }
    let mut handle = Handle { len: 128, kind: 0, bytes: [0; 128] };
    let mut mount: libc::c_int = 0;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the path is a C string. The kernel writes at most `len` bytes of handle and one number, into values that
    // are borrowed for the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd,
            c"".as_ptr(),
            std::ptr::from_mut(&mut handle),
            std::ptr::from_mut(&mut mount),
            libc::AT_EMPTY_PATH,
        )
    };
    let bytes = handle.bytes.get(..handle.len as usize).filter(|_| done == 0)?;
    // FNV-1a, because the next version of this program must compute the same number.
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = handle.kind.to_ne_bytes().iter().chain(bytes).fold(0x811c_9dc5, step);
    Some(hash.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
1: POSIX  ADVISORY  WRITE 11 fd:01:77 0 EOF
2: FLOCK  ADVISORY  WRITE 4711 fd:01:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 4712 fd:01:77 0 EOF
3: FLOCK  ADVISORY  WRITE 99 00:2b:78 0 EOF
";

    #[test]
    fn holder_is_the_one_that_does_not_wait() {
        assert_eq!(holder_in(TABLE, 0xfd, 1, 77), Some(4711));
    }

    #[test]
    fn written_bytes_are_not_on_the_disk_before_a_sync() {
        use std::io::Write;
        const EXT4: i64 = 0xef53;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 300_000]).unwrap();
        // A tmpfs has no disk.
        if rustix::fs::fstatfs(&file).unwrap().f_type == EXT4 {
            assert!(!is_written_out(&file));
        }
        file.sync_all().unwrap();
        let has_cachestat = is_written_out(&file);
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or_default());
        let is_new = (numbers.next(), numbers.next()) >= (Some(6), Some(5));
        assert!(has_cachestat || !is_new, "{release}");
    }

    #[test]
    fn another_device_number_is_forgiven() {
        assert_eq!(holder_in(TABLE, 1, 1, 78), Some(99));
        assert_eq!(holder_in(TABLE, 1, 1, 79), None);
    }
}
