//! `--require-reflink` and `--require-passthrough`: what holofs otherwise does without becomes an error, before anything is
//! mounted.
//!
//! Whether extents can be shared is tried by every mount, in [`crate::session::compose`]. Whether the kernel takes backing files is
//! known only from a mount, so one is made in a mount namespace that ends at once; an ordinary user asks the mount helper.

use std::path::Path;
use std::time::Duration;

use super::helper::{Client, has_privilege};
use crate::session::error::Error;
use crate::session::request::MountRequest;
use crate::settings::{IoMode, MountSettings, Setting, Strategy};
use crate::sys::{plain, probe, process};

/// How long the trial mount may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// The settings of a mount with these requirements.
///
/// # Errors
/// When a requirement contradicts a setting, or cannot be met.
pub(in crate::session) fn apply(
    request: &MountRequest,
    mut mount: MountSettings,
    mountpoint: &Path,
) -> Result<MountSettings, Error> {
    if request.require_reflink && mount.strategy.value == Strategy::Copy {
        let source = &mount.strategy.source;
        return Err(Error::Contradiction(format!("--require-reflink, and the strategy is copy ({source})")));
    }
    if request.require_passthrough {
        if mount.io.value == IoMode::Cached {
            let source = &mount.io.source;
            return Err(Error::Contradiction(format!(
                "--require-passthrough, and --io is cached ({source})"
            )));
        }
        try_passthrough(&mount)
            .map_err(|reason| Error::NoPassthrough { path: mountpoint.to_owned(), reason })?;
        mount.io = Setting::flag(IoMode::Passthrough);
    }
    Ok(mount)
}

fn try_passthrough(mount: &MountSettings) -> Result<(), String> {
    if !has_privilege() {
        return Client::start(&mount.mount_helper.value).map(drop).map_err(|error| plain(&error));
    }
    let tried = process::ask(PATIENCE, || match probe::fuse() {
        // Without a mount there is no passthrough either, and the mount itself says why.
        probe::FuseProbe { passthrough: Some(Err(refusal)), .. } => plain(&refusal).into_bytes(),
        _ => Vec::new(),
    });
    match tried {
        Ok(Some(refusal)) if !refusal.is_empty() => Err(String::from_utf8_lossy(&refusal).into_owned()),
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("the kernel does not answer".to_owned()),
        Err(error) => Err(plain(&error)),
    }
}
