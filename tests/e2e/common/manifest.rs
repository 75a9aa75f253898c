//! Describes every entry of a tree, and how two trees differ.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::library::hex;

/// A tree: a description for each path.
pub type Manifest = BTreeMap<String, Line>;

/// The description of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Dir { mode: u32 },
    File { mode: u32, size: u64, sha256: String, mtime: (i64, i64) },
    Link { target: String },
    Other { mode: u32 },
}

/// Reads a golden manifest. It has no times of directories, because adding files changed them.
pub fn read_golden(path: &Path) -> Manifest {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().skip(1).map(|line| golden_line(&serde_json::from_str(line).expect("JSON"))).collect()
}

fn golden_line(json: &Value) -> (String, Line) {
    let text = |key: &str| json[key].as_str().unwrap_or_else(|| panic!("no {key} in {json}")).to_owned();
    let mode = || u32::from_str_radix(&text("mode"), 8).expect("octal");
    let line = match json["type"].as_str() {
        Some("dir") => Line::Dir { mode: mode() },
        Some("link") => Line::Link { target: text("target") },
        Some("file") => Line::File {
            mode: mode(),
            size: json["size"].as_u64().expect("size"),
            sha256: text("sha256"),
            mtime: (json["mtime"].as_i64().expect("mtime in whole seconds"), 0),
        },
        other => panic!("type {other:?}"),
    };
    (text("path"), line)
}

/// Reads a tree, including every byte of its files.
pub fn read_tree(root: &Path) -> Manifest {
    let mut out = Manifest::new();
    walk(root, root, &mut out);
    out
}

fn walk(path: &Path, root: &Path, out: &mut Manifest) {
    let stat = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mode = stat.mode() & 0o7777;
    let kind = stat.file_type();
    let line = if kind.is_dir() {
        let entries = std::fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for entry in entries {
            walk(&entry.expect("an entry").path(), root, out);
        }
        Line::Dir { mode }
    } else if kind.is_symlink() {
        Line::Link { target: std::fs::read_link(path).expect("readlink").to_string_lossy().into_owned() }
    } else if kind.is_file() {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(bytes.len() as u64, stat.len(), "{}", path.display());
        let sha256 = hex(&Sha256::digest(&bytes));
        Line::File { mode, size: stat.len(), sha256, mtime: (stat.mtime(), stat.mtime_nsec()) }
    } else {
        Line::Other { mode }
    };
    let relative = path.strip_prefix(root).expect("below the root");
    let name = if relative.as_os_str().is_empty() { ".".into() } else { relative.to_string_lossy() };
    assert!(std::str::from_utf8(relative.as_os_str().as_bytes()).is_ok(), "{name} is not UTF-8");
    out.insert(name.into_owned(), line);
}

/// How `here` differs from `want`, one line for each difference.
pub fn differences(want: &Manifest, here: &Manifest) -> Vec<String> {
    let mut out = Vec::new();
    for (path, want) in want {
        match here.get(path) {
            None => out.push(format!("missing {path:?}")),
            Some(here) if here != want => out.push(format!("{path:?}: want {want:?}, here {here:?}")),
            Some(_) => {}
        }
    }
    out.extend(here.keys().filter(|path| !want.contains_key(*path)).map(|path| format!("extra {path:?}")));
    out
}

/// Asserts that a tree matches the manifest.
#[track_caller]
pub fn assert_same(want: &Manifest, here: &Manifest) {
    let differences = differences(want, here);
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
