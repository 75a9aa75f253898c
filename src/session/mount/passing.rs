//! What the next program of a mount gets, and how a process becomes that program.
//!
//! A process that has the descriptors of the mount replaces its own program (exec), so its process id, its children and
//! its locks stay. It is the keeper at an upgrade, and the worker when its keeper was killed. Two descriptors tell the new
//! program everything: the memory of [`Handoff`], and a file with the plan ([`Passed`]). Both have a version. The new
//! program goes on in [`super::resume`].
//!
//! A rehearsal shows before whether the new program understands both and finds what it needs.
//!
//! Invariant: descriptors that are not passed on are closed by the exec.

mod plan;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub(super) use self::plan::Passed;
use crate::handoff::Handoff;
use crate::sys::{plain, process};

/// What a program prints that can go on with the mount.
pub const YES: &str = "holofs can go on";

/// What another one prints before the reason.
pub const NO: &str = "holofs cannot go on: ";

/// How long a rehearsal may take.
const REHEARSAL: Duration = Duration::from_secs(5);

/// What the next program of a mount gets: numbers of descriptors that stay open as long as the mount lives.
#[derive(Clone, Debug)]
pub(in crate::session) struct Passing {
    pub(super) handoff: RawFd,
    pub(super) plan: RawFd,
    /// Those that the plan names.
    pub(super) rest: Vec<RawFd>,
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

/// The command line that makes a program go on ([`super::resume`]).
pub(super) fn arguments(handoff: RawFd, plan: RawFd, earlier: Option<RawFd>) -> Vec<String> {
    let numbers = [handoff, plan].into_iter().chain(earlier).map(|fd| fd.to_string());
    ["keeper", "--resume"].map(str::to_owned).into_iter().chain(numbers).collect()
}

fn own_program() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// The other descriptors of the device.
pub(super) fn clones_of(device: RawFd) -> Vec<RawFd> {
    let of = process::file_of(device);
    let open = process::open_descriptors().unwrap_or_default().into_iter();
    open.filter(|(fd, dev, ino)| *fd != device && Some((*dev, *ino)) == of).map(|(fd, ..)| fd).collect()
}
