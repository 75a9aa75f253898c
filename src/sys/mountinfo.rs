//! The mounts of this process's namespace, from `/proc/self/mountinfo`.
//!
//! Reads the table only: it never touches a mountpoint, because one whose daemon died answers ENOTCONN, and one
//! whose daemon hangs does not answer.
//!
//! Invariant: paths are unescaped, so that they compare equal to what other code holds.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The filesystem type of our mounts.
pub const FSTYPE: &str = "fuse.holofs";
/// What our mounts' source begins with; the space's identity follows, then `@` and where its state is kept.
const SOURCE_PREFIX: &str = "holofs:";

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountEntry {
    /// Where it is now; a mount moves with the directories above it.
    pub mountpoint: PathBuf,
    /// What was mounted: `holofs:<identity>@<place>` for ours; see [`source_of`].
    pub source: String,
    /// `fuse.holofs` for ours.
    pub fstype: String,
    /// The device number as `major:minor`: stays the same for the life of a mount, wherever it moves.
    pub dev: String,
    /// The options of the superblock and of the mount hold `ro`.
    pub read_only: bool,
}

impl MountEntry {
    /// The space this mount shows, when it is one of ours.
    #[must_use]
    pub fn identity(&self) -> Option<&str> {
        self.ours().map(|(identity, _)| identity)
    }

    fn ours(&self) -> Option<(&str, &str)> {
        if self.fstype != FSTYPE {
            return None;
        }
        let source = self.source.strip_prefix(SOURCE_PREFIX)?;
        // From behind: a name may hold any character but a slash, a comma and a backslash.
        Some(source.rsplit_once('@').unwrap_or((source, "")))
    }
}

/// The source of the mount of a space whose state is in `state_dir`, which must be there.
///
/// An identity names a space of one user in one home only; another home, or a library that was recorded elsewhere,
/// has spaces of the same identity. So the directory above the state says whose it is, by device and inode: that
/// holds however the directory is spelt, and when it is renamed.
///
/// # Errors
/// When the directory cannot be looked at.
pub fn source_of(state_dir: &Path) -> io::Result<String> {
    let identity = state_dir.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{SOURCE_PREFIX}{identity}@{}", place(state_dir.parent().unwrap_or(state_dir))?))
}

/// What a source says of the directory of spaces.
fn place(spaces_dir: &Path) -> io::Result<String> {
    let stat = rustix::fs::stat(spaces_dir)?;
    Ok(format!("{:x}.{:x}", stat.st_dev, stat.st_ino))
}

/// All mounts, oldest first; of mounts on top of each other the last one is seen.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Every mount of a space, whoever's it is.
///
/// # Errors
/// As [`mounts`].
pub fn holofs_mounts() -> io::Result<Vec<MountEntry>> {
    Ok(mounts()?.into_iter().filter(|m| m.identity().is_some()).collect())
}

/// The mounts of the spaces whose states are in this directory.
///
/// # Errors
/// As [`mounts`].
pub fn holofs_mounts_of(spaces_dir: &Path) -> io::Result<Vec<MountEntry>> {
    // Without the directory there has been no mount.
    let Ok(place) = place(spaces_dir) else { return Ok(Vec::new()) };
    Ok(mounts()?.into_iter().filter(|m| m.ours().is_some_and(|(_, its)| its == place)).collect())
}

/// The topmost mount at exactly `path`.
///
/// # Errors
/// As [`mounts`].
pub fn mount_at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mounts()?.into_iter().rfind(|m| m.mountpoint == path))
}

/// Parses the table; a line of another shape is left out, since the kernel may add what we do not know.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // 36 35 98:0 /root /mountpoint opts tag:1 ... - fstype source superopts
    let mut fields = line.split(|&b| b == b' ');
    let dev = String::from_utf8(fields.by_ref().nth(2)?.to_vec()).ok()?;
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.by_ref().nth(1)?)));
    let options = fields.next()?;
    fields.by_ref().find(|f| *f == b"-")?;
    let fstype = String::from_utf8(unescape(fields.next()?)).ok()?;
    let source = String::from_utf8_lossy(&unescape(fields.next().unwrap_or_default())).into_owned();
    let super_options = fields.next().unwrap_or_default();
    let has_ro = |opts: &[u8]| opts.split(|&b| b == b',').any(|o| o == b"ro");
    Some(MountEntry { mountpoint, source, fstype, dev, read_only: has_ro(options) || has_ro(super_options) })
}

/// Undoes the kernel's `\ooo` for blank, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(byte);
                rest = tail;
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
        assert_eq!(mount.ours().unwrap().1, place(Path::new("/proc/.")).unwrap());
        assert_ne!(mount.ours().unwrap().1, place(Path::new("/")).unwrap());
        let odd = parse(b"24 22 0:50 / /m rw - fuse.holofs holofs:a@name@1.2 rw").remove(0);
        assert_eq!(odd.ours(), Some(("a@name", "1.2")));
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
}
