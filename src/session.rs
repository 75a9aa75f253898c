//! A mount's life: taking the space, serving it from a daemon, and ending it.
//!
//! `cli` parses what was typed, `space` knows where things lie on disk, `fuse` answers the kernel. This layer puts them
//! together ([`compose`]) and decides when each of them works.
//!
//! Invariants: [`mount`] returns when the first request would be answered, and its answer is true. A live mount is found
//! in mountinfo and never by a remembered path, because a mount moves when a directory above it is renamed. However a
//! mount ends, the changes of the space stay.

pub mod activation;
mod answers;
mod arrival;
mod begin;
pub mod bench;
pub mod bytecode;
pub mod changes;
mod child;
pub mod choice;
mod chores;
pub mod claim;
pub mod commit;
pub mod compose;
pub mod control;
mod daemon;
pub mod delete;
pub mod doctor;
mod end;
pub mod environment;
mod error;
pub mod fork;
pub mod gc;
mod handshake;
pub mod helper;
mod holders;
mod keeper;
mod link;
mod loops;
mod plan;
pub mod registry;
pub mod request;
mod required;
pub mod reset;
pub mod restore;
pub mod run;
mod serve;
pub mod spaces;
pub mod statistics;
mod users;
pub mod variables;
pub mod wanted;
mod watch;
mod writeback;

use std::time::Instant;

pub use end::{How, Unmounting};
pub use error::{Describe, Error, Failure, Refused};
pub use holders::Holder;
pub use serve::Mounted;

use crate::sys::surroundings;
use request::MountPlan;

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
fn start(plan: &MountPlan, describe: Describe) -> Result<Mounted, Error> {
    let started = Instant::now();
    let mounted = match daemon::start(plan, started, describe) {
        Ok(mounted) => Mounted { mounted_ms: serve::millis(started), ..mounted },
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
