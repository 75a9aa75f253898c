//! Imports environments from rccremote.
//!
//! The server is asked for the blobs that the library lacks. What it gives is imported like any other archive.
//!
//! The server keeps its answers by the list of blobs alone, so it may give the archive of another catalog. Then it is asked
//! for all blobs, whose list no other catalog has.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use super::Target;
use super::error::RecordError;
use super::import::{Imported, import_from, nameless};
use super::place::{self, Opened};
use crate::library::catalogs::CatalogName;
use crate::library::digest::Digest;
use crate::library::dir::DirLibrary;
use crate::library::remote::StoreError;
use crate::library::remote::store::rccremote::RccRemote;
use crate::library::zip::ZipLibrary;
use crate::library::{Library, LibraryError};

/// Imports these environments of a server.
///
/// # Errors
/// See [`RecordError`]. Then no catalog of the library has changed.
pub fn pull_from_rcc(
    target: &Target,
    server: &RccRemote,
    chosen: &BTreeSet<CatalogName>,
) -> Result<Imported, RecordError> {
    let place = place::find(target)?;
    let known = DirLibrary::new(&place.hololib);
    let mut asked = Vec::new();
    for name in chosen {
        let all = server.parts(name)?;
        let mut lacking = Vec::new();
        for digest in &all {
            if !known.has_blob(digest).map_err(LibraryError::io(known.blob_place(digest)))? {
                lacking.push(*digest);
            }
        }
        asked.push((name, all, lacking));
    }
    let opened = place.open()?;
    let mut archives = Vec::new();
    for (name, all, lacking) in asked {
        let first = archive(&opened, server, name, &lacking)?;
        archives.push(match first {
            Some(archive) => archive,
            None => archive(&opened, server, name, &all)?.ok_or_else(|| StoreError::Refused {
                object: format!("{}/delta/{name}", server.url()),
                why: "it gives the archive of another catalog; restart the server".to_owned(),
            })?,
        });
    }
    let sources: Vec<&dyn Library> = archives.iter().map(|archive| archive as &dyn Library).collect();
    import_from(target, place, &sources, Some(chosen))
}

/// The archive of a catalog. None if it is that of another one.
fn archive(
    opened: &Opened,
    server: &RccRemote,
    name: &CatalogName,
    wanted: &[Digest],
) -> Result<Option<ZipLibrary>, RecordError> {
    let file = nameless(&opened.library).map_err(RecordError::io(opened.library.path()))?;
    let file = server.delta(name, wanted, file)?;
    // The file has no name. Opened in this way, it is read from its beginning.
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let archive = ZipLibrary::open(&path)?;
    Ok(archive.catalogs()?.entries.iter().any(|entry| entry.name == *name).then_some(archive))
}
