//! The system: the only `unsafe`, and the only place that knows mounts, forks, mappings and mountinfo.

pub mod fuse_mount;
pub mod map;
pub mod mountinfo;
pub mod process;
