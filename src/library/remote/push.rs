//! Puts environments of a library into an object store.
//!
//! For each catalog: plan where its blobs will be (`plan`), send those that the store lacks, then the catalog, the layout
//! and the profile, and the head at last.
//!
//! A push that was interrupted is repeated: the same library gives the same packs, and a list of the store tells which it
//! has. Two pushes at once send the same objects twice, or different ones side by side; each head names whole objects.
//!
//! Invariants: a head is written after all that it names. Nothing is sent that was not compared with its digest. A catalog
//! with a blob that is damaged or missing is not published.

mod order;
mod plan;
mod present;
mod send;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressBar;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::head::{self, Head, Object};
use super::layout::{Blob, Layout, LayoutError, Packing};
use super::{Objects, StoreError};
use crate::library::blob::{BlobError, Blobs};
use crate::library::bytecode::{Bytecode, travel};
use crate::library::cache::BlobCache;
use crate::library::catalog::{Tree, parse_whole};
use crate::library::catalogs::{CatalogName, Outcome};
use crate::library::digest::Digest;
use crate::library::index::cache::open_or_compile;
use crate::library::index::find::{FindError, Finds};
use crate::library::index::{IndexError, NodeId, NodeKind};
use crate::library::{Library, LibraryError, profile};
use crate::sys::process;
use crate::sys::thread::Panicked;
use plan::{Plan, plan};
use present::Present;
use send::{Sending, Sent};

/// Bytecode that would be larger on its way stays here, in bytes: a mount waits for it.
const MOST_BYTECODE: u64 = 32 << 20;

/// Which profile travels with a catalog.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Profile {
    /// What mounts of this machine read, if any did.
    Auto,
    None,
    /// The profile in this file.
    File(PathBuf),
}

/// What is pushed.
#[derive(Debug)]
pub struct Push<'a> {
    pub library: &'a Arc<dyn Library>,
    pub catalogs: &'a BTreeSet<CatalogName>,
    pub profile: Profile,
    /// holofs's cache directory, with profiles and indexes.
    pub cache_dir: &'a Path,
    /// Small blobs go into new packs, in the order of the profile, wherever the store has them. Large ones are packed if they
    /// are not.
    pub repack: bool,
    /// Only tell what would be sent.
    pub dry_run: bool,
}

/// What was pushed, with the keys of `holofs push --json`. Sizes are in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Pushed {
    pub url: String,
    pub dry_run: bool,
    pub catalogs: Vec<PushedCatalog>,
    /// Objects that were sent, heads not counted.
    pub objects_sent: u64,
    pub bytes_sent: u64,
}

/// A pushed catalog.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PushedCatalog {
    pub catalog: String,
    pub blueprint: String,
    /// What became of its head. With `--dry-run`: what would become of it, as far as that is known.
    pub outcome: Outcome,
    /// Its blobs.
    pub blobs: usize,
    /// Those that neither a pack nor an object of an earlier catalog has.
    pub blobs_new: usize,
    /// Their stored size.
    pub bytes_new: u64,
    /// Whether a profile belongs to it.
    pub profile: bool,
    /// The size of its bytecode as it travels. 0 if this machine has none, or too much. Not told in a dry run.
    pub bytecode_bytes: u64,
    /// The blobs that the catalog lists for links, and that the library lacks.
    pub missing_for_links: usize,
}

/// Why a catalog was not published.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A blob is missing, or is not what its digest says.
    #[error("catalog {catalog}: {source}")]
    Blob { catalog: CatalogName, source: BlobError },
    /// The packed bytes of a blob could not be kept until they are sent: in memory (then `place` is the blob), or in a file.
    #[error("{place}: {source}")]
    Pack { place: String, source: io::Error },
    #[error("profile {path}: {source}")]
    Profile { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was made is not a layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("head: {0}")]
    Head(#[from] serde_json::Error),
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// Pushes catalogs. `progress` makes the progress bar for a number of bytes.
///
/// # Errors
/// See [`PushError`]. Then the catalog that was at hand is not published. Those before it, in the order of names, are.
pub fn push(
    store: &dyn Objects,
    what: &Push<'_>,
    progress: &dyn Fn(u64) -> ProgressBar,
    cancel: &AtomicBool,
) -> Result<Pushed, PushError> {
    let stored: HashMap<Digest, u64> = what.library.blobs()?.blobs.into_iter().collect();
    let mut present = Present::find(store, what.catalogs)?;
    let (sent, scratch) = (Sent::default(), BlobCache::existing(&what.cache_dir.join("blobs")));
    let mut done = Pushed { url: store.url().to_owned(), dry_run: what.dry_run, ..Pushed::default() };
    for name in what.catalogs {
        let found = Found::read(what, name, &stored)?;
        let layouts = if what.repack { &[] } else { &*present.layouts };
        let usable = |blob: &Blob| !what.repack || blob.packing == Packing::Zstd;
        let plan = plan(&found.blobs, layouts, &present.packs, |digest| {
            present.alone.get(digest).copied().filter(usable)
        });
        let bytes_new = plan.to_send().map(|blob| blob.stored).sum();
        let mut pushed = PushedCatalog {
            catalog: name.to_string(),
            blueprint: name.blueprint.clone(),
            outcome: Outcome::New,
            blobs: found.blobs.len(),
            blobs_new: plan.to_send().count(),
            bytes_new,
            profile: found.profile.is_some(),
            bytecode_bytes: found.bytecode.as_ref().map_or(0, |bytecode| bytecode.len() as u64),
            missing_for_links: found.missing_for_links,
        };
        let known = present.heads.get(name).cloned();
        if what.dry_run {
            pushed.outcome = match &known {
                None => Outcome::New,
                Some(head) if head.catalog == object(&found.bytes) && bytes_new == 0 => Outcome::Unchanged,
                Some(_) => Outcome::Replaced,
            };
        } else {
            let bar = progress(bytes_new);
            let sending = Sending {
                library: &**what.library,
                store,
                catalog: name,
                present: &present,
                scratch: &scratch,
                progress: &bar,
                cancel,
                sent: &sent,
            };
            let published = publish(&sending, found, &plan, known.as_ref());
            bar.finish_and_clear();
            let (head, layout, outcome) = published?;
            pushed.outcome = outcome;
            present.add(name, head, layout);
        }
        done.catalogs.push(pushed);
    }
    done.objects_sent = sent.objects.load(Ordering::Relaxed);
    done.bytes_sent = sent.bytes.load(Ordering::Relaxed);
    Ok(done)
}

/// Sends what belongs to a catalog, and its head.
fn publish(
    sending: &Sending<'_>,
    found: Found,
    plan: &Plan,
    known: Option<&Head>,
) -> Result<(Head, Layout, Outcome), PushError> {
    let layout = sending.all(plan)?;
    // A catalog that no reader takes must not be published.
    let checked = Layout::parse(layout.clone())?;
    let profile = found.profile.as_deref();
    // What this machine does not have, and the store has of this catalog, goes on to help.
    let known_too = known.filter(|known| known.catalog == object(&found.bytes));
    let head = Head {
        version: head::VERSION,
        catalog: object(&found.bytes),
        layout: object(&layout),
        profile: profile.map(object).or_else(|| known_too?.profile),
        finds: Some(object(&found.finds)),
        bytecode: found.bytecode.as_ref().map(object).or_else(|| known_too?.bytecode),
    };
    sending.object(&head::catalog(&head.catalog.sha256), found.bytes)?;
    sending.object(&head::layout(&head.layout.sha256), layout)?;
    if let (Some(bytes), Some(profile)) = (found.profile, head.profile) {
        sending.object(&head::profile(&profile.sha256), bytes)?;
    }
    if let (Some(bytes), Some(bytecode)) = (found.bytecode, head.bytecode) {
        sending.object(&head::bytecode(&bytecode.sha256), bytes)?;
    }
    if let Some(finds) = head.finds {
        sending.object(&head::finds(&finds.sha256), found.finds)?;
    }
    let outcome = match known {
        Some(known) if *known == head => Outcome::Unchanged,
        Some(_) => Outcome::Replaced,
        None => Outcome::New,
    };
    if outcome != Outcome::Unchanged {
        sending.store.put(&head::head(sending.catalog), head.to_bytes()?)?;
    }
    Ok((head, checked, outcome))
}

fn object(bytes: impl AsRef<[u8]>) -> Object {
    let bytes = bytes.as_ref();
    Object { sha256: Sha256::digest(bytes).into(), bytes: bytes.len() as u64 }
}

/// A catalog of the library, with what belongs to it.
struct Found {
    bytes: Vec<u8>,
    /// In the order of packs, each with the size of its stored bytes.
    blobs: Vec<(order::Wanted, u64)>,
    profile: Option<Vec<u8>>,
    /// Where its files name the path in which it was built. A machine that shows it elsewhere would have to fetch them to
    /// find out. Empty in a dry run.
    finds: Vec<u8>,
    /// None in a dry run.
    bytecode: Option<Vec<u8>>,
    missing_for_links: usize,
}

impl Found {
    fn read(what: &Push<'_>, name: &CatalogName, stored: &HashMap<Digest, u64>) -> Result<Self, PushError> {
        let library = &**what.library;
        let refused = |source| LibraryError::Catalog { place: library.catalog_place(name), source };
        let (_, bytes) = library.catalog(name)?;
        let tree: Tree = parse_whole(&bytes).map_err(refused)?;
        let sum: [u8; 32] = Sha256::digest(&bytes).into();
        let touched = profile_of(what, name, &sum)?;
        let digests = touched.as_ref().map(|touched| &*touched.digests).unwrap_or_default();
        let mut blobs = Vec::new();
        let mut missing_for_links = 0;
        let size = |digest: &Digest| stored.get(digest).copied().unwrap_or_default();
        for wanted in order::order(&tree, digests, &size) {
            match stored.get(&wanted.digest) {
                Some(stored) => blobs.push((wanted, *stored)),
                None if wanted.is_file => {
                    let (digest, place) = (wanted.digest, library.blob_place(&wanted.digest));
                    let source = BlobError::Missing { digest, place };
                    return Err(PushError::Blob { catalog: name.clone(), source });
                }
                None => missing_for_links += 1,
            }
        }
        let (mut finds, mut bytecode) = (Vec::new(), None);
        if !what.dry_run {
            finds = finds_of(what, name)?;
            bytecode = bytecode_of(what, &sum, touched.as_ref().map(|touched| &*touched.nodes));
        }
        let profile = touched.map(|touched| touched.bytes);
        Ok(Self { bytes, blobs, profile, finds, bytecode, missing_for_links })
    }
}

/// Where the files of a catalog name the path in which it was built. Reads all of them, unless that was done before.
fn finds_of(what: &Push<'_>, name: &CatalogName) -> Result<Vec<u8>, PushError> {
    let indexes = what.cache_dir.join("index");
    let index = open_or_compile(&**what.library, name, &indexes)?;
    let found = match Finds::read(&index, &indexes) {
        Some(found) => found,
        None => {
            let cache = BlobCache::existing(&what.cache_dir.join("blobs"));
            let blobs = Blobs::new(Arc::clone(what.library), cache);
            let found = Finds::search(&index, &blobs, process::processors(), &|_| {});
            let found = found.map_err(|error| match error {
                FindError::Blob { source, .. } => PushError::Blob { catalog: name.clone(), source },
                FindError::Index(error) => error.into(),
                FindError::Panicked(error) => error.into(),
            })?;
            found.write(&index, &indexes);
            found
        }
    };
    Ok(found.to_bytes()?)
}

/// The bytecode of a catalog, if this machine has compiled it: that of the sources in the profile, or all without one.
fn bytecode_of(what: &Push<'_>, catalog_sha256: &[u8; 32], only: Option<&[NodeId]>) -> Option<Vec<u8>> {
    let packed = Bytecode::open(what.cache_dir, catalog_sha256).and_then(|bytecode| match bytecode {
        Some(bytecode) => travel::pack(&bytecode, only, MOST_BYTECODE),
        None => Ok(None),
    });
    packed.unwrap_or_else(|error| {
        tracing::warn!(%error, "bytecode is not pushed");
        None
    })
}

/// A profile.
struct Touched {
    bytes: Vec<u8>,
    /// Its files, in the order in which they were read, and the digests of them.
    nodes: Vec<NodeId>,
    digests: Vec<Digest>,
}

/// The profile of a catalog.
fn profile_of(what: &Push<'_>, name: &CatalogName, sum: &[u8; 32]) -> Result<Option<Touched>, PushError> {
    let path = match &what.profile {
        Profile::None => return Ok(None),
        Profile::Auto => profile::place(what.cache_dir, sum),
        Profile::File(path) => path.clone(),
    };
    if what.profile == Profile::Auto && !path.exists() {
        return Ok(None);
    }
    let index = open_or_compile(&**what.library, name, &what.cache_dir.join("index"))?;
    let touched = match profile::read(&path, sum, index.len()) {
        Ok(touched) => touched,
        Err(error) if what.profile == Profile::Auto => {
            tracing::warn!(path = %path.display(), %error, "a profile is not used");
            return Ok(None);
        }
        Err(source) => return Err(PushError::Profile { path, source }),
    };
    let mut digests = Vec::new();
    for node in touched.order() {
        if let NodeKind::File { digest, .. } = index.node(*node)?.kind {
            digests.push(digest);
        }
    }
    let bytes = profile::to_bytes(sum, &touched)
        .map_err(|error| PushError::Profile { path, source: error.into() })?;
    Ok(Some(Touched { bytes, nodes: touched.order().to_vec(), digests }))
}
