//! `--link PATH`: a symbolic link to the mountpoint, for programs that expect the environment at another path.
//!
//! Invariant: nothing but a symbolic link is replaced, and it is replaced in one step.

use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::session::error::Error;
use crate::sys::plain;

/// Checks before the mount that the link can be made: its directory exists, and nothing but a link has its name.
pub(in crate::session) fn check(link: &Path, mountpoint: &Path) -> Result<(), Error> {
    let failed = |why: &str| Error::Link { path: link.to_owned(), why: why.to_owned() };
    let Some(above) = link.parent().filter(|_| link.file_name().is_some()) else {
        return Err(failed("it has no name"));
    };
    if !above.is_dir() {
        return Err(failed("its directory does not exist"));
    }
    if link.starts_with(mountpoint) {
        return Err(failed("it is inside the mountpoint"));
    }
    match std::fs::symlink_metadata(link) {
        Ok(found) if !found.is_symlink() => Err(failed("it exists, and is not a symbolic link")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(&plain(&error))),
    }
}

/// Makes the link, or lets an existing one lead to the mountpoint.
pub(in crate::session) fn make(link: &Path, mountpoint: &Path) -> Result<(), Error> {
    if std::fs::read_link(link).is_ok_and(|target| target == mountpoint) {
        return Ok(());
    }
    let failed = |error: std::io::Error| Error::Link { path: link.to_owned(), why: plain(&error) };
    let mut name = link.file_name().unwrap_or_default().to_owned();
    name.push(format!(".holofs-{}", std::process::id()));
    let new = link.with_file_name(name);
    symlink(mountpoint, &new).map_err(failed)?;
    std::fs::rename(&new, link).map_err(|error| {
        if let Err(left) = std::fs::remove_file(&new) {
            tracing::debug!(path = %new.display(), error = %left, "a new link is left behind");
        }
        failed(error)
    })
}
