//! Who may have what: decisions over facts, and over what was asked before.
//!
//! The facts are gathered by the program from the descriptors themselves (statx, fstatfs, F_GETFL), never from names
//! that could mean something else a moment later. Nothing is allowed that a rule here does not allow: each check
//! ends in the one `Ok` at its end.
//!
//! Invariant: a caller gains nothing over a file or directory that it could not do itself, but a mount on a directory
//! of its own and passthrough to files of its own.

use std::collections::HashSet;

use crate::proto::{BackingId, MountFlags, VERSION};

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

/// Why something is refused. The numbers are the protocol's and never change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Deny {
    /// There is no common version.
    Version = 1,
    /// Something else before hello, or hello twice.
    NotGreeted = 2,
    /// A second mount.
    AlreadyMounted = 3,
    /// Files before the mount.
    NotMounted = 4,
    /// What is at `/dev/fuse` is something else.
    NotFuseDevice = 5,
    /// The mountpoint is not a directory.
    NotADirectory = 6,
    /// The mountpoint's own path does not lead to it, or only through symbolic links: it was removed or moved about.
    NotWhereItSays = 7,
    /// The mountpoint belongs to somebody else.
    NotTheOwner = 8,
    /// The owner may not write to the mountpoint or search it.
    NotWritable = 9,
    /// The filesystem's owners and modes cannot be believed.
    Filesystem = 10,
    /// `allow_other` without the administrator's leave.
    AllowOther = 11,
    /// The file is not a regular file.
    NotARegularFile = 12,
    /// The file is open for writing only, or for its path only.
    NotReadable = 13,
    /// The file is somebody else's.
    NotTheCallersFile = 14,
    /// The user's slots are all held, and filled.
    TooMany = 15,
    /// No such file was registered in this session.
    UnknownBacking = 16,
    /// The program was not given CAP_SYS_ADMIN, or it was taken away: by `no_new_privs`, a `nosuid` mount, a tracer.
    NoPrivilege = 17,
    /// The caller is in a user namespace of its own, where the kernel registers nothing.
    UserNamespace = 18,
    /// As many FUSE filesystems are mounted as `mount_max` of `/etc/fuse.conf` allows.
    TooManyMounts = 19,
    /// The file is immutable or may only be appended to, which not even its owner may change.
    Immutable = 20,
    /// The file has no name, as a memfd has none.
    Unlinked = 21,
}

impl Deny {
    pub(crate) const ALL: [Deny; 21] = [
        Self::Version,
        Self::NotGreeted,
        Self::AlreadyMounted,
        Self::NotMounted,
        Self::NotFuseDevice,
        Self::NotADirectory,
        Self::NotWhereItSays,
        Self::NotTheOwner,
        Self::NotWritable,
        Self::Filesystem,
        Self::AllowOther,
        Self::NotARegularFile,
        Self::NotReadable,
        Self::NotTheCallersFile,
        Self::TooMany,
        Self::UnknownBacking,
        Self::NoPrivilege,
        Self::UserNamespace,
        Self::TooManyMounts,
        Self::Immutable,
        Self::Unlinked,
    ];

    pub(crate) fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|deny| *deny as u32 == number)
    }
}

impl std::fmt::Display for Deny {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Version => "there is no version of the protocol that both speak",
            Self::NotGreeted => "a session begins with one hello",
            Self::AlreadyMounted => "one session mounts once",
            Self::NotMounted => "files can be registered only after the mount",
            Self::NotFuseDevice => "/dev/fuse is not the FUSE device",
            Self::NotADirectory => "the mountpoint is not a directory",
            Self::NotWhereItSays => "the mountpoint is not where its path says",
            Self::NotTheOwner => "the mountpoint belongs to another user",
            Self::NotWritable => "the owner may not write to the mountpoint",
            Self::Filesystem => "owners and modes on this filesystem cannot be believed",
            Self::AllowOther => "allow_other needs user_allow_other in /etc/fuse.conf",
            Self::NotARegularFile => "not a regular file",
            Self::NotReadable => "the file is not open for reading",
            Self::NotTheCallersFile => "the file belongs to another user",
            Self::TooMany => "too many files are registered, in all mounts of this user",
            Self::UnknownBacking => "no such file was registered",
            Self::NoPrivilege => "the mount helper has not got the capability CAP_SYS_ADMIN",
            Self::UserNamespace => "not in the machine's own user namespace",
            Self::TooManyMounts => "too many FUSE filesystems are mounted (mount_max in /etc/fuse.conf)",
            Self::Immutable => "the file is immutable or append-only",
            Self::Unlinked => "the file has no name",
        })
    }
}

impl std::error::Error for Deny {}

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
enum State {
    New,
    Greeted,
    Mounted,
}

/// What one caller has been given so far.
#[derive(Debug)]
pub struct Session {
    caller: u32,
    able: Verdict,
    state: State,
    backings: HashSet<BackingId>,
    /// Slots of the user's share of files.
    slots: usize,
}

impl Session {
    /// A session for the real user id that started the program. `able` is whether it can do anything for him at all.
    #[must_use]
    pub fn new(caller: u32, able: Verdict) -> Self {
        Self { caller, able, state: State::New, backings: HashSet::new(), slots: 0 }
    }

    /// Decides over a hello, and remembers it when it is allowed.
    ///
    /// # Errors
    /// The refusal.
    pub fn hello(&mut self, version: u16) -> Verdict {
        if self.state != State::New {
            return Err(Deny::NotGreeted);
        }
        // Whoever speaks a newer version speaks this one as well.
        if version < VERSION {
            return Err(Deny::Version);
        }
        self.able?;
        self.state = State::Greeted;
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
        match self.state {
            State::New => return Err(Deny::NotGreeted),
            State::Mounted => return Err(Deny::AlreadyMounted),
            State::Greeted => {}
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
        self.state = State::Mounted;
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
        match self.state {
            State::New => Err(Deny::NotGreeted),
            State::Greeted => Err(Deny::NotMounted),
            State::Mounted => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
