//! Serving one mount: the layers put together, the loops run, the end tidied up.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{Config, INodeNo, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::claim::Claim;
use super::helper::{self, Device};
use super::plan::MountPlan;
use super::prefetch::Prefetcher;
use super::registry;
use super::undo::{undo_mount, undo_mounts};
use super::{Error, Mounted, millis};
use crate::fs::Fs;
use crate::fs::error::io_errno;
use crate::fuse::{Adapter, Offer};
use crate::library::blob::{Blobs, HololibStore};
use crate::library::cache::BlobCache;
use crate::library::index::Index;
use crate::materialize::relocate::{NAME_LEN, Names};
use crate::materialize::source::Source;
use crate::materialize::staging::Staging;
use crate::materialize::{Materializer, ReflinkProbe};
use crate::namespace::types::Ino;
use crate::namespace::{Namespace, Owner};
use crate::settings::Strategy;
use crate::space::run::RunInfo;
use crate::space::state::StateDir;
use crate::sys::fuse_mount::{self, MountError};
use crate::sys::mountinfo::{self, MountEntry};
use crate::sys::{plain, process, surroundings, thread};

/// How often the usage marks are renewed while mounted, so that nobody thinks the environment unused.
const USAGE_PERIOD: Duration = Duration::from_secs(24 * 3600);

/// How long after a mount the blob cache is first brought within its limit.
const FIRST_EVICTION: Duration = Duration::from_secs(60);

/// A mount that has its locks and its index and needs only to be served.
#[derive(Debug)]
pub(super) struct Prepared<'p> {
    plan: &'p MountPlan,
    index: Arc<Index>,
    /// The space's own lock and, while mounting only, rcc's: `rcc run` would wait for ever for one that is kept.
    claim: Claim<'p>,
    started: Instant,
    missing_blobs: u32,
}

impl<'p> Prepared<'p> {
    /// Puts the pieces together. Starts no thread: the caller may fork.
    pub(super) fn new(
        plan: &'p MountPlan,
        index: Index,
        claim: Claim<'p>,
        started: Instant,
        missing_blobs: u32,
    ) -> Self {
        Self { plan, index: Arc::new(index), claim, started, missing_blobs }
    }

    /// Mounts and serves until the mount ends; `ready` is called when the first request would be answered.
    pub(super) fn serve(self, ready: &mut dyn FnMut(&Mounted)) -> Result<Mounted, Error> {
        let Self { plan, index, claim, started, missing_blobs } = self;
        let umask = process::replace_umask(0);
        process::map_large_blocks();
        let loops = loops_to_be_had()?;
        let owner = Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            dir_mode: 0o750 & !umask,
        };
        let (fs, reflink) = build(plan, &index, owner)?;
        let fs = Arc::new(fs);
        let mountpoint = plan.space.mountpoint.clone();
        // Before there is a mount: a signal that comes while it is made then ends it in good order.
        let signals = Signals::new(ending_signals(plan)).map_err(Error::Fuse)?;
        let device = helper::acquire(plan, claim.mountpoint(), &mount_options(plan)?)?;
        let mount = device.mount.clone();
        let undo = Undo::new(mount.as_ref());
        let adapting = Adapting { fs: Arc::clone(&fs), loops, ended: Ended(signals.handle()) };
        let session = start_session(plan, adapting, device)?;
        let mounted = Mounted {
            path: mountpoint.clone(),
            identity: plan.space.identity.to_string(),
            blueprint: plan.holds.clone(),
            library: plan.library.hololib.clone(),
            strategy: plan.serve.strategy,
            io: plan.serve.io.in_force().to_owned(),
            reflink: Some(reflink),
            entries: index.len(),
            relocated: index.relocated_files(),
            pid: std::process::id(),
            mounted_ms: millis(started),
            missing_blobs,
            reused: false,
            set_aside: claim.aside().map(Path::to_owned),
        };
        let notifier = session.notifier();
        fs.materializer().when_bad(move |node| {
            let ino = Ino::of_lower(node);
            if let Err(error) = notifier.inval_inode(INodeNo(ino.0), 0, 0) {
                tracing::debug!(?ino, %error, "the kernel had nothing of a bad blob");
            }
        });
        let serving = Serving { plan, index, claim, mount: mount.as_ref(), fs, signals, undo };
        serving.run(session, &mounted, ready)?;
        Ok(mounted)
    }
}

/// What becomes an adapter once it is known by which means the mount was made.
struct Adapting {
    fs: Arc<Fs>,
    loops: usize,
    ended: Ended,
}

/// Ends the wait for signals when it is dropped, which the adapter does with its last loop.
#[derive(Debug)]
struct Ended(Handle);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Takes a mount away that nobody has been told of, unless it is kept.
struct Undo<'p> {
    mount: Option<&'p MountEntry>,
    armed: bool,
}

impl<'p> Undo<'p> {
    fn new(mount: Option<&'p MountEntry>) -> Self {
        Self { mount, armed: true }
    }

    fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.armed
            && let Some(mount) = self.mount
        {
            undo_mounts(mount);
        }
    }
}

/// Agrees with the kernel on how the mount is served.
fn start_session(plan: &MountPlan, adapting: Adapting, device: Device) -> Result<Session<Adapter>, Error> {
    let Device { fd, backings, program, .. } = device;
    let Adapting { fs, loops, ended } = adapting;
    let Some(backings) = backings else {
        let adapter = Adapter::new(fs, loops, None, Box::new(ended));
        return Session::from_fd(adapter, fd, acl(plan), config(loops)).map_err(Error::Fuse);
    };
    let no_passthrough = |error: std::io::Error| Error::NoPassthrough {
        path: plan.space.mountpoint.clone(),
        reason: plain(&error),
    };
    let notifier = Arc::new(OnceLock::new());
    let offer = Offer {
        backings: Arc::clone(&backings),
        stack_depth: stack_depth(plan, program.as_deref())?,
        notifier: Arc::clone(&notifier),
    };
    let adapter = Adapter::new(fs, loops, Some(offer), Box::new(ended));
    let session = Session::from_fd(adapter, fd, acl(plan), config(loops)).map_err(Error::Fuse)?;
    notifier.get_or_init(|| session.notifier());
    // Whether it works shows in doing it: the kernel must have it, and whoever asks must be allowed to.
    let sample = std::fs::File::open(plan.state_dir().join("state.json")).map_err(no_passthrough)?;
    let id = backings.open(sample.as_fd()).map_err(no_passthrough)?;
    backings.close(id).map_err(no_passthrough)?;
    Ok(session)
}

/// How deep filesystems are stacked below this one.
fn stack_depth(plan: &MountPlan, program: Option<&Path>) -> Result<u32, Error> {
    /// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
    const OVERLAYFS: i64 = 0x794c_7630;
    let dirs = [plan.state_dir(), plan.cache_dir(), plan.library.hololib.clone()];
    for path in dirs.iter().map(PathBuf::as_path).chain(program) {
        let stat = rustix::fs::statfs(path).map_err(|source| Error::Os {
            path: path.to_owned(),
            call: "statfs",
            source,
        })?;
        if stat.f_type == OVERLAYFS {
            return Ok(2);
        }
    }
    Ok(1)
}

/// A mount that is there and is not yet, or is being, served.
struct Serving<'p> {
    plan: &'p MountPlan,
    index: Arc<Index>,
    claim: Claim<'p>,
    mount: Option<&'p MountEntry>,
    fs: Arc<Fs>,
    signals: Signals,
    undo: Undo<'p>,
}

impl Serving<'_> {
    /// Runs the loops until the kernel says that the mount is gone. This thread waits for signals meanwhile.
    fn run(
        self,
        session: Session<Adapter>,
        mounted: &Mounted,
        ready: &mut dyn FnMut(&Mounted),
    ) -> Result<(), Error> {
        let Self { plan, index, mut claim, mount, fs, mut signals, undo } = self;
        let dev = mount.map(|mount| mount.dev.as_str());
        let loops = std::thread::Builder::new()
            .name("session".into())
            .spawn(|| session.run())
            .map_err(Error::Fuse)?;
        claim.state().write_run(&run_info(plan, mounted, dev))?;
        // The first request. The kernel has made the root without asking us, and would refuse its owner, not knowing
        // who that is, to set its times until somebody has looked at it.
        match rustix::fs::lstat(&plan.space.mountpoint) {
            Ok(root) if dev == Some(device_number(root.st_dev).as_str()) => {}
            // Somebody may have unmounted it: then it ends in good order.
            Ok(_) if !mount.is_some_and(is_mounted) => {}
            Ok(_) => {
                let path = plan.space.mountpoint.clone();
                return Err(Error::Mount { path, source: MountError::Exchanged });
            }
            Err(error) => tracing::warn!(%error, "the mount does not answer"),
        }
        if let Err(error) = claim.announce(index.info()) {
            tracing::warn!(%error, "rcc will not list this space");
        }
        ready(mounted);
        undo.keep();
        // Nothing from here on ends a mount that works.
        let alone = std::thread::scope(|scope| {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let (claim, fs) = (&mut claim, &fs);
            let chores = move || {
                let prefetcher = settle(plan, claim, fs);
                keep_house(plan, &prefetcher, &stopped);
                prefetcher.finish();
            };
            let started = std::thread::Builder::new().name("housekeeping".into()).spawn_scoped(scope, chores);
            let settling = || fs.namespace().keep_settling();
            let settler = std::thread::Builder::new().name("settle".into()).spawn_scoped(scope, settling);
            if let Err(error) = settler {
                tracing::warn!(%error, "what is emptied is written out when the mount ends");
            }
            if started.is_ok() {
                end_on_signal(&mut signals, &plan.state_dir());
            }
            drop(stop);
            fs.namespace().end_settling();
            started.err()
        });
        if let Some(error) = alone {
            tracing::warn!(%error, "no thread for housekeeping: the cache is not kept within its limit");
            let prefetcher = settle(plan, &mut claim, &fs);
            end_on_signal(&mut signals, &plan.state_dir());
            prefetcher.finish();
        }
        match loops.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the loops ended"),
            Err(_) => tracing::error!("the thread that waits for the loops panicked"),
        }
        undo_what_is_left(plan);
        fs.namespace().settle(Duration::ZERO);
        finish(plan, claim.state())
    }
}

/// What nobody waits for when a space is mounted, but which has to be done once it is.
fn settle(plan: &MountPlan, claim: &mut Claim<'_>, fs: &Arc<Fs>) -> Prefetcher {
    // The disk is not waited for by who mounts, only by who wants something in the space kept.
    let settled = claim.state().settle();
    if let Err(error) = &settled {
        tracing::error!(%error, "the space would not survive a loss of power, so nothing in it can be synced");
    }
    fs.settled(settled.map_err(|_| Errno::IO));
    // The list of files for rcc takes as long as the catalog is large, so it is written while we answer.
    if let Err(error) = claim.publish() {
        tracing::warn!(%error, "rcc does not know the files of this space");
    }
    Prefetcher::start(plan, fs)
}

/// Renews the usage marks daily; saves what was read, in case the daemon is killed, and keeps the blob cache within its
/// limit: a while after the mount, when whatever it was made for has begun, and daily.
fn keep_house(plan: &MountPlan, prefetcher: &Prefetcher, stopped: &std::sync::mpsc::Receiver<()>) {
    let mut wait = FIRST_EVICTION;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
        keep_cache_within(plan);
        prefetcher.save();
        if wait == USAGE_PERIOD
            && let Err(error) = plan.touch_usage()
        {
            tracing::warn!(%error, "the usage mark stays old");
        }
        wait = USAGE_PERIOD;
    }
}

/// Unmounts when told to end; returns when the last loop has ended.
fn end_on_signal(signals: &mut Signals, state_dir: &Path) {
    for signal in signals.forever() {
        tracing::info!(signal, "asked to end");
        match registry::find(state_dir) {
            Ok(Some(live)) => undo_mount(&live),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "cannot find the mount to end it"),
        }
    }
}

/// The signals that ask for the end of a mount: at a terminal also the one of its quit key.
fn ending_signals(plan: &MountPlan) -> Vec<i32> {
    let mut signals = vec![SIGTERM, SIGINT, SIGHUP];
    if plan.foreground {
        signals.push(SIGQUIT);
    }
    signals
}

/// Loops that end while the mount is there leave a dead one behind.
fn undo_what_is_left(plan: &MountPlan) {
    match registry::find(&plan.state_dir()) {
        Ok(Some(live)) => undo_mount(&live),
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "cannot tell whether the mount is gone"),
    }
}

/// Tidies up behind a mount that ended.
fn finish(plan: &MountPlan, state: &StateDir) -> Result<(), Error> {
    state.remove_run()?;
    if plan.serve.ephemeral {
        state.discard_changes()?;
    }
    Ok(())
}

fn keep_cache_within(plan: &MountPlan) {
    let dir = plan.cache_dir().join("blobs");
    let freed = BlobCache::open(&dir)
        .map_err(std::io::Error::other)
        .and_then(|cache| cache.evict(plan.serve.cache_size));
    match freed {
        Ok(0) => {}
        Ok(freed) => tracing::info!(freed, "removed blobs that were not read for longest from the cache"),
        Err(error) => tracing::warn!(%error, "the blob cache is not kept within its limit"),
    }
}

/// Puts the layers together over the space's directories.
fn build(plan: &MountPlan, index: &Arc<Index>, owner: Owner) -> Result<(Fs, ReflinkProbe), Error> {
    let state_dir = &plan.state_dir();
    let work = open_dir(&state_dir.join("work"))?;
    let upper = open_dir(&state_dir.join("upper"))?;
    let relocated = open_dir(&state_dir.join("reloc"))?;
    let space = open_dir(state_dir)?;
    let staging = Arc::new(Staging::new(work));
    let swept = staging.sweep().map_err(|source| Error::Os {
        path: state_dir.join("work"),
        call: "sweep",
        source,
    })?;
    if swept > 0 {
        tracing::info!(swept, "removed what an interrupted change had left");
    }
    let cache_dir = plan.cache_dir().join("blobs");
    let cache = BlobCache::open(&cache_dir)?.with_limit(plan.serve.cache_size);
    let store = HololibStore::new(&plan.library.hololib);
    let blobs = Arc::new(Blobs::new(Box::new(store), cache));
    let names = names(index, plan.space.identity.as_str())?;
    let source = Source::new(Arc::clone(index), blobs, names, plan.serve.strategy);
    let materializer = Arc::new(Materializer::new(source, Arc::clone(&staging), relocated));
    let reflink = materializer.probe_reflink(&cache_dir);
    if plan.serve.strategy == Strategy::Reflink && !reflink.supported {
        return Err(Error::NoReflink { path: state_dir.clone(), reason: reflink.reason });
    }
    let upper_error = |source| Error::Upper { path: state_dir.clone(), source };
    let mut namespace = Namespace::open(Arc::clone(index), Arc::clone(&materializer), staging, upper, owner)
        .map_err(upper_error)?;
    // The kernel leaves it to whoever reads the bytes. A read-only filesystem renews no times either.
    if plan.serve.read_only || plan.serve.has("noatime") {
        namespace = namespace.keeping_atime();
    }
    Ok((Fs::new(namespace, materializer, space).until_recorded(), reflink))
}

fn names(index: &Index, identity: &str) -> Result<Names, Error> {
    let bytes = |name: &str| <[u8; NAME_LEN]>::try_from(name.as_bytes());
    match (bytes(&index.info().identity), bytes(identity)) {
        (Ok(from), Ok(to)) => Ok(Names { from, to }),
        // The index compiler and the choice of the space both see to it.
        _ => Err(Error::Os { path: identity.into(), call: "relocate to", source: Errno::INVAL }),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|source| Error::Os {
        path: path.to_owned(),
        call: "open",
        source,
    })
}

fn mount_options(plan: &MountPlan) -> Result<fuse_mount::Options, Error> {
    let source = mountinfo::source_of(&plan.state_dir()).map_err(|error| Error::Os {
        path: plan.state_dir(),
        call: "stat",
        source: io_errno(&error),
    })?;
    Ok(fuse_mount::Options {
        source,
        allow_other: plan.serve.allow_other,
        unchecked: unchecked(plan),
        read_only: plan.serve.read_only,
        extra: plan.serve.options.clone(),
    })
}

/// Whether the kernel need not check permission bits. It would ask for a directory's attributes again after every
/// change in it, which is a third of what creating or removing a file costs; and root, the only one whom root's own
/// mount lets in, passes every check but those that [`crate::fs::Fs::may_access`] makes.
fn unchecked(plan: &MountPlan) -> bool {
    let asked_for = plan.serve.has("default_permissions");
    rustix::process::geteuid().is_root()
        && !plan.serve.allow_other
        && !asked_for
        && process::overrides_permissions()
}

fn acl(plan: &MountPlan) -> SessionACL {
    if plan.serve.allow_other { SessionACL::All } else { SessionACL::Owner }
}

/// The fewest and the most loops. One alone costs three times as much for each request as two: see
/// `docs/PERFORMANCE.md`. More than the processors could run only get into each other's way.
const LOOPS: std::ops::RangeInclusive<usize> = 3..=16;

/// How many loops there are to be: one more than there are processors, or as many as threads can be started.
///
/// # Errors
/// When not even one can be, or when memory is limited to less than they need.
fn loops_to_be_had() -> Result<usize, Error> {
    /// What each takes at once: a buffer for the largest request, and a stack.
    const EACH: u64 = 18 << 20;
    /// What else there has to be: files being unpacked, pieces of copies, the threads of requests that wait.
    const BESIDE: u64 = 64 << 20;
    let wanted = (process::processors() + 1).clamp(*LOOPS.start(), *LOOPS.end());
    // One more, which waits for them.
    let had = thread::obtainable(wanted + 1).saturating_sub(1);
    if had == 0 {
        let why = "two threads cannot be started: ulimit -u, or a container's limit of processes";
        return Err(Error::Limits(why.into()));
    }
    let Some(room) = surroundings::memory_room() else { return Ok(had) };
    surroundings::spare_addresses();
    let needed = BESIDE + EACH * had as u64;
    if room < needed {
        let (room, needed) = (room >> 20, needed >> 20);
        let why =
            format!("{room} MB of memory are left by its limit (ulimit -v, -d), and a mount needs {needed}");
        return Err(Error::Limits(why));
    }
    Ok(had)
}

/// How the loops run, with a device descriptor each where the device may be opened at all: an ordinary user got his
/// from fusermount3.
fn config(loops: usize) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(loops);
    let openable = rustix::fs::open(fuse_mount::DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    config.clone_fd = openable.is_ok();
    config
}

/// As mountinfo shows it.
fn device_number(dev: u64) -> String {
    format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev))
}

fn is_mounted(mount: &MountEntry) -> bool {
    mountinfo::mounts().is_ok_and(|mounts| mounts.iter().any(|other| other.is_same_filesystem(mount)))
}

fn run_info(plan: &MountPlan, mounted: &Mounted, dev: Option<&str>) -> RunInfo {
    let pid = i32::try_from(mounted.pid).unwrap_or(0);
    RunInfo {
        pid: mounted.pid,
        start_time: process::start_time(pid).unwrap_or(0),
        mountpoint: mounted.path.clone(),
        dev: dev.map(str::to_owned),
        strategy: mounted.strategy.to_string(),
        io: mounted.io.clone(),
        reflink: mounted.reflink.clone(),
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        read_only: plan.serve.read_only,
        ephemeral: plan.serve.ephemeral,
        extra: Some(plan.serve.extra()),
        materialized: None,
    }
}
