use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::cache::open_or_compile;
use super::*;
use crate::library::LibraryError;
use crate::library::catalog::parse_file;
use crate::library::catalogs::CatalogName;
use crate::library::dir::DirLibrary;

const NAME: &str = "adb8c26db4d86a93v12.linux_amd64";

/// A catalog that rcc made of a tree with every kind of entry.
fn recorded(fixture: &str) -> Vec<u8> {
    let file = format!("tests/fixtures/{fixture}/home/hololib/catalog/{NAME}");
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

struct World {
    dir: tempfile::TempDir,
    catalog: PathBuf,
    cache: PathBuf,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (catalog, cache) = (dir.path().join("catalog").join(NAME), dir.path().join("cache/index"));
        fs::create_dir(dir.path().join("catalog")).unwrap();
        fs::write(&catalog, recorded("basic-gz")).unwrap();
        Self { dir, catalog, cache }
    }

    fn open(&self) -> Index {
        self.try_open(NAME).unwrap()
    }

    fn try_open(&self, name: &str) -> Result<Index, LibraryError> {
        let library = DirLibrary::new(self.dir.path());
        open_or_compile(&library, &CatalogName::parse(name).unwrap(), &self.cache)
    }

    fn only(&self, kind: &str) -> PathBuf {
        let mut found = self.all(kind);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn all(&self, kind: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.cache).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|found| found == kind)).collect()
    }

    /// Opens the index again, checks the tree, and returns whether it was compiled again.
    fn recompiles(&self, expected: &[String]) -> bool {
        let before = fs::metadata(self.only("idx")).unwrap().ino();
        assert_eq!(walk(&self.open()).unwrap(), expected);
        before != fs::metadata(self.only("idx")).unwrap().ino()
    }
}

/// One line for each node in the order of the index, or the first error.
fn walk(index: &Index) -> Result<Vec<String>, IndexError> {
    let mut lines = Vec::new();
    for id in 0..index.len() {
        let node = index.node(NodeId(id))?;
        let name = String::from_utf8_lossy(node.name);
        lines.push(match node.kind {
            NodeKind::Dir { children, subdirs } => {
                format!("{} {name}/ {children:?} {subdirs}", node.parent.0)
            }
            NodeKind::File { size, perm, digest, relocations, .. } => {
                let offsets: Vec<u64> = relocations.iter().map(|at| at.get()).collect();
                format!("{} {name} {size} {perm:o} {digest} {offsets:?}", node.parent.0)
            }
            NodeKind::Symlink { target } => {
                format!("{} {name} -> {}", node.parent.0, String::from_utf8_lossy(target))
            }
        });
    }
    Ok(lines)
}

#[test]
fn children_are_neighbours_in_the_order_of_their_names() {
    for fixture in ["basic-gz", "basic-raw"] {
        let world = World::new();
        fs::write(&world.catalog, recorded(fixture)).unwrap();
        let index = world.open();
        let (mut seen, mut files, mut relocated, mut bytes) = (1, 0, 0, 0);
        for id in 0..index.len() {
            let node = index.node(NodeId(id)).unwrap();
            match node.kind {
                NodeKind::Dir { children, subdirs } => {
                    assert_eq!(children.start, if children.is_empty() { children.start } else { seen });
                    seen += children.len() as u32;
                    let nodes: Vec<_> =
                        children.clone().map(|child| index.node(NodeId(child)).unwrap()).collect();
                    assert!(nodes.is_sorted_by(|a, b| a.name < b.name));
                    assert!(nodes.iter().all(|child| child.parent.0 == id));
                    let dirs =
                        nodes.iter().filter(|child| matches!(child.kind, NodeKind::Dir { .. })).count();
                    assert_eq!(dirs, subdirs as usize);
                    for child in &nodes {
                        assert_eq!(index.lookup(NodeId(id), child.name), Ok(Some(child.id)));
                        let longer = [child.name, b"!"].concat();
                        let there = nodes.iter().any(|other| other.name == longer);
                        assert_eq!(index.lookup(NodeId(id), &longer).unwrap().is_some(), there);
                    }
                }
                NodeKind::File { size, relocations, digest, .. } => {
                    assert_eq!(digest.is_raw(), fixture == "basic-raw");
                    (files, bytes) = (files + 1, bytes + size);
                    relocated += u32::from(!relocations.is_empty());
                    assert!(relocations.is_sorted_by(|a, b| a.get() < b.get()));
                }
                NodeKind::Symlink { .. } => assert_eq!(index.lookup(NodeId(id), b"x"), Ok(None)),
            }
        }
        assert_eq!(seen, index.len(), "every node is some directory's child");
        assert_eq!(
            (files, relocated, bytes),
            (index.header.files.get(), index.relocated_files(), index.header.total_bytes.get())
        );
        assert_eq!(index.info().identity, "hea7ce2c_493f813dad24d3t");
        assert!(index.node(NodeId(index.len())).is_err());
        assert!(index.node(NodeId(u32::MAX)).is_err());
    }
}

#[test]
fn the_second_opening_reads_neither_file_through() {
    let world = World::new();
    let first = walk(&world.open()).unwrap();
    assert!(!world.recompiles(&first));
    let stamp = fs::read(world.only("stamp")).unwrap();
    assert!(!world.recompiles(&first));
    assert_eq!(fs::read(world.only("stamp")).unwrap(), stamp);
    // Proof: damage in the body is not noticed while the stamp says that the index has not changed.
    let mut bytes = fs::read(world.only("idx")).unwrap();
    let last_name = bytes.len() - index_info_len(&bytes) - 20;
    bytes[last_name] ^= 1;
    fs::write(world.only("idx"), &bytes).unwrap();
    let look = fs::metadata(world.only("idx")).unwrap();
    let mut stamp: serde_json::Value = serde_json::from_slice(&stamp).unwrap();
    stamp["index"]["mtime"] = serde_json::json!([look.mtime(), look.mtime_nsec()]);
    stamp["index"]["ctime"] = serde_json::json!([look.ctime(), look.ctime_nsec()]);
    fs::write(world.only("stamp"), stamp.to_string()).unwrap();
    assert_ne!(walk(&world.open()).unwrap(), first);
    fs::remove_file(world.only("stamp")).unwrap();
    assert!(world.recompiles(&first), "and is seen without it");
}

/// The length of the catalog's header at the end of an index.
fn index_info_len(bytes: &[u8]) -> usize {
    format::Header::decode(bytes).unwrap().info.len.get() as usize
}

#[test]
fn a_touched_catalog_is_not_compiled_again() {
    let world = World::new();
    let first = walk(&world.open()).unwrap();
    let stamp = fs::read(world.only("stamp")).unwrap();
    let later = SystemTime::now() + Duration::from_secs(60);
    fs::File::options().write(true).open(&world.catalog).unwrap().set_modified(later).unwrap();
    assert!(!world.recompiles(&first));
    assert_ne!(fs::read(world.only("stamp")).unwrap(), stamp, "stamped anew");
}

#[test]
fn a_changed_catalog_is_another_index() {
    let world = World::new();
    let first = walk(&world.open()).unwrap();
    fs::write(&world.catalog, recorded("basic-raw")).unwrap();
    let second = walk(&world.open()).unwrap();
    assert_ne!(first, second);
    assert_eq!(world.all("idx").len(), 2);
    fs::write(&world.catalog, recorded("basic-gz")).unwrap();
    assert_eq!(walk(&world.open()).unwrap(), first);
}

#[test]
fn a_damaged_index_is_compiled_again() {
    let world = World::new();
    let first = walk(&world.open()).unwrap();
    let whole = fs::read(world.only("idx")).unwrap();
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 8] = [
        ("empty", |bytes| bytes.clear()),
        ("cut in the header", |bytes| bytes.truncate(100)),
        ("cut in the body", |bytes| bytes.truncate(bytes.len() / 2)),
        ("cut by a byte", |bytes| bytes.truncate(bytes.len() - 1)),
        ("a bit of the magic", |bytes| bytes[0] ^= 1),
        ("a bit of the header", |bytes| bytes[40] ^= 1),
        ("a bit of the body", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }),
        ("something else", |bytes| *bytes = b"#!/bin/sh\n".repeat(100)),
    ];
    for (what, damage) in damages {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(world.only("idx"), bytes).unwrap();
        assert!(world.recompiles(&first), "{what}");
        assert_eq!(fs::read(world.only("idx")).unwrap(), whole, "{what}: compiled the same");
        assert!(!world.recompiles(&first), "{what}: and then trusted");
    }
}

#[test]
fn an_index_of_another_catalog_in_its_place_is_not_taken() {
    let world = World::new();
    let first = walk(&world.open()).unwrap();
    let own = world.only("idx");
    let other = World::new();
    fs::write(&other.catalog, recorded("basic-raw")).unwrap();
    other.open();
    fs::copy(other.only("idx"), &own).unwrap();
    assert!(world.recompiles(&first));
}

#[test]
fn a_removed_or_copied_index_and_a_lost_or_damaged_stamp_are_no_matter() {
    let world = World::new();
    let first = walk(&world.open()).unwrap();
    for damage in ["", "{", "[]", r#"{"catalog_sha256":"../../x"}"#] {
        fs::write(world.only("stamp"), damage).unwrap();
        assert!(!world.recompiles(&first), "{damage}");
    }
    let truncated = fs::read(world.only("stamp")).unwrap();
    fs::write(world.only("stamp"), &truncated[..truncated.len() / 2]).unwrap();
    assert!(!world.recompiles(&first));
    fs::remove_file(world.only("stamp")).unwrap();
    assert!(!world.recompiles(&first));
    // A restored backup has the same bytes but other times and inodes, so it is verified and used.
    let bytes = fs::read(world.only("idx")).unwrap();
    fs::remove_file(world.only("idx")).unwrap();
    assert_eq!(walk(&world.open()).unwrap(), first);
    assert_eq!(fs::read(world.only("idx")).unwrap(), bytes);
    fs::remove_dir_all(&world.cache).unwrap();
    assert_eq!(walk(&world.open()).unwrap(), first);
}

#[test]
fn leftovers_of_dead_writers_are_swept() {
    let world = World::new();
    fs::create_dir_all(&world.cache).unwrap();
    let (old, young) = (world.cache.join(".a.idx.part#1.0"), world.cache.join(".b.idx.part#2.0"));
    for path in [&old, &young] {
        fs::write(path, "half").unwrap();
    }
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    fs::File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    world.open();
    assert!(!old.exists() && young.exists());
}

#[test]
fn many_compile_at_once() {
    let world = World::new();
    let expected = walk(&world.open()).unwrap();
    for _ in 0..5 {
        fs::remove_dir_all(&world.cache).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(walk(&world.open()).unwrap(), expected));
            }
        });
        let mut names = fs::read_dir(&world.cache).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(!names.any(|name| name.to_string_lossy().contains("part#")));
    }
}

#[test]
fn invalid_catalog_file_is_refused_with_its_name() {
    let world = World::new();
    let refusal = |name: &str| match world.try_open(name) {
        Err(error @ LibraryError::Catalog { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(CatalogName::parse("adb8c26db4d86a93v13.linux_amd64"), None, "another version");
    let renamed = "4ef4502d7023d413v12.linux_amd64";
    fs::copy(&world.catalog, world.catalog.with_file_name(renamed)).unwrap();
    assert!(refusal(renamed).contains("adb8c26db4d86a93"), "{}", refusal(renamed));
    let foreign = "adb8c26db4d86a93v12.darwin_arm64";
    fs::copy(&world.catalog, world.catalog.with_file_name(foreign)).unwrap();
    assert!(refusal(foreign).contains("linux_amd64"));
    fs::remove_file(&world.catalog).unwrap();
    fs::create_dir(&world.catalog).unwrap();
    assert!(refusal(NAME).contains("regular file"));
    fs::remove_dir(&world.catalog).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &world.catalog, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(refusal(NAME).contains("regular file"), "and does not hang");
    fs::remove_file(&world.catalog).unwrap();
    fs::write(&world.catalog, b"hello").unwrap();
    let message = refusal(NAME);
    assert!(message.contains(NAME) && message.contains("gzip"), "{message}");
    fs::remove_file(&world.catalog).unwrap();
    assert!(matches!(world.try_open(NAME), Err(LibraryError::Io { .. })));
}

#[test]
fn duplicate_name_in_a_directory_is_refused() {
    let text = |tree: &str| {
        let id = "hea7ce2c_493f813dad24d3t";
        let text = format!(r#"{{"identity":"{id}","path":"/x/{id}","tree":{tree}}}"#);
        let mut stream = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut stream, text.as_bytes()).unwrap();
        parse_file(&stream.finish().unwrap()).unwrap()
    };
    let link = r#"{"symlink":"t"}"#;
    for tree in [
        format!(r#"{{"subdirs":{{"d":{{"files":{{"a":{link},"b":{link},"a":{link}}}}}}}}}"#),
        format!(r#"{{"subdirs":{{"d":{{"subdirs":{{"a":{{}}}},"files":{{"a":{link}}}}}}}}}"#),
        format!(r#"{{"subdirs":{{"d":{{"subdirs":{{"a":{{}},"\u0061":{link}}}}}}}}}"#),
    ] {
        let error = compile::compile(&text(&tree), [0; 32]).unwrap_err();
        assert_eq!(error.to_string(), "entry \"d/a\": a duplicate name", "{tree}");
    }
}

/// The bytes of an index file, and a path for changed ones.
fn compiled() -> Vec<u8> {
    compile::compile(&parse_file(&recorded("basic-gz")).unwrap(), [7; 32]).unwrap()
}

/// Opens changed bytes without verifying them.
fn poke(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.idx");
    fs::write(&path, bytes).unwrap();
    let Ok(index) = Index::open(&path) else { return };
    for id in (0..index.len().min(1000)).chain([u32::MAX]) {
        if let Ok(node) = index.node(NodeId(id)) {
            match node.kind {
                NodeKind::Dir { children, .. } => assert!(children.is_empty() || children.start > id),
                NodeKind::File { relocations, .. } => drop(relocations.iter().map(|at| at.get()).max()),
                NodeKind::Symlink { .. } => {}
            }
            drop(index.lookup(NodeId(id), node.name));
        }
        drop(index.lookup(NodeId(id), b"bin"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_damage_panics(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = compiled();
        for (place, byte) in flips {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        poke(&bytes);
    }

    /// Only the header is checked when an index is opened. Here it is damaged, but its checksum is right.
    #[test]
    fn no_damage_behind_a_good_checksum_panics(
        header in proptest::collection::vec((12usize..format::HEADER_SIZE - 4, any::<u8>()), 0..4),
        nodes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
    ) {
        let mut bytes = compiled();
        for (place, byte) in nodes {
            let at = format::HEADER_SIZE + place.index(bytes.len() - format::HEADER_SIZE);
            bytes[at] = byte;
        }
        for (at, byte) in header {
            bytes[at] = byte;
        }
        let crc = crc32fast::hash(&bytes[..format::HEADER_SIZE - 4]);
        bytes[format::HEADER_SIZE - 4..format::HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
        poke(&bytes);
    }

    #[test]
    fn no_truncation_panics(len in any::<prop::sample::Index>()) {
        let bytes = compiled();
        poke(&bytes[..len.index(bytes.len())]);
    }
}
