//! Giving up everything that is not needed, before anything is asked.
//!
//! The program is meant to be installed with the file capability `cap_sys_admin+ep`. Setuid root works too, where a
//! filesystem has no capabilities: it becomes the caller at once and keeps the one capability.
//!
//! Invariant: after [`confine`] the process is the caller in every user and group id, can have no capability but
//! CAP_SYS_ADMIN, has none in force outside [`privileged`], and has no open files but the socket and `/dev/null`.

use holofs_mount_helper::policy::Verdict;
use holofs_mount_helper::vocabulary::Deny;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::stdio::stdin;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::sys;

/// The inode of the machine's own user namespace in every kernel: `PROC_USER_INIT_INO`.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Descriptors that the program can have at once: the socket, `/dev/null` twice, FUSE, and a mount being made.
const OPEN_FILES: u64 = 32;

/// Why the program does not even begin.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Error {
    /// Privilege could not be given up.
    Privilege,
    /// Standard input is not the socket of somebody of the same user.
    NotStarted,
    /// Something else.
    Os,
}

impl Error {
    /// The exit status.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Privilege => 3,
            Self::NotStarted => 2,
            Self::Os => 4,
        }
    }
}

/// What is left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confined {
    /// Who started the program.
    pub(crate) caller: u32,
    /// Whether it can do anything for him.
    pub(crate) able: Verdict,
}

/// Gives up everything that is not needed.
///
/// # Errors
/// See [`Error`]; the program must end then.
pub(crate) fn confine() -> Result<Confined, Error> {
    let able = drop_privilege().map_err(|_| Error::Privilege)?;
    sys::clear_environment().map_err(|_| Error::Os)?;
    limit().map_err(|_| Error::Os)?;
    let caller = rustix::process::getuid().as_raw();
    check_socket(caller)?;
    close_others().map_err(|_| Error::Os)?;
    let able = if able { in_initial_user_namespace() } else { Err(Deny::NoPrivilege) };
    Ok(Confined { caller, able })
}

/// Becomes the caller, with CAP_SYS_ADMIN permitted and nothing in force. Returns whether it was there.
fn drop_privilege() -> Result<bool, Errno> {
    use rustix::{process, thread};
    // There is one thread; ids belong to threads.
    thread::set_keep_capabilities(true)?;
    let (uid, gid) = (process::getuid(), process::getgid());
    thread::set_thread_res_gid(gid, gid, gid)?;
    thread::set_thread_res_uid(uid, uid, uid)?;
    thread::set_keep_capabilities(false)?;
    let has = thread::capabilities(None)?.permitted.contains(CapabilitySet::SYS_ADMIN);
    set(has, false)?;
    thread::clear_ambient_capability_set()?;
    thread::set_no_new_privs(true)?;
    // Nobody of the same user may look into it or steer it.
    process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let now = thread::capabilities(None)?;
    let kept = if has { CapabilitySet::SYS_ADMIN } else { CapabilitySet::empty() };
    let is_caller = process::geteuid() == uid && process::getegid() == gid;
    if !is_caller || now.permitted != kept || !now.effective.is_empty() || !now.inheritable.is_empty() {
        return Err(Errno::PERM);
    }
    Ok(has)
}

fn set(permitted: bool, effective: bool) -> Result<(), Errno> {
    let when = |wanted| if wanted { CapabilitySet::SYS_ADMIN } else { CapabilitySet::empty() };
    let sets = CapabilitySets {
        effective: when(effective),
        permitted: when(permitted),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)
}

/// Does something with the capability in force.
///
/// # Errors
/// The action's, and EPERM without the capability. If it cannot be put down again the process ends.
pub(crate) fn privileged<T>(action: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    set(true, true)?;
    let done = action();
    if set(true, false).is_err() {
        std::process::abort();
    }
    done
}

/// Limits below which the caller may have put us already, and that we may not lift.
fn limit() -> Result<(), Errno> {
    // FSIZE is not for registered files: who writes to them is limited by his own.
    for (resource, most) in [(Resource::Core, 0), (Resource::Fsize, 0), (Resource::Nofile, OPEN_FILES)] {
        let now = rustix::process::getrlimit(resource).maximum;
        let most = Some(now.map_or(most, |now| now.min(most)));
        rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most })?;
    }
    rustix::process::chdir("/")
}

/// Standard input must be a socket whose other end was made by the caller: a pair is made by one process.
fn check_socket(caller: u32) -> Result<(), Error> {
    let is_socket = rustix::net::sockopt::socket_domain(stdin()) == Ok(AddressFamily::UNIX)
        && rustix::net::sockopt::socket_type(stdin()) == Ok(SocketType::SEQPACKET)
        && rustix::net::sockopt::socket_peercred(stdin()).is_ok_and(|peer| peer.uid.as_raw() == caller);
    if is_socket { Ok(()) } else { Err(Error::NotStarted) }
}

/// Leaves the socket as descriptor 0, `/dev/null` as 1 and 2, and nothing else.
fn close_others() -> Result<(), Errno> {
    sys::close_from(3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)
}

fn in_initial_user_namespace() -> Verdict {
    match rustix::fs::stat("/proc/self/ns/user") {
        Ok(stat) if stat.st_ino == INITIAL_USER_NAMESPACE => Ok(()),
        _ => Err(Deny::UserNamespace),
    }
}
