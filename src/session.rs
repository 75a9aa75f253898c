//! A mount's life: taking the space, serving it from a daemon, and ending it.
//!
//! `cli` parses what was typed, `space` knows where things lie on disk, `fuse` answers the kernel. This layer puts them
//! together ([`compose`]) and decides when each of them works.
//!
//! Invariants: [`mount()`] returns when the first request would be answered, and its answer is true. A live mount is found
//! in mountinfo and never by a remembered path, because a mount moves when a directory above it is renamed. However a
//! mount ends, the changes of the space stay.

pub mod bench;
pub mod bytecode;
pub mod changes;
pub mod choice;
pub mod compose;
pub mod control;
pub mod delete;
pub mod doctor;
mod end;
pub mod environment;
mod error;
pub mod gc;
mod holders;
pub mod mount;
mod placed;
pub mod registry;
pub mod request;
pub mod restore;
pub mod run;
pub mod spaces;
mod start;
pub mod statistics;
mod users;
pub mod wanted;

pub use end::{How, Unmounting};
pub use error::{Describe, Error, Failure, Refused};
pub use holders::Holder;
pub use mount::mounted::Mounted;
pub use start::mount;
