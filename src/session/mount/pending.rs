//! A mount before it is made.

use std::sync::Arc;
use std::time::Instant;

use super::claim::Claim;
use crate::library::index::Index;
use crate::session::request::MountPlan;

/// A space with its locks and its index, ready to be mounted. No thread runs yet, so the process may fork.
#[derive(Debug)]
pub(in crate::session) struct PendingMount<'p> {
    pub(in crate::session) plan: &'p MountPlan,
    pub(in crate::session) index: Arc<Index>,
    /// Holds the space's own lock and, until the mount answers, rcc's. `rcc run` would wait forever for a lock that is
    /// held as long as the mount lives.
    pub(in crate::session) claim: Claim<'p>,
    pub(in crate::session) started: Instant,
    pub(in crate::session) missing_blobs: u32,
}
