//! Goes on with a mount that another program of the same process has made (`passing`).
//!
//! If this program fails before its first worker answers, it runs the earlier program again, of which it has a descriptor.
//!
//! Limit: a new program that crashes after the exec and before it has forked its worker ends the mount.
//!
//! Invariant: this program owns none of the descriptors before nothing can fail any more, because the earlier one would
//! need them.

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::claim::Claim;
use super::helper::{Client, Device};
use super::loops;
pub use super::passing::{NO, YES};
use super::passing::{Passed, Passing, arguments, clones_of};
use super::pending::PendingMount;
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
