use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::*;
use crate::library::digest::{DigestKind, Hasher};
use crate::library::dir::DirLibrary;

const ID: &str = "hea7ce2c_493f813dad24d3t";

/// A copy of a library that rcc made.
fn library(fixture: &str) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), &target).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let from =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture).join("home/hololib");
    copy(&from, dir.path());
    dir
}

fn run(hololib: &Path, fast: bool) -> CheckReport {
    check(&DirLibrary::new(hololib), "", fast, 3, |_| ProgressBar::hidden()).unwrap()
}

/// The blob of a file in the root of the fixtures' tree.
fn blob_of(hololib: &Path, path: &str) -> (Digest, PathBuf) {
    let library = DirLibrary::new(hololib);
    for entry in crate::library::catalogs::list(&library).unwrap() {
        let tree = read(&library, &entry.name).unwrap();
        for (position, entry) in tree.entries.iter().enumerate() {
            if let EntryKind::File { digest, .. } = entry.kind
                && tree.path_of(position) == path
            {
                let digest = tree.digests[digest as usize];
                return (digest, hololib.join("library").join(digest.fan_out()));
            }
        }
    }
    panic!("no {path}");
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut stream = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    stream.write_all(content).unwrap();
    stream.finish().unwrap()
}

fn snapshot(dir: &Path) -> BTreeMap<PathBuf, (u64, std::time::SystemTime)> {
    let mut out = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let (path, found) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
            if found.is_dir() {
                dirs.push(path.clone());
            }
            out.insert(path, (found.len(), found.modified().unwrap()));
        }
    }
    out
}

#[test]
fn library_made_by_rcc_is_clean() {
    for (fixture, catalogs) in [("basic-gz", 1), ("basic-raw", 1), ("two-catalogs", 2)] {
        let dir = library(fixture);
        for fast in [true, false] {
            let report = run(dir.path(), fast);
            assert!(report.is_clean(), "{fixture}: {report:?}");
            assert_eq!((report.catalogs, report.unreferenced_bytes), (catalogs, 0), "{fixture}");
            assert!(report.affected.is_empty() && report.blobs > 50, "{fixture}");
        }
    }
}

#[test]
fn missing_blob_is_reported_with_affected_files() {
    let dir = library("two-catalogs");
    let (digest, path) = blob_of(dir.path(), "identity.yaml");
    fs::remove_file(path).unwrap();
    for fast in [true, false] {
        let report = run(dir.path(), fast);
        assert!(!report.is_clean());
        assert_eq!(report.missing, [digest.to_string()].into());
        assert_eq!(report.affected.len(), 1, "the other environment has its own identity.yaml");
        assert!(report.affected.values().all(|paths| paths.contains("identity.yaml")));
    }
}

#[test]
fn a_changed_blob_is_corrupt_and_nothing_is_touched() {
    for fixture in ["basic-gz", "basic-raw"] {
        let dir = library(fixture);
        let (digest, path) = blob_of(dir.path(), "identity.yaml");
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let before = snapshot(dir.path());
        assert!(run(dir.path(), true).is_clean(), "the size is right");
        let report = run(dir.path(), false);
        assert_eq!(report.corrupt.len(), 1);
        assert_eq!(report.corrupt[0].digest, digest.to_string());
        assert!(report.affected["adb8c26db4d86a93"].contains("identity.yaml"));
        assert_eq!(snapshot(dir.path()), before);
        fs::write(&path, b"").unwrap();
        assert_eq!(run(dir.path(), true).corrupt.len(), 1, "and now it is wrong");
    }
}

#[test]
fn unreferenced_files_are_counted_but_not_an_error() {
    let dir = library("basic-gz");
    let library = dir.path().join("library");
    let stray = Hasher::digest(DigestKind::Sha256, b"stray");
    let bytes = gzip(b"stray");
    fs::create_dir_all(library.join(stray.fan_out()).parent().unwrap()).unwrap();
    fs::write(library.join(stray.fan_out()), &bytes).unwrap();
    fs::write(library.join("00.part#1"), b"12345").unwrap();
    fs::write(library.join(stray.to_string()), b"123").unwrap();
    let report = run(dir.path(), false);
    assert!(report.is_clean());
    assert_eq!(report.unreferenced_bytes, bytes.len() as u64 + 5 + 3);
    fs::write(library.join(stray.fan_out()), b"other").unwrap();
    assert_eq!(run(dir.path(), false).corrupt.len(), 1, "a bad one is named all the same");
}

#[test]
fn invalid_catalog_is_reported_and_others_are_checked() {
    let dir = library("two-catalogs");
    let name = "4ef4502d7023d413v12.linux_amd64";
    fs::write(dir.path().join("catalog").join(name), b"hello").unwrap();
    let report = run(dir.path(), true);
    assert!(!report.is_clean());
    assert!(report.bad_catalogs[name].contains("gzip"), "{report:?}");
    assert_eq!((report.catalogs, report.missing.len()), (2, 0));
    assert_eq!(report.unreferenced_bytes, 0, "it cannot be known what the bad one needs");
    let report = check(&DirLibrary::new(dir.path()), "adb8", true, 1, |_| ProgressBar::hidden()).unwrap();
    assert!(report.is_clean());
    assert_eq!((report.catalogs, report.blobs), (1, 71));
}

/// A library with one file, and the relocations that its catalog lists.
fn relocated(content: &[u8], offsets: &str, size: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let digest = Hasher::digest(DigestKind::Sha256, content);
    let file =
        format!(r#""f":{{"name":"f","size":{size},"mode":420,"digest":"{digest}","rewrite":{offsets}}}"#);
    let text = format!(r#"{{"identity":"{ID}","path":"/x/{ID}","tree":{{"files":{{{file}}}}}}}"#);
    for (path, bytes) in [
        (dir.path().join("catalog/adb8c26db4d86a93v12.linux_amd64"), gzip(text.as_bytes())),
        (dir.path().join("library").join(digest.fan_out()), gzip(content)),
    ] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

#[test]
fn wrong_relocation_is_found() {
    let mut content = vec![b'.'; 400_000];
    let offsets = [0usize, 24, 100, 131_060, 131_072 + 131_071, 399_976];
    for offset in offsets {
        content[offset..offset + 24].copy_from_slice(ID.as_bytes());
    }
    assert!(run(relocated(&content, &format!("{offsets:?}"), 400_000).path(), false).is_clean());
    for wrong in [1usize, 50, 131_061, 399_975] {
        let mut listed = offsets.to_vec();
        listed.push(wrong);
        let dir = relocated(&content, &format!("{listed:?}"), 400_000);
        let report = run(dir.path(), false);
        assert_eq!(report.corrupt.len(), 1, "{wrong}");
        assert!(report.corrupt[0].why.contains(&format!("at {wrong},")), "{report:?}");
        assert!(report.affected["adb8c26db4d86a93"].contains("f"));
    }
    let report = run(relocated(&content, "[]", 399_999).path(), false);
    assert!(report.corrupt[0].why.contains("399999"), "{report:?}");
}

#[test]
fn the_keys_of_the_json() {
    let mut report = run(relocated(b"x", "[]", 2).path(), false);
    report.missing.insert("m".into());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["catalogs"], 1);
    assert_eq!(json["blobs"], 1);
    assert_eq!(json["missing"], serde_json::json!(["m"]));
    assert_eq!(json["corrupt"].as_array().unwrap().len(), 1);
    assert_eq!(json["unreferenced_bytes"], 0);
    assert_eq!(json["affected"], serde_json::json!({"adb8c26db4d86a93": ["f"]}));
}

#[test]
fn missing_library_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(check(&DirLibrary::new(dir.path()), "", true, 0, |_| ProgressBar::hidden()).is_err());
}
