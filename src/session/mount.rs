//! The making of a mount and the processes that serve it: from the request that was typed to the end of its daemon.
//!
//! `plan` decides what is mounted and where, `begin` takes the space, `daemon` starts the process that stays, `keeper`
//! has it replaced when it dies, and `serve` answers the kernel. [`compose`] creates the parts of all of them.

pub(super) mod answers;
pub(super) mod arrival;
mod begin;
mod chores;
pub mod claim;
pub mod compose;
mod daemon;
mod handshake;
pub mod helper;
mod keeper;
mod link;
mod loops;
pub(super) mod mounted;
mod plan;
mod required;
pub mod resume;
mod scope;
pub(super) mod serve;
pub mod upgrade;
mod watch;

use std::time::Instant;

use mounted::Mounted;

use super::error::{Describe, Error};
use super::request::MountPlan;
use super::restore;
use super::run::variables;
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
    ready(&variables::mount_to_stay(plan, describe)?);
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

/// Makes the link that `--link` asks for.
fn make_link(plan: &MountPlan, mounted: &Mounted) -> Result<(), Error> {
    plan.request.link.as_ref().map_or(Ok(()), |path| link::make(path, &mounted.path))
}
