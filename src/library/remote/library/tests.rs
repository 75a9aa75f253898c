use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::library::blob::{BlobError, Blobs};
use crate::library::digest::{DigestKind, Hasher};
use crate::library::remote::Listed;
use crate::library::remote::layout::{Packing, Writer};

const NAME: &str = "adb8c26db4d86a93v12.linux_amd64";

/// A store in memory.
#[derive(Debug, Default)]
struct Memory {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
    silent: AtomicBool,
    under_way: AtomicUsize,
}

impl Objects for Memory {
    fn url(&self) -> &str {
        "memory://"
    }

    fn get(&self, name: &str, range: Option<Range<u64>>, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.asked.lock().push(name.to_owned());
        let object = name.to_owned();
        if self.silent.load(Ordering::Relaxed) {
            return Err(StoreError::Unreachable { object, why: "it is silent".into() });
        }
        // Others come meanwhile.
        std::thread::sleep(Duration::from_millis(5));
        let all = self.objects.lock().get(name).cloned();
        let all = all.ok_or(StoreError::NotFound { object: object.clone() })?;
        let range = range.map_or(0..all.len(), |range| range.start as usize..range.end as usize);
        let part = all.get(range).map(<[u8]>::to_vec);
        let part = part.filter(|part| part.len() as u64 <= limit);
        part.ok_or(StoreError::Refused { object, why: "it has another length".into() })
    }

    fn list(&self, dir: &str) -> Result<Vec<Listed>, StoreError> {
        self.asked.lock().push(format!("{dir}/"));
        if self.silent.load(Ordering::Relaxed) {
            return Err(StoreError::Unreachable { object: dir.into(), why: "it is silent".into() });
        }
        let objects = self.objects.lock();
        let below = objects.keys().filter_map(|name| name.strip_prefix(dir)?.strip_prefix('/'));
        Ok(below.map(|name| Listed { name: name.into(), bytes: 0, modified: SystemTime::now() }).collect())
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.objects.lock().insert(name.to_owned(), bytes);
        Ok(())
    }

    fn put_large(&self, name: &str, content: &mut dyn Read) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).unwrap();
        self.put(name, bytes)
    }

    fn pause(&self) {
        self.under_way.store(0, Ordering::Relaxed);
    }
}

impl Memory {
    /// Takes the names of the objects that were asked for.
    fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock());
        asked.sort();
        asked
    }
}

fn packed(content: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(content).unwrap();
    out.finish().unwrap()
}

fn content(n: u8) -> Vec<u8> {
    vec![n; 100 + usize::from(n)]
}

fn digest(n: u8) -> Digest {
    Hasher::digest(DigestKind::Sha256, &content(n))
}

fn size(n: u8) -> u64 {
    content(n).len() as u64
}

fn large() -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..9_000_000).map(|_| next()).collect()
}

fn object(bytes: &[u8]) -> Object {
    Object { sha256: Sha256::digest(bytes).into(), bytes: bytes.len() as u64 }
}

fn zstd(content: &[u8]) -> Vec<u8> {
    let mut packer = packing::packer(Vec::new(), content.len() as u64).unwrap();
    packer.write_all(content).unwrap();
    packer.finish().unwrap()
}

fn large_blob() -> Blob {
    let (digest, size) = (Hasher::digest(DigestKind::Sha256, &large()), large().len() as u64);
    Blob { digest, size, stored: zstd(&large()).len() as u64, packing: Packing::Zstd }
}

/// A store with the blobs 1 to 6 in two groups, every second one as in a library, and a large one.
fn store() -> Arc<Memory> {
    let store = Arc::new(Memory::default());
    let put = |name: String, bytes: &[u8]| store.put(&name, bytes.to_vec()).unwrap();
    let pack = |n| match n % 2 {
        0 => (zstd(&content(n)), Packing::Zstd),
        _ => (packed(&content(n)), Packing::AsInLibrary),
    };
    let stored: Vec<_> = (1..=6).map(|n| (n, pack(n))).collect();
    let pack: Vec<u8> = stored.iter().flat_map(|(_, (stored, _))| stored).copied().collect();
    let mut writer = Writer::default();
    let mut offset = 0;
    for group in stored.chunks(3) {
        let blobs = group.iter().map(|(n, (stored, packing))| {
            let stored = stored.len() as u64;
            Blob { digest: digest(*n), size: size(*n), stored, packing: *packing }
        });
        writer.group(object(&pack).sha256, pack.len() as u64, offset, blobs);
        offset += group.iter().map(|(_, (stored, _))| stored.len() as u64).sum::<u64>();
    }
    let alone = large_blob();
    writer.alone(alone);
    let layout = writer.finish();
    put(head::pack(&object(&pack).sha256), &pack);
    put(head::blob(&alone), &zstd(&large()));
    put(head::layout(&object(&layout).sha256), &layout);
    put(head::catalog(&object(b"a catalog").sha256), b"a catalog");
    put(head::profile(&object(b"a profile").sha256), b"a profile");
    let head = Head {
        version: head::VERSION,
        catalog: object(b"a catalog"),
        layout: object(&layout),
        profile: Some(object(b"a profile")),
        finds: None,
        bytecode: None,
    };
    put(head::head(&name()), &head.to_bytes().unwrap());
    store
}

fn name() -> CatalogName {
    CatalogName::parse(NAME).unwrap()
}

fn how() -> Use {
    Use { heads: Heads::Asked, offline: false, timeout: Duration::from_secs(5) }
}

fn library(store: &Arc<Memory>, cache: &Path, how: Use) -> Arc<RemoteLibrary> {
    let store = Arc::clone(store);
    let connect = move |_| Ok(Arc::clone(&store) as Arc<dyn Objects>);
    Arc::new(RemoteLibrary::open("s3://b/e", cache, how, Box::new(connect)).unwrap())
}

fn blobs(library: &Arc<RemoteLibrary>, cache: &Path) -> Blobs {
    Blobs::new(Arc::clone(library) as Arc<dyn Library>, BlobCache::open(&cache.join("blobs")).unwrap())
}

/// Reads what a mount reads before it answers.
fn begin(library: &RemoteLibrary) {
    library.catalogs().unwrap();
    assert_eq!(library.catalog(&name()).unwrap().1, b"a catalog");
    assert!(library.has_blob(&digest(1)).unwrap() && !library.has_blob(&digest(9)).unwrap());
}

#[test]
fn a_mount_asks_for_five_objects_and_the_next_one_for_what_can_change() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    begin(&library(&store, cache.path(), how()));
    let asked = store.asked();
    assert_eq!(asked.len(), 5, "{asked:?}");
    let again = library(&store, cache.path(), how());
    begin(&again);
    assert!(again.profile(&name()).unwrap().exists());
    assert_eq!(store.asked(), ["heads/".to_owned(), format!("heads/{NAME}")]);
    // A later command about the space asks for nothing, and finds the blobs.
    begin(&library(&store, cache.path(), Use { heads: Heads::Known, ..how() }));
    begin(&library(&store, cache.path(), Use { offline: true, ..how() }));
    let only_blobs = library(&store, cache.path(), Use { heads: Heads::Known, ..how() });
    assert!(only_blobs.has_blob(&digest(6)).unwrap());
    assert!(store.asked().is_empty());
}

#[test]
fn a_store_that_is_silent_is_done_without_if_it_is_known() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    store.silent.store(true, Ordering::Relaxed);
    let error = library(&store, cache.path(), how()).catalogs().unwrap_err();
    assert!(matches!(error, LibraryError::Remote { kind: RemoteTrouble::Silent, .. }), "{error}");
    store.silent.store(false, Ordering::Relaxed);
    begin(&library(&store, cache.path(), how()));
    store.silent.store(true, Ordering::Relaxed);
    store.asked();
    begin(&library(&store, cache.path(), how()));
    assert_eq!(store.asked(), ["heads/"], "asked once");
    let offline = library(&store, &cache.path().join("other"), Use { offline: true, ..how() });
    assert!(offline.catalogs().unwrap().entries.is_empty());
    assert!(matches!(
        offline.catalog(&name()).unwrap_err(),
        LibraryError::Remote { kind: RemoteTrouble::Offline, .. }
    ));
    assert!(store.asked().is_empty());
}

#[test]
fn forged_objects_are_refused_and_damaged_copies_are_fetched_again() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let head = Head::parse(&store.objects.lock()[&head::head(&name())]).unwrap();
    for object in [head::catalog(&head.catalog.sha256), head::layout(&head.layout.sha256)] {
        let good = store.objects.lock()[&object].clone();
        let mut forged = good.clone();
        forged[3] ^= 1;
        for bad in [&forged[..], &good[..4], b"", &[&good[..], b"x"].concat()] {
            store.put(&object, bad.to_vec()).unwrap();
            let fresh = tempfile::tempdir().unwrap();
            let error = library(&store, fresh.path(), how()).catalog(&name()).unwrap_err();
            assert!(matches!(error, LibraryError::Remote { kind: RemoteTrouble::Refused, .. }), "{error}");
        }
        store.put(&object, good).unwrap();
    }
    for bad in [&b"{}"[..], b"\xff", br#"{"version":9}"#] {
        store.put(&head::head(&name()), bad.to_vec()).unwrap();
        assert!(library(&store, cache.path(), how()).catalog(&name()).is_err());
    }
    store.put(&head::head(&name()), head.to_bytes().unwrap()).unwrap();
    begin(&library(&store, cache.path(), how()));
    // As after a power cut: the size is right, and the stamp is of another boot.
    let copy = library(&store, cache.path(), how()).local.layouts.place(&local::digest(&head.layout));
    std::fs::remove_file(&copy).unwrap();
    std::fs::write(&copy, vec![0; head.layout.bytes as usize]).unwrap();
    let file = File::open(&copy).unwrap();
    rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR).unwrap();
    crate::library::stamp::Stamp::Unverified.set(&file).unwrap();
    store.asked();
    begin(&library(&store, cache.path(), how()));
    assert!(store.asked().contains(&head::layout(&head.layout.sha256)));
}

/// Waits until the threads that keep the rest of a group have ended.
fn settle(library: &RemoteLibrary, cache: &Path) {
    for n in 1..=6 {
        let stop = AtomicBool::new(false);
        let waiting = Waiting { since: Instant::now(), stop: Some(&stop) };
        drop(library.turn(&digest(n), waiting).unwrap());
    }
    assert!(cache.exists());
}

#[test]
fn a_group_is_fetched_once_for_all_its_blobs_and_all_daemons() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let library_of = || {
        let library = library(&store, cache.path(), how());
        begin(&library);
        library
    };
    let daemons: Vec<_> = (0..4).map(|_| library_of()).collect();
    store.asked();
    let dir = cache.path();
    std::thread::scope(|scope| {
        for library in &daemons {
            for n in 1..=3 {
                scope.spawn(move || {
                    let blobs = blobs(library, dir);
                    assert_eq!(blobs.read_all(&digest(n), size(n)).unwrap(), content(n));
                });
            }
        }
    });
    assert_eq!(store.asked().len(), 1);
    settle(&daemons[0], cache.path());
    store.silent.store(true, Ordering::Relaxed);
    let blobs = blobs(&daemons[1], cache.path());
    assert_eq!(blobs.read_at_once(&digest(2), size(2)).unwrap().unwrap(), content(2));
    assert!(blobs.read_at_once(&digest(4), size(4)).unwrap().is_none());
    assert!(matches!(blobs.read_all(&digest(4), size(4)), Err(BlobError::Io { .. })));
    store.silent.store(false, Ordering::Relaxed);
    assert_eq!(blobs.read_all(&digest(4), size(4)).unwrap(), content(4));
}

#[test]
fn a_reader_does_not_wait_until_all_blobs_of_a_group_are_in_the_cache() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let library = library(&store, cache.path(), Use { timeout: Duration::from_millis(200), ..how() });
    begin(&library);
    store.asked();
    let turn = |n, stop| library.turn(&digest(n), Waiting { since: Instant::now(), stop }).unwrap().unwrap();
    let stop = AtomicBool::new(false);
    let fetching = turn(1, Some(&stop)).fetch().unwrap();
    assert_eq!(fetching.members().len(), 3);
    // It is found in memory. Whoever has waited for the turn would deal with the whole group.
    assert_eq!(turn(2, None).fetch().unwrap().members().len(), 1);
    assert_eq!(blobs(&library, cache.path()).read_all(&digest(2), size(2)).unwrap(), content(2));
    assert_eq!(store.asked().len(), 1);
    drop(fetching);
    assert_eq!(turn(3, None).fetch().unwrap().members().len(), 3);
}

#[test]
fn a_bad_blob_is_an_error_of_its_files_only() {
    // One as in a library, and a packed one.
    for bad in [1, 2] {
        is_an_error_of_its_files_only(bad);
    }
}

fn is_an_error_of_its_files_only(bad: u8) {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let library = library(&store, cache.path(), how());
    begin(&library);
    let (layout, entry) = library.find(&digest(bad)).unwrap();
    let (group, offset) = entry.grouped.unwrap();
    let group = layout.group(group).unwrap();
    let pack = head::pack(&group.pack);
    let good = store.objects.lock()[&pack].clone();
    let mut forged = good.clone();
    let at = (group.offset + offset) as usize;
    forged[at + 8..at + 14].fill(0xa5);
    store.put(&pack, forged).unwrap();
    let blobs = blobs(&library, cache.path());
    assert!(matches!(blobs.read_all(&digest(bad), size(bad)), Err(BlobError::Corrupt { .. })));
    for n in (1..=6).filter(|n| *n != bad) {
        assert_eq!(blobs.read_all(&digest(n), size(n)).unwrap(), content(n), "{n}");
    }
    assert!(matches!(blobs.read_all(&digest(bad), size(bad)), Err(BlobError::Corrupt { .. })));
    // The store was repaired. What is in memory is a group as it was.
    store.put(&pack, good.clone()).unwrap();
    let again = self::library(&store, cache.path(), how());
    begin(&again);
    assert_eq!(self::blobs(&again, cache.path()).read_all(&digest(bad), size(bad)).unwrap(), content(bad));
    // Truncated, and not there.
    for pack_now in [Some(good[..at].to_vec()), None] {
        let other = tempfile::tempdir().unwrap();
        match pack_now {
            Some(cut) => store.put(&pack, cut).unwrap(),
            None => drop(store.objects.lock().remove(&pack)),
        }
        let library = self::library(&store, other.path(), how());
        begin(&library);
        let error = self::blobs(&library, other.path()).read_all(&digest(bad), size(bad)).unwrap_err();
        assert!(matches!(error, BlobError::Corrupt { .. } | BlobError::Missing { .. }), "{error}");
    }
}

#[test]
fn a_large_blob_is_read_by_ranges() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let library = library(&store, cache.path(), how());
    begin(&library);
    store.asked();
    let (content, digest) = (large(), Hasher::digest(DigestKind::Sha256, &large()));
    let size = content.len() as u64;
    let mut file = blobs(&library, cache.path()).open_raw(&digest, size).unwrap();
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert!(read == content);
    assert!(store.asked().len() > 1);
    // One range that does not come ends the read.
    store.objects.lock().insert(head::blob(&large_blob()), vec![0; 1 << 20]);
    let other = tempfile::tempdir().unwrap();
    assert!(blobs(&library, other.path()).open_raw(&digest, size).is_err());
}

#[test]
fn a_cache_with_little_room_keeps_what_is_wanted() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let library = library(&store, cache.path(), how());
    begin(&library);
    store.asked();
    let copies = BlobCache::open(&cache.path().join("blobs")).unwrap().with_limit(500);
    let blobs = Blobs::new(Arc::clone(&library) as Arc<dyn Library>, copies);
    for n in (1..=6).chain(1..=6) {
        assert_eq!(blobs.read_all(&digest(n), size(n)).unwrap(), content(n), "{n}");
    }
    // The groups are in memory.
    assert_eq!(store.asked().len(), 2);
    let limits = [(250, 2), (50, 0)];
    for (limit, kept) in limits {
        BlobCache::existing(&cache.path().join("blobs")).evict(limit).unwrap();
        let there = (1..=6).filter(|n| blobs.read_at_once(&digest(*n), size(*n)).unwrap().is_some());
        assert_eq!(there.count(), kept, "{limit}");
    }
}

#[test]
fn nothing_is_asked_for_a_blob_with_offline() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    begin(&library(&store, cache.path(), how()));
    store.asked();
    let library = library(&store, cache.path(), Use { offline: true, ..how() });
    begin(&library);
    let error = blobs(&library, cache.path()).read_all(&digest(1), size(1)).unwrap_err();
    assert!(error.to_string().contains("--offline"), "{error}");
    assert!(store.asked().is_empty());
}

#[test]
fn all_blobs_are_listed_and_their_groups_are_read_once() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let library = library(&store, cache.path(), how());
    let mut all = library.blobs().unwrap().blobs;
    assert_eq!(all.len(), 7);
    store.asked();
    all.sort_by_key(|(digest, _)| library.position(digest));
    for (digest, stored) in &all {
        let mut bytes = Vec::new();
        let mut blob = library.blob(digest).unwrap();
        blob.read_to_end(&mut bytes).unwrap();
        let entry = library.find(digest).unwrap().1.blob;
        assert_eq!(entry.stored, *stored);
        assert_eq!(blob.is_content(), entry.packing == Packing::Zstd);
        assert_eq!(bytes.len() as u64, if blob.is_content() { entry.size } else { *stored });
    }
    let asked = store.asked();
    assert_eq!(asked.iter().filter(|name| name.starts_with("packs/")).count(), 2, "{asked:?}");
}
