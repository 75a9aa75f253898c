//! A library in an object store.
//!
//! A mount asks for the list of heads and for one head, and then for catalog, layout and profile at the same time. All of
//! them are kept ([`super::local`]), so the next mount asks for what can change: the list and the head. Blobs are
//! fetched when they are read, in the groups of the layout, by whoever has the turn ([`crate::library::turn`]).
//!
//! Blobs are found in the layouts that were read, and then in all layouts that are kept. It does not matter which: a
//! digest says what the blob is. So a mount goes on when its catalog is replaced in the store.
//!
//! Invariants: nothing is asked with `--offline`. A library that an earlier command recorded ([`Heads::Known`]) asks for
//! blobs only. The store is connected on first use, and [`Library::pause`] ends the connections.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, RwLock};
use sha2::{Digest as _, Sha256};

use super::counters::Counters;
use super::fetch::{Fetcher, GroupKey, in_the_middle, of_store};
use super::head::{self, HEADS, Head, MAX_HEAD, Object};
use super::layout::{Blob, Entry, Group, Layout};
use super::local::{self, Local};
use super::packing;
use super::ranges::Ranges;
use super::{Objects, StoreError};
use crate::library::cache::BlobCache;
use crate::library::catalog::limits::MAX_FILE;
use crate::library::catalogs::{CatalogEntry, CatalogName, CatalogStamp, Catalogs};
use crate::library::digest::Digest;
use crate::library::memory::LruBySize;
use crate::library::stored::{StoredBlob, StoredBlobs};
use crate::library::turn::{FetchAlone, Member, Turn, Waiting};
use crate::library::{Latency, Library, LibraryError, RemoteTrouble};
use crate::metrics::Contact;
use crate::sys::fd::read_full;
use crate::sys::thread::{self, Panicked};

/// How long a store may take to answer a question whose earlier answer is known.
const BRIEFLY: Duration = Duration::from_secs(2);
/// The shortest time limit of a request. Shorter ones would fail in any network.
const AT_LEAST: Duration = Duration::from_secs(1);
/// How long the threads that fill the cache may take to end.
const ENDING: Duration = Duration::from_secs(5);
/// The largest layout in bytes: that of four million blobs.
const MAX_LAYOUT: u64 = 256 << 20;
/// The largest profile in bytes.
const MAX_PROFILE: u64 = 1 << 20;
/// The largest list in bytes of where files name a path.
const MAX_FINDS: u64 = 64 << 20;
/// The largest bytecode in bytes.
const MAX_BYTECODE: u64 = 64 << 20;
/// The largest group in bytes that is fetched as a whole. A larger one is not what `push` makes.
const MAX_GROUP: u64 = 32 << 20;
/// Groups in memory, for whoever reads all blobs: in bytes.
const GROUPS_KEPT: u64 = 16 << 20;

/// Connects to the store. With a duration, an answer that takes longer is an error; otherwise the user's time limit counts.
pub type Connect =
    Box<dyn Fn(Option<Duration>) -> Result<Arc<dyn Objects>, StoreError> + Send + Sync + 'static>;

/// Whether the store is asked which catalogs there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heads {
    /// The store is asked.
    Asked,
    /// Only the heads that this machine keeps are used.
    Known,
}

/// How a library is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Use {
    pub heads: Heads,
    /// Nothing is asked.
    pub offline: bool,
    /// How long a read may wait for the store.
    pub timeout: Duration,
}

/// A library below a URL.
pub struct RemoteLibrary {
    url: String,
    local: Local,
    connect: Connect,
    how: Use,
    /// Leaf lock, except that it is held while the client is made.
    store: Mutex<Option<Arc<dyn Objects>>>,
    /// The request counters of `store`. Leaf lock.
    counters: Mutex<Option<Arc<Counters>>>,
    /// A client with a short time limit, for objects of which this machine has a copy. Lock as for `store`.
    brief: Mutex<Option<Arc<dyn Objects>>>,
    /// The store did not answer. Heads of which this machine has a copy are not asked for again.
    silent: AtomicBool,
    /// Leaf lock.
    heads: Mutex<HashMap<CatalogName, Head>>,
    layouts: RwLock<Layouts>,
    /// The groups that were fetched last. Leaf lock.
    groups: Arc<Mutex<LruBySize<GroupKey, Arc<Vec<u8>>>>>,
    under_way: Arc<Mutex<u64>>,
    /// Each turn of a group has a clone. The reference count tells [`Library::pause`] whether a turn is left.
    alive: Arc<()>,
}

#[derive(Default)]
struct Layouts {
    read: Vec<Arc<Layout>>,
    /// The SHA-256 digests of the layouts that heads name.
    sums: HashSet<[u8; 32]>,
    /// The layouts that this machine keeps were read, too.
    all: bool,
}

impl std::fmt::Debug for RemoteLibrary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteLibrary")
            .field("url", &self.url)
            .field("how", &self.how)
            .finish_non_exhaustive()
    }
}

impl RemoteLibrary {
    /// The library at `url`, with local copies below `cache_dir`. Asks for nothing yet.
    ///
    /// # Errors
    /// When the directory of the local copies cannot be made, or others may write to it.
    pub fn open(url: &str, cache_dir: &Path, how: Use, connect: Connect) -> Result<Self, LibraryError> {
        let url = url.trim_end_matches('/').to_owned();
        // A command that only looks makes nothing.
        let local = Local::open(cache_dir, &url, how.heads == Heads::Asked)?;
        Ok(Self {
            url,
            local,
            connect,
            how,
            store: Mutex::default(),
            counters: Mutex::default(),
            brief: Mutex::default(),
            silent: AtomicBool::new(false),
            heads: Mutex::default(),
            layouts: RwLock::default(),
            groups: Arc::new(Mutex::new(LruBySize::new(GROUPS_KEPT))),
            under_way: Arc::default(),
            alive: Arc::default(),
        })
    }

    fn store(&self, object: &str) -> Result<Arc<dyn Objects>, StoreError> {
        if self.how.offline {
            return Err(StoreError::Offline { object: object.to_owned() });
        }
        let mut store = self.store.lock();
        if let Some(store) = &*store {
            return Ok(Arc::clone(store));
        }
        let connected = (self.connect)(None)?;
        *self.counters.lock() = connected.counters();
        *store = Some(Arc::clone(&connected));
        Ok(connected)
    }

    /// Asks for what can change. None if nobody answers and an earlier answer is known, or counts.
    fn ask<T>(
        &self,
        is_known: bool,
        question: &dyn Fn(&dyn Objects) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        if self.how.heads == Heads::Known || self.how.offline {
            return Ok(None);
        }
        if !is_known {
            return question(&*self.store(HEADS)?).map(Some);
        }
        if self.silent.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let brief = {
            let mut brief = self.brief.lock();
            match &*brief {
                Some(brief) => Arc::clone(brief),
                None => {
                    let connected = (self.connect)(Some(BRIEFLY.min(self.how.timeout)))?;
                    Arc::clone(brief.insert(connected))
                }
            }
        };
        match question(&*brief) {
            Err(StoreError::Unreachable { why, .. }) => {
                self.silent.store(true, Ordering::Relaxed);
                tracing::warn!(url = self.url, why, "the store does not answer; using what is known of it");
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }

    /// The head of a catalog.
    fn head(&self, name: &CatalogName) -> Result<Head, StoreError> {
        if let Some(head) = self.heads.lock().get(name) {
            return Ok(head.clone());
        }
        let object = head::head(name);
        let known = self.local.head(name);
        let answer = self.ask(known.is_some(), &|store| store.get(&object, None, MAX_HEAD))?;
        let head = match (answer, known) {
            (Some(bytes), _) => {
                let refused = |why| StoreError::Refused { object: object.clone(), why };
                let head = Head::parse(&bytes).map_err(|error| refused(error.to_string()))?;
                self.local.keep_head(name, &head);
                head
            }
            (None, Some(known)) => known,
            (None, None) if self.how.offline => return Err(StoreError::Offline { object }),
            (None, None) => return Err(StoreError::NotFound { object }),
        };
        self.heads.lock().insert(name.clone(), head.clone());
        Ok(head)
    }

    /// Opens an object by its digest: the local copy, or else it is fetched.
    fn object(&self, cache: &BlobCache, name: &str, object: &Object, limit: u64) -> Result<File, StoreError> {
        let refused = |why: String| StoreError::Refused { object: name.to_owned(), why };
        let of_disk = |source| StoreError::Content { object: name.to_owned(), source };
        if let Some(file) = local::open(cache, &local::digest(object), object.bytes).map_err(of_disk)? {
            return Ok(file);
        }
        if object.bytes > limit {
            return Err(refused(format!("it has {} bytes, which is too many", object.bytes)));
        }
        let bytes = self.store(name)?.get(name, None, object.bytes)?;
        let sum: [u8; 32] = Sha256::digest(&bytes).into();
        if bytes.len() as u64 != object.bytes || sum != object.sha256 {
            return Err(refused("its content is not the one that its name says".to_owned()));
        }
        local::keep(cache, object, &bytes).map_err(of_disk)
    }

    /// The catalog of a head. Layout and profile are fetched at the same time.
    fn catalog_file(&self, head: &Head) -> Result<File, StoreError> {
        let catalog = || {
            let name = head::catalog(&head.catalog.sha256);
            self.object(&self.local.catalogs, &name, &head.catalog, MAX_FILE)
        };
        let profile = || head.profile.as_ref().map(|profile| self.profile_file(profile)).transpose();
        let catalog_and_profile = || thread::beside("profile", profile, catalog);
        let ((catalog, profile), layout) =
            thread::beside("layout", || self.read_layout(head), catalog_and_profile);
        let panicked = |error: Panicked| StoreError::Refused { object: HEADS.into(), why: error.to_string() };
        layout.map_err(panicked)??;
        // A profile is a hint.
        if let Err(error) = profile.map_err(panicked).and_then(|profile| profile) {
            tracing::debug!(%error, "no profile");
        }
        catalog
    }

    fn profile_file(&self, profile: &Object) -> Result<File, StoreError> {
        self.object(&self.local.profiles, &head::profile(&profile.sha256), profile, MAX_PROFILE)
    }

    /// The bytes of an object without which all goes on, only slower.
    fn hint(&self, name: &str, object: &Object, limit: u64) -> Option<Vec<u8>> {
        if object.bytes > limit {
            tracing::warn!(object = name, bytes = object.bytes, "an object is too large, and not used");
            return None;
        }
        match self.store(name).and_then(|store| store.get(name, None, object.bytes)) {
            Ok(bytes) if Sha256::digest(&bytes).as_slice() == object.sha256 => Some(bytes),
            Ok(_) => {
                tracing::warn!(object = name, "an object is not what its name says, and not used");
                None
            }
            Err(error) => {
                tracing::debug!(%error, "going on without an object");
                None
            }
        }
    }

    /// Reads the layout of a head, unless that was done.
    fn read_layout(&self, head: &Head) -> Result<(), StoreError> {
        if self.layouts.read().sums.contains(&head.layout.sha256) {
            return Ok(());
        }
        let name = head::layout(&head.layout.sha256);
        let file = self.object(&self.local.layouts, &name, &head.layout, MAX_LAYOUT)?;
        let layout = Layout::map(&file).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => StoreError::Refused { object: name, why: source.to_string() },
            _ => StoreError::Content { object: name, source },
        })?;
        let mut layouts = self.layouts.write();
        if layouts.sums.insert(head.layout.sha256) {
            layouts.read.push(Arc::new(layout));
        }
        Ok(())
    }

    /// Where a blob is.
    fn find(&self, digest: &Digest) -> Option<(Arc<Layout>, Entry)> {
        let look = |layouts: &Layouts| {
            layouts.read.iter().find_map(|layout| Some((Arc::clone(layout), layout.find(digest)?)))
        };
        {
            let layouts = self.layouts.read();
            if let Some(found) = look(&layouts) {
                return Some(found);
            }
            if layouts.all {
                return None;
            }
        }
        let mut layouts = self.layouts.write();
        if !layouts.all {
            layouts.all = true;
            layouts.read.extend(self.local.all_layouts().into_iter().map(Arc::new));
        }
        look(&layouts)
    }

    /// How long a request may wait for somebody who waits since `since`. A little at the end of the time limit, too, because
    /// the wait may have been for others to whom the store answers.
    fn left(&self, since: Instant) -> Duration {
        self.how.timeout.saturating_sub(since.elapsed()).max(AT_LEAST.min(self.how.timeout))
    }

    fn fetcher(&self, group: Group, since: Instant) -> Result<Fetcher, StoreError> {
        let name = head::pack(&group.pack);
        let until = Instant::now() + self.left(since);
        let (groups, under_way) = (Arc::clone(&self.groups), Arc::clone(&self.under_way));
        let key = (group.pack, group.offset);
        let kept = groups.lock().get(&key);
        let store = if kept.is_some() { None } else { Some(self.store(&name)?) };
        Ok(Fetcher { store, kept, name, group, groups, under_way, until })
    }

    /// What fetches a blob by itself: one that is in no group, or in a group that is too large.
    fn alone(&self, blob: Blob, place: Option<(Group, u64)>, since: Instant) -> io::Result<FetchAlone> {
        let name = place.map_or_else(|| head::blob(&blob), |(group, _)| head::pack(&group.pack));
        let store = self.store(&name).map_err(|error| of_store(&error))?;
        let patience = self.left(since);
        Ok(Box::new(move || {
            let stored = blob.stored;
            let Some((group, offset)) = place else {
                let ranges = Ranges::new(store, name, stored, patience, in_the_middle);
                return Ok(packing::unpacked(ranges, blob.packing));
            };
            let at = group.offset.saturating_add(offset);
            let bytes = store.get_within(&name, Some(at..at.saturating_add(stored)), stored, patience);
            let bytes = Arc::new(bytes.map_err(|error| of_store(&error))?);
            Ok(packing::of_bytes(&bytes, &blob, 0))
        }))
    }

    fn place(&self, object: &str) -> String {
        format!("{}/{object}", self.url)
    }

    fn error(&self, error: StoreError) -> LibraryError {
        let kind = match &error {
            StoreError::NotFound { .. } => RemoteTrouble::Missing,
            StoreError::Denied { .. } => RemoteTrouble::Denied,
            StoreError::Unreachable { .. } => RemoteTrouble::Silent,
            StoreError::Untrusted { .. } => RemoteTrouble::Untrusted,
            StoreError::Refused { .. } => RemoteTrouble::Refused,
            StoreError::Offline { .. } => RemoteTrouble::Offline,
            StoreError::Content { source, .. } => {
                let path = self.local.catalogs.place(&Digest::Sha256([0; 32]));
                return LibraryError::Io { path, source: io::Error::new(source.kind(), source.to_string()) };
            }
        };
        LibraryError::Remote { why: error.to_string(), kind }
    }
}

impl Library for RemoteLibrary {
    fn name(&self) -> &str {
        &self.url
    }

    fn catalogs(&self) -> Result<Catalogs, LibraryError> {
        let path = local::dir_name(&self.local);
        let known = self.local.heads().map_err(LibraryError::io(path))?;
        let listed = self.ask(!known.is_empty(), &|store| store.list(HEADS));
        let names: Vec<(CatalogName, SystemTime)> = match listed.map_err(|error| self.error(error))? {
            Some(listed) => {
                let name = |listed: super::Listed| Some((CatalogName::parse(&listed.name)?, listed.modified));
                listed.into_iter().filter_map(name).collect()
            }
            None => known,
        };
        let mut entries: Vec<_> =
            names.into_iter().map(|(name, modified)| CatalogEntry { name, modified }).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Catalogs { entries, not_files: Vec::new() })
    }

    fn has_catalog(&self, name: &CatalogName) -> Option<bool> {
        match self.head(name) {
            Ok(_) => Some(true),
            Err(StoreError::NotFound { .. }) => Some(false),
            Err(_) => None,
        }
    }

    fn catalog_stamp(&self, name: &CatalogName) -> io::Result<CatalogStamp> {
        let head = self.head(name).map_err(|error| of_store(&error))?;
        Ok(CatalogStamp::of_digest(&head.catalog.sha256))
    }

    fn open_catalog(&self, name: &CatalogName) -> io::Result<StoredBlob> {
        let file = self.head(name).and_then(|head| self.catalog_file(&head));
        file.map(StoredBlob::of_file).map_err(|error| of_store(&error))
    }

    fn catalog(&self, name: &CatalogName) -> Result<(CatalogStamp, Vec<u8>), LibraryError> {
        let head = self.head(name).map_err(|error| self.error(error))?;
        let file = self.catalog_file(&head).map_err(|error| self.error(error))?;
        let mut bytes = vec![0; usize::try_from(head.catalog.bytes).unwrap_or(usize::MAX)];
        let read = read_full(&file, 0, &mut bytes).map_err(io::Error::from);
        let n = read.map_err(LibraryError::io(self.local.catalogs.place(&local::digest(&head.catalog))))?;
        bytes.truncate(n);
        Ok((CatalogStamp::of_digest(&head.catalog.sha256), bytes))
    }

    fn blob(&self, digest: &Digest) -> io::Result<StoredBlob> {
        let since = Instant::now();
        let (layout, entry) = self.find(digest).ok_or(io::ErrorKind::NotFound)?;
        let place = place(&layout, &entry)?;
        let Some((group, offset)) = place.filter(|(group, _)| group.len <= MAX_GROUP) else {
            return self.alone(entry.blob, place, since)?();
        };
        // Whoever reads all blobs reads the others of the group next.
        let _turn = self.local.lock(key(&group), self.how.timeout, &|| false);
        let bytes = self.fetcher(group, since).map_err(|error| of_store(&error))?.fetch()?;
        Ok(packing::of_bytes(&bytes, &entry.blob, offset))
    }

    fn has_blob(&self, digest: &Digest) -> io::Result<bool> {
        Ok(self.find(digest).is_some())
    }

    fn blobs(&self) -> Result<StoredBlobs, LibraryError> {
        for catalog in self.catalogs()?.entries {
            let read = self.head(&catalog.name).and_then(|head| self.read_layout(&head));
            read.map_err(|error| self.error(error))?;
        }
        let layouts: Vec<_> = self.layouts.read().read.clone();
        let mut blobs: Vec<_> = layouts
            .iter()
            .flat_map(|layout| layout.entries().map(|entry| (entry.blob.digest, entry.blob.stored)))
            .collect();
        blobs.sort_unstable();
        blobs.dedup_by_key(|(digest, _)| *digest);
        Ok(StoredBlobs { blobs, strays: 0 })
    }

    fn latency(&self) -> Latency {
        Latency::Network
    }

    fn turn(&self, digest: &Digest, waiting: Waiting<'_>) -> io::Result<Option<Turn>> {
        let Some((layout, entry)) = self.find(digest) else { return Ok(None) };
        let place = place(&layout, &entry)?;
        let Some((group, _)) = place.filter(|(group, _)| group.len <= MAX_GROUP) else {
            let key = u64::from_le_bytes(first_bytes(digest.bytes()));
            let lock = self.local.lock(key, self.left(waiting.since), &|| waiting.is_stopped());
            let fetch = self.alone(entry.blob, place, waiting.since)?;
            return Ok(Some(Turn::alone(lock, fetch)));
        };
        // Whoever has fetched a group puts its blobs into the cache, which takes longer than to unpack one of them.
        let is_reader = waiting.stop.is_none();
        let in_memory = || self.groups.lock().get(&(group.pack, group.offset)).filter(|_| is_reader);
        let lock = self
            .local
            .lock(key(&group), self.left(waiting.since), &|| waiting.is_stopped() || in_memory().is_some());
        if lock.is_none()
            && let Some(bytes) = in_memory()
        {
            let member = Member { digest: *digest, size: entry.blob.size };
            let alive = Arc::clone(&self.alive);
            let group = move || Ok(packing::in_group(layout, group, bytes));
            return Ok(Some(Turn::group(None, Box::new(group), vec![member], alive)));
        }
        let members = layout
            .in_group(group.id)
            .map(|Entry { blob, .. }| Member { digest: blob.digest, size: blob.size });
        let members = members.collect();
        let fetcher = self.fetcher(group, waiting.since).map_err(|error| of_store(&error))?;
        Ok(Some(Turn::group(
            lock,
            Box::new(move || Ok(packing::in_group(layout, group, fetcher.fetch()?))),
            members,
            Arc::clone(&self.alive),
        )))
    }

    fn patience(&self, since: Instant) -> Option<Duration> {
        Some(self.how.timeout.saturating_sub(since.elapsed()))
    }

    fn forget(&self, digest: &Digest) {
        let Some((layout, entry)) = self.find(digest) else { return };
        let Some(group) = entry.grouped.and_then(|(id, _)| layout.group(id)) else { return };
        let dropped_later = self.groups.lock().remove(&(group.pack, group.offset));
        drop(dropped_later);
    }

    fn position(&self, digest: &Digest) -> u64 {
        match self.find(digest).map(|(_, entry)| entry.grouped) {
            Some(Some((id, offset))) => (u64::from(id.0) << 32) | offset.min(u64::from(u32::MAX)),
            Some(None) | None => u64::MAX,
        }
    }

    fn group_of(&self, digest: &Digest) -> Option<u64> {
        let (layout, entry) = self.find(digest)?;
        let (id, _) = entry.grouped?;
        layout.group(id).map(|group| key(&group))
    }

    fn stored_size(&self, digest: &Digest) -> Option<u64> {
        self.find(digest).map(|(_, entry)| entry.blob.stored)
    }

    fn profile(&self, catalog: &CatalogName) -> Option<PathBuf> {
        let profile = self.head(catalog).ok()?.profile?;
        let known = local::open(&self.local.profiles, &local::digest(&profile), profile.bytes);
        if !matches!(known, Ok(Some(_)))
            && let Err(error) = self.profile_file(&profile)
        {
            tracing::debug!(%error, "no profile");
            return None;
        }
        Some(self.local.profiles.place(&local::digest(&profile)))
    }

    fn finds(&self, catalog: &[u8; 32]) -> Option<Vec<u8>> {
        let finds = self.heads.lock().values().find(|head| head.catalog.sha256 == *catalog)?.finds?;
        self.hint(&head::finds(&finds.sha256), &finds, MAX_FINDS)
    }

    fn bytecode(&self, name: &CatalogName, known: &dyn Fn(&[u8; 32]) -> bool) -> Option<Vec<u8>> {
        let head = self.head(name).ok()?;
        let bytecode = head.bytecode.filter(|_| !known(&head.catalog.sha256))?;
        self.hint(&head::bytecode(&bytecode.sha256), &bytecode, MAX_BYTECODE)
    }

    fn pause(&self) {
        for store in [self.store.lock().take(), self.brief.lock().take()].into_iter().flatten() {
            store.pause();
        }
        // Threads that keep the rest of a group end soon, and those that waited for the store get an error.
        let begun = Instant::now();
        while Arc::strong_count(&self.alive) > 1 && begun.elapsed() < ENDING {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn contact(&self) -> Option<Contact> {
        let counters = self.counters.lock().clone()?;
        let counts = counters.counts();
        Some(Contact {
            requests: counts.requests,
            bytes: counts.received,
            retries: counts.retries,
            failures: counts.failures,
            silent_since: counts.silent_since,
        })
    }

    fn catalog_place(&self, name: &CatalogName) -> String {
        self.place(&head::head(name))
    }

    fn blob_place(&self, digest: &Digest) -> String {
        let found = self.find(digest).map(|(layout, entry)| match entry.grouped {
            Some((id, _)) => layout.group(id).map(|group| head::pack(&group.pack)),
            None => Some(head::blob(&entry.blob)),
        });
        self.place(&found.flatten().unwrap_or_else(|| format!("blobs/{digest}")))
    }
}

/// The group of a blob, and its offset there. None if it is in no group.
fn place(layout: &Layout, entry: &Entry) -> io::Result<Option<(Group, u64)>> {
    let Some((id, offset)) = entry.grouped else { return Ok(None) };
    Ok(Some((layout.group(id).ok_or(io::ErrorKind::NotFound)?, offset)))
}

/// A number for a group, which is the same in each process.
fn key(group: &Group) -> u64 {
    u64::from_le_bytes(first_bytes(&group.pack))
        .wrapping_add(group.offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20)
}

fn first_bytes(bytes: &[u8]) -> [u8; 8] {
    bytes.first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
