//! The mount helper, as far as it exists: the protocol it will speak and the policy it will decide by.
//!
//! It is for a small privileged program that does two things for an ordinary user and nothing else: mount a FUSE
//! descriptor on a directory of the user's, and register files with the kernel for passthrough, which needs
//! CAP_SYS_ADMIN. **There is no program yet**: nothing here runs with privilege, and holofs mounts through
//! fusermount3. `docs/SECURITY.md` has the threat model.
//!
//! Both parts are pure: no file is opened and no call to the system made, so that every decision can be tested as a
//! table. It has no dependencies, so that all that would run with privilege can be read in one sitting.

#![forbid(unsafe_code)]

pub mod policy;
pub mod proto;
