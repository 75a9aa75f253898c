//! The words that both the protocol and the policy use.

/// The version of the protocol; there is one.
pub const VERSION: u16 = 1;

/// Declares an enum whose numbers travel in messages, and a way back from the numbers.
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
/// Why something is refused. The numbers are the protocol's and never change.
Deny: u32 {
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

/// How to mount. `nosuid`, `nodev` and `default_permissions` are not to be had otherwise, so they have no flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MountFlags {
    /// Refuse every change.
    pub read_only: bool,
    /// Run no programs from it.
    pub no_exec: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Never set times of access.
    pub no_atime: bool,
    /// Write everything through.
    pub sync: bool,
    /// Write changes of directories through.
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

/// The kernel's name of a registered file: a positive `int`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BackingId(u32);

impl BackingId {
    /// None when the kernel cannot have given it.
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
