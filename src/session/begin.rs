//! The start of a mount: takes the space, unless it is mounted already.

use std::time::{Duration, Instant};

use super::arrival;
use super::error::Error;
use super::mounted::Mounted;
use super::plan::MountPlan;
use super::reuse::{ENDING, reuse};
use super::serve::PendingMount;
use crate::space::SpaceError;
use crate::sys::process;

/// The state in which `mount` finds a space.
pub(super) enum Found<'p> {
    /// Mounted, as it was asked for.
    Mounted(Box<Mounted>),
    /// Not mounted. This process holds its locks now.
    Free(Box<PendingMount<'p>>),
}

/// Takes the space, unless it is mounted.
pub(super) fn begin(plan: &MountPlan, started: Instant) -> Result<Found<'_>, Error> {
    let (index, missing_blobs) = arrival::whole_index(plan)?;
    process::trim_heap();
    let deadline = started + ENDING.min(plan.lock_timeout);
    loop {
        if let Some(reused) = reuse(plan, &index, started)? {
            return Ok(Found::Mounted(Box::new(reused)));
        }
        match plan.claim(&index.catalog_sha256()) {
            // The space is not mounted, so the holder of its lock either ends or starts a mount. Look again.
            Err(SpaceError::Busy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            claim => {
                let pending = PendingMount::new(plan, index, claim?, started, missing_blobs);
                return Ok(Found::Free(Box::new(pending)));
            }
        }
    }
}
