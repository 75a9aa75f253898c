//! The types that both the protocol and the policy use.

/// The version of the protocol.
pub const VERSION: u16 = 1;

/// Declares an enum with the numbers that stand for it in messages, and the conversion from a number.
macro_rules! numbered {
    ($(#[$about:meta])* $name:ident: $number:ty {
        $($(#[$doc:meta])* $variant:ident = $value:literal,)*
    }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr($number)]
        pub enum $name {
            $($(#[$doc])* $variant = $value,)*
        }

        impl $name {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            pub(crate) fn of(number: $number) -> Option<Self> {
                match number {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use numbered;

numbered! {
/// Why the policy refuses a request. The numbers are part of the protocol and never change.
Deny: u32 {
    /// The caller speaks no version that the helper speaks.
    Version = 1,
    /// Another request before hello, or a second hello.
    NotGreeted = 2,
    /// A second mount.
    AlreadyMounted = 3,
    /// A file before the mount.
    NotMounted = 4,
    /// `/dev/fuse` is another device or file.
    NotFuseDevice = 5,
    /// The mountpoint is not a directory.
    NotADirectory = 6,
    /// The path of the mountpoint does not lead to it, or only through symbolic links.
    NotWhereItSays = 7,
    /// The mountpoint belongs to another user.
    NotTheOwner = 8,
    /// The owner has no write or search permission on the mountpoint.
    NotWritable = 9,
    /// The owners and modes on this type of filesystem cannot be trusted.
    Filesystem = 10,
    /// `allow_other` without `user_allow_other` in `/etc/fuse.conf`.
    AllowOther = 11,
    /// The file is not a regular file.
    NotARegularFile = 12,
    /// The file is open for writing only, or with `O_PATH`.
    NotReadable = 13,
    /// The file belongs to another user.
    NotTheCallersFile = 14,
    /// The user has registered as many files as allowed.
    TooMany = 15,
    /// The file was not registered in this session.
    UnknownBacking = 16,
    /// The program has no CAP_SYS_ADMIN: it is not installed with it, or `no_new_privs`, a `nosuid` mount or a tracer
    /// removed it.
    NoPrivilege = 17,
    /// The caller is not in the initial user namespace, which the kernel requires.
    UserNamespace = 18,
    /// `mount_max` of `/etc/fuse.conf` is reached.
    TooManyMounts = 19,
    /// The file is immutable or append-only, so that its owner cannot write to it.
    Immutable = 20,
    /// The file has no name, like a memfd.
    Unlinked = 21,
}
}

impl std::fmt::Display for Deny {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Version => "no common version of the protocol",
            Self::NotGreeted => "a session must begin with one hello",
            Self::AlreadyMounted => "a session can mount only once",
            Self::NotMounted => "files can be registered only after the mount",
            Self::NotFuseDevice => "/dev/fuse is not the FUSE device",
            Self::NotADirectory => "the mountpoint is not a directory",
            Self::NotWhereItSays => "the path of the mountpoint does not lead to it",
            Self::NotTheOwner => "the mountpoint belongs to another user",
            Self::NotWritable => "the owner cannot write to the mountpoint",
            Self::Filesystem => "owners and modes on this filesystem cannot be trusted",
            Self::AllowOther => "allow_other needs user_allow_other in /etc/fuse.conf",
            Self::NotARegularFile => "not a regular file",
            Self::NotReadable => "the file is not open for reading",
            Self::NotTheCallersFile => "the file belongs to another user",
            Self::TooMany => "too many registered files in all mounts of this user",
            Self::UnknownBacking => "the file is not registered",
            Self::NoPrivilege => "the mount helper does not have the capability CAP_SYS_ADMIN",
            Self::UserNamespace => "not in the initial user namespace",
            Self::TooManyMounts => "too many mounted FUSE filesystems (mount_max in /etc/fuse.conf)",
            Self::Immutable => "the file is immutable or append-only",
            Self::Unlinked => "the file has no name",
        })
    }
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
        let flag = |position: u32| bits & (1 << position) != 0;
        let flags = Self {
            read_only: flag(0),
            no_exec: flag(1),
            allow_other: flag(2),
            no_atime: flag(3),
            sync: flag(4),
            dir_sync: flag(5),
        };
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
