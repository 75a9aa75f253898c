//! Serves one mount: agrees with the kernel on options, threads and passthrough, mounts, runs the loops, cleans up.

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{INodeNo, Session, SessionACL};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use super::answers;
use super::chores::{keep_house, settle};
use super::helper::{self, Device};
use super::keeper::{self, Service, Taken, Task, Watch, Worker};
use super::mounted::Mounted;
use super::passing::{Passed, Passing};
use super::pending::PendingMount;
use super::{handshake, loops};
use crate::fs::Fs;
use crate::fuse::{Adapter, Offer, Serving};
use crate::handoff::requests::note_crashes;
use crate::handoff::{Handoff, Phase};
use crate::library::index::Index;
use crate::materialize::ReflinkProbe;
use crate::namespace::Namespace;
use crate::namespace::types::Ino;
use crate::session::compose;
use crate::session::control::Server;
use crate::session::end::{UnmountOnDrop, undo_mount_of};
use crate::session::error::Error;
use crate::session::request::MountPlan;
use crate::session::{registry, statistics};
use crate::space::ended::Ended;
use crate::space::run::{Death, Extra, Process, RunInfo};
use crate::sys::backing::Backings;
use crate::sys::fuse_message;
use crate::sys::fuse_mount::{self, MountError};
use crate::sys::guarded::{Dir, Trust};
use crate::sys::mountinfo::MountEntry;
use crate::sys::{log_file, plain, process, request_buffer};

/// The exit code of a Rust program that panicked.
const PANICKED: i32 = 101;

impl<'p> PendingMount<'p> {
    /// Mounts, and serves until the mount ends. Calls `ready` when the first request would be answered. Returns in the first
    /// worker only ([`keeper`]).
    pub(in crate::session) fn serve(self, ready: &mut (dyn FnMut(&Mounted) + Send)) -> Result<(), Error> {
        let plan = self.plan;
        let os = |call| Error::os(plan.state_dir(), call);
        let umask = rustix::process::umask(rustix::fs::Mode::empty()).bits();
        // Before there is a thread: each one would have an arena of its own.
        loops::check_memory(1)?;
        let handoff = Arc::new(Handoff::create().map_err(os("memfd_create for"))?);
        let device = helper::acquire(plan, &self.claim.mountpoint, &mount_options(plan)?)?;
        let undo = UnmountOnDrop { mount: device.mount.clone() };
        let passed = Passed::of(&self, &device, umask);
        // Another program needs the requests that were under way.
        let passing = if plan.settings.resends { Passing::new(&passed, &handoff) } else { None };
        self.serve_on(&handoff, device, undo, umask, passing, ready)
    }

    /// Serves a mount that is made. Returns in the first worker of this program only.
    pub(super) fn serve_on(
        self,
        handoff: &Arc<Handoff>,
        device: Device,
        undo: UnmountOnDrop,
        umask: u32,
        passing: Option<Passing>,
        ready: &mut (dyn FnMut(&Mounted) + Send),
    ) -> Result<(), Error> {
        let plan = self.plan;
        let os = |call| Error::os(plan.state_dir(), call);
        let place = plan.space.mountpoint.display();
        let service = plan.request.foreground.then(|| Service { ready: format!("{place} is mounted") });
        // In the foreground, somebody may be debugging.
        let limit = if plan.request.foreground { Duration::ZERO } else { plan.settings.hang_timeout.value };
        let watch = Watch::new(device.fd.as_fd(), limit);
        let split = keeper::split(handoff, &ending_signals(plan), service, watch, passing);
        let worker = split.map_err(os("clone"))?;
        let is_first = !handoff.is_takeover();
        let done = thread::scope(|scope| {
            let work = || self.work(&worker, handoff, device, undo, umask, ready);
            match thread::Builder::new().name("worker".into()).spawn_scoped(scope, work) {
                // The panic hook has said why.
                Ok(thread) => thread.join().unwrap_or_else(|_| std::process::exit(PANICKED)),
                Err(error) => Err(Error::Limits(format!("no thread can be started: {}", plain(&error)))),
            }
        });
        if !is_first {
            // What is below in the stack is the keeper's. The first worker may have closed its descriptors.
            let code = match &done {
                Ok(()) => i32::from(matches!(worker.task, Task::GiveUp(_))),
                Err(error) => {
                    tracing::error!(%error, "the process that serves the mount ends");
                    1
                }
            };
            std::process::exit(code);
        }
        worker.unblock();
        done
    }

    /// The work of a worker.
    fn work(
        mut self,
        worker: &Worker,
        handoff: &Arc<Handoff>,
        device: Device,
        mut undo: UnmountOnDrop,
        umask: u32,
        ready: &mut (dyn FnMut(&Mounted) + Send),
    ) -> Result<(), Error> {
        let plan = self.plan;
        let mut has_device = true;
        if handoff.is_takeover() {
            undo.mount = None;
            has_device = self.take_over(worker, handoff, &device)?;
        }
        if worker.task != Task::Serve {
            if has_device {
                // Ends the connection: requests that wait get an error.
                drop(device);
            } else {
                // Another file may have its number.
                std::mem::forget(device);
            }
            return self.end(worker.task, handoff);
        }
        if let Err(error) = note_crashes(handoff) {
            tracing::warn!(%error, "a crash would be blamed on all requests that are under way");
        }
        process::map_large_blocks();
        request_buffer::prepare(handoff.requests().largest());
        let (loops, composed) =
            loops::beside_probe(|| compose::filesystem(plan, &self.index, umask, handoff));
        let loops = loops?;
        let (fs, reflink) = composed?;
        // A worker may go on without its keeper, and says so.
        let signals = ending_signals(plan).into_iter().chain([SIGUSR1]);
        let signals = Signals::new(signals).map_err(Error::Fuse)?;
        worker.unblock();
        worker.notice_death_of_keeper();
        let stop_waiting = Box::new(CloseOnDrop(signals.handle()));
        let run = run_info(plan, &self.index, reflink, device.mount.as_ref(), worker, handoff)?;
        let mounted = Mounted {
            missing_blobs: self.missing_blobs,
            set_aside: self.claim.aside.clone(),
            ..Mounted::of(plan, &self.index, run.clone(), self.started)
        };
        let session = match start_session(plan, Arc::clone(&fs), loops, stop_waiting, &device) {
            // Somebody has unmounted it already. A mount that has ended is not a failure.
            Err(Error::Fuse(error)) if !device.mount.as_ref().map_or(Ok(false), registry::is_mounted)? => {
                tracing::info!(%error, "unmounted before the first request");
                self.claim.keep();
                if !handoff.is_takeover() {
                    ready(&mounted);
                }
                return Ok(());
            }
            session => session?,
        };
        drop_pages_of_bad_blobs(&fs, &session);
        let served = Served { fs: &fs, device, undo, run: &run };
        self.run(session, served, signals, worker, &mut || ready(&mounted))
    }

    /// Takes the place of a worker that died. Returns whether the device is still open: a worker that died while it ended
    /// the mount may have closed it.
    fn take_over(&mut self, worker: &Worker, handoff: &Handoff, device: &Device) -> Result<bool, Error> {
        let plan = self.plan;
        // Before anything can fail: programs may have changed the space, or `status` says why it never answered.
        self.claim.keep();
        let resent = worker.task == Task::Serve;
        let taken = keeper::take_over(handoff, resent.then_some(device.fd.as_fd()), plan.settings.resends);
        let Taken { open, resent } = taken.map_err(Error::os(plan.state_dir(), "close_range for"))?;
        self.claim.resume(|fd| open.binary_search(&fd).is_ok());
        if log_file::is_open() {
            let dir = Dir::open(&plan.state_dir(), Trust::Owned);
            if let Err(error) = dir.and_then(log_file::reopen) {
                tracing::warn!(%error, "the log cannot be opened again");
            }
        }
        let pid = std::process::id();
        if worker.resumes {
            let (keeper, version) = (worker.keeper.0, env!("CARGO_PKG_VERSION"));
            tracing::info!(version, keeper, pid, "this program goes on with the mount");
        } else {
            let death = handoff.last_death().map(|(status, _)| keeper::cause_of(status)).unwrap_or_default();
            let restarts = handoff.replaced();
            tracing::warn!(
                death,
                restarts,
                pid,
                "the process that served this mount died; this one takes its place"
            );
        }
        if !resent {
            tracing::warn!("the kernel cannot send requests again: those under way fail");
        }
        Ok(open.binary_search(&device.fd.as_raw_fd()).is_ok())
    }

    /// Does what is left to do for a mount that is served no more.
    fn end(self, task: Task, handoff: &Handoff) -> Result<(), Error> {
        let Self { plan, claim, .. } = self;
        undo_mount_of(&plan.state_dir());
        if let Task::GiveUp(why) = task {
            tracing::error!("the mount is given up: {why}");
            let (cause, at) = handoff.last_death().map(|(status, at)| (keeper::cause_of(status), at)).unzip();
            let ended = Ended { why: why.to_string(), cause, at: at.unwrap_or_default() };
            if let Err(error) = claim.state.write_ended(&ended) {
                tracing::warn!(%error, "`status` cannot say why the mount was given up");
            }
        }
        claim.state.remove_run()?;
        if plan.request.ephemeral {
            claim.state.discard_changes()?;
        }
        Ok(())
    }

    /// Runs the loops until the kernel reports the end of the mount. This thread waits for signals meanwhile.
    fn run(
        self,
        session: Session<Adapter>,
        served: Served<'_>,
        mut signals: Signals,
        worker: &Worker,
        ready: &mut dyn FnMut(),
    ) -> Result<(), Error> {
        let Self { plan, index, mut claim, .. } = self;
        let Served { fs, device, undo, run } = served;
        let handoff = fs.namespace().handoff();
        let state_dir = plan.state_dir();
        let notifier = session.notifier();
        claim.keep();
        if handoff.is_takeover() {
            adopt(fs, &device);
        }
        let loops =
            thread::Builder::new().name("session".into()).spawn(|| session.run()).map_err(Error::Fuse)?;
        if handoff.is_takeover() {
            // Before the record, by which `upgrade` knows that there is no way back.
            handoff.note_answering();
            worker.forget_earlier();
        }
        claim.state.write_run(run)?;
        if !handoff.is_takeover() {
            // While the loops start.
            if let Err(error) = claim.announce(index.info()) {
                tracing::warn!(%error, "rcc will not list this space");
            }
            // The first request. The kernel creates the root inode without a request and does not know its owner until
            // somebody asks for its attributes. Until then it refuses the owner to set the root's times.
            match rustix::fs::lstat(&plan.space.mountpoint) {
                Ok(root) if run.dev.as_deref() == Some(&device_number(root.st_dev)) => {}
                Ok(_) => {
                    if undo.mount.as_ref().map(registry::is_mounted).transpose()? == Some(true) {
                        let path = plan.space.mountpoint.clone();
                        return Err(Error::Mount { path, source: MountError::Exchanged });
                    }
                    // Somebody has unmounted it already. The loops end, and so does this function.
                }
                Err(error) => tracing::warn!(%error, "the mount does not answer"),
            }
            handoff.note_answering();
            handoff.reach(Phase::Serving);
            ready();
            // The keeper does not run before whoever waits for the mount has its answer.
            worker.tell_ready();
        }
        undo.keep();
        // From here on no failure of ours ends the mount.
        let control = Server::listen(&state_dir)
            .inspect_err(|error| tracing::warn!(%error, "no control socket: no command can ask this mount"))
            .ok();
        let no_thread = thread::scope(|scope| {
            let (stop, stopped) = mpsc::channel::<()>();
            let claim = &mut claim;
            let chores = move || {
                let prefetcher = settle(plan, claim, fs);
                keep_house(plan, &prefetcher, &stopped);
                prefetcher.finish();
            };
            let started = thread::Builder::new().name("housekeeping".into()).spawn_scoped(scope, chores);
            let settling = || fs.namespace().keep_settling();
            let settler = thread::Builder::new().name("settle".into()).spawn_scoped(scope, settling);
            if let Err(error) = settler {
                tracing::warn!(%error, "no thread to write out emptied directories: that is done at the end of the mount");
            }
            let answering = control.as_ref().map(|server| {
                let serve = || {
                    server.serve(&|request, line| {
                        answers::answer(fs, &state_dir, &notifier, worker.passing.as_ref(), request, line)
                    })
                };
                thread::Builder::new().name("control".into()).spawn_scoped(scope, serve)
            });
            if let Some(Err(error)) = answering {
                tracing::warn!(%error, "no thread for the control socket: no command can ask this mount");
            }
            if started.is_ok() {
                end_on_signal(&mut signals, plan, worker, fs.namespace());
            }
            drop(stop);
            control.iter().for_each(Server::stop);
            fs.namespace().end_settling();
            started.err()
        });
        if let Some(error) = no_thread {
            tracing::warn!(%error, "no thread for housekeeping: the cache may exceed its limit");
            let prefetcher = settle(plan, &mut claim, fs);
            end_on_signal(&mut signals, plan, worker, fs.namespace());
            prefetcher.finish();
        }
        match loops.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the loops failed"),
            Err(_) => tracing::error!("the thread that waits for the loops panicked"),
        }
        handoff.reach(Phase::Ending);
        // The last descriptor of the device: loops that failed leave a dead mount behind.
        drop(device);
        undo_mount_of(&state_dir);
        fs.namespace().settle(Duration::ZERO);
        statistics::save(fs, &state_dir, &mut None);
        claim.state.remove_run()?;
        if plan.request.ephemeral {
            claim.state.discard_changes()?;
        }
        Ok(())
    }
}

/// What a worker serves.
struct Served<'s> {
    fs: &'s Arc<Fs>,
    device: Device,
    undo: UnmountOnDrop,
    run: &'s RunInfo,
}

/// Starts to find the entries that an earlier worker told the kernel.
fn adopt(fs: &Arc<Fs>, device: &Device) {
    match device.fd.try_clone() {
        Ok(device) => fs.namespace().ask_kernel_by(move |ino| fuse_message::knows(device.as_fd(), ino.0)),
        Err(error) => {
            tracing::warn!(%error, "removed files that are open stay on the disk until the mount ends")
        }
    }
    let fs = Arc::clone(fs);
    let started = thread::Builder::new().name("adopt".into()).spawn(move || fs.namespace().adopt());
    if let Err(error) = started {
        tracing::debug!(%error, "no thread to find changed entries: the first request that needs one does it");
    }
}

/// Starts the FUSE session on a device. The adapter drops `serving` with its last loop.
fn start_session(
    plan: &MountPlan,
    fs: Arc<Fs>,
    loops: usize,
    serving: Serving,
    device: &Device,
) -> Result<Session<Adapter>, Error> {
    let Device { fd, backings, program, .. } = device;
    let handoff = Arc::clone(fs.namespace().handoff());
    let notifier = Arc::new(OnceLock::new());
    let offer = match backings {
        Some(backings) => Some(Offer {
            backings: Arc::clone(backings),
            stack_depth: stack_depth(plan, program.as_deref())?,
            notifier: Arc::clone(&notifier),
        }),
        None => None,
    };
    let adapter = Adapter::new(fs, loops, offer, serving);
    if handoff.is_takeover() {
        adapter.take_over();
    }
    let acl = if plan.request.allow_other { SessionACL::All } else { SessionACL::Owner };
    let session =
        handshake::session(&handoff, adapter, fd.as_fd(), acl, loops::config(loops)).map_err(Error::Fuse)?;
    notifier.get_or_init(|| session.notifier());
    if let Some(backings) = backings.as_ref().filter(|_| !handoff.is_takeover()) {
        try_passthrough(plan, &**backings).map_err(|error| Error::NoPassthrough {
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
    let dirs = [plan.state_dir(), plan.env.cache_dir()];
    let library = plan.location.on_disk();
    for path in dirs.iter().map(PathBuf::as_path).chain(library).chain(program) {
        let stat = rustix::fs::statfs(path).map_err(Error::os(path, "statfs"))?;
        if stat.f_type == OVERLAYFS {
            return Ok(2);
        }
    }
    Ok(1)
}

/// The options for mount(2) or fusermount3.
fn mount_options(plan: &MountPlan) -> Result<fuse_mount::Options, Error> {
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

/// Closes the signal iterator when it is dropped. The adapter drops it with its last loop.
#[derive(Debug)]
struct CloseOnDrop(Handle);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Has the kernel drop the cached pages of a file whose blob turns out to be bad.
fn drop_pages_of_bad_blobs(fs: &Fs, session: &Session<Adapter>) {
    let notifier = session.notifier();
    fs.materializer().when_bad(move |node| {
        let ino = Ino::of_lower(node);
        if let Err(error) = notifier.inval_inode(INodeNo(ino.0), 0, 0) {
            tracing::debug!(?ino, %error, "the kernel had no pages of a bad blob");
        }
    });
}

/// Unmounts at each signal. Returns when the last loop has ended.
fn end_on_signal(signals: &mut Signals, plan: &MountPlan, worker: &Worker, namespace: &Namespace) {
    for signal in signals.forever() {
        if signal == SIGUSR1 {
            if !worker.has_keeper() {
                tracing::warn!(
                    "the process that keeps this mount was killed: this one takes its place if it can"
                );
                worker.become_keeper(namespace);
                tracing::error!("nobody keeps this mount: it ends if this process dies, too");
            }
            continue;
        }
        tracing::info!(signal, "ending the mount");
        undo_mount_of(&plan.state_dir());
    }
}

/// The signals that end a mount. SIGQUIT comes from a terminal's quit key.
fn ending_signals(plan: &MountPlan) -> Vec<i32> {
    let mut signals = vec![SIGTERM, SIGINT, SIGHUP];
    if plan.request.foreground {
        signals.push(SIGQUIT);
    }
    signals
}

/// A device number as mountinfo shows it.
fn device_number(dev: u64) -> String {
    format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev))
}

fn run_info(
    plan: &MountPlan,
    index: &Index,
    reflink: ReflinkProbe,
    mount: Option<&MountEntry>,
    worker: &Worker,
    handoff: &Handoff,
) -> Result<RunInfo, Error> {
    let start_time = process::start_time(rustix::process::getpid().as_raw_nonzero().get());
    let start_time = start_time.ok_or(Errno::NODATA).map_err(Error::os("/proc/self/stat", "read"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
    let last_death = handoff.last_death().map(|(status, at)| Death { cause: keeper::cause_of(status), at });
    let (pid, keeper_start) = worker.keeper;
    Ok(RunInfo {
        pid,
        start_time: keeper_start,
        worker: Some(Process { pid: std::process::id(), start_time }),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        restarts: handoff.replaced(),
        last_death,
        mountpoint: plan.space.mountpoint.clone(),
        dev: mount.map(|mount| mount.dev.clone()),
        strategy: Some(plan.settings.strategy.value),
        io: Some(plan.settings.io.value.in_force()),
        reflink: Some(reflink),
        started: handoff.mounted_at(now),
        read_only: plan.request.read_only,
        ephemeral: plan.request.ephemeral,
        extra: Some(Extra { bytecode: index.bytecode().is_some(), ..plan.extra() }),
    })
}
