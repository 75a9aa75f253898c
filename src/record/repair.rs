//! Renames damaged blobs of a library aside, so that a recording or an import stores them anew.
//!
//! A recorder leaves a blob that exists as it is, also a damaged one, unless its damage is obvious. Without a blob, the
//! file is missing in both cases, and the next recording of the same content heals the library.
//!
//! Invariant: under rcc's lock, each blob is read again, and one that matches its digest stays. Nothing is deleted.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::error::RecordError;
use super::{Target, place};
use crate::library::LibraryError;
use crate::library::check::is_damaged;
use crate::library::digest::Digest;
use crate::library::dir::DirLibrary;
use crate::sys::guarded::Trust;

/// What is appended to the name of a damaged blob. Neither rcc nor holofs takes such a file for a blob.
const ASIDE: &str = ".corrupt";

/// Renames those of the blobs aside that are still damaged. Returns their new paths.
///
/// # Errors
/// When the library is an archive, its lock is not to be had, or a blob cannot be renamed.
pub fn set_aside(target: &Target, digests: &[Digest]) -> Result<Vec<PathBuf>, RecordError> {
    let place = place::find(target)?;
    let opened = place.open()?;
    let lock = opened.lock(target.lock_timeout, &target.cancel)?;
    let library = DirLibrary::new(&place.hololib);
    let mut renamed = Vec::new();
    for digest in digests {
        match is_damaged(&library, digest) {
            Ok(true) => {}
            Ok(false) => continue,
            // Somebody else has removed it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(LibraryError::Io { path: place.hololib.join("library"), source }.into());
            }
        }
        let [first, second, third] = digest.fan_out_dirs();
        let mut dir = opened.library.open_dir(first.as_ref(), Trust::Shared)?;
        for name in [second, third] {
            dir = dir.open_dir(name.as_ref(), Trust::Shared)?;
        }
        let name = OsString::from(digest.to_string());
        let mut aside = name.clone();
        aside.push(ASIDE);
        dir.rename(&name, &aside)?;
        dir.sync()?;
        renamed.push(dir.path().join(aside));
    }
    drop(lock);
    Ok(renamed)
}
