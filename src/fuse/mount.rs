//! What all threads of a mount share.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::passthrough::Passthrough;
use crate::fs::Fs;
use crate::namespace::types::Ino;

/// How long the kernel may cache names and attributes. In effect without limit, because every change goes through the
/// kernel.
pub(super) static TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// The operations of a mount, and how its files are open.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) fs: Arc<Fs>,
    /// None in cached mode.
    pub(super) passthrough: Option<Passthrough>,
}

impl Deref for Mount {
    type Target = Fs;

    fn deref(&self) -> &Fs {
        &self.fs
    }
}

impl Mount {
    /// How long the kernel may keep an inode's attributes.
    pub(super) fn attr_ttl(&self, ino: Ino) -> &'static Duration {
        match &self.passthrough {
            Some(modes) if !modes.keeps_attributes(ino.0) => &Duration::ZERO,
            _ => &TTL,
        }
    }
}
