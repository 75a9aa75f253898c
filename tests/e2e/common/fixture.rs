//! The libraries that real rcc wrote, copied to where a test can use them.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::World;
use super::as_user::fixtures;
use super::library::gzip;

/// A world whose library is the fixture of this name. Its catalogs name the world's own base instead of the directory
/// in which they were recorded. Nothing else in them changes.
pub fn world(name: &str) -> World {
    let world = World::new();
    copy_tree(&fixtures().join(name).join("home"), &world.home());
    for dir in ["used", "pids"] {
        std::fs::create_dir_all(world.hololib().join(dir)).expect("mkdir");
    }
    for entry in std::fs::read_dir(world.hololib().join("catalog")).expect("catalogs").map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name().into_string().expect("a name");
        if !name.contains("v12.") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("read");
        let moved = if name.ends_with(".info") {
            serde_json::to_vec_pretty(&rebased(&bytes, &world.base())).expect("JSON")
        } else {
            at_base(&bytes, &world.base())
        };
        std::fs::write(&path, moved).expect("write");
    }
    world
}

/// A world whose library is the fixture of this name as rcc wrote it: its catalogs name the directory in which it was recorded,
/// which is not on this machine.
pub fn moved_here(name: &str) -> World {
    let world = World::new();
    copy_tree(&fixtures().join(name).join("home"), &world.home());
    for dir in ["used", "pids"] {
        std::fs::create_dir_all(world.hololib().join(dir)).expect("mkdir");
    }
    world
}

/// The path of a golden manifest.
pub fn golden(fixture: &str, space: &str) -> PathBuf {
    fixtures().join(fixture).join("golden").join(format!("{space}.jsonl"))
}

/// A catalog that names `base` as the directory of its spaces.
pub fn at_base(catalog: &[u8], base: &Path) -> Vec<u8> {
    gzip(&serde_json::to_vec_pretty(&rebased(&gunzip(catalog), base)).expect("JSON"))
}

fn rebased(json: &[u8], base: &Path) -> Value {
    let mut catalog: Value = serde_json::from_slice(json).expect("JSON");
    let identity = catalog["identity"].as_str().expect("identity").to_owned();
    catalog["path"] = json!(base.join(identity));
    catalog
}

/// Decompresses one gzip stream.
pub fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut out).expect("gzip");
    out
}

/// Copies directories and regular files.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("mkdir");
    for entry in std::fs::read_dir(from).expect("a directory").map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("copy");
        }
    }
}
