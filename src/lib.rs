//! holofs presents an rcc environment as a filesystem instead of restoring it.
//!
//! The layers, from what a user types to what lies on disk. Dependencies point downward only:
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | what was typed; human and JSON output from the same value; exit codes |
//! | [`session`] | mount, daemonize, readiness, signals, the registry of live mounts |
//! | [`space`] | a space on disk: choice, paths, locks, metadata, state |
//! | [`fuse`] | adapter between fuser's types and ours; the one place that replies with an error |
//! | [`fs`] | file operations on our own types; testable without FUSE |
//! | [`namespace`] | the merged view of lower and upper; the inode table; the lock order |
//! | [`materialize`] | a lower file becomes a private backing file |
//! | [`activate`] | the variables of a space |
//! | [`record`] | what a command installed becomes a library in rcc's format |
//! | [`restore`] | a classic tree of plain files, for machines without FUSE |
//! | [`library`] | catalogs, compiled indexes, blobs, digests, the blob cache, rcc's names |
//! | [`blueprint`] | robot.yaml, conda.yaml and package.yaml become rcc's text and hash |
//! | [`handoff`] | what a worker leaves to the one that takes its place |
//! | [`metrics`] | the counters of one mount |
//! | [`settings`] | what a user can choose, by flags, variables and files |
//! | [`yaml`] | a YAML document as rcc reads it |
//! | [`sys`] | the only `unsafe`; ioctls, mounts, mappings, mountinfo |
//!
//! `docs/ARCHITECTURE.md` follows one request through all of them.

pub mod activate;
pub mod blueprint;
pub mod cli;
pub mod fs;
pub mod fuse;
pub mod handoff;
pub mod library;
pub mod materialize;
pub mod metrics;
pub mod namespace;
pub mod record;
pub mod restore;
pub mod session;
pub mod settings;
pub mod space;
pub mod sys;
pub mod yaml;

#[global_allocator]
static ALLOCATOR: sys::request_buffer::Allocator = sys::request_buffer::Allocator;
