//! What a store has.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use super::PushError;
use crate::library::catalogs::CatalogName;
use crate::library::digest::Digest;
use crate::library::remote::head::{self, HEADS, Head, MAX_HEAD, ZSTD};
use crate::library::remote::layout::{Blob, Layout, Packing};
use crate::library::remote::{Listed, Objects, StoreError};
use crate::sys::thread;
use parking_lot::Mutex;

/// How many requests are under way at once.
const REQUESTS: usize = 8;
/// How many catalogs are looked into for blobs that are there already: the newest ones.
const HEADS_READ: usize = 64;
/// The largest layout in bytes.
const MAX_LAYOUT: u64 = 256 << 20;

/// The directories of immutable objects.
const DIRS: [&str; 8] = ["packs", "blobs", ZSTD, "catalogs", "layouts", "profiles", "finds", "bytecode"];

/// What a store has.
#[derive(Debug, Default)]
pub(super) struct Present {
    pub(super) heads: HashMap<CatalogName, Head>,
    pub(super) layouts: Vec<Layout>,
    /// The sizes of packs, by their SHA-256.
    pub(super) packs: HashMap<[u8; 32], u64>,
    /// Blobs that are objects of their own. The sizes of their contents are not known.
    pub(super) alone: HashMap<Digest, Blob>,
    /// Names and sizes of catalogs, layouts, profiles, finds and bytecode.
    others: HashMap<String, u64>,
}

impl Present {
    /// Looks. `wanted` are the catalogs to be pushed: their heads are read however many there are.
    pub(super) fn find<'n>(
        store: &dyn Objects,
        wanted: impl IntoIterator<Item = &'n CatalogName>,
    ) -> Result<Self, PushError> {
        let lists = Mutex::new(HashMap::new());
        let dirs: Vec<&str> = [HEADS].into_iter().chain(DIRS).collect();
        thread::for_each(
            &dirs,
            dirs.len(),
            || (),
            |(), dir| {
                let listed = store.list(dir)?;
                lists.lock().insert(*dir, listed);
                Ok::<(), PushError>(())
            },
        )?;
        let mut lists = lists.into_inner();
        let mut found = Self::default();
        for dir in DIRS {
            for Listed { name, bytes, .. } in lists.remove(dir).unwrap_or_default() {
                let digest = Digest::parse(name.as_bytes());
                match (dir, digest) {
                    ("packs", Ok(Digest::Sha256(sum))) => {
                        found.packs.insert(sum, bytes);
                    }
                    ("blobs", Ok(digest)) => {
                        let packing = Packing::AsInLibrary;
                        found.alone.insert(digest, Blob { digest, size: 0, stored: bytes, packing });
                    }
                    // After those as in the library, in whose place they are: they are smaller.
                    (ZSTD, Err(_)) => {
                        let blob = head::packed_blob(&name, bytes);
                        found.alone.extend(blob.map(|blob| (blob.digest, blob)));
                    }
                    _ => {
                        found.others.insert(format!("{dir}/{name}"), bytes);
                    }
                }
            }
        }
        let mut heads: Vec<(CatalogName, Listed)> = lists
            .remove(HEADS)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|listed| Some((CatalogName::parse(&listed.name)?, listed)))
            .collect();
        heads.sort_by_key(|(_, listed)| std::cmp::Reverse(listed.modified));
        let wanted: Vec<&CatalogName> = wanted.into_iter().collect();
        let mut read = 0;
        heads.retain(|(name, _)| {
            read += 1;
            read <= HEADS_READ || wanted.contains(&name)
        });
        found.read(store, &heads)?;
        Ok(found)
    }

    fn read(&mut self, store: &dyn Objects, heads: &[(CatalogName, Listed)]) -> Result<(), PushError> {
        let read = Mutex::new(Vec::new());
        thread::for_each(
            heads,
            REQUESTS,
            || (),
            |(), (name, _)| {
                if let Some(head) = usable(read_head(store, name), name)? {
                    read.lock().push((name.clone(), head));
                }
                Ok::<(), PushError>(())
            },
        )?;
        let mut heads = read.into_inner();
        heads.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut layouts: Vec<_> = heads.iter().map(|(name, head)| (name, head.layout)).collect();
        layouts.sort_by_key(|(_, layout)| layout.sha256);
        layouts.dedup_by_key(|(_, layout)| layout.sha256);
        let read = Mutex::new(Vec::new());
        thread::for_each(
            &layouts,
            REQUESTS,
            || (),
            |(), (name, object)| {
                let at = head::layout(&object.sha256);
                let refused = |why: String| StoreError::Refused { object: at.clone(), why };
                let layout = store.get(&at, None, object.bytes.min(MAX_LAYOUT)).and_then(|bytes| {
                    let sum: [u8; 32] = Sha256::digest(&bytes).into();
                    if sum != object.sha256 {
                        return Err(refused("its content is not the one that its name says".to_owned()));
                    }
                    Layout::parse(bytes).map_err(|error| refused(error.to_string()))
                });
                if let Some(layout) = usable(layout, name)? {
                    read.lock().push((object.sha256, layout));
                }
                Ok::<(), PushError>(())
            },
        )?;
        let mut layouts = read.into_inner();
        layouts.sort_by_key(|(sum, _)| *sum);
        self.layouts = layouts.into_iter().map(|(_, layout)| layout).collect();
        self.heads = heads.into_iter().collect();
        Ok(())
    }

    /// Whether the store has an object of this name and size.
    pub(super) fn has(&self, name: &str, bytes: u64) -> bool {
        self.others.get(name) == Some(&bytes)
    }

    /// Notes a catalog that was pushed, for the next one.
    pub(super) fn add(&mut self, name: &CatalogName, head: Head, layout: Layout) {
        self.packs.extend(layout.packs());
        let alone = layout.entries().filter(|entry| entry.grouped.is_none());
        self.alone.extend(alone.map(|entry| (entry.blob.digest, entry.blob)));
        self.heads.insert(name.clone(), head);
        self.layouts.push(layout);
    }
}

fn read_head(store: &dyn Objects, name: &CatalogName) -> Result<Head, StoreError> {
    let object = head::head(name);
    let bytes = store.get(&object, None, MAX_HEAD)?;
    Head::parse(&bytes).map_err(|error| StoreError::Refused { object, why: error.to_string() })
}

/// What a catalog of the store says. None if it is damaged or gone: then its blobs are sent again.
fn usable<T>(read: Result<T, StoreError>, catalog: &CatalogName) -> Result<Option<T>, PushError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error @ (StoreError::NotFound { .. } | StoreError::Refused { .. })) => {
            tracing::warn!(%catalog, %error, "a catalog of the store cannot be used");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
