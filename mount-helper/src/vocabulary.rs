//! The types that both the protocol and the policy use.

/// The version of the protocol.
pub const VERSION: u16 = 2;

/// Declares [`Deny`] with the number that stands for each reason in messages, and with its text.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $value:literal => $text:literal,)*) => {
        /// Why the policy refuses a request. The numbers are part of the protocol and never change.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum Deny {
            $($(#[$doc])* $variant = $value,)*
        }

        impl Deny {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            pub(crate) fn of(number: u32) -> Option<Self> {
                match number {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for Deny {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)*
                })
            }
        }
    };
}

reasons! {
    /// The caller speaks no version that the helper speaks.
    Version = 1 => "no common version of the protocol",
    /// Another request before hello, or a second hello.
    NotGreeted = 2 => "a session must begin with one hello",
    /// A second mount.
    AlreadyMounted = 3 => "a session can mount only once",
    /// A file before the mount.
    NotMounted = 4 => "files can be registered only after the mount",
    /// `/dev/fuse` is another device or file.
    NotFuseDevice = 5 => "/dev/fuse is not the FUSE device",
    /// The mountpoint is not a directory.
    NotADirectory = 6 => "the mountpoint is not a directory",
    /// The path of the mountpoint does not lead to it, or only through symbolic links.
    NotWhereItSays = 7 => "the path of the mountpoint does not lead to it",
    /// The mountpoint belongs to another user.
    NotTheOwner = 8 => "the mountpoint belongs to another user",
    /// The owner has no write or search permission on the mountpoint.
    NotWritable = 9 => "the owner cannot write to the mountpoint",
    /// The owners and modes on this type of filesystem cannot be trusted.
    Filesystem = 10 => "owners and modes on this filesystem cannot be trusted",
    /// `allow_other` without `user_allow_other` in `/etc/fuse.conf`.
    AllowOther = 11 => "allow_other needs user_allow_other in /etc/fuse.conf",
    /// The file is not a regular file.
    NotARegularFile = 12 => "not a regular file",
    /// The file is open for writing only, or with `O_PATH`.
    NotReadable = 13 => "the file is not open for reading",
    /// The file belongs to another user.
    NotTheCallersFile = 14 => "the file belongs to another user",
    /// The user has registered as many files as allowed.
    TooMany = 15 => "too many registered files in all mounts of this user",
    /// The file was not registered in this session.
    UnknownBacking = 16 => "the file is not registered",
    /// The program has no CAP_SYS_ADMIN: it is not installed with it, or `no_new_privs`, a `nosuid` mount or a tracer
    /// removed it.
    NoPrivilege = 17 => "the mount helper does not have the capability CAP_SYS_ADMIN",
    /// The caller is not in the initial user namespace, which the kernel requires.
    UserNamespace = 18 => "not in the initial user namespace",
    /// `mount_max` of `/etc/fuse.conf` is reached.
    TooManyMounts = 19 => "too many mounted FUSE filesystems (mount_max in /etc/fuse.conf)",
    /// The file is immutable or append-only, so that its owner cannot write to it.
    Immutable = 20 => "the file is immutable or append-only",
    /// The file has no name, like a memfd.
    Unlinked = 21 => "the file has no name",
}

impl std::error::Error for Deny {}

/// Options of a mount. `nosuid`, `nodev` and `default_permissions` are always set, so they have no flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MountFlags {
    /// Rejects all changes.
    pub read_only: bool,
    /// Runs no programs from the mount.
    pub no_exec: bool,
    /// Lets other users access the mount.
    pub allow_other: bool,
    /// Does not update access times.
    pub no_atime: bool,
    /// Makes all writes synchronous.
    pub sync: bool,
    /// Makes changes of directories synchronous.
    pub dir_sync: bool,
}

impl MountFlags {
    pub(crate) fn bits(self) -> u32 {
        let flags = [self.read_only, self.no_exec, self.allow_other, self.no_atime, self.sync, self.dir_sync];
        (0..).zip(flags).map(|(position, flag)| u32::from(flag) << position).sum()
    }

    pub(crate) fn of(bits: u32) -> Option<Self> {
        let [read_only, no_exec, allow_other, no_atime, sync, dir_sync] =
            std::array::from_fn(|position| bits & (1 << position) != 0);
        let flags = Self { read_only, no_exec, allow_other, no_atime, sync, dir_sync };
        (flags.bits() == bits).then_some(flags)
    }
}

/// The kernel's id of a registered file: a positive `int`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BackingId(u32);

impl BackingId {
    /// None for a number that the kernel never assigns.
    #[must_use]
    pub fn new(id: u32) -> Option<Self> {
        (1..=i32::MAX as u32).contains(&id).then_some(Self(id))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}
