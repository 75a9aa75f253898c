//! Agrees with the kernel on how a mount is served: mount options, number of threads, passthrough.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use fuser::{Config, Session, SessionACL};
use rustix::fs::{Mode, OFlags};

use super::error::Error;
use super::helper::Device;
use super::registry;
use super::request::MountPlan;
use crate::fs::Fs;
use crate::fuse::{Adapter, Offer, Serving};
use crate::sys::backing::Backings;
use crate::sys::{fuse_mount, plain, process, surroundings, thread};

/// The fewest and the most loops. With a single loop each request costs three times as much as with two, see
/// `docs/PERFORMANCE.md`. More loops than processors only compete for them.
const LOOPS: std::ops::RangeInclusive<usize> = 3..=16;

/// Starts the FUSE session on a device. The adapter drops `serving` with its last loop.
pub(super) fn start_session(
    plan: &MountPlan,
    fs: Arc<Fs>,
    loops: usize,
    serving: Serving,
    device: Device,
) -> Result<Session<Adapter>, Error> {
    let Device { fd, backings, program, .. } = device;
    let notifier = Arc::new(OnceLock::new());
    let offer = match &backings {
        Some(backings) => Some(Offer {
            backings: Arc::clone(backings),
            stack_depth: stack_depth(plan, program.as_deref())?,
            notifier: Arc::clone(&notifier),
        }),
        None => None,
    };
    let adapter = Adapter::new(fs, loops, offer, serving);
    let acl = if plan.request.allow_other { SessionACL::All } else { SessionACL::Owner };
    let session = Session::from_fd(adapter, fd, acl, config(loops)).map_err(Error::Fuse)?;
    notifier.get_or_init(|| session.notifier());
    if let Some(backings) = backings {
        try_passthrough(plan, &*backings).map_err(|error| Error::NoPassthrough {
            path: plan.space.mountpoint.clone(),
            reason: plain(&error),
        })?;
    }
    Ok(session)
}

/// Registers a file with the kernel. No other check tells whether the kernel supports passthrough and allows it.
fn try_passthrough(plan: &MountPlan, backings: &dyn Backings) -> std::io::Result<()> {
    let sample = std::fs::File::open(plan.state_dir().join("state.json"))?;
    let id = backings.open(sample.as_fd())?;
    backings.close(id)
}

/// The depth of the filesystem stack below this mount: 2 if one of its directories is on overlayfs, else 1.
fn stack_depth(plan: &MountPlan, program: Option<&Path>) -> Result<u32, Error> {
    /// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
    const OVERLAYFS: i64 = 0x794c_7630;
    let dirs = [plan.state_dir(), plan.cache_dir(), plan.location.path.clone()];
    for path in dirs.iter().map(PathBuf::as_path).chain(program) {
        let stat = rustix::fs::statfs(path).map_err(Error::os(path, "statfs"))?;
        if stat.f_type == OVERLAYFS {
            return Ok(2);
        }
    }
    Ok(1)
}

/// The options for mount(2) or fusermount3.
pub(super) fn mount_options(plan: &MountPlan) -> Result<fuse_mount::Options, Error> {
    Ok(fuse_mount::Options {
        source: registry::source_of(&plan.state_dir())?,
        allow_other: plan.request.allow_other,
        unchecked: unchecked(plan),
        read_only: plan.request.read_only,
        extra: plan.request.options.clone(),
    })
}

/// Whether to mount without `default_permissions`. With it, the kernel asks for a directory's attributes again after
/// every change in the directory: a third of the cost of creating or removing a file. Only root may use such a mount,
/// and root passes every check except those of [`crate::fs::Fs::may_access`].
fn unchecked(plan: &MountPlan) -> bool {
    rustix::process::geteuid().is_root()
        && !plan.request.allow_other
        && !plan.has("default_permissions")
        && process::overrides_permissions()
}

/// The number of loops: one more than there are processors, or as many as threads can be started.
///
/// # Errors
/// When no thread can be started, or a memory limit leaves less than the loops need.
pub(super) fn possible_loops() -> Result<usize, Error> {
    /// What each loop allocates: a buffer for the largest request, and a stack.
    const EACH: u64 = 18 << 20;
    /// What the rest of the daemon needs: files being unpacked, buffers of copies, threads of requests that wait.
    const BESIDE: u64 = 64 << 20;
    let wanted = (process::processors() + 1).clamp(*LOOPS.start(), *LOOPS.end());
    // One more thread waits for the loops.
    let possible = thread::obtainable(wanted + 1).saturating_sub(1);
    if possible == 0 {
        let why = "two threads cannot be started: ulimit -u, or a container's limit of processes";
        return Err(Error::Limits(why.into()));
    }
    let Some(room) = surroundings::memory_room() else { return Ok(possible) };
    surroundings::spare_addresses();
    let needed = BESIDE + EACH * possible as u64;
    if room < needed {
        let (room, needed) = (room >> 20, needed >> 20);
        let why =
            format!("{room} MB of memory are left by its limit (ulimit -v, -d), and a mount needs {needed}");
        return Err(Error::Limits(why));
    }
    Ok(possible)
}

/// One device descriptor for each loop where /dev/fuse can be opened. A container may not allow that.
fn config(loops: usize) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(loops);
    let openable = rustix::fs::open(fuse_mount::DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    config.clone_fd = openable.is_ok();
    config
}
