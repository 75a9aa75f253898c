//! The tests that need the kernel: real mounts, real processes, the built binary.
//!
//! They are one test binary with one module for each topic; `docs/TESTING.md` says what each module proves. No test is
//! skipped silently: without FUSE these tests fail.

// These lints protect code that must not panic; a test reports an error by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// Everything in a test binary is private, so `pub` has no wider meaning here.
#![allow(unreachable_pub)]

#[macro_use]
mod common;

mod anywhere;
mod bad_input;
mod beside_rcc;
mod blobs;
mod bytecode;
mod changes;
mod choice;
mod cli_mount;
mod commit;
mod crash;
mod damage;
mod delete;
mod differential;
mod doctor;
mod frozen;
mod gc;
mod hang;
mod helper;
mod hostile_library;
mod inject;
mod keeper;
mod layers;
mod logout;
mod mounted;
mod mounted_again;
mod neighbours;
mod no_resend;
mod once;
mod opens;
mod overlayfs;
mod parity;
mod passthrough;
mod placement;
mod power;
#[cfg(feature = "remote")]
mod pull;
#[cfg(feature = "remote")]
mod push;
mod record;
mod reflink;
#[cfg(feature = "remote")]
mod remote;
#[cfg(feature = "remote")]
mod remote_bytecode;
#[cfg(feature = "remote")]
mod remote_faults;
#[cfg(feature = "remote")]
mod remote_store;
mod restore;
mod run;
mod semantics;
mod settings;
mod shared;
mod stats;
mod surroundings;
mod system;
mod takeover;
mod transfer;
mod typed;
mod upgrade;
mod variables;
mod venv;
mod verify;
mod warm;
mod zip;
