//! Starts a mount: in this process, or by a daemon. Restores the space instead where that is asked for and FUSE is missing.

use std::time::Instant;

use super::error::{Describe, Error};
use super::mount::mounted::{self, Mounted};
use super::mount::{begin, daemon, link, watch};
use super::request::MountPlan;
use super::{restore, users};
use crate::sys::surroundings;

/// Mounts a space. Calls `ready` when the mount answers, and then returns, or in the foreground serves the mount until it
/// ends.
///
/// # Errors
/// See [`Error`]. In each case nothing is mounted and no change of the user is lost.
pub fn mount(
    plan: &MountPlan,
    describe: Describe,
    ready: &mut (dyn FnMut(&Mounted) + Send),
) -> Result<(), Error> {
    let started = Instant::now();
    if let Some(warning) = &plan.settings.warning {
        tracing::warn!("{warning}");
    }
    surroundings::serve_on();
    if plan.request.foreground {
        if plan.request.auto_unmount {
            watch::start(std::process::id(), &plan.state_dir())?;
        }
        let began = begin::begin(plan, started, &|| Ok(()), &mut |mounted| {
            if let Err(error) = make_link(plan, mounted) {
                tracing::error!("{error}");
            }
            ready(mounted);
        });
        return match began {
            Err(error) => restore::instead(plan, started, error).map(|restored| ready(&restored)),
            Ok(()) => Ok(()),
        };
    }
    ready(&mount_to_stay(plan, describe)?);
    Ok(())
}

/// Mounts a space by a daemon. Changes nothing of this process, which may start programs afterwards.
pub(super) fn start(plan: &MountPlan, describe: Describe) -> Result<Mounted, Error> {
    let started = Instant::now();
    let mounted = match daemon::start(plan, started, describe) {
        Ok(mounted) => Mounted { mounted_ms: mounted::millis(started), ..mounted },
        Err(error) => restore::instead(plan, started, error)?,
    };
    if plan.request.auto_unmount && !mounted.reused {
        watch::start(mounted.pid, &plan.state_dir())?;
    }
    make_link(plan, &mounted)?;
    Ok(mounted)
}

/// Mounts a space, or finds it mounted. A mount that would end with a run stays.
pub(in crate::session) fn mount_to_stay(plan: &MountPlan, describe: Describe) -> Result<Mounted, Error> {
    let deadline = Instant::now() + plan.lock_timeout;
    loop {
        let mounted = start(plan, describe)?;
        if !mounted.reused || users::take_over(&plan.state_dir(), mounted.pid, plan.lock_timeout)? {
            return Ok(mounted);
        }
        if Instant::now() > deadline {
            return Err(Error::no_answer(mounted.path, Some(mounted.pid)));
        }
    }
}

/// Makes the link that `--link` asks for.
fn make_link(plan: &MountPlan, mounted: &Mounted) -> Result<(), Error> {
    plan.request.link.as_ref().map_or(Ok(()), |path| link::make(path, &mounted.path))
}
