//! The making of a mount and the processes that serve it: from the request that was typed to the end of its daemon.
//!
//! `plan` decides what is mounted and where, `begin` takes the space, `daemon` starts the process that stays, `keeper`
//! has it replaced when it dies, and `serve` answers the kernel.

mod ahead;
pub(super) mod answers;
pub(super) mod arrival;
pub(super) mod begin;
mod chores;
pub mod claim;
pub(super) mod daemon;
mod handshake;
pub mod helper;
mod keeper;
pub(super) mod link;
mod loops;
pub(super) mod mounted;
mod passing;
mod pending;
mod plan;
mod required;
pub mod resume;
mod scope;
pub(super) mod serve;
pub mod upgrade;
pub(super) mod watch;
