//! The tests that need the kernel: real mounts, real processes, the built binary.
//!
//! One binary, one module for each question; `docs/TESTING.md` says what each proves. Nothing is skipped in
//! silence: where FUSE is missing these tests fail.

// Lints that exist for code which must not fail; a test says what is wrong by failing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// Everything in a test binary is private, whatever it is called.
#![allow(unreachable_pub)]

#[macro_use]
mod common;

mod bad_input;
mod beside_rcc;
mod blobs;
mod cli_mount;
mod crash;
mod damage;
mod differential;
mod frozen;
mod helper;
mod hostile_catalog;
mod hostile_library;
mod inject;
mod mounted;
mod mounted_again;
mod neighbours;
mod overlayfs;
mod parity;
mod passthrough;
mod power;
mod record;
mod reflink;
mod semantics;
mod surroundings;
mod venv;
mod warm;
