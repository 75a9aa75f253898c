//! Goes on with a mount in another program.
//!
//! A process that has the descriptors of the mount replaces its own program (exec), so its process id, its children and
//! its locks stay. It is the keeper at an upgrade, and the worker when its keeper was killed. Two descriptors tell the new
//! program everything: the memory of [`Handoff`], and a file with the plan (`Passed`). Both have a version.
//!
//! A rehearsal ([`rehearse`]) shows before whether the new program understands both and finds what it needs. If it fails all
//! the same before its first worker answers, it runs the earlier program again, of which it has a descriptor.
//!
//! Limit: a new program that crashes after the exec and before it has forked its worker ends the mount.
//!
//! Invariants: descriptors that are not passed on are closed by the exec. The new program owns none of them before nothing
//! can fail any more, because the earlier one would need them.

mod plan;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::claim::Claim;
use super::helper::{Client, Device};
use super::loops;
use super::serve::PendingMount;
use crate::handoff::Handoff;
use crate::library::index::Index;
use crate::session::end::UnmountOnDrop;
use crate::session::error::Error;
use crate::session::request::MountPlan;
use crate::space::mountpoint::open_base;
use crate::space::record::SpaceRecord;
use crate::space::state::log_of;
use crate::sys::backing::{Backings, Direct};
use crate::sys::guarded::{Dir, Trust};
use crate::sys::{log_file, plain, process};
pub(super) use plan::Passed;

/// What a program prints that can go on with the mount.
pub const YES: &str = "holofs can go on";

/// What another one prints before the reason.
pub const NO: &str = "holofs cannot go on: ";

/// How long a rehearsal may take.
const REHEARSAL: Duration = Duration::from_secs(5);

/// What the next program of a mount gets: numbers of descriptors that stay open as long as the mount lives.
#[derive(Clone, Debug)]
pub(in crate::session) struct Passing {
    handoff: RawFd,
    plan: RawFd,
    /// Those that the plan names.
    rest: Vec<RawFd>,
    /// Further descriptors of the device, from which workers of the earlier program have read. The kernel ends these
    /// requests when they are closed, so the first worker closes them when the requests were sent again.
    pub(super) clones: Vec<RawFd>,
    /// The earlier program, until this one answers.
    pub(super) earlier: Option<RawFd>,
}

#[cfg(test)]
impl Passing {
    /// What a program gets that took the place of the one behind a descriptor.
    pub(super) fn after(earlier: RawFd) -> Self {
        Self { handoff: -1, plan: -1, rest: Vec::new(), clones: Vec::new(), earlier: Some(earlier) }
    }
}

impl Passing {
    /// What a mount that this process has made passes on. None where memory cannot be passed on: the mount then cannot go
    /// on in another program.
    pub(super) fn new(passed: &Passed, handoff: &Handoff) -> Option<Self> {
        let handoff = handoff.fd()?.as_raw_fd();
        let plan = passed
            .write()
            .inspect_err(|error| tracing::debug!(%error, "the mount cannot go on in another program"))
            .ok()?;
        let rest = passed.descriptors().collect();
        Some(Self { handoff, plan, rest, clones: Vec::new(), earlier: None })
    }

    /// Goes on with the program behind a descriptor, and with this one if that fails. Returns only when the program cannot
    /// be run; nothing has changed then.
    pub(super) fn upgrade(&self, handoff: &Handoff, program: RawFd) -> std::io::Error {
        match own_program() {
            Ok(own) => self.exec(handoff, program, Some(own.as_raw_fd())),
            Err(errno) => errno.into(),
        }
    }

    /// Goes on with this program from its beginning. Returns only when it cannot be run.
    pub(super) fn begin_again(&self, handoff: &Handoff) -> std::io::Error {
        match own_program() {
            Ok(own) => self.exec(handoff, own.as_raw_fd(), None),
            Err(errno) => errno.into(),
        }
    }

    /// Goes on with the earlier program. Returns only when there is none, or it cannot be run.
    pub(super) fn go_back(&self, handoff: &Handoff) {
        if let Some(earlier) = self.earlier {
            let error = self.exec(handoff, earlier, None);
            tracing::error!(%error, "the earlier program cannot go on");
        }
    }

    /// Closes the earlier program. Called once, by the first worker that answers.
    pub(super) fn forget_earlier(&self) {
        drop(self.earlier.map(process::inherit));
    }

    fn exec(&self, handoff: &Handoff, program: RawFd, earlier: Option<RawFd>) -> std::io::Error {
        let args = arguments(self.handoff, self.plan, earlier);
        let held = handoff.held().fds().into_iter().map(|(fd, _)| fd);
        let mut passed = vec![self.handoff, self.plan];
        passed.extend(self.rest.iter().copied().chain(earlier).chain(handoff.kept_fds()).chain(held));
        passed.extend(self.rest.first().into_iter().flat_map(|device| clones_of(*device)));
        process::exec(program, &args, &passed)
    }

    /// Has the program behind a descriptor do all that can fail before it goes on. Changes nothing.
    ///
    /// # Errors
    /// Why the program cannot go on, in words.
    pub(super) fn rehearse(&self, program: RawFd) -> Result<(), String> {
        let cannot = |error: std::io::Error| format!("it cannot be run: {}", plain(&error));
        let mut command = Command::new(format!("/proc/self/fd/{program}"));
        command.args(["keeper", "--rehearse"]).args([self.handoff, self.plan].map(|fd| fd.to_string()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let passed: Vec<RawFd> =
            [self.handoff, self.plan].into_iter().chain(self.rest.iter().copied()).collect();
        let mut child = process::start_with(&mut command, &passed).map_err(cannot)?;
        let said = child.stdout.take().map(|said| process::read_some(said.into(), REHEARSAL, 1 << 12));
        // It has said what it has to say, or takes too long.
        child.kill().and_then(|()| child.wait()).map_err(cannot)?;
        let said = said.transpose().map_err(cannot)?.unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        match said.lines().next() {
            Some(YES) => Ok(()),
            Some(line) if line.starts_with(NO) => Err(line.trim_start_matches(NO).to_owned()),
            _ => Err("it is no holofs that takes over mounts".to_owned()),
        }
    }
}

/// The command line that makes a program go on ([`resume`]).
fn arguments(handoff: RawFd, plan: RawFd, earlier: Option<RawFd>) -> Vec<String> {
    let numbers = [handoff, plan].into_iter().chain(earlier).map(|fd| fd.to_string());
    ["keeper", "--resume"].map(str::to_owned).into_iter().chain(numbers).collect()
}

fn own_program() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// The other descriptors of the device.
fn clones_of(device: RawFd) -> Vec<RawFd> {
    let of = process::file_of(device);
    let open = process::open_descriptors().unwrap_or_default().into_iter();
    open.filter(|(fd, dev, ino)| *fd != device && Some((*dev, *ino)) == of).map(|(fd, ..)| fd).collect()
}

/// Does all of [`resume`] that can fail, and changes nothing.
///
/// # Errors
/// See [`Error`].
pub fn rehearse(handoff: RawFd, plan: RawFd) -> Result<(), Error> {
    prepare(&read(handoff, plan)?.1).map(drop)
}

/// Goes on with the mount of an earlier program of this process. Returns only when it fails, and there is no earlier program
/// that can go on.
///
/// # Errors
/// See [`Error`].
pub fn resume(handoff: RawFd, plan: RawFd, earlier: Option<RawFd>) -> Result<(), Error> {
    let prepared = read(handoff, plan).and_then(|(shared, passed)| Ok((shared, prepare(&passed)?, passed)));
    let (shared, prepared, passed) = prepared.inspect_err(|error| {
        let Some(earlier) = earlier else { return };
        tracing::error!(%error, "the earlier program goes on");
        // What was passed on is still passed on.
        let error = process::exec(earlier, &arguments(handoff, plan, None), &[]);
        tracing::error!(%error, "the earlier program cannot go on");
    })?;
    let Prepared { clones, mount, index, recorded, base, direct } = prepared;
    process::close_all_on_exec();
    let inherit = process::inherit;
    let claim = Claim::inherited(&mount, recorded, base, File::from(inherit(passed.lock)), passed.umask);
    let (backings, program, socket) = match &passed.helper {
        Some(helper) => {
            let client = Client::resume(inherit(helper.socket), helper.program.clone());
            let backings: Arc<dyn Backings> = Arc::new(client);
            (Some(backings), Some(helper.program.clone()), Some(helper.socket))
        }
        None => (direct.map(|direct| Arc::new(direct) as Arc<dyn Backings>), None, None),
    };
    let device =
        Device { fd: inherit(passed.device), mount: passed.mount.clone(), backings, program, socket };
    shared.resumed();
    let passing = Passing { handoff, plan, rest: passed.descriptors().collect(), clones, earlier };
    let started = Instant::now();
    let pending = PendingMount { plan: &mount, index, claim, started, missing_blobs: passed.missing_blobs };
    let undo = UnmountOnDrop { mount: None };
    pending.serve_on(&shared, device, undo, passed.umask, Some(passing), &mut |_| ())
}

fn read(handoff: RawFd, plan: RawFd) -> Result<(Arc<Handoff>, Passed), Error> {
    let cannot = |error: std::io::Error| Error::CannotGoOn(plain(&error));
    let file = |fd| process::duplicate(fd).map_err(|errno| cannot(errno.into()));
    let handoff = Handoff::of(file(handoff)?).map_err(|errno| match errno {
        Errno::INVAL => Error::CannotGoOn("the memory of the mount has another version".to_owned()),
        errno => cannot(errno.into()),
    })?;
    let passed = Passed::read(&File::from(file(plan)?)).map_err(cannot)?;
    Ok((Arc::new(handoff), passed))
}

/// What a mount needs to go on, apart from what it owns.
struct Prepared {
    /// As [`Passing::clones`].
    clones: Vec<RawFd>,
    mount: MountPlan,
    index: Arc<Index>,
    recorded: SpaceRecord,
    base: [Dir; 2],
    /// Registers files for passthrough, without a mount helper.
    direct: Option<Direct>,
}

fn prepare(passed: &Passed) -> Result<Prepared, Error> {
    loops::check_memory(1)?;
    if passed.descriptors().any(|fd| process::file_of(fd).is_none()) {
        return Err(Error::CannotGoOn("descriptors were not passed on".to_owned()));
    }
    // Before this program has one.
    let clones = clones_of(passed.device);
    let mount = passed.plan()?;
    let index = passed.index(&mount)?;
    let base = [open_base(&mount.space)?, open_base(&mount.space)?];
    let os = |call| Error::os(mount.state_dir(), call);
    let gone = || Error::CannotGoOn("the record of the space is gone".to_owned());
    let recorded = SpaceRecord::read(&mount.state_dir())?.ok_or_else(gone)?;
    let is_direct = passed.helper.is_none() && passed.io.is_passthrough();
    let device = is_direct.then(|| process::duplicate(passed.device)).transpose().map_err(os("dup for"))?;
    if passed.logs {
        let log = Dir::open(&mount.state_dir(), Trust::Owned).and_then(log_file::open);
        log.map_err(Error::os(log_of(&mount.state_dir()), "open"))?;
    }
    Ok(Prepared { clones, mount, index, recorded, base, direct: device.map(Direct::new) })
}
