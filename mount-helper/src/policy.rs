//! Who may have what: decisions over facts, and over what was asked before.
//!
//! The facts are gathered by the program from the descriptors themselves (statx, fstatfs, F_GETFL), never from names
//! that could mean something else a moment later. Nothing is allowed that a rule here does not allow: each check
//! ends in the one `Ok` at its end.
//!
//! Invariant: a caller gains nothing over a file or directory that it could not do itself, but a mount on a directory
//! of its own and passthrough to files of its own.

use std::collections::HashSet;

use crate::vocabulary::{BackingId, Deny, MountFlags, VERSION};

/// How many files may be registered for each slot of a user's that the session holds: each pins an open file in the
/// kernel, where no limit of the caller's counts it.
pub const FILES_PER_SLOT: usize = 512;

/// How many slots all sessions of one user can hold together.
pub const SLOTS_PER_USER: u32 = 128;

/// `/dev/fuse`: a character device, 10:229 on every Linux.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// Filesystems (by `f_type` of fstatfs) on which a user's directories and files are what they seem. Not FUSE, whose
/// owners and modes some other user may invent; not procfs and its like; not network filesystems, whose server may
/// see another owner than we do.
const FILESYSTEMS: [(u64, &str); 8] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0xCA45_1A4E, "bcachefs"),
    (0xF2F5_2010, "f2fs"),
    (0x2FC1_2FC1, "zfs"),
    (0x0102_1994, "tmpfs"),
    (0x794C_7630, "overlay"),
];

/// Whether a filesystem is one whose owners and modes can be believed.
fn is_believed(f_type: u64) -> bool {
    FILESYSTEMS.iter().any(|(known, _)| *known == f_type)
}

/// Allowed, or why not.
pub type Verdict = Result<(), Deny>;

/// What the administrator says in `/etc/fuse.conf`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FuseConf {
    /// `user_allow_other`: users may let others into their mounts.
    pub user_allow_other: bool,
    /// `mount_max`: how many FUSE filesystems may be mounted before users may mount no more.
    pub mount_max: usize,
}

impl Default for FuseConf {
    /// As fusermount3 has it without the file.
    fn default() -> Self {
        Self { user_allow_other: false, mount_max: 1000 }
    }
}

impl FuseConf {
    /// Reads the file's text as fusermount3 does; what is not understood is left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line == "user_allow_other" {
                conf.user_allow_other = true;
            } else if let Some(("mount_max", number)) =
                line.split_once('=').map(|(key, value)| (key.trim(), value.trim()))
            {
                conf.mount_max = number.parse().unwrap_or(conf.mount_max);
            }
        }
        conf
    }
}

/// How many FUSE filesystems a mount table (`/proc/self/mounts`) holds.
#[must_use]
pub fn fuse_mounts(table: &str) -> usize {
    let types = table.lines().filter_map(|line| line.split(' ').nth(2));
    types.filter(|kind| matches!(*kind, "fuse" | "fuseblk") || kind.starts_with("fuse.")).count()
}

/// What fstat says of what is at `/dev/fuse`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceFacts {
    /// Whether it is a character device.
    pub is_char_device: bool,
    /// Its major and minor number.
    pub rdev: (u32, u32),
}

/// What is known of the directory to mount on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountpointFacts {
    /// fstat: whether it is a directory.
    pub is_dir: bool,
    /// fstat: its owner.
    pub owner: u32,
    /// fstat: its permission bits.
    pub mode: u32,
    /// Whether its path in `/proc/self/fd`, resolved with `RESOLVE_NO_SYMLINKS`, leads to the same inode.
    pub resolved_without_symlinks: bool,
    /// fstatfs: the type of its filesystem.
    pub f_type: u64,
}

/// How a descriptor was opened (F_GETFL).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// O_RDONLY.
    Read,
    /// O_RDWR.
    ReadWrite,
    /// O_WRONLY.
    Write,
    /// O_PATH.
    Path,
}

/// What is known of a file to be registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackingFacts {
    /// fstat: whether it is a regular file.
    pub is_regular: bool,
    /// fstat: its owner.
    pub owner: u32,
    /// fstat: whether it has a name.
    pub is_linked: bool,
    /// statx: whether it is immutable or append-only.
    pub is_immutable: bool,
    /// How it was opened.
    pub access: Access,
    /// fstatfs: the type of its filesystem.
    pub f_type: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    New,
    Greeted,
    Mounted,
}

/// What one caller has been given so far.
#[derive(Debug)]
pub struct Session {
    caller: u32,
    able: Verdict,
    phase: Phase,
    backings: HashSet<BackingId>,
    /// Slots of the user's share of files.
    slots: usize,
}

impl Session {
    /// A session for the real user id that started the program. `able` is whether it can do anything for him at all.
    #[must_use]
    pub fn new(caller: u32, able: Verdict) -> Self {
        Self { caller, able, phase: Phase::New, backings: HashSet::new(), slots: 0 }
    }

    /// Decides over a hello, and remembers it when it is allowed.
    ///
    /// # Errors
    /// The refusal.
    pub fn hello(&mut self, version: u16) -> Verdict {
        if self.phase != Phase::New {
            return Err(Deny::NotGreeted);
        }
        // Whoever speaks a newer version speaks this one as well.
        if version < VERSION {
            return Err(Deny::Version);
        }
        self.able?;
        self.phase = Phase::Greeted;
        Ok(())
    }

    /// Decides over a mount. `mounts` is how many FUSE filesystems are mounted now.
    ///
    /// # Errors
    /// The refusal.
    pub fn may_mount(
        &self,
        flags: MountFlags,
        conf: FuseConf,
        mounts: usize,
        device: &DeviceFacts,
        mountpoint: &MountpointFacts,
    ) -> Verdict {
        match self.phase {
            Phase::New => return Err(Deny::NotGreeted),
            Phase::Mounted => return Err(Deny::AlreadyMounted),
            Phase::Greeted => {}
        }
        if flags.allow_other && !conf.user_allow_other {
            return Err(Deny::AllowOther);
        }
        if mounts >= conf.mount_max {
            return Err(Deny::TooManyMounts);
        }
        if !device.is_char_device || device.rdev != FUSE_DEVICE {
            return Err(Deny::NotFuseDevice);
        }
        if !mountpoint.is_dir {
            return Err(Deny::NotADirectory);
        }
        if !mountpoint.resolved_without_symlinks {
            return Err(Deny::NotWhereItSays);
        }
        if !is_believed(mountpoint.f_type) {
            return Err(Deny::Filesystem);
        }
        // Root as well: it has no need of the helper, and a script of root's should not mount over a user's directory
        // by mistake.
        if mountpoint.owner != self.caller {
            return Err(Deny::NotTheOwner);
        }
        if mountpoint.mode & 0o300 != 0o300 {
            return Err(Deny::NotWritable);
        }
        Ok(())
    }

    /// Decides again once the mount is made, counted with it: others may have mounted at the same time.
    ///
    /// # Errors
    /// The refusal; the mount must go then.
    pub fn may_stay(&self, conf: FuseConf, mounts: usize) -> Verdict {
        if mounts > conf.mount_max { Err(Deny::TooManyMounts) } else { Ok(()) }
    }

    /// Remembers that the mount was made.
    pub fn mounted(&mut self) {
        self.phase = Phase::Mounted;
    }

    /// Decides over a file for passthrough.
    ///
    /// # Errors
    /// The refusal.
    pub fn may_open_backing(&self, file: &BackingFacts) -> Verdict {
        self.has_mounted()?;
        if !file.is_regular {
            return Err(Deny::NotARegularFile);
        }
        match file.access {
            Access::Read | Access::ReadWrite => {}
            Access::Write | Access::Path => return Err(Deny::NotReadable),
        }
        if !is_believed(file.f_type) {
            return Err(Deny::Filesystem);
        }
        // Whoever may read it. The kernel opens a registered file anew for each open through the mount, and looks at no
        // permission bits again: they are the daemon's to check. Nor does an open descriptor prove that the caller could
        // open the file: it may have been handed over. The owner could give himself every access. (A file that comes
        // by a read-only descriptor is registered so that it cannot be written to, whoever owns it later: see `view`.)
        if file.owner != self.caller {
            return Err(Deny::NotTheCallersFile);
        }
        // But not this one, nor is it looked at again.
        if file.is_immutable {
            return Err(Deny::Immutable);
        }
        if !file.is_linked {
            return Err(Deny::Unlinked);
        }
        Ok(())
    }

    /// Whether another slot is needed before one more file is registered.
    #[must_use]
    pub fn needs_slot(&self) -> bool {
        self.backings.len() >= self.slots * FILES_PER_SLOT
    }

    /// Remembers that the session holds one more slot.
    pub fn slot_taken(&mut self) {
        self.slots += 1;
    }

    /// Remembers that the kernel registered a file.
    pub fn backing_opened(&mut self, id: BackingId) {
        self.backings.insert(id);
    }

    /// Decides over forgetting a file, and remembers it when it is allowed.
    ///
    /// # Errors
    /// The refusal.
    pub fn close_backing(&mut self, id: BackingId) -> Verdict {
        self.has_mounted()?;
        if self.backings.remove(&id) { Ok(()) } else { Err(Deny::UnknownBacking) }
    }

    fn has_mounted(&self) -> Verdict {
        match self.phase {
            Phase::New => Err(Deny::NotGreeted),
            Phase::Greeted => Err(Deny::NotMounted),
            Phase::Mounted => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
