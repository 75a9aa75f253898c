use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::*;
use crate::library::digest::{DigestKind, Hasher};
use crate::library::dir::DirLibrary;

#[path = "../../../tests/e2e/common/zip.rs"]
#[allow(unreachable_pub)]
mod build;
use build::{ZipEntry, entries, zip};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const CATALOG: &str = "adb8c26db4d86a93v12.linux_amd64";

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(FIXTURES).join("hololib-zip").join(name)).unwrap()
}

fn opened(archive: &[u8]) -> Result<ZipLibrary, LibraryError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.zip");
    std::fs::write(&path, archive).unwrap();
    ZipLibrary::open(&path)
}

fn name() -> CatalogName {
    CatalogName::parse(CATALOG).unwrap()
}

fn content(library: &ZipLibrary, digest: &Digest) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    library.blob(digest)?.read_to_end(&mut bytes).map(|_| bytes)
}

fn place(digest: &Digest) -> String {
    format!("library/{}", digest.fan_out().display())
}

/// A small library: one catalog and one blob.
fn small() -> (Digest, Vec<ZipEntry>) {
    let digest = Hasher::digest(DigestKind::Sip128, b"hello");
    let catalog = ZipEntry::deflated(&format!("catalog/{CATALOG}"), b"a catalog");
    (digest, vec![ZipEntry::deflated(&place(&digest), b"hello"), catalog])
}

#[test]
fn an_export_of_rcc_holds_what_the_exported_library_holds() {
    for (archive, dir) in
        [("hololib.zip", "basic-gz"), ("hololib-raw.zip", "basic-raw"), ("hololib-both.zip", "two-catalogs")]
    {
        let plain = DirLibrary::new(&Path::new(FIXTURES).join(dir).join("home/hololib"));
        let library = opened(&fixture(archive)).unwrap();
        let names = |library: &dyn Library| -> Vec<CatalogName> {
            library.catalogs().unwrap().entries.into_iter().map(|entry| entry.name).collect()
        };
        assert_eq!(names(&library), names(&plain), "{archive}");
        for name in names(&library) {
            assert_eq!(
                library.catalog(&name).unwrap().1,
                plain.catalog(&name).unwrap().1,
                "{archive}: {name}"
            );
            let mut stream = Vec::new();
            library.open_catalog(&name).unwrap().read_to_end(&mut stream).unwrap();
            assert!(stream == plain.catalog(&name).unwrap().1, "{archive}: {name}");
        }
        let stored = library.blobs().unwrap();
        assert!(stored.blobs.len() > 60 && stored.strays == 0);
        for (digest, size) in stored.blobs {
            let mut bytes = Vec::new();
            plain.blob(&digest).unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!((content(&library, &digest).unwrap(), size), (bytes, size), "{archive}: {digest}");
            assert!(library.has_blob(&digest).unwrap());
        }
    }
}

#[test]
fn stored_entries_a_script_in_front_and_an_archive_inside_of_another() {
    let inner: Vec<_> = entries(&fixture("hololib.zip"))
        .into_iter()
        .map(|entry| ZipEntry::stored(&entry.name, &entry.content()))
        .collect();
    let script = b"#!/usr/bin/env python3\nPK\x05\x06 is no archive\n";
    let plain = opened(&fixture("hololib.zip")).unwrap();
    let nested = [ZipEntry::deflated("robot/tasks.py", b"pass"), ZipEntry::stored(NESTED, &zip(b"", &inner))];
    for (archive, is_nested) in
        [(zip(b"", &inner), false), (zip(script, &inner), false), (zip(script, &nested), true)]
    {
        let library = opened(&archive).unwrap();
        assert_eq!(library.name().ends_with("x.zip/hololib/hololib.zip"), is_nested);
        assert_eq!(library.catalog(&name()).unwrap().1, plain.catalog(&name()).unwrap().1);
        for (digest, _) in library.blobs().unwrap().blobs {
            assert_eq!(content(&library, &digest).unwrap(), content(&plain, &digest).unwrap());
        }
    }
    let twice = [nested[1].clone(), nested[1].clone()];
    assert!(opened(&zip(script, &twice)).unwrap_err().to_string().contains("two entries"));
    let packed = [ZipEntry::deflated(NESTED, &zip(b"", &inner))];
    let why = opened(&zip(script, &packed)).unwrap_err().to_string();
    assert!(why.contains("is compressed") && why.contains("extract"), "{why}");
}

#[test]
fn archives_that_are_wrong_are_refused() {
    type Damage = fn(&mut Vec<ZipEntry>);
    let damages: [(&str, Damage); 13] = [
        ("two entries of the name of blob", |entries| entries.push(entries[0].clone())),
        ("two entries of the name catalog/", |entries| entries.push(entries[1].clone())),
        ("overlap", |entries| entries[1].offset = Some(10)),
        ("overlap", |entries| entries[0].packed_size = 500),
        ("overlap", |entries| entries[1].packed_size = u32::MAX - 1),
        ("leads out", |entries| entries.push(ZipEntry::stored("library/../../evil", b""))),
        ("leads out", |entries| entries.push(ZipEntry::stored("..\\evil", b""))),
        ("leads out", |entries| entries.push(ZipEntry::stored("/etc/passwd", b""))),
        ("encrypted", |entries| entries[0].flags = 1),
        ("neither stored nor deflated", |entries| entries[0].method = 12),
        ("cannot have the size", |entries| entries[0].size = 100_000),
        ("cannot have the size", |entries| {
            entries[0] = ZipEntry { size: 4, ..ZipEntry::stored(&entries[0].name, b"hello") };
        }),
        ("neither catalog/ nor", |entries| entries.truncate(1)),
    ];
    for (word, damage) in damages {
        let (_, mut entries) = small();
        damage(&mut entries);
        let why = opened(&zip(b"", &entries)).unwrap_err().to_string();
        assert!(why.contains(word), "{word}: {why}");
    }
    let other = [ZipEntry::stored("readme.txt", b"")];
    assert!(matches!(opened(&zip(b"", &other)), Err(LibraryError::NotALibrary { .. })));
    assert!(matches!(opened(b"hello"), Err(LibraryError::NotALibrary { .. })));
    assert!(matches!(opened(b""), Err(LibraryError::NotALibrary { .. })));
}

#[test]
fn an_archive_that_was_cut_is_refused() {
    let whole = fixture("hololib-b-without-a.zip");
    for len in (0..whole.len()).step_by(7).chain(whole.len() - 90..whole.len()) {
        assert!(opened(&whole[..len]).is_err(), "{len}");
        // Without its first bytes the tables are whole, and every entry is somewhere else.
        if let Ok(library) = opened(&whole[len + 1..]) {
            let blobs = library.blobs().unwrap().blobs;
            assert!(blobs.iter().all(|(digest, _)| content(&library, digest).is_err()), "without {len}");
            assert!(
                library.catalogs().unwrap().entries.iter().all(|entry| library.catalog(&entry.name).is_err())
            );
        }
    }
}

#[test]
fn absurd_counts_are_refused_at_once() {
    let (_, entries) = small();
    let whole = zip(b"", &entries);
    let end = whole.len() - 22;
    let started = Instant::now();
    for count in [0u16, 1, 3, u16::MAX] {
        let mut bytes = whole.clone();
        bytes[end + 10..end + 12].copy_from_slice(&count.to_le_bytes());
        assert!(opened(&bytes).is_err(), "{count}");
    }
    // The records of zip64, which can declare any number.
    let mut bytes = whole[..end].to_vec();
    let (size, offset) = (&whole[end + 12..end + 16], &whole[end + 16..end + 20]);
    let at = bytes.len() as u64;
    bytes.extend(b"PK\x06\x06");
    bytes.extend(44u64.to_le_bytes());
    bytes.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([u64::MAX; 2].map(u64::to_le_bytes).concat());
    for number in [size, offset] {
        bytes.extend(number);
        bytes.extend([0; 4]);
    }
    bytes.extend(b"PK\x06\x07\0\0\0\0");
    bytes.extend(at.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([u8::MAX; 12]);
    bytes.extend([0, 0]);
    let why = opened(&bytes).unwrap_err().to_string();
    assert!(why.contains("at most 2097152"), "{why}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_entry_of_another_length_than_declared_is_an_error_of_that_entry() {
    let (digest, good) = small();
    for size in [4, 6, 0] {
        let mut entries = good.clone();
        entries[0].size = size;
        let library = opened(&zip(b"", &entries)).unwrap();
        let error = content(&library, &digest).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{size}");
        assert!(library.catalog(&name()).is_ok());
    }
    // Sixteen megabytes in sixteen kilobytes, said to be one: the rest is not unpacked.
    let mut bomb = good;
    bomb[0] = ZipEntry { size: 1 << 20, ..ZipEntry::deflated(&bomb[0].name, &vec![0; 16 << 20]) };
    let library = opened(&zip(b"", &bomb)).unwrap();
    let mut stored = library.blob(&digest).unwrap();
    let (mut total, mut buffer) = (0, [0; 8192]);
    let error = loop {
        match stored.read(&mut buffer) {
            Ok(n) => total += n,
            Err(error) => break error,
        }
    };
    assert!(total <= 1 << 20, "{total}");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_damaged_catalog_is_an_error() {
    let (_, mut entries) = small();
    entries[1].crc ^= 1;
    let error = opened(&zip(b"", &entries)).unwrap().catalog(&name()).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    let (_, mut entries) = small();
    entries[1] = ZipEntry { size: MAX_FILE as u32 + 1, packed_size: 1 << 18, ..entries[1].clone() };
    entries[1].packed.resize(1 << 18, 0);
    let error = opened(&zip(b"", &entries)).unwrap().catalog(&name()).unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
}

#[test]
fn an_archive_that_changes_while_it_is_open_gives_no_other_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.zip");
    let (digest, entries) = small();
    std::fs::write(&path, zip(b"", &entries)).unwrap();
    let library = ZipLibrary::open(&path).unwrap();
    std::fs::rename(&path, dir.path().join("y.zip")).unwrap();
    std::fs::write(&path, b"another").unwrap();
    assert_eq!(content(&library, &digest).unwrap(), b"hello", "it was replaced: the opened one is read");
    let opened = dir.path().join("y.zip");
    for bytes in [zip(b"", &[])[..].to_vec(), vec![0; 4096], Vec::new()] {
        std::fs::write(&opened, bytes).unwrap();
        assert!(content(&library, &digest).is_err());
        assert!(library.catalog(&name()).is_err());
    }
}

#[test]
fn every_opening_of_an_unchanged_archive_has_the_same_stamp() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.zip");
    let (_, entries) = small();
    std::fs::write(&path, zip(b"", &entries)).unwrap();
    let stamp = || ZipLibrary::open(&path).unwrap().catalog_stamp(&name()).unwrap();
    let first = stamp();
    assert_eq!(first, stamp());
    let ino = std::fs::metadata(&path).unwrap().ino();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), ino);
    assert_ne!(first, stamp());
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.zip");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert!(matches!(ZipLibrary::open(&path), Err(LibraryError::NotALibrary { .. })));
    assert!(matches!(ZipLibrary::open(dir.path()), Err(LibraryError::NotALibrary { .. })));
}

proptest::proptest! {
    #[test]
    fn no_damage_panics(flips in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()), 1..6)) {
        let mut bytes = fixture("hololib-b-without-a.zip");
        // Most of the damage where the tables are.
        let tables = bytes.len() - 1200;
        for (place, byte) in flips {
            let at = tables + place.index(1200);
            bytes[at] = byte;
        }
        if let Ok(library) = opened(&bytes) {
            for (digest, _) in library.blobs().unwrap().blobs {
                drop(content(&library, &digest));
            }
            for entry in library.catalogs().unwrap().entries {
                drop(library.catalog(&entry.name));
            }
        }
    }
}
