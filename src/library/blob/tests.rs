use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::*;
use crate::library::catalogs::{CatalogName, CatalogStamp, Catalogs};
use crate::library::digest::{DigestKind, Hasher};
use crate::library::dir::DirLibrary;
use crate::library::stored::StoredBlobs;
use crate::library::{Latency, LibraryError};

/// A library that counts how often a blob is opened, and injects errors.
#[derive(Debug)]
struct FaultyLibrary {
    inner: DirLibrary,
    opened: Arc<AtomicUsize>,
    faults: Arc<Mutex<HashMap<Digest, i32>>>,
    slow: Duration,
    /// Whether blobs come without a file behind them.
    has_no_files: bool,
}

impl Library for FaultyLibrary {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn catalogs(&self) -> Result<Catalogs, LibraryError> {
        self.inner.catalogs()
    }

    fn catalog_stamp(&self, name: &CatalogName) -> io::Result<CatalogStamp> {
        self.inner.catalog_stamp(name)
    }

    fn open_catalog(&self, name: &CatalogName) -> io::Result<StoredBlob> {
        self.inner.open_catalog(name)
    }

    fn catalog(&self, name: &CatalogName) -> Result<(CatalogStamp, Vec<u8>), LibraryError> {
        self.inner.catalog(name)
    }

    fn has_blob(&self, digest: &Digest) -> io::Result<bool> {
        self.inner.has_blob(digest)
    }

    fn blobs(&self) -> Result<StoredBlobs, LibraryError> {
        self.inner.blobs()
    }

    fn latency(&self) -> Latency {
        self.inner.latency()
    }

    fn blob(&self, digest: &Digest) -> io::Result<StoredBlob> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.slow);
        match self.faults.lock().get(digest) {
            Some(errno) => Err(io::Error::from_raw_os_error(*errno)),
            None if self.has_no_files => {
                let mut bytes = Vec::new();
                self.inner.blob(digest)?.read_to_end(&mut bytes)?;
                Ok(StoredBlob::new(io::Cursor::new(bytes), None))
            }
            None => self.inner.blob(digest),
        }
    }
}

struct World {
    dir: tempfile::TempDir,
    blobs: Blobs,
    opened: Arc<AtomicUsize>,
    faults: Arc<Mutex<HashMap<Digest, i32>>>,
}

impl World {
    fn new() -> Self {
        Self::slow(Duration::ZERO)
    }

    fn slow(slow: Duration) -> Self {
        Self::with(slow, false)
    }

    fn with(slow: Duration, has_no_files: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (opened, faults) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<HashMap<_, _>>>::default());
        let inner = DirLibrary::new(dir.path());
        let (ours, theirs) = (opened.clone(), faults.clone());
        let library = FaultyLibrary { inner, opened: ours, faults: theirs, slow, has_no_files };
        let blobs = Blobs::new(Arc::new(library), BlobCache::open(&dir.path().join("cache")).unwrap());
        Self { dir, blobs, opened, faults }
    }

    /// Opens the library and the cache again, as another process would.
    fn again(self) -> Self {
        let cache = BlobCache::open(&self.dir.path().join("cache")).unwrap();
        let inner = DirLibrary::new(self.dir.path());
        let (opened, faults) = (self.opened.clone(), self.faults.clone());
        let library = FaultyLibrary { inner, opened, faults, slow: Duration::ZERO, has_no_files: false };
        Self { blobs: Blobs::new(Arc::new(library), cache), ..self }
    }

    /// Stores `stored` as the blob of `content`.
    fn put(&self, kind: DigestKind, content: &[u8], stored: &[u8]) -> Digest {
        let digest = Hasher::digest(kind, content);
        let path = self.stored(&digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, stored).unwrap();
        digest
    }

    fn gz(&self, content: &[u8]) -> Digest {
        self.put(DigestKind::Sha256, content, &gzip(content))
    }

    fn stored(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("library").join(digest.fan_out())
    }

    fn cached(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("cache").join(digest.fan_out())
    }

    fn read(&self, digest: &Digest, size: usize) -> Result<Vec<u8>, BlobError> {
        let mut bytes = Vec::new();
        let mut file = self.blobs.open_raw(digest, size as u64)?;
        file.read_to_end(&mut bytes).unwrap();
        let whole = self.blobs.read_all(digest, size as u64);
        assert_eq!(whole.unwrap(), bytes, "in memory and as a file");
        Ok(bytes)
    }

    /// The reason why a blob is corrupt. It must be the same for both ways to read it, and leave nothing in the cache.
    fn corrupt(&self, digest: &Digest, size: usize) -> String {
        let (file, memory) =
            (self.blobs.open_raw(digest, size as u64), self.blobs.read_all(digest, size as u64));
        let (Err(BlobError::Corrupt { why, place, .. }), Err(BlobError::Corrupt { why: in_memory, .. })) =
            (file, memory)
        else {
            panic!("{digest} is not corrupt");
        };
        assert_eq!((Path::new(&place), &in_memory), (&*self.stored(digest), &why));
        assert!(!self.cached(digest).exists());
        assert_eq!(fs::read_dir(self.dir.path().join("cache/tmp")).unwrap().count(), 0, "no leftovers");
        why
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut stream = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    stream.write_all(content).unwrap();
    stream.finish().unwrap()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}

#[test]
fn a_gzip_blob_is_unpacked_once_into_the_cache() {
    let world = World::new();
    for content in [b"".to_vec(), b"hello\n".to_vec(), noise(700_000)] {
        let digest = world.gz(&content);
        assert_eq!(world.read(&digest, content.len()).unwrap(), content);
        let found = fs::metadata(world.cached(&digest)).unwrap();
        assert_eq!(found.mode() & 0o7777, 0o400);
        assert_eq!(Stamp::read(found.mtime(), found.mtime_nsec()), Some(Stamp::ThisBoot));
        let opened = world.opened.load(Ordering::Relaxed);
        world.blobs.open_raw(&digest, content.len() as u64).unwrap();
        assert_eq!(world.opened.load(Ordering::Relaxed), opened, "from the cache");
    }
}

#[test]
fn what_real_rcc_reads_is_read() {
    let world = World::new();
    let content = noise(10_000);
    let (head, tail) = content.split_at(5000);
    let mut named =
        flate2::GzBuilder::new().filename("x").mtime(7).write(Vec::new(), flate2::Compression::none());
    named.write_all(&content).unwrap();
    for (what, stored) in [
        ("members", [gzip(head), gzip(tail)].concat()),
        ("a member of nothing", [gzip(&content), gzip(b"")].concat()),
        ("plain", content.clone()),
        ("level, name and time", named.finish().unwrap()),
    ] {
        let digest = world.put(DigestKind::Sha256, &content, &stored);
        drop(fs::remove_file(world.cached(&digest)));
        assert_eq!(world.read(&digest, content.len()).unwrap(), content, "{what}");
    }
    let digest = world.gz(b"linked");
    let (place, elsewhere) = (world.stored(&digest), world.dir.path().join("elsewhere"));
    fs::rename(&place, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &place).unwrap();
    assert_eq!(world.read(&digest, 6).unwrap(), b"linked");
}

#[test]
fn a_bad_blob_is_corrupt_and_never_cached() {
    let world = World::new();
    let content = noise(300_000);
    let whole = gzip(&content);
    let len = content.len();
    let bad_checksum = [&whole[..whole.len() - 8], &[1, 2, 3, 4], &whole[whole.len() - 4..]].concat();
    for (what, stored, size, word) in [
        ("empty", Vec::new(), len, "0 bytes"),
        ("cut", whole[..whole.len() / 2].to_vec(), len, "unpacked"),
        ("no trailer", whole[..whole.len() - 8].to_vec(), len, "unpacked"),
        ("a bad checksum", bad_checksum, len, "unpacked"),
        ("zeros behind", [whole.as_slice(), &[0; 16]].concat(), len, "unpacked"),
        ("garbage behind", [whole.as_slice(), b"garbage"].concat(), len, "unpacked"),
        ("one byte behind", [whole.as_slice(), &[0x1f]].concat(), len, "unpacked"),
        ("another content", gzip(&noise(len + 1)[1..]), len, "digest"),
        ("a longer content", gzip(&noise(len + 1)), len, "larger"),
        ("a shorter content", gzip(&content[1..]), len, "the catalog says"),
        ("a shorter plain content", content[..len - 1].to_vec(), len, "the catalog says"),
        ("a bomb", gzip(&vec![0; 50_000_000]), len, "larger"),
        ("a smaller size in the catalog", whole.clone(), len - 1, "larger"),
        ("a larger size in the catalog", whole.clone(), len + 1, "the catalog says"),
    ] {
        let digest = world.put(DigestKind::Sha256, &content, &stored);
        let why = world.corrupt(&digest, size);
        assert!(why.contains(word), "{what}: {why}");
    }
    let digest = world.gz(&content);
    assert_eq!(world.read(&digest, len).unwrap(), content, "and once it is mended it is read");
}

#[test]
fn what_is_no_file_is_corrupt() {
    let world = World::new();
    for kind in [DigestKind::Sha256, DigestKind::Sip128] {
        let digest = world.put(kind, b"x", b"x");
        fs::remove_file(world.stored(&digest)).unwrap();
        let mode = rustix::fs::Mode::RUSR;
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, world.stored(&digest), fifo, mode, 0).unwrap();
        assert!(world.corrupt(&digest, 1).contains("regular"));
        fs::remove_file(world.stored(&digest)).unwrap();
        fs::create_dir(world.stored(&digest)).unwrap();
        assert!(world.corrupt(&digest, 1).contains("regular"));
    }
}

#[test]
fn a_missing_blob_is_named() {
    let world = World::new();
    for kind in [DigestKind::Sha256, DigestKind::Sip128] {
        let digest = Hasher::digest(kind, b"nowhere");
        let error = world.blobs.open_raw(&digest, 7).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, BlobError::Missing { .. }), "{message}");
        assert!(message.contains(&digest.to_string()) && message.contains("library"), "{message}");
        assert!(matches!(world.blobs.read_all(&digest, 7), Err(BlobError::Missing { .. })));
    }
}

#[test]
fn errors_of_the_store_are_not_corruption() {
    let world = World::new();
    let digest = world.gz(b"x");
    for errno in [rustix::io::Errno::IO, rustix::io::Errno::ACCESS, rustix::io::Errno::MFILE] {
        world.faults.lock().insert(digest, errno.raw_os_error());
        let error = world.blobs.open_raw(&digest, 1).unwrap_err();
        let BlobError::Io { place, source } = error else { panic!("{error}") };
        assert_eq!(
            (Path::new(&place), source.raw_os_error()),
            (&*world.stored(&digest), Some(errno.raw_os_error()))
        );
    }
    world.faults.lock().clear();
    assert_eq!(world.read(&digest, 1).unwrap(), b"x");
}

#[test]
fn a_full_cache_is_an_error_of_the_cache() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(rustix::io::Errno::NOSPC.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let world = World::new();
    let digest = world.gz(b"x");
    let mut stored = world.blobs.stored(&digest).unwrap();
    let error = world.blobs.pour(&digest, 1, &mut stored, &mut Full).unwrap_err();
    let BlobError::Io { place, source } = error else { panic!("{error}") };
    assert_eq!((Path::new(&place), source.kind()), (&*world.cached(&digest), io::ErrorKind::StorageFull));
    fs::remove_dir(world.dir.path().join("cache/tmp")).unwrap();
    fs::write(world.dir.path().join("cache/tmp"), "in the way").unwrap();
    let error = world.blobs.open_raw(&digest, 1).unwrap_err();
    assert!(matches!(error, BlobError::Io { .. }), "{error}");
    assert_eq!(world.blobs.read_all(&digest, 1).unwrap(), b"x", "memory needs no cache");
}

#[test]
fn a_changed_copy_is_fetched_again() {
    let world = World::new();
    let content = noise(1000);
    let digest = world.gz(&content);
    let path = world.cached(&digest);
    let mother = SystemTime::UNIX_EPOCH + Duration::from_secs(1_610_000_000);
    let write = |bytes: &[u8], time: SystemTime, mode: u32| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let (other, early) = (vec![7; 1000], mother - Duration::from_nanos(1));
    type Damage<'a> = Box<dyn Fn() + 'a>;
    let damages: [(&str, Damage<'_>); 9] = [
        ("written", Box::new(|| write(&other, SystemTime::now(), 0o400))),
        ("written a little earlier", Box::new(|| write(&other, early, 0o400))),
        ("of another mode", Box::new(|| write(&other, mother, 0o644))),
        ("truncated", Box::new(|| write(&content[..999], mother, 0o400))),
        ("emptied", Box::new(|| write(b"", mother, 0o400))),
        ("removed", Box::new(|| fs::remove_file(&path).unwrap())),
        (
            "a link",
            Box::new(|| {
                fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
            }),
        ),
        (
            "a directory",
            Box::new(|| {
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
                fs::write(path.join("inside"), "").unwrap();
            }),
        ),
        ("with all the rest", Box::new(|| fs::remove_dir_all(world.dir.path().join("cache")).unwrap())),
    ];
    for (what, damage) in damages {
        assert_eq!(world.read(&digest, 1000).unwrap(), content);
        damage();
        assert_eq!(world.read(&digest, 1000).unwrap(), content, "{what}");
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode(), 0o100_400, "{what}");
    }
}

#[test]
fn a_library_without_files_serves_both_kinds_of_blobs() {
    let world = World::with(Duration::ZERO, true);
    for content in [b"".to_vec(), b"hello\n".to_vec(), noise(700_000)] {
        let digests = [world.gz(&content), world.put(DigestKind::Sip128, &content, &content)];
        for digest in digests {
            world.blobs.read_ahead(&digest).unwrap();
            assert_eq!(world.read(&digest, content.len()).unwrap(), content);
        }
    }
    let bad = world.put(DigestKind::Sip128, b"good", b"bad!");
    assert!(world.corrupt(&bad, 4).contains("digest"));
}

#[test]
fn a_raw_blob_is_copied_and_rcc_may_write_over_its_own() {
    let world = World::new();
    // A `.gz` file in a raw library is not unpacked.
    for content in [b"".to_vec(), noise(700_000), gzip(b"a .gz file"), b"\x1f\x8b".to_vec()] {
        let digest = world.put(DigestKind::Sip128, &content, &content);
        assert_eq!(world.read(&digest, content.len()).unwrap(), content);
        let mut file = world.blobs.open_raw(&digest, content.len() as u64).unwrap();
        assert_eq!(file.metadata().unwrap().ino(), fs::metadata(world.cached(&digest)).unwrap().ino());
        // Truncated and written again, by rcc or by an attacker.
        fs::write(world.stored(&digest), b"other bytes").unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, content);
        let mut again = world.blobs.open_raw(&digest, content.len() as u64).unwrap();
        bytes.clear();
        again.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, content);
    }
    let content = noise(1000);
    for (stored, word) in [
        (content[1..].to_vec(), "the catalog says"),
        ([content.as_slice(), b"x"].concat(), "the catalog says|larger"),
        (noise(1001)[1..].to_vec(), "digest"),
        (gzip(&content), "the catalog says|larger"),
    ] {
        let digest = world.put(DigestKind::Sip128, &content, &stored);
        for error in [
            world.blobs.open_raw(&digest, 1000).unwrap_err(),
            world.blobs.read_all(&digest, 1000).unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(
                matches!(error, BlobError::Corrupt { .. })
                    && word.split('|').any(|word| message.contains(word))
            );
        }
    }
}

/// Sets the modification time of a copy, to that of another boot or of an earlier version.
fn age(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_copy_of_an_earlier_run_is_verified_once() {
    let world = World::new();
    let content = noise(300_000);
    for (digest, time) in [
        (world.gz(&content), 1_610_000_000),
        (world.gz(&noise(300_001)[1..]), 1_620_000_000),
        (world.put(DigestKind::Sip128, &content, &content), 1_620_000_001),
    ] {
        drop(world.blobs.open_raw(&digest, 300_000).unwrap());
        let path = world.cached(&digest);
        age(&path, time);
        world.opened.store(0, Ordering::Relaxed);
        let ino = fs::metadata(&path).unwrap().ino();
        assert!(matches!(
            world.blobs.cache.get(&digest, 300_000).unwrap(),
            Some(CachedCopy { is_verified: false, .. })
        ));
        drop(world.blobs.open_raw(&digest, 300_000).unwrap());
        assert!(matches!(
            world.blobs.cache.get(&digest, 300_000).unwrap(),
            Some(CachedCopy { is_verified: true, .. })
        ));
        assert_eq!(fs::metadata(&path).unwrap().ino(), ino, "the same copy");
        assert_eq!(world.opened.load(Ordering::Relaxed), 0, "the library was not asked");
        // Zeros, as after a power cut.
        fs::remove_file(&path).unwrap();
        fs::write(&path, vec![0; 300_000]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        age(&path, time);
        let stop = AtomicBool::new(false);
        assert!(world.blobs.prepare(&digest, 300_000, &stop).unwrap());
        assert_eq!(world.opened.load(Ordering::Relaxed), 1, "fetched again");
    }
}

#[test]
fn the_limit_holds_when_a_copy_is_added_whoever_adds_it() {
    let world = World::new();
    let cache = || BlobCache::open(&world.dir.path().join("cache")).unwrap().with_limit(3500);
    let blobs = |cache| Blobs::new(Arc::new(DirLibrary::new(world.dir.path())), cache);
    let daemons = [blobs(cache()), blobs(cache())];
    let total = || -> u64 {
        fn walk(dir: &Path) -> u64 {
            let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
            let sizes = entries.filter(|entry| entry.file_name() != "size").map(|entry| {
                let found = entry.metadata().unwrap();
                if found.is_dir() { walk(&entry.path()) } else { found.len() }
            });
            sizes.sum()
        }
        walk(&world.dir.path().join("cache"))
    };
    let digests: Vec<Digest> = (0..12u8).map(|n| world.gz(&vec![n; 1000])).collect();
    for (n, digest) in digests.iter().enumerate() {
        drop(daemons[n % 2].open_raw(digest, 1000).unwrap());
        assert!(total() <= 3500, "{} after {n}", total());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(world.cached(&digests[11]).exists() && !world.cached(&digests[0]).exists());
    // A wrong record of the size, and removed copies.
    for damage in ["", "rubbish", "ffffffff 0", "00000000 00000000000000000000\n"] {
        fs::write(world.dir.path().join("cache/size"), damage).unwrap();
        drop(daemons[0].open_raw(&digests[0], 1000).unwrap());
        drop(daemons[1].open_raw(&digests[1], 1000).unwrap());
        assert!(total() <= 3500, "{damage}");
        for digest in &digests[..2] {
            fs::remove_file(world.cached(digest)).unwrap();
        }
    }
    // A blob larger than the limit is read, but not kept.
    let large = world.gz(&noise(100_000));
    let before = total();
    for _ in 0..3 {
        let mut bytes = Vec::new();
        daemons[0].open_raw(&large, 100_000).unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes == noise(100_000));
    }
    assert_eq!(total(), before);
    assert!(!world.cached(&large).exists());
}

#[test]
fn those_who_come_together_wait_for_one() {
    let world = World::slow(Duration::from_millis(30));
    let content = noise(200_000);
    for digest in [world.gz(&content), world.put(DigestKind::Sip128, &content, &content)] {
        world.opened.store(0, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| world.blobs.open_raw(&digest, 200_000).unwrap());
            }
        });
        let opened = world.opened.load(Ordering::Relaxed);
        assert_eq!(opened, 1);
        assert!(world.blobs.in_progress.lock().is_empty());
    }
}

#[test]
fn those_who_come_together_for_a_bad_one_all_hear_of_it() {
    let world = World::slow(Duration::from_millis(5));
    let digest = world.put(DigestKind::Sha256, b"good", &gzip(b"evil"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert!(matches!(world.blobs.open_raw(&digest, 4), Err(BlobError::Corrupt { .. })))
            });
        }
    });
    assert!(world.blobs.in_progress.lock().is_empty());
}

#[test]
fn two_processes_may_fetch_one_blob() {
    let world = World::new();
    let content = noise(300_000);
    let digest = world.gz(&content);
    let other = BlobCache::open(&world.dir.path().join("cache")).unwrap();
    let mut pending = other.begin().unwrap();
    pending.file.write_all(&content).unwrap();
    assert_eq!(world.read(&digest, content.len()).unwrap(), content);
    let first = fs::metadata(world.cached(&digest)).unwrap().ino();
    let file = other.commit(pending, &digest, content.len() as u64).unwrap();
    assert_eq!(file.metadata().unwrap().ino(), first, "the second takes the first's");
}

#[test]
fn a_filesystem_without_unnamed_files_does_as_well() {
    let world = World::new();
    let digest = world.gz(b"hello");
    let mut pending = world.blobs.cache.begin_named().unwrap();
    pending.file.write_all(b"hello").unwrap();
    drop(world.blobs.cache.commit(pending, &digest, 5).unwrap());
    world.opened.store(0, Ordering::Relaxed);
    world.blobs.open_raw(&digest, 5).unwrap();
    assert_eq!(world.opened.load(Ordering::Relaxed), 0, "it is as good as any");
    drop(world.blobs.cache.begin_named().unwrap());
    assert_eq!(fs::read_dir(world.dir.path().join("cache/tmp")).unwrap().count(), 0, "no leftovers");
}

#[test]
fn the_least_used_go_first() {
    let world = World::new();
    let blobs: Vec<(Digest, u64)> = (1..=5u8).map(|n| (world.gz(&vec![n; 1000]), 1000)).collect();
    for (digest, size) in &blobs {
        world.blobs.open_raw(digest, *size).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let there =
        |world: &World| blobs.iter().map(|(digest, _)| world.cached(digest).exists()).collect::<Vec<_>>();
    assert_eq!(world.blobs.cache.evict(5000).unwrap(), 0);
    let open = world.blobs.open_raw(&blobs[0].0, 1000).unwrap();
    assert_eq!(world.blobs.cache.evict(3500).unwrap(), 2000);
    assert_eq!(there(&world), [false, false, true, true, true]);
    let mut bytes = Vec::new();
    (&open).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [1; 1000], "what is open stays");
    assert_eq!(world.blobs.cache.evict(0).unwrap(), 3000);
    assert_eq!(world.read(&blobs[4].0, 1000).unwrap(), [5; 1000]);
    fs::remove_dir_all(world.dir.path().join("cache")).unwrap();
    assert_eq!(world.blobs.cache.evict(0).unwrap(), 0);
}

#[test]
fn leftovers_of_dead_writers_are_swept() {
    let mut world = World::new();
    let tmp = world.dir.path().join("cache/tmp");
    for (name, age) in [("copy.1.a.0", 7200), ("copy.2.a.0", 10)] {
        fs::write(tmp.join(name), "half").unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(tmp.join(name)).unwrap().set_modified(time).unwrap();
    }
    world = world.again();
    drop(world.blobs);
    let left: Vec<_> = fs::read_dir(tmp).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["copy.2.a.0"]);
}

/// Reads a stream to its end in pieces. Returns the bytes, and whether the stream failed.
fn drain(filling: &Filling, size: usize) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    while bytes.len() < size {
        let at = bytes.len() as u64;
        let Ok(file) = filling.wait(at, piece.len()) else { return (bytes, true) };
        let n = file.read_at(&mut piece, at).unwrap();
        bytes.extend_from_slice(&piece[..n]);
    }
    (bytes, false)
}

#[test]
fn a_stream_is_unpacked_once_for_all_its_readers_and_is_whole_afterwards() {
    let world = World::slow(Duration::from_millis(20));
    let content = noise(5_000_000);
    let digest = world.gz(&content);
    let blobs = Arc::new(world.blobs);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let streamed = blobs.stream(&digest, 5_000_000, || panic!("it is good")).unwrap();
                let Streamed::Filling(filling) = streamed else { return };
                assert!(drain(&filling, 5_000_000) == (content.clone(), false));
            });
        }
        // A reader of the whole blob.
        scope.spawn(|| {
            let mut bytes = Vec::new();
            blobs.open_raw(&digest, 5_000_000).unwrap().read_to_end(&mut bytes).unwrap();
            assert!(bytes == content);
        });
    });
    assert_eq!(world.opened.load(Ordering::Relaxed), 1);
    assert!(matches!(blobs.stream(&digest, 5_000_000, || ()).unwrap(), Streamed::Whole(_)));
    assert!(blobs.streams.lock().is_empty() && blobs.in_progress.lock().is_empty());
}

#[test]
fn the_beginning_of_a_bad_blob_is_taken_back_and_its_end_is_never_read() {
    let world = World::new();
    let mut content = noise(3_000_000);
    let digest = Hasher::digest(DigestKind::Sha256, &content);
    content[2_999_000] ^= 1;
    let path = world.stored(&digest);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, gzip(&content)).unwrap();
    let cached = world.cached(&digest);
    let told = Arc::new(AtomicUsize::new(0));
    let teller = Arc::clone(&told);
    let blobs = Arc::new(world.blobs);
    let failed = move || {
        teller.fetch_add(1, Ordering::Relaxed);
    };
    // Two files have this content. The pages of both must be dropped.
    let Streamed::Filling(filling) = blobs.stream(&digest, 3_000_000, failed.clone()).unwrap() else {
        panic!()
    };
    let second = blobs.stream(&digest, 3_000_000, failed);
    let (bytes, given_up) = drain(&filling, 3_000_000);
    assert!(given_up && bytes.len() < 3_000_000);
    let given = if second.is_ok() { 2 } else { 1 };
    while told.load(Ordering::Relaxed) < given {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(told.load(Ordering::Relaxed), given);
    assert!(!cached.exists());
    assert!(matches!(blobs.open_raw(&digest, 3_000_000), Err(BlobError::Corrupt { .. })));
    let again = blobs.stream(&digest, 3_000_000, || panic!("it is not streamed again"));
    assert!(matches!(again, Err(BlobError::Corrupt { .. })));
}

#[test]
fn errors_of_the_store_end_a_stream_too() {
    let world = World::new();
    let digest = world.gz(&noise(1_000_000));
    world.faults.lock().insert(digest, 5);
    let blobs = Arc::new(world.blobs);
    let Streamed::Filling(filling) = blobs.stream(&digest, 1_000_000, || ()).unwrap() else { panic!() };
    assert_eq!(drain(&filling, 1_000_000), (Vec::new(), true));
    world.faults.lock().clear();
    // The failure is not remembered.
    while blobs.streams.lock().contains_key(&digest) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let Streamed::Filling(filling) = blobs.stream(&digest, 1_000_000, || ()).unwrap() else { panic!() };
    assert!(!drain(&filling, 1_000_000).1);
}

#[test]
fn preparing_stops_when_told_and_leaves_nothing() {
    let world = World::new();
    let digest = world.gz(&noise(2_000_000));
    let stop = AtomicBool::new(true);
    assert!(!world.blobs.prepare(&digest, 2_000_000, &stop).unwrap());
    assert!(!world.cached(&digest).exists());
    stop.store(false, Ordering::Relaxed);
    assert!(world.blobs.prepare(&digest, 2_000_000, &stop).unwrap());
    assert!(!world.blobs.prepare(&digest, 2_000_000, &stop).unwrap(), "it is there");
}

/// The stream ends if no thread can be started, and if the thread panics.
#[test]
fn an_unpacking_that_never_ran_ends_its_stream() {
    let world = World::new();
    let digest = world.gz(&noise(1_000_000));
    let blobs = Arc::new(world.blobs);
    let to = Arc::new(Filling::new(1_000_000));
    blobs.streams.lock().insert(digest, Arc::clone(&to));
    drop(Unpacking { blobs: Arc::clone(&blobs), digest, to: Arc::clone(&to), outcome: None });
    assert!(blobs.streams.lock().is_empty());
    assert_eq!(drain(&to, 1_000_000), (Vec::new(), true));
}
