use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use super::build::write;
use super::*;
use crate::library::LibraryError;
use crate::library::digest::{DigestKind, Hasher};

const CATALOG: [u8; 32] = [7; 32];

fn made(cache: &Path) -> Bytecode {
    let written = write::<LibraryError>(cache, &CATALOG, 10, |builder| {
        // In any order, and with equal contents.
        for (source, name, content) in
            [(9, "b.py", "bb"), (4, "a.py", "aaa"), (5, "a_b.py", "aaa"), (12, "c.py", "")]
        {
            let added = builder.add(NodeId(source), name.as_bytes(), "cpython-311", content.as_bytes());
            added.map_err(LibraryError::io("x"))?;
        }
        Ok(())
    });
    let written = written.unwrap();
    assert_eq!((written.files, written.bytes), (4, 8));
    Bytecode::open(cache, &CATALOG).unwrap().unwrap()
}

#[test]
fn bytecode_is_found_by_source_and_by_name() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Bytecode::open(dir.path(), &CATALOG).unwrap().is_none());
    let bytecode = made(dir.path());
    let found = bytecode.of(NodeId(4)).unwrap();
    assert_eq!((found.name, found.size), (&b"a.cpython-311.pyc"[..], 3));
    assert!(bytecode.of(NodeId(6)).is_none());
    assert_eq!(bytecode.find(&(3..8), b"a_b.cpython-311.pyc"), Some(NodeId(5)));
    assert_eq!(bytecode.find(&(3..8), b"b.cpython-311.pyc"), None, "of another directory");
    assert_eq!(bytecode.find(&(3..8), b"a.cpython-312.pyc"), None);
    assert!(bytecode.has_any(&(9..10)) && !bytecode.has_any(&(10..12)) && !bytecode.has_any(&(0..0)));
    for (source, content) in [(4, "aaa"), (5, "aaa"), (9, "bb"), (12, "")] {
        let found = bytecode.of(NodeId(source)).unwrap();
        let mut text = String::new();
        bytecode.content(&found.digest).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, content);
    }
    assert!(bytecode.content(&Hasher::digest(DigestKind::Sip128, b"x")).is_none());
    assert!(bytecode.content(&Hasher::digest(DigestKind::Sha256, b"aaa")).is_none());
}

#[test]
fn more_bytecode_than_the_sources_can_give_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = made(dir.path()).file.metadata().unwrap().len();
    let mut added = 0;
    let written = write::<LibraryError>(dir.path(), &CATALOG, 1000, |builder| {
        let megabyte = vec![7; 1 << 20];
        for source in 0..100 {
            let done = builder.add(NodeId(source), b"a.py", "cpython-311", &megabyte);
            done.map_err(LibraryError::io("x"))?;
            added += 1;
        }
        Ok(())
    });
    assert!(written.unwrap_err().to_string().contains("larger than"), "{added}");
    assert_eq!(added, 64);
    assert_eq!(Bytecode::open(dir.path(), &CATALOG).unwrap().unwrap().file.metadata().unwrap().len(), good);
}

#[test]
fn damaged_and_foreign_files_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    drop(made(cache.path()));
    let path = dir(cache.path()).join(file_name(Hex(&CATALOG)));
    let good = std::fs::read(&path).unwrap();
    for len in [0, 50, HEADER_SIZE, good.len() - 60] {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(Bytecode::open(cache.path(), &CATALOG).is_err(), "{len}");
    }
    for at in [0, 8, 20, 60, 120] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(Bytecode::open(cache.path(), &CATALOG).is_err(), "{at}");
    }
    // Damaged tables find nothing, or something whose content will not have its digest.
    for at in HEADER_SIZE..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        std::fs::write(&path, &bad).unwrap();
        let bytecode = Bytecode::open(cache.path(), &CATALOG).unwrap().unwrap();
        for source in 0..14 {
            if let Some(found) = bytecode.of(NodeId(source))
                && let Some(mut content) = bytecode.content(&found.digest)
            {
                let mut bytes = Vec::new();
                drop(content.by_ref().take(1000).read_to_end(&mut bytes));
            }
        }
        assert_ne!(bytecode.find(&(0..20), b"a.cpython-311.pyc"), Some(NodeId(99)));
    }
    std::fs::write(&path, &good).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(Bytecode::open(cache.path(), &CATALOG).is_err());
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(Bytecode::open(cache.path(), &CATALOG).is_err());
}

#[test]
fn failed_build_leaves_the_old_bytecode() {
    let cache = tempfile::tempdir().unwrap();
    drop(made(cache.path()));
    let failed = write::<LibraryError>(cache.path(), &CATALOG, 0, |_| {
        Err(LibraryError::io("python")(io::Error::other("it died")))
    });
    assert_eq!(failed.unwrap_err().to_string(), "python: it died");
    assert!(Bytecode::open(cache.path(), &CATALOG).unwrap().is_some());
}
