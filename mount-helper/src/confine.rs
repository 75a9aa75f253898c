//! Drops all privileges that are not needed, before the first request is read.
//!
//! The program is installed with the file capability `cap_sys_admin+ep`. On a filesystem without file capabilities it can
//! be setuid root: it then switches to the caller's ids at once and keeps the one capability.
//!
//! Invariant: after [`confine`], all user and group ids are the caller's, CAP_SYS_ADMIN is the only permitted capability,
//! no capability is effective outside of [`privileged`], and only the socket and `/dev/null` are open.

use holofs_mount_helper::policy::Verdict;
use holofs_mount_helper::vocabulary::Deny;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::stdio::stdin;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::sys;

/// The inode of the initial user namespace: `PROC_USER_INIT_INO` of the kernel.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Limit of open descriptors. In use are the socket, `/dev/null` twice, the FUSE device, and those of a mount in progress.
const OPEN_FILES: u64 = 32;

/// Why the program exits before the first request. The numbers are exit statuses.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Error {
    /// Privileges could not be dropped.
    Privilege = 3,
    /// Standard input is not a socket that was made by the same user.
    NotStarted = 2,
    /// Another system call failed.
    Os = 4,
}

/// Drops all privileges that are not needed. Returns whether the program can mount and register files for the caller.
///
/// # Errors
/// See [`Error`]; the program must end then.
pub(crate) fn confine() -> Result<Verdict, Error> {
    let able = drop_privilege().map_err(|_| Error::Privilege)?;
    sys::clear_environment().map_err(|_| Error::Os)?;
    limit().map_err(|_| Error::Os)?;
    check_socket()?;
    close_others().map_err(|_| Error::Os)?;
    Ok(if able { in_initial_user_namespace() } else { Err(Deny::NoPrivilege) })
}

/// Switches to the caller's ids, with CAP_SYS_ADMIN permitted and no capability effective. Returns whether the program has
/// the capability.
fn drop_privilege() -> Result<bool, Errno> {
    use rustix::{process, thread};
    // Ids belong to threads, and there is one thread.
    thread::set_keep_capabilities(true)?;
    let (uid, gid) = (process::getuid(), process::getgid());
    thread::set_thread_res_gid(gid, gid, gid)?;
    thread::set_thread_res_uid(uid, uid, uid)?;
    thread::set_keep_capabilities(false)?;
    let has = thread::capabilities(None)?.permitted.contains(CapabilitySet::SYS_ADMIN);
    set(has, false)?;
    thread::clear_ambient_capability_set()?;
    thread::set_no_new_privs(true)?;
    // Other processes of the same user cannot trace it or read its memory.
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

/// Runs `action` with the capability effective.
///
/// # Errors
/// The errors of `action`, and EPERM without the capability. If the capability cannot be cleared afterwards, the process
/// aborts.
pub(crate) fn privileged<T>(action: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    set(true, true)?;
    let done = action();
    if set(true, false).is_err() {
        std::process::abort();
    }
    done
}

/// Lowers resource limits. The caller may have set lower ones, which cannot be raised.
fn limit() -> Result<(), Errno> {
    // FSIZE does not apply to registered files: a write to them counts for the process that writes.
    for (resource, most) in [(Resource::Core, 0), (Resource::Fsize, 0), (Resource::Nofile, OPEN_FILES)] {
        let now = rustix::process::getrlimit(resource).maximum;
        let most = Some(now.map_or(most, |now| now.min(most)));
        rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most })?;
    }
    rustix::process::chdir("/")
}

/// Standard input must be a socket from a socketpair(2) call of the caller.
fn check_socket() -> Result<(), Error> {
    let caller = rustix::process::getuid();
    let is_socket = rustix::net::sockopt::socket_domain(stdin()) == Ok(AddressFamily::UNIX)
        && rustix::net::sockopt::socket_type(stdin()) == Ok(SocketType::SEQPACKET)
        && rustix::net::sockopt::socket_peercred(stdin()).is_ok_and(|peer| peer.uid == caller);
    if is_socket { Ok(()) } else { Err(Error::NotStarted) }
}

/// Keeps the socket as descriptor 0, opens `/dev/null` as 1 and 2, and closes all others.
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
