//! Decides which requests are allowed, from facts and from the earlier requests of the session.
//!
//! The program collects the facts from descriptors (statx, fstatfs, F_GETFL). Paths are not used, because another file can
//! have the path a moment later. Everything is refused by default: each check has a single `Ok`, at its end.
//!
//! Invariant: the caller gains a mount on its own directory and passthrough to its own files, and no other access to a
//! file or directory.

use std::collections::HashSet;

use crate::vocabulary::{BackingId, Deny, MountFlags, VERSION};

/// How many files a session can register for each slot that it holds. A registered file is open in the kernel, where no
/// resource limit of the caller counts it.
pub const FILES_PER_SLOT: usize = 512;

/// How many slots all sessions of a user can hold together.
pub const SLOTS_PER_USER: u32 = 128;

/// The device number of `/dev/fuse`.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// Filesystems (by `f_type` of fstatfs) whose owners and modes can be trusted. Not FUSE, where another user's daemon can
/// report any owner and mode. Not procfs and similar ones. Not network filesystems, whose server can map owners.
const FILESYSTEMS: [u64; 8] = [
    0xEF53,      // ext4
    0x5846_5342, // xfs
    0x9123_683E, // btrfs
    0xCA45_1A4E, // bcachefs
    0xF2F5_2010, // f2fs
    0x2FC1_2FC1, // zfs
    0x0102_1994, // tmpfs
    0x794C_7630, // overlay
];

/// Allowed, or the reason for the refusal.
pub type Verdict = Result<(), Deny>;

/// Refuses with the first reason that applies.
fn refuse_first(reasons: &[(bool, Deny)]) -> Verdict {
    reasons.iter().find(|(applies, _)| *applies).map_or(Ok(()), |(_, reason)| Err(*reason))
}

/// The administrator's settings in `/etc/fuse.conf`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FuseConf {
    /// `user_allow_other`: users can mount with `allow_other`.
    pub user_allow_other: bool,
    /// `mount_max`: the limit for the number of mounted FUSE filesystems.
    pub mount_max: usize,
}

impl Default for FuseConf {
    /// The defaults of fusermount3.
    fn default() -> Self {
        Self { user_allow_other: false, mount_max: 1000 }
    }
}

impl FuseConf {
    /// Parses the file as fusermount3 does, and ignores unknown lines.
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

/// The number of FUSE filesystems in a mount table (`/proc/self/mounts`).
#[must_use]
pub fn fuse_mounts(table: &str) -> usize {
    let types = table.lines().filter_map(|line| line.split(' ').nth(2));
    types.filter(|kind| matches!(*kind, "fuse" | "fuseblk") || kind.starts_with("fuse.")).count()
}

/// Facts about the directory to mount on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountpointFacts {
    /// From fstat: whether it is a directory.
    pub is_dir: bool,
    /// From fstat: its owner.
    pub owner: u32,
    /// From fstat: its permission bits.
    pub mode: u32,
    /// Whether its path in `/proc/self/fd`, resolved with `RESOLVE_NO_SYMLINKS`, leads to the same inode.
    pub resolved_without_symlinks: bool,
    /// From fstatfs: the type of its filesystem.
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

/// Facts about a file to register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackingFacts {
    /// From fstat: whether it is a regular file.
    pub is_regular: bool,
    /// From fstat: its owner.
    pub owner: u32,
    /// From fstat: whether it has a name.
    pub is_linked: bool,
    /// From statx: whether it is immutable or append-only.
    pub is_immutable: bool,
    /// How it was opened.
    pub access: Access,
    /// From fstatfs: the type of its filesystem.
    pub f_type: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    New,
    Greeted,
    Mounted,
}

/// The state of a caller's session.
#[derive(Debug)]
pub struct Session {
    caller: u32,
    able: Verdict,
    phase: Phase,
    backings: HashSet<BackingId>,
}

impl Session {
    /// A session for the real user id that started the program. `able` is whether the program has the privilege it needs.
    #[must_use]
    pub fn new(caller: u32, able: Verdict) -> Self {
        Self { caller, able, phase: Phase::New, backings: HashSet::new() }
    }

    /// Decides about a hello, and records it if it is allowed.
    ///
    /// # Errors
    /// The refusal.
    pub fn hello(&mut self, version: u16) -> Verdict {
        if self.phase != Phase::New {
            return Err(Deny::NotGreeted);
        }
        // A caller with a newer version also speaks this one.
        if version < VERSION {
            return Err(Deny::Version);
        }
        self.able?;
        self.phase = Phase::Greeted;
        Ok(())
    }

    /// Decides about a mount. `mounts` is the current number of mounted FUSE filesystems. `device` is the device number of
    /// `/dev/fuse` from fstat, if it is a character device.
    ///
    /// # Errors
    /// The refusal.
    pub fn may_mount(
        &self,
        flags: MountFlags,
        conf: FuseConf,
        mounts: usize,
        device: Option<(u32, u32)>,
        mountpoint: &MountpointFacts,
    ) -> Verdict {
        match self.phase {
            Phase::New => return Err(Deny::NotGreeted),
            Phase::Mounted => return Err(Deny::AlreadyMounted),
            Phase::Greeted => {}
        }
        refuse_first(&[
            (flags.allow_other && !conf.user_allow_other, Deny::AllowOther),
            (mounts >= conf.mount_max, Deny::TooManyMounts),
            (device != Some(FUSE_DEVICE), Deny::NotFuseDevice),
            (!mountpoint.is_dir, Deny::NotADirectory),
            (!mountpoint.resolved_without_symlinks, Deny::NotWhereItSays),
            (!FILESYSTEMS.contains(&mountpoint.f_type), Deny::Filesystem),
            // Also for root, which does not need the helper, so that a script of root cannot mount over a user's directory
            // by mistake.
            (mountpoint.owner != self.caller, Deny::NotTheOwner),
            (mountpoint.mode & 0o300 != 0o300, Deny::NotWritable),
        ])
    }

    /// Checks the number of mounts again after the mount, because others may have mounted at the same time.
    ///
    /// # Errors
    /// The refusal. The caller must then unmount.
    pub fn may_stay(&self, conf: FuseConf, mounts: usize) -> Verdict {
        if mounts > conf.mount_max { Err(Deny::TooManyMounts) } else { Ok(()) }
    }

    /// Records that the mount was made.
    pub fn mounted(&mut self) {
        self.phase = Phase::Mounted;
    }

    /// Decides about a file to register.
    ///
    /// # Errors
    /// The refusal.
    pub fn may_open_backing(&self, file: &BackingFacts) -> Verdict {
        self.has_mounted()?;
        refuse_first(&[
            (!file.is_regular, Deny::NotARegularFile),
            (matches!(file.access, Access::Write | Access::Path), Deny::NotReadable),
            (!FILESYSTEMS.contains(&file.f_type), Deny::Filesystem),
            // For each open through the mount the kernel opens a registered file again without a check of its permission
            // bits, so a registered file must be one that the caller could open in every mode. An open descriptor does not
            // prove that, because another process may have passed it to the caller. Ownership does: the owner can change
            // the mode. (A file from a read-only descriptor is registered read-only, whoever owns it later: see `view`.)
            (file.owner != self.caller, Deny::NotTheCallersFile),
            // The owner cannot write to such a file, and the kernel does not check the flags again.
            (file.is_immutable, Deny::Immutable),
            (!file.is_linked, Deny::Unlinked),
        ])
    }

    /// Whether the session, which holds `slots` slots, needs another one before it registers one more file.
    #[must_use]
    pub fn needs_slot(&self, slots: usize) -> bool {
        self.backings.len() >= slots * FILES_PER_SLOT
    }

    /// Records that the kernel registered a file.
    pub fn backing_opened(&mut self, id: BackingId) {
        self.backings.insert(id);
    }

    /// Decides about closing a file, and records it if it is allowed.
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
