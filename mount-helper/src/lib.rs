//! The protocol of the mount helper and the policy it decides by.
//!
//! `holofs-mount-helper` is a small privileged program that does two things for an ordinary user and nothing else:
//! mount a FUSE filesystem on a directory of the user's, and register files of the user's with the kernel for
//! passthrough; both need CAP_SYS_ADMIN. `docs/SECURITY.md` has the threat model.
//!
//! `policy` and `proto` are pure: no file is opened and no call to the system made, so that every decision can be tested
//! as a table. The program itself (`main.rs` and what it names) gathers the facts and does what was allowed. `view` is
//! for it and for root's daemon, which registers files without it.

pub mod passthrough;
pub mod policy;
pub mod proto;
pub mod view;
pub mod vocabulary;
pub mod wire;
