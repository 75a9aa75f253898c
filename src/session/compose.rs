//! The composition root: the only place where the parts of a mount are created and connected.
//!
//! Each part gets the parts that it needs as arguments, so none of them knows where another one comes from.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::fs::Fs;
use crate::handoff::Handoff;
use crate::library::blob::Blobs;
use crate::library::bytecode::Bytecode;
use crate::library::bytecode::library::WithBytecode;
use crate::library::cache::BlobCache;
use crate::library::index::Index;
use crate::library::locate::Location;
use crate::library::{Latency, Library, LibraryError};
use crate::materialize::relocate::{NAME_LEN, Names};
use crate::materialize::source::Source;
use crate::materialize::staging::Staging;
use crate::materialize::{Materializer, ReflinkProbe};
use crate::metrics::Metrics;
use crate::namespace::{Namespace, Owner};
use crate::session::error::Error;
use crate::session::request::MountPlan;
use crate::settings::Strategy;
use crate::space::statistics;
use crate::sys::filesystem;

/// The blobs of a library, with the cache in which they are kept unpacked.
#[must_use]
pub fn blobs(location: &Location, cache: BlobCache) -> Blobs {
    Blobs::new(Arc::clone(&location.library), cache)
}

/// The cache of unpacked blobs below holofs's cache directory.
///
/// # Errors
/// When its directory cannot be opened or made.
pub fn blob_cache(cache_dir: &Path) -> Result<BlobCache, LibraryError> {
    BlobCache::open(&blob_cache_dir(cache_dir))
}

pub(in crate::session) fn blob_cache_dir(cache_dir: &Path) -> PathBuf {
    cache_dir.join("blobs")
}

/// The filesystem of a space, over the directories in its state directory, as an earlier worker left it. `umask` is the
/// user's.
pub(in crate::session) fn filesystem(
    plan: &MountPlan,
    index: &Arc<Index>,
    umask: u32,
    handoff: &Arc<Handoff>,
) -> Result<(Arc<Fs>, ReflinkProbe), Error> {
    let state_dir = plan.state_dir();
    let cache_dir = plan.env.cache_dir();
    let work = state_dir.join("work");
    let staging = Arc::new(Staging::new(open_dir(&work)?));
    let swept = staging.sweep().map_err(Error::os(work, "sweep"))?;
    if swept > 0 {
        tracing::info!(swept, "removed files that an interrupted change had left");
    }
    let cache = blob_cache(&cache_dir)?.with_limit(plan.settings.cache_size.value);
    // Read when somebody asks for statistics, and at the end.
    let earlier = {
        let (state_dir, index) = (state_dir.clone(), Arc::clone(index));
        Box::new(move || statistics::earlier(&state_dir, &index))
    };
    let metrics = Arc::new(Metrics::of_environment(index.len(), earlier));
    let library = library(plan, index, &cache_dir);
    if library.latency() == Latency::Network {
        let library = Arc::clone(&library);
        metrics.set_contact(move || library.contact());
    }
    let blobs = Blobs::new(library, cache).verified(plan.settings.verify.value);
    let blobs = Arc::new(blobs.counted_by(Arc::clone(&metrics)));
    let names = names(index, plan.space.identity.as_str())?;
    let source = Source::new(Arc::clone(index), blobs, names, plan.settings.strategy.value);
    let relocated = open_dir(&state_dir.join("reloc"))?;
    let materializer = Arc::new(Materializer::new(source, Arc::clone(&staging), relocated, metrics));
    let reflink = materializer.probe_reflink(&blob_cache_dir(&cache_dir));
    let is_required = plan.settings.strategy.value == Strategy::Reflink || plan.request.require_reflink;
    if is_required && !reflink.supported {
        let filesystem = filesystem::name(&staging.dir());
        return Err(Error::NoReflink { path: state_dir, filesystem, reason: reflink.reason });
    }
    let owner = Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        dir_mode: 0o750 & !umask,
    };
    let upper = open_dir(&state_dir.join("upper"))?;
    // The kernel leaves access times to the filesystem. A read-only filesystem does not update them either.
    let keeps_atime = plan.request.read_only || plan.has("noatime");
    let (index, source) = (Arc::clone(index), Arc::clone(&materializer));
    let namespace = Namespace::open(index, source, staging, upper, owner, keeps_atime, Arc::clone(handoff))
        .map_err(|source| Error::Upper { path: state_dir.clone(), source })?;
    // With `--upper-dir`, the name of the directory is a link, in a directory of this user. The dot follows it.
    let space = open_dir(&state_dir.join("."))?;
    Ok((Arc::new(Fs::new(namespace.until_recorded(), materializer, space)), reflink))
}

/// The library of a mount, with the bytecode of its environment if that is shown.
fn library(plan: &MountPlan, index: &Index, cache_dir: &Path) -> Arc<dyn Library> {
    if plan.settings.pycache.value {
        show_bytecode(index, cache_dir);
    }
    let library = Arc::clone(&plan.location.library);
    match index.bytecode() {
        Some(bytecode) => Arc::new(WithBytecode::new(library, Arc::clone(bytecode))),
        None => library,
    }
}

/// The namespace of a space that is not mounted, over the directories in its state directory. The caller holds the lock of
/// the space.
pub(in crate::session) fn unmounted(
    state_dir: &Path,
    index: &Arc<Index>,
    source: Source,
    owner: Owner,
) -> Result<Namespace, Error> {
    let (work, reloc) = (state_dir.join("work"), state_dir.join("reloc"));
    let staging = Arc::new(Staging::new(open_dir(&work)?));
    staging.sweep().map_err(Error::os(work, "sweep"))?;
    let metrics = Arc::<Metrics>::default();
    let materializer = Arc::new(Materializer::new(source, Arc::clone(&staging), open_dir(&reloc)?, metrics));
    let upper = open_dir(&state_dir.join("upper"))?;
    let handoff = Handoff::private().map_err(Error::os(state_dir, "mmap for"))?;
    Namespace::open(Arc::clone(index), materializer, staging, upper, owner, true, Arc::new(handoff))
        .map_err(|source| Error::Upper { path: state_dir.to_owned(), source })
}

/// The name that relocation replaces, and the space's name.
pub(in crate::session) fn names(index: &Index, identity: &str) -> Result<Names, Error> {
    let bytes = |name: &str| <[u8; NAME_LEN]>::try_from(name.as_bytes());
    match (bytes(&index.info().identity), bytes(identity)) {
        (Ok(from), Ok(to)) => Ok(Names { from, to }),
        // Cannot happen: the index compiler and `space::select` check the length.
        _ => Err(Error::Os { path: identity.into(), call: "relocate to", source: Errno::INVAL }),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map_err(Error::os(path, "open"))
}

/// Shows the bytecode of an environment in a mount, if it was compiled.
fn show_bytecode(index: &Index, cache_dir: &Path) {
    match Bytecode::open(cache_dir, &index.catalog_sha256()) {
        Ok(Some(bytecode)) => index.show(Arc::new(bytecode)),
        Ok(None) => tracing::warn!("no bytecode: the environment was not compiled"),
        Err(error) => tracing::warn!(%error, "no bytecode: it cannot be used"),
    }
}
