//! Reads the mounts of this process's mount namespace from `/proc/self/mountinfo`.
//!
//! It never accesses a mountpoint. A mountpoint whose daemon died answers ENOTCONN, and one whose daemon hangs blocks the
//! caller.
//!
//! Invariant: paths are unescaped, so that they can be compared with paths from elsewhere.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The filesystem type of holofs's mounts.
pub const FS_TYPE: &str = "fuse.holofs";
/// The prefix of the source of holofs's mounts. The space's identity follows, then `@` and its directory of spaces.
const SOURCE_PREFIX: &str = "holofs:";

/// A line of the table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MountEntry {
    /// The mount id, as in statx(2).
    pub id: u64,
    /// The id of the mount that it is mounted on.
    pub parent: u64,
    /// The directory of the filesystem that is mounted: `/`, except for a bind mount of a subdirectory.
    pub root: PathBuf,
    /// The current path. A mount moves when a directory above it is renamed.
    pub mountpoint: PathBuf,
    /// The source: `holofs:<identity>@<place>` for a mount of holofs, see [`source_of`].
    pub source: String,
    /// The filesystem type: [`FS_TYPE`] for a mount of holofs.
    pub fstype: String,
    /// The device number as `major:minor`. It does not change when the mount moves.
    pub dev: String,
    /// For a FUSE mount, the user who mounted it. The kernel guarantees it.
    pub user_id: Option<u32>,
    /// Whether the options of the superblock or of the mount contain `ro`.
    pub read_only: bool,
}

impl MountEntry {
    /// Whether both are mounts of the same filesystem. The device number alone does not tell, because the kernel reuses it
    /// after an unmount.
    #[must_use]
    pub fn is_same_filesystem(&self, other: &MountEntry) -> bool {
        self.dev == other.dev && self.fstype == other.fstype && self.source == other.source
    }

    /// The identity of the space in the source, unless this is a bind mount of a part. Any user can choose that text.
    #[must_use]
    pub fn identity(&self) -> Option<&str> {
        self.named().map(|(identity, _)| identity)
    }

    /// Whether this user mounted it. Unlike the source, another user cannot forge that.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.user_id == Some(rustix::process::getuid().as_raw())
    }

    fn named(&self) -> Option<(&str, &str)> {
        if self.fstype != FS_TYPE || self.root != Path::new("/") {
            return None;
        }
        let source = self.source.strip_prefix(SOURCE_PREFIX)?;
        // The last `@`, because an identity can contain one.
        Some(source.rsplit_once('@').unwrap_or((source, "")))
    }
}

/// The source for the mount of a space whose state is in `state_dir`, which must exist.
///
/// An identity is unique for one user in one home only. Another home, or a library that was recorded elsewhere, can have
/// a space with the same identity. The source therefore contains the device and inode of the directory of spaces, which
/// do not depend on the spelling of its path and do not change when it is renamed.
///
/// # Errors
/// EINVAL for a path without a name, and those of stat(2).
pub fn source_of(state_dir: &Path) -> io::Result<String> {
    let (Some(spaces_dir), Some(identity)) = (state_dir.parent(), state_dir.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    Ok(format!("{SOURCE_PREFIX}{}@{}", identity.to_string_lossy(), place(spaces_dir)?))
}

/// The part of a source that identifies the directory of spaces.
fn place(spaces_dir: &Path) -> io::Result<String> {
    let stat = rustix::fs::stat(spaces_dir)?;
    Ok(format!("{:x}.{:x}", stat.st_dev, stat.st_ino))
}

/// All mounts, oldest first. Of several mounts on one path, the last one is visible.
///
/// # Errors
/// When the table cannot be read.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&read()?))
}

/// All mounts of spaces, of all users.
///
/// # Errors
/// As [`mounts`].
pub fn holofs_mounts() -> io::Result<Vec<MountEntry>> {
    Ok(spaces_in(&read()?))
}

/// This user's mounts of the spaces in `spaces_dir`. A space can have several: bind mounts of the whole, and dead mounts.
///
/// # Errors
/// As [`mounts`], and when the directory cannot be examined.
pub fn holofs_mounts_of(spaces_dir: &Path) -> io::Result<Vec<MountEntry>> {
    let place = match place(spaces_dir) {
        // Without the directory there is no mount.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        place => place?,
    };
    let is_of = |m: &MountEntry| m.named().is_some_and(|(_, its)| its == place) && m.is_ours();
    Ok(spaces_in(&read()?).into_iter().filter(is_of).collect())
}

/// The topmost mount at exactly `path`.
///
/// # Errors
/// As [`mounts`].
pub fn mount_at(path: &Path) -> io::Result<Option<MountEntry>> {
    let table = read()?;
    let is_there = |line: &&[u8]| {
        let mountpoint = line.split(|&b| b == b' ').nth(4);
        mountpoint.is_some_and(|field| unescape(field) == path.as_os_str().as_bytes())
    };
    Ok(lines(&table).filter(is_there).filter_map(parse_line).last())
}

fn read() -> io::Result<Vec<u8>> {
    /// The table of most machines. A file of `/proc` has no length, and is otherwise read in ever larger pieces.
    const USUAL: usize = 16 << 10;
    let mut table = Vec::with_capacity(USUAL);
    std::fs::File::open("/proc/self/mountinfo")?.read_to_end(&mut table)?;
    Ok(table)
}

/// Parses the table. Lines that do not match are skipped.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<MountEntry> {
    lines(table).filter_map(parse_line).collect()
}

/// The mounts of spaces. A mount scans the table several times, so the other lines are not parsed.
fn spaces_in(table: &[u8]) -> Vec<MountEntry> {
    let ours = memchr::memmem::Finder::new(FS_TYPE);
    let lines = lines(table).filter(|line| ours.find(line).is_some());
    lines.filter_map(parse_line).filter(|mount| mount.identity().is_some()).collect()
}

fn lines(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    table.split(|&b| b == b'\n')
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // 36 35 98:0 /root /mountpoint opts tag:1 ... - fstype source superopts
    let mut fields = line.split(|&b| b == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
    let dev = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let mut path = || Some(PathBuf::from(OsString::from_vec(unescape(fields.next()?))));
    let (root, mountpoint) = (path()?, path()?);
    let options = fields.next()?;
    fields.by_ref().find(|f| *f == b"-")?;
    let fstype = String::from_utf8(unescape(fields.next()?)).ok()?;
    let source = String::from_utf8_lossy(&unescape(fields.next().unwrap_or_default())).into_owned();
    let super_options = fields.next().unwrap_or_default();
    let has_ro = |opts: &[u8]| opts.split(|&b| b == b',').any(|o| o == b"ro");
    let user_id = super_options
        .split(|&b| b == b',')
        .find_map(|option| std::str::from_utf8(option.strip_prefix(b"user_id=")?).ok()?.parse().ok());
    let read_only = has_ro(options) || has_ro(super_options);
    Some(MountEntry { id, parent, root, mountpoint, source, fstype, dev, user_id, read_only })
}

/// Decodes `\ooo`, by which the kernel escapes space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut parts = field.split(|&b| b == b'\\');
    let mut out = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        match part {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                out.extend(after);
            }
            _ => {
                out.push(b'\\');
                out.extend(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,discard
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 0:50 / /home/a\\040b/x\\011y\\134z rw,nosuid,nodev shared:9 master:3 - fuse.holofs holofs:720c7a8_5a1fac3_9fcd2534 rw,user_id=0
25 22 0:51 / /ro ro,nosuid - fuse.holofs holofs:720c7a8_5a1fac3_700be151 rw
26 22 0:52 / /other rw - fuse.sshfs holofs:nope rw
garbage
";

    #[test]
    fn paths_are_unescaped() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 5);
        assert_eq!(mounts[2].mountpoint, Path::new("/home/a b/x\ty\\z"));
        assert_eq!(mounts[2].dev, "0:50");
        assert_eq!(mounts[2].identity(), Some("720c7a8_5a1fac3_9fcd2534"));
        assert_eq!((mounts[2].id, mounts[2].parent, mounts[2].user_id), (24, 22, Some(0)));
        assert_eq!((mounts[0].id, mounts[0].parent, mounts[0].user_id), (22, 1, None));
    }

    #[test]
    fn bind_mount_of_a_part_is_not_the_space() {
        let line = "24 22 0:50 /lib /m rw - fuse.holofs holofs:720c7a8_5a1fac3_9fcd2534@1.2 rw,user_id=0";
        let mount = parse(line.as_bytes()).remove(0);
        assert_eq!((mount.root.as_path(), mount.identity()), (Path::new("/lib"), None));
        let whole = parse(line.replace("/lib", "/").as_bytes()).remove(0);
        assert!(whole.identity().is_some());
    }

    #[test]
    fn mount_of_another_user_is_not_ours() {
        let us = rustix::process::getuid().as_raw();
        for (user, ours) in [(us, true), (us + 1, false)] {
            let line = format!("24 22 0:50 / /m rw - fuse.holofs holofs:x@1.2 rw,user_id={user},group_id=0");
            assert_eq!(parse(line.as_bytes()).remove(0).is_ours(), ours);
        }
        assert!(!parse(b"24 22 0:50 / /m rw - fuse.holofs holofs:x@1.2 rw").remove(0).is_ours());
    }

    #[test]
    fn only_our_own_type_has_an_identity() {
        let ours: Vec<_> = parse(TABLE).into_iter().filter(|m| m.identity().is_some()).collect();
        assert_eq!(ours.len(), 2);
        assert!(!ours[0].read_only);
        assert!(ours[1].read_only);
    }

    #[test]
    fn homes_do_not_see_each_others_mounts() {
        let source = source_of(Path::new("/proc/720c7a8_5a1fac3_9fcd2534")).unwrap();
        let line = format!("24 22 0:50 / /m rw - fuse.holofs {source} rw");
        let mount = parse(line.as_bytes()).remove(0);
        assert_eq!(mount.identity(), Some("720c7a8_5a1fac3_9fcd2534"));
        assert_eq!(mount.named().unwrap().1, place(Path::new("/proc/.")).unwrap());
        assert_ne!(mount.named().unwrap().1, place(Path::new("/")).unwrap());
        let odd = parse(b"24 22 0:50 / /m rw - fuse.holofs holofs:a@name@1.2 rw").remove(0);
        assert_eq!(odd.named(), Some(("a@name", "1.2")));
    }

    #[test]
    fn empty_source_does_not_shift_the_fields() {
        let mounts = parse(b"30 22 0:60 / /m rw -  tmpfs  rw\n");
        assert!(mounts.is_empty() || mounts[0].mountpoint == Path::new("/m"));
    }

    #[test]
    fn reads_the_real_table() {
        assert!(mounts().unwrap().iter().any(|m| m.mountpoint == Path::new("/proc")));
    }

    #[test]
    fn reused_device_number_is_another_filesystem() {
        let line =
            |source: &str| format!("36 35 0:50 / /m rw - fuse.holofs holofs:{source}@1.2 rw,user_id=0");
        let of = |source: &str| parse(line(source).as_bytes()).remove(0);
        assert!(of("one").is_same_filesystem(&of("one")));
        assert!(!of("one").is_same_filesystem(&of("other")));
    }
}
