//! Mounts and unmounts FUSE filesystems: with mount(2) and umount(2) for root, with fusermount3 for other users.
//!
//! It returns the `/dev/fuse` descriptor of the mount. It does not know what is served on it.
//!
//! Invariant: a mount is on the directory that the caller opened and checked. The directory is passed by descriptor, and
//! [`check_place`] verifies it afterwards.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use holofs_mount_helper::wire;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::fd::proc_path;
use super::guarded::Dir;
use super::mountinfo::{self, FS_TYPE, MountEntry};
use super::private_ns::may_mount;
use super::{FUSE_DEVICE, process};

/// The options of a mount.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The source in mountinfo.
    pub source: String,
    /// Lets other users access the mount.
    pub allow_other: bool,
    /// Leaves out `default_permissions`, so that the daemon checks permissions. Only for a mount of root that no other user
    /// can access.
    pub unchecked: bool,
    /// Rejects all changes.
    pub read_only: bool,
    /// Names of further options; see [`check_option`].
    pub extra: Vec<String>,
}

/// Why a mount or unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    #[error("{FUSE_DEVICE}: {0}")]
    Device(Errno),
    /// `/dev/fuse` is something else.
    #[error("{FUSE_DEVICE}: it is not the device of FUSE")]
    AnotherDevice,
    /// This user cannot call mount(2), and fusermount3 is missing.
    #[error("fusermount3 is not installed, and only root can mount without it")]
    NoFusermount,
    /// fusermount3 failed, with its error message.
    #[error("fusermount3: {0}")]
    Fusermount(String),
    /// mount(2) or umount(2) failed.
    #[error("{call}: {source}")]
    Os {
        /// The name of the call.
        call: &'static str,
        /// The errno.
        source: Errno,
    },
    /// The directory, or one above it, was replaced after it was checked.
    #[error("the directory was replaced during the mount")]
    Exchanged,
    /// fusermount3 could not be started, or did not answer.
    #[error("cannot run fusermount3: {0}")]
    Io(#[from] std::io::Error),
}

impl MountError {
    /// Whether the cause is this machine or container, and not the directory or an option.
    #[must_use]
    pub fn means_no_fuse(&self) -> bool {
        match self {
            Self::Device(_) | Self::AnotherDevice | Self::NoFusermount | Self::Io(_) => true,
            Self::Fusermount(output) => !output.contains("user_allow_other"),
            Self::Os { source, .. } => matches!(*source, Errno::PERM | Errno::NODEV | Errno::NOSYS),
            Self::Exchanged => false,
        }
    }
}

/// Whether holofs supports an `-o` option.
#[must_use]
pub fn check_option(option: &str) -> bool {
    flag_of(option).is_some() || matches!(option, "rw" | "exec" | "async" | "default_permissions")
}

fn flag_of(option: &str) -> Option<MountFlags> {
    Some(match option {
        "ro" => MountFlags::RDONLY,
        "noexec" => MountFlags::NOEXEC,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noatime" => MountFlags::NOATIME,
        "sync" => MountFlags::SYNCHRONOUS,
        "dirsync" => MountFlags::DIRSYNC,
        _ => return None,
    })
}

/// Mounts a FUSE filesystem and returns the descriptor to serve it on.
///
/// # Errors
/// See [`MountError`]. Nothing is mounted then.
pub fn mount(mountpoint: &Dir, options: &Options) -> Result<OwnedFd, MountError> {
    let device = rustix::fs::stat(FUSE_DEVICE).map_err(MountError::Device)?;
    if !is_fuse(&device) {
        return Err(MountError::AnotherDevice);
    }
    match mount_directly(mountpoint, options) {
        // This user may not mount, or may not open the device. fusermount3 is setuid root.
        Err(MountError::Os { source: Errno::PERM, .. } | MountError::Device(Errno::ACCESS | Errno::PERM)) => {
            mount_by_fusermount(mountpoint, options)
        }
        other => other,
    }
}

/// Whether this is the device of FUSE: Linux gives it this number everywhere.
fn is_fuse(device: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(device.st_mode) == FileType::CharacterDevice
        && device.st_rdev == rustix::fs::makedev(10, 229)
}

fn mount_directly(mountpoint: &Dir, options: &Options) -> Result<OwnedFd, MountError> {
    // A user may mount in a user namespace.
    if !rustix::process::geteuid().is_root() && !may_mount() {
        return Err(MountError::Os { call: "mount", source: Errno::PERM });
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(FUSE_DEVICE, flags, Mode::empty()).map_err(MountError::Device)?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        fd.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if !options.unchecked {
        data.push_str(",default_permissions");
    }
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    for option in &options.extra {
        flags |= flag_of(option).unwrap_or(MountFlags::empty());
    }
    let os = |source| MountError::Os { call: "mount", source };
    let data = CString::new(data).map_err(|_| os(Errno::INVAL))?;
    rustix::mount::mount(
        options.source.as_str(),
        proc_path(mountpoint),
        FS_TYPE,
        flags,
        Some(data.as_c_str()),
    )
    .map_err(os)?;
    Ok(fd)
}

/// Finds the mount that was just made with this source. Verifies that it is on this directory, and that the directory's
/// path leads to it. Otherwise unmounts it. None when it was already unmounted.
///
/// # Errors
/// [`MountError::Exchanged`], and when the mounts cannot be read.
pub fn check_place(dir: &Dir, source: &str) -> Result<Option<MountEntry>, MountError> {
    let os = |call| move |source| MountError::Os { call, source };
    let real = || rustix::fs::readlink(proc_path(dir), Vec::new()).map_err(os("readlink"));
    let before = real()?;
    let below = mount_id(dir.as_fd(), Path::new(""), AtFlags::EMPTY_PATH).map_err(os("statx"))?;
    let table = mountinfo::mounts()?;
    let place = Path::new(std::ffi::OsStr::from_bytes(before.as_bytes()));
    let made: Vec<MountEntry> =
        table.into_iter().filter(|m| m.identity().is_some() && m.source == source && m.is_ours()).collect();
    let here = made.iter().rfind(|m| {
        m.mountpoint == place
            && below.is_none_or(|id| m.parent == id)
            && real().is_ok_and(|now| now == before)
    });
    let Some(stray) = here.or(made.last()) else { return Ok(None) };
    if here.is_some() {
        let led_to = mount_id(rustix::fs::CWD, dir.path(), AtFlags::SYMLINK_NOFOLLOW);
        if led_to.is_ok_and(|id| id.is_none_or(|id| id == stray.id)) {
            return Ok(Some(stray.clone()));
        }
        if !mountinfo::mounts()?.contains(stray) {
            return Ok(None);
        }
    }
    // The caller had no other mount with this source.
    unmount_wherever(stray, true)?;
    Err(MountError::Exchanged)
}

/// Unmounts a mount at its current path. Somebody can rename a directory of that path between the look-up in the mount
/// table and the system call, so both are retried.
///
/// # Errors
/// Those of the last [`unmount`], if the mount is still in the table.
pub fn unmount_wherever(mount: &MountEntry, lazily: bool) -> Result<(), MountError> {
    /// Each retry means that another rename happened between the two calls.
    const ATTEMPTS: u32 = 50;
    let mut last = Ok(());
    for _ in 0..ATTEMPTS {
        let now = mountinfo::mounts()?.into_iter().find(|m| m.id == mount.id && m.is_same_filesystem(mount));
        let Some(now) = now else { return Ok(()) };
        last = unmount(&now.mountpoint, lazily);
        if matches!(last, Err(MountError::Os { source: Errno::BUSY, .. })) {
            break;
        }
    }
    last
}

/// The id of the mount that a path leads to, without a request to a FUSE daemon. None before Linux 5.8.
fn mount_id(dir: impl AsFd, path: &Path, flags: AtFlags) -> Result<Option<u64>, Errno> {
    let flags = flags | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(dir, path, flags, StatxFlags::MNT_ID)?;
    Ok((stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id))
}

fn mount_by_fusermount(mountpoint: &Dir, options: &Options) -> Result<OwnedFd, MountError> {
    let os = |call| move |source| MountError::Os { call, source };
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(os("socketpair"))?;
    // The child inherits this end. fusermount3 gets its number in a variable.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(os("fcntl"))?;
    let mut list = vec![
        format!("fsname={}", options.source),
        "subtype=holofs".to_owned(),
        "default_permissions".to_owned(),
    ];
    if options.allow_other {
        list.push("allow_other".to_owned());
    }
    if options.read_only {
        list.push("ro".to_owned());
    }
    list.extend(options.extra.iter().filter(|option| flag_of(option).is_some()).cloned());
    let mut child = start_fusermount(|mut command| {
        command
            .arg("-o")
            .arg(list.join(","))
            .arg("--")
            // By descriptor, because the path may lead elsewhere by now.
            .arg(".")
            .current_dir(proc_path(mountpoint))
            .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    })?;
    drop(theirs);
    // fusermount3 sends one byte with the descriptor, and nothing if the mount failed.
    let received = wire::receive::<1>(&ours);
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    let status = child.wait()?;
    match received {
        Ok(Some(mut message)) if status.success() && !message.fds.is_empty() => {
            Ok(message.fds.swap_remove(0))
        }
        Err(source) => Err(MountError::Os { call: "recvmsg", source }),
        Ok(_) => {
            let said = said.trim().trim_start_matches("fusermount3: ").trim_start_matches("fusermount: ");
            Err(MountError::Fusermount(if said.is_empty() { status.to_string() } else { said.to_owned() }))
        }
    }
}

/// Starts the first of fusermount3 and fusermount that is on `PATH`.
fn start_fusermount<T>(start: impl Fn(Command) -> std::io::Result<T>) -> Result<T, MountError> {
    for program in ["fusermount3", "fusermount"] {
        match start(Command::new(program)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            started => return Ok(started?),
        }
    }
    Err(MountError::NoFusermount)
}

/// Unmounts. With `lazy`, detaches the mount at once, and the kernel ends it when the last process stops using it.
///
/// # Errors
/// EBUSY in [`MountError::Os`] while processes use the mount, and other errors of umount(2) and fusermount3.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_by_fusermount(mountpoint, lazy),
        Err(source) => Err(MountError::Os { call: "umount", source }),
    }
}

fn unmount_by_fusermount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let output = start_fusermount(|mut command| {
        command.arg("-u");
        if lazy {
            command.arg("-z");
        }
        command.arg("--").arg(mountpoint).stdin(Stdio::null()).output()
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.to_lowercase().contains("busy") {
        return Err(MountError::Os { call: "umount", source: Errno::BUSY });
    }
    Err(MountError::Fusermount(said))
}

/// Aborts the FUSE connection of a filesystem: all its requests fail from now on, and the session of its daemon ends.
/// `dev` is the device number as in mountinfo.
///
/// # Errors
/// When fusectl is not mounted, or the filesystem belongs to another user.
pub fn abort(dev: &str) -> std::io::Result<()> {
    let minor: u32 = dev
        .strip_prefix("0:")
        .and_then(|minor| minor.parse().ok())
        .ok_or_else(|| std::io::Error::from(Errno::NODEV))?;
    let file = format!("/sys/fs/fuse/connections/{minor}/abort");
    std::fs::OpenOptions::new().write(true).open(file)?.write_all(b"1")
}

/// The result of statfs(2) on a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    /// The daemon answered.
    Alive,
    /// The daemon has ended.
    Dead,
    /// No answer before the timeout.
    Silent,
}

/// Whether a daemon serves the mount, with the timeout `limit`. The process must have a single thread.
#[must_use]
pub fn liveness(mountpoint: &Path, limit: Duration) -> Liveness {
    const DEAD: u8 = b'd';
    let question = || match rustix::fs::statfs(mountpoint) {
        Err(Errno::NOTCONN | Errno::CONNABORTED) => vec![DEAD],
        _ => Vec::new(),
    };
    match process::ask(limit, question) {
        Ok(Some(answer)) if answer.first() == Some(&DEAD) => Liveness::Dead,
        Ok(Some(_)) => Liveness::Alive,
        Ok(None) => Liveness::Silent,
        Err(error) => {
            tracing::warn!(path = %mountpoint.display(), %error, "cannot check a mount; it counts as alive");
            Liveness::Alive
        }
    }
}

/// Whether a path is a mount whose daemon has ended. Waits at most 3 seconds.
#[must_use]
pub fn is_dead(mountpoint: &Path) -> bool {
    liveness(mountpoint, Duration::from_secs(3)) == Liveness::Dead
}
