//! A mount's life: taking the space, serving it from a daemon, and ending it.
//!
//! `cli` parses what was typed, `space` knows where things lie on disk, `fuse` answers the kernel. This layer puts them
//! together ([`compose`]) and decides when each of them works.
//!
//! Invariants: [`mount`] returns when the first request would be answered, and its answer is true. A live mount is found
//! in mountinfo and never by a remembered path, because a mount moves when a directory above it is renamed. However a
//! mount ends, the changes of the space stay.

mod arrival;
mod begin;
mod chores;
pub mod claim;
pub mod compose;
mod connect;
mod daemon;
mod end;
pub mod environment;
mod error;
pub mod helper;
mod holders;
mod mounted;
pub mod plan;
pub mod registry;
pub mod request;
mod serve;
pub mod spaces;

use std::time::Instant;

pub use end::{How, Unmounting};
pub use error::{Describe, Error, Failure};
pub use holders::Holder;
pub use mounted::Mounted;

use crate::sys::surroundings;
use begin::Found;
use plan::MountPlan;

/// Mounts a space and returns when the mount answers. With `plan.foreground` it calls `ready` at that moment, and
/// returns when the mount has ended.
///
/// # Errors
/// See [`Error`]. In each case nothing is mounted and no change of the user is lost.
pub fn mount(
    plan: &MountPlan,
    describe: Describe,
    ready: &mut dyn FnMut(&Mounted),
) -> Result<Mounted, Error> {
    let started = Instant::now();
    surroundings::serve_on();
    let begin = move || begin::begin(plan, started);
    if plan.foreground {
        return match begin()? {
            Found::Free(pending) => pending.serve(ready),
            Found::Mounted(reused) => {
                ready(&reused);
                Ok(*reused)
            }
        };
    }
    let mut mounted = daemon::start(plan, begin, describe)?;
    mounted.mounted_ms = mounted::millis(started);
    ready(&mounted);
    Ok(mounted)
}
