//! The protocol, the policy and the system calls of the mount helper.
//!
//! `holofs-mount-helper` is a small privileged program that does two things for an ordinary user: it mounts a FUSE
//! filesystem on a directory of the user, and registers files of the user with the kernel for passthrough. Both need
//! CAP_SYS_ADMIN. `docs/SECURITY.md` describes the threat model.
//!
//! `policy` and `proto` open no file and make no system call, so that tests can list every decision as a table. The
//! program (`main.rs` and its modules) collects the facts and carries out what the policy allows. holofs uses `wire`,
//! `passthrough` and `view` too: to talk to the helper, and to register files itself when it runs as root.

pub mod passthrough;
pub mod policy;
pub mod proto;
pub mod view;
pub mod vocabulary;
pub mod wire;
